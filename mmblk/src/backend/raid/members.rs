//! The members of an array as queues: what is asked of each, and what came of it.

use std::collections::{HashMap, VecDeque};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use fido_core::heap::ArenaBuf;
use fido_core::memory::{CopyError, Memory};
use fido_core::payload::{MAX_SEGMENTS, Payload};
use fido_core::wait::{PeerView, Source, WakeId};

use super::blame::{Cause, cause};
use super::superblock::Role;
use crate::queue::{BlockCompletion, BlockError, BlockOp, BlockQueue, Busy, Features, Geometry, MAX_REQUEST_BYTES};

/// How long a want of buffers is waited out before it is asked whose it is.
const BUFFER_PATIENCE: Duration = Duration::from_secs(2);

/// A queue of whatever kind, as a member.
pub struct MemberQueue(Box<dyn BlockQueue + Send>);

impl MemberQueue {
    /// Any queue; nothing else may use it, and nothing may be in flight on it.
    pub fn new(queue: impl BlockQueue + Send + 'static) -> Self {
        Self(Box::new(queue))
    }
}

impl std::fmt::Debug for MemberQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MemberQueue({:?})", self.geometry())
    }
}

impl Source for MemberQueue {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.0.wake_fd()
    }

    fn wake_id(&self) -> Option<WakeId> {
        self.0.wake_id()
    }

    fn edge_triggered(&self) -> bool {
        self.0.edge_triggered()
    }

    fn arm(&mut self) {
        self.0.arm();
    }

    fn ready(&mut self) -> bool {
        self.0.ready()
    }

    fn disarm(&mut self) {
        self.0.disarm();
    }

    fn meet(&mut self, seat: Option<u32>) -> Option<PeerView> {
        self.0.meet(seat)
    }
}

impl BlockQueue for MemberQueue {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn features(&self) -> Features {
        self.0.features()
    }

    fn resized(&mut self) -> Option<Geometry> {
        self.0.resized()
    }

    fn submit(&mut self, id: u64, op: BlockOp) -> Result<(), Busy> {
        self.0.submit(id, op)
    }

    fn poll(&mut self) -> Option<BlockCompletion> {
        self.0.poll()
    }

    fn flush_submissions(&mut self) {
        self.0.flush_submissions();
    }
}

/// What a request to a member is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A part of a request of the array's user that needs no more than this.
    Part { request: u64, part: usize },
    /// A step of an operation on a stripe.
    Op { op: u64, index: usize },
    /// An intent.
    Intent { seq: u64 },
    /// The flush of a checkpoint, or its tail.
    Checkpoint,
    /// A superblock; which copy.
    Superblock { copy: usize },
    /// The flush before the progress of a rebuild is written down; the rebuild's number.
    Progress { rebuild: u64 },
}

/// The end of a request to a member.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) member: usize,
    pub(super) purpose: Purpose,
    pub(super) result: Result<Payload, BlockError>,
}

/// A request that a member has, or will have.
#[derive(Debug)]
struct Pending {
    purpose: Purpose,
    op: BlockOp,
    /// Since when it has found no buffer.
    starved: Option<Instant>,
    copied: bool,
    /// Writes that go on where it ends, and are under way with it.
    joined: Vec<u64>,
    /// It failed together with others, and is tried by itself.
    alone: bool,
}

impl Pending {
    /// Whether it may wait for its neighbours, until what has been submitted is handed on.
    fn may_join(&self) -> bool {
        let is_data = matches!(self.purpose, Purpose::Part { .. } | Purpose::Op { .. });
        is_data && !self.alone && matches!(self.op, BlockOp::Write { .. })
    }
}

/// A member.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) queue: Option<MemberQueue>,
    pub(super) role: Role,
    /// The copy of the superblock that was written last.
    pub(super) newest_copy: usize,
    pub(super) read_errors: u64,
    /// Where the last read ended, for balancing.
    pub(super) last_end: u64,
    backlog: VecDeque<u64>,
    /// Without a buffer; tried again at the next tick.
    later: Vec<u64>,
    /// Requests that the queue has.
    pub(super) in_flight: usize,
    /// The queue's last sign of life.
    alive: Instant,
}

impl Member {
    pub(super) fn new(queue: Option<MemberQueue>, role: Role, newest_copy: usize) -> Self {
        Self {
            queue,
            role,
            newest_copy,
            read_errors: 0,
            last_end: 0,
            backlog: VecDeque::new(),
            later: Vec::new(),
            in_flight: 0,
            alive: Instant::now(),
        }
    }

    /// How long it has had requests without ending any.
    pub(super) fn silent_for(&self, now: Instant) -> Duration {
        if self.in_flight == 0 { Duration::ZERO } else { now.saturating_duration_since(self.alive) }
    }
}

/// All members.
#[derive(Debug)]
pub(super) struct Members {
    pub(super) all: Vec<Member>,
    /// Queues that have failed: kept until they have given back what they have.
    failed: Vec<(MemberQueue, usize)>,
    pending: HashMap<u64, (usize, Pending)>,
    /// Requests that have ended well with another one: the member and their number.
    also: VecDeque<(usize, u64)>,
    next_id: u64,
    memory: Memory,
}

