//! Deaths of the process: nothing is flushed, the device keeps all it has done, and the successor inherits the journal.
//! Then everything is there that was answered, unstable writes too.

use std::sync::Arc;
use std::time::Duration;

use fido_core::arena::Peer;
use fido_core::testing::copy_of;
use fido_core::window::Window;
use proptest::prelude::*;

use super::crash::{Expected, Files, Step, found, summary};
use super::disk::{Dice, Disk};
use super::rig::*;
use crate::volume::nas::Options;
use crate::volume::ops::*;

const BYTES: u64 = 24 << 20;
/// The head of a journal and so many records.
const fn journal(records: usize) -> usize {
    256 + 128 * records
}

fn heir(disk: &Disk, window: &Arc<Window>) -> Rig {
    Rig::inherit(disk, options(), Some(window)).unwrap()
}

/// Where the journal lies in an arena.
fn area(window: &Window) -> std::ops::Range<usize> {
    let (at, len) = Peer::read(window).unwrap().heritage().unwrap();
    at as usize..(at + len) as usize
}

fn kill_some_times(seed: u64) {
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut expected = Expected::default();
    let disk = Disk::new(BYTES);
    let options = |dice: &mut Dice| Options {
        journal_bytes: [journal(2), journal(30), 1 << 20][dice.roll(3) as usize],
        commit_interval: [Duration::from_millis(1), Duration::from_secs(3600)][dice.roll(2) as usize],
        unsent_blocks: [2, 1 << 10][dice.roll(2) as usize],
        ..options()
    };
    let mut rig = Rig::open(&disk, options(&mut dice)).unwrap();
    let before = verifier(&rig);
    for round in 0..4 {
        let lifetime = dice.roll(150);
        rig.disk.faults(|faults| faults.stalls_after = Some(lifetime));
        let mut last = None;
        for _ in 0..dice.roll(120) {
            let step = Step::roll(&mut dice);
            let result = step.run(&mut rig, &expected);
            if result.is_ok() {
                step.apply(&mut expected);
            } else if rig.disk.is_stalled() {
                last = Some(step);
                break;
            }
        }
        let (disk, window) = rig.kill();
        rig = Rig::inherit(&disk, options(&mut dice), Some(&window)).unwrap();
        assert_eq!(verifier(&rig), before, "seed {seed} round {round}");
        let files = found(&mut rig);
        let mut allowed: Vec<Files> = vec![expected.now.clone()];
        if let Some(step) = &last {
            step.apply(&mut expected);
            allowed.push(expected.now.clone());
        }
        assert!(
            allowed.contains(&files),
            "seed {seed} round {round}: {last:?} found {:?}, allowed {:?}",
            summary(&files),
            allowed.iter().map(summary).collect::<Vec<_>>()
        );
        expected = Expected { now: files.clone(), stable: files };
    }
    let (disk, window) = rig.kill();
    let mut rig = heir(&disk, &window);
    assert_eq!(summary(&found(&mut rig)), summary(&expected.now));
    assert_eq!(rig.check().problems, Vec::<String>::new(), "seed {seed}");
}

#[test]
fn whatever_was_answered_survives_a_kill() {
    for seed in 0..24 {
        kill_some_times(seed);
    }
}

/// A file with an unstable write over a stable one, and one that was removed.
fn with_unstable_writes(options: Options) -> (Rig, Ino, Vec<u8>) {
    let mut rig = Rig::open(&Disk::new(BYTES), options).unwrap();
    let (file, gone) = (rig.create(ROOT, "file").unwrap(), rig.create(ROOT, "gone").unwrap());
    let mut content = pattern(1, 50_000);
    rig.write(file, 0, &content, Stability::FileSync).unwrap();
    rig.write(gone, 0, &pattern(2, 50_000), Stability::Unstable).unwrap();
    rig.write(file, 1000, &pattern(3, 30_000), Stability::Unstable).unwrap();
    rig.remove(ROOT, "gone").unwrap();
    rig.write(file, 20_000, &pattern(4, 70_000), Stability::Unstable).unwrap();
    content.resize(90_000, 0);
    content[1000..31_000].copy_from_slice(&pattern(3, 30_000));
    content[20_000..].copy_from_slice(&pattern(4, 70_000));
    (rig, file, content)
}

