//! The volume: what lives in the event loop's thread, and how an operation begins.
//!
//! An operation is a `Parked` until everything it needs is there (the inode's record, its mapping, its range of the
//! file, free blocks); then it runs as a `Op` on the device or a job of the store thread, and is answered once.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use fido_core::heritage::Inherited;
use fido_core::memory::Memory;
use fido_core::payload::Payload;
use fido_core::wait::Source;
use mmblk::queue::BlockQueue;

use super::cache::Cache;
use super::device::{Device, Owner};
use super::job::{Job, Mutation, Query, Work};
use super::journal::{Journal, Testament};
use super::node::{Node, Parked};
use super::ops::{Attr, Change, Ino, Volume, VolumeError, VolumeOp, VolumeReply};
use super::read::ReadOp;
use super::settle::{Purpose, Sent};
use super::space::Space;
use super::store::RootOwner;
use super::store_thread::{StoreHandle, StoreOptions};
use super::superblock::{BLOCK_BYTES, OpenError, Superblock};
use super::timer::Timer;
use super::write::WriteOp;

/// The shared run of zeros for holes.
const ZERO_BYTES: usize = 64 << 10;
/// How many operations begin between two looks at the size of the mappings in memory.
const SWEEP_EVERY: u64 = 4096;

/// The volume's limits and habits.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Inodes in memory.
    pub cached_inodes: usize,
    /// Names in memory.
    pub cached_names: usize,
    /// Extents in memory, those of files in use aside.
    pub cached_extents: usize,
    /// Bytes of the metadata store's cache.
    pub store_cache_bytes: usize,
    /// Operations under way; one more is told to try again later.
    pub max_operations: usize,
    /// How long an unstable write waits for a commit.
    pub commit_interval: Duration,
    /// How many blocks of a file are written before they are committed without being asked.
    pub unsent_blocks: u64,
    /// Bytes of the arena for the journal of unstable writes that a successor inherits.
    pub journal_bytes: usize,
    /// The owner of a new volume's root directory.
    pub root: RootOwner,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cached_inodes: 64 << 10,
            cached_names: 128 << 10,
            cached_extents: 1 << 20,
            store_cache_bytes: 32 << 20,
            max_operations: 4096,
            commit_interval: Duration::from_secs(3),
            unsent_blocks: 16 << 10,
            journal_bytes: 4 << 20,
            root: RootOwner { mode: 0o777, uid: 0, gid: 0 },
        }
    }
}

/// An operation on the device.
#[derive(Debug)]
pub(super) enum Op {
    /// Reads file data.
    Read(ReadOp),
    /// Writes file data.
    Write(WriteOp),
}

/// A job of the store thread.
#[derive(Debug)]
pub(super) struct JobState {
    /// What to do with the result.
    pub purpose: Purpose,
    /// What of an inode's changes it carries.
    pub sent: Option<Sent>,
}

/// A file system over two queues to one block device: `Q` is driven by this thread and carries file data by address;
/// the other one belongs to the thread of the metadata store.
#[derive(Debug)]
pub struct NasVolume<Q: BlockQueue> {
    pub(super) memory: Memory,
    pub(super) options: Options,
    pub(super) superblock: Superblock,
    verifier: [u8; 8],
    pub(super) zeros: Payload,
    pub(super) device: Device<Q>,
    pub(super) store: StoreHandle,
    timer: Timer,
    pub(super) space: Space,
    pub(super) journal: Journal,
    pub(super) nodes: Cache<Ino, Node>,
    pub(super) names: Cache<(Ino, Vec<u8>), Ino>,
    /// Operations that wait for an inode.
    pub(super) loading: HashMap<Ino, Vec<Parked>>,
    /// Operations that wait for free blocks.
    pub(super) hungry: VecDeque<Parked>,
    /// Whether blocks became free since hungry operations were last fed.
    pub(super) freed: bool,
    /// Inodes whose commit will free blocks.
    pub(super) owing: BTreeSet<Ino>,
    /// Inodes with changes that were not sent to the store, and when they are to be.
    pub(super) unsent: VecDeque<(Instant, Ino)>,
    /// Creations that found a file and now cut it, by ticket, and what to say of the directory.
    pub(super) creating: HashMap<u64, Change>,
    pub(super) ops: HashMap<u64, Op>,
    /// Those of them that wait for room in the journal.
    pub(super) crowded: Vec<u64>,
    pub(super) jobs: HashMap<u64, JobState>,
    next_id: u64,
    /// Operations that were not answered yet.
    open: usize,
    /// Operations begun, and extents loaded, since the mappings in memory were last looked at.
    pub(super) begun: u64,
    answers: VecDeque<(u64, Result<VolumeReply, VolumeError>)>,
}

