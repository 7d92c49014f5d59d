//! The judge: gives orders, waits for answers by doorbell, and keeps the time.

use std::time::{Duration, Instant};

use super::script::{self, ANSWER, Order, REFUSED};
use super::{Failure, UPPER_LINK};
use crate::addr::{DomainId, GlobalAddr};
use crate::domain::{Domain, Notice, Notices};
use crate::lane::{Change, Lane, SendError};
use crate::memory::Memory;
use crate::message::Head;
use crate::payload::Payload;
use crate::wait::Source;
use crate::waiter::Waiter;

/// How long a case may take: far beyond what it needs on a busy machine, restarts included. (A guest that boots under
/// emulation takes 4 to 15 s.)
const CASE_LIMIT: Duration = Duration::from_secs(60);

/// What an order is about, besides its kind.
#[derive(Debug, Default)]
pub(super) struct Details {
    /// Flags.
    pub(super) flags: u8,
    /// The second and the third argument.
    pub(super) args: [u32; 2],
    /// What travels with it.
    pub(super) payload: Payload,
}

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    /// The arguments after the order's number.
    pub(super) args: [u32; 3],
    /// Whether it says that the order was refused.
    pub(super) refused: bool,
    /// What came with it.
    pub(super) payload: Payload,
}

impl Answer {
    /// The address in the answer to a `Digest`.
    pub(super) fn address(&self) -> GlobalAddr {
        GlobalAddr::from_bits(u64::from(self.args[1]) | u64::from(self.args[2]) << 32)
    }
}

/// The judge's end of the row, and where it stands in the script.
pub(super) struct Judge {
    lane: Lane,
    waiter: Waiter,
    notices: Notices,
    case: &'static str,
    deadline: Instant,
    /// The number of the latest order.
    number: u32,
    /// The peer's living incarnation.
    peer: Option<DomainId>,
}

impl Judge {
    pub(super) fn new(domain: &Domain) -> Result<Self, Failure> {
        Ok(Self {
            lane: domain.take_lane(UPPER_LINK, 0)?,
            waiter: domain.waiter()?,
            notices: domain.notices()?,
            case: "",
            deadline: Instant::now(),
            number: 0,
            peer: None,
        })
    }

    /// Begins a case.
    pub(super) fn begin(&mut self, case: &'static str) {
        tracing::info!(case, "begins");
        self.case = case;
        self.deadline = Instant::now() + CASE_LIMIT;
    }