fn verifier(rig: &Rig) -> [u8; 8] {
    Volume::write_verifier(&rig.volume)
}

#[test]
fn attributes_and_verifier_are_as_they_were_answered() {
    let (mut rig, file, content) = with_unstable_writes(options());
    let (attr, before) = (rig.attr(file).unwrap(), verifier(&rig));
    let (disk, window) = rig.kill();
    let mut rig = heir(&disk, &window);
    assert_eq!(verifier(&rig), before);
    assert_eq!(rig.attr(file).unwrap(), attr);
    assert_eq!(rig.content(file), content);
    // What was taken over is durable: it needs no journal any more.
    rig.commit(file).unwrap();
    let (disk, _) = rig.kill();
    assert_eq!(Rig::open(&disk, options()).unwrap().content(file), content);
}

#[test]
fn without_inheritance_only_what_is_stable_is_there_and_the_verifier_is_new() {
    let (rig, file, _) = with_unstable_writes(options());
    let before = verifier(&rig);
    let (disk, _) = rig.kill();
    let mut rig = Rig::open(&disk, options()).unwrap();
    assert_ne!(verifier(&rig), before);
    assert_eq!(rig.content(file), pattern(1, 50_000));
}

#[test]
fn a_death_while_taking_over_costs_nothing() {
    let (rig, file, content) = with_unstable_writes(options());
    let before = verifier(&rig);
    let (mut disk, window) = rig.kill();
    for lifetime in 0..24 {
        disk.faults(|faults| faults.dies_after = Some(lifetime));
        drop(Rig::inherit(&disk, options(), Some(&window)));
        disk = disk.survivor();
    }
    let mut rig = heir(&disk, &window);
    assert_eq!((verifier(&rig), rig.content(file) == content), (before, true));
    assert_eq!(rig.check().problems, Vec::<String>::new());
}

#[test]
fn a_full_journal_makes_writes_wait_for_commits() {
    let mut rig = Rig::open(&Disk::new(BYTES), Options { journal_bytes: journal(4), ..options() }).unwrap();
    let files: Vec<Ino> = (0..3).map(|i| rig.create(ROOT, &format!("f{i}")).unwrap()).collect();
    let mut tickets = Vec::new();
    for i in 0..60u64 {
        let op = rig.write_op(files[i as usize % 3], i / 3 * 4096, &pattern(i, 4096), Stability::Unstable);
        tickets.push(rig.submit(op));
    }
    for ticket in tickets {
        rig.wait(ticket).unwrap();
    }
    let before = verifier(&rig);
    let (disk, window) = rig.kill();
    let mut rig = heir(&disk, &window);
    assert_eq!(verifier(&rig), before);
    for (at, file) in files.iter().enumerate() {
        let content: Vec<u8> = (0..20).flat_map(|i| pattern(i * 3 + at as u64, 4096)).collect();
        assert!(rig.content(*file) == content, "file {at}");
    }
}

