//! The manager's part of the world: the real decisions of `manager::state`, carried out on simulated processes.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use conn_mgr::manager::state::{Action, Event, State};
use fido_core::addr::{DomainId, Generation};
use fido_core::arena::Peer;
use fido_core::assignment::{Assignment, LinkAssignment, WaitStrategy};
use fido_core::bell::Bell;
use fido_core::platform::host::memory;

use super::plan::{Appliance, Mutation};
use super::platform::{Outbox, Said, SimulatedPlatform, Told};
use super::process::Process;
use super::world::World;

/// The length of a simulated arena: lanes, and a heap that is full now and then.
pub const ARENA_BYTES: u64 = 64 << 10;

/// What the manager knows and holds.
pub struct Brokerage {
    pub state: State,
    /// What each domain has said and the manager has not heard; that of the dead included.
    pub said: Vec<VecDeque<(DomainId, Said)>>,
    /// Open fences, and the step of their deadline.
    pub fences: BTreeMap<DomainId, u64>,
    /// Domains that are to be started again.
    pub restarts: Vec<bool>,
    arenas: BTreeMap<DomainId, Arc<OwnedFd>>,
    bells: BTreeMap<(DomainId, u32), Vec<Arc<Bell>>>,
}

impl Brokerage {
    /// A manager of an appliance that has run for as many generations as drawn.
    pub fn new(appliance: &Appliance) -> Self {
        let mut state = State::new(appliance.topology.clone());
        for (index, first) in appliance.first.iter().enumerate() {
            for _ in 1..*first {
                for action in state.on(Event::Want(index)) {
                    if let Action::Spawn(id) = action {
                        state.on(Event::Gone(id));
                    }
                }
            }
        }
        let domains = appliance.topology.domains;
        Self {
            state,
            said: vec![VecDeque::new(); domains],
            fences: BTreeMap::new(),
            restarts: vec![true; domains],
            arenas: BTreeMap::new(),
            bells: BTreeMap::new(),
        }
    }
}

impl World {
    /// The manager hears the next thing that a domain has said.
    pub fn hear(&mut self, index: usize) -> String {
        let Some((id, said)) = self.manager.said[index].pop_front() else { return "nothing".into() };
        let what = format!("{id} said {said:?}");
        match said {
            Said::Arena(file) => self.take_arena(index, id, file),
            Said::Bells(link, bells) => {
                self.manager.bells.insert((id, link), bells);
                self.feed(Event::Bells(id, link));
            }
            Said::Ready => self.feed(Event::Ready(id)),
            Said::Mapped(of) => self.feed(Event::Mapped { by: id, of }),
            Said::Passed(dead) => self.feed(Event::Passed { by: id, dead, except: Vec::new() }),
            Said::Gone => {
                if self.plan.mutation == Some(Mutation::DeathPasses) {
                    let owed: Vec<_> = self.manager.fences.keys().copied().collect();
                    for dead in owed {
                        self.feed(Event::Passed { by: id, dead, except: Vec::new() });
                    }
                }
                self.manager.restarts[index] = true;
                self.feed(Event::Gone(id));
            }
        }
        what
    }

    /// As the manager does it: what is no arena is refused.
    fn take_arena(&mut self, index: usize, id: DomainId, file: Arc<OwnedFd>) {
        let checked = memory::open(file.as_fd(), id, ARENA_BYTES).map_err(|error| error.to_string());
        let checked = checked.and_then(|window| Peer::read(&window).map(|_| ()).map_err(|error| error.to_string()));
        match checked {
            Ok(()) => {
                self.manager.arenas.insert(id, file);
                self.feed(Event::Arena(id));
            }
            Err(error) => self.condemn(index, id, error),
        }
    }