    /// The present case.
    pub(super) fn case(&self) -> &'static str {
        self.case
    }

    /// The lane to the peer.
    pub(super) fn lane(&self) -> &Lane {
        &self.lane
    }

    /// The lane to the peer, for what no order does.
    pub(super) fn lane_mut(&mut self) -> &mut Lane {
        &mut self.lane
    }

    /// The judge's memory.
    pub(super) fn memory(&self) -> &Memory {
        self.lane.memory()
    }

    /// A verdict against the platform.
    pub(super) fn wrong(&self, what: impl Into<String>) -> Failure {
        Failure::Wrong { case: self.case, what: what.into() }
    }

    /// A verdict against the platform unless `right`.
    pub(super) fn check(&self, right: bool, what: &str) -> Result<(), Failure> {
        if right { Ok(()) } else { Err(self.wrong(what)) }
    }

    /// Sleeps until `look` finds what it looks for. Only doorbells wake it in between.
    pub(super) fn until<T>(
        &mut self,
        what: &str,
        mut look: impl FnMut(&mut Self) -> Result<Option<T>, Failure>,
    ) -> Result<T, Failure> {
        loop {
            let is_late = Instant::now() >= self.deadline;
            self.lane.flush();
            self.follow()?;
            let found = look(self)?;
            if is_late {
                let lost = if found.is_some() { " (it was there, but no doorbell said so)" } else { "" };
                return Err(Failure::Hung {
                    case: self.case,
                    seconds: CASE_LIMIT.as_secs(),
                    what: format!("{what}{lost}"),
                });
            }
            if let Some(found) = found {
                self.waiter.busy();
                return Ok(found);
            }
            // What `look` has sent must be rung for before the wait.
            self.lane.flush();
            let left = self.deadline.saturating_duration_since(Instant::now());
            self.waiter.idle(&mut [&mut self.lane as &mut dyn Source, &mut self.notices], Some(left))?;
        }
    }

    /// Follows what becomes of the peer and the appliance.
    fn follow(&mut self) -> Result<(), Failure> {
        while let Some(notice) = self.notices.poll() {
            if notice == Notice::Shutdown {
                return Err(Failure::Interrupted { case: self.case });
            }
        }
        while let Some(change) = self.lane.change() {
            self.peer = match change {
                Change::Up(id) => Some(id),
                Change::Down(_) => None,
            };
        }
        Ok(())
    }

    /// The peer's living incarnation, as soon as there is one.
    pub(super) fn peer(&mut self) -> Result<DomainId, Failure> {
        self.until("peer", |judge| Ok(judge.peer))
    }

    /// The end of that incarnation, as the lane sees it.
    pub(super) fn until_down(&mut self, dead: DomainId) -> Result<(), Failure> {
        self.until("news of the peer's death", |judge| Ok((judge.peer != Some(dead)).then_some(())))
    }

    /// All loans back.
    pub(super) fn until_returned(&mut self) -> Result<(), Failure> {
        self.until("return of all loans", |judge| Ok((judge.lane.loans() == 0).then_some(())))
    }

    /// Gives an order if there is room: its number.
    pub(super) fn try_order(&mut self, order: Order, details: &Details) -> Result<Option<u32>, Failure> {
        let number = self.number.wrapping_add(1);
        let [first, second] = details.args;
        let head = Head { kind: order as u8, flags: details.flags, args: [number, first, second, !number] };
        match self.lane.send(head, details.payload.clone()) {
            Ok(()) => {
                self.number = number;
                Ok(Some(number))
            }
            Err(SendError::Full(_)) => Ok(None),
            Err(error) => Err(self.wrong(format!("order {order:?} cannot be sent: {error}"))),
        }
    }

    /// Gives an order as soon as there is room, and returns its number.
    pub(super) fn order(&mut self, order: Order, details: Details) -> Result<u32, Failure> {
        self.peer()?;
        let number = self.until("room for an order", |judge| judge.try_order(order, &details))?;
        self.lane.flush();
        Ok(number)
    }

    /// Waits for the next answer, which must be that to order `number`.
    pub(super) fn answer(&mut self, order: Order, number: u32) -> Result<Answer, Failure> {
        let (head, payload) = self.until(&format!("answer to {order:?}"), |judge| {
            if judge.peer.is_none() {
                return Err(judge.wrong(format!("the peer went down before it answered {order:?}")));
            }
            match judge.lane.recv() {
                Some(Ok(message)) => Ok(Some(message)),
                Some(Err(refusal)) => {
                    Err(judge.wrong(format!("the answer to {order:?} is refused: {}", refusal.error)))
                }
                None => Ok(None),
            }
        })?;
        let [got, args @ ..] = head.args;
        if head.kind != order as u8 || head.flags & ANSWER == 0 || got != number {
            return Err(self.wrong(format!("{head:?} came instead of the answer to {order:?} {number}")));
        }
        Ok(Answer { args, refused: head.flags & REFUSED != 0, payload })
    }

    /// Gives an order and waits for the answer.
    pub(super) fn ask(&mut self, order: Order, details: Details) -> Result<Answer, Failure> {
        let number = self.order(order, details)?;
        self.answer(order, number)
    }

    /// As [`Judge::ask`], and the answer must not be a refusal.
    pub(super) fn have(&mut self, order: Order, details: Details) -> Result<Answer, Failure> {
        let answer = self.ask(order, details)?;
        self.check(!answer.refused, &format!("{order:?} was refused"))?;
        Ok(answer)
    }

    /// An own buffer with the bytes of `seed`.
    pub(super) fn buffer(&self, seed: u32, len: usize) -> Result<Payload, Failure> {
        let mut buf = self.memory().alloc(len).map_err(|error| self.wrong(error.to_string()))?;
        buf.as_mut_slice().iter_mut().zip(script::pattern(seed)).for_each(|(byte, value)| *byte = value);
        Ok(buf.into_payload())
    }

    /// The digest of a payload as this domain sees it.
    pub(super) fn digest_of(&self, payload: &Payload) -> Result<u32, Failure> {
        script::digest_of(self.memory(), payload).map_err(|error| self.wrong(error.to_string()))
    }

    /// Keeps answering to the manager until the end of the appliance.
    pub(super) fn wait_for_shutdown(&mut self) -> Result<(), Failure> {
        loop {
            match self.follow() {
                Err(Failure::Interrupted { .. }) => return Ok(()),
                other => other?,
            }
            self.lane.flush();
            self.waiter.idle(&mut [&mut self.lane as &mut dyn Source, &mut self.notices], None)?;
        }
    }
}
