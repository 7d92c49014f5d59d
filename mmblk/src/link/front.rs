//! The front end: a block queue whose device is at the other end of a lane.
//!
//! # When the device's domain dies
//! Every request is kept, with its payload, until its answer has come. When the lane goes down nothing fails; when a
//! successor is there, it is asked who it is, and if it is the same device (same block sizes, depth and features, and
//! not smaller), all unfinished requests are sent again in the order of their submission. So a caller sees a pause and
//! no more. A successor that is larger has grown meanwhile, and is reported as any resize.
//!
//! Sending again is harmless: reads, writes, flushes and discards may be carried out twice as long as nothing else
//! has happened to the same bytes in between, and nothing has been reported that says so: requests in flight together
//! are unordered anyway.
//!
//! A write may hold what the dead device had lent: the old bytes around a part of a block. Its successor cannot reach
//! those, so they are copied into an own buffer, which also lets the dead one's fence pass. A write that finds no
//! buffer for this waits, as for room in the lane.
//!
//! What was *answered* before the death stays: a completed write lies in the kernel's page cache, which does not die
//! with the process, and a flush that is sent again to the successor covers it. Only when the machine dies are writes
//! lost that no flush has covered, as with any disk. (This is so for devices whose content outlives their process.
//! [`crate::backend::memory`] does not; restarting it is a new device that looks like the old.)

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use fido_core::assignment::WaitStrategy;
use fido_core::heap::HeapError;
use fido_core::lane::{Change, Lane, SendError};
use fido_core::memory::{CopyError, Memory};
use fido_core::message::Head;
use fido_core::payload::Payload;
use fido_core::wait::{PeerView, Source, WakeId};
use fido_core::waiter::Waiter;

use super::codec::{self, Answer, CodecError, Failure, IDENTIFY_ID, Identity, Request, VERSION};
use super::rescue::{Dead, rescue};
use super::table::{Pending, Table};
use crate::extents;
use crate::finished::Finished;
use crate::queue::{BlockCompletion, BlockError, BlockOp, BlockQueue, Busy, Features, Geometry};

/// How many requests are sent together while there are completions to take. Taking one returns a loan and lets go of a
/// buffer, and either waits for the cache lines of all slots that were written before: of eight as long as of one.
const BATCH: usize = 8;

/// Why there is no device behind a lane.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody answered.
    #[error("lane {lane}: no block device has answered within {timeout:?}; is the domain at its other end running?")]
    Timeout {
        /// The lane.
        lane: String,
        /// How long it was waited for.
        timeout: Duration,
    },
    /// The other end speaks another version of the protocol.
    #[error(
        "lane {lane}: the device speaks protocol version {found}, this domain {VERSION}; build both from the same release"
    )]
    Version {
        /// The lane.
        lane: String,
        /// The device's version.
        found: u32,
    },
    /// The other end is no block device, or a broken one.
    #[error("lane {lane}: the other end is no block device: it answered with {answer}")]
    Answer {
        /// The lane.
        lane: String,
        /// What it said.
        answer: String,
    },
    /// The lanes of a link do not lead to one device.
    #[error("lane {lane}: another device than behind the lanes before it: {found:?}, not {expected:?}")]
    Another {
        /// The lane.
        lane: String,
        /// What is behind it.
        found: Identity,
        /// What is behind the first.
        expected: Identity,
    },
    /// A link without lanes.
    #[error("no lane to connect")]
    NoLane,
    /// The system has no descriptor left to wait with.
    #[error("lane {lane}: cannot wait for the device: {error}")]
    Wait {
        /// The lane.
        lane: String,
        /// What the system said.
        error: io::Error,
    },
}

/// Where the conversation with the present back end stands.
#[derive(Debug, PartialEq, Eq)]
enum State {
    /// There is none.
    Down,
    /// It has to be asked who it is.
    Up,
    /// It has been asked.
    Asked,
    /// It is the device we know.
    Ready,
    /// It is not, and every request fails.
    Foreign(String),
}

/// A block queue over a lane.
#[derive(Debug)]
pub struct LinkQueue {
    lane: Lane,
    identity: Identity,
    /// The size has changed since [`BlockQueue::resized`] was last called.
    resized: bool,
    state: State,
    table: Table,
    /// Requests that the peer does not have yet, in order.
    unsent: VecDeque<u32>,
    finished: Finished,
    /// Whose arenas nothing that is sent may lie in.
    dead: Option<Dead>,
    /// `poll` has sent something that the peer may have to be woken for.
    owed: bool,
}

