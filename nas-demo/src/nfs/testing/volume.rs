//! A file system in private memory: enough of one to see what the server asks and to answer it.

use std::collections::{BTreeMap, VecDeque};

use fido_core::memory::Memory;
use fido_core::payload::Payload;
use fido_core::wait::Source;

use crate::volume::ops::{
    Attr, Before, Change, CreateMode, DirEntry, Ino, Kind, ROOT, SetAttr, SetTime, Space, Time, Volume, VolumeError,
    VolumeOp, VolumeReply,
};

type Answer = Result<VolumeReply, VolumeError>;

struct Node {
    attr: Attr,
    bytes: Vec<u8>,
    names: BTreeMap<Vec<u8>, Ino>,
}

/// A model of a volume. Answers are given when asked for, unless they are held back.
pub struct ModelVolume {
    memory: Memory,
    nodes: BTreeMap<Ino, Node>,
    answers: VecDeque<(u64, Answer)>,
    clock: u32,
    /// Answers are kept.
    pub hold: bool,
    /// Fails the next operation.
    pub fail: Option<VolumeError>,
    /// Cuts the data of reads into parts of this size.
    pub part_bytes: usize,
    /// Changes when the volume restarts.
    pub verifier: [u8; 8],
    /// How many operations have been submitted.
    pub submitted: usize,
}

impl ModelVolume {
    pub const FSID: u64 = 0xF1D0;
    pub const VERIFIER: [u8; 8] = *b"verifier";

    pub fn new(memory: Memory) -> Self {
        let mut volume = Self {
            memory,
            nodes: BTreeMap::new(),
            answers: VecDeque::new(),
            clock: 0,
            hold: false,
            fail: None,
            part_bytes: usize::MAX,
            verifier: Self::VERIFIER,
            submitted: 0,
        };
        volume.add(Kind::Directory, SetAttr { mode: Some(0o777), ..SetAttr::default() });
        volume
    }

    pub fn content(&self, ino: Ino) -> &[u8] {
        &self.nodes[&ino].bytes
    }

    fn tick(&mut self) -> Time {
        self.clock += 1;
        Time { seconds: self.clock, nanos: 0 }
    }

    fn add(&mut self, kind: Kind, set: SetAttr) -> Ino {
        let ino = self.nodes.last_key_value().map_or(ROOT, |(last, _)| last + 1);
        let time = self.tick();
        let attr = Attr {
            ino,
            kind,
            mode: 0o644,
            nlink: 1,
            uid: 0,
            gid: 0,
            size: 0,
            used: 0,
            atime: time,
            mtime: time,
            ctime: time,
        };
        self.nodes.insert(ino, Node { attr, bytes: Vec::new(), names: BTreeMap::new() });
        self.set(ino, set);
        ino
    }

    fn set(&mut self, ino: Ino, set: SetAttr) {
        let now = self.tick();
        let node = self.nodes.get_mut(&ino).unwrap();
        node.attr.mode = set.mode.unwrap_or(node.attr.mode);
        node.attr.uid = set.uid.unwrap_or(node.attr.uid);
        node.attr.gid = set.gid.unwrap_or(node.attr.gid);
        if let Some(size) = set.size {
            node.bytes.resize(size as usize, 0);
            node.attr.size = size;
        }
        for (time, set) in [(&mut node.attr.atime, set.atime), (&mut node.attr.mtime, set.mtime)] {
            match set {
                SetTime::Keep => {}
                SetTime::Now => *time = now,
                SetTime::At(at) => *time = at,
            }
        }
        node.attr.ctime = now;
    }

    fn node(&self, ino: Ino) -> Result<&Node, VolumeError> {
        self.nodes.get(&ino).ok_or(VolumeError::Stale)
    }

    fn dir(&self, ino: Ino) -> Result<&Node, VolumeError> {
        self.node(ino).and_then(|node| match node.attr.kind {
            Kind::Directory => Ok(node),
            _ => Err(VolumeError::NotDirectory),
        })
    }

    fn find(&self, dir: Ino, name: &[u8]) -> Result<Ino, VolumeError> {
        match name {
            b"." | b".." => Ok(self.dir(dir)?.attr.ino),
            name => self.dir(dir)?.names.get(name).copied().ok_or(VolumeError::NotFound),
        }
    }

