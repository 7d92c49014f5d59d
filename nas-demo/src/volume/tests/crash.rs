//! Power failures: the device dies after any number of writes and flushes, what was not flushed survives at random,
//! and the volume that is found there afterwards has everything that was acknowledged as stable.

use std::collections::BTreeMap;

use super::disk::{Dice, Disk};
use super::rig::*;
use crate::volume::ops::*;

const BYTES: u64 = 24 << 20;
const NAMES: u64 = 6;

/// Names and contents in the root directory.
pub(super) type Files = BTreeMap<String, Vec<u8>>;

/// What may be found after a crash.
#[derive(Debug, Clone, Default)]
pub(super) struct Expected {
    /// With all writes.
    pub now: Files,
    /// With those that are stable.
    pub stable: Files,
}

#[derive(Debug, Clone)]
pub(super) enum Step {
    Create(String),
    Write { name: String, offset: usize, data: Vec<u8>, stability: Stability },
    Commit(String),
    Truncate(String, usize),
    Remove(String),
    Rename(String, String),
}

impl Step {
    pub fn roll(dice: &mut Dice) -> Self {
        let name = format!("f{}", dice.roll(NAMES));
        match dice.roll(12) {
            0 | 1 => Self::Create(name),
            2..=6 => {
                let stability = [Stability::Unstable, Stability::FileSync][dice.roll(2) as usize];
                let longest = if dice.roll(4) == 0 { 60_000 } else { 5000 };
                let len = 1 + dice.roll(longest) as usize;
                Self::Write { name, offset: dice.roll(30_000) as usize, data: pattern(dice.0, len), stability }
            }
            7 => Self::Commit(name),
            8 | 9 => Self::Truncate(name, dice.roll(40_000) as usize),
            10 => Self::Remove(name),
            _ => Self::Rename(name, format!("f{}", dice.roll(NAMES))),
        }
    }

    /// What the step does if it succeeds.
    pub fn apply(&self, expected: &mut Expected) {
        let Expected { now, stable } = expected;
        match self {
            Self::Create(name) => {
                now.insert(name.clone(), Vec::new());
                stable.insert(name.clone(), Vec::new());
            }
            Self::Write { name, offset, data, stability } => {
                let Some(content) = now.get_mut(name) else { return };
                content.resize(content.len().max(offset + data.len()), 0);
                content[*offset..offset + data.len()].copy_from_slice(data);
                if *stability > Stability::Unstable {
                    stable.insert(name.clone(), content.clone());
                }
            }
            Self::Commit(name) => {
                if let Some(content) = now.get(name) {
                    stable.insert(name.clone(), content.clone());
                }
            }
            Self::Truncate(name, size) => {
                let Some(content) = now.get_mut(name) else { return };
                content.resize(*size, 0);
                stable.insert(name.clone(), content.clone());
            }
            Self::Remove(name) => {
                now.remove(name);
                stable.remove(name);
            }
            Self::Rename(from, to) => {
                for files in [now, stable] {
                    if let Some(content) = files.remove(from) {
                        files.insert(to.clone(), content);
                    }
                }
            }
        }
    }

    pub fn run(&self, rig: &mut Rig, expected: &Expected) -> Result<(), VolumeError> {
        let ino = |rig: &mut Rig, name: &str| rig.lookup(ROOT, name).map(|attr| attr.ino);
        match self {
            Self::Create(name) => rig.create(ROOT, name).map(drop),
            Self::Write { name, offset, data, stability } => {
                let ino = ino(rig, name)?;
                rig.write(ino, *offset as u64, data, *stability).map(drop)
            }
            Self::Commit(name) => {
                let ino = ino(rig, name)?;
                rig.commit(ino)
            }
            Self::Truncate(name, size) => {
                let ino = ino(rig, name)?;
                rig.truncate(ino, *size as u64).map(drop)
            }
            Self::Remove(name) => rig.remove(ROOT, name),
            Self::Rename(from, to) if from == to && expected.now.contains_key(from) => Ok(()),
            Self::Rename(from, to) => rig.rename(ROOT, from, ROOT, to),
        }
    }
}

pub(super) fn found(rig: &mut Rig) -> Files {
    let entries = rig.list(ROOT);
    let content = |entry: &DirEntry| (String::from_utf8(entry.name.clone()).unwrap(), rig.content(entry.attr.ino));
    entries.iter().map(content).collect()
}

/// What a crash in the middle of a step may leave: the state before it or the state after it, and of the files that it
/// commits on its way either content.
fn allowed(before: &Expected, step: Option<&Step>) -> Vec<Files> {
    let mut states = vec![before.stable.clone()];
    let Some(step) = step else { return states };
    let mut after = before.clone();
    step.apply(&mut after);
    states.push(after.stable);
    if let Step::Truncate(name, _) = step
        && let Some(content) = before.now.get(name)
    {
        // What was written before is committed first, which may be as far as it came.
        let mut between = before.stable.clone();
        between.insert(name.clone(), content.clone());
        states.push(between);
    }
    states
}