#[test]
fn a_write_that_no_journal_can_hold_makes_it_void_until_all_is_stored() {
    let mut rig = Rig::open(&Disk::new(16 << 20), options()).unwrap();
    let (stays, goes) = (rig.create(ROOT, "stays").unwrap(), rig.create(ROOT, "goes").unwrap());
    // Every other block is free in the end, so that a long write falls into pieces.
    for i in 0.. {
        let file = [stays, goes][i as usize % 2];
        if rig.write(file, i / 2 * 4096, &[1; 4096], Stability::Unstable).is_err() {
            break;
        }
    }
    rig.commit(stays).unwrap();
    rig.remove(ROOT, "goes").unwrap();
    let (disk, window) = rig.kill();
    let tiny = Options { journal_bytes: journal(1), ..options() };
    let mut rig = Rig::inherit(&disk, tiny, Some(&window)).unwrap();
    let before = verifier(&rig);
    let file = rig.create(ROOT, "file").unwrap();
    rig.write(file, 0, &pattern(1, 5 * 4096), Stability::Unstable).unwrap();
    let void = copy_of(rig.memory.arena().window(), |_| ());
    rig.commit(file).unwrap();
    rig.write(file, 0, &pattern(2, 4096), Stability::Unstable).unwrap();
    let content = [pattern(2, 4096), pattern(1, 5 * 4096)[4096..].to_vec()].concat();
    let (disk, window) = rig.kill();
    assert_ne!(verifier(&heir(&disk.survivor(), &void)), before);
    let mut rig = heir(&disk.survivor(), &window);
    assert_eq!((verifier(&rig), rig.content(file) == content), (before, true));
    assert_eq!(rig.check().problems, Vec::<String>::new());
}

#[test]
fn after_a_failed_commit_the_journal_is_void_until_all_is_stored() {
    let (mut rig, file, content) = with_unstable_writes(options());
    let before = verifier(&rig);
    let data_start = rig.volume.superblock.data_start;
    rig.disk.faults(|faults| faults.fail_meta = Some((data_start, 1000)));
    assert!(rig.commit(file).is_err());
    rig.disk.faults(|faults| faults.fail_meta = None);
    let copy = copy_of(rig.memory.arena().window(), |_| ());
    rig.commit(file).unwrap();
    rig.write(file, 0, &pattern(7, 100), Stability::Unstable).unwrap();
    let (disk, window) = rig.kill();
    let rig = Rig::inherit(&disk.clone(), options(), Some(&copy)).unwrap();
    assert_ne!(verifier(&rig), before, "it was void");
    drop(rig);
    let (mut rig, content) = (heir(&disk.survivor(), &window), [&pattern(7, 100)[..], &content[100..]].concat());
    assert_eq!((verifier(&rig), rig.content(file) == content), (before, true));
}

/// The second commit's mark covers what the first one was to store.
#[test]
fn a_commit_behind_a_failed_one_does_not_make_the_journal_good() {
    let mut rig = Rig::new(BYTES);
    let file = rig.create(ROOT, "file").unwrap();
    rig.write(file, 0, &[0; 8192], Stability::FileSync).unwrap();
    let (before, data_start) = (verifier(&rig), rig.volume.superblock.data_start);
    rig.disk.faults(|faults| faults.stalls_below = Some(data_start));
    rig.write(file, 0, &pattern(1, 4096), Stability::Unstable).unwrap();
    let first = rig.submit(VolumeOp::Commit { ino: file });
    assert!(!rig.is_answered(first));
    rig.write(file, 4096, &pattern(2, 4096), Stability::Unstable).unwrap();
    let second = rig.submit(VolumeOp::Commit { ino: file });
    assert!(!rig.is_answered(second));
    rig.disk.faults(|faults| (faults.fail_meta, faults.stalls_below) = (Some((data_start, 1)), None));
    assert_eq!(rig.wait(first).map(drop), Err(VolumeError::Io));
    assert_eq!(rig.wait(second).map(drop), Err(VolumeError::Io), "what was written before is not durable");
    let void = copy_of(rig.memory.arena().window(), |_| ());
    rig.commit(file).unwrap();
    rig.write(file, 0, &pattern(3, 100), Stability::Unstable).unwrap();
    let content = [&pattern(3, 100)[..], &pattern(1, 4096)[100..], &pattern(2, 4096)].concat();
    let (disk, window) = rig.kill();
    assert_ne!(verifier(&heir(&disk.survivor(), &void)), before);
    let mut rig = heir(&disk.survivor(), &window);
    assert_eq!((verifier(&rig), rig.content(file) == content), (before, true));
}

