//! The floor, and what Fido has: ring and lane.

use std::marker::PhantomData;

use fido_core::lane::{self, SendError};
use fido_core::message::Head;
use fido_core::payload::Payload;
use fido_core::ring::{MESSAGE_WORDS, Words};

use super::Channel;
use crate::Failure;
use crate::ring::end::{Bare, End, SLOTS, Side};
use crate::ring::spin::{Relax, spin, until};

/// Payload of a lane that lends.
const LOAN_BYTES: usize = 4096;

/// Two words, one in each arena.
pub struct Floor<'a, R> {
    end: &'a mut End,
    count: u32,
    relax: PhantomData<R>,
}

impl<'a, R> Floor<'a, R> {
    pub fn new(end: &'a mut End) -> Self {
        Self { end, count: 0, relax: PhantomData }
    }
}

impl<R: Relax> Channel for Floor<'_, R> {
    #[inline]
    fn send(&mut self, _: &Words) -> Result<(), Failure> {
        if self.end.side == Side::Lead {
            self.end.exchanged = self.end.exchanged.wrapping_add(1);
        }
        self.end.bare.own().session.publish(self.end.exchanged);
        Ok(())
    }

    #[inline]
    fn receive(&mut self, message: &mut Words) -> Result<(), Failure> {
        if self.end.side == Side::Follow {
            self.end.exchanged = self.end.exchanged.wrapping_add(1);
        }
        let (word, awaited) = (&self.end.bare.other().session, self.end.exchanged);
        until::<R, _>("word", (&raw const *word).cast(), || (word.read() == awaited).then_some(()))?;
        *message = [self.count; MESSAGE_WORDS];
        self.count += 1;
        Ok(())
    }
}

/// The bare ring.
pub struct Ring<'a, R> {
    bare: &'a mut Bare,
    relax: PhantomData<R>,
}

impl<'a, R> Ring<'a, R> {
    pub fn new(end: &'a mut End) -> Self {
        Self { bare: &mut end.bare, relax: PhantomData }
    }
}

impl<R: Relax> Channel for Ring<'_, R> {
    #[inline]
    fn send(&mut self, message: &Words) -> Result<(), Failure> {
        // The slow way gets a copy of its own, so that the message can stay in registers here, as in the other rings: each
        // store to the stack takes a place in the store buffer, where stores to slots wait for their cache lines.
        if self.bare.tx.push(message) { Ok(()) } else { push_when_room(self.bare, *message) }
    }

    #[inline]
    fn receive(&mut self, message: &mut Words) -> Result<(), Failure> {
        let at = self.bare.received & (SLOTS - 1);
        let line = self.bare.slots.wrapping_add(at as usize).cast();
        until::<R, _>("message", line, || {
            *message = self.bare.rx.pop()?;
            Some(())
        })?;
        self.bare.received = self.bare.received.wrapping_add(1);
        if self.bare.rx.owes_credit() {
            let own: *const _ = self.bare.own();
            // SAFETY: as in `Bare::own`; the borrow checker cannot know that `rx` is another field.
            self.bare.rx.publish_credit(&unsafe { &*own }.credit);
        }
        Ok(())
    }
}

#[cold]
fn push_when_room(bare: &mut Bare, message: Words) -> Result<(), Failure> {
    spin("room", || {
        let other: *const _ = bare.other();
        // SAFETY: as in `Bare::other`; the borrow checker cannot know that `tx` is another field.
        match bare.tx.refresh(&unsafe { &*other }.credit) {
            Ok(()) => bare.tx.push(&message).then_some(Ok(())),
            Err(error) => Some(Err(error.into())),
        }
    })?
}

/// The first lane, with messages without payload.
pub struct Lane<'a>(&'a mut lane::Lane);

impl<'a> Lane<'a> {
    pub fn new(end: &'a mut End) -> Result<Self, Failure> {
        Ok(Self(end.lanes.first_mut().ok_or("no lane")?))
    }
}

impl Channel for Lane<'_> {
    #[inline]
    fn send(&mut self, message: &Words) -> Result<(), Failure> {
        send(self.0, head(message), Payload::new())
    }

    #[inline]
    fn flush(&mut self) -> Result<(), Failure> {
        self.0.flush();
        Ok(())
    }

    #[inline]
    fn receive(&mut self, message: &mut Words) -> Result<(), Failure> {
        let (head, _payload) = receive(self.0)?;
        message[..4].copy_from_slice(&head.args);
        Ok(())
    }
}

/// The first lane; what the leading side sends lends the same buffer again and again.
pub struct Lending<'a> {
    lane: Lane<'a>,
    payload: Payload,
}

impl<'a> Lending<'a> {
    pub fn new(end: &'a mut End) -> Result<Self, Failure> {
        let lends = end.side == Side::Lead;
        let payload = if lends { end.memory.alloc(LOAN_BYTES)?.into_payload() } else { Payload::new() };
        Ok(Self { lane: Lane::new(end)?, payload })
    }
}

impl Channel for Lending<'_> {
    #[inline]
    fn send(&mut self, message: &Words) -> Result<(), Failure> {
        send(self.lane.0, head(message), self.payload.clone())
    }

    #[inline]
    fn flush(&mut self) -> Result<(), Failure> {
        self.lane.flush()
    }

    #[inline]
    fn receive(&mut self, message: &mut Words) -> Result<(), Failure> {
        self.lane.receive(message)
    }
}

/// The start of a message as a lane has place for it.
#[inline]
fn head(message: &Words) -> Head {
    Head { kind: 1, flags: 0, args: [message[0], message[1], message[2], message[3]] }
}

/// Sends over a lane, when there is room.
#[inline]
pub fn send(lane: &mut lane::Lane, head: Head, payload: Payload) -> Result<(), Failure> {
    match lane.send(head, payload) {
        Ok(()) => Ok(()),
        // The slow way gets a head of its own, as in the ring.
        Err(error) => send_when_room(lane, Head { kind: head.kind, flags: head.flags, args: head.args }, error),
    }
}

#[cold]
fn send_when_room(lane: &mut lane::Lane, head: Head, error: SendError) -> Result<(), Failure> {
    let SendError::Full(payload) = error else { return Err(error.into()) };
    let mut next = Some(payload);
    spin("room", || match lane.send(head, next.take()?) {
        Ok(()) => Some(Ok(())),
        Err(SendError::Full(payload)) => {
            next = Some(payload);
            lane.flush();
            None
        }
        Err(error) => Some(Err(error.into())),
    })?
}

/// Receives from a lane, when there is something.
#[inline]
pub fn receive(lane: &mut lane::Lane) -> Result<(Head, Payload), Failure> {
    spin("message", || lane.recv())?.map_err(|refusal| refusal.error.into())
}
