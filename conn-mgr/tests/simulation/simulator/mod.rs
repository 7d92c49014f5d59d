//! A deterministic simulator of whole appliances.
//!
//! The manager's decisions (`manager::state`), the domains' control, memory, lanes, rings, loans, quarantine and
//! fences are the real code over real shared memory. Simulated are the processes, the kernel's messages and bells, and
//! time: one thread takes one step after the other, chosen by a seeded generator, and everything that a real appliance
//! leaves to chance (who runs next, when a message or a bell arrives, who dies between which two operations) is such a
//! choice. The same seed gives the same run.
//!
//! * [`plan`]: what is drawn before the first step, and the mutations that must be found;
//! * [`world`]: the steps and the faults; [`brokerage`]: the manager's part of them;
//! * [`process`], [`component`], [`wild`]: what a domain does, by the rules and against them;
//! * [`platform`]: what takes the place of sockets and eventfds;
//! * [`ledger`]: the ground truth that everything is compared with; [`verdict`]: what must hold when all is at rest.
#![allow(dead_code, reason = "the tests and the example each use their part")]

mod brokerage;
mod component;
mod ledger;
mod plan;
mod platform;
mod process;
mod random;
mod verdict;
mod wild;
mod world;

use std::fmt;

pub use plan::{Mutation, Plan, Shape};
use world::World;

/// What happened in a run, or in many.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Coverage {
    pub steps: u64,
    pub sent: u64,
    pub deliveries: u64,
    pub forwards: u64,
    pub sessions: u64,
    /// Sessions that ended although both lived: one of them was wild.
    pub broken: u64,
    pub refusals: u64,
    pub crashes: u64,
    /// Several at once.
    pub massacres: u64,
    pub restarts: u64,
    /// Starts whose generation began again at 1.
    pub wraps: u64,
    pub stalls: u64,
    pub fences: u64,
    /// Survivors that had not passed a fence by its deadline.
    pub deadlines: u64,
    /// Domains that the manager killed for what they said.
    pub condemned: u64,
    /// Acts of wild domains, and how often one overwrote all of its arena.
    pub wild: u64,
    pub floods: u64,
    pub sleeps: u64,
    pub bells: u64,
}

impl Coverage {
    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        let Self { steps, sent, deliveries, forwards, sessions, broken, refusals, crashes, massacres, .. } = other;
        let Self { restarts, wraps, stalls, fences, deadlines, condemned, wild, floods, sleeps, bells, .. } = other;
        self.steps += steps;
        self.sent += sent;
        self.deliveries += deliveries;
        self.forwards += forwards;
        self.sessions += sessions;
        self.broken += broken;
        self.refusals += refusals;
        self.crashes += crashes;
        self.massacres += massacres;
        self.restarts += restarts;
        self.wraps += wraps;
        self.stalls += stalls;
        self.fences += fences;
        self.deadlines += deadlines;
        self.condemned += condemned;
        self.wild += wild;
        self.floods += floods;
        self.sleeps += sleeps;
        self.bells += bells;
    }
}

impl Coverage {
    /// Whether everything that can happen has happened.
    pub fn covers_everything(&self) -> bool {
        let Self { sent, deliveries, forwards, broken, refusals, massacres, wraps, stalls, fences, .. } = *self;
        let Self { deadlines, condemned, wild, floods, sleeps, bells, .. } = *self;
        let traffic = [sent, deliveries, forwards, sleeps, bells];
        let faults = [broken, refusals, massacres, wraps, stalls, fences, deadlines, condemned, wild, floods];
        traffic.iter().chain(&faults).all(|count| *count > 0)
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { steps, sent, deliveries, forwards, sessions, broken, refusals, crashes, massacres, .. } = self;
        let Self { restarts, wraps, stalls, fences, deadlines, condemned, wild, floods, sleeps, bells, .. } = self;
        writeln!(f, "{steps} steps; {sent} messages sent, {deliveries} taken, {forwards} of them forwarded")?;
        writeln!(f, "{sessions} ends of sessions begun, {broken} broken by the wild; {refusals} refusals")?;
        writeln!(f, "{crashes} crashes ({massacres} of several at once), {restarts} restarts, {wraps} over the wrap")?;
        writeln!(f, "{fences} fences, {deadlines} survivors late for one, {stalls} stalls, {condemned} condemned")?;
        writeln!(f, "{wild} wild acts, {floods} of them over a whole arena; {sleeps} sleeps, {bells} bells delivered")
    }
}

/// A promise that was broken.
#[derive(Debug, Clone)]
pub struct Failure {
    pub plan: Plan,
    /// The step after which it was seen.
    pub step: u64,
    pub what: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { seed, steps, shape, mutation, .. } = self.plan;
        writeln!(f, "seed {seed}, step {}: {}", self.step, self.what)?;
        write!(f, "replay: cargo run --release -p conn-mgr --example simulate -- --seed {seed} --steps {steps} ")?;
        write!(f, "--topology {shape}")?;
        let mutation = Mutation::ALL.iter().find(|(known, _)| Some(*known) == mutation);
        mutation.map_or(Ok(()), |(_, name)| write!(f, " --mutation {name}"))
    }
}

/// Runs a plan to its end.
///
/// # Errors
/// The first promise that was broken.
pub fn run(plan: Plan) -> Result<Coverage, Failure> {
    let mut world = World::new(plan);
    let outcome = world.run();
    let step = world.coverage.steps;
    match outcome {
        Ok(()) => Ok(world.coverage),
        Err(what) => Err(Failure { plan, step, what }),
    }
}

/// A failure of the same seed with fewer steps, as far as halving and then shaving finds one.
pub fn shrink(failure: Failure) -> Failure {
    let mut least = failure;
    loop {
        let steps = least.plan.steps;
        let shorter = [steps / 2, steps - steps / 8, steps - steps / 64, steps.saturating_sub(1)];
        let found = shorter
            .into_iter()
            .filter(|&fewer| fewer < steps)
            .find_map(|fewer| run(Plan { steps: fewer, trace: false, ..least.plan }).err());
        match found {
            Some(failure) => least = failure,
            None => return least,
        }
    }
}