    /// Changes a node and says what it was and is.
    fn change<R>(&mut self, ino: Ino, change: impl FnOnce(&mut Node) -> R) -> Change {
        let now = self.tick();
        let node = self.nodes.get_mut(&ino).unwrap();
        let before = Before { size: node.attr.size, mtime: node.attr.mtime, ctime: node.attr.ctime };
        change(node);
        (node.attr.mtime, node.attr.ctime) = (now, now);
        Change { before: Some(before), after: Some(node.attr) }
    }

    fn make(&mut self, dir: Ino, name: Vec<u8>, kind: Kind, set: SetAttr, bytes: Vec<u8>) -> Answer {
        if self.find(dir, &name).is_ok() {
            return Err(VolumeError::Exists);
        }
        self.dir(dir)?;
        let ino = self.add(kind, set);
        let node = self.nodes.get_mut(&ino).unwrap();
        (node.attr.size, node.bytes) = (bytes.len() as u64, bytes);
        let attr = node.attr;
        let dir = self.change(dir, |node| node.names.insert(name, ino));
        Ok(VolumeReply::Created { attr, dir })
    }

    fn remove(&mut self, dir: Ino, name: &[u8], directory: bool) -> Answer {
        let node = self.node(self.find(dir, name)?)?;
        match (node.attr.kind == Kind::Directory, directory) {
            (true, false) => return Err(VolumeError::IsDirectory),
            (false, true) => return Err(VolumeError::NotDirectory),
            (true, true) if !node.names.is_empty() => return Err(VolumeError::NotEmpty),
            _ => {}
        }
        Ok(VolumeReply::Removed { dir: self.change(dir, |node| node.names.remove(name)) })
    }

    fn read(&self, ino: Ino, offset: u64, count: u32) -> Answer {
        let node = self.node(ino)?;
        let start = (offset as usize).min(node.bytes.len());
        let end = (start + count as usize).min(node.bytes.len());
        let mut data = Payload::new();
        for part in node.bytes[start..end].chunks(self.part_bytes) {
            let mut buf = self.memory.alloc(part.len()).unwrap();
            buf.as_mut_slice().copy_from_slice(part);
            data.append(buf.into_payload());
        }
        Ok(VolumeReply::Data { data, eof: end == node.bytes.len(), attr: node.attr })
    }

    fn write(&mut self, ino: Ino, offset: usize, data: &Payload) -> Result<Change, VolumeError> {
        if self.node(ino)?.attr.kind != Kind::File {
            return Err(VolumeError::Invalid);
        }
        let mut bytes = vec![0; data.len() as usize];
        self.memory.clone().copy_to_slice(data, &mut bytes).unwrap();
        Ok(self.change(ino, |node| {
            let end = (offset + bytes.len()).max(node.bytes.len());
            node.bytes.resize(end, 0);
            node.bytes[offset..offset + bytes.len()].copy_from_slice(&bytes);
            node.attr.size = end as u64;
        }))
    }

    fn list(&self, dir: Ino, cookie: u64, count: u32) -> Answer {
        let node = self.dir(dir)?;
        let dots = [(&b"."[..], dir), (&b".."[..], dir)].into_iter();
        let all = dots.chain(node.names.iter().map(|(name, ino)| (&name[..], *ino)));
        let mut rest = all.zip(1u64..).skip(cookie as usize);
        let entry = |((name, ino), cookie): ((&[u8], Ino), u64)| DirEntry {
            name: name.to_vec(),
            cookie,
            attr: self.nodes[&ino].attr,
        };
        let entries = rest.by_ref().take(count as usize).map(entry).collect();
        Ok(VolumeReply::Entries { entries, eof: rest.next().is_none(), dir: node.attr })
    }

    fn create(&mut self, dir: Ino, name: Vec<u8>, mode: CreateMode) -> Answer {
        let set = match (mode, self.find(dir, &name)) {
            (CreateMode::Unchecked(set), Ok(ino)) => {
                self.set(ino, set);
                return Ok(VolumeReply::Created { attr: self.nodes[&ino].attr, dir: Change::default() });
            }
            (CreateMode::Unchecked(set) | CreateMode::Guarded(set), _) => set,
            (CreateMode::Exclusive(_), _) => SetAttr::default(),
        };
        self.make(dir, name, Kind::File, set, Vec::new())
    }

