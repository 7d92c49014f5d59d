//! What the manager decides: who is told what, and when a domain may be started. No I/O, no clock: events in, actions
//! out, so that every order of events can be tried in a test.
//!
//! It guarantees that
//! * nobody is given the arena or the bells of a domain that the manifest does not let it have, nor those of a dead
//!   incarnation, and each only once;
//! * of each incarnation, a domain hears in this order, if at all: `Peer`, `Link`, `Died`, `Fenced`;
//! * a link comes up only when everybody who may read an end of it has the window in place: whoever takes bytes from
//!   it can forward them at once;
//! * `Fenced` comes only when nobody can hold anything any more that came through the dead one ([`super::fences`]);
//! * a domain is started again at once, but an incarnation never gets the place in the address space of one whose
//!   fence is still open: there are two places per slot, for odd and even generations.

use std::collections::BTreeSet;

use fido_core::addr::{DomainId, Generation, Slot};

use super::fences::Fences;
use super::topology::{Index, Topology};
use crate::manifest::Manifest;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A domain is to be started as soon as it may be.
    Want(Index),
    /// Nothing is to be started any more.
    Stop,
    /// An incarnation handed over its arena, which has been checked.
    Arena(DomainId),
    /// An incarnation handed over its bells of a link, which have been checked.
    Bells(DomainId, u32),
    /// An incarnation says that it serves.
    Ready(DomainId),
    /// A reader has its window on an owner's arena in place.
    Mapped {
        /// The reader.
        by: DomainId,
        /// The owner.
        of: DomainId,
    },
    /// A survivor holds nothing that came through a dead one.
    Passed {
        /// The survivor.
        by: DomainId,
        /// The dead.
        dead: DomainId,
        /// Dead ones to whom it forwarded such things.
        except: Vec<DomainId>,
    },
    /// An incarnation's process is gone, or could not be started.
    Gone(DomainId),
}

/// What is to be done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Start a process as this incarnation.
    Spawn(DomainId),
    /// Hand the arena `of` to `to`.
    Peer {
        /// The reader.
        to: DomainId,
        /// The owner.
        of: DomainId,
    },
    /// Hand the bells of `peer` to `to`.
    Link {
        /// The one that will ring.
        to: DomainId,
        /// The link's number.
        link: u32,
        /// The one that will be woken.
        peer: DomainId,
    },
    /// Tell `to` that `of` is dead.
    Died {
        /// The survivor.
        to: DomainId,
        /// The dead.
        of: DomainId,
    },
    /// Tell `to` that the fence of `of` is complete.
    Fenced {
        /// The survivor.
        to: DomainId,
        /// The dead.
        of: DomainId,
    },
    /// A fence has been raised; survivors owe their word from now on.
    Raised(DomainId),
    /// A fence is complete.
    Settled(DomainId),
    /// An incarnation may now say that it is ready, and did.
    Serving(DomainId),
    /// An incarnation said what it may not say; it must be ended.
    Violation(DomainId, String),
}

/// A running incarnation.
#[derive(Debug)]
struct Living {
    id: DomainId,
    arena: bool,
    ready: bool,
    /// Links whose bells it has handed over.
    bells: BTreeSet<u32>,
    /// Incarnations whose arena it was given and whose fence is not complete.
    peers: BTreeSet<DomainId>,
    /// Those of them whose window is in place.
    mapped: BTreeSet<DomainId>,
    /// Links it was given, with the incarnation at the other end; as long as in `peers`.
    links: BTreeSet<(u32, DomainId)>,
    /// Incarnations it was told are dead. Kept after the fence: its word may come late.
    told: BTreeSet<DomainId>,
}

#[derive(Debug)]
struct Place {
    slot: Slot,
    last: Generation,
    living: Option<Living>,
    wanted: bool,
}

/// The manager's knowledge of its appliance.
#[derive(Debug)]
pub struct State {
    topology: Topology,
    places: Vec<Place>,
    fences: Fences,
    stopped: bool,
}

impl State {
    /// An appliance of which nothing runs.
    pub fn new(topology: Topology) -> Self {
        let places = (0..topology.domains).map_while(|index| {
            Some(Place { slot: Manifest::slot(index)?, last: Generation::NONE, living: None, wanted: false })
        });
        Self { places: places.collect(), topology, fences: Fences::default(), stopped: false }
    }