fn crash_once(seed: u64) {
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let disk = Disk::new(BYTES);
    let mut expected = Expected::default();
    let mut rig = Rig::open(&disk, options()).unwrap();
    // Some rounds: each begins with what the crash before it has left.
    for round in 0..3 {
        let lifetime = dice.roll(120);
        rig.disk.faults(|faults| faults.dies_after = Some(lifetime));
        let mut last = None;
        for _ in 0..200 {
            let step = Step::roll(&mut dice);
            let result = step.run(&mut rig, &expected);
            if rig.disk.is_dead() {
                // It may have been answered before the device died.
                if result.is_ok() {
                    step.apply(&mut expected);
                } else {
                    last = Some(step);
                }
                break;
            }
            if result.is_ok() {
                step.apply(&mut expected);
            }
        }
        let after = rig.disk.crash(&mut dice);
        drop(rig);
        let report = check_disk(&after);
        assert_eq!(report.problems, Vec::<String>::new(), "seed {seed} round {round}");
        rig = Rig::open(&after, options()).unwrap();
        let files = found(&mut rig);
        let allowed = allowed(&expected, last.as_ref());
        assert!(
            allowed.contains(&files),
            "seed {seed} round {round}: {last:?} found {:?}, allowed {:?}",
            summary(&files),
            allowed.iter().map(summary).collect::<Vec<_>>()
        );
        expected = Expected { now: files.clone(), stable: files };
    }
}

pub(super) fn summary(files: &Files) -> Vec<(String, usize, u64)> {
    let sum = |data: &Vec<u8>| data.iter().fold(7u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    files.iter().map(|(name, data)| (name.clone(), data.len(), sum(data))).collect()
}

#[test]
fn whatever_is_stable_survives_a_crash() {
    for seed in 0..40 {
        crash_once(seed);
    }
}

#[test]
fn a_crash_while_formatting_is_formatted_again() {
    for lifetime in 0..40 {
        let disk = Disk::new(BYTES);
        disk.faults(|faults| faults.dies_after = Some(lifetime));
        let opened = Rig::open(&disk, options());
        let done = opened.is_ok();
        drop(opened);
        let after = disk.crash(&mut Dice(lifetime + 1));
        let mut rig = Rig::open(&after, options()).unwrap_or_else(|error| panic!("{lifetime} {done}: {error}"));
        rig.create(ROOT, "works").unwrap();
        assert_eq!(rig.check().problems, Vec::<String>::new());
    }
}

/// Many writers, commits in the background, and a crash at any moment. Every slot of a file holds a version that is at
/// least as new as the last one known to be stable.
fn crash_among_many(seed: u64) {
    const SLOT: usize = 3000;
    const SLOTS: usize = 8;
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let disk = Disk::new(BYTES);
    let eager = crate::volume::nas::Options {
        commit_interval: std::time::Duration::from_millis(1),
        unsent_blocks: 4,
        ..options()
    };
    let mut rig = Rig::open(&disk, eager).unwrap();
    let files: Vec<Ino> = (0..2).map(|i| rig.create(ROOT, &format!("f{i}")).unwrap()).collect();
    for file in &files {
        rig.truncate(*file, (SLOT * SLOTS) as u64).unwrap();
    }
    // Versions of each slot, oldest first, and which of them is known to be stable. Version 0 is the hole.
    let mut versions = vec![vec![vec![0u64]; SLOTS]; files.len()];
    let mut stable = vec![vec![0usize; SLOTS]; files.len()];
    disk.faults(|faults| faults.dies_after = Some(dice.roll(200)));
    for round in 1..60u64 {
        let mut tickets = Vec::new();
        for _ in 0..6 {
            let (file, slot) = (dice.roll(2) as usize, dice.roll(SLOTS as u64) as usize);
            if tickets.iter().any(|(_, f, s, _)| (*f, *s) == (file, slot)) {
                continue;
            }
            let version = round * 100 + slot as u64;
            let stability = [Stability::Unstable, Stability::FileSync][dice.roll(3) as usize / 2];
            let op = rig.write_op(files[file], (slot * SLOT) as u64, &pattern(version, SLOT), stability);
            versions[file][slot].push(version);
            tickets.push((rig.submit(op), file, slot, stability));
        }
        for (ticket, file, slot, stability) in tickets {
            if rig.wait(ticket).is_ok() && stability == Stability::FileSync {
                stable[file][slot] = versions[file][slot].len() - 1;
            }
        }
        let file = dice.roll(2) as usize;
        if dice.roll(3) == 0 && !disk.is_dead() && rig.commit(files[file]).is_ok() && !disk.is_dead() {
            for slot in 0..SLOTS {
                stable[file][slot] = versions[file][slot].len() - 1;
            }
        }
        if disk.is_dead() {
            break;
        }
    }
    let after = disk.crash(&mut dice);
    drop(rig);
    assert_eq!(check_disk(&after).problems, Vec::<String>::new(), "seed {seed}");
    let mut rig = Rig::open(&after, options()).unwrap();
    for (i, file) in files.iter().enumerate() {
        let content = rig.content(*file);
        for slot in 0..SLOTS {
            let found = &content[slot * SLOT..][..SLOT];
            let fits = versions[i][slot][stable[i][slot]..].iter().any(|version| match version {
                0 => found.iter().all(|byte| *byte == 0),
                version => found == pattern(*version, SLOT),
            });
            assert!(fits, "seed {seed}: file {i} slot {slot} is older than what was stable, or a mixture");
        }
    }
}

#[test]
fn a_crash_among_many_writers_mixes_nothing() {
    for seed in 0..30 {
        crash_among_many(seed);
    }
}
