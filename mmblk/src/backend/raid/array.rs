//! The array: a block queue made of block queues.
//!
//! One thread owns it. `poll` takes what members have finished, moves operations on, and starts what can be started;
//! nothing blocks. An *operation* is what happens to one stripe under its lock; a request of the array's user is made of
//! operations, or, where no lock is needed, of requests to members directly.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use fido_core::memory::Memory;
use fido_core::payload::Payload;
use fido_core::wait::Source;

use super::layout::{Layout, Level};
use super::locks::Locks;
use super::log::Log;
use super::members::{Event, MemberQueue, Members, Purpose};
use super::membership::Membership;
use super::protect::Checkpoint;
use super::rebuild::Rebuild;
use super::request::Request;
use super::scrub::Scrub;
use super::stripe::{Op, Work};
use super::superblock::Role;
use super::wake::Wake;
use super::{ArrayFailure, RaidOptions, RaidStatus};
use crate::finished::Finished;
use crate::queue::{BlockCompletion, BlockError, BlockOp, BlockQueue, Busy, Features, Geometry};

/// How long an operation waits for a buffer.
pub(super) const BUFFER_PATIENCE: Duration = Duration::from_secs(1);
/// How often what waits for a buffer or a rate looks again.
const TICK: Duration = Duration::from_millis(1);

/// An array, as a queue for one thread.
#[derive(Debug)]
pub struct RaidQueue {
    pub(super) layout: Layout,
    pub(super) geometry: Geometry,
    pub(super) features: Features,
    pub(super) options: RaidOptions,
    pub(super) memory: Memory,
    pub(super) members: Members,
    pub(super) membership: Membership,
    pub(super) log: Log,
    pub(super) locks: Locks,
    pub(super) ops: BTreeMap<u64, Op>,
    next_op: u64,
    pub(super) requests: BTreeMap<u64, Request>,
    next_request: u64,
    pub(super) finished: Finished,
    pub(super) events: VecDeque<Event>,
    /// Operations that can go on.
    pub(super) runnable: VecDeque<u64>,
    /// Those that go on when the superblocks say who is a member.
    pub(super) held: Vec<u64>,
    /// Those that wait for room in the log.
    pub(super) log_waiting: VecDeque<u64>,
    /// Those that wait for a flush of all members.
    pub(super) flush_waiting: Vec<u64>,
    /// Those that wait for an intent to be durable.
    pub(super) intent_waiting: BTreeMap<u64, (u32, Vec<u64>)>,
    /// Those that wait for a buffer, and since when.
    pub(super) starved: VecDeque<(u64, Instant)>,
    pub(super) checkpoint: Option<Checkpoint>,
    pub(super) rebuild: Option<Rebuild>,
    /// How many rebuilds have begun; the number of the last one.
    pub(super) rebuilds_begun: u64,
    pub(super) scrub: Option<Scrub>,
    pub(super) spares: Vec<MemberQueue>,
    pub(super) failure: Option<ArrayFailure>,
    pub(super) status: RaidStatus,
    /// Zeros to write.
    pub(super) zeros: Payload,
    pub(super) wake: Wake,
}

/// What an assembly has found out.
pub(super) struct Parts {
    pub(super) members: Members,
    pub(super) membership: Membership,
    pub(super) log: Log,
    pub(super) rebuild: Option<Rebuild>,
    pub(super) spares: Vec<MemberQueue>,
    pub(super) memory: Memory,
    pub(super) options: RaidOptions,
    pub(super) zeros: Payload,
    pub(super) wake: Wake,
}

