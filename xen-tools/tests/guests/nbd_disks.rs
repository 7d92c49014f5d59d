//! The other two kinds of disk that a guest knows, NVMe and virtio-scsi: QEMU emulates the controllers and keeps their
//! data on our NBD server, `mmblk-nbd`.

use std::process::Command;

use xen_tools::vm::Guest;

use crate::support::{Server, kit, program};

/// What is done with each disk: formatted, filled and verified, checked.
const SCRIPT: &str = r#"
use_disk() {
    mkfs.ext4 -q -F "$1"
    mount -t ext4 -o discard "$1" /mnt
    fio --name=v --directory=/mnt --size=4m --rw=randwrite --bsrange=4k-64k --ioengine=libaio --iodepth=8 --direct=1 \
        --verify=crc32c --verify_fatal=1 --end_fsync=1 --eta=never --output=/tmp/fio || { cat /tmp/fio; false; }
    rm /mnt/v.*
    umount /mnt
    e2fsck -fn "$1"
    say "$1"
}
while [ ! -b /dev/sda ] || [ ! -b /dev/nvme0n1 ]; do sleep 0.1; done
use_disk /dev/nvme0n1
use_disk /dev/sda
"#;

#[test]
#[ignore = "boots guests: run by .ci/guests"]
fn nvme_and_scsi_disks_live_on_the_nbd_server() {
    let folder = tempfile::tempdir().unwrap();
    let mut words: Vec<String> = Vec::new();
    let mut servers = Vec::new();
    for name in ["nvme", "scsi"] {
        let socket = folder.path().join(name);
        let mut command = Command::new(program("mmblk-nbd"));
        command.arg(format!("unix:{}", socket.display())).arg("memory:64MiB");
        servers.push(Server::start(&mut command, &socket));
        let file = format!("nbd+unix:///disk?socket={}", socket.display());
        words.extend(["-drive".into(), format!("if=none,id={name},format=raw,discard=unmap,cache=none,file={file}")]);
    }
    let devices =
        ["-device", "nvme,drive=nvme,serial=1", "-device", "virtio-scsi-pci", "-device", "scsi-hd,drive=scsi"];
    words.extend(devices.map(String::from));
    let guest = Guest::new("nbd-disks", SCRIPT).modules(&["virtio_pci", "virtio_scsi", "sd_mod"]).devices(words);
    let said = guest.boot(&kit()).unwrap().wait().unwrap();
    assert_eq!(said[1..], ["/dev/nvme0n1", "/dev/sda"]);
}
