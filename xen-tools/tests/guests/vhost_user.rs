//! Disks of real guests by vhost-user-blk: `mmblk-vhost` behind QEMU's device and Linux's driver.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use xen_tools::vm::{Booted, Guest};

use crate::support::{Server, kit, program};

const MODULES: [&str; 2] = ["virtio_pci", "virtio_blk"];
const IMAGE_BYTES: u64 = 96 << 20;

/// An image and a socket for it.
struct Disk {
    folder: tempfile::TempDir,
}

impl Disk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::File::create(folder.path().join("image")).unwrap().set_len(IMAGE_BYTES).unwrap();
        Self { folder }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    fn serve(&self) -> Server {
        let mut command = Command::new(program("mmblk-vhost"));
        command
            .arg(self.socket())
            .arg(format!("file:{},block=512", self.image().display()))
            .args(["rings=2", "serial=fido-disk"]);
        // A process that is killed leaves its socket.
        let _ = std::fs::remove_file(self.socket());
        Server::start(&mut command, &self.socket())
    }
}

fn guest(name: &str, script: &str, socket: &Path) -> Guest {
    let chardev = format!("socket,id=c,path={},reconnect=1", socket.display());
    let device = "vhost-user-blk-pci,chardev=c,num-queues=2,queue-size=128";
    Guest::new(name, script).shared().modules(&MODULES).devices(["-chardev", &chardev, "-device", device])
}

/// A file system on a partition: made, filled and verified, trimmed, checked. Then the disk grows.
const FILE_SYSTEM: &str = r#"
test "$(cat /sys/block/vda/serial)" = fido-disk
test "$(ls /sys/block/vda/mq | wc -l)" = 2
echo 'start=2048' | sfdisk -q /dev/vda
mkfs.ext4 -q -F /dev/vda1
mount -t ext4 /dev/vda1 /mnt
say mounted
fio --name=v --directory=/mnt --size=8m --numjobs=2 --rw=randwrite --bsrange=4k-64k --ioengine=libaio --iodepth=16 \
    --direct=1 --verify=crc32c --verify_fatal=1 --end_fsync=1 --output=/tmp/fio || { cat /tmp/fio; false; }
rm /mnt/v.*
fstrim /mnt
umount /mnt
test "$(cat /sys/block/vda/queue/write_zeroes_max_bytes)" -gt 0
# The tables of inodes are zeroed by the device.
mkfs.ext4 -q -F -E lazy_itable_init=0 /dev/vda1
e2fsck -fn /dev/vda1
say checked
while [ "$(blockdev --getsize64 /dev/vda)" != GROWN ]; do sleep 0.1; done
"#;

/// Writes for a while, and reads all of it back. Flushes in between take longer than what comes after them, so that
/// requests end in another order than they began.
const LONG: &str = r#"
job="--name=w --filename=/dev/vda --size=6m --offset_increment=8m --numjobs=4 --rw=randwrite --bs=4k --ioengine=libaio
    --iodepth=16 --direct=1 --verify=crc32c --verify_fatal=1 --randseed=1 --eta=never --output=/tmp/fio"
say io
fio $job --fsync=4 --do_verify=0 --loops=2 || { cat /tmp/fio; false; }
say written
fio $job --verify_only || { cat /tmp/fio; false; }
"#;

#[test]
#[ignore = "boots guests: run by .ci/guests"]
fn a_file_system_lives_on_a_vhost_user_disk() {
    let disk = Disk::new();
    let server = disk.serve();
    let (kit, script) = (kit(), FILE_SYSTEM.replace("GROWN", &(2 * IMAGE_BYTES).to_string()));
    let mut guest = guest("vhost-file-system", &script, &disk.socket()).boot(&kit).unwrap();
    guest.wait_for("checked").unwrap();
    std::fs::File::options().write(true).open(disk.image()).unwrap().set_len(2 * IMAGE_BYTES).unwrap();
    server.hang_up();
    guest.wait().unwrap();
    let allocated = std::fs::metadata(disk.image()).unwrap().blocks() * 512;
    assert!(allocated < 14 << 20, "{allocated} bytes are still allocated: the trim has not come through");
}

#[test]
#[ignore = "boots guests: run by .ci/guests"]
fn a_disk_survives_the_death_of_its_server_under_load() {
    let disk = Disk::new();
    let mut server = disk.serve();
    let kit = kit();
    let mut guest: Booted = guest("vhost-restart", LONG, &disk.socket()).boot(&kit).unwrap();
    guest.wait_for("io").unwrap();
    let mut deaths = 0;
    while !guest.has_said("written") && deaths < 4 {
        std::thread::sleep(Duration::from_millis(400));
        server.kill();
        deaths += 1;
        server = disk.serve();
        // Until the front end has come back.
        std::thread::sleep(Duration::from_millis(1200));
    }
    guest.wait().unwrap();
    println!("{deaths} deaths");
    assert!(deaths >= 2, "the load was over after {deaths} deaths");
    drop(server);
}
