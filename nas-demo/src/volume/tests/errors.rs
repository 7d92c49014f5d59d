//! Foreign, damaged and failing devices.

use super::disk::Disk;
use super::rig::*;
use crate::volume::ops::*;
use crate::volume::superblock::{BLOCK_BYTES, MIN_DEVICE_BYTES, OpenError};

const MIB: u64 = 1 << 20;
use Stability::{FileSync, Unstable};

fn refused(disk: &Disk) -> OpenError {
    match Rig::open(disk, options()) {
        Ok(_) => panic!("it was opened"),
        Err(error) => error,
    }
}

#[test]
fn a_foreign_image_is_refused_and_left_alone() {
    for offset in [0, 510, 4096, 64 << 10] {
        let disk = Disk::new(32 * MIB);
        disk.poke(offset / 512 * 512, &[0x55; 512]);
        assert!(matches!(refused(&disk), OpenError::Foreign), "{offset}");
        assert_eq!(disk.peek(offset / 512 * 512, 512), [0x55; 512]);
        assert_eq!(disk.peek(1 << 20, 4096), [0; 4096]);
    }
}

#[test]
fn device_sizes_have_a_limit() {
    assert!(Rig::open(&Disk::new(MIN_DEVICE_BYTES), options()).is_ok());
    let small = Disk::new(MIN_DEVICE_BYTES - BLOCK_BYTES);
    assert!(matches!(refused(&small), OpenError::TooSmall { .. }));
    let coarse = Disk::with_block(32 * MIB, 8192);
    assert!(matches!(refused(&coarse), OpenError::BlockSize { block: 8192 }));
    let mut fine = Rig::open(&Disk::with_block(32 * MIB, 512), options()).unwrap();
    let ino = fine.create(ROOT, "f").unwrap();
    fine.write(ino, 3, b"data", FileSync).unwrap();
    assert_eq!(fine.reopen().content(ino), b"\0\0\0data");
}

#[test]
fn a_truncated_image_is_refused_and_a_grown_one_is_not() {
    let rig = Rig::new(32 * MIB);
    let disk = rig.disk.clone();
    drop(rig);
    disk.resize(31 * MIB);
    assert!(matches!(refused(&disk), OpenError::Truncated { expected, .. } if expected == 32 * MIB));
    disk.resize(40 * MIB);
    assert!(Rig::open(&disk, options()).is_ok());
}

#[test]
fn one_copy_of_the_superblock_is_enough() {
    let disk = Rig::new(32 * MIB).disk.clone();
    let good = disk.peek(0, 8192);
    for copy in [0, 4096] {
        disk.poke(0, &good);
        disk.poke(copy, &[0xee; 512]);
        // The older copy may know of a shorter store: that is what the flush between the two is for.
        let opened = Rig::open(&disk, options());
        assert!(opened.is_ok() || matches!(opened, Err(OpenError::Store(_))));
    }
    disk.poke(0, &good);
    disk.poke(20, &[0xee; 512]);
    disk.poke(4096 + 512, &[0xee; 512]);
    disk.poke(4096 + 90, &[0xee; 10]);
    assert!(matches!(refused(&disk), OpenError::Foreign | OpenError::Damaged));
}

#[test]
fn a_damaged_store_is_an_error_and_not_a_panic() {
    let mut rig = Rig::new(32 * MIB);
    for i in 0..50 {
        rig.create(ROOT, &format!("file number {i}")).unwrap();
    }
    let disk = rig.disk.clone();
    drop(rig);
    let start = 2 * BLOCK_BYTES;
    let mut dice = super::disk::Dice(77);
    for round in 0..20u64 {
        let damaged = disk.crash(&mut dice);
        for _ in 0..1 + round {
            let at = start + dice.roll(2 * MIB / 512) * 512;
            let junk: Vec<u8> = (0..512).map(|_| dice.roll(256) as u8).collect();
            damaged.poke(at, &junk);
        }
        if let Ok(mut rig) = Rig::open(&damaged, options()) {
            for ino in 1..52 {
                // Anything but a crash.
                let _ = rig.attr(ino);
                let _ = rig.run(VolumeOp::ReadDir { dir: ino, cookie: 0, count: 100, caller: root() });
            }
            let _ = rig.create(ROOT, "another");
        }
    }
}