impl<Q: BlockQueue> NasVolume<Q> {
    /// Opens the volume on a device, or formats an empty device (one that begins with zeros). `data` and `meta` are
    /// two queues to it. `inherited` is what the incarnation before has left in its arena: all that it had answered is
    /// there then, under the same write verifier. Blocks until the volume is there.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open<M: BlockQueue + Send + 'static>(
        memory: Memory,
        data: Q,
        meta: M,
        options: Options,
        inherited: Option<&Inherited>,
    ) -> Result<Self, OpenError> {
        let mut zeros = memory.alloc(ZERO_BYTES)?;
        zeros.as_mut_slice().fill(0);
        let store_options = StoreOptions { cache_bytes: options.store_cache_bytes, root: options.root, fsid: random() };
        let (store, mounted) = StoreHandle::open(memory.clone(), meta, store_options, inherited.and_then(testament))?;
        let space = Space::new(mounted.superblock.data_blocks, &mounted.used).map_err(|run| {
            OpenError::Store(format!("two extents share blocks of the {} blocks at {}", run.count, run.start))
        })?;
        let verifier = mounted.verifier.unwrap_or_else(|| new_verifier(mounted.boots));
        let fsid = mounted.superblock.fsid;
        let journal = Journal::new(&memory, options.journal_bytes, fsid, mounted.boots, verifier)?;
        journal.announce();
        Ok(Self {
            memory,
            options,
            superblock: mounted.superblock,
            verifier,
            zeros: zeros.into_payload(),
            device: Device::new(data),
            store,
            timer: Timer::new()?,
            space,
            journal,
            nodes: Cache::new(options.cached_inodes),
            names: Cache::new(options.cached_names),
            loading: HashMap::new(),
            hungry: VecDeque::new(),
            freed: false,
            owing: BTreeSet::new(),
            unsent: VecDeque::new(),
            creating: HashMap::new(),
            ops: HashMap::new(),
            crowded: Vec::new(),
            jobs: HashMap::new(),
            next_id: 0,
            open: 0,
            begun: 0,
            answers: VecDeque::new(),
        })
    }

    /// Operations that were submitted and not answered yet.
    pub fn operations(&self) -> usize {
        self.open
    }

    /// A name for something of the volume's own.
    pub(super) fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Answers an operation.
    pub(super) fn answer(&mut self, ticket: u64, mut answer: Result<VolumeReply, VolumeError>) {
        if let Some(dir) = self.creating.remove(&ticket)
            && let Ok(VolumeReply::Changed(Change { after: Some(attr), .. })) = answer
        {
            answer = Ok(VolumeReply::Created { attr, dir });
        }
        self.open = self.open.saturating_sub(1);
        self.answers.push_back((ticket, answer));
    }

    /// Zeros, `len` of them.
    pub(super) fn zeros(&self, len: u64) -> Payload {
        let mut out = Payload::new();
        while out.len() < len {
            let mut zeros = self.zeros.clone();
            out.append(zeros.split_to(len - out.len()));
        }
        out
    }

    /// Where a block of the data region lies on the device.
    pub(super) fn device_offset(&self, block: u64) -> u64 {
        self.superblock.data_start + block * BLOCK_BYTES
    }

    /// An inode's attributes now, if it is in memory.
    pub(super) fn attr(&self, ino: Ino) -> Option<Attr> {
        self.nodes.peek(&ino).map(|node| node.attr(ino))
    }

    pub(super) fn change(&mut self, mutation: Mutation, purpose: Purpose, sent: Option<Sent>) {
        self.job(Work::Change(mutation), purpose, sent);
    }

    pub(super) fn ask(&mut self, query: Query, purpose: Purpose) {
        self.job(Work::Ask(query), purpose, None);
    }

    fn job(&mut self, work: Work, purpose: Purpose, sent: Option<Sent>) {
        let id = self.new_id();
        self.jobs.insert(id, JobState { purpose, sent });
        self.store.send(Job { id, work });
    }

    /// Gives an operation back if its inode (and with `extents` the mapping of a file) is in memory; otherwise it
    /// begins again when that is loaded.
    pub(super) fn need(&mut self, ino: Ino, extents: bool, parked: Parked) -> Option<Parked> {
        if self.nodes.peek(&ino).is_some_and(|node| node.reload && !node.is_pinned()) {
            self.nodes.remove(&ino);
        }
        let there = self
            .nodes
            .get_mut(&ino)
            .is_some_and(|node| node.map.is_some() || !extents || node.record.kind != super::ops::Kind::File);
        if there {
            return Some(parked);
        }
        let waiters = self.loading.entry(ino).or_default();
        waiters.push(parked);
        if waiters.len() == 1 {
            self.ask(Query::Load { ino, extents }, Purpose::Load { ino });
        }
        None
    }

    /// Begins an operation, or begins it again after it has waited.
    pub(super) fn begin(&mut self, parked: Parked) {
        match &parked.op {
            VolumeOp::Read { .. } => self.begin_read(parked),
            VolumeOp::Write { .. } => self.begin_write(parked),
            VolumeOp::Commit { ino } => {
                let ino = *ino;
                self.begin_commit(ino, parked);
            }
            VolumeOp::SetAttr { .. } => self.begin_set_attr(parked),
            _ => self.begin_namespace(parked),
        }
    }

    fn step_device(&mut self) -> bool {
        let Some((Owner { op, part }, result)) = self.device.poll() else { return false };
        match self.ops.remove(&op) {
            Some(Op::Read(read)) => self.read_part(op, read, part, result),
            Some(Op::Write(write)) => self.write_part(op, write, part, result),
            None => {}
        }
        true
    }

    fn step_store(&mut self) -> bool {
        let Some((id, outcome)) = self.store.poll() else { return false };
        if let Some(state) = self.jobs.remove(&id) {
            self.settle(state, outcome);
        }
        true
    }

    fn step_timer(&mut self) -> bool {
        let now = Instant::now();
        let mut stepped = false;
        while let Some((due, ino)) = self.unsent.front().copied()
            && due <= now
        {
            self.unsent.pop_front();
            self.send_commit(ino, Purpose::Background);
            stepped = true;
        }
        stepped
    }

    /// Keeps the caches within their limits.
    fn trim(&mut self) {
        self.nodes.trim(Node::is_pinned);
        self.names.trim(|_| false);
        if self.begun < SWEEP_EVERY {
            return;
        }
        self.begun = 0;
        let keys: Vec<Ino> = self.nodes.oldest().copied().collect();
        let extents = |node: &Node| node.map.as_ref().map_or(0, super::extents::ExtentMap::len);
        let mut sum: usize = keys.iter().filter_map(|ino| self.nodes.peek(ino)).map(extents).sum();
        for ino in keys {
            if sum <= self.options.cached_extents {
                break;
            }
            if let Some(node) = self.nodes.peek(&ino)
                && !node.is_pinned()
            {
                sum -= extents(node);
                self.nodes.remove(&ino);
            }
        }
    }

    fn set_timer(&mut self) {
        let commit = self.unsent.front().map(|(due, _)| *due);
        let deadline = [commit, self.device.deadline()].into_iter().flatten().min();
        self.timer.set(deadline);
    }
}

