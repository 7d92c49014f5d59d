//! Random operations against the volume and against a model that is too simple to be wrong.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::disk::{Dice, Disk};
use super::rig::*;
use crate::volume::nas::Options;
use crate::volume::ops::*;

#[derive(Debug, Clone)]
enum Thing {
    File(Vec<u8>),
    Dir(BTreeMap<String, Ino>),
    Symlink(Vec<u8>),
}

/// The model: inodes, and where each directory is.
#[derive(Debug, Clone)]
struct Model {
    things: BTreeMap<Ino, Thing>,
    parents: BTreeMap<Ino, Ino>,
}

type Step<T> = Result<T, VolumeError>;

impl Model {
    fn new() -> Self {
        let things = BTreeMap::from([(ROOT, Thing::Dir(BTreeMap::new()))]);
        Self { things, parents: BTreeMap::from([(ROOT, ROOT)]) }
    }

    fn dir(&mut self, ino: Ino) -> Step<&mut BTreeMap<String, Ino>> {
        match self.things.get_mut(&ino) {
            Some(Thing::Dir(names)) => Ok(names),
            Some(_) => Err(VolumeError::NotDirectory),
            None => Err(VolumeError::Stale),
        }
    }

    fn is_dir(&self, ino: Ino) -> bool {
        matches!(self.things.get(&ino), Some(Thing::Dir(_)))
    }

    fn is_empty_dir(&self, ino: Ino) -> bool {
        matches!(self.things.get(&ino), Some(Thing::Dir(names)) if names.is_empty())
    }

    fn names_of(&self, ino: Ino) -> u32 {
        let dirs = self.things.values().filter_map(|thing| match thing {
            Thing::Dir(names) => Some(names),
            _ => None,
        });
        dirs.map(|names| names.values().filter(|named| **named == ino).count() as u32).sum()
    }

    fn nlink(&self, ino: Ino) -> u32 {
        let Some(Thing::Dir(names)) = self.things.get(&ino) else { return self.names_of(ino) };
        2 + names.values().filter(|child| self.is_dir(**child)).count() as u32
    }

    fn may_add(&mut self, dir: Ino, name: &str) -> Step<()> {
        if self.dir(dir)?.contains_key(name) { Err(VolumeError::Exists) } else { Ok(()) }
    }

    fn add(&mut self, dir: Ino, name: &str, ino: Ino, thing: Thing) {
        if matches!(thing, Thing::Dir(_)) {
            self.parents.insert(ino, dir);
        }
        self.things.insert(ino, thing);
        self.dir(dir).unwrap().insert(name.into(), ino);
    }

    fn drop_if_unnamed(&mut self, ino: Ino) {
        if self.names_of(ino) == 0 {
            self.things.remove(&ino);
            self.parents.remove(&ino);
        }
    }

    fn remove(&mut self, dir: Ino, name: &str, directory: bool) -> Step<()> {
        let ino = *self.dir(dir)?.get(name).ok_or(VolumeError::NotFound)?;
        match (directory, self.is_dir(ino)) {
            (true, false) => return Err(VolumeError::NotDirectory),
            (false, true) => return Err(VolumeError::IsDirectory),
            (true, true) if !self.is_empty_dir(ino) => return Err(VolumeError::NotEmpty),
            _ => {}
        }
        self.dir(dir)?.remove(name);
        self.drop_if_unnamed(ino);
        Ok(())
    }

    fn is_under(&self, mut at: Ino, top: Ino) -> bool {
        while at != ROOT && at != top {
            at = self.parents[&at];
        }
        at == top
    }

    fn rename(&mut self, from_dir: Ino, from: &str, to_dir: Ino, to: &str) -> Step<()> {
        self.dir(from_dir)?;
        self.dir(to_dir)?;
        let ino = *self.dir(from_dir)?.get(from).ok_or(VolumeError::NotFound)?;
        let old = self.dir(to_dir)?.get(to).copied();
        if old == Some(ino) {
            return Ok(());
        }
        match old.map(|old| (self.is_dir(ino), self.is_dir(old), self.is_empty_dir(old))) {
            Some((true, false, _)) => return Err(VolumeError::NotDirectory),
            Some((false, true, _)) => return Err(VolumeError::IsDirectory),
            Some((true, true, false)) => return Err(VolumeError::NotEmpty),
            _ => {}
        }
        if self.is_dir(ino) && self.is_under(to_dir, ino) {
            return Err(VolumeError::Invalid);
        }
        self.dir(from_dir)?.remove(from);
        self.dir(to_dir)?.insert(to.into(), ino);
        if self.is_dir(ino) {
            self.parents.insert(ino, to_dir);
        }
        if let Some(old) = old {
            self.drop_if_unnamed(old);
        }
        Ok(())
    }

    fn file(&mut self, ino: Ino) -> Step<&mut Vec<u8>> {
        match self.things.get_mut(&ino) {
            Some(Thing::File(data)) => Ok(data),
            Some(Thing::Dir(_)) => Err(VolumeError::IsDirectory),
            Some(Thing::Symlink(_)) => Err(VolumeError::Invalid),
            None => Err(VolumeError::Stale),
        }
    }
}

