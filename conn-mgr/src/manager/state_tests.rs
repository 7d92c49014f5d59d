//! Every order of events keeps the promises of [`super::state`]: a simulated appliance whose domains are started and
//! killed, lend each other bytes, forward them, return them and pass fences in random order, and in which every
//! message takes its time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use fido_core::addr::{DomainId, Generation};
use proptest::prelude::*;

use super::state::{Action, Event, State};
use super::topology::{Edge, Index, Topology};

/// A running domain as it sees the world: it knows what it has been told so far.
#[derive(Default)]
struct Sim {
    inbox: VecDeque<Action>,
    /// Whose arenas it can read.
    mapped: BTreeSet<DomainId>,
    arena: bool,
    bells: BTreeSet<u32>,
    /// Peers it is in session with.
    sessions: BTreeSet<DomainId>,
    /// Dead peers of sessions whose fence it has not passed.
    owed: BTreeSet<DomainId>,
    /// Where things that came through a dead one went: to others, dead as well.
    exceptions: BTreeMap<DomainId, BTreeSet<DomainId>>,
    dead: BTreeSet<DomainId>,
    fenced: BTreeSet<DomainId>,
}

/// Bytes on their way from one to another: published, perhaps taken, perhaps returned.
struct Loan {
    from: DomainId,
    to: DomainId,
    /// Everybody the bytes came through, from their owner to `from`.
    path: Vec<DomainId>,
    /// The loan that `from` forwards, unless the bytes are its own.
    parent: Option<usize>,
    taken: bool,
    returned: bool,
}

/// How far a reader has come with an incarnation: `Peer`, `Link`, `Died`, `Fenced`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Told {
    #[default]
    Nothing,
    Peer,
    Link,
    Died,
    Fenced,
}

struct World {
    topology: Topology,
    state: State,
    sims: BTreeMap<DomainId, Sim>,
    loans: Vec<Loan>,
    told: BTreeMap<(DomainId, DomainId), Told>,
    links: BTreeSet<(DomainId, DomainId, u32)>,
    open: BTreeSet<DomainId>,
    manners: Manners,
}

/// How domains behave.
#[derive(Debug, Clone, Copy)]
struct Manners {
    /// They do not wait for fences before they pass others, but name exceptions.
    exceptions: bool,
    /// They lend bytes to domains these have come through already.
    loops: bool,
}

impl World {
    fn new(topology: Topology, manners: Manners) -> Self {
        Self {
            state: State::new(topology.clone()),
            topology,
            sims: BTreeMap::new(),
            loans: Vec::new(),
            told: BTreeMap::new(),
            links: BTreeSet::new(),
            open: BTreeSet::new(),
            manners,
        }
    }

    fn feed(&mut self, event: Event) {
        for action in self.state.on(event) {
            self.check(&action);
            match action {
                Action::Spawn(id) => _ = self.sims.insert(id, Sim::default()),
                Action::Raised(id) => _ = self.open.insert(id),
                Action::Settled(id) => assert!(self.open.remove(&id)),
                Action::Serving(_) => {}
                Action::Violation(id, problem) => panic!("{id} did nothing wrong: {problem}"),
                Action::Peer { to, .. }
                | Action::Link { to, .. }
                | Action::Died { to, .. }
                | Action::Fenced { to, .. } => {
                    self.sims.get_mut(&to).expect("only the living are told").inbox.push_back(action);
                }
            }
        }
    }

