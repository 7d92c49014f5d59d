//! The world of a run: who may take the next step, and what faults come between.

use fido_core::addr::DomainId;
use fido_core::bell::Ringer;
use fido_core::domain::Control;
use fido_core::platform::Event;
use fido_core::platform::host::memory;

use conn_mgr::manager::state::Event as Decision;
use std::os::fd::AsFd;

use super::Coverage;
use super::brokerage::{ARENA_BYTES, Brokerage};
use super::ledger::Ledger;
use super::plan::{Appliance, Mutation, Plan};
use super::platform::{Said, Told, Wires};
use super::process::{Context, Process};
use super::random::Random;

/// Who can take a step.
#[derive(Debug, Clone, Copy)]
enum Actor {
    /// The component loop of a domain.
    Component(usize),
    /// Another thread of the component lets go of something.
    Release(usize),
    /// A domain takes in what the manager told it.
    Control(usize),
    /// The manager hears what a domain said.
    Manager(usize),
    /// A bell arrives.
    Bell(usize),
    /// A domain is started again.
    Restart(usize),
}

/// How many steps an appliance may take to come to rest.
const PATIENCE: u64 = 300_000;

pub struct World {
    pub plan: Plan,
    pub appliance: Appliance,
    pub random: Random,
    pub ledger: Ledger,
    pub coverage: Coverage,
    pub manager: Brokerage,
    pub processes: Vec<Option<Process>>,
    pub wires: Wires,
    /// No more faults; what is under way comes to its end.
    pub calm: bool,
    pub had_wild: bool,
}

impl World {
    pub fn new(plan: Plan) -> Self {
        let mut random = Random::new(plan.seed);
        let appliance = Appliance::draw(plan.shape, &mut random);
        Self {
            plan,
            random,
            ledger: Ledger::default(),
            coverage: Coverage::default(),
            manager: Brokerage::new(&appliance),
            processes: (0..appliance.topology.domains).map(|_| None).collect(),
            wires: Wires::default(),
            calm: false,
            had_wild: false,
            appliance,
        }
    }

    /// Takes the steps of the plan and then lets everything come to rest, twice.
    pub fn run(&mut self) -> Result<(), String> {
        while self.coverage.steps < self.plan.steps {
            self.fault();
            self.step()?;
        }
        self.calm_down();
        self.come_to_rest()?;
        self.check_rest()?;
        // The same appliance goes on working: what was lost before would show now.
        self.processes.iter_mut().flatten().for_each(|process| {
            process.quota += 4;
            process.notice();
        });
        self.come_to_rest()?;
        self.check_rest()
    }

    /// The wild die, the stalled go on, and there are no more faults.
    fn calm_down(&mut self) {
        self.calm = true;
        for index in 0..self.processes.len() {
            let Some(process) = &mut self.processes[index] else { continue };
            (process.stalled_until, process.deaf_until) = (0, 0);
            if process.rogue.is_some() {
                self.kill(index);
            }
        }
    }

    fn come_to_rest(&mut self) -> Result<(), String> {
        let limit = self.coverage.steps + PATIENCE;
        loop {
            while self.step()? {
                if self.coverage.steps > limit {
                    return Err(format!("no rest after {PATIENCE} steps: {}", self.describe()));
                }
            }
            // Only time goes on now.
            let late = self.manager.fences.keys().flat_map(|dead| self.manager.state.owing(*dead)).next();
            match (late, self.manager.fences.keys().next()) {
                (Some(id), _) => self.end_for_fence(id),
                (None, Some(dead)) => return Err(format!("nobody owes anything, but the fence of {dead} is open")),
                (None, None) => return Ok(()),
            }
            self.judge()?;
        }
    }

    fn judge(&self) -> Result<(), String> {
        self.ledger.verdict().map_or(Ok(()), Err)
    }

