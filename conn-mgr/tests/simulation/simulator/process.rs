//! A domain that runs: the real `Domain` with its lanes, and a component loop of which every step is chosen.
//!
//! The loop is that of [`fido_core::waiter`]: poll everything, and only if a whole round found nothing arm all
//! sources, look at them again, and sleep. Each operation is a step of its own, so that others come, and death comes,
//! between any two of them. A sleeper runs again only when one of its bells has been rung since it armed: nothing
//! else wakes it, so that a lost wake-up ends in a standstill.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use fido_core::addr::DomainId;
use fido_core::arena::LanePlace;
use fido_core::bell::Bell;
use fido_core::domain::{Control, Domain};
use fido_core::lane::{Change, Lane};
use fido_core::memory::Memory;
use fido_core::payload::Payload;
use fido_core::wait::Source;
use rustix::event::{PollFd, PollFlags};

use super::Coverage;
use super::ledger::{Known, Ledger};
use super::plan::Mutation;
use super::platform::{Outbox, Said, SimulatedPlatform, Told};
use super::random::Random;
use super::wild::Rogue;

/// What the steps of a process share with the rest of the world.
pub struct Context<'a> {
    pub random: &'a mut Random,
    pub ledger: &'a Ledger,
    pub coverage: &'a mut Coverage,
    pub mutation: Option<Mutation>,
    /// No new faults, and everything held is let go.
    pub calm: bool,
}

/// An end of a lane, once the component has taken it.
pub struct Port {
    pub lane: Option<Lane>,
    pub name: String,
    pub link: u32,
    pub number: u16,
    /// The position of the domain at the other end.
    pub peer_index: usize,
    /// The incarnation there, as the lane has said.
    pub peer: Option<DomainId>,
    pub place: LanePlace,
}

/// A payload in the component's hands.
pub struct Held {
    pub payload: Payload,
    pub known: Known,
    /// The domains it has come through, a bit each.
    pub path: u32,
    /// The port over which it is to go on.
    pub onward: Option<usize>,
}

/// An operation of the component loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    TakeLane(usize),
    Ready,
    Change(usize),
    Receive(usize),
    Originate(usize),
    Forward,
    Flush(usize),
}

/// Where the loop is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pace {
    Round(VecDeque<Op>),
    Armed,
    Asleep,
}

pub struct Process {
    pub id: DomainId,
    pub index: usize,
    pub memory: Memory,
    pub control: Control,
    pub outbox: Outbox,
    pub inbox: VecDeque<Told>,
    pub ports: Vec<Port>,
    pub held: Vec<Held>,
    /// Messages still to be originated.
    pub quota: usize,
    pub pace: Pace,
    pub progress: bool,
    /// Takes or sends nothing until something held is let go.
    pub wants_release: bool,
    pub rogue: Option<Rogue>,
    /// Not scheduled before that step.
    pub stalled_until: u64,
    /// What the manager told it does not arrive before that step.
    pub deaf_until: u64,
    /// It has done nothing yet.
    pub is_fresh: bool,
    pub domain: Domain,
    bells: Vec<Arc<Bell>>,
}

impl Process {
    /// Starts a process: it joins, and says so.
    pub fn start(mut platform: SimulatedPlatform, index: usize, wild: bool) -> Result<Self, String> {
        let (domain, control) = Domain::stepped(&mut platform).map_err(|error| error.to_string())?;
        let memory = domain.memory();
        let mut places = memory.arena().lanes().to_vec().into_iter();
        let mut ports = Vec::new();
        for link in &platform.assignment.links {
            for (number, place) in (0..link.lanes).zip(&mut places) {
                let peer_index = usize::from(link.peer_slot) - 1;
                let (name, link) = (link.name.clone(), link.link);
                ports.push(Port { lane: None, name, link, number, peer_index, peer: None, place });
            }
        }
        let round = (0..ports.len()).map(Op::TakeLane).chain([Op::Ready]).collect();
        Ok(Self {
            id: memory.id(),
            index,
            memory,
            control,
            outbox: platform.outbox,
            inbox: VecDeque::new(),
            ports,
            held: Vec::new(),
            quota: 0,
            pace: Pace::Round(round),
            progress: true,
            wants_release: false,
            rogue: wild.then(Rogue::default),
            stalled_until: 0,
            deaf_until: 0,
            is_fresh: true,
            domain,
            bells: platform.bells,
        })
    }

    pub fn is_asleep(&self) -> bool {
        self.pace == Pace::Asleep
    }

    /// One step of the component. Returns what it was.
    pub fn turn(&mut self, cx: &mut Context<'_>) -> String {
        self.is_fresh = false;
        if let Some(rogue) = self.rogue.as_mut()
            && cx.random.one_in(3)
        {
            cx.coverage.wild += 1;
            if cx.random.one_in(200) {
                let nonsense = [Said::Passed(self.id), Said::Mapped(self.id), Said::Bells(99, Vec::new())];
                let said = nonsense.get(cx.random.below(3)).cloned().unwrap_or(Said::Ready);
                self.outbox.say(said);
                return "says nonsense".into();
            }
            return rogue.act(&self.memory, &self.ports, &self.held, cx.random);
        }
        match &mut self.pace {
            Pace::Asleep => "sleeps".into(),
            Pace::Armed => self.look_again(cx),
            Pace::Round(ops) => match ops.pop_front() {
                Some(op) => {
                    self.perform(op, cx);
                    format!("{op:?}")
                }
                None if self.progress => {
                    self.begin_round(cx);
                    "another round".into()
                }
                None => self.arm(),
            },
        }
    }