/// A stable write displaces an unstable one; before it is durable, another file gets the blocks.
#[test]
fn blocks_that_were_given_up_may_have_been_used_again() {
    let mut rig = Rig::open(&Disk::new(16 << 20), options()).unwrap();
    let [file, other, filler] = ["file", "other", "filler"].map(|name| rig.create(ROOT, name).unwrap());
    let mut size = 0;
    while rig.write(filler, size, &[1; 4096], Stability::Unstable).is_ok() {
        size += 4096;
    }
    // Now eight blocks are free, and no more.
    rig.truncate(filler, size - 8 * 4096).unwrap();
    rig.write(file, 0, &pattern(1, 4 * 4096), Stability::Unstable).unwrap();
    let (before, data_start) = (verifier(&rig), rig.volume.superblock.data_start);
    rig.disk.faults(|faults| faults.stalls_below = Some(data_start));
    let op = rig.write_op(file, 0, &pattern(2, 4 * 4096), Stability::FileSync);
    let ticket = rig.submit(op);
    assert!(!rig.is_answered(ticket));
    rig.write(other, 0, &pattern(3, 4 * 4096), Stability::Unstable).unwrap();
    let (disk, window) = rig.kill();
    let mut rig = heir(&disk, &window);
    assert_eq!(verifier(&rig), before);
    assert!(rig.content(other) == pattern(3, 4 * 4096));
    assert!(rig.content(file) == pattern(2, 4 * 4096), "the old content is gone, and the new one is on the device");
    assert_eq!(rig.check().problems, Vec::<String>::new());
}

#[test]
fn what_the_store_includes_is_not_applied_again() {
    let (mut rig, file, _) = with_unstable_writes(options());
    let old = copy_of(rig.memory.arena().window(), |_| ());
    rig.truncate(file, 10_000).unwrap();
    rig.truncate(file, 30_000).unwrap();
    rig.write(file, 5000, &pattern(9, 10_000), Stability::FileSync).unwrap();
    let (content, attr) = (rig.content(file), rig.attr(file).unwrap());
    let (disk, _) = rig.kill();
    let mut rig = heir(&disk, &old);
    assert_eq!((rig.content(file) == content, rig.attr(file).unwrap()), (true, attr));
    assert_eq!(rig.check().problems, Vec::<String>::new());
}

#[test]
fn a_journal_of_another_volume_or_an_older_mount_is_passed_over() {
    let (rig, file, _) = with_unstable_writes(options());
    let before = verifier(&rig);
    let (disk, window) = rig.kill();
    let mut between = Rig::open(&disk, options()).unwrap();
    between.create(ROOT, "new").unwrap();
    let (disk, _) = between.kill();
    let mut rig = heir(&disk, &window);
    assert_ne!(verifier(&rig), before);
    assert_eq!(rig.content(file), pattern(1, 50_000));
    let other = heir(&Disk::new(BYTES), &window);
    assert_ne!(verifier(&other), before);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// A damaged journal is either found out, and then nothing of it counts, or the damage does not matter.
    #[test]
    fn damage_is_all_or_nothing(flips in prop::collection::vec((any::<u16>(), 0u8..8), 1..4), garbage: Option<u64>) {
        let small = Options { journal_bytes: journal(20), ..options() };
        let (rig, file, content) = with_unstable_writes(small);
        let before = verifier(&rig);
        let (disk, window) = rig.kill();
        let range = area(&window);
        let damaged = copy_of(&window, |bytes| {
            let bytes = &mut bytes[range];
            if let Some(seed) = garbage {
                let len = bytes.len() - 64;
                bytes[64..].copy_from_slice(&pattern(seed, len));
            }
            for (at, bit) in flips {
                let at = at as usize % bytes.len();
                bytes[at] ^= 1 << bit;
            }
        });
        let mut rig = heir(&disk, &damaged);
        let same = verifier(&rig) == before;
        prop_assert_eq!(rig.content(file) == content, same);
        prop_assert!(same || rig.content(file) == pattern(1, 50_000));
        prop_assert_eq!(rig.check().problems, Vec::<String>::new());
    }
}