/// The volume and its model.
struct Pair {
    rig: Rig,
    model: Model,
    dice: Dice,
    /// Every inode there ever was.
    inos: Vec<Ino>,
}

impl Pair {
    fn new(seed: u64, options: Options) -> Self {
        let rig = Rig::open(&Disk::new(24 << 20), options).unwrap();
        Self { rig, model: Model::new(), dice: Dice(seed | 1), inos: vec![ROOT] }
    }

    fn ino(&mut self) -> Ino {
        let at = self.dice.roll(self.inos.len() as u64) as usize;
        self.inos[at]
    }

    fn name(&mut self) -> String {
        format!("n{}", self.dice.roll(8))
    }

    fn make(&mut self) {
        let (dir, name, target) = (self.ino(), self.name(), b"to/there".to_vec());
        let expected = self.model.may_add(dir, &name);
        let kind = self.dice.roll(3);
        let made = match kind {
            0 => self.rig.create(dir, &name),
            1 => self.rig.mkdir(dir, &name),
            _ => {
                let (target, set) = (target.clone(), SetAttr::default());
                let op = VolumeOp::Symlink { dir, name: name.clone().into(), target, set, caller: root() };
                self.rig.run(op).map(|reply| match reply {
                    VolumeReply::Created { attr, .. } => attr.ino,
                    other => panic!("{other:?}"),
                })
            }
        };
        assert_eq!(made.map(drop), expected);
        if let Ok(ino) = made {
            let thing =
                [Thing::File(vec![]), Thing::Dir(BTreeMap::new()), Thing::Symlink(target)][kind as usize].clone();
            assert!(!self.inos.contains(&ino), "an inode number was used again");
            self.model.add(dir, &name, ino, thing);
            self.inos.push(ino);
        }
    }

    fn write(&mut self) {
        let ino = self.ino();
        let offset = self.dice.roll(20_000);
        let longest = [100, 5000, 30_000][self.dice.roll(3) as usize];
        let data = pattern(self.dice.0, 1 + self.dice.roll(longest) as usize);
        let stability = [Stability::Unstable, Stability::DataSync, Stability::FileSync][self.dice.roll(3) as usize];
        let wrote = self.rig.write(ino, offset, &data, stability);
        let expected = self.model.file(ino).map(|content| {
            content.resize(content.len().max(offset as usize + data.len()), 0);
            content[offset as usize..][..data.len()].copy_from_slice(&data);
            content.len() as u64
        });
        assert_eq!(wrote.map(|attr| attr.size), expected);
    }

    fn step(&mut self) {
        match self.dice.roll(16) {
            0..=2 => self.make(),
            3..=6 => self.write(),
            7 => {
                let (ino, size) = (self.ino(), self.dice.roll(40_000));
                let cut = self.rig.truncate(ino, size).map(|attr| attr.size);
                let expected = self.model.file(ino).map(|content| {
                    content.resize(size as usize, 0);
                    size
                });
                assert_eq!(cut, expected);
            }
            8 => {
                let ino = self.ino();
                let committed = self.rig.commit(ino);
                let there = self.model.things.contains_key(&ino);
                assert_eq!(committed == Err(VolumeError::Stale), !there);
            }
            9 | 10 => {
                let (dir, name, directory) = (self.ino(), self.name(), self.dice.roll(3) == 0);
                let (bytes, caller) = (name.clone().into(), root());
                let op = if directory {
                    VolumeOp::RemoveDir { dir, name: bytes, caller }
                } else {
                    VolumeOp::Remove { dir, name: bytes, caller }
                };
                let removed = self.rig.run(op).map(drop);
                assert_eq!(removed, self.model.remove(dir, &name, directory));
            }
            11 | 12 => {
                let (from_dir, to_dir, from, to) = (self.ino(), self.ino(), self.name(), self.name());
                let renamed = self.rig.rename(from_dir, &from, to_dir, &to);
                assert_eq!(renamed, self.model.rename(from_dir, &from, to_dir, &to));
            }
            13 => {
                let (ino, dir, name) = (self.ino(), self.ino(), self.name());
                let op = VolumeOp::Link { ino, dir, name: name.clone().into(), caller: root() };
                let linked = self.rig.run(op).map(drop);
                let expected = match (self.model.things.contains_key(&ino), self.model.dir(dir).map(drop)) {
                    (false, _) => Err(VolumeError::Stale),
                    (true, Err(error)) => Err(error),
                    (true, Ok(())) if self.model.is_dir(ino) => Err(VolumeError::NotPermitted),
                    (true, Ok(())) => self.model.may_add(dir, &name),
                };
                assert_eq!(linked, expected);
                if linked.is_ok() {
                    self.model.dir(dir).unwrap().insert(name, ino);
                }
            }
            14 => {
                let (ino, offset) = (self.ino(), self.dice.roll(50_000));
                let count = 1 + self.dice.roll(30_000) as u32;
                let read = self.rig.read(ino, offset, count);
                let expected = self.model.file(ino).map(|content| {
                    let start = content.len().min(offset as usize);
                    let end = content.len().min(start + count as usize);
                    (content[start..end].to_vec(), end == content.len())
                });
                assert_eq!(read, expected);
            }
            _ => self.compare(),
        }
    }

