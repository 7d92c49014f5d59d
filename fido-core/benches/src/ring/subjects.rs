//! What is measured: each subject has a leading part, which is timed, and a following part, which answers.

use std::time::{Duration, Instant};

use fido_core::lane::{Lane, SendError};
use fido_core::message::Head;
use fido_core::payload::Payload;
use fido_core::ring::{MESSAGE_WORDS, Words};
use hdrhistogram::Histogram;
use rustix::net::{RecvFlags, SendFlags};

use super::setup::{End, SLOTS};
use crate::Failure;

/// How long one side waits for the other before it takes it for dead.
const PATIENCE: Duration = Duration::from_secs(20);
/// Payload of the round trip with a loan.
const LOAN_BYTES: usize = 4096;
/// What a message without meaning looks like to the kernel.
const PACKET: [u8; 64] = [7; 64];
const HEAD: Head = Head { kind: 1, flags: 0, args: [0; 4] };

/// A round trip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trip {
    /// Reading the clock once: this much is in every other result.
    Clock,
    /// Each side writes its line when it has seen the other's: two cache lines change hands. The physical floor.
    Floor,
    /// A message through a bare ring and one back.
    Ring,
    /// An empty message through a lane and one back.
    Lane,
    /// A message with a loan, and one back that returns it.
    Loan,
    /// 64 bytes through a Unix socket (packets) and back.
    Socket,
    /// Wake and be woken by eventfds.
    Event,
}

/// All round trips, in the order of the table.
pub const TRIPS: [Trip; 7] = [Trip::Clock, Trip::Floor, Trip::Ring, Trip::Lane, Trip::Loan, Trip::Socket, Trip::Event];

impl Trip {
    /// For the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Clock => "clock read (is in every figure below)",
            Self::Floor => "two cache lines: the floor",
            Self::Ring => "ring",
            Self::Lane => "lane",
            Self::Loan => "lane with a 4 KiB loan",
            Self::Socket => "Unix socket, 64 B packets",
            Self::Event => "eventfd",
        }
    }

    /// How many in a round.
    fn count(self) -> u32 {
        if matches!(self, Self::Socket | Self::Event) { 1_000 } else { 20_000 }
    }

    /// Makes the trips and records each, in nanoseconds.
    pub fn lead(self, end: &mut End, into: &mut Histogram<u64>) -> Result<(), Failure> {
        match self {
            Self::Clock => timed(self.count(), into, |_| Ok(())),
            Self::Floor => {
                let (_, _, own, other) = end.ring();
                timed(self.count(), into, |n| {
                    own.session.publish(n);
                    spin("an answer", || (other.session.read() == n).then_some(()))
                })
            }
            Self::Ring => timed(self.count(), into, |_| {
                push(end)?;
                pop(end)
            }),
            Self::Lane => timed(self.count(), into, |_| {
                send(&mut end.lane, Payload::new())?;
                end.lane.flush();
                receive(&mut end.lane).map(drop)
            }),
            Self::Loan => {
                let payload = end.memory.alloc(LOAN_BYTES)?.into_payload();
                timed(self.count(), into, |_| {
                    send(&mut end.lane, payload.clone())?;
                    end.lane.flush();
                    receive(&mut end.lane).map(drop)
                })
            }
            Self::Socket => timed(self.count(), into, |_| {
                rustix::net::send(&end.socket, &PACKET, SendFlags::empty())?;
                receive_packet(end)
            }),
            Self::Event => timed(self.count(), into, |_| {
                rustix::io::write(&end.other_event, &1u64.to_ne_bytes())?;
                Ok(rustix::io::read(&end.own_event, &mut [0; 8]).map(drop)?)
            }),
        }
    }

    /// Answers as many.
    pub fn follow(self, end: &mut End) -> Result<(), Failure> {
        for n in 1..=self.count() {
            match self {
                Self::Clock => return Ok(()),
                Self::Floor => {
                    let (_, _, own, other) = end.ring();
                    spin("a word", || (other.session.read() == n).then_some(()))?;
                    own.session.publish(n);
                }
                Self::Ring => {
                    pop(end)?;
                    push(end)?;
                }
                Self::Lane | Self::Loan => {
                    drop(receive(&mut end.lane)?);
                    send(&mut end.lane, Payload::new())?;
                    end.lane.flush();
                }
                Self::Socket => {
                    receive_packet(end)?;
                    rustix::net::send(&end.socket, &PACKET, SendFlags::empty())?;
                }
                Self::Event => {
                    rustix::io::read(&end.own_event, &mut [0; 8])?;
                    rustix::io::write(&end.other_event, &1u64.to_ne_bytes())?;
                }
            }
        }
        Ok(())
    }
}

/// Messages one way, as many as go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rate {
    /// Empty messages through a lane, with a flush after so many.
    Lane { batch: u32 },
    /// Messages through a bare ring.
    Ring,
    /// Loans of so many bytes, given, taken, and returned; nobody touches the bytes.
    Loans { bytes: u32 },
    /// 64 bytes through a Unix socket.
    Socket,
}

/// All rates, in the order of the table.
pub const RATES: [Rate; 8] = [
    Rate::Ring,
    Rate::Lane { batch: 1 },
    Rate::Lane { batch: 16 },
    Rate::Lane { batch: 64 },
    Rate::Loans { bytes: 64 },
    Rate::Loans { bytes: 64 << 10 },
    Rate::Loans { bytes: 1 << 20 },
    Rate::Socket,
];