impl LinkQueue {
    /// Asks the other end of `lane` who it is, and waits for the answer (also for the peer to come up).
    ///
    /// # Errors
    /// [`ConnectError`], which names the lane.
    pub fn connect(mut lane: Lane, timeout: Duration) -> Result<Self, ConnectError> {
        let identity = identify(&mut lane, timeout)?;
        let mut queue = Self {
            lane,
            identity,
            resized: false,
            state: State::Ready,
            table: Table::new(identity.geometry.depth),
            unsent: VecDeque::new(),
            finished: Finished::default(),
            dead: None,
            owed: false,
        };
        queue.follow_changes();
        Ok(queue)
    }

    /// The lane's name.
    pub fn name(&self) -> &str {
        self.lane.name()
    }

    /// Who the device is, as it said last.
    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whether the device is there now. Requests may be submitted in any case.
    pub fn is_ready(&self) -> bool {
        self.state == State::Ready
    }

    fn follow_changes(&mut self) {
        while let Some(change) = self.lane.change() {
            match change {
                Change::Down(peer) => {
                    self.unsent = self.table.recall().into();
                    tracing::info!(lane = self.lane.name(), %peer, unfinished = self.unsent.len(), "the disk is gone");
                    self.state = State::Down;
                    self.dead = Some(Dead { slot: peer.slot, except: None });
                    self.rescue_unsent();
                }
                Change::Up(peer) => {
                    tracing::info!(lane = self.lane.name(), %peer, unfinished = self.unsent.len(), "a disk is there");
                    self.state = State::Up;
                    self.dead = self.dead.map(|dead| Dead { except: Some(peer), ..dead });
                }
            }
        }
        if self.state == State::Up && ask(&mut self.lane) {
            self.state = State::Asked;
            self.owed = true;
        }
    }

    fn receive(&mut self) {
        // Bounded, so that a peer that talks without end cannot keep this thread.
        for _ in 0..self.lane.slots() {
            match self.lane.recv() {
                None => return,
                Some(Ok((head, payload))) => self.answered(&head, payload),
                Some(Err(refusal)) => {
                    self.fail(codec::id(&refusal.head), |_| BlockError::Address(refusal.error.to_string()));
                }
            }
        }
    }

    fn answered(&mut self, head: &Head, payload: Payload) {
        let id = codec::id(head);
        let answer = Answer::decode(head);
        if id == IDENTIFY_ID && self.state == State::Asked {
            return self.identified(answer);
        }
        if let (IDENTIFY_ID, State::Ready, Ok(Answer::Identity(news))) = (id, &self.state, &answer) {
            return self.news(*news);
        }
        match answer {
            Ok(Answer::Done { len }) => self.done(id, len, payload),
            Ok(Answer::Failed(failure)) => self.fail(id, |op| failure.into_error(op)),
            Ok(Answer::Identity(_)) => self.fail(id, |_| BlockError::Protocol("its identity".into())),
            Err(error) => self.fail(id, |_| BlockError::Protocol(error.to_string())),
        }
    }

    /// The successor has said who it is.
    fn identified(&mut self, answer: Result<Answer, CodecError>) {
        self.state = match answer {
            Ok(Answer::Identity(found)) => match self.is_successor(&found) {
                true => {
                    self.set_bytes(found.geometry.bytes);
                    State::Ready
                }
                false => {
                    State::Foreign(format!("another device after its restart: {found:?}, was {:?}", self.identity))
                }
            },
            Ok(Answer::Failed(Failure::Version { version })) => {
                State::Foreign(format!("protocol version {version} after its restart, not {VERSION}"))
            }
            Ok(other) => State::Foreign(format!("{other:?} when asked who it is")),
            Err(error) => State::Foreign(error.to_string()),
        };
        if let State::Foreign(reason) = &self.state {
            tracing::error!(lane = self.lane.name(), %reason, "not the disk that was there before");
            while let Some(wire) = self.unsent.pop_front() {
                if let Some(pending) = self.table.remove(wire) {
                    self.finished.push(pending.id, Err(BlockError::Protocol(reason.clone())));
                }
            }
        }
    }

    /// Whether that is our device, with the same size or a larger one.
    fn is_successor(&self, found: &Identity) -> bool {
        self.identity.is_same(found) && found.geometry.bytes >= self.identity.geometry.bytes
    }