#[test]
fn a_failing_write_fails_alone() {
    let mut rig = Rig::new(32 * MIB);
    let ino = rig.create(ROOT, "f").unwrap();
    rig.write(ino, 0, &[1; 10_000], FileSync).unwrap();
    let free = rig.free();
    rig.disk.faults(|faults| faults.fail_writes_from = Some(4 * MIB));
    assert_eq!(rig.write(ino, 5000, &[2; 10_000], Unstable), Err(VolumeError::Io));
    assert_eq!(rig.write(ino, 0, &[2; 10_000], FileSync), Err(VolumeError::Io));
    assert_eq!(rig.truncate(ino, 5000), Err(VolumeError::Io));
    assert_eq!(rig.content(ino), [1; 10_000]);
    rig.disk.faults(|faults| faults.fail_writes_from = None);
    assert_eq!(rig.free(), free);
    rig.write(ino, 5000, &[2; 5000], FileSync).unwrap();
    assert_eq!(rig.content(ino)[5000..], [2; 5000]);
    assert_eq!(rig.check().problems, Vec::<String>::new());
}

#[test]
fn a_failing_store_is_opened_again() {
    let mut rig = Rig::new(32 * MIB);
    let ino = rig.create(ROOT, "f").unwrap();
    for failures in 1..12 {
        rig.write(ino, 0, &pattern(failures, 9000), Unstable).unwrap();
        rig.disk.faults(|faults| faults.fail_meta = Some((4 * MIB, failures)));
        let made = rig.create(ROOT, &format!("g{failures}"));
        let committed = rig.commit(ino);
        rig.disk.faults(|faults| faults.fail_meta = None);
        let found = rig.lookup(ROOT, &format!("g{failures}")).map(|attr| attr.ino);
        match made {
            Ok(made) => assert_eq!(found, Ok(made)),
            Err(error) => assert_eq!((error, found.is_err()), (VolumeError::Io, true)),
        }
        if committed.is_err() {
            rig.commit(ino).unwrap();
        }
        assert_eq!(rig.content(ino), pattern(failures, 9000));
    }
    assert_eq!(rig.check().problems, Vec::<String>::new());
}

#[test]
fn a_device_without_buffers_only_delays() {
    let mut rig = Rig::new(32 * MIB);
    let ino = rig.create(ROOT, "f").unwrap();
    rig.write(ino, 0, &pattern(1, 50_000), FileSync).unwrap();
    rig.disk.faults(|faults| faults.no_buffer_every = Some(2));
    for i in 0..10 {
        rig.write(ino, i * 777, &[i as u8; 100], Unstable).unwrap();
        assert_eq!(rig.read(ino, i * 777, 100).unwrap().0, [i as u8; 100]);
    }
    rig.commit(ino).unwrap();
}

#[test]
fn unstable_writes_are_committed_after_a_while() {
    let soon = crate::volume::nas::Options { commit_interval: std::time::Duration::from_millis(20), ..options() };
    let mut rig = Rig::open(&Disk::new(32 * MIB), soon).unwrap();
    let ino = rig.create(ROOT, "f").unwrap();
    rig.write(ino, 0, b"data", Unstable).unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while rig.volume.nodes.peek(&ino).is_some_and(|node| node.written.is_some()) {
        assert!(std::time::Instant::now() < deadline);
        rig.is_answered(0);
    }
    rig.disk.faults(|faults| faults.dies_after = Some(0));
    assert_eq!(rig.write(ino, 0, b"lost", Unstable), Err(VolumeError::Io));
    let after = rig.disk.crash(&mut super::disk::Dice(1));
    drop(rig);
    assert_eq!(Rig::open(&after, options()).unwrap().content(ino), b"data");
}

