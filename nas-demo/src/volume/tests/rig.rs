//! A volume over a test disk, driven one operation at a time or several at once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fido_core::heritage::Inherited;
use fido_core::memory::Memory;
use fido_core::payload::Payload;
use fido_core::testing::{copy_of, private_memory};
use fido_core::window::Window;

use super::disk::{Disk, DiskQueue};
use crate::volume::check::{Report, check};
use crate::volume::nas::{NasVolume, Options};
use crate::volume::ops::*;
use crate::volume::superblock::OpenError;

pub const ARENA: u64 = 16 << 20;
/// No operation takes this long, however slow the machine.
const DEADLINE: Duration = Duration::from_secs(60);

pub type Answer = Result<VolumeReply, VolumeError>;

pub struct Rig {
    pub disk: Disk,
    pub memory: Memory,
    pub volume: NasVolume<DiskQueue>,
    next: u64,
    early: HashMap<u64, Answer>,
}

/// Options of tests: nothing is committed unless it is asked for.
pub fn options() -> Options {
    Options { commit_interval: Duration::from_secs(3600), store_cache_bytes: 1 << 20, ..Options::default() }
}

pub fn root() -> Caller {
    Caller::default()
}

pub fn user(uid: u32) -> Caller {
    Caller { uid, gid: uid, groups: vec![] }
}

impl Rig {
    pub fn new(bytes: u64) -> Self {
        Self::open(&Disk::new(bytes), options()).unwrap()
    }

    pub fn open(disk: &Disk, options: Options) -> Result<Self, OpenError> {
        Self::inherit(disk, options, None)
    }

    /// Opens the volume as the successor of one that left `window`.
    pub fn inherit(disk: &Disk, options: Options, window: Option<&Arc<Window>>) -> Result<Self, OpenError> {
        let inherited = window.and_then(|window| Inherited::of(window).unwrap());
        let memory = private_memory(ARENA);
        let queue = |depth| disk.queue(memory.clone(), depth);
        let volume = NasVolume::open(memory.clone(), queue(4), queue(1), options, inherited.as_ref())?;
        Ok(Self { disk: disk.clone(), memory, volume, next: 0, early: HashMap::new() })
    }

    /// Closes the volume and opens it again.
    pub fn reopen(self) -> Self {
        let disk = self.disk.clone();
        drop(self);
        Self::open(&disk, options()).unwrap()
    }

    /// Kills the process that the volume lives in: nothing is flushed, and what was done stays done. Returns the device
    /// and the arena as the successor finds them.
    pub fn kill(self) -> (Disk, Arc<Window>) {
        self.disk.faults(|faults| faults.stalls_after = Some(0));
        let window = copy_of(self.memory.arena().window(), |_| ());
        let disk = self.disk.survivor();
        (disk, window)
    }

    /// Closes the volume and checks it.
    pub fn check(self) -> Report {
        assert_eq!(self.volume.operations(), 0);
        let disk = self.disk.clone();
        drop(self);
        check_disk(&disk)
    }

    pub fn submit(&mut self, op: VolumeOp) -> u64 {
        self.next += 1;
        self.volume.submit(self.next, op);
        self.next
    }