    fn set_bytes(&mut self, bytes: u64) {
        if self.identity.geometry.bytes != bytes {
            tracing::info!(lane = self.lane.name(), bytes, was = self.identity.geometry.bytes, "the disk's size");
            self.identity.geometry.bytes = bytes;
            self.resized = true;
        }
    }

    /// The device says without being asked who it is: it has another size now. Nothing else about it can change.
    fn news(&mut self, found: Identity) {
        if self.identity.is_same(&found) {
            return self.set_bytes(found.geometry.bytes);
        }
        self.lane.memory().stats().refusals.add(1);
        tracing::warn!(lane = self.lane.name(), ?found, "the disk says that it is another one; not believed");
    }

    fn done(&mut self, wire: u32, len: u32, payload: Payload) {
        let Some(Pending { id, op, .. }) = self.table.remove_sent(wire) else { return self.unknown(wire) };
        let expected = match op {
            BlockOp::Read { len, .. } => len,
            BlockOp::Extents { .. } => len.min(extents::MAX_BYTES),
            _ => 0,
        };
        let result = if len == expected && payload.len() == u64::from(expected) {
            Ok(payload)
        } else {
            self.lane.memory().stats().refusals.add(1);
            let found = payload.len();
            Err(BlockError::Protocol(format!("{found} bytes (announced: {len}), not {expected}")))
        };
        self.finished.push(id, result);
    }

    fn fail(&mut self, wire: u32, error: impl FnOnce(&BlockOp) -> BlockError) {
        match self.table.remove_sent(wire) {
            Some(pending) => self.finished.push(pending.id, Err(error(&pending.op))),
            None => self.unknown(wire),
        }
    }

    fn check(&self, op: &BlockOp) -> Result<(), BlockError> {
        self.identity.features.check(op)?;
        self.identity.geometry.check(op)
    }

    fn unknown(&self, wire: u32) {
        self.lane.memory().stats().refusals.add(1);
        tracing::warn!(lane = self.lane.name(), id = wire, "an answer to what was not asked");
    }

    /// Lets go of what the dead device has lent, as far as there is room to copy it; `send_unsent` sees to the rest.
    fn rescue_unsent(&mut self) {
        for wire in &self.unsent {
            if let Some(pending) = self.table.get_mut(*wire) {
                rescue_early(&mut pending.op, self.dead, &self.lane);
            }
        }
    }

    fn send_unsent(&mut self) {
        if self.state != State::Ready {
            return;
        }
        while let Some(wire) = self.unsent.pop_front() {
            let Some(pending) = self.table.get_mut(wire) else { continue };
            let head = Request::of(&pending.op, self.identity.geometry.block).encode(wire);
            let payload = without_dead(&mut pending.op, self.dead, self.lane.memory());
            let error = match payload.and_then(|payload| self.lane.send(head, payload)) {
                Ok(()) => {
                    pending.sent = true;
                    self.owed = true;
                    continue;
                }
                Err(SendError::Full(_) | SendError::Down(_)) => return self.unsent.push_front(wire),
                Err(SendError::Address(error)) => BlockError::Address(error.to_string()),
                Err(SendError::Heap(_)) => BlockError::NoBuffer,
                // Neither can be: the request's size has been checked, and the kinds are ours.
                Err(error @ (SendError::TooManySegments(_) | SendError::ReservedKind(_))) => {
                    BlockError::Protocol(error.to_string())
                }
            };
            if let Some(pending) = self.table.remove(wire) {
                self.finished.push(pending.id, Err(error));
            }
        }
    }
}

impl BlockQueue for LinkQueue {
    fn geometry(&self) -> Geometry {
        self.identity.geometry
    }

    fn features(&self) -> Features {
        self.identity.features
    }

    fn resized(&mut self) -> Option<Geometry> {
        std::mem::take(&mut self.resized).then_some(self.identity.geometry)
    }

    fn submit(&mut self, id: u64, mut op: BlockOp) -> Result<(), Busy> {
        if self.table.len() + self.finished.len() >= self.identity.geometry.depth as usize {
            return Err(Busy(op));
        }
        if let State::Foreign(reason) = &self.state {
            self.finished.push(id, Err(BlockError::Protocol(reason.clone())));
        } else if let Err(error) = self.check(&op) {
            self.finished.push(id, Err(error));
        } else {
            rescue_early(&mut op, self.dead, &self.lane);
            self.unsent.push_back(self.table.insert(id, op).map_err(Busy)?);
            // Who has completions to take polls again, and so nothing is left behind.
            if self.finished.is_empty() || self.unsent.len() >= BATCH {
                self.send_unsent();
            }
        }
        Ok(())
    }

