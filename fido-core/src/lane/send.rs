//! The sending side of a lane: a payload is put on loan and named in a slot.

use super::session::Session;
use super::{Lane, SendError};
use crate::assignment::Transport;
use crate::heap::HeapError;
use crate::memory::{CopyError, Memory};
use crate::message::{self, Frame, Head, INLINE_SEGMENTS, KIND_RESERVED, LIST_ENTRY_BYTES, NO_SEGMENT, Opening};
use crate::payload::{MAX_SEGMENTS, Payload};
use crate::ring::join;

/// What stands against sending.
#[derive(Debug, Clone, Copy)]
enum Obstacle {
    Full,
    Down,
    TooManySegments,
    ReservedKind,
}

impl Obstacle {
    /// The error of a payload that meets it.
    #[cold]
    fn met_by(self, kind: u8, payload: Payload) -> SendError {
        match self {
            Self::Full => SendError::Full(payload),
            Self::Down => SendError::Down(payload),
            Self::TooManySegments => SendError::TooManySegments(payload),
            Self::ReservedKind => SendError::ReservedKind(kind),
        }
    }
}

impl Lane {
    /// Publishes a message and lends its payload. Call [`Lane::flush`] after a batch.
    ///
    /// # Errors
    /// [`SendError`], with the payload where it can be sent later or elsewhere. While a change has not been taken the
    /// lane is down: whoever does not know yet that the peer is another one means the old one.
    #[inline(always)]
    pub fn send(&mut self, head: Head, payload: Payload) -> Result<(), SendError> {
        // From here on the head is three numbers. As a whole it would be copied through memory, where a wide load of what
        // narrow stores have written waits for them, and they for the slots of all messages before.
        let (opening, args) = (Opening::plain(head.kind, head.flags), head.pairs());
        if payload.is_empty() && self.send_plain(opening, args) {
            return Ok(());
        }
        self.send_any(opening, args[0], args[1], payload)
    }

    /// Publishes a message without payload, if nothing else is to be done. All of it stays in registers if this is part of
    /// the caller, and only then.
    #[inline(always)]
    fn send_plain(&mut self, opening: Opening, [args, more_args]: [u64; 2]) -> bool {
        if !self.is_at_ease() || !opening.is_plain() {
            return false;
        }
        let Some(session) = self.session.as_mut().filter(|session| !session.returns.is_due()) else { return false };
        let is_sent = session.tx.publish([opening.bits(), args, more_args], 0);
        if is_sent && self.wants_room {
            self.wants_room = false;
        }
        is_sent
    }

    /// Publishes any message, or says what stands against it.
    #[inline(never)]
    fn send_any(&mut self, opening: Opening, args: u64, more_args: u64, payload: Payload) -> Result<(), SendError> {
        if self.has_simple_way(opening, &payload) {
            self.send_simple(opening, args, more_args, payload);
            return Ok(());
        }
        let head = opening.head(args, more_args);
        if let Some(obstacle) = self.obstacle(head.kind, payload.parts().len()) {
            return Err(obstacle.met_by(head.kind, payload));
        }
        let mut frame = Frame { head, loan: 0, returned: 0, count: 0, segments: [NO_SEGMENT; INLINE_SEGMENTS] };
        if !payload.is_empty() {
            self.lend(payload, &mut frame)?;
        }
        self.publish(frame);
        Ok(())
    }

    /// Whether [`Lane::send_simple`] can publish this now.
    #[inline]
    fn has_simple_way(&self, opening: Opening, payload: &Payload) -> bool {
        let has_room = |session: &Session| session.tx.room() > 0 && session.loans.has_room();
        let is_simple = payload.is_empty() || payload.only().is_some();
        is_simple && opening.is_plain() && self.is_at_ease() && self.session.as_ref().is_some_and(has_room)
    }

    /// Publishes a message with at most one segment, and a return if one is due: without a frame in memory.
    #[inline]
    fn send_simple(&mut self, opening: Opening, args: u64, more_args: u64, payload: Payload) {
        let Some(session) = self.session.as_mut() else { return };
        let returned = session.returns.take().unwrap_or(0);
        self.wants_room = false;
        let Some(segment) = payload.only().map(|part| part.segment) else {
            session.tx.publish([opening.with(0, returned).bits(), args, more_args], 0);
            return;
        };
        let opening = opening.with(session.loans.give(payload), returned);
        self.counts.given += 1;
        let pairs = [opening.bits(), args, more_args, segment.addr.bits(), join(segment.len, 0)];
        session.tx.publish(pairs, 0);
    }