    pub fn wait(&mut self, ticket: u64) -> Answer {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(answer) = self.early.remove(&ticket) {
                return answer;
            }
            match self.volume.poll() {
                Some((ticket, answer)) => assert!(self.early.insert(ticket, answer).is_none(), "answered twice"),
                None => std::thread::sleep(Duration::from_micros(50)),
            }
            if self.disk.is_stalled() {
                return Err(VolumeError::Busy);
            }
            assert!(Instant::now() < deadline, "no answer to {ticket}");
        }
    }

    /// Whether an answer is there after some polling.
    pub fn is_answered(&mut self, ticket: u64) -> bool {
        for _ in 0..100 {
            while let Some((ticket, answer)) = self.volume.poll() {
                self.early.insert(ticket, answer);
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        self.early.contains_key(&ticket)
    }

    pub fn run(&mut self, op: VolumeOp) -> Answer {
        let ticket = self.submit(op);
        self.wait(ticket)
    }

    pub fn payload(&self, data: &[u8]) -> Payload {
        let mut out = Payload::new();
        // Odd parts, as TCP brings them.
        for chunk in data.chunks(1460 * 7) {
            let mut buf = self.memory.alloc(chunk.len()).unwrap();
            buf.as_mut_slice().copy_from_slice(chunk);
            out.append(buf.into_payload());
        }
        out
    }

    pub fn create(&mut self, dir: Ino, name: &str) -> Result<Ino, VolumeError> {
        let mode = CreateMode::Guarded(SetAttr { mode: Some(0o666), ..SetAttr::default() });
        match self.run(VolumeOp::Create { dir, name: name.into(), mode, caller: root() })? {
            VolumeReply::Created { attr, .. } => Ok(attr.ino),
            other => panic!("{other:?}"),
        }
    }

    pub fn mkdir(&mut self, dir: Ino, name: &str) -> Result<Ino, VolumeError> {
        let set = SetAttr { mode: Some(0o777), ..SetAttr::default() };
        match self.run(VolumeOp::MakeDir { dir, name: name.into(), set, caller: root() })? {
            VolumeReply::Created { attr, .. } => Ok(attr.ino),
            other => panic!("{other:?}"),
        }
    }

    pub fn remove(&mut self, dir: Ino, name: &str) -> Result<(), VolumeError> {
        self.run(VolumeOp::Remove { dir, name: name.into(), caller: root() }).map(drop)
    }

    pub fn rename(&mut self, from_dir: Ino, from: &str, to_dir: Ino, to: &str) -> Result<(), VolumeError> {
        let (from, to) = (from.into(), to.into());
        self.run(VolumeOp::Rename { from_dir, from, to_dir, to, caller: root() }).map(drop)
    }

    pub fn lookup(&mut self, dir: Ino, name: &str) -> Result<Attr, VolumeError> {
        match self.run(VolumeOp::Lookup { dir, name: name.into(), caller: root() })? {
            VolumeReply::Found { attr, .. } => Ok(attr),
            other => panic!("{other:?}"),
        }
    }

    pub fn attr(&mut self, ino: Ino) -> Result<Attr, VolumeError> {
        match self.run(VolumeOp::GetAttr { ino })? {
            VolumeReply::Attr(attr) => Ok(attr),
            other => panic!("{other:?}"),
        }
    }

    pub fn write_op(&self, ino: Ino, offset: u64, data: &[u8], stability: Stability) -> VolumeOp {
        VolumeOp::Write { ino, offset, data: self.payload(data), stability, caller: root() }
    }

    pub fn write(&mut self, ino: Ino, offset: u64, data: &[u8], stability: Stability) -> Result<Attr, VolumeError> {
        let op = self.write_op(ino, offset, data, stability);
        match self.run(op)? {
            VolumeReply::Written { count, stability: got, change } => {
                assert_eq!(count as usize, data.len());
                assert!(got >= stability);
                Ok(change.after.unwrap())
            }
            other => panic!("{other:?}"),
        }
    }

    pub fn commit(&mut self, ino: Ino) -> Result<(), VolumeError> {
        self.run(VolumeOp::Commit { ino }).map(drop)
    }

    pub fn truncate(&mut self, ino: Ino, size: u64) -> Result<Attr, VolumeError> {
        let set = SetAttr { size: Some(size), ..SetAttr::default() };
        match self.run(VolumeOp::SetAttr { ino, set, guard: None, caller: root() })? {
            VolumeReply::Changed(change) => Ok(change.after.unwrap()),
            other => panic!("{other:?}"),
        }
    }

    pub fn bytes(&self, data: &Payload) -> Vec<u8> {
        let mut out = vec![0; data.len() as usize];
        assert_eq!(self.memory.read_header(data, 0, &mut out).unwrap(), out.len());
        out
    }

    pub fn read(&mut self, ino: Ino, offset: u64, count: u32) -> Result<(Vec<u8>, bool), VolumeError> {
        match self.run(VolumeOp::Read { ino, offset, count, caller: root() })? {
            VolumeReply::Data { data, eof, .. } => Ok((self.bytes(&data), eof)),
            other => panic!("{other:?}"),
        }
    }

    /// A whole file.
    pub fn content(&mut self, ino: Ino) -> Vec<u8> {
        let mut out = Vec::new();
        loop {
            let (data, eof) = self.read(ino, out.len() as u64, MAX_IO_BYTES).unwrap();
            out.extend(data);
            if eof {
                return out;
            }
        }
    }

    /// A whole directory without `.` and `..`, a few entries at a time.
    pub fn list(&mut self, dir: Ino) -> Vec<DirEntry> {
        let mut out: Vec<DirEntry> = Vec::new();
        loop {
            let cookie = out.last().map_or(0, |entry| entry.cookie);
            match self.run(VolumeOp::ReadDir { dir, cookie, count: 3, caller: root() }).unwrap() {
                VolumeReply::Entries { entries, eof, .. } => {
                    out.extend(entries);
                    if eof {
                        return out.split_off(2);
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }

    pub fn free(&mut self) -> u64 {
        match self.run(VolumeOp::Stat).unwrap() {
            VolumeReply::Space { space, .. } => space.free_bytes,
            other => panic!("{other:?}"),
        }
    }
}

pub fn check_disk(disk: &Disk) -> Report {
    let memory = private_memory(ARENA);
    check(memory.clone(), disk.queue(memory, 1)).unwrap()
}

/// Bytes that tell where they belong.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut dice = super::disk::Dice(seed.wrapping_mul(2) + 1);
    (0..len).map(|_| dice.roll(251) as u8).collect()
}