impl Members {
    pub(super) fn new(all: Vec<Member>, memory: Memory) -> Self {
        Self { all, failed: Vec::new(), pending: HashMap::new(), also: VecDeque::new(), next_id: 0, memory }
    }

    /// Asks something of a member; one without a queue is asked in vain.
    pub(super) fn send(&mut self, member: usize, purpose: Purpose, op: BlockOp) -> Result<(), Event> {
        let Some(place) = self.all.get_mut(member).filter(|member| member.queue.is_some()) else {
            return Err(Event { member, purpose, result: Err(gone()) });
        };
        let id = self.next_id;
        self.next_id += 1;
        if let BlockOp::Read { offset, len } = op {
            place.last_end = offset + u64::from(len);
        }
        let pending = Pending { purpose, op, starved: None, copied: false, joined: Vec::new(), alone: false };
        let joins = pending.may_join();
        self.pending.insert(id, (member, pending));
        place.backlog.push_back(id);
        if !joins {
            self.submit_backlog(member);
        }
        Ok(())
    }

    fn submit_backlog(&mut self, member: usize) -> bool {
        let Some(Member { queue: Some(queue), backlog, in_flight, alive, .. }) = self.all.get_mut(member) else {
            return false;
        };
        let mut any = false;
        while let Some(id) = backlog.front().copied() {
            let Some((op, joined)) = with_neighbours(&self.pending, backlog) else {
                backlog.pop_front();
                continue;
            };
            if queue.submit(id, op).is_err() {
                break;
            }
            if *in_flight == 0 {
                *alive = Instant::now();
            }
            backlog.drain(..=joined.len());
            if let Some((_, pending)) = self.pending.get_mut(&id) {
                pending.joined = joined;
            }
            *in_flight += 1;
            any = true;
        }
        any
    }

    /// The next end of a request.
    pub(super) fn poll(&mut self) -> Option<Event> {
        self.drain_failed();
        while let Some((member, id)) = self.also.pop_front() {
            if let Some(event) = self.ended(member, id, Ok(Payload::new())) {
                return Some(event);
            }
        }
        for member in 0..self.all.len() {
            while let Some(Member { queue: Some(queue), in_flight, alive, .. }) = self.all.get_mut(member)
                && let Some(BlockCompletion { id, result }) = queue.poll()
            {
                *in_flight = in_flight.saturating_sub(1);
                *alive = Instant::now();
                if let Some(event) = self.ended(member, id, result) {
                    self.submit_backlog(member);
                    return Some(event);
                }
            }
            if self.submit_backlog(member)
                && let Some(Member { queue: Some(queue), .. }) = self.all.get_mut(member)
            {
                queue.flush_submissions();
            }
        }
        None
    }

    /// What a completion means; nothing, if the request is tried again.
    fn ended(&mut self, member: usize, id: u64, result: Result<Payload, BlockError>) -> Option<Event> {
        let joined = std::mem::take(&mut self.pending.get_mut(&id)?.1.joined);
        if result.is_err() && !joined.is_empty() {
            // Which of them it was shows when each is tried by itself.
            for id in std::iter::once(id).chain(joined) {
                self.pending.get_mut(&id)?.1.alone = true;
                self.all.get_mut(member)?.backlog.push_back(id);
            }
            return None;
        }
        self.also.extend(joined.into_iter().map(|id| (member, id)));
        let result = match result {
            Err(error) => Err(self.judged(member, id, error)?),
            result => result,
        };
        let (_, pending) = self.pending.remove(&id)?;
        let wanted = if let BlockOp::Read { len, .. } = pending.op { u64::from(len) } else { 0 };
        let result = match result {
            Ok(data) if data.len() != wanted => {
                Err(BlockError::Protocol(format!("{} bytes for a request of {wanted}", data.len())))
            }
            result => result,
        };
        Some(Event { member, purpose: pending.purpose, result })
    }

    /// What is left of an error of a member; nothing, if the request is tried again. A part of a request of the user's is
    /// the user's business. All else is ours: it waits for what is missing, and gets a copy of what the member cannot reach.
    fn judged(&mut self, member: usize, id: u64, error: BlockError) -> Option<BlockError> {
        // Of one that has been kicked: nobody asks any more.
        let (_, pending) = self.pending.get_mut(&id)?;
        if matches!(pending.purpose, Purpose::Part { .. }) {
            return Some(error);
        }
        match (cause(&error), &mut pending.op) {
            (Cause::Scarce, _) => {
                let since = *pending.starved.get_or_insert_with(Instant::now);
                if since.elapsed() >= BUFFER_PATIENCE
                    && let Some(error) = self.out_of_patience(member, id)
                {
                    return Some(error);
                }
            }
            (Cause::Unreachable, BlockOp::Write { data, .. }) if !pending.copied => match self.memory.copy_in(data) {
                Ok(copy) => {
                    *data = copy.map(ArenaBuf::into_payload).unwrap_or_default();
                    pending.copied = true;
                    self.all.get_mut(member)?.backlog.push_back(id);
                    return None;
                }
                // Our want of memory: once more when some has come back.
                Err(CopyError::Heap(_)) => {}
                // The bytes are gone in the middle of a write: without this member it is whole, with it it is not.
                Err(CopyError::Address(_)) => return Some(error),
            },
            // Not even in our own arena: it can reach nothing any more.
            (Cause::Unreachable | Cause::Member, _) => return Some(error),
        }
        self.all.get_mut(member)?.later.push(id);
        None
    }

