//! A disk that a guest's own kernel has from `mmblk-ublk`, which runs in the guest. It takes a kernel of Debian's
//! backports: that of Debian 12 is built without ublk.

use xen_tools::vm::{Guest, Kit};

use crate::support::program;

/// A file system: made, filled and verified, trimmed, checked. The first server
/// comes to its end in order, the second one is killed under load: whoever uses the disk has errors then, and its number
/// can be had again.
const SCRIPT: &str = r#"
serve() {
    rm -f /tmp/disk
    mmblk-ublk "$@" >/tmp/disk &
    server=$!
    while [ ! -s /tmp/disk ]; do kill -0 $server; sleep 0.05; done
    disk=$(cat /tmp/disk)
}
verified() {
    fio --name=v "$@" --bsrange=4k-64k --ioengine=libaio --iodepth=16 --direct=1 --verify=crc32c --verify_fatal=1 \
        --eta=never --output=/tmp/fio || { cat /tmp/fio; false; }
}
serve memory:64MiB,block=512 queues=2 depth=32
test "$disk" = /dev/ublkb0
test "$(ls /sys/block/ublkb0/mq | wc -l)" = 2
test "$(blockdev --getsize64 $disk)" = 67108864
test "$(cat /sys/block/ublkb0/queue/write_zeroes_max_bytes)" -gt 0
mkfs.ext4 -q -F $disk
mount -t ext4 -o discard $disk /mnt
verified --directory=/mnt --size=4m --numjobs=2 --rw=randwrite --end_fsync=1 --fsync=64
rm /mnt/v.*
fstrim /mnt
umount /mnt
e2fsck -fn $disk
verified --filename=$disk --size=6m --rw=randwrite
kill $server
wait $server
test ! -e /dev/ublkb0
say in order
serve file:/tmp/image,create=32MiB number=3
test "$disk" = /dev/ublkb3
verified --filename=$disk --size=4m --rw=randwrite --end_fsync=1
dd if=/dev/zero of=$disk bs=64k oflag=direct 2>/dev/null &
load=$!
kill -9 $server
wait $server || true
! wait $load
say killed
while [ -e /dev/ublkb3 ]; do sleep 0.05; done
serve file:/tmp/image number=3
test "$disk" = /dev/ublkb3
dd if=$disk of=/dev/null bs=64k iflag=direct
kill $server
wait $server
say again
"#;

#[test]
#[ignore = "boots guests: run by .ci/guests"]
fn a_file_system_lives_on_a_ublk_disk() {
    let kit =
        Kit::prepare_later().unwrap_or_else(|error| panic!("no kernel with ublk from Debian's backports: {error}"));
    // QEMU 7.2 emulates cmpxchg16b so that Linux 6.12, which relies on it where it is, dies of it.
    let guest = Guest::new("ublk", SCRIPT)
        .modules(&["ublk_drv"])
        .file("bin/mmblk-ublk", &program("mmblk-ublk"))
        .devices(["-cpu", "max,cx16=off"]);
    let said = guest.boot(&kit).unwrap().wait().unwrap();
    assert_eq!(said[1..], ["in order", "killed", "again"]);
}