    fn begin_round(&mut self, cx: &mut Context<'_>) {
        let count = self.ports.len();
        let first = cx.random.below(count);
        let lanes = (0..count).map(|at| (first + at) % count);
        let ops = lanes.flat_map(|at| [Op::Change(at), Op::Receive(at), Op::Originate(at), Op::Flush(at)]);
        self.pace = Pace::Round([Op::Forward].into_iter().chain(ops).collect());
        self.progress = false;
    }

    fn perform(&mut self, op: Op, cx: &mut Context<'_>) {
        match op {
            Op::TakeLane(at) => self.take_lane(at, cx),
            Op::Ready => {
                if let Err(error) = self.domain.ready(&[]) {
                    cx.ledger.violation(format!("{} is not ready: {error}", self.id));
                }
            }
            Op::Change(at) => self.follow(at, cx),
            Op::Receive(at) => self.receive(at, cx),
            Op::Originate(at) => self.originate(at, cx),
            Op::Forward => self.forward(cx),
            Op::Flush(at) => self.flush(at, cx),
        }
    }

    fn take_lane(&mut self, at: usize, cx: &mut Context<'_>) {
        let Some(port) = self.ports.get_mut(at) else { return };
        match self.domain.take_lane(&port.name, port.number) {
            Ok(lane) => port.lane = Some(lane),
            Err(error) => cx.ledger.violation(format!("{} cannot take its lane: {error}", self.id)),
        }
    }

    fn follow(&mut self, at: usize, cx: &mut Context<'_>) {
        let Some((port, lane)) = port(&mut self.ports, at) else { return };
        match lane.change() {
            Some(Change::Up(peer)) => {
                *port.peer = Some(peer);
                cx.coverage.sessions += 1;
            }
            Some(Change::Down(peer)) => {
                *port.peer = None;
                cx.ledger.down(self.id, peer, port.link, port.number);
                cx.coverage.broken += u64::from(!cx.ledger.is_dead(peer));
            }
            None => return,
        }
        self.progress = true;
        // There may be more.
        self.again(Op::Change(at));
    }

    /// Does an operation once more, before the others.
    pub fn again(&mut self, op: Op) {
        if let Pace::Round(ops) = &mut self.pace {
            ops.push_front(op);
        }
    }

    fn flush(&mut self, at: usize, cx: &mut Context<'_>) {
        let Some((port, lane)) = port(&mut self.ports, at) else { return };
        lane.flush();
        if cx.mutation == Some(Mutation::CreditEarly) && port.peer.is_some() {
            let credit = port.place.control + 64;
            let arena = self.memory.arena();
            fido_core::testing::store(arena, credit, fido_core::testing::load(arena, credit).wrapping_add(1));
        }
    }

    fn arm(&mut self) -> String {
        // What was rung before this is of no use to a sleeper: it looks at everything after it has armed.
        self.bells.iter().for_each(|bell| bell.reset());
        self.ports.iter_mut().filter_map(|port| port.lane.as_mut()).for_each(Lane::arm);
        self.pace = Pace::Armed;
        "arms".into()
    }

    fn look_again(&mut self, cx: &mut Context<'_>) -> String {
        fence(Ordering::SeqCst);
        if self.ports.iter_mut().filter_map(|port| port.lane.as_mut()).any(Lane::ready) {
            self.wake();
            return "looks again and finds something".into();
        }
        self.pace = Pace::Asleep;
        cx.coverage.sleeps += 1;
        // A bell may have been rung since it armed: epoll would return at once.
        self.wake_if_rung();
        "falls asleep".into()
    }

    /// Ends a sleep.
    fn wake(&mut self) {
        self.ports.iter_mut().filter_map(|port| port.lane.as_mut()).for_each(Lane::disarm);
        self.pace = Pace::Round(VecDeque::new());
        self.progress = true;
    }

    /// Something that the component waits for beside its lanes has happened.
    pub fn notice(&mut self) {
        match self.pace {
            Pace::Round(_) => self.progress = true,
            Pace::Armed | Pace::Asleep => self.wake(),
        }
    }

    /// Ends a sleep if one of the own bells has been rung.
    pub fn wake_if_rung(&mut self) {
        if !self.is_asleep() {
            return;
        }
        let mut fds: Vec<_> =
            self.bells.iter().map(|bell| PollFd::from_borrowed_fd(bell.as_fd(), PollFlags::IN)).collect();
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        if rustix::event::poll(&mut fds, Some(&now)).is_ok_and(|rung| rung > 0) {
            self.wake();
        }
    }

    /// The loans out over all lanes, and what is in quarantine.
    pub fn outstanding(&self) -> (usize, usize) {
        let lanes = self.ports.iter().filter_map(|port| port.lane.as_ref());
        lanes.fold((0, 0), |(loans, kept), lane| (loans + lane.loans(), kept + lane.quarantined()))
    }
}

/// A port's facts beside its lane.
pub struct PortView<'a> {
    pub link: u32,
    pub number: u16,
    pub peer: &'a mut Option<DomainId>,
    pub place: &'a LanePlace,
}

/// The port at a position, if its lane has been taken.
pub fn port(ports: &mut [Port], at: usize) -> Option<(PortView<'_>, &mut Lane)> {
    let Port { lane, link, number, peer, place, .. } = ports.get_mut(at)?;
    Some((PortView { link: *link, number: *number, peer, place }, lane.as_mut()?))
}