    /// What stands against sending a message of this kind with so many segments now. (Decided before the payload is
    /// touched: handing it on and back costs more than the rest of a send.)
    fn obstacle(&mut self, kind: u8, segments: usize) -> Option<Obstacle> {
        self.follow_news();
        if !self.changes.is_empty() {
            return Some(Obstacle::Down);
        }
        let Some(session) = self.session.as_mut().filter(|session| session.is_up) else {
            return Some(Obstacle::Down);
        };
        if kind >= KIND_RESERVED {
            return Some(Obstacle::ReservedKind);
        }
        if segments > MAX_SEGMENTS {
            return Some(Obstacle::TooManySegments);
        }
        if session.tx.room() == 0
            && let Err(error) = session.refresh_room()
        {
            self.break_session(&error);
            return Some(Obstacle::Down);
        }
        if session.tx.room() == 0 || !session.loans.has_room() {
            self.wants_room = true;
            return Some(Obstacle::Full);
        }
        None
    }

    /// Keeps the payload, or its copy with the copying transport, until the peer returns it, and names it in the frame.
    fn lend(&mut self, payload: Payload, frame: &mut Frame) -> Result<(), SendError> {
        let Some(session) = self.session.as_mut() else { return Err(SendError::Down(payload)) };
        let copying = self.setup.transport == Transport::Copying;
        let payload = if copying { copied(&self.setup.memory, payload)? } else { payload };
        let kept = list_segments(&self.setup.memory, payload, frame)?;
        frame.loan = session.loans.give(kept);
        self.counts.given += 1;
        Ok(())
    }

    /// Puts a frame into the ring, for which there is a session with room, with a return if one is due.
    fn publish(&mut self, mut frame: Frame) {
        let Some(session) = self.session.as_mut() else { return };
        frame.returned = session.returns.take().unwrap_or(0);
        let ([opening, a, b, c, d, e, f], last) = frame.pairs();
        // Segments that are not there need not be written; lists take the place of the first one.
        match frame.count {
            0 => session.tx.publish([opening, a, b], 0),
            2 | 3 => session.tx.publish([opening, a, b, c, d, e, f], last),
            _ => session.tx.publish([opening, a, b, c, d], 0),
        };
        self.wants_room = false;
        if self.setup.transport == Transport::Pointer {
            return;
        }
        // The copying transport notifies for each message, here and now.
        session.has_rung();
        session.ringer.ring();
        let stats = self.setup.memory.stats();
        stats.bells_rung.add(1);
        stats.syscalls.add(1);
    }
}

/// The payload in a buffer of our own ("ring pages"): the copying transport's first copy.
fn copied(memory: &Memory, payload: Payload) -> Result<Payload, SendError> {
    match memory.copy_in(&payload) {
        Ok(copy) => Ok(copy.map_or_else(Payload::new, crate::heap::ArenaBuf::into_payload)),
        Err(CopyError::Heap(HeapError::Exhausted { wanted, capacity, .. })) if wanted <= capacity => {
            Err(SendError::Full(payload))
        }
        Err(CopyError::Heap(error)) => Err(SendError::Heap(error)),
        Err(CopyError::Address(error)) => Err(SendError::Address(error)),
    }
}

/// Puts a payload's segments into the frame, or into a list in the own arena that the frame names. Returns what has to
/// be kept while it is on loan.
fn list_segments(memory: &Memory, mut payload: Payload, frame: &mut Frame) -> Result<Payload, SendError> {
    let count = payload.parts().len();
    frame.count = count as u16;
    if count <= INLINE_SEGMENTS {
        for (place, segment) in frame.segments.iter_mut().zip(payload.segments()) {
            *place = segment;
        }
        return Ok(payload);
    }
    let mut list = match memory.alloc(count * LIST_ENTRY_BYTES) {
        Ok(list) => list,
        Err(_) => return Err(SendError::Full(payload)),
    };
    for (entry, segment) in list.as_mut_slice().chunks_exact_mut(LIST_ENTRY_BYTES).zip(payload.segments()) {
        entry.copy_from_slice(&message::encode_entry(segment));
    }
    frame.segments[0] = list.segment();
    payload.append(list.into_payload());
    Ok(payload)
}