    /// What an independent observer demands of each action.
    fn check(&mut self, action: &Action) {
        let index = |id: DomainId| usize::from(id.slot.number()) - 1;
        match *action {
            Action::Spawn(id) => {
                assert!(self.sims.keys().all(|other| other.slot != id.slot), "two of a slot");
                let same_place = |dead: &&DomainId| {
                    dead.slot == id.slot && dead.generation.number() % 2 == id.generation.number() % 2
                };
                assert_eq!(self.open.iter().find(same_place), None, "the place of {id} is still in use");
            }
            Action::Peer { to, of } => {
                assert!(self.sims[&to].arena && self.sims[&of].arena, "both must be there");
                assert!(self.topology.may_read(index(to), index(of)), "{to} must not read {of}");
                self.advance(to, of, Told::Peer, |told| told == Told::Nothing);
            }
            Action::Link { to, link, peer } => {
                let edge = self.topology.edge(index(to), link).expect("only what the manifest links");
                assert_eq!(edge.other(index(to)), Some(index(peer)));
                assert!(self.sims[&to].bells.contains(&link) && self.sims[&peer].bells.contains(&link));
                assert!(self.links.insert((to, peer, link)), "told twice");
                let told = |reader: &DomainId| self.told.get(&(*reader, peer)) >= Some(&Told::Peer);
                let blind = self.sims.iter().find(|(reader, sim)| told(reader) && !sim.mapped.contains(&peer));
                assert!(blind.is_none(), "{:?} cannot read {peer} yet", blind.map(|(reader, _)| reader));
                self.advance(to, peer, Told::Link, |told| matches!(told, Told::Peer | Told::Link));
            }
            Action::Died { to, of } => {
                assert!(!self.sims.contains_key(&of), "{of} lives");
                self.advance(to, of, Told::Died, |told| matches!(told, Told::Peer | Told::Link));
            }
            Action::Fenced { to, of } => {
                self.advance(to, of, Told::Fenced, |told| told == Told::Died);
                self.check_fence(of);
            }
            _ => {}
        }
    }

    fn advance(&mut self, to: DomainId, of: DomainId, next: Told, fits: impl Fn(Told) -> bool) {
        let told = self.told.entry((to, of)).or_default();
        assert!(fits(*told), "{to} was told {told:?} of {of} and then {next:?}");
        *told = next;
    }

    /// Nobody holds, or can still come to hold, anything that came through `dead`.
    fn check_fence(&self, dead: DomainId) {
        for loan in self.loans.iter().filter(|loan| loan.path.contains(&dead) && !loan.returned) {
            if let Some(receiver) = self.sims.get(&loan.to) {
                assert!(!loan.taken, "{} holds what came through {:?}; {dead} is fenced", loan.to, loan.path);
                assert!(!receiver.sessions.contains(&loan.from), "{} may take {:?}", loan.to, loan.path);
            }
        }
    }

    fn living(&self, choice: u8) -> Option<DomainId> {
        let count = self.sims.len();
        (count > 0).then(|| *self.sims.keys().nth(usize::from(choice) % count).expect("in range"))
    }

    /// The process makes progress with its introduction.
    fn introduce(&mut self, id: DomainId) {
        let index = usize::from(id.slot.number()) - 1;
        let links: Vec<u32> = self.topology.edges_of(index).map(|edge| edge.link).collect();
        let sim = self.sims.get_mut(&id).expect("lives");
        if !std::mem::replace(&mut sim.arena, true) {
            self.feed(Event::Arena(id));
        } else if let Some(link) = links.iter().copied().find(|&link| sim.bells.insert(link)) {
            self.feed(Event::Bells(id, link));
        } else {
            self.feed(Event::Ready(id));
        }
    }

    /// The domain takes one message in.
    fn deliver(&mut self, id: DomainId) {
        let sim = self.sims.get_mut(&id).expect("lives");
        match sim.inbox.pop_front() {
            Some(Action::Peer { of, .. }) => {
                sim.mapped.insert(of);
                self.feed(Event::Mapped { by: id, of });
            }
            Some(Action::Link { peer, .. }) => _ = sim.sessions.insert(peer),
            Some(Action::Died { of, .. }) => {
                if sim.sessions.remove(&of) {
                    sim.owed.insert(of);
                }
                sim.dead.insert(of);
            }
            Some(Action::Fenced { of, .. }) => _ = sim.fenced.insert(of),
            _ => {}
        }
    }