    /// One step of somebody. False if nobody can take one.
    fn step(&mut self) -> Result<bool, String> {
        let actors = self.actors();
        let Some(actor) = self.random.among(&actors) else {
            // Nobody can act: only time passes.
            self.coverage.steps += u64::from(!self.calm);
            return Ok(false);
        };
        let what = self.act(actor);
        self.coverage.steps += 1;
        if self.plan.trace {
            let index = match actor {
                Actor::Component(at) | Actor::Release(at) | Actor::Control(at) => {
                    self.processes[at].as_ref().map(|p| p.id)
                }
                _ => None,
            };
            let who = index.map_or(String::new(), |id| format!(" {id}"));
            eprintln!("{:6} {actor:?}{who}: {what}", self.coverage.steps);
        }
        self.judge()?;
        Ok(true)
    }

    fn actors(&self) -> Vec<Actor> {
        let mut actors = Vec::new();
        let now = self.coverage.steps;
        for (index, process) in self.processes.iter().enumerate() {
            if !self.manager.said[index].is_empty() {
                actors.push(Actor::Manager(index));
            }
            if self.manager.restarts[index] {
                actors.push(Actor::Restart(index));
            }
            let Some(process) = process.as_ref().filter(|process| process.stalled_until <= now) else { continue };
            if !process.is_asleep() {
                actors.extend([Actor::Component(index); 3]);
            }
            if !process.inbox.is_empty() && process.deaf_until <= now {
                actors.push(Actor::Control(index));
            }
            if process.held.iter().any(|held| held.onward.is_none()) {
                actors.push(Actor::Release(index));
            }
        }
        // A few at most, so that they arrive late when there are many.
        actors.extend((0..self.wires.len().min(2)).map(Actor::Bell));
        actors
    }

    fn act(&mut self, actor: Actor) -> String {
        let what = match actor {
            Actor::Component(index) => self.with(index, Process::turn),
            Actor::Release(index) => self.with(index, |process, cx| {
                process.release(cx);
                "lets go".into()
            }),
            Actor::Control(index) => self.take_in(index),
            Actor::Manager(index) => self.hear(index),
            Actor::Bell(_) => self.deliver_bell(),
            Actor::Restart(index) => {
                self.manager.restarts[index] = false;
                self.feed(Decision::Want(index));
                "is wanted".into()
            }
        };
        if let Actor::Component(index) | Actor::Release(index) | Actor::Control(index) = actor {
            self.collect(index);
        }
        what
    }

