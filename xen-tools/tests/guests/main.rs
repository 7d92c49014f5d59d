//! Real Linux guests under emulation. They take a while and need Debian's packages: `.ci/guests` runs them. Here are the
//! tests of the guests themselves; each device has a file of its own.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::{Duration, Instant};

use xen_tools::vm::{Guest, GuestError};

use support::kit;

mod nbd;
mod nbd_disks;
mod support;
mod ublk;
mod vhost_user;

fn alive(process: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{process}/stat")).is_ok_and(|stat| !stat.contains(") Z"))
}

/// One test, because there are two processors and each guest wants both.
#[test]
#[ignore = "boots guests: run by .ci/guests"]
fn a_guest_reports_what_its_script_does_or_why_it_does_not_end() {
    let kit = kit();
    let script = "uname -r; fio --version; mkfs.ext4 -V 2>&1; say hello $((6 * 7)); test -d /sys/module/virtio_scsi";
    let modules = ["virtio_pci", "virtio_scsi", "sd_mod"];
    let began = Instant::now();
    let mut guest = Guest::new("hello", script).modules(&modules).boot(&kit).unwrap();
    let up = guest.wait_for("begins").unwrap();
    println!("script began after {:.1} s ({up})", began.elapsed().as_secs_f64());
    assert_eq!(guest.wait().unwrap()[1], "hello 42");

    let error = Guest::new("fails", "echo its reason; say before; false; say after").boot(&kit).unwrap().wait();
    let Err(GuestError::Failed { how, said, console, .. }) = error else { panic!("{error:?}") };
    assert_eq!((how.as_str(), said[1].as_str(), said.len()), ("status 1", "before", 2));
    assert!(console.contains("its reason"), "{console}");

    let mut hangs = Guest::new("hangs", "say up; sleep 1000");
    hangs.limit = Duration::from_secs(60);
    let mut guest = hangs.boot(&kit).unwrap();
    guest.wait_for("up").unwrap();
    let process = guest.process();
    assert!(alive(process));
    drop(guest);
    assert!(!alive(process), "QEMU has outlived its guest");
    hangs.limit = Duration::from_millis(200);
    let error = hangs.boot(&kit).unwrap().wait();
    assert!(matches!(error, Err(GuestError::Late { .. })), "{error:?}");

    let error = Guest::new("no-device", "").devices(["-device", "does-not-exist"]).boot(&kit).unwrap().wait();
    assert!(matches!(&error, Err(GuestError::Died { console, .. }) if console.contains("does-not-exist")), "{error:?}");
}