#[test]
fn a_store_that_cannot_be_opened_for_a_while_comes_back() {
    let mut rig = Rig::new(32 * MIB);
    let ino = rig.create(ROOT, "f").unwrap();
    rig.write(ino, 0, &pattern(1, 9000), FileSync).unwrap();
    rig.write(ino, 4000, &pattern(2, 9000), Unstable).unwrap();
    rig.disk.faults(|faults| faults.fail_meta = Some((4 * MIB, u64::MAX)));
    let set = SetAttr { size: Some(4500), ..SetAttr::default() };
    let tickets = [
        rig.submit(VolumeOp::Commit { ino }),
        rig.submit(VolumeOp::MakeDir { dir: ROOT, name: b"d".to_vec(), set: SetAttr::default(), caller: root() }),
        rig.submit(VolumeOp::SetAttr { ino, set, guard: None, caller: root() }),
    ];
    for ticket in tickets {
        assert_eq!(rig.wait(ticket).unwrap_err(), VolumeError::Io);
    }
    rig.disk.faults(|faults| faults.fail_meta = None);
    let mut expected = pattern(1, 9000);
    expected.truncate(4000);
    expected.extend(pattern(2, 9000));
    assert_eq!(rig.content(ino), expected);
    rig.commit(ino).unwrap();
    rig.mkdir(ROOT, "e").unwrap();
    let mut rig = rig.reopen();
    assert_eq!(rig.content(ino), expected);
    assert_eq!(rig.check().problems, Vec::<String>::new());
}

/// The commit reaches the device, but its flush fails, and the store cannot be opened to see: whatever comes then, no
/// block is freed twice, and everything that is written afterwards counts.
#[test]
fn a_commit_that_nobody_knows_of_does_no_harm() {
    for (flushes, then) in [(1, "write"), (1, "remove"), (1, "cut"), (2, "write"), (0, "remove"), (0, "write")] {
        let mut rig = Rig::new(32 * MIB);
        let ino = rig.create(ROOT, "f").unwrap();
        rig.write(ino, 0, &pattern(1, 9000), FileSync).unwrap();
        rig.write(ino, 4000, &pattern(2, 9000), Unstable).unwrap();
        rig.disk.faults(|faults| faults.flushes_left = Some(flushes));
        let committed = rig.commit(ino);
        assert!(committed.is_ok() || committed == Err(VolumeError::Io));
        rig.disk.faults(|faults| faults.flushes_left = None);
        let mut expected = pattern(1, 9000);
        expected.truncate(4000);
        expected.extend(pattern(2, 9000));
        assert_eq!(rig.content(ino), expected, "{flushes} {then}");
        match then {
            "write" => {
                rig.write(ino, 8000, &pattern(3, 6000), Unstable).unwrap();
                expected.truncate(8000);
                expected.extend(pattern(3, 6000));
                rig.commit(ino).unwrap();
            }
            "cut" => {
                rig.truncate(ino, 4500).unwrap();
                expected.truncate(4500);
            }
            _ => rig.remove(ROOT, "f").unwrap(),
        }
        // Other files take what has become free.
        let other = rig.create(ROOT, "g").unwrap();
        rig.write(other, 0, &pattern(4, 1 << 20), FileSync).unwrap();
        if then != "remove" {
            assert_eq!(rig.content(ino), expected, "{flushes} {then}");
        }
        let mut rig = rig.reopen();
        assert_eq!(rig.content(other), pattern(4, 1 << 20));
        if then != "remove" {
            assert_eq!(rig.content(ino), expected, "{flushes} {then}");
        }
        assert_eq!(rig.check().problems, Vec::<String>::new());
    }
}
