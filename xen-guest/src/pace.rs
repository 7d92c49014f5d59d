//! The guests' part in the scenario `ring`: what a lane between two guests takes, while both look without sleeping.
//!
//! `ping` asks and measures, `pong` answers. The figures are in ping's notes: nanoseconds for a message and its answer;
//! messages in a second, one way; bytes in a second that are lent and copied out where they arrive; and what the data
//! path of ping asked of the kernel meanwhile: doorbells, sleeps, system calls. The target is none. Then it goes on as in
//! [`crate::steady`]. A third guest, `idle`, sleeps all the time, to be compared with.

use std::io;
use std::time::Instant;

use fido_core::domain::{Domain, Notice};
use fido_core::lane::{Change, Lane, SendError};
use fido_core::message::Head;
use fido_core::payload::Payload;

use crate::steady;

/// The domains' names.
pub const ROLES: [&str; 3] = ["ping", "pong", "idle"];
/// The link's name.
pub const LINK: &str = "ring";
/// What ping notes, in the order of a table.
pub const NOTES: [&str; 6] =
    ["round-trip-ns", "messages-per-s", "lent-and-copied-mib-per-s", "bells-rung", "sleeps", "system-calls"];

const ROUNDS: u32 = 20_000;
const MESSAGES: u32 = 200_000;
const LOANS: u32 = 1_000;
const LOAN: usize = 64 << 10;

/// To be answered.
const ASK: u8 = 1;
/// Not to be answered.
const TELL: u8 = 2;

/// Plays the role that is the domain's name, until the shutdown.
///
/// # Errors
/// What the domain or its lane say.
pub fn run() -> io::Result<()> {
    let domain = Domain::join().map_err(io::Error::other)?;
    if domain.name() == ROLES[2] {
        return idle(&domain);
    }
    let mut lane = domain.take_lane(LINK, 0).map_err(io::Error::other)?;
    let mut notices = domain.notices()?;
    if domain.name() == ROLES[1] {
        domain.ready(&[]).map_err(io::Error::other)?;
        let mut out = vec![0; LOAN];
        while notices.poll() != Some(Notice::Shutdown) {
            answer(&mut lane, &mut out)?;
        }
        return Ok(());
    }
    while !matches!(lane.change(), Some(Change::Up(_))) {
        std::hint::spin_loop();
    }
    let notes = measure(&mut lane)?;
    let notes: Vec<_> = NOTES.into_iter().zip(notes.map(|value| value.to_string())).collect();
    steady::run(&domain, &mut lane, &mut notices, notes)
}

/// The third domain: does nothing, until the shutdown.
fn idle(domain: &Domain) -> io::Result<()> {
    let (mut notices, mut waiter) = (domain.notices()?, domain.waiter()?);
    domain.ready(&[]).map_err(io::Error::other)?;
    while notices.poll() != Some(Notice::Shutdown) {
        waiter.idle(&mut [&mut notices], None)?;
    }
    Ok(())
}

/// Answers what has come. `out` has room for what is lent.
///
/// # Errors
/// What the lane says.
pub fn answer(lane: &mut Lane, out: &mut [u8]) -> io::Result<()> {
    let _ = lane.change();
    while let Some(message) = lane.recv() {
        let (head, payload) = message.map_err(|refusal| io::Error::other(format!("refused: {refusal:?}")))?;
        if !payload.is_empty() {
            lane.memory().copy_to_slice(&payload, out).map_err(io::Error::other)?;
        }
        if head.kind == ASK {
            send(lane, head, Payload::new())?;
        }
    }
    lane.flush();
    Ok(())
}

/// Sends, if need be when there is room.
fn send(lane: &mut Lane, head: Head, mut payload: Payload) -> io::Result<()> {
    loop {
        match lane.send(head, payload) {
            Ok(()) => return Ok(()),
            Err(SendError::Full(back)) => payload = back,
            Err(error) => return Err(io::Error::other(error)),
        }
        lane.flush();
    }
}

/// Waits for the answer to the message with this number.
fn wait(lane: &mut Lane, number: u32) -> io::Result<()> {
    lane.flush();
    loop {
        match lane.recv() {
            Some(Ok((head, _))) if head.args[0] == number => return Ok(()),
            Some(other) => return Err(io::Error::other(format!("{other:?} instead of the answer to {number}"))),
            None if lane.change().is_some() => return Err(io::Error::other("the other side is gone")),
            None => std::hint::spin_loop(),
        }
    }
}

fn head(kind: u8, number: u32) -> Head {
    Head { kind, flags: 0, args: [number, 0, 0, 0] }
}

/// Asks and waits for the answer.
///
/// # Errors
/// What the lane says, or another answer.
pub fn ask(lane: &mut Lane, number: u32) -> io::Result<()> {
    send(lane, head(ASK, number), Payload::new())?;
    wait(lane, number)
}

fn measure(lane: &mut Lane) -> io::Result<[u64; 6]> {
    let memory = lane.memory().clone();
    for number in 0..ROUNDS / 10 {
        ask(lane, number)?;
    }
    let before = memory.stats().snapshot();
    let began = Instant::now();
    for number in 0..ROUNDS {
        ask(lane, number)?;
    }
    let round_trip = began.elapsed().as_nanos() as u64 / u64::from(ROUNDS);
    let began = Instant::now();
    for number in 0..MESSAGES {
        send(lane, head(TELL, number), Payload::new())?;
    }
    ask(lane, 0)?;
    let rate = (f64::from(MESSAGES) / began.elapsed().as_secs_f64()) as u64;
    let began = Instant::now();
    for number in 0..LOANS {
        let buf = loop {
            // Full until loans return, which receiving notices.
            match memory.alloc(LOAN) {
                Ok(buf) => break buf,
                Err(_) if lane.recv().is_none() && lane.change().is_none() => lane.flush(),
                Err(error) => return Err(io::Error::other(error)),
            }
        };
        send(lane, head(TELL, number), buf.into_payload())?;
    }
    ask(lane, 0)?;
    let mib = f64::from(LOANS) * LOAN as f64 / f64::from(1 << 20) / began.elapsed().as_secs_f64();
    let used = memory.stats().snapshot().since(&before);
    Ok([round_trip, rate, mib as u64, used.bells_rung, used.sleeps, used.syscalls])
}
