//! What is simulated: the seed, and what is drawn from it before the first step.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use conn_mgr::manager::topology::{Edge, Topology};
use fido_core::assignment::Transport;

use super::random::Random;

/// How the domains are linked. Whoever is not linked has a window on the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    Pair,
    Chain3,
    Chain4,
    /// Three into one, and that into a last one.
    FanIn,
    /// Four in a circle.
    Ring,
}

impl Shape {
    pub const ALL: [(Self, &'static str); 5] = [
        (Self::Pair, "pair"),
        (Self::Chain3, "chain3"),
        (Self::Chain4, "chain4"),
        (Self::FanIn, "fan-in"),
        (Self::Ring, "ring"),
    ];

    fn edges(self) -> &'static [[usize; 2]] {
        match self {
            Self::Pair => &[[0, 1]],
            Self::Chain3 => &[[0, 1], [1, 2]],
            Self::Chain4 => &[[0, 1], [1, 2], [2, 3]],
            Self::FanIn => &[[0, 3], [1, 3], [2, 3], [3, 4]],
            Self::Ring => &[[0, 1], [1, 2], [2, 3], [3, 0]],
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(shape, _)| shape == self).map_or("?", |(_, name)| name);
        f.write_str(name)
    }
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.map(|(_, name)| name).join(", ");
        let found = Self::ALL.iter().find(|(_, name)| *name == text);
        found.map(|(shape, _)| *shape).ok_or_else(|| format!("no topology {text:?}; there are: {known}"))
    }
}

/// A rule that is broken on purpose, so that it shows whether the simulator would notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// A survivor passes a fence as soon as it hears of the death.
    PassAtOnce,
    /// The death of a survivor counts as its word for the fences that it owes.
    DeathPasses,
    /// A loan is returned although its bytes are still read.
    ReturnEarly,
    /// What was lent to a dead one is given free without waiting for the fence.
    NoQuarantine,
    /// One message more is acknowledged than was taken.
    CreditEarly,
    /// The peer is not rung although it sleeps.
    NeverRing,
    /// An address of a dead incarnation is taken for one of its successor.
    AnyGeneration,
    /// A window is reported before it is there.
    MapLate,
    /// A window outlives the fence of its owner.
    KeepWindow,
    /// A survivor never says that it has passed a fence.
    NeverPass,
}

impl Mutation {
    pub const ALL: [(Self, &'static str); 10] = [
        (Self::PassAtOnce, "pass-at-once"),
        (Self::DeathPasses, "death-passes"),
        (Self::ReturnEarly, "return-early"),
        (Self::NoQuarantine, "no-quarantine"),
        (Self::CreditEarly, "credit-early"),
        (Self::NeverRing, "never-ring"),
        (Self::AnyGeneration, "any-generation"),
        (Self::MapLate, "map-late"),
        (Self::KeepWindow, "keep-window"),
        (Self::NeverPass, "never-pass"),
    ];
}

impl FromStr for Mutation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.map(|(_, name)| name).join(", ");
        let found = Self::ALL.iter().find(|(_, name)| *name == text);
        found.map(|(mutation, _)| *mutation).ok_or_else(|| format!("no mutation {text:?}; there are: {known}"))
    }
}

/// One run.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub seed: u64,
    /// Steps with faults; then the appliance comes to rest, and must be whole.
    pub steps: u64,
    pub shape: Shape,
    pub mutation: Option<Mutation>,
    /// Print every step.
    pub trace: bool,
}

impl Plan {
    /// The steps of a run if nobody says otherwise.
    pub const STEPS: u64 = 3000;

    /// The run of a seed: shapes take turns.
    pub fn of(seed: u64) -> Self {
        let (shape, _) = Shape::ALL[(seed % Shape::ALL.len() as u64) as usize];
        Self { seed, steps: Self::STEPS, shape, mutation: None, trace: false }
    }
}

/// What goes wrong, and how often: once in so many steps; 0 is never.
#[derive(Debug, Clone, Copy)]
pub struct Faults {
    pub crash: usize,
    pub stall: usize,
    /// Of the incarnations that start, one in so many goes wild.
    pub wild: usize,
}

/// The appliance of a run.
pub struct Appliance {
    pub topology: Topology,
    /// Slots of the rings and the transport, by link (from 1).
    pub links: Vec<(u32, Transport)>,
    /// The generation that each domain starts with.
    pub first: Vec<u16>,
    pub faults: Faults,
    /// How many steps a survivor has to pass a fence.
    pub deadline: u64,
}

impl Appliance {
    pub fn draw(shape: Shape, random: &mut Random) -> Self {
        let pairs = shape.edges();
        let domains = pairs.iter().flatten().max().map_or(0, |last| last + 1);
        let edge = |(link, ends): (u32, &[usize; 2])| Edge { link, ends: *ends, lanes: 1 };
        let mut edges: Vec<_> = (1u32..).zip(pairs).map(edge).collect();
        edges.iter_mut().for_each(|edge| edge.lanes = 1 + random.below(3) as u16);
        let all = (0..domains).flat_map(|a| (0..domains).map(move |b| (a, b)));
        let linked = |a, b| pairs.contains(&[a, b]) || pairs.contains(&[b, a]);
        let windows: BTreeSet<_> = all.filter(|&(a, b)| a != b && !linked(a, b)).collect();
        let links = edges.iter().map(|_| {
            let transport = if random.one_in(8) { Transport::Copying } else { Transport::Pointer };
            (4 << random.below(3), transport)
        });
        let links = links.collect();
        let wraps = random.one_in(8);
        let first = (0..domains).map(|_| if wraps { 4090 + random.below(6) as u16 } else { 1 }).collect();
        let crash = random.among(&[0, 1000, 300, 300, 100, 40]).unwrap_or(0);
        let stall = random.among(&[0, 0, 500, 100, 50]).unwrap_or(0);
        let wild = random.among(&[0, 0, 0, 4]).unwrap_or(0);
        Self {
            topology: Topology { domains, edges, windows },
            links,
            first,
            faults: Faults { crash, stall, wild },
            deadline: 1500,
        }
    }
}
