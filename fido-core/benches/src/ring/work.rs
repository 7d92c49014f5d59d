//! Pieces of work that the two sides do together: the leading side says which, both do their part.

use std::hint::black_box;
use std::time::{Duration, Instant};

use fido_core::ring::{MESSAGE_WORDS, Words};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::channel::{self, Channel, Duty, Via};
use super::end::End;
use super::{fan, lanes, loans};
use crate::{Failure, machine};

/// A piece of work.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum Work {
    /// So many times: a batch there, and as many messages back when it has arrived.
    Exchange { via: Via, batch: u32, count: u32 },
    /// So many messages there, in batches, and one back when all have arrived.
    Stream { via: Via, batch: u32, count: u32 },
    /// So many loans of so many bytes.
    Loans(loans::Loans),
    /// Messages over several lanes.
    Lanes(lanes::Lanes),
    /// Requests over many links.
    Fan(fan::Requests),
    /// The other side moves to that core.
    Move { core: usize },
    /// That was all.
    Done,
}

/// What the leading side says next, and what the other one answers.
#[derive(Debug, Serialize, Deserialize)]
pub enum Say {
    /// Do your part.
    Work(Work),
    /// From now on.
    Ready,
}

impl Work {
    /// Does the leading side's part; single exchanges go into the histogram in nanoseconds. How long all took.
    pub fn lead(&self, end: &mut End, core: Option<usize>, into: &mut Histogram<u64>) -> Result<Duration, Failure> {
        let mut began = Instant::now();
        match *self {
            Self::Exchange { via, batch, count } if via.is_local() => {
                let lead = LeadExchange { batch, count, into };
                channel::threads::with(via, core, lead, FollowExchange { batch, count })?;
            }
            Self::Exchange { via, batch, count } => {
                channel::with(via, end, LeadExchange { batch, count, into })?;
            }
            Self::Stream { via, batch, count } if via.is_local() => {
                let lead = LeadStream { batch, count, began: &mut began };
                channel::threads::with(via, core, lead, FollowStream { count })?;
            }
            Self::Stream { via, batch, count } => {
                channel::with(via, end, LeadStream { batch, count, began: &mut began })?;
            }
            Self::Loans(loans) => loans.lead(end)?,
            Self::Lanes(lanes) => lanes.lead(end)?,
            Self::Fan(requests) => requests.serve(end)?,
            Self::Move { .. } | Self::Done => {}
        }
        Ok(began.elapsed())
    }

    /// Does the other side's part.
    pub fn follow(&self, end: &mut End) -> Result<(), Failure> {
        match *self {
            Self::Exchange { via, .. } | Self::Stream { via, .. } if via.is_local() => Ok(()),
            Self::Exchange { via, batch, count } => channel::with(via, end, FollowExchange { batch, count }),
            Self::Stream { via, count, .. } => channel::with(via, end, FollowStream { count }),
            Self::Loans(loans) => loans.follow(end),
            Self::Lanes(lanes) => lanes.follow(end),
            Self::Fan(requests) => requests.ask(end),
            Self::Move { core } => machine::pin(Some(core)),
            Self::Done => Ok(()),
        }
    }
}

/// The message with that number.
#[inline]
fn message(number: u32) -> Words {
    [number; MESSAGE_WORDS]
}

/// Receives the message with that number.
#[inline]
fn expect<C: Channel>(channel: &mut C, number: u32) -> Result<(), Failure> {
    let mut message = [0; MESSAGE_WORDS];
    channel.receive(&mut message)?;
    match black_box(&message)[0] {
        found if found == number => Ok(()),
        found => Err(wrong(number, found)),
    }
}

#[cold]
fn wrong(number: u32, found: u32) -> Failure {
    format!("message {found} instead of {number} arrived").into()
}

struct LeadExchange<'a> {
    batch: u32,
    count: u32,
    into: &'a mut Histogram<u64>,
}

impl Duty for LeadExchange<'_> {
    fn perform<C: Channel>(self, channel: &mut C) -> Result<(), Failure> {
        let mut number = 0;
        for _ in 0..self.count {
            let began = Instant::now();
            (number..number + self.batch).try_for_each(|number| channel.send(&message(number)))?;
            channel.flush()?;
            (number..number + self.batch).try_for_each(|number| expect(channel, number))?;
            self.into.record(began.elapsed().as_nanos().try_into()?)?;
            number += self.batch;
        }
        channel.flush()
    }
}

struct FollowExchange {
    batch: u32,
    count: u32,
}

impl Duty for FollowExchange {
    fn perform<C: Channel>(self, channel: &mut C) -> Result<(), Failure> {
        let mut number = 0;
        for _ in 0..self.count {
            (number..number + self.batch).try_for_each(|number| expect(channel, number))?;
            (number..number + self.batch).try_for_each(|number| channel.send(&message(number)))?;
            channel.flush()?;
            number += self.batch;
        }
        Ok(())
    }
}

struct LeadStream<'a> {
    batch: u32,
    count: u32,
    /// When the other side was there and the stream began.
    began: &'a mut Instant,
}

impl Duty for LeadStream<'_> {
    fn perform<C: Channel>(self, channel: &mut C) -> Result<(), Failure> {
        greet(channel)?;
        *self.began = Instant::now();
        let mut number = 0;
        while number < self.count {
            let end = self.count.min(number + self.batch);
            (number..end).try_for_each(|number| channel.send(&message(number)))?;
            channel.flush()?;
            number = end;
        }
        expect(channel, GREETINGS)
    }
}

/// Exchanges before a stream: both sides have started, and have touched all that they will.
const GREETINGS: u32 = 256;

fn greet<C: Channel>(channel: &mut C) -> Result<(), Failure> {
    (0..GREETINGS).try_for_each(|number| {
        channel.send(&message(number))?;
        channel.flush()?;
        expect(channel, number)
    })
}

struct FollowStream {
    count: u32,
}

impl Duty for FollowStream {
    fn perform<C: Channel>(self, channel: &mut C) -> Result<(), Failure> {
        FollowExchange { batch: 1, count: GREETINGS }.perform(channel)?;
        (0..self.count).try_for_each(|number| expect(channel, number))?;
        channel.send(&message(GREETINGS))?;
        channel.flush()
    }
}