    /// Lends own bytes, or forwards something held, to somebody in session.
    fn lend(&mut self, id: DomainId, to: u8, what: u8) {
        let sessions = &self.sims[&id].sessions;
        let Some(&to) = sessions.iter().nth(usize::from(to) % sessions.len().max(1)) else { return };
        let held: Vec<usize> = (0..self.loans.len()).filter(|&at| self.holds(id, at)).collect();
        let parent = held.get(usize::from(what) % (held.len() + 1)).copied();
        let mut path = parent.map(|at| self.loans[at].path.clone()).unwrap_or_default();
        path.push(id);
        if !self.manners.loops && path.iter().any(|through| through.slot == to.slot) {
            return;
        }
        self.loans.push(Loan { from: id, to, path, parent, taken: false, returned: false });
    }

    fn holds(&self, id: DomainId, at: usize) -> bool {
        let loan = &self.loans[at];
        loan.to == id && loan.taken && !loan.returned
    }

    /// Takes everything that was published for it.
    fn take(&mut self, id: DomainId) {
        let sim = &self.sims[&id];
        for loan in self.loans.iter_mut().filter(|loan| loan.to == id && !loan.returned) {
            loan.taken |= sim.sessions.contains(&loan.from);
        }
    }

    /// Drops what it need not hold any more: what it forwarded must have come back, or the one it went to is fenced.
    /// With exceptions it is enough that both that one and the one it came from are dead.
    fn drop_holds(&mut self, id: DomainId) {
        for at in 0..self.loans.len() {
            if !self.holds(id, at) {
                continue;
            }
            let from = self.loans[at].from;
            let sim = self.sims.get_mut(&id).expect("lives");
            let left: Vec<_> =
                self.loans.iter().filter(|l| l.parent == Some(at) && l.from == id && !l.returned).collect();
            let excepted = |to: &DomainId| self.manners.exceptions && sim.dead.contains(&from) && sim.dead.contains(to);
            if left.iter().all(|child| sim.fenced.contains(&child.to) || excepted(&child.to)) {
                sim.exceptions.entry(from).or_default().extend(left.iter().map(|child| child.to));
                self.loans[at].returned = true;
            }
        }
    }

    fn pass(&mut self, id: DomainId) {
        let holds =
            |dead: &DomainId| (0..self.loans.len()).any(|at| self.holds(id, at) && self.loans[at].from == *dead);
        let done: Vec<_> = self.sims[&id].owed.iter().copied().filter(|dead| !holds(dead)).collect();
        for dead in done {
            let sim = self.sims.get_mut(&id).expect("lives");
            sim.owed.remove(&dead);
            let except = sim.exceptions.remove(&dead).unwrap_or_default();
            let except = except.into_iter().filter(|other| *other != dead && sim.dead.contains(other)).collect();
            self.feed(Event::Passed { by: id, dead, except });
        }
    }

    fn kill(&mut self, id: DomainId) {
        self.sims.remove(&id);
        self.feed(Event::Gone(id));
    }

    fn step(&mut self, kind: u8, a: u8, b: u8) {
        let Some(id) = self.living(a) else { return self.feed(Event::Want(usize::from(b) % self.topology.domains)) };
        match kind % 16 {
            0 => self.feed(Event::Want(usize::from(b) % self.topology.domains)),
            1 => self.kill(id),
            2..=4 => self.introduce(id),
            5..=7 => self.deliver(id),
            8..=10 => self.lend(id, b, b / 8),
            11 | 12 => self.take(id),
            13 => self.drop_holds(id),
            _ => self.pass(id),
        }
    }