    /// What becomes of a request that has waited too long. A read can do without: its user hears of it. A write cannot; it
    /// is the member's failure if nobody else is in want. Else it goes on waiting: buffers come back with loans, of which
    /// a back end gives out no more than it has room for.
    fn out_of_patience(&self, member: usize, id: u64) -> Option<BlockError> {
        let (_, pending) = self.pending.get(&id)?;
        let len = match &pending.op {
            BlockOp::Read { .. } => return Some(BlockError::NoBuffer),
            BlockOp::Write { data, .. } => data.len() as usize,
            _ => 0,
        };
        let others = self.all.iter().enumerate().any(|(index, place)| index != member && !place.later.is_empty());
        let room = len == 0 || self.memory.alloc(len).is_ok();
        (room && !others).then_some(BlockError::NoBuffer)
    }

    /// Tries again what had no buffer. Whether there is more.
    pub(super) fn tick(&mut self) {
        for place in &mut self.all {
            place.backlog.extend(place.later.drain(..));
        }
    }

    /// Whether something waits for a buffer.
    pub(super) fn is_starved(&self) -> bool {
        self.all.iter().any(|member| !member.later.is_empty())
    }

    /// Hands everything on to the members.
    pub(super) fn flush_submissions(&mut self) {
        for member in 0..self.all.len() {
            self.submit_backlog(member);
        }
        self.all.iter_mut().filter_map(|member| member.queue.as_mut()).for_each(BlockQueue::flush_submissions);
    }

    /// Takes a member's queue away. All that was asked of it ends in vain.
    pub(super) fn fail(&mut self, member: usize) -> Vec<Event> {
        let Some(place) = self.all.get_mut(member) else { return Vec::new() };
        place.role = Role::Missing;
        place.backlog.clear();
        place.later.clear();
        if let Some(queue) = place.queue.take() {
            self.failed.push((queue, std::mem::take(&mut place.in_flight)));
        }
        let mut ids: Vec<u64> = self.pending.iter().filter(|(_, (m, _))| *m == member).map(|(id, _)| *id).collect();
        ids.sort_unstable();
        let pending = ids.into_iter().filter_map(|id| self.pending.remove(&id));
        pending.map(|(member, pending)| Event { member, purpose: pending.purpose, result: Err(gone()) }).collect()
    }

    fn drain_failed(&mut self) {
        for (queue, in_flight) in &mut self.failed {
            while queue.poll().is_some() {
                *in_flight = in_flight.saturating_sub(1);
            }
        }
        self.failed.retain(|(_, in_flight)| *in_flight > 0);
    }

    /// All queues to wait for.
    pub(super) fn queues(&mut self) -> impl Iterator<Item = &mut MemberQueue> {
        let failed = self.failed.iter_mut().map(|(queue, _)| queue);
        self.all.iter_mut().filter_map(|member| member.queue.as_mut()).chain(failed)
    }

    /// The places with a queue.
    pub(super) fn with_queue(&self) -> Vec<usize> {
        (0..self.all.len()).filter(|member| self.all[*member].queue.is_some()).collect()
    }

    /// The longest time a member has been silent for.
    pub(super) fn most_silent(&self) -> Option<(usize, Duration)> {
        let now = Instant::now();
        self.all.iter().enumerate().map(|(index, member)| (index, member.silent_for(now))).max_by_key(|(_, time)| *time)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }
}

/// The first request of a backlog, with the writes behind it that go on where it ends, as far as one request can carry
/// them: those that join it. `None` if nobody asks for it any more.
fn with_neighbours(pending: &HashMap<u64, (usize, Pending)>, backlog: &VecDeque<u64>) -> Option<(BlockOp, Vec<u64>)> {
    let mut ids = backlog.iter();
    let (_, first) = pending.get(ids.next()?)?;
    let mut joined = Vec::new();
    let BlockOp::Write { offset, data, durable } = &first.op else { return Some((first.op.clone(), joined)) };
    let mut all = data.clone();
    for id in ids.take_while(|_| first.may_join()) {
        let Some((_, next)) = pending.get(id).filter(|(_, next)| next.may_join()) else { break };
        let BlockOp::Write { offset: at, data, durable: also } = &next.op else { break };
        let is_next = *at == offset + all.len() && also == durable;
        let fits = all.len() + data.len() <= MAX_REQUEST_BYTES.into()
            && all.parts().len() + data.parts().len() <= MAX_SEGMENTS;
        if !is_next || !fits {
            break;
        }
        all.append(data.clone());
        joined.push(*id);
    }
    Some((BlockOp::Write { offset: *offset, data: all, durable: *durable }, joined))
}

/// The error of a request to a member that is not there.
fn gone() -> BlockError {
    BlockError::Io { errno: libc::ENXIO }
}