impl RaidQueue {
    pub(super) fn from_parts(parts: Parts) -> Self {
        let superblock = &parts.membership.superblock;
        let (layout, block) = (superblock.layout, superblock.block);
        let volatile = parts.members.all.iter().filter_map(|m| m.queue.as_ref()).any(|q| q.features().volatile_cache);
        let whole = layout.stripe_bytes();
        let best = if whole.is_power_of_two() { whole as u32 } else { layout.chunk };
        Self {
            layout,
            geometry: Geometry { bytes: layout.bytes(), block, depth: parts.options.depth },
            features: Features {
                read_only: false,
                discard: false,
                write_zeroes: true,
                volatile_cache: volatile,
                preferred_block: best.min(crate::queue::MAX_PREFERRED_BYTES),
            },
            options: parts.options,
            memory: parts.memory,
            members: parts.members,
            membership: parts.membership,
            log: parts.log,
            locks: Locks::default(),
            ops: BTreeMap::new(),
            next_op: 0,
            requests: BTreeMap::new(),
            next_request: 0,
            finished: Finished::default(),
            events: VecDeque::new(),
            runnable: VecDeque::new(),
            held: Vec::new(),
            log_waiting: VecDeque::new(),
            flush_waiting: Vec::new(),
            intent_waiting: BTreeMap::new(),
            starved: VecDeque::new(),
            checkpoint: None,
            rebuild: parts.rebuild,
            rebuilds_begun: 0,
            scrub: None,
            spares: parts.spares,
            failure: None,
            status: RaidStatus::default(),
            zeros: parts.zeros,
            wake: parts.wake,
        }
    }

    /// The array's layout.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The memory that it computes parity in.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// How the array is.
    pub fn status(&self) -> RaidStatus {
        RaidStatus {
            roles: self.members.all.iter().map(|member| member.role).collect(),
            generation: self.membership.superblock.generation,
            read_errors: self.members.all.iter().map(|member| member.read_errors).collect(),
            rebuild: self.rebuild.as_ref().map(|rebuild| rebuild.progress(&self.layout)),
            scrub: self.scrub.as_ref().map(|scrub| (scrub.next, self.layout.stripes)),
            spares: self.spares.len(),
            failure: self.failure.clone(),
            ..self.status.clone()
        }
    }

    /// Whether a member's content of a stripe is valid.
    pub(super) fn is_present(&self, member: usize, stripe: u64) -> bool {
        let Some(place) = self.members.all.get(member) else { return false };
        match place.role {
            Role::Missing => false,
            Role::Active => true,
            Role::Rebuilding => self.rebuild.as_ref().is_some_and(|r| r.member == member && r.has(stripe)),
        }
    }

    /// The members whose content of a stripe is valid, a bit each.
    pub(super) fn present(&self, stripe: u64) -> u32 {
        (0..self.layout.members).filter(|m| self.is_present(*m, stripe)).fold(0, |mask, m| mask | 1 << m)
    }

    /// Asks something of a member. One that is not there answers with the next poll.
    pub(super) fn send(&mut self, member: usize, purpose: Purpose, op: BlockOp) {
        if let Err(event) = self.members.send(member, purpose, op) {
            self.events.push_back(event);
        }
    }

    pub(super) fn new_request(&mut self, request: Request) -> u64 {
        let id = self.next_request;
        self.next_request += 1;
        self.requests.insert(id, request);
        id
    }

    /// Starts an operation on a stripe: at once, or when it has the lock.
    pub(super) fn start_op(&mut self, stripe: u64, work: Work) {
        let id = self.next_op;
        self.next_op += 1;
        self.ops.insert(id, Op::new(stripe, work));
        if self.locks.acquire(stripe, id) {
            self.runnable.push_back(id);
        }
    }

    /// An operation has ended: the next one gets the stripe.
    pub(super) fn end_op(&mut self, stripe: u64) {
        if let Some(next) = self.locks.release(stripe) {
            self.runnable.push_back(next);
        }
    }

    /// Moves everything along until nothing moves any more.
    pub(super) fn advance(&mut self) {
        self.follow_time();
        loop {
            while let Some(event) = self.events.pop_front().or_else(|| self.members.poll()) {
                self.take_event(event);
                self.run();
            }
            self.run();
            self.step_membership();
            self.step_checkpoint();
            self.step_background();
            if self.events.is_empty() && self.runnable.is_empty() {
                break;
            }
        }
        if self.is_starved() {
            // An owner that always has something to do never arms.
            self.wake.after(TICK);
        }
        self.members.flush_submissions();
    }