    /// Nobody dies by itself any more. Fences complete; those that do not are brought to an end by their deadline:
    /// returns how many domains that costs.
    fn come_to_rest(&mut self) -> usize {
        self.feed(Event::Stop);
        let mut killed = 0;
        loop {
            let rounds = 10 + self.sims.values().map(|sim| sim.inbox.len()).max().unwrap_or(0) + self.loans.len();
            for _ in 0..rounds {
                for id in self.sims.keys().copied().collect::<Vec<_>>() {
                    self.deliver(id);
                    self.take(id);
                    self.drop_holds(id);
                    self.pass(id);
                }
            }
            let Some(&dead) = self.open.first() else { return killed };
            let late = self.open.iter().flat_map(|&dead| self.state.owing(dead)).next();
            self.kill(late.unwrap_or_else(|| panic!("nobody owes anything, but the fence of {dead} is open")));
            killed += 1;
        }
    }
}

fn topologies() -> impl Strategy<Value = Topology> {
    (2usize..6).prop_flat_map(|domains| {
        let pair = move || (0..domains, 1..domains).prop_map(move |(a, distance)| (a, (a + distance) % domains));
        let edges = prop::collection::vec(pair(), 1..8);
        (edges, prop::collection::btree_set(pair(), 0..3)).prop_map(move |(pairs, windows)| {
            let edges = (1u32..).zip(pairs).map(|(link, (a, b))| Edge { link, ends: [a, b], lanes: 1 });
            Topology { domains, edges: edges.collect(), windows }
        })
    })
}

type Steps = Vec<(u8, u8, u8)>;

/// Starts everything, takes the steps and comes to rest: see [`World::come_to_rest`].
fn run(topology: Topology, manners: Manners, steps: Steps) -> usize {
    let mut world = World::new(topology, manners);
    (0..world.topology.domains).for_each(|index| world.feed(Event::Want(index)));
    for id in world.sims.keys().copied().collect::<Vec<_>>() {
        (0..9).for_each(|_| world.introduce(id));
    }
    for id in world.sims.keys().copied().collect::<Vec<_>>() {
        (0..30).for_each(|_| world.deliver(id));
    }
    for (kind, a, b) in steps {
        world.step(kind, a, b);
    }
    world.come_to_rest()
}

fn steps() -> impl Strategy<Value = Steps> {
    prop::collection::vec(any::<(u8, u8, u8)>(), 0..400)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_course_of_events(topology in topologies(), exceptions: bool, loops: bool, steps in steps()) {
        run(topology, Manners { exceptions, loops }, steps);
    }

    /// net - fs - disk: whichever die, even at once, in the midst of lending both ways: no survivor is killed.
    #[test]
    fn a_chain_needs_no_deadline(steps in steps()) {
        let edge = |link, a, b| Edge { link, ends: [a, b], lanes: 1 };
        let windows = BTreeSet::from([(0, 2), (2, 0)]);
        let topology = Topology { domains: 3, edges: vec![edge(1, 0, 1), edge(2, 1, 2)], windows };
        prop_assert_eq!(run(topology, Manners { exceptions: true, loops: false }, steps), 0);
    }
}

fn two_linked() -> Topology {
    Topology { domains: 2, edges: vec![Edge { link: 1, ends: [0, 1], lanes: 1 }], windows: BTreeSet::new() }
}

fn passed(by: DomainId, dead: DomainId) -> Event {
    Event::Passed { by, dead, except: Vec::new() }
}

fn spawned(actions: &[Action]) -> Option<DomainId> {
    actions.iter().find_map(|action| if let Action::Spawn(id) = action { Some(*id) } else { None })
}

fn start(state: &mut State, index: Index) -> DomainId {
    let id = spawned(&state.on(Event::Want(index))).expect("started");
    let given = state.on(Event::Arena(id));
    state.on(Event::Bells(id, 1));
    for action in given {
        if let Action::Peer { to, of } = action {
            state.on(Event::Mapped { by: to, of });
        }
    }
    id
}

