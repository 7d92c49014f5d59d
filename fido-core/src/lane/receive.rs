//! The receiving side of a lane: what a slot alleges, checked and made a payload.

use crate::addr::{GlobalAddr, Segment};
use crate::assignment::Transport;
use crate::heap::{ArenaBuf, HeapError};
use crate::message::{
    self, Frame, Head, INLINE_SEGMENTS, KIND_RESERVED, KIND_RETURNS, LIST_ENTRY_BYTES, NO_SEGMENT, Opening,
};
use crate::payload::{Hold, MAX_SEGMENTS, Payload};
use crate::ring::{Words, split};
use crate::window::AddressError;

use super::loan::{TooManyLoans, UnknownLoan};
use super::session::Session;
use super::{CopyError, Lane, Memory};

/// A message whose payload is refused. Its loan has been returned already; the protocol answers it with an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The message without its payload.
    pub head: Head,
    /// What is wrong with the payload.
    pub error: RefusalError,
}

/// Why a payload is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RefusalError {
    /// A segment, or the list of segments, has no memory behind it here.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// More than [`MAX_SEGMENTS`].
    #[error("{count} segments; the limit is {MAX_SEGMENTS}")]
    TooManySegments {
        /// The number alleged.
        count: u16,
    },
    /// The list is not in the sender's arena or not of the right length.
    #[error("a list of {count} segments at {list}")]
    List {
        /// Where the list is alleged to be.
        list: Segment,
        /// The number alleged.
        count: u16,
    },
    /// Segments without a loan.
    #[error("a payload without a loan")]
    NoLoan,
    /// The copying transport can never have a buffer of that size.
    #[error(transparent)]
    Heap(#[from] HeapError),
    /// A kind of the lane's own that this version does not know.
    #[error("kind {kind:#x}, which is reserved and unknown")]
    ReservedKind {
        /// The kind.
        kind: u8,
    },
}

impl Lane {
    /// The next message of the peer, or a refusal of one, or nothing. Take all changes first: nothing is received
    /// while one is waiting.
    #[inline]
    pub fn recv(&mut self) -> Option<Result<(Head, Payload), Refusal>> {
        self.looked = true;
        if self.backlog.is_empty()
            && self.is_at_ease()
            && let Some(session) = &mut self.session
        {
            let next = session.rx.arrived()?;
            let opening = Opening::of(next.pair(0));
            if opening.is_plain() {
                let head = opening.head(next.pair(1), next.pair(2));
                next.take();
                if session.rx.owes_credit() {
                    session.publish_credit();
                }
                return Some(Ok((head, Payload::new())));
            }
        }
        self.recv_any()
    }

    /// As [`Lane::recv`], for messages of all kinds and in all states of the lane.
    #[inline(never)]
    fn recv_any(&mut self) -> Option<Result<(Head, Payload), Refusal>> {
        self.follow_news();
        if !self.changes.is_empty() {
            return None;
        }
        match (self.setup.transport, self.backlog.pop_front()) {
            // Handed on where it is made: a message is not copied from one function's frame to the next one's.
            (Transport::Pointer, None) => self.pop(),
            (Transport::Pointer, next) => next,
            (Transport::Copying, next) => {
                let next = next.or_else(|| self.pop())?;
                self.copy_out(next)
            }
        }
    }

    /// The copying transport's second copy, into a buffer of our own; the loan ends here.
    fn copy_out(&mut self, message: Result<(Head, Payload), Refusal>) -> Option<Result<(Head, Payload), Refusal>> {
        let Ok((head, payload)) = message else { return Some(message) };
        self.wants_heap = None;
        match self.setup.memory.copy_in(&payload) {
            Ok(copy) => Some(Ok((head, copy.map_or_else(Payload::new, ArenaBuf::into_payload)))),
            Err(CopyError::Heap(HeapError::Exhausted { wanted, used, capacity })) if wanted <= capacity => {
                self.backlog.push_front(Ok((head, payload)));
                self.wants_heap = Some(used);
                // What is behind it has to be looked at all the same.
                self.looked = false;
                None
            }
            Err(CopyError::Heap(error)) => Some(Err(Refusal { head, error: error.into() })),
            Err(CopyError::Address(error)) => Some(Err(Refusal { head, error: error.into() })),
        }
    }

    /// Takes messages off the ring into the backlog, so that returns behind them take effect even while the protocol
    /// above takes nothing. Bounded by the ring's size.
    pub(super) fn collect(&mut self) {
        while self.backlog.len() < self.setup.place.plan.slots as usize {
            match self.pop() {
                Some(message) => self.backlog.push_back(message),
                None => return,
            }
        }
    }