impl Rate {
    /// For the table.
    pub fn name(self) -> String {
        match self {
            Self::Lane { batch } => format!("lane, 64-byte messages, batches of {batch}"),
            Self::Ring => "ring, 64-byte messages".into(),
            Self::Loans { bytes } if bytes < 1024 => format!("lane, loans of {bytes} B"),
            Self::Loans { bytes } => format!("lane, loans of {} KiB, untouched", bytes >> 10),
            Self::Socket => "Unix socket, 64 B packets".into(),
        }
    }

    /// How many messages in a round.
    pub fn count(self) -> u32 {
        if self == Self::Socket { 10_000 } else { 100_000 }
    }

    /// Sends them all, and waits until the last has arrived (loans: until all have been returned).
    pub fn lead(self, end: &mut End) -> Result<(), Failure> {
        match self {
            Self::Ring => {
                (0..self.count()).try_for_each(|_| push(end))?;
                pop(end)
            }
            Self::Lane { batch } => {
                for n in 1..=self.count() {
                    send(&mut end.lane, Payload::new())?;
                    if n % batch == 0 {
                        end.lane.flush();
                    }
                }
                end.lane.flush();
                receive(&mut end.lane).map(drop)
            }
            Self::Loans { bytes } => {
                let payload = end.memory.alloc(bytes as usize)?.into_payload();
                for n in 1..=self.count() {
                    send(&mut end.lane, payload.clone())?;
                    if n % 16 == 0 {
                        end.lane.flush();
                    }
                }
                let lane = &mut end.lane;
                spin("the return of loans", || {
                    lane.flush();
                    (lane.loans() == 0).then_some(())
                })?;
                receive(lane).map(drop)
            }
            Self::Socket => {
                for _ in 0..self.count() {
                    rustix::net::send(&end.socket, &PACKET, SendFlags::empty())?;
                }
                receive_packet(end)
            }
        }
    }

    /// Takes them all, and says so.
    pub fn follow(self, end: &mut End) -> Result<(), Failure> {
        match self {
            Self::Ring => {
                (0..self.count()).try_for_each(|_| pop(end))?;
                push(end)
            }
            Self::Lane { .. } | Self::Loans { .. } => {
                for n in 1..=self.count() {
                    drop(receive(&mut end.lane)?);
                    if n % 16 == 0 {
                        end.lane.flush();
                    }
                }
                send(&mut end.lane, Payload::new())?;
                end.lane.flush();
                Ok(())
            }
            Self::Socket => {
                (0..self.count()).try_for_each(|_| receive_packet(end))?;
                rustix::net::send(&end.socket, &PACKET, SendFlags::empty())?;
                Ok(())
            }
        }
    }
}

/// Makes `count` trips and records each.
fn timed(
    count: u32,
    into: &mut Histogram<u64>,
    mut trip: impl FnMut(u32) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut before = Instant::now();
    for n in 1..=count {
        trip(n)?;
        let now = Instant::now();
        into.record((now - before).as_nanos().try_into()?)?;
        // The recording is not part of the trip.
        before = Instant::now();
    }
    Ok(())
}

/// Looks until there is something. Without pause instructions: they would be the resolution of the result.
pub fn spin<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T, Failure> {
    /// So many looks between two looks at the clock.
    const ROUNDS: u32 = 1 << 20;
    let mut since = None;
    loop {
        for _ in 0..ROUNDS {
            if let Some(found) = look() {
                return Ok(found);
            }
        }
        if since.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
            return Err(format!("the other side is gone or stuck: no {what} for {PATIENCE:?}").into());
        }
        // On a single core the other side needs ours.
        std::thread::yield_now();
    }
}

fn push(end: &mut End) -> Result<(), Failure> {
    let message: Words = [1; MESSAGE_WORDS];
    let (tx, _, _, other) = end.ring();
    if tx.push(&message) {
        return Ok(());
    }
    spin("room", || match tx.refresh(&other.credit) {
        Ok(()) => tx.push(&message).then_some(Ok(())),
        Err(error) => Some(Err(error.into())),
    })?
}

fn pop(end: &mut End) -> Result<(), Failure> {
    let (_, rx, own, _) = end.ring();
    spin("a message", || rx.pop())?;
    if rx.owes_credit() {
        rx.publish_credit(&own.credit);
    }
    Ok(())
}

fn send(lane: &mut Lane, payload: Payload) -> Result<(), Failure> {
    let mut next = Some(payload);
    spin("room", || match lane.send(HEAD, next.take()?) {
        Ok(()) => Some(Ok(())),
        Err(SendError::Full(payload)) => {
            next = Some(payload);
            lane.flush();
            None
        }
        Err(error) => Some(Err(error.into())),
    })?
}

fn receive(lane: &mut Lane) -> Result<Payload, Failure> {
    match spin("a message", || lane.recv())? {
        Ok((_, payload)) => Ok(payload),
        Err(refusal) => Err(refusal.error.into()),
    }
}

fn receive_packet(end: &End) -> Result<(), Failure> {
    let mut packet = [0; 64];
    match rustix::net::recv(&end.socket, &mut packet[..], RecvFlags::empty())? {
        (_, 0) => Err("the other side closed the socket".into()),
        _ => Ok(()),
    }
}

const _: () = assert!(SLOTS >= 64, "a batch fits into the ring");