    fn poll(&mut self) -> Option<BlockCompletion> {
        if self.finished.is_empty() {
            self.owed = false;
            self.follow_changes();
            self.receive();
            self.send_unsent();
            if self.owed {
                self.lane.flush();
            }
        }
        self.finished.pop()
    }

    fn flush_submissions(&mut self) {
        self.send_unsent();
        self.lane.flush();
    }
}

impl Source for LinkQueue {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.lane.wake_fd()
    }

    fn wake_id(&self) -> Option<WakeId> {
        self.lane.wake_id()
    }

    fn edge_triggered(&self) -> bool {
        self.lane.edge_triggered()
    }

    fn arm(&mut self) {
        self.lane.arm();
    }

    fn ready(&mut self) -> bool {
        self.resized || !self.finished.is_empty() || self.lane.ready()
    }

    fn disarm(&mut self) {
        self.lane.disarm();
    }

    fn meet(&mut self, seat: Option<u32>) -> Option<PeerView> {
        self.lane.meet(seat)
    }
}

/// A request's payload, from which what the dead have lent has been copied.
fn without_dead(op: &mut BlockOp, dead: Option<Dead>, memory: &Memory) -> Result<Payload, SendError> {
    let BlockOp::Write { data, .. } = op else { return Ok(Payload::new()) };
    match dead.map_or(Ok(()), |dead| rescue(data, dead, memory)) {
        Ok(()) => Ok(data.clone()),
        Err(CopyError::Heap(HeapError::Exhausted { .. })) => Err(SendError::Full(data.clone())),
        Err(CopyError::Heap(error)) => Err(SendError::Heap(error)),
        Err(CopyError::Address(error)) => Err(SendError::Address(error)),
    }
}

/// The same ahead of sending. Without success the request stays as it is, and sending it says why.
fn rescue_early(op: &mut BlockOp, dead: Option<Dead>, lane: &Lane) {
    if dead.is_some()
        && let Err(error) = without_dead(op, dead, lane.memory())
    {
        tracing::warn!(lane = lane.name(), %error, "a write keeps for now what a dead disk has lent");
    }
}

/// Asks the peer who it is. Returns whether the question could be sent.
fn ask(lane: &mut Lane) -> bool {
    lane.send(Request::Identify { version: VERSION }.encode(IDENTIFY_ID), Payload::new()).is_ok()
}

/// Asks whoever is or comes at the other end, and waits for the answer.
fn identify(lane: &mut Lane, timeout: Duration) -> Result<Identity, ConnectError> {
    let name = lane.name().to_owned();
    let wait_error = |error| ConnectError::Wait { lane: name.clone(), error };
    let mut waiter = Waiter::new(WaitStrategy::Sleep).map_err(wait_error)?;
    let start = Instant::now();
    let mut asked = false;
    loop {
        while let Some(change) = lane.change() {
            // A peer that comes, or comes back, has to be asked (again).
            asked &= !matches!(change, Change::Up(_) | Change::Down(_));
        }
        asked = asked || lane.is_up() && ask(lane);
        lane.flush();
        match lane.recv() {
            Some(Ok((head, _))) => return identity(&name, &head),
            Some(Err(refusal)) => return Err(ConnectError::Answer { lane: name, answer: refusal.error.to_string() }),
            None => {
                let left = timeout.saturating_sub(start.elapsed());
                if left.is_zero() {
                    return Err(ConnectError::Timeout { lane: name, timeout });
                }
                waiter.idle(&mut [lane], Some(left)).map_err(wait_error)?;
            }
        }
    }
}

fn identity(lane: &str, head: &Head) -> Result<Identity, ConnectError> {
    let wrong = |answer: String| ConnectError::Answer { lane: lane.to_owned(), answer };
    match Answer::decode(head) {
        Ok(Answer::Identity(identity)) if codec::id(head) == IDENTIFY_ID => Ok(identity),
        Ok(Answer::Failed(Failure::Version { version })) => {
            Err(ConnectError::Version { lane: lane.to_owned(), found: version })
        }
        Ok(other) => Err(wrong(format!("{other:?}"))),
        Err(error) => Err(wrong(error.to_string())),
    }
}
