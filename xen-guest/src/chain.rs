//! The guests' part in the scenario `destroy`: bytes are lent from the top over the middle to the bottom, by address.
//!
//! ```text
//! top ──"upper"── middle ──"lower"── bottom        bottom has a window on top's arena
//! ```
//!
//! The top fills a page, lends it, and expects the bottom's digest of it; the middle passes both on and touches nothing.
//! Where a neighbour dies, a question is lost or asked again; a wrong digest never comes. The top says in its notes how
//! many rounds it has had (in this life); with the parameter `die-after`, its first life ends by SIGKILL after so many.

use std::io;
use std::time::Duration;

use fido_core::domain::{Domain, Notice};
use fido_core::lane::{Change, Lane, SendError};
use fido_core::memory::Memory;
use fido_core::message::Head;
use fido_core::payload::Payload;
use fido_core::wait::Source;
use rustix::process::Signal;

/// The domains' names.
pub const ROLES: [&str; 3] = ["top", "middle", "bottom"];
/// The links' names.
pub const LINKS: [&str; 2] = ["upper", "lower"];
/// The top's note of its rounds.
pub const ROUNDS: &str = "rounds";
/// The top's parameter.
pub const DIE_AFTER: &str = "die-after";

/// So often the top says how far it is.
const REPORT_EVERY: u32 = 10;
const PAGE: usize = 4096;
/// A pause after each round: the scenario is about deaths, and others need the machine, too.
const PAUSE: Duration = Duration::from_millis(5);
/// A pause after a question that was lost: whoever is missing boots, and needs the machine more than who asks in vain.
const LOST_PAUSE: Duration = Duration::from_millis(50);

/// `[round]`, with the page.
const QUESTION: u8 = 1;
/// `[round, digest]`.
const ANSWER: u8 = 2;
/// `[round]`: it was lost on the way.
const LOST: u8 = 3;

/// Plays the role that is the domain's name, until the shutdown.
///
/// # Errors
/// What the domain or its lanes say, or a digest that is wrong.
pub fn run() -> io::Result<()> {
    let domain = Domain::join().map_err(io::Error::other)?;
    let lane = |link| domain.take_lane(link, 0).map_err(io::Error::other);
    match domain.name() {
        "top" => {
            let dies: u32 = domain.param(DIE_AFTER, 0).map_err(io::Error::other)?;
            let is_first = domain.assignment().id.generation == 1;
            let top =
                Top { lane: lane(LINKS[0])?, is_up: false, asked: None, round: 0, dies: dies * u32::from(is_first) };
            serve(&domain, top)
        }
        "middle" => serve(&domain, Middle { upper: lane(LINKS[0])?, lower: lane(LINKS[1])?, passed: None }),
        "bottom" => serve(&domain, Bottom(lane(LINKS[1])?)),
        other => Err(io::Error::other(format!("no role is called {other:?}"))),
    }
}

/// A role: what it does with what has come, and the lanes that it waits for.
trait Role {
    /// Whether there was anything to do.
    fn step(&mut self, domain: &Domain) -> io::Result<bool>;
    fn lanes(&mut self) -> Vec<&mut Lane>;
    /// The longest time to wait.
    fn pause(&self) -> Option<Duration> {
        None
    }
}

fn serve(domain: &Domain, mut role: impl Role) -> io::Result<()> {
    let (mut notices, mut waiter) = (domain.notices()?, domain.waiter()?);
    domain.ready(&[]).map_err(io::Error::other)?;
    loop {
        while let Some(notice) = notices.poll() {
            if notice == Notice::Shutdown {
                return Ok(());
            }
        }
        let worked = role.step(domain)?;
        role.lanes().into_iter().for_each(Lane::flush);
        if worked {
            waiter.busy();
            continue;
        }
        let pause = role.pause();
        let mut sources: Vec<&mut dyn Source> = vec![&mut notices];
        sources.extend(role.lanes().into_iter().map(|lane| lane as &mut dyn Source));
        waiter.idle(&mut sources, pause)?;
    }
}

fn head(kind: u8, args: [u32; 2]) -> Head {
    Head { kind, flags: 0, args: [args[0], args[1], 0, 0] }
}

/// Sends; what finds no peer is lost, as its sender will learn.
fn send(lane: &mut Lane, head: Head, payload: Payload) -> io::Result<bool> {
    match lane.send(head, payload) {
        Ok(()) => Ok(true),
        Err(SendError::Down(_)) => Ok(false),
        // One message is under way at a time.
        Err(error) => Err(io::Error::other(error)),
    }
}