#[test]
fn a_link_waits_until_a_third_can_read_its_ends() {
    let windows = BTreeSet::from([(2, 0)]);
    let mut state = State::new(Topology { domains: 3, windows, ..two_linked() });
    let third = spawned(&state.on(Event::Want(2))).expect("started");
    state.on(Event::Arena(third));
    let a = spawned(&state.on(Event::Want(0))).expect("started");
    state.on(Event::Arena(a));
    state.on(Event::Bells(a, 1));
    assert!(state.is_mapping(third, a));
    let b = start(&mut state, 1);
    assert!(matches!(state.on(Event::Mapped { by: third, of: b })[..], [Action::Violation(..)]), "it was not given");
    let up = state.on(Event::Mapped { by: third, of: a });
    assert!(!state.is_mapping(third, a));
    assert!(matches!(up[..], [Action::Link { .. }, Action::Link { .. }]), "{up:?}");
}

#[test]
fn a_link_does_not_wait_for_the_dead() {
    let mut state = State::new(Topology { domains: 3, windows: BTreeSet::from([(2, 0)]), ..two_linked() });
    let third = spawned(&state.on(Event::Want(2))).expect("started");
    state.on(Event::Arena(third));
    let id = |state: &mut State, index| spawned(&state.on(Event::Want(index))).expect("started");
    let (a, b) = (id(&mut state, 0), id(&mut state, 1));
    for id in [a, b] {
        state.on(Event::Arena(id));
        state.on(Event::Bells(id, 1));
    }
    let links = |actions: &[Action]| actions.iter().filter(|action| matches!(action, Action::Link { .. })).count();
    assert_eq!(links(&state.on(Event::Mapped { by: a, of: b })), 0);
    assert_eq!(links(&state.on(Event::Mapped { by: b, of: a })), 0, "the third has not mapped a");
    assert_eq!(links(&state.on(Event::Gone(third))), 2, "and never will");
}

#[test]
fn generations_wrap_around_and_never_share_a_place_with_an_open_fence() {
    let mut state = State::new(two_linked());
    let peer = start(&mut state, 0);
    let mut id = start(&mut state, 1);
    for _ in 1..4095 {
        state.on(Event::Gone(id));
        state.on(passed(peer, id));
        let next = start(&mut state, 1);
        assert_eq!(next.generation, id.generation.next());
        id = next;
    }
    assert_eq!(id.generation.number(), 4095);
    state.on(Event::Gone(id));
    assert_eq!(spawned(&state.on(Event::Want(1))), None, "4095 and 1 are both odd");
    let next = spawned(&state.on(passed(peer, id))).expect("started once the place is free");
    assert_eq!(next.generation, Generation::FIRST);
    assert!(state.on(passed(peer, id)).iter().all(|a| !matches!(a, Action::Violation(..))), "late, but told");
}

#[test]
fn violations() {
    let mut state = State::new(two_linked());
    let id = spawned(&state.on(Event::Want(0))).expect("started");
    let other = start(&mut state, 1);
    let violates = |actions: Vec<Action>| matches!(actions[..], [Action::Violation(culprit, _)] if culprit == id);
    assert!(violates(state.on(Event::Ready(id))), "ready without an arena");
    assert!(!violates(state.on(Event::Arena(id))));
    assert!(violates(state.on(Event::Arena(id))), "two arenas");
    assert!(violates(state.on(Event::Ready(id))), "ready without bells");
    assert!(violates(state.on(Event::Bells(id, 2))), "no such link");
    assert!(!violates(state.on(Event::Bells(id, 1))));
    assert!(violates(state.on(Event::Bells(id, 1))), "twice");
    assert_eq!(state.on(Event::Ready(id)), [Action::Serving(id)]);
    assert!(violates(state.on(passed(id, other))), "the other lives");
    assert!(violates(state.on(passed(id, id))), "itself");
    state.on(Event::Gone(id));
    assert!(state.on(Event::Arena(id)).is_empty(), "the dead say nothing");
    state.on(Event::Stop);
    assert!(state.on(Event::Want(0)).is_empty(), "nothing starts after the end");
    assert!(state.on(Event::Want(7)).is_empty(), "no such domain");
}
