//! Full volumes.

use super::disk::Disk;
use super::rig::*;
use crate::volume::ops::*;
use crate::volume::superblock::MIN_DEVICE_BYTES;

use Stability::{FileSync, Unstable};

const CHUNK: usize = 256 << 10;

/// Writes until the volume is full; returns how many chunks fitted.
fn fill(rig: &mut Rig, ino: Ino, stability: Stability) -> u64 {
    for i in 0.. {
        match rig.write(ino, i * CHUNK as u64, &pattern(i, CHUNK), stability) {
            Ok(_) => {}
            Err(VolumeError::NoSpace) => return i,
            Err(error) => panic!("{error}"),
        }
    }
    0
}

#[test]
fn a_full_volume_keeps_what_it_has_and_can_be_emptied() {
    let mut rig = Rig::new(MIN_DEVICE_BYTES);
    let free = rig.free();
    for stability in [FileSync, Unstable] {
        let ino = rig.create(ROOT, "big").unwrap();
        let chunks = fill(&mut rig, ino, stability);
        assert!(chunks * CHUNK as u64 > free * 9 / 10);
        // Small things still fit, or not; cutting within a block always does.
        let _ = rig.write(ino, 0, &pattern(0, 10), Unstable);
        rig.commit(ino).unwrap();
        for i in 0..chunks {
            let (data, _) = rig.read(ino, i * CHUNK as u64, CHUNK as u32).unwrap();
            let expected = pattern(i, CHUNK);
            assert_eq!(data[10..], expected[10..], "chunk {i}");
        }
        rig.truncate(ino, CHUNK as u64 + 17).unwrap();
        assert!(rig.free() > free - 2 * CHUNK as u64);
        assert!(fill(&mut rig, ino, FileSync) + 1 >= chunks);
        rig.remove(ROOT, "big").unwrap();
        assert_eq!(rig.free(), free);
    }
    assert_eq!(rig.check().problems, Vec::<String>::new());
}

#[test]
fn rewriting_a_full_volume_waits_for_its_own_commits() {
    let mut rig = Rig::new(MIN_DEVICE_BYTES);
    let ino = rig.create(ROOT, "big").unwrap();
    let chunks = fill(&mut rig, ino, FileSync);
    rig.truncate(ino, (chunks - 2) * CHUNK as u64).unwrap();
    // Out of place, each of these needs what the one before has left behind.
    for round in 0..3 {
        for i in 0..chunks - 2 {
            rig.write(ino, i * CHUNK as u64, &pattern(i + round, CHUNK), Unstable).unwrap();
        }
    }
    for i in 0..chunks - 2 {
        assert_eq!(rig.read(ino, i * CHUNK as u64, CHUNK as u32).unwrap().0, pattern(i + 2, CHUNK));
    }
    assert_eq!(rig.check().problems, Vec::<String>::new());
}

#[test]
fn many_writers_share_the_last_blocks() {
    let mut rig = Rig::new(MIN_DEVICE_BYTES);
    let ino = rig.create(ROOT, "big").unwrap();
    let chunks = fill(&mut rig, ino, FileSync);
    rig.truncate(ino, (chunks - 3) * CHUNK as u64).unwrap();
    let ops: Vec<VolumeOp> =
        (0..12).map(|i| rig.write_op(ino, (i % 4) * CHUNK as u64, &pattern(i, CHUNK), FileSync)).collect();
    let tickets: Vec<u64> = ops.into_iter().map(|op| rig.submit(op)).collect();
    for ticket in tickets {
        // All get their turn, for each frees as much as it takes.
        rig.wait(ticket).unwrap();
    }
    assert_eq!(rig.read(ino, 0, CHUNK as u32).unwrap().0, pattern(8, CHUNK));
    assert_eq!(rig.check().problems, Vec::<String>::new());
}

#[test]
fn metadata_runs_out_and_comes_back() {
    let mut rig = Rig::open(&Disk::new(MIN_DEVICE_BYTES), options()).unwrap();
    let ino = rig.create(ROOT, "data").unwrap();
    rig.write(ino, 0, b"kept", FileSync).unwrap();
    let mut made = 0;
    let error = 'full: loop {
        let tickets: Vec<u64> = (0..64)
            .map(|i| {
                let name = format!("{:0>200}", made + i).into();
                let mode = CreateMode::Guarded(SetAttr::default());
                rig.submit(VolumeOp::Create { dir: ROOT, name, mode, caller: root() })
            })
            .collect();
        let mut full = None;
        for ticket in tickets {
            match rig.wait(ticket) {
                Ok(_) if full.is_none() => made += 1,
                Ok(_) => panic!("it was full before"),
                Err(error) => full = Some(error),
            }
        }
        if let Some(error) = full {
            break 'full error;
        }
        assert!(made < 100_000);
    };
    assert_eq!(error, VolumeError::NoSpace);
    assert!(made > 500, "{made}");
    assert_eq!(rig.mkdir(ROOT, "d"), Err(VolumeError::NoSpace));
    // Data still can be written for a while, renames and removals always work.
    rig.write(ino, 0, b"more", FileSync).unwrap();
    rig.rename(ROOT, "data", ROOT, "other").unwrap();
    let mut rig = rig.reopen();
    assert_eq!(rig.content(ino), b"more");
    for i in 0..made {
        rig.remove(ROOT, &format!("{i:0>200}")).unwrap();
    }
    rig.create(ROOT, "again").unwrap();
    assert_eq!(rig.check().problems, Vec::<String>::new());
}

#[test]
fn a_fragmented_file_is_read_in_pieces() {
    let mut rig = Rig::new(32 << 20);
    let (a, b) = (rig.create(ROOT, "a").unwrap(), rig.create(ROOT, "b").unwrap());
    for i in 0..300u64 {
        rig.write(a, i * 4096, &pattern(i, 4096), Unstable).unwrap();
        rig.write(b, i * 4096, &pattern(i, 4096), Unstable).unwrap();
    }
    let (data, eof) = rig.read(a, 100, MAX_IO_BYTES).unwrap();
    assert!(!eof && data.len() >= 100 * 4096 && data.len() < MAX_IO_BYTES as usize);
    let expected: Vec<u8> = (0..300).flat_map(|i| pattern(i, 4096)).collect();
    assert_eq!(data, expected[100..100 + data.len()]);
    assert_eq!(rig.content(a), expected);
}
