//! The fault-injecting layer: requests fail, vanish, tear or stall by rules, and a whole device can die.
//!
//! Rules are asked in order, and the first that applies decides. A request that is wrong in itself passes untouched.
//! With one seed and the same requests in the same order the same happens (all queues of a device share the rules, so with
//! several threads the order is theirs).

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use fido_core::foreign::Landing;
use fido_core::payload::Payload;
use fido_core::wait::{PeerView, Source, WakeId};

use super::Kind;
use super::delay::Spread;
use crate::finished::Finished;
use crate::queue::{BlockCompletion, BlockError, BlockOp, BlockQueue, Busy, Features, Geometry};
use crate::slab::Slab;
use fido_core::dice::Dice;
use fido_core::later::Later;

/// What a dead device answers: EIO.
const DEAD: BlockError = BlockError::Io { errno: libc::EIO };

/// What happens to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// It fails so, and nothing is done.
    Fail(BlockError),
    /// It succeeds, and nothing is done. Not for reads and extents, which have to return something.
    Lose,
    /// Of a write only the first blocks are written, at random how many (not all), and it succeeds. Only for writes.
    Tear,
    /// As [`Effect::Tear`], but then the device is dead, and the write fails: what a power failure does.
    Cut,
    /// It is carried out, but this much later.
    Stall(Spread),
    /// The device is dead from now on: this and all else fails with EIO.
    Die,
}

/// When something happens, and what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// To which kinds of requests.
    pub kinds: Vec<Kind>,
    /// Only to those that touch these bytes; flushes touch all.
    pub range: Range<u64>,
    /// So many of those pass first.
    pub after: u64,
    /// How often at most; `None`: always.
    pub times: Option<u64>,
    /// In how many of a million cases.
    pub millionths: u32,
    /// What then happens.
    pub effect: Effect,
}

impl Rule {
    /// What always happens to these kinds of requests, everywhere.
    pub fn always(kinds: &[Kind], effect: Effect) -> Self {
        Self { kinds: kinds.into(), range: 0..u64::MAX, after: 0, times: None, millionths: 1_000_000, effect }
    }

    /// Whether the rule is about such a request.
    fn covers(&self, op: &BlockOp) -> bool {
        let (offset, len, _) = op.extent();
        let kind = Kind::of(op);
        let able = match self.effect {
            Effect::Lose => !matches!(kind, Kind::Read | Kind::Extents),
            Effect::Tear | Effect::Cut => kind == Kind::Write,
            Effect::Fail(_) | Effect::Stall(_) | Effect::Die => true,
        };
        let touched = kind == Kind::Flush || offset < self.range.end && self.range.start < offset.saturating_add(len);
        able && touched && self.kinds.contains(&kind)
    }
}

/// The rules of one device, and whether it lives. Clones are the same.
#[derive(Debug, Clone)]
pub struct Faults(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    is_dead: AtomicBool,
    injected: AtomicU64,
}

#[derive(Debug)]
struct State {
    dice: Dice,
    rules: Vec<Rule>,
}

impl Faults {
    /// A living device with these rules; `seed` repeats the choices of a run.
    pub fn new(seed: u64, rules: Vec<Rule>) -> Self {
        let state = Mutex::new(State { dice: Dice::new(seed), rules });
        Self(Arc::new(Shared { state, is_dead: AtomicBool::new(false), injected: AtomicU64::new(0) }))
    }

    /// The device is dead from now on: all fails, what it has at the moment included.
    pub fn kill(&self) {
        self.0.is_dead.store(true, SeqCst);
    }

    /// It lives again, with what it has stored.
    pub fn revive(&self) {
        self.0.is_dead.store(false, SeqCst);
    }

    /// Whether it is dead.
    pub fn is_dead(&self) -> bool {
        self.0.is_dead.load(SeqCst)
    }

    /// To how many requests something has happened by a rule.
    pub fn injected(&self) -> u64 {
        self.0.injected.load(SeqCst)
    }

