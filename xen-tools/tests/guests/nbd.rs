//! Disks of real guests by NBD: `mmblk-nbd` behind Linux's own driver.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use xen_tools::vm::Guest;

use crate::support::{Server, kit, program};

const IMAGE_BYTES: &str = "96MiB";

fn serve(folder: &Path, port: u16) -> Server {
    let socket = folder.join("socket");
    let mut command = Command::new(program("mmblk-nbd"));
    command
        .arg(format!("unix:{}", socket.display()))
        .arg(format!("127.0.0.1:{port}"))
        .arg(format!("file:{},create={IMAGE_BYTES}", folder.join("image").display()))
        .arg("queues=2");
    Server::start(&mut command, &socket)
}

/// A file system: made, filled and verified, trimmed, checked. Then the bare disk.
const SCRIPT: &str = r#"
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
nbd-client 10.0.2.2 PORT /dev/nbd0 -N disk -C 2 -b 4096
say connected
try() {
    mkfs.ext4 -q -F "$1"
    mount -t ext4 -o discard "$1" /mnt
    fio --name=v --directory=/mnt --size=4m --numjobs=2 --rw=randwrite --bsrange=4k-64k --ioengine=libaio --iodepth=16 \
        --direct=1 --verify=crc32c --verify_fatal=1 --end_fsync=1 --fsync=64 --output=/tmp/fio || { cat /tmp/fio; false; }
    rm /mnt/v.*
    fstrim /mnt
    umount /mnt
    e2fsck -fn "$1"
    fio --name=w --filename="$1" --size=6m --rw=randwrite --bs=4k --ioengine=libaio --iodepth=32 --direct=1 \
        --verify=crc32c --verify_fatal=1 --output=/tmp/fio || { cat /tmp/fio; false; }
}
try /dev/nbd0
nbd-client -d /dev/nbd0
say checked
"#;

#[test]
#[ignore = "boots guests: run by .ci/guests"]
fn a_file_system_lives_on_linuxs_own_nbd_driver() {
    let folder = tempfile::tempdir().unwrap();
    // Free a moment ago, and asked for at once.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let _server = serve(folder.path(), port);
    let guest = Guest::new("nbd", &SCRIPT.replace("PORT", &port.to_string()))
        .modules(&["virtio_pci", "virtio_net", "nbd nbds_max=1"])
        .devices(["-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n"]);
    let said = guest.boot(&kit()).unwrap().wait().unwrap();
    assert!(said.iter().any(|line| line == "checked"), "{said:?}");
}