    /// Lets the state decide, and carries out what it says.
    pub fn feed(&mut self, event: Event) {
        for action in self.manager.state.on(event) {
            self.carry_out(action);
        }
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Spawn(id) => self.spawn(id),
            Action::Peer { to, of } => {
                if let Some(file) = self.manager.arenas.get(&of).cloned() {
                    self.tell(to, Told::Peer(of, file));
                }
            }
            Action::Link { to, link, peer } => {
                if let Some(bells) = self.manager.bells.get(&(peer, link)).cloned() {
                    self.tell(to, Told::Link(link, peer, bells));
                }
            }
            Action::Died { to, of } => self.tell(to, Told::Died(of)),
            Action::Fenced { to, of } => self.tell(to, Told::Fenced(of)),
            Action::Raised(dead) => {
                self.manager.fences.insert(dead, self.coverage.steps + self.appliance.deadline);
            }
            Action::Settled(dead) => {
                self.manager.fences.remove(&dead);
                self.manager.arenas.remove(&dead);
                self.manager.bells.retain(|(id, _), _| *id != dead);
                self.coverage.fences += 1;
            }
            Action::Serving(_) => {}
            Action::Violation(id, problem) => {
                if let Some(index) = self.manager.state.index(id) {
                    self.condemn(index, id, problem);
                }
            }
        }
    }

    fn tell(&mut self, to: DomainId, what: Told) {
        let process = self.processes.iter_mut().flatten().find(|process| process.id == to);
        // Whoever is dead and not heard of yet is told in vain.
        if let Some(process) = process {
            process.inbox.push_back(what);
        }
    }

    /// Kills a domain for what it said. What else it said is not heard.
    fn condemn(&mut self, index: usize, id: DomainId, problem: String) {
        self.coverage.condemned += 1;
        if !self.ledger.is_wild(id) {
            self.ledger.violation(format!("{id} keeps the rules, but: {problem}"));
        }
        self.manager.said[index].clear();
        self.kill(index);
        if !self.manager.said[index].iter().any(|(_, said)| matches!(said, Said::Gone)) {
            // It had died already, but nobody had heard of it.
            self.manager.said[index].push_back((id, Said::Gone));
        }
    }

    /// Starts a process.
    fn spawn(&mut self, id: DomainId) {
        let index = usize::from(id.slot.number()) - 1;
        let every = self.appliance.faults.wild;
        let wild = !self.calm && every > 0 && self.random.one_in(every);
        self.ledger.born(id, wild);
        self.had_wild |= wild;
        let generation = id.generation;
        self.coverage.restarts += u64::from(generation.number() != self.appliance.first[index]);
        self.coverage.wraps += u64::from(generation == Generation::FIRST && self.appliance.first[index] != 1);
        let outbox = Outbox::default();
        let assignment = self.assignment(index, id);
        let platform = SimulatedPlatform { assignment, outbox, arena: None, bells: Vec::new() };
        match Process::start(platform, index, wild) {
            Ok(process) => self.processes[index] = Some(process),
            Err(error) => self.ledger.violation(format!("{id} cannot be started: {error}")),
        }
        self.collect(index);
    }

    fn assignment(&self, index: usize, id: DomainId) -> Assignment {
        let link = |edge: &conn_mgr::manager::topology::Edge| {
            let other = edge.other(index).unwrap_or(index);
            let (slots, transport) = self.appliance.links[edge.link as usize - 1];
            LinkAssignment {
                link: edge.link,
                name: format!("link{}", edge.link),
                peer: format!("domain{other}"),
                peer_slot: other as u16 + 1,
                lanes: edge.lanes,
                slots,
                transport,
            }
        };
        Assignment {
            appliance: "simulated".into(),
            domain: format!("domain{index}"),
            id: id.into(),
            arena_bytes: ARENA_BYTES,
            links: self.appliance.topology.edges_of(index).map(link).collect(),
            domains: self.appliance.topology.domains as u16,
            wait: WaitStrategy::Sleep,
            processors: 0,
            cpus: Vec::new(),
            params: BTreeMap::new(),
        }
    }

    /// Kills who has not passed a fence by its deadline.
    pub fn keep_deadlines(&mut self) {
        let now = self.coverage.steps;
        let late = self.manager.fences.iter().filter(|(_, deadline)| **deadline <= now).map(|(dead, _)| *dead);
        let late: Vec<_> = late.flat_map(|dead| self.manager.state.owing(dead)).collect();
        for id in late {
            self.end_for_fence(id);
        }
    }

    /// Kills a survivor that holds a fence up.
    pub fn end_for_fence(&mut self, id: DomainId) {
        let index = usize::from(id.slot.number()) - 1;
        let lives = self.processes[index].as_ref().is_some_and(|process| process.id == id);
        if !lives {
            return;
        }
        self.coverage.deadlines += 1;
        // Under way, whoever is late may just be slow; at rest it waits for what never comes. Domains do not say yet what
        // they forwarded to others that are dead (decision 3): two open fences can wait for each other.
        if self.calm && !self.had_wild && self.manager.fences.len() < 2 {
            self.ledger.violation(format!("{id} will never pass the fence that it owes"));
        }
        self.kill(index);
    }
}