    /// The next message off the ring; returns of loans take effect on the way.
    #[inline]
    fn pop(&mut self) -> Option<Result<(Head, Payload), Refusal>> {
        let session = self.session.as_mut().filter(|session| session.is_up)?;
        let next = session.rx.arrived()?;
        let opening = Opening::of(next.pair(0));
        if !opening.is_simple() || opening.loan() != 0 && !session.returns.has_room() {
            return self.pop_any();
        }
        // Each pair is read once: what is checked is what is used.
        let head = opening.head(next.pair(1), next.pair(2));
        let segment = match opening.loan() {
            0 => NO_SEGMENT,
            _ => Segment::new(GlobalAddr::from_bits(next.pair(3)), split(next.pair(4)).0),
        };
        next.take();
        if session.rx.owes_credit() {
            session.publish_credit();
        }
        if opening.returned() != 0 {
            self.eased = true;
            if let Err(error) = session.end_loan(opening.returned(), &mut self.counts.returned) {
                self.break_session(&error);
                return None;
            }
        }
        if opening.loan() == 0 {
            return Some(Ok((head, Payload::new())));
        }
        let hold = session.returns.borrow(opening.loan());
        match self.setup.memory.check(segment) {
            Ok(()) => Some(Ok((head, Payload::held(segment, hold)))),
            Err(error) => Some(Err(refuse(&self.setup.memory, session, head, error.into()))),
        }
    }

    /// As [`Lane::pop`], for messages of all kinds.
    #[inline(never)]
    fn pop_any(&mut self) -> Option<Result<(Head, Payload), Refusal>> {
        loop {
            let session = self.session.as_mut().filter(|session| session.is_up)?;
            let next = session.rx.arrived()?;
            let frame = Frame::of_pairs(|at| next.pair(at), next.last());
            next.take();
            if session.rx.owes_credit() {
                session.publish_credit();
            }
            self.eased |= frame.head.kind == KIND_RETURNS || frame.returned != 0;
            let returned = if frame.head.kind == KIND_RETURNS {
                end_loans(session, &frame.encode(), &mut self.counts.returned)
            } else if frame.returned != 0 {
                session.end_loan(frame.returned, &mut self.counts.returned)
            } else {
                Ok(())
            };
            if let Err(error) = returned {
                self.break_session(&error);
                return None;
            }
            if frame.loan != 0 && !session.returns.has_room() {
                self.break_session(&TooManyLoans);
                return None;
            }
            if frame.head.kind != KIND_RETURNS {
                return Some(accept(&self.setup.memory, session, &frame));
            }
            session.took_own();
        }
    }
}

/// Ends the loans that a message of returns names. One that names none is as wrong as one that names an unknown one.
fn end_loans(session: &mut Session, words: &Words, ended: &mut u64) -> Result<(), UnknownLoan> {
    let mut tags = message::decode_returns(words).peekable();
    if tags.peek().is_none() {
        return Err(UnknownLoan { tag: 0 });
    }
    tags.try_for_each(|tag| session.end_loan(tag, ended))
}

/// Makes a payload of what a frame alleges.
fn accept(memory: &Memory, session: &mut Session, frame: &Frame) -> Result<(Head, Payload), Refusal> {
    let kind = frame.head.kind;
    let payload = match frame.loan {
        0 if frame.count == 0 => Ok(Payload::new()),
        0 => Err(RefusalError::NoLoan),
        loan => {
            let hold = session.returns.borrow(loan);
            borrow(memory, session, frame, hold)
        }
    };
    match payload {
        Ok(payload) if kind < KIND_RESERVED => Ok((frame.head, payload)),
        // The payload is dropped here, and so its loan returned.
        Ok(_) => Err(refuse(memory, session, frame.head, RefusalError::ReservedKind { kind })),
        Err(error) => Err(refuse(memory, session, frame.head, error)),
    }
}

#[cold]
fn refuse(memory: &Memory, session: &Session, head: Head, error: RefusalError) -> Refusal {
    memory.stats().refusals.add(1);
    tracing::warn!(peer = %session.peer, kind = head.kind, %error, "a payload is refused");
    Refusal { head, error }
}

/// The payload under `hold`; every segment has been translated once.
fn borrow(memory: &Memory, session: &Session, frame: &Frame, hold: Hold) -> Result<Payload, RefusalError> {
    let count = frame.count;
    let mut payload = Payload::new();
    if usize::from(count) <= INLINE_SEGMENTS {
        let mut hold = Some(hold);
        for (index, segment) in frame.segments.iter().enumerate().take(usize::from(count)) {
            memory.check(*segment)?;
            let is_last = index + 1 == usize::from(count);
            payload.push(*segment, if is_last { hold.take() } else { hold.clone() });
        }
        return Ok(payload);
    }
    if usize::from(count) > MAX_SEGMENTS {
        return Err(RefusalError::TooManySegments { count });
    }
    let list = frame.segments[0];
    if list.addr.domain() != session.peer || list.len as usize != usize::from(count) * LIST_ENTRY_BYTES {
        return Err(RefusalError::List { list, count });
    }
    let span = memory.translate(list)?;
    for index in 0..usize::from(count) {
        let mut entry = [0; LIST_ENTRY_BYTES];
        span.read(index * LIST_ENTRY_BYTES, &mut entry);
        let segment = message::decode_entry(entry);
        memory.check(segment)?;
        payload.push(segment, Some(hold.clone()));
    }
    Ok(payload)
}
