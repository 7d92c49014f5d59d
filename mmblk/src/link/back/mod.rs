//! The back end: serves the lanes of a front end, each from a queue of its own.
//!
//! It believes nothing: a malformed request is answered with an error, a payload whose addresses are wild as well,
//! and ranges are checked by the queue itself. What a front end asks beyond the queue's depth waits here, bounded.
//!
//! When the front end's domain dies, requests in flight are finished and their results dropped. The successor is not
//! answered before the last of them has ended, over whichever lane they came, not even who the device is: so a late
//! write of the dead can never overtake one of the living.
//!
//! # Several front ends
//! Each lane is served by one thread at a time, and lanes of different front ends know nothing of each other. What they
//! share is the device, the threads and the heap that READ data is lent from. [`Limits`] keep each to its part: a front
//! end that floods waits in its own ring, and one that never returns what it was lent runs out of buffers alone.

mod account;
mod limits;
mod share;

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use fido_core::crew::Job;
use fido_core::lane::{Change, Lane, Refusal, SendError};
use fido_core::message::Head;
use fido_core::payload::Payload;
use fido_core::wait::Source;

use super::codec::{self, Answer, Failure, IDENTIFY_ID, Identity, Request, VERSION};
use crate::extents;
use crate::queue::{BlockCompletion, BlockOp, BlockQueue, Geometry, MAX_REQUEST_BYTES};
use crate::slab::Slab;
use account::{Account, Lent};
pub use limits::{Limits, LimitsError, MAX_REQUESTS, MAX_TURN};
use share::{Lack, Share};

/// How long a read waits for its front end to return data that it was lent before.
pub const LOAN_PATIENCE: Duration = Duration::from_secs(1);