    /// Takes other rules from now on.
    pub fn set_rules(&self, rules: Vec<Rule>) {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).rules = rules;
    }

    /// What happens to a request, and a choice for it of 0 to `most`.
    fn decide(&self, op: &BlockOp, most: u64) -> Option<(Effect, u64, Spread)> {
        let mut guard = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { dice, rules } = &mut *guard;
        for rule in rules {
            if !rule.covers(op) || rule.times == Some(0) {
                continue;
            }
            if rule.after > 0 {
                rule.after -= 1;
                continue;
            }
            if dice.happens(rule.millionths) {
                rule.times = rule.times.map(|times| times - 1);
                self.0.injected.fetch_add(1, SeqCst);
                let wait = if let Effect::Stall(spread) = rule.effect { spread.pick(dice) } else { Default::default() };
                return Some((rule.effect.clone(), dice.roll(most), Spread::of(wait)));
            }
        }
        None
    }
}

/// A request that the wrapped queue has, or will have.
#[derive(Debug)]
struct Passing {
    id: u64,
    /// The device dies with it.
    cuts: bool,
}

/// What is asked of a queue.
#[derive(Debug)]
enum Asked {
    Op(BlockOp),
    /// A read into foreign memory: first byte, and where to.
    Into(u64, Landing),
}

/// A queue to which things happen.
#[derive(Debug)]
pub struct Fault<Q> {
    queue: Q,
    faults: Faults,
    passing: Slab<Passing>,
    stalled: Later<(u64, Asked)>,
    /// For which the wrapped queue has had no room.
    blocked: VecDeque<(Passing, Asked)>,
    finished: Finished,
}

impl<Q: BlockQueue> Fault<Q> {
    /// Lets `faults` happen to `queue`, on which nothing may be in flight.
    ///
    /// # Errors
    /// The kernel's, if there is no descriptor left.
    pub fn new(queue: Q, faults: Faults) -> io::Result<Self> {
        let stalled = Later::around(&queue)?;
        let (passing, blocked, finished) = (Slab::default(), VecDeque::new(), Finished::default());
        Ok(Self { queue, faults, passing, stalled, blocked, finished })
    }

    /// How many requests it has.
    fn count(&self) -> usize {
        self.passing.len() + self.stalled.len() + self.blocked.len() + self.finished.len()
    }

    fn pass(&mut self, passing: Passing, asked: Asked) {
        let number = self.passing.insert(passing);
        let refused = match asked {
            Asked::Op(op) => self.queue.submit(number, op).err().map(|Busy(op)| Asked::Op(op)),
            Asked::Into(offset, landing) => {
                self.queue.read_into(number, offset, landing).err().map(|landing| Asked::Into(offset, landing))
            }
        };
        if let Some(asked) = refused
            && let Some(passing) = self.passing.remove(number)
        {
            self.blocked.push_back((passing, asked));
        }
    }

    fn meet_fate(&mut self, id: u64, op: BlockOp) {
        // Of a write the number of its blocks but one; all else has no such choice.
        let block = u64::from(self.queue.geometry().block);
        let most = (op.payload_bytes() / block).saturating_sub(1);
        let Some((effect, choice, wait)) = self.faults.decide(&op, most) else {
            return self.pass(Passing { id, cuts: false }, Asked::Op(op));
        };
        match effect {
            Effect::Fail(error) => self.finished.push(id, Err(error)),
            Effect::Lose => self.finished.push(id, Ok(Payload::new())),
            Effect::Tear | Effect::Cut => self.tear(id, op, choice * block, effect == Effect::Cut),
            Effect::Stall(_) => self.stalled.push(Instant::now() + wait.least, (id, Asked::Op(op))),
            Effect::Die => {
                self.faults.kill();
                self.finished.push(id, Err(DEAD));
            }
        }
    }

    /// Writes the first `len` bytes of a write.
    fn tear(&mut self, id: u64, op: BlockOp, len: u64, cuts: bool) {
        match op {
            BlockOp::Write { offset, mut data, durable } if len > 0 => {
                let data = data.split_to(len);
                self.pass(Passing { id, cuts }, Asked::Op(BlockOp::Write { offset, data, durable }));
            }
            _ if cuts => {
                self.faults.kill();
                self.finished.push(id, Err(DEAD));
            }
            _ => self.finished.push(id, Ok(Payload::new())),
        }
    }
}