    fn answer(&mut self, op: VolumeOp) -> Answer {
        match op {
            VolumeOp::GetAttr { ino } => Ok(VolumeReply::Attr(self.node(ino)?.attr)),
            VolumeOp::SetAttr { ino, set, guard, .. } => {
                let ctime = self.node(ino)?.attr.ctime;
                if guard.is_some_and(|guard| guard != ctime) {
                    return Err(VolumeError::NotSync);
                }
                self.set(ino, set);
                Ok(VolumeReply::Changed(Change { before: None, after: Some(self.nodes[&ino].attr) }))
            }
            VolumeOp::Lookup { dir, name, .. } => {
                let ino = self.find(dir, &name)?;
                Ok(VolumeReply::Found { attr: self.node(ino)?.attr, dir: self.node(dir)?.attr })
            }
            VolumeOp::ReadLink { ino } => {
                let node = self.node(ino)?;
                Ok(VolumeReply::Target { target: node.bytes.clone(), attr: node.attr })
            }
            VolumeOp::Read { ino, offset, count, .. } => self.read(ino, offset, count),
            VolumeOp::Write { ino, offset, data, stability, .. } => {
                let change = self.write(ino, offset as usize, &data)?;
                Ok(VolumeReply::Written { count: data.len() as u32, stability, change })
            }
            VolumeOp::Commit { ino } => {
                self.node(ino)?;
                Ok(VolumeReply::Committed(Change::default()))
            }
            VolumeOp::Create { dir, name, mode, .. } => self.create(dir, name, mode),
            VolumeOp::MakeDir { dir, name, set, .. } => self.make(dir, name, Kind::Directory, set, Vec::new()),
            VolumeOp::Symlink { dir, name, target, set, .. } => self.make(dir, name, Kind::Symlink, set, target),
            VolumeOp::Remove { dir, name, .. } => self.remove(dir, &name, false),
            VolumeOp::RemoveDir { dir, name, .. } => self.remove(dir, &name, true),
            VolumeOp::Rename { from_dir, from, to_dir, to, .. } => {
                let ino = self.find(from_dir, &from)?;
                self.dir(to_dir)?;
                let from_dir = self.change(from_dir, |node| node.names.remove(&from));
                let to_dir = self.change(to_dir, |node| node.names.insert(to, ino));
                Ok(VolumeReply::Renamed { from_dir, to_dir })
            }
            VolumeOp::Link { ino, dir, name, .. } => {
                self.node(ino)?;
                if self.find(dir, &name).is_ok() {
                    return Err(VolumeError::Exists);
                }
                let dir = self.change(dir, |node| node.names.insert(name, ino));
                let attr = self.change(ino, |node| node.attr.nlink += 1).after.unwrap();
                Ok(VolumeReply::Linked { attr, dir })
            }
            VolumeOp::ReadDir { dir, cookie, count, .. } => self.list(dir, cookie, count),
            VolumeOp::Stat => {
                let space = Space { total_bytes: 100, free_bytes: 40, total_inodes: 10, free_inodes: 5 };
                Ok(VolumeReply::Space { space, root: self.nodes[&ROOT].attr })
            }
        }
    }
}

impl Volume for ModelVolume {
    fn write_verifier(&self) -> [u8; 8] {
        self.verifier
    }

    fn fsid(&self) -> u64 {
        Self::FSID
    }

    fn submit(&mut self, ticket: u64, op: VolumeOp) {
        self.submitted += 1;
        let answer = match self.fail.take() {
            Some(error) => Err(error),
            None => self.answer(op),
        };
        self.answers.push_back((ticket, answer));
    }

    fn poll(&mut self) -> Option<(u64, Answer)> {
        if self.hold { None } else { self.answers.pop_front() }
    }

    fn flush(&mut self) {}

    fn sources(&mut self) -> Vec<&mut dyn Source> {
        Vec::new()
    }
}
