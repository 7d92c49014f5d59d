//! The back end: serves one lane from one queue.
//!
//! It believes nothing: a malformed request is answered with an error, a payload whose addresses are wild as well,
//! and ranges are checked by the queue itself. What a front end asks beyond the queue's depth waits here, bounded.
//!
//! When the front end's domain dies, requests in flight are finished and their results dropped. The successor is not
//! answered before the last of them has ended, not even who the device is: so a late write of the dead can never
//! overtake one of the living, over several lanes too if the successor connects all of them before it begins.

use std::collections::VecDeque;

use fido_core::crew::Job;
use fido_core::lane::{Change, Lane, Refusal, SendError};
use fido_core::message::Head;
use fido_core::payload::Payload;
use fido_core::wait::Source;

use super::codec::{self, Answer, Failure, IDENTIFY_ID, Identity, Request, VERSION};
use crate::queue::{BlockCompletion, BlockOp, BlockQueue, Geometry};

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
    /// Requests of the present session that the queue has.
    in_flight: usize,
    /// Requests of sessions that are over that the queue still has.
    leftover: usize,
    /// Requests that the queue has not taken yet, in order. The ids are [`BackEnd::queue_id`]s.
    waiting: VecDeque<(u64, BlockOp)>,
    /// Answers that the lane has not taken yet, in order.
    answers: VecDeque<(Head, Payload)>,
}

impl<Q: BlockQueue> BackEnd<Q> {
    /// A back end that serves `lane` from `queue`. Nothing else may use the queue.
    pub fn new(lane: Lane, queue: Q) -> Self {
        Self {
            lane,
            queue,
            session: 0,
            known: false,
            news: false,
            in_flight: 0,
            leftover: 0,
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
    pub fn sources(&mut self) -> [&mut dyn Source; 2] {
        [&mut self.lane, &mut self.queue]
    }

    fn follow_changes(&mut self) -> bool {
        let mut any = false;
        while let Some(change) = self.lane.change() {
            any = true;
            if let Change::Down(peer) = change {
                tracing::info!(lane = self.lane.name(), %peer, "the disk's user is gone");
                self.session = self.session.wrapping_add(1);
                (self.known, self.news) = (false, false);
                self.leftover += std::mem::take(&mut self.in_flight);
                self.waiting.clear();
                self.answers.clear();
            }
        }
        any
    }

    /// The queue's id for a request of the present session.
    fn queue_id(&self, wire: u32) -> u64 {
        u64::from(self.session) << 32 | u64::from(wire)
    }

    /// Takes requests off the lane. A front end that keeps to the depth never meets the bound; for one that does not,
    /// requests stay in the ring.
    fn take_requests(&mut self) -> bool {
        let mut any = false;
        while self.has_room() {
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
        let depth = self.queue.geometry().depth as usize;
        self.waiting.len() < depth && self.answers.len() < 2 * depth
    }

    fn take(&mut self, head: &Head, data: Payload) {
        let id = codec::id(head);
        let request = Request::decode(head).and_then(|request| match request {
            Request::Write { len, .. } if data.len() != u64::from(len) => Err(form(head)),
            Request::Write { .. } => Ok(request),
            _ if !data.is_empty() => Err(form(head)),
            _ => Ok(request),
        });
        let block = u64::from(self.queue.geometry().block);
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
        self.waiting.push_back((self.queue_id(id), op));
    }

    fn submit_waiting(&mut self) -> bool {
        let mut any = false;
        while self.leftover == 0
            && let Some((id, op)) = self.waiting.pop_front()
        {
            if let Err(busy) = self.queue.submit(id, op) {
                self.waiting.push_front((id, busy.0));
                break;
            }
            self.in_flight += 1;
            any = true;
        }
        if any {
            self.queue.flush_submissions();
        }
        any
    }

    fn take_completions(&mut self) -> bool {
        let mut any = false;
        while let Some(BlockCompletion { id, result }) = self.queue.poll() {
            any = true;
            if id >> 32 != u64::from(self.session) {
                // Of a session that is over: dropped, and with it the buffer.
                self.leftover = self.leftover.saturating_sub(1);
                continue;
            }
            self.in_flight = self.in_flight.saturating_sub(1);
            let wire = id as u32;
            match result {
                // At most `MAX_REQUEST_BYTES`.
                Ok(data) => {
                    let head = Answer::Done { len: data.len() as u32 }.encode(wire);
                    self.answers.push_back((head, data));
                }
                Err(error) => {
                    tracing::debug!(lane = self.lane.name(), %error, "a request failed");
                    self.answer(wire, Answer::Failed(Failure::from(&error)));
                }
            }
        }
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
        if !self.news || self.leftover > 0 || !self.answers.is_empty() {
            return false;
        }
        let head = Answer::Identity(self.identity()).encode(IDENTIFY_ID);
        let sent = self.lane.send(head, Payload::new()).is_ok();
        self.news = !sent;
        sent
    }

    fn send_answers(&mut self) -> bool {
        let mut any = false;
        while self.leftover == 0
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

fn form(head: &Head) -> codec::CodecError {
    codec::CodecError::Form { kind: head.kind, flags: head.flags, args: head.args }
}