/// Why a front end cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Its limits make no sense.
    #[error(transparent)]
    Limits(#[from] LimitsError),
    /// The system has no descriptor left.
    #[error("a front end cannot be served: {0}")]
    System(#[from] io::Error),
}

/// A request that the queue has not taken yet.
#[derive(Debug)]
struct Waiting {
    /// Its id on the lane.
    wire: u32,
    op: BlockOp,
    /// Since when it waits for data to be returned, or for one before it that does.
    since: Option<Instant>,
}

/// A request that the queue has.
#[derive(Debug)]
struct Flight {
    /// Its id on the lane.
    wire: u32,
    /// The session that it belongs to.
    session: u32,
    /// What a read holds of its front end's account.
    lent: Option<Lent>,
}

/// Why the first waiting request is not submitted now.
enum Refused {
    /// Something of the front end's has to end first.
    Wait,
    /// It has waited long enough for that.
    NoBuffer,
}

/// Serves one lane from one queue.
///
/// A component's loop calls [`BackEnd::poll`] on each; when none found work, [`BackEnd::flush`] on each, and then waits
/// for their [`BackEnd::sources`].
#[derive(Debug)]
pub struct BackEnd<Q> {
    lane: Lane,
    queue: Q,
    /// Counts the lane's sessions: what is answered to one that is over is dropped.
    session: u32,
    /// The present session's user knows who the device is.
    known: bool,
    /// It has to be told that the device has another size.
    news: bool,
    share: Share,
    /// What the queue has, of this session and of those that are over.
    flights: Slab<Flight>,
    /// How many of them are of the present session.
    in_flight: usize,
    /// Requests that the queue has not taken yet, in order, with their ids on the lane.
    waiting: VecDeque<Waiting>,
    /// Answers that the lane has not taken yet, in order.
    answers: VecDeque<(Head, Payload)>,
    /// The queue's depth, which never changes.
    depth: usize,
    /// The queue's block size, which never changes.
    block: u64,
    /// The queue has been given requests that have not been flushed.
    unflushed: bool,
}

impl<Q: BlockQueue> BackEnd<Q> {
    /// A back end that serves `lane` from `queue`, for a front end that has no other lane and no limits. Nothing else may
    /// use the queue.
    ///
    /// # Errors
    /// The kernel's, if there is no descriptor left.
    pub fn new(lane: Lane, queue: Q) -> io::Result<Self> {
        let share = Share::alone(Limits::NONE, queue.geometry().depth.into())?;
        Ok(Self::with(lane, queue, share))
    }

    /// Back ends that serve the lanes of one front end, each from the queue beside it. Nothing else may use the queues.
    ///
    /// # Errors
    /// [`ServeError`] if the limits make no sense, or there is no descriptor left.
    pub fn group(lanes: Vec<(Lane, Q)>, limits: Limits) -> Result<Vec<Self>, ServeError> {
        let most: u64 = lanes.iter().map(|(_, queue)| u64::from(queue.geometry().depth)).sum();
        let account = Account::new(limits.checked()?, lanes.len(), most)?;
        let shares = Share::of_all(&account);
        Ok(lanes.into_iter().zip(shares).map(|((lane, queue), share)| Self::with(lane, queue, share)).collect())
    }

    fn with(lane: Lane, queue: Q, mut share: Share) -> Self {
        // Somebody else may have taken the news that it is there.
        if let Some(peer) = lane.peer() {
            share.came(peer);
        }
        let Geometry { depth, block, .. } = queue.geometry();
        Self {
            lane,
            queue,
            depth: depth as usize,
            block: block.into(),
            unflushed: false,
            session: 0,
            known: false,
            news: false,
            share,
            flights: Slab::default(),
            in_flight: 0,
            waiting: VecDeque::new(),
            answers: VecDeque::new(),
        }
    }

    /// The lane's name.
    pub fn name(&self) -> &str {
        self.lane.name()
    }

    /// What the device is like.
    pub fn geometry(&self) -> Geometry {
        self.queue.geometry()
    }

    /// Moves everything along: requests to the queue, completions to the lane. Returns whether there was anything.
    pub fn poll(&mut self) -> bool {
        let mut worked = self.follow_changes();
        worked |= self.take_requests();
        worked |= self.submit_waiting();
        worked |= self.take_completions();
        worked |= self.follow_size();
        worked | self.send_answers()
    }

    /// Hands on what is half-way: submissions to the device, returns of loans and wake-ups to the peer. Call it before
    /// waiting.
    pub fn flush(&mut self) {
        self.queue.flush_submissions();
        self.lane.flush();
        self.lane.hold_back(!self.has_room());
    }

    /// What to wait for.
    pub fn sources(&mut self) -> [&mut dyn Source; 3] {
        [&mut self.lane, &mut self.queue, &mut self.share]
    }

    fn follow_changes(&mut self) -> bool {
        let mut any = false;
        while let Some(change) = self.lane.change() {
            any = true;
            match change {
                Change::Up(peer) => self.share.came(peer),
                Change::Down(peer) => {
                    tracing::info!(lane = self.lane.name(), %peer, "the disk's user is gone");
                    self.session = self.session.wrapping_add(1);
                    (self.known, self.news) = (false, false);
                    self.waiting.clear();
                    self.answers.clear();
                    self.share.gone(std::mem::take(&mut self.in_flight));
                }
            }
        }
        any
    }

    /// Takes requests off the lane, one turn of them. A front end that keeps to the depth never meets the other bound;
    /// for one that does not, requests stay in the ring.
    fn take_requests(&mut self) -> bool {
        let mut any = false;
        for _ in 0..self.share.limits().turn {
            if !self.has_room() {
                break;
            }
            let Some(message) = self.lane.recv() else { break };
            any = true;
            match message {
                Ok((head, payload)) => self.take(&head, payload),
                Err(Refusal { head, .. }) => self.answer(codec::id(&head), Answer::Failed(Failure::Address)),
            }
        }
        any
    }

    /// Whether another request can be taken.
    fn has_room(&self) -> bool {
        self.waiting.len() < self.depth && self.answers.len() < 2 * self.depth
    }

    fn take(&mut self, head: &Head, data: Payload) {
        let id = codec::id(head);
        let request = Request::decode(head).and_then(|request| match request {
            Request::Write { len, .. } if data.len() != u64::from(len) => Err(form(head)),
            Request::Write { .. } => Ok(request),
            _ if !data.is_empty() => Err(form(head)),
            _ => Ok(request),
        });
        let block = self.block;
        let op = match request {
            Ok(Request::Identify { version: VERSION }) => {
                self.known = true;
                return self.answer(id, Answer::Identity(self.identity()));
            }
            Ok(Request::Identify { version }) => {
                tracing::error!(lane = self.lane.name(), version, "a front end of another protocol version");
                return self.answer(id, Answer::Failed(Failure::Version { version: VERSION }));
            }
            Ok(Request::Read { offset, len }) => BlockOp::Read { offset, len },
            Ok(Request::Write { offset, durable, .. }) => BlockOp::Write { offset, data, durable },
            Ok(Request::Flush) => BlockOp::Flush,
            Ok(Request::Discard { block: first, blocks }) => {
                // 48 bits times at most 2^16: only the largest block size can reach the end of 64 bits, and a range
                // cut there is out of range all the same.
                BlockOp::Discard { offset: first.saturating_mul(block), len: blocks.saturating_mul(block) }
            }
            Ok(Request::WriteZeroes { block: first, blocks, durable, unmap }) => {
                let (offset, len) = (first.saturating_mul(block), blocks.saturating_mul(block));
                BlockOp::WriteZeroes { offset, len, durable, unmap }
            }
            Ok(Request::Extents { block: first, blocks }) => {
                BlockOp::Extents { offset: first.saturating_mul(block), len: blocks.saturating_mul(block) }
            }
            Err(error) => {
                self.lane.memory().stats().refusals.add(1);
                tracing::warn!(lane = self.lane.name(), %error, "a malformed request");
                return self.answer(id, Answer::Failed(Failure::Protocol));
            }
        };
        // Mostly nothing waits, and what has come can go on at once.
        if self.waiting.is_empty() && self.share.may_serve() {
            if let Some(waiting) = self.begin(id, op, None) {
                self.waiting.push_back(waiting);
            }
        } else {
            self.waiting.push_back(Waiting { wire: id, op, since: None });
        }
    }

    fn submit_waiting(&mut self) -> bool {
        let mut any = std::mem::take(&mut self.unflushed);
        while !self.waiting.is_empty()
            && self.share.may_serve()
            && let Some(Waiting { wire, op, since }) = self.waiting.pop_front()
        {
            if let Some(waiting) = self.begin(wire, op, since) {
                self.waiting.push_front(waiting);
                self.stamp_waiting();
                break;
            }
            any = true;
        }
        if any {
            self.unflushed = false;
            self.queue.flush_submissions();
        }
        any
    }

    /// Gives a request to the queue, or answers that there is no buffer. Returns it if it has to wait for now.
    #[inline]
    fn begin(&mut self, wire: u32, op: BlockOp, since: Option<Instant>) -> Option<Waiting> {
        let lent = match self.admit(&op, since) {
            Ok(lent) => lent,
            Err(Refused::Wait) => return Some(Waiting { wire, op, since }),
            Err(Refused::NoBuffer) => {
                self.answer(wire, Answer::Failed(Failure::NoBuffer));
                return None;
            }
        };
        let id = self.flights.insert(Flight { wire, session: self.session, lent });
        if let Err(busy) = self.queue.submit(id, op) {
            drop(self.flights.remove(id));
            self.share.return_requests(1);
            return Some(Waiting { wire, op: busy.0, since });
        }
        self.in_flight += 1;
        self.unflushed = true;
        None
    }

    /// Says of all that wait since when they do. Those that came first have been told already.
    fn stamp_waiting(&mut self) {
        if matches!(self.share.lack(), Lack::Bytes { .. }) {
            let now = Instant::now();
            let unstamped = self.waiting.iter_mut().rev().take_while(|waiting| waiting.since.is_none());
            unstamped.for_each(|waiting| waiting.since = Some(now));
        }
    }

    /// Enters the first waiting request into the front end's account.
    fn admit(&mut self, op: &BlockOp, since: Option<Instant>) -> Result<Option<Lent>, Refused> {
        self.share.set_lack(Lack::Nothing);
        // Before anything is lent: what is given back at once would wake all that want something, this lane too.
        if !self.share.has_request() {
            self.share.set_lack(Lack::Request);
            return Err(Refused::Wait);
        }
        let mut lent = None;
        let bytes = lends(op);
        if bytes > 0 && self.share.limits().lent_bytes < u64::MAX {
            lent = self.share.lend(bytes);
            if lent.is_none() {
                let now = Instant::now();
                let patience = since.unwrap_or(now) + LOAN_PATIENCE;
                if now >= patience {
                    return Err(Refused::NoBuffer);
                }
                self.share.set_lack(Lack::Bytes { len: bytes, patience });
                return Err(Refused::Wait);
            }
        }
        if !self.share.take_request() {
            self.share.set_lack(Lack::Request);
            return Err(Refused::Wait);
        }
        Ok(lent)
    }

    fn take_completions(&mut self) -> bool {
        let (mut any, mut ended) = (false, 0);
        while let Some(BlockCompletion { id, result }) = self.queue.poll() {
            any = true;
            // A queue that ends what it was not given is a bug of ours, and nobody waits for that.
            let Some(Flight { wire, session, lent }) = self.flights.remove(id) else { continue };
            ended += 1;
            if session != self.session {
                // Of a session that is over: dropped, and with it the buffer.
                drop(result);
                self.share.left_ended();
                continue;
            }
            self.in_flight = self.in_flight.saturating_sub(1);
            match result {
                // At most `MAX_REQUEST_BYTES`.
                Ok(data) => {
                    let head = Answer::Done { len: data.len() as u32 }.encode(wire);
                    let data = match lent {
                        Some(lent) if !data.is_empty() => lent.attach(&data),
                        _ => data,
                    };
                    self.answers.push_back((head, data));
                }
                Err(error) => {
                    tracing::debug!(lane = self.lane.name(), %error, "a request failed");
                    self.answer(wire, Answer::Failed(Failure::from(&error)));
                }
            }
        }
        // All at once, and before the answers: while a slot's cache line is on its way, an addition that other threads
        // have to see waits for it.
        self.share.return_requests(ended);
        any
    }

    fn identity(&self) -> Identity {
        Identity { geometry: self.queue.geometry(), features: self.queue.features() }
    }

    /// Remembers to say that the device has another size. A user that has not asked yet hears it when it does.
    fn follow_size(&mut self) -> bool {
        let resized = self.queue.resized().is_some();
        self.news |= resized && self.known;
        resized
    }

    fn answer(&mut self, wire: u32, answer: Answer) {
        self.answers.push_back((answer.encode(wire), Payload::new()));
    }

    /// Says once, however often the size has changed meanwhile, who the device is now; behind all answers, one of which
    /// may be an older identity.
    fn send_news(&mut self) -> bool {
        if !self.news || !self.share.may_serve() || !self.answers.is_empty() {
            return false;
        }
        let head = Answer::Identity(self.identity()).encode(IDENTIFY_ID);
        let sent = self.lane.send(head, Payload::new()).is_ok();
        self.news = !sent;
        sent
    }

    fn send_answers(&mut self) -> bool {
        let mut any = false;
        while self.share.may_serve()
            && let Some((head, payload)) = self.answers.pop_front()
        {
            let failure = match self.lane.send(head, payload) {
                Ok(()) => {
                    any = true;
                    continue;
                }
                Err(SendError::Full(payload) | SendError::Down(payload)) => {
                    self.answers.push_front((head, payload));
                    break;
                }
                Err(SendError::Heap(_)) => Failure::NoBuffer,
                Err(SendError::Address(_)) => Failure::Address,
                Err(SendError::TooManySegments(_) | SendError::ReservedKind(_)) => Failure::Protocol,
            };
            self.answers.push_front((Answer::Failed(failure).encode(codec::id(&head)), Payload::new()));
        }
        any |= self.send_news();
        if any {
            self.lane.flush();
        }
        any
    }
}

/// The lanes of a back end can be shared out among the threads of a [`fido_core::crew::Crew`]; each goes with its queue.
/// A queue may tie its requests to the thread that submitted them: a crew's threads outlive its jobs.
impl<Q: BlockQueue + Send> Job for BackEnd<Q> {
    fn name(&self) -> String {
        self.lane.name().into()
    }

    fn poll(&mut self) -> bool {
        BackEnd::poll(self)
    }

    fn flush(&mut self) {
        BackEnd::flush(self);
    }

    fn sources<'a>(&'a mut self, all: &mut Vec<&'a mut dyn Source>) {
        all.extend(BackEnd::sources(self));
    }
}

/// How many bytes of the heap the answer may take. A read that is too long is refused by the queue.
fn lends(op: &BlockOp) -> u64 {
    match op {
        BlockOp::Read { len, .. } if *len <= MAX_REQUEST_BYTES => (*len).into(),
        BlockOp::Extents { .. } => extents::MAX_BYTES.into(),
        _ => 0,
    }
}

fn form(head: &Head) -> codec::CodecError {
    codec::CodecError::Form { kind: head.kind, flags: head.flags, args: head.args }
}
