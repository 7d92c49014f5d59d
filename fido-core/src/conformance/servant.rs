//! The roles peer and third: they do what the judge orders.

use std::collections::VecDeque;
use std::time::Duration;

use super::Failure;
use super::script::{self, ANSWER, FOR_THIRD, Order, REFUSED};
use crate::domain::{Domain, Notice, Notices};
use crate::heap::HeapError;
use crate::lane::{Lane, Refusal, SendError};
use crate::message::Head;
use crate::payload::Payload;
use crate::wait::Source;
use crate::waiter::Waiter;

type Message = (Head, Payload);

/// A domain that takes orders from above and passes on, down and up, what is not for itself.
pub(super) struct Servant {
    up: Lane,
    down: Option<Lane>,
    waiter: Waiter,
    notices: Notices,
    /// What waits for room in the lane up.
    answers: VecDeque<Message>,
    /// What waits for room in the lane down, or for the third to be there.
    orders: VecDeque<Message>,
    held: Payload,
    counted: u32,
}

impl Servant {
    /// A servant at the lower end of `up` and, if there is one, the upper end of `down`.
    pub(super) fn new(domain: &Domain, up: &str, down: Option<&str>) -> Result<Self, Failure> {
        Ok(Self {
            up: domain.take_lane(up, 0)?,
            down: down.map(|link| domain.take_lane(link, 0)).transpose()?,
            waiter: domain.waiter()?,
            notices: domain.notices()?,
            answers: VecDeque::new(),
            orders: VecDeque::new(),
            held: Payload::new(),
            counted: 0,
        })
    }

    /// Serves until the appliance is shut down.
    pub(super) fn serve(mut self, domain: &Domain) -> Result<(), Failure> {
        domain.ready(&[])?;
        loop {
            while let Some(notice) = self.notices.poll() {
                if notice == Notice::Shutdown {
                    return Ok(());
                }
            }
            let moved = self.take_orders() | self.take_answers() | self.send();
            self.up.flush();
            self.down.iter_mut().for_each(Lane::flush);
            if moved {
                self.waiter.busy();
                continue;
            }
            let mut sources: Vec<&mut dyn Source> = vec![&mut self.up, &mut self.notices];
            sources.extend(self.down.as_mut().map(|down| down as &mut dyn Source));
            self.waiter.idle(&mut sources, None)?;
        }
    }

    /// Takes what came from above, unless too much waits already.
    fn take_orders(&mut self) -> bool {
        let mut moved = false;
        while self.up.change().is_some() {
            moved = true;
        }
        let limit = self.up.slots() as usize;
        while self.answers.len() < limit && self.orders.len() < limit {
            match self.up.recv() {
                Some(Ok((head, payload))) if head.flags & FOR_THIRD != 0 && self.down.is_some() => {
                    self.orders.push_back((Head { flags: head.flags & !FOR_THIRD, ..head }, payload));
                }
                Some(Ok((head, payload))) => self.obey(head, payload),
                Some(Err(Refusal { head, .. })) => self.refuse(head),
                None => break,
            }
            moved = true;
        }
        moved
    }

    /// Takes what came from below and is on its way up.
    fn take_answers(&mut self) -> bool {
        let Some(down) = &mut self.down else { return false };
        let mut moved = false;
        while down.change().is_some() {
            moved = true;
        }
        while self.answers.len() < self.up.slots() as usize {
            match down.recv() {
                Some(Ok(message)) => self.answers.push_back(message),
                Some(Err(Refusal { head, .. })) => {
                    self.answers.push_back((Head { flags: head.flags | REFUSED, ..head }, Payload::new()));
                }
                None => break,
            }
            moved = true;
        }
        moved
    }

    /// Sends what waits. Answers to a dead master are dropped; orders to the third wait until it is there.
    fn send(&mut self) -> bool {
        let mut moved = false;
        while let Some((head, payload)) = self.answers.pop_front() {
            match self.up.send(head, payload) {
                Err(SendError::Full(payload)) => {
                    self.answers.push_front((head, payload));
                    break;
                }
                Ok(()) => moved = true,
                Err(SendError::Down(_)) => {}
                Err(error) => tracing::error!(%error, "an answer cannot be sent"),
            }
        }
        let Some(down) = &mut self.down else { return moved };
        while let Some((head, payload)) = self.orders.pop_front() {
            match down.send(head, payload) {
                Err(SendError::Full(payload) | SendError::Down(payload)) => {
                    self.orders.push_front((head, payload));
                    break;
                }
                Ok(()) => moved = true,
                Err(error) => tracing::error!(%error, "an order cannot be passed on"),
            }
        }
        moved
    }

    fn obey(&mut self, head: Head, payload: Payload) {
        let [_, first, second, _] = head.args;
        match Order::of_kind(head.kind) {
            Some(Order::Echo) => self.answer(head, head.args, payload),
            Some(Order::Digest) => self.tell_digest(head, &payload),
            Some(Order::Hold) => {
                self.tell_digest(head, &payload);
                self.held.append(payload);
            }
            Some(Order::DigestHeld) => self.tell_digest(head, &self.held.clone()),
            Some(Order::Release) => {
                self.held = Payload::new();
                self.answer(head, head.args, Payload::new());
            }
            Some(Order::ReleaseElsewhere) => {
                let held = std::mem::take(&mut self.held);
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(first.into()));
                    drop(held);
                });
            }
            Some(Order::Give) => match self.buffer(first, second) {
                Ok(payload) => self.answer(head, head.args, payload),
                Err(_) => self.refuse(head),
            },
            Some(Order::Pause) => std::thread::sleep(Duration::from_millis(first.into())),
            Some(Order::Count) => self.counted += 1,
            Some(Order::Counted) => {
                let [number, ..] = head.args;
                self.answer(head, [number, self.counted, 0, 0], Payload::new());
            }
            Some(Order::Die) => std::process::abort(),
            None => self.refuse(head),
        }
    }

    fn buffer(&self, seed: u32, len: u32) -> Result<Payload, HeapError> {
        let mut buf = self.up.memory().alloc(len as usize)?;
        buf.as_mut_slice().iter_mut().zip(script::pattern(seed)).for_each(|(byte, value)| *byte = value);
        Ok(buf.into_payload())
    }

    fn tell_digest(&mut self, head: Head, payload: &Payload) {
        let address = payload.segments().next().map_or(0, |segment| segment.addr.bits());
        match script::digest_of(self.up.memory(), payload) {
            Ok(digest) => {
                let args = [head.args[0], digest, address as u32, (address >> 32) as u32];
                self.answer(head, args, Payload::new());
            }
            Err(_) => self.refuse(head),
        }
    }

    fn answer(&mut self, order: Head, args: [u32; 4], payload: Payload) {
        self.answers.push_back((Head { kind: order.kind, flags: ANSWER, args }, payload));
    }

    fn refuse(&mut self, order: Head) {
        self.answers.push_back((Head { flags: ANSWER | REFUSED, ..order }, Payload::new()));
    }
}