    pub(super) fn run(&mut self) {
        while let Some(id) = self.runnable.pop_front() {
            self.step_op(id);
        }
    }

    fn take_event(&mut self, event: Event) {
        let Event { member, purpose, result } = event;
        match purpose {
            Purpose::Part { request, part } => self.part_ended(request, part, member, result),
            Purpose::Op { op, index } => self.op_event(op, index, member, result),
            Purpose::Intent { seq } => self.intent_event(seq, member, result),
            Purpose::Checkpoint => self.checkpoint_event(member, result),
            Purpose::Superblock { copy } => self.superblock_event(copy, member, result),
            Purpose::Progress { rebuild } => self.progress_event(rebuild, member, result),
        }
    }

    /// What hangs on the clock.
    fn follow_time(&mut self) {
        if self.wake.has_rung() {
            self.members.tick();
            for (id, _) in std::mem::take(&mut self.starved) {
                self.runnable.push_back(id);
            }
        }
        if let Some(limit) = self.options.stall_limit
            && let Some((member, silent)) = self.members.most_silent()
            && silent >= limit
            && self.can_lose(member)
        {
            self.kick(member, &BlockError::Io { errno: libc::ETIMEDOUT });
        }
    }

    /// Whether something waits for a buffer, and is looked at again when the timer has rung.
    fn is_starved(&self) -> bool {
        self.members.is_starved() || !self.starved.is_empty()
    }

    /// Sets the timer for what hangs on the clock.
    pub(super) fn set_timer(&mut self) {
        if self.is_starved() || self.membership_waits() || self.waits_for_rate() || self.checkpoint_starves() {
            self.wake.after(TICK);
        } else if let Some(limit) = self.options.stall_limit
            && !self.members.is_idle()
        {
            self.wake.after(limit.min(Duration::from_secs(1)));
        }
    }

    /// Whether nothing is under way, neither for the user nor by itself.
    pub fn is_idle(&self) -> bool {
        self.requests.is_empty()
            && self.ops.is_empty()
            && self.members.is_idle()
            && self.finished.is_empty()
            && !self.is_changing()
    }
}

impl BlockQueue for RaidQueue {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn features(&self) -> Features {
        self.features
    }

    fn submit(&mut self, id: u64, op: BlockOp) -> Result<(), Busy> {
        if self.requests.len() + self.finished.len() >= self.geometry.depth as usize {
            return Err(Busy(op));
        }
        if let Err(error) = self.geometry.check(&op).and_then(|()| self.features.check(&op)) {
            self.finished.push(id, Err(error));
        } else if let Err(error) = self.start_request(id, op) {
            self.finished.push(id, Err(error));
        }
        self.run();
        Ok(())
    }

    fn poll(&mut self) -> Option<BlockCompletion> {
        if self.finished.is_empty() {
            self.advance();
        }
        self.finished.pop()
    }

    fn flush_submissions(&mut self) {
        self.run();
        self.members.flush_submissions();
    }
}

impl Source for RaidQueue {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.fd()
    }

    fn arm(&mut self) {
        self.set_timer();
        self.members.queues().for_each(|queue| queue.arm());
    }

    fn ready(&mut self) -> bool {
        !self.finished.is_empty()
            || !self.events.is_empty()
            || !self.runnable.is_empty()
            || self.members.queues().any(|queue| queue.ready())
    }

    fn disarm(&mut self) {
        self.members.queues().for_each(|queue| queue.disarm());
        self.wake.drain();
    }
}

/// Whether an array of this level can do without this one more member.
pub(super) fn survives(level: Level, roles: &[Role], lost: usize) -> bool {
    let active = roles.iter().enumerate().filter(|(m, role)| *m != lost && **role == Role::Active).count();
    match level {
        Level::Raid0 => active == roles.len(),
        Level::Raid1 => active >= 1,
        Level::Raid5 => active + 1 >= roles.len(),
    }
}