/// FNV-1a, 32 bits.
fn digest(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

struct Top {
    lane: Lane,
    is_up: bool,
    /// The digest that is expected.
    asked: Option<u32>,
    round: u32,
    /// After so many rounds; never if 0.
    dies: u32,
}

impl Role for Top {
    fn step(&mut self, domain: &Domain) -> io::Result<bool> {
        while let Some(change) = self.lane.change() {
            self.is_up = matches!(change, Change::Up(_));
            self.asked = None;
        }
        if let Some(message) = self.lane.recv() {
            let (head, _) = message.map_err(|refusal| io::Error::other(format!("a refused answer: {refusal:?}")))?;
            self.take(head, domain)?;
        }
        if !self.is_up || self.asked.is_some() {
            return Ok(false);
        }
        let mut page = self.lane.memory().alloc(PAGE).map_err(io::Error::other)?;
        let round = self.round.to_le_bytes();
        page.as_mut_slice()
            .iter_mut()
            .zip(0_usize..)
            .for_each(|(byte, at)| *byte = round[at % 4].wrapping_add(at as u8));
        let expected = digest(page.as_mut_slice());
        if send(&mut self.lane, head(QUESTION, [self.round, 0]), page.into_payload())? {
            self.asked = Some(expected);
        }
        // Not at once again: see `PAUSE`.
        Ok(false)
    }

    fn lanes(&mut self) -> Vec<&mut Lane> {
        vec![&mut self.lane]
    }

    fn pause(&self) -> Option<Duration> {
        Some(PAUSE)
    }
}

impl Top {
    fn take(&mut self, head: Head, domain: &Domain) -> io::Result<()> {
        let expected = self.asked.take();
        match (head.kind, expected) {
            (LOST, _) => {
                std::thread::sleep(LOST_PAUSE);
                return Ok(());
            }
            (ANSWER, Some(expected)) if head.args[..2] == [self.round, expected] => {}
            _ => return Err(io::Error::other(format!("{head:?} in round {}, expected {expected:?}", self.round))),
        }
        self.round += 1;
        if self.round == self.dies {
            // As `kill -9` does it: in the middle of everything.
            rustix::process::kill_process(rustix::process::getpid(), Signal::KILL)?;
        }
        if self.round % REPORT_EVERY == 1 {
            domain.ready(&[(ROUNDS, self.round.to_string())]).map_err(io::Error::other)?;
        }
        Ok(())
    }
}

struct Middle {
    upper: Lane,
    lower: Lane,
    /// The round that the bottom has been asked for.
    passed: Option<u32>,
}

impl Role for Middle {
    fn step(&mut self, _: &Domain) -> io::Result<bool> {
        let mut worked = false;
        while let Some(change) = self.upper.change() {
            // A new top has asked nothing yet, and nobody waits for what the old one asked.
            (worked, self.passed) = (true, self.passed.filter(|_| matches!(change, Change::Up(_))));
        }
        while let Some(change) = self.lower.change() {
            worked = true;
            if let (Change::Down(_), Some(round)) = (change, self.passed.take()) {
                send(&mut self.upper, head(LOST, [round, 0]), Payload::new())?;
            }
        }
        if let Some(message) = self.upper.recv() {
            worked = true;
            let (question, payload) = message.map_err(|refusal| io::Error::other(format!("refused: {refusal:?}")))?;
            let round = question.args[0];
            if send(&mut self.lower, question, payload)? {
                self.passed = Some(round);
            } else {
                send(&mut self.upper, head(LOST, [round, 0]), Payload::new())?;
            }
        }
        if let Some(message) = self.lower.recv() {
            worked = true;
            let (answer, _) = message.map_err(|refusal| io::Error::other(format!("refused: {refusal:?}")))?;
            // The answer to a question of a top that is dead concerns nobody.
            if self.passed.take() == Some(answer.args[0]) {
                send(&mut self.upper, answer, Payload::new())?;
            }
        }
        Ok(worked)
    }

    fn lanes(&mut self) -> Vec<&mut Lane> {
        vec![&mut self.upper, &mut self.lower]
    }
}

struct Bottom(Lane);

impl Role for Bottom {
    fn step(&mut self, _: &Domain) -> io::Result<bool> {
        let mut worked = false;
        while self.0.change().is_some() {
            worked = true;
        }
        let Some(message) = self.0.recv() else { return Ok(worked) };
        let answer = match &message {
            Ok((question, payload)) => head(ANSWER, [question.args[0], digest(&read(self.0.memory(), payload)?)]),
            // An address of a top that is dead and fenced by now.
            Err(refusal) => head(LOST, [refusal.head.args[0], 0]),
        };
        send(&mut self.0, answer, Payload::new())?;
        Ok(true)
    }

    fn lanes(&mut self) -> Vec<&mut Lane> {
        vec![&mut self.0]
    }
}

/// What a payload says, read where it lies.
fn read(memory: &Memory, payload: &Payload) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; PAGE];
    let count = memory.copy_to_slice(payload, &mut bytes).map_err(io::Error::other)?;
    bytes.truncate(count);
    Ok(bytes)
}