    /// All of both.
    fn compare(&mut self) {
        let model = self.model.clone();
        for (ino, thing) in &model.things {
            let attr = self.rig.attr(*ino).unwrap();
            assert_eq!(attr.nlink, model.nlink(*ino), "{ino} {thing:?}");
            match thing {
                Thing::File(content) => assert_eq!(&self.rig.content(*ino), content),
                Thing::Symlink(target) => match self.rig.run(VolumeOp::ReadLink { ino: *ino }).unwrap() {
                    VolumeReply::Target { target: found, .. } => assert_eq!(&found, target),
                    other => panic!("{other:?}"),
                },
                Thing::Dir(names) => {
                    let found: BTreeSet<(String, Ino)> = self
                        .rig
                        .list(*ino)
                        .into_iter()
                        .map(|entry| (String::from_utf8(entry.name).unwrap(), entry.attr.ino))
                        .collect();
                    assert_eq!(found, names.iter().map(|(name, ino)| (name.clone(), *ino)).collect());
                    assert_eq!(self.rig.lookup(*ino, "..").unwrap().ino, model.parents[ino]);
                    for (name, child) in names {
                        assert_eq!(self.rig.lookup(*ino, name).unwrap().ino, *child);
                    }
                }
            }
        }
    }

    fn run(mut self, steps: u64) {
        for step in 0..steps {
            self.step();
            if step % 100 == 99 {
                let Self { rig, model, dice, inos } = self;
                self = Self { rig: rig.reopen(), model, dice, inos };
            }
        }
        self.compare();
        assert_eq!(self.rig.check().problems, Vec::<String>::new());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 0, ..ProptestConfig::default() })]

    #[test]
    fn the_volume_does_what_the_model_does(seed: u64) {
        Pair::new(seed, options()).run(250);
    }

    #[test]
    fn with_tiny_caches_and_eager_commits_too(seed: u64) {
        let options = Options {
            cached_inodes: 2,
            cached_names: 2,
            cached_extents: 1,
            commit_interval: std::time::Duration::from_millis(1),
            unsent_blocks: 3,
            ..options()
        };
        Pair::new(seed, options).run(250);
    }

    /// Many operations at once on few files. Each file has its own slots, one per writer, so every content is known.
    #[test]
    fn concurrent_operations_do_not_mix(seed: u64) {
        const SLOT: usize = 3000;
        const SLOTS: u64 = 12;
        let mut dice = Dice(seed | 1);
        let eager = Options { commit_interval: std::time::Duration::from_millis(2), unsent_blocks: 8, ..options() };
        let mut rig = Rig::open(&Disk::new(24 << 20), eager).unwrap();
        let free = rig.free();
        let files: Vec<Ino> = (0..3).map(|i| rig.create(ROOT, &format!("f{i}")).unwrap()).collect();
        let mut contents = vec![vec![0u8; SLOT * SLOTS as usize]; files.len()];
        for file in &files {
            rig.truncate(*file, SLOT as u64 * SLOTS).unwrap();
        }
        for _ in 0..30 {
            let mut tickets = Vec::new();
            let mut written = BTreeSet::new();
            for _ in 0..12 {
                let (file, slot) = (dice.roll(3) as usize, dice.roll(SLOTS) as usize);
                if !written.insert((file, slot)) {
                    continue;
                }
                let data = pattern(dice.0, SLOT);
                let stability = [Stability::Unstable, Stability::FileSync][dice.roll(2) as usize];
                contents[file][slot * SLOT..][..SLOT].copy_from_slice(&data);
                let op = rig.write_op(files[file], (slot * SLOT) as u64, &data, stability);
                tickets.push(rig.submit(op));
                if dice.roll(4) == 0 {
                    tickets.push(rig.submit(VolumeOp::Commit { ino: files[file] }));
                }
            }
            let doomed = rig.create(ROOT, "doomed").unwrap();
            let op = rig.write_op(doomed, 0, &[9; 20_000], Stability::Unstable);
            let racing = [
                rig.submit(op),
                rig.submit(VolumeOp::Commit { ino: doomed }),
                rig.submit(VolumeOp::Remove { dir: ROOT, name: b"doomed".to_vec(), caller: root() }),
            ];
            for ticket in tickets {
                rig.wait(ticket).unwrap();
            }
            for ticket in racing {
                let answer = rig.wait(ticket);
                prop_assert!(matches!(answer, Ok(_) | Err(VolumeError::Stale)), "{answer:?}");
            }
            for (file, content) in files.iter().zip(&contents) {
                prop_assert_eq!(&rig.content(*file), content);
            }
        }
        for i in 0..files.len() {
            rig.remove(ROOT, &format!("f{i}")).unwrap();
        }
        prop_assert_eq!(rig.free(), free);
        prop_assert_eq!(rig.check().problems, Vec::<String>::new());
    }
}