    /// Takes an event in and says what is to be done, in that order. Events of incarnations that are gone are ignored.
    pub fn on(&mut self, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Want(index) => {
                if let Some(place) = self.places.get_mut(index) {
                    place.wanted = place.living.is_none() && !self.stopped;
                }
                self.spawn(&mut actions);
            }
            Event::Stop => {
                self.stopped = true;
                self.places.iter_mut().for_each(|place| place.wanted = false);
            }
            Event::Arena(id) => self.arena(id, &mut actions),
            Event::Bells(id, link) => self.bells(id, link, &mut actions),
            Event::Ready(id) => self.ready(id, &mut actions),
            Event::Mapped { by, of } => self.mapped(by, of, &mut actions),
            Event::Passed { by, dead, except } => self.passed(by, dead, &except, &mut actions),
            Event::Gone(id) => self.gone(id, &mut actions),
        }
        actions
    }

    /// The position of an incarnation that runs.
    pub fn index(&self, id: DomainId) -> Option<Index> {
        let index = usize::from(id.slot.number()).checked_sub(1)?;
        let living = self.places.get(index)?.living.as_ref()?;
        (living.id == id).then_some(index)
    }

    /// Who has not passed the fence of that incarnation.
    pub fn owing(&self, dead: DomainId) -> Vec<DomainId> {
        self.fences.owing(dead).collect()
    }

    /// Whether that reader was given that arena and has not got its window in place.
    pub fn is_mapping(&self, reader: DomainId, owner: DomainId) -> bool {
        let living = self.index(reader).and_then(|index| self.places.get(index)?.living.as_ref());
        living.is_some_and(|living| living.peers.contains(&owner) && !living.mapped.contains(&owner))
    }

    /// The links of a domain.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    fn living(&mut self, id: DomainId) -> Option<(Index, &mut Living)> {
        let index = self.index(id)?;
        Some((index, self.places.get_mut(index)?.living.as_mut()?))
    }

    fn arena(&mut self, id: DomainId, actions: &mut Vec<Action>) {
        let Some((index, living)) = self.living(id) else { return };
        if living.arena {
            actions.push(Action::Violation(id, "it handed over a second arena".into()));
            return;
        }
        living.arena = true;
        self.broker(index, actions);
    }

    fn bells(&mut self, id: DomainId, link: u32, actions: &mut Vec<Action>) {
        let Some(index) = self.index(id) else { return };
        if self.topology.edge(index, link).is_none() {
            actions.push(Action::Violation(id, format!("it handed over bells of link {link}, which it does not have")));
            return;
        }
        let Some((_, living)) = self.living(id) else { return };
        if !living.bells.insert(link) {
            actions.push(Action::Violation(id, format!("it handed over the bells of link {link} twice")));
            return;
        }
        self.broker(index, actions);
    }

    fn ready(&mut self, id: DomainId, actions: &mut Vec<Action>) {
        let Some(index) = self.index(id) else { return };
        let links = self.topology.edges_of(index).count();
        let Some((_, living)) = self.living(id) else { return };
        if !living.arena || living.bells.len() < links {
            let what = "it said it was ready before it had handed over its arena and the bells of all its links";
            actions.push(Action::Violation(id, what.into()));
            return;
        }
        living.ready = true;
        actions.push(Action::Serving(id));
    }

    fn mapped(&mut self, id: DomainId, of: DomainId, actions: &mut Vec<Action>) {
        let Some((_, living)) = self.living(id) else { return };
        // Its word may come after the fence: then it has no meaning any more.
        if living.peers.contains(&of) {
            living.mapped.insert(of);
            self.connect_all(actions);
        } else if !living.told.contains(&of) {
            let what = format!("it mapped the arena of {of}, which it was not given");
            actions.push(Action::Violation(id, what));
        }
    }

    fn passed(&mut self, id: DomainId, dead: DomainId, except: &[DomainId], actions: &mut Vec<Action>) {
        let Some((_, living)) = self.living(id) else { return };
        if !living.told.contains(&dead) {
            let what = format!("it passed the fence of {dead}, of whose death it was not told");
            actions.push(Action::Violation(id, what));
            return;
        }
        if let Some(wrong) = except.iter().find(|id| !living.told.contains(id)) {
            let what = format!("it passed a fence except for {wrong}, of whose death it was not told");
            actions.push(Action::Violation(id, what));
            return;
        }
        self.fences.pass(id, dead, except);
        self.settle(actions);
    }

    /// Tells a domain and all others what they may have of each other and have not got.
    fn broker(&mut self, index: Index, actions: &mut Vec<Action>) {
        for other in (0..self.places.len()).filter(|&other| other != index) {
            self.introduce(index, other, actions);
            self.introduce(other, index, actions);
        }
        self.connect_all(actions);
    }

    /// Brings up the links whose time has come.
    fn connect_all(&mut self, actions: &mut Vec<Action>) {
        for edge in self.topology.edges.clone() {
            let [a, b] = edge.ends;
            if let (Some(a_id), Some(b_id)) = (self.bells_there(a, edge.link), self.bells_there(b, edge.link))
                && self.is_readable(a)
                && self.is_readable(b)
            {
                self.connect(a, edge.link, b_id, actions);
                self.connect(b, edge.link, a_id, actions);
            }
        }
    }

    /// Whether everybody who was given the arena of `owner` has its window in place. (Those who are not there yet are
    /// given it before they are given any link.)
    fn is_readable(&self, owner: Index) -> bool {
        let Some(of) = self.places.get(owner).and_then(|place| place.living.as_ref()).map(|living| living.id) else {
            return false;
        };
        let mut readers = self.places.iter().filter_map(|place| place.living.as_ref());
        readers.all(|reader| !reader.peers.contains(&of) || reader.mapped.contains(&of))
    }

    /// Hands the arena of `owner` to `reader`, if both are there and the manifest lets it.
    fn introduce(&mut self, reader: Index, owner: Index, actions: &mut Vec<Action>) {
        let present = |index: Index| self.places.get(index)?.living.as_ref().filter(|l| l.arena).map(|l| l.id);
        let (Some(to), Some(of)) = (present(reader), present(owner)) else { return };
        if !self.topology.may_read(reader, owner) {
            return;
        }
        if let Some((_, living)) = self.living(to)
            && living.peers.insert(of)
        {
            // After 4095 restarts an identity comes back; what was said of its predecessor is over.
            living.told.remove(&of);
            actions.push(Action::Peer { to, of });
        }
    }

    fn bells_there(&self, index: Index, link: u32) -> Option<DomainId> {
        let living = self.places.get(index)?.living.as_ref()?;
        (living.arena && living.bells.contains(&link)).then_some(living.id)
    }

    fn connect(&mut self, index: Index, link: u32, peer: DomainId, actions: &mut Vec<Action>) {
        let Some(living) = self.places.get_mut(index).and_then(|place| place.living.as_mut()) else { return };
        if living.links.insert((link, peer)) {
            actions.push(Action::Link { to: living.id, link, peer });
        }
    }

    fn gone(&mut self, id: DomainId, actions: &mut Vec<Action>) {
        let Some(index) = self.index(id) else { return };
        let Some(dead) = self.places.get_mut(index).and_then(|place| place.living.take()) else { return };
        let mut owing = BTreeSet::new();
        for living in self.places.iter_mut().filter_map(|place| place.living.as_mut()) {
            if living.peers.contains(&id) {
                living.told.insert(id);
                actions.push(Action::Died { to: living.id, of: id });
            }
            if living.links.iter().any(|(_, peer)| *peer == id) {
                owing.insert(living.id);
            }
        }
        let linked = dead.links.iter().map(|(_, peer)| *peer).collect();
        self.fences.open(id, owing, &linked);
        actions.push(Action::Raised(id));
        self.settle(actions);
        // Others may have waited for the dead one to map their arenas.
        self.connect_all(actions);
    }

    fn settle(&mut self, actions: &mut Vec<Action>) {
        for of in self.fences.take_complete() {
            for living in self.places.iter_mut().filter_map(|place| place.living.as_mut()) {
                living.links.retain(|(_, peer)| *peer != of);
                living.mapped.remove(&of);
                if living.peers.remove(&of) {
                    actions.push(Action::Fenced { to: living.id, of });
                }
            }
            actions.push(Action::Settled(of));
        }
        self.spawn(actions);
    }

    fn spawn(&mut self, actions: &mut Vec<Action>) {
        for place in self.places.iter_mut().filter(|place| place.wanted) {
            let id = DomainId { slot: place.slot, generation: place.last.next() };
            let taken =
                |dead: DomainId| dead.slot == id.slot && dead.generation.number() % 2 == id.generation.number() % 2;
            if self.fences.pending().any(taken) {
                continue;
            }
            place.wanted = false;
            place.last = id.generation;
            place.living = Some(Living {
                id,
                arena: false,
                ready: false,
                bells: BTreeSet::new(),
                peers: BTreeSet::new(),
                mapped: BTreeSet::new(),
                links: BTreeSet::new(),
                told: BTreeSet::new(),
            });
            actions.push(Action::Spawn(id));
        }
    }
}