impl<Q: BlockQueue> BlockQueue for Fault<Q> {
    fn geometry(&self) -> Geometry {
        self.queue.geometry()
    }

    fn features(&self) -> Features {
        self.queue.features()
    }

    fn resized(&mut self) -> Option<Geometry> {
        self.queue.resized()
    }

    fn submit(&mut self, id: u64, op: BlockOp) -> Result<(), Busy> {
        if self.count() >= self.queue.geometry().depth as usize {
            return Err(Busy(op));
        }
        if self.faults.is_dead() {
            self.finished.push(id, Err(DEAD));
        } else if self.queue.geometry().check(&op).is_err() {
            self.pass(Passing { id, cuts: false }, Asked::Op(op));
        } else {
            self.meet_fate(id, op);
        }
        Ok(())
    }

    fn reaches_foreign(&self) -> bool {
        self.queue.reaches_foreign()
    }

    fn read_into(&mut self, id: u64, offset: u64, landing: Landing) -> Result<(), Landing> {
        if !self.queue.reaches_foreign() || self.count() >= self.queue.geometry().depth as usize {
            return Err(landing);
        }
        if self.faults.is_dead() {
            self.finished.push(id, Err(DEAD));
            return Ok(());
        }
        // To the rules it is the read that it is; one that is wrong in itself is the wrapped queue's to refuse.
        let is_right = self.queue.geometry().check_read_into(offset, &landing).is_ok();
        let read = u32::try_from(landing.len()).ok().filter(|_| is_right).map(|len| BlockOp::Read { offset, len });
        let asked = Asked::Into(offset, landing);
        match read.and_then(|read| self.faults.decide(&read, 0)) {
            Some((Effect::Fail(error), ..)) => self.finished.push(id, Err(error)),
            Some((Effect::Stall(_), _, wait)) => self.stalled.push(Instant::now() + wait.least, (id, asked)),
            Some((Effect::Die, ..)) => {
                self.faults.kill();
                self.finished.push(id, Err(DEAD));
            }
            // The other effects are none on reads.
            _ => self.pass(Passing { id, cuts: false }, asked),
        }
        Ok(())
    }

    fn poll(&mut self) -> Option<BlockCompletion> {
        let mut passed = false;
        for _ in 0..self.blocked.len() {
            if let Some((passing, op)) = self.blocked.pop_front() {
                self.pass(passing, op);
                passed = true;
            }
        }
        while let Some((id, op)) = self.stalled.pop() {
            if self.faults.is_dead() {
                self.finished.push(id, Err(DEAD));
                continue;
            }
            self.pass(Passing { id, cuts: false }, op);
            passed = true;
        }
        if passed {
            self.queue.flush_submissions();
        }
        if let Some(completion) = self.finished.pop() {
            return Some(completion);
        }
        loop {
            let BlockCompletion { id, result } = self.queue.poll()?;
            // A queue that ends what it was not given ends nothing of its user's.
            let Some(Passing { id, cuts }) = self.passing.remove(id) else { continue };
            if cuts {
                self.faults.kill();
            }
            let result = if self.faults.is_dead() { Err(DEAD) } else { result };
            return Some(BlockCompletion { id, result });
        }
    }

    fn flush_submissions(&mut self) {
        self.queue.flush_submissions();
    }
}

impl<Q: BlockQueue> Source for Fault<Q> {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.stalled.fd()
    }

    fn wake_id(&self) -> Option<WakeId> {
        Some(self.stalled.id())
    }

    fn arm(&mut self) {
        self.queue.arm();
        self.stalled.arm();
    }

    fn ready(&mut self) -> bool {
        !self.finished.is_empty() || self.stalled.is_due() || self.queue.ready()
    }

    fn disarm(&mut self) {
        self.queue.disarm();
        self.stalled.disarm();
    }

    fn meet(&mut self, seat: Option<u32>) -> Option<PeerView> {
        self.queue.meet(seat)
    }
}