    fn with(&mut self, index: usize, act: impl FnOnce(&mut Process, &mut Context<'_>) -> String) -> String {
        let Self { random, ledger, coverage, plan, calm, processes, .. } = self;
        let mut cx = Context { random, ledger, coverage, mutation: plan.mutation, calm: *calm };
        processes[index].as_mut().map_or_else(String::new, |process| act(process, &mut cx))
    }

    /// Puts what a domain has said on its socket.
    pub fn collect(&mut self, index: usize) {
        if let Some(process) = &self.processes[index] {
            let mute = self.plan.mutation == Some(Mutation::NeverPass);
            let said = process.outbox.take().into_iter().filter(|said| !(mute && matches!(said, Said::Passed(_))));
            self.manager.said[index].extend(said.map(|said| (process.id, said)));
        }
    }

    fn deliver_bell(&mut self) -> String {
        let at = self.random.below(self.wires.len());
        let coalesced = self.random.one_in(2);
        let Some((whose, bell)) = self.wires.take(at, coalesced) else { return "none".into() };
        bell.ring();
        self.coverage.bells += 1;
        if let Some(process) = self.processes.iter_mut().flatten().find(|process| process.id == whose) {
            process.wake_if_rung();
        }
        format!("of {whose}")
    }

    /// A domain's control takes the next message of the manager in.
    fn take_in(&mut self, index: usize) -> String {
        let Some(process) = &mut self.processes[index] else { return "nobody".into() };
        let Some(told) = process.inbox.pop_front() else { return "nothing".into() };
        let (me, what) = (process.id, format!("{told:?}"));
        process.is_fresh = false;
        match told {
            Told::Peer(of, file) if self.plan.mutation == Some(Mutation::MapLate) && !self.random.one_in(8) => {
                process.outbox.say(Said::Mapped(of));
                process.inbox.push_back(Told::Peer(of, file));
            }
            Told::Peer(of, file) => match memory::open(file.as_fd(), of, ARENA_BYTES) {
                Ok(window) => {
                    let token = Box::new(self.ledger.mapped(me, of));
                    process.control.take_in(Event::Window(fido_core::testing::watched(window, token)));
                }
                Err(error) => self.ledger.violation(format!("{me} cannot map {of}: {error}")),
            },
            Told::Link(link, peer, bells) => {
                let cut = self.plan.mutation == Some(Mutation::NeverRing);
                let ringer = |bell| if cut { Wires::cut() } else { self.wires.ringer(peer, bell) };
                let ringers = bells.into_iter().map(ringer).collect();
                process.control.take_in(Event::Link { link, peer, ringers });
            }
            Told::Died(of) => {
                process.control.take_in(Event::Died(of));
                match self.plan.mutation {
                    Some(Mutation::PassAtOnce) => process.outbox.say(Said::Passed(of)),
                    Some(Mutation::NoQuarantine) => fence_at_once(process, of),
                    _ => {}
                }
            }
            Told::Fenced(of) => {
                self.ledger.fenced(me, of);
                let window = process.memory.windows().get(of);
                process.control.take_in(Event::Fenced(of));
                if let Some(window) = window.filter(|_| self.plan.mutation == Some(Mutation::KeepWindow)) {
                    process.memory.windows().insert(window);
                }
            }
        }
        process.wake_if_rung();
        what
    }

    /// Kills a process between two of its operations.
    pub fn kill(&mut self, index: usize) {
        self.collect(index);
        let Some(process) = self.processes[index].take() else { return };
        let id = process.id;
        self.ledger.died(id);
        process.held.iter().for_each(|held| self.ledger.read_by_one_less(&held.known));
        self.coverage.floods += process.rogue.as_ref().map_or(0, |rogue| rogue.floods);
        if process.is_fresh {
            // It may have died while it still handed over its arena and its bells.
            let said = self.random.below(self.manager.said[index].len() + 1);
            self.manager.said[index].truncate(said);
        }
        drop(process);
        self.manager.said[index].push_back((id, Said::Gone));
        if self.plan.trace {
            eprintln!("{:6} {id} dies", self.coverage.steps);
        }
    }

    /// A fault, sometimes; and new work for somebody.
    fn fault(&mut self) {
        let faults = self.appliance.faults;
        let domains = self.processes.len();
        if self.random.one_in(60) {
            let index = self.random.below(domains);
            let quota = 1 + self.random.below(12);
            if let Some(process) = &mut self.processes[index] {
                process.quota += quota;
                process.notice();
            }
        }
        if faults.crash > 0 && self.random.one_in(faults.crash) {
            let victims = if self.random.one_in(4) { 2 + self.random.below(2) } else { 1 };
            self.coverage.massacres += u64::from(victims > 1);
            for _ in 0..victims {
                let index = self.random.below(domains);
                self.coverage.crashes += u64::from(self.processes[index].is_some());
                self.kill(index);
            }
        }
        if faults.stall > 0 && self.random.one_in(faults.stall) {
            let index = self.random.below(domains);
            let beyond = if self.random.one_in(4) { 2 * self.appliance.deadline } else { 200 };
            let until = self.coverage.steps + self.random.below(beyond as usize) as u64;
            let deaf = self.random.one_in(2);
            if let Some(process) = &mut self.processes[index] {
                *(if deaf { &mut process.deaf_until } else { &mut process.stalled_until }) = until;
                self.coverage.stalls += 1;
            }
        }
        self.keep_deadlines();
    }
}

/// The mutation that gives what was lent free without a fence; the windows stay.
fn fence_at_once(process: &Process, of: DomainId) {
    let Some(window) = process.memory.windows().get(of) else { return };
    Control::take_in(&process.control, Event::Fenced(of));
    process.memory.windows().insert(window);
}