impl<Q: BlockQueue> Volume for NasVolume<Q> {
    fn write_verifier(&self) -> [u8; 8] {
        self.verifier
    }

    fn fsid(&self) -> u64 {
        self.superblock.fsid
    }

    fn submit(&mut self, ticket: u64, op: VolumeOp) {
        self.open += 1;
        if self.open > self.options.max_operations {
            return self.answer(ticket, Err(VolumeError::Busy));
        }
        let id = self.new_id();
        self.begun += 1;
        self.begin(Parked { id, ticket, op, tries: 0 });
    }

    fn poll(&mut self) -> Option<(u64, Result<VolumeReply, VolumeError>)> {
        loop {
            if let Some(answer) = self.answers.pop_front() {
                return Some(answer);
            }
            if !self.step_device() && !self.step_store() && !self.step_timer() {
                self.flush();
                return None;
            }
            self.feed_hungry();
        }
    }

    fn flush(&mut self) {
        self.trim();
        self.store.flush();
        self.device.flush();
        self.set_timer();
    }

    fn sources(&mut self) -> Vec<&mut dyn Source> {
        vec![self.device.queue(), &mut self.store, &mut self.timer]
    }
}

impl<Q: BlockQueue> Drop for NasVolume<Q> {
    /// Commits what was written so far; the store thread then closes the store.
    fn drop(&mut self) {
        let unsent: Vec<Ino> = self.nodes.oldest().copied().collect();
        for ino in unsent {
            self.send_commit(ino, Purpose::Background);
        }
        self.store.flush();
    }
}

/// What the incarnation before has left; what is wrong with it is only logged.
fn testament(inherited: &Inherited) -> Option<Testament> {
    let testament = Testament::read(inherited);
    testament.inspect_err(|error| tracing::warn!(%error, "the journal of the mount before cannot be used")).ok()
}

/// A write verifier that no mount has had.
fn new_verifier(boots: u64) -> [u8; 8] {
    let mut verifier = [0; 8];
    verifier[..4].copy_from_slice(&(boots as u32).to_le_bytes());
    verifier[4..].copy_from_slice(&super::record::now().nanos.to_le_bytes());
    verifier
}

/// A number that no other volume has: the standard library seeds its hash maps from the system's random source.
fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}
