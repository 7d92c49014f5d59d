//! Where domains run: `cpus = "auto"` in a manifest becomes processors.
//!
//! Linked domains come as near to each other as the machine allows: by the measured matrix of hand-overs if one is kept
//! for this machine (`fido topo --save`), else by the topology. The decision is made once, before anything is started,
//! so a restart keeps its place. It is pure and deterministic ([`plan`], with the arithmetic in [`search`]);
//! [`Plan::here`] asks the machine.
//!
//! * A domain gets processors of its own: not one that the manifest gives to somebody, not one of another domain.
//! * Nobody shares a core (as a hardware thread beside another) while a whole core is free, although siblings are the
//!   nearest of all: they take turns with the execution units, and one that polls slows the other down.
//! * If there are not enough processors, those with most lanes are placed. The others are not pinned: whoever is bound to
//!   a processor that somebody else occupies has to wait while another one idles; free to move, it uses any gap.
//!
//! It does not look at load, and it moves nobody who runs.

pub mod search;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;

use fido_core::topology::{Distance, Matrix, Origin, Topology, allowed, list, store};
use serde::Serialize;

use crate::manifest::{Cpus, Manifest, Platform};
use search::{Demand, MAX_COST, Problem};

/// Where a domain runs, and who said so.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "placed", content = "cpus")]
pub enum Place {
    /// Nobody cares: on all processors.
    #[default]
    Anywhere,
    /// On these, by the manifest.
    Given(Vec<u32>),
    /// On these, by the plan.
    Chosen(Vec<u32>),
    /// It was to be placed, but there were not enough processors: on all.
    LeftOver,
}

impl Place {
    /// The processors; empty for all.
    pub fn cpus(&self) -> &[u32] {
        match self {
            Self::Given(cpus) | Self::Chosen(cpus) => cpus,
            Self::Anywhere | Self::LeftOver => &[],
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anywhere => f.write_str("all"),
            Self::Given(cpus) => f.write_str(&list::format(cpus)),
            Self::Chosen(cpus) => write!(f, "{} (auto)", list::format(cpus)),
            Self::LeftOver => f.write_str("all (auto: none left)"),
        }
    }
}

/// What a plan rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// Hand-overs that were measured on this machine.
    Measured,
    /// What the system says of cores, caches and nodes.
    Topology,
}

impl fmt::Display for Basis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Measured => "placed by the hand-overs measured on this machine",
            Self::Topology => "placed by the topology (`fido topo --save` keeps measured hand-overs)",
        })
    }
}

/// The places of all domains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// One for each domain of the manifest.
    pub places: Vec<Place>,
    /// What it rests on.
    pub basis: Basis,
    /// What people should know about it: who was left over and what could not be used.
    pub remarks: Vec<String>,
    /// The links between placed domains: their names, and how near the ends are.
    pub links: Vec<PlannedLink>,
}

/// A link between two placed domains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedLink {
    /// Its name.
    pub name: String,
    /// The farthest distance between its ends.
    pub distance: Distance,
    /// The mean cost of a hand-over between its ends in nanoseconds, if each of them was measured.
    pub ns: Option<u64>,
}

impl Plan {
    /// The plan for a manifest on this machine. Guests of Xen are not placed: the hypervisor has its own setting.
    pub fn here(manifest: &Manifest) -> Self {
        if manifest.platform != Platform::Host {
            let places = vec![Place::Anywhere; manifest.domains.len()];
            return Self { places, basis: Basis::Topology, remarks: Vec::new(), links: Vec::new() };
        }
        if !manifest.domains.iter().any(|domain| matches!(domain.cpus, Cpus::Auto(_))) {
            return plan(manifest, &Topology::flat(&[]), None);
        }
        let mut remarks = Vec::new();
        let topology = Topology::discover().unwrap_or_else(|error| {
            remarks.push(format!("all processors count as equally near: {error}"));
            Topology::flat(&allowed().unwrap_or_default())
        });
        let kept = store::directory().and_then(|folder| store::load(&folder, &topology));
        let matrix = kept.unwrap_or_else(|error| {
            remarks.push(format!("no measured matrix is used: {error}"));
            None
        });
        let mut plan = plan(manifest, &topology, matrix.as_ref());
        plan.remarks.splice(0..0, remarks);
        plan
    }

    /// Writes the places into the manifest, which has no `auto` then.
    pub fn apply(&self, manifest: &mut Manifest) {
        for (domain, place) in manifest.domains.iter_mut().zip(&self.places) {
            domain.cpus = match place.cpus() {
                [] => Cpus::All,
                cpus => Cpus::List(cpus.to_vec()),
            };
        }
    }

    /// Whether there was anything to decide.
    pub fn decides(&self) -> bool {
        self.places.iter().any(|place| matches!(place, Place::Chosen(_) | Place::LeftOver))
    }
}

/// For people: what it rests on, how near linked domains are, and what else there is to know.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.basis)?;
        for PlannedLink { name, distance, ns } in &self.links {
            write!(f, "\n  link {name}: {distance}")?;
            if let Some(ns) = ns {
                write!(f, ", {ns} ns for a hand-over")?;
            }
        }
        self.remarks.iter().try_for_each(|remark| write!(f, "\n  {remark}"))
    }
}

/// The plan for a manifest on a machine, by a matrix that holds all its allowed processors or else by distances. A matrix
/// in which nothing between them was measured says no more than the distances: it is not used.
pub fn plan(manifest: &Manifest, topology: &Topology, kept: Option<&Matrix>) -> Plan {
    let cpus = &topology.allowed;
    let matrix = kept.filter(|matrix| holds_measurements(matrix, cpus));
    let problem = problem(manifest, topology, matrix);
    let solution = search::solve(&problem);
    let place = |(domain, places): (&crate::manifest::Domain, &Option<Vec<usize>>)| match (&domain.cpus, places) {
        (Cpus::All, _) => Place::Anywhere,
        (Cpus::List(list), _) => Place::Given(list.clone()),
        (Cpus::Auto(_), Some(places)) => Place::Chosen(places.iter().map(|&place| cpus[place]).collect()),
        (Cpus::Auto(_), None) => Place::LeftOver,
    };
    let places: Vec<Place> = manifest.domains.iter().zip(&solution.places).map(place).collect();
    let basis = if matrix.is_some() { Basis::Measured } else { Basis::Topology };
    let mut remarks = Vec::new();
    if kept.is_some() && matrix.is_none() && cpus.len() > 1 {
        remarks.push("nothing in the kept matrix was measured between these processors: it is not used".into());
    }
    // The manifest may give away processors that are not allowed here.
    let given: BTreeSet<&u32> = places.iter().flat_map(Place::cpus).collect();
    let free = cpus.iter().filter(|cpu| !given.contains(cpu)).count();
    for (domain, _) in manifest.domains.iter().zip(&places).filter(|(_, place)| **place == Place::LeftOver) {
        let Cpus::Auto(count) = domain.cpus else { continue };
        remarks.push(format!(
            "domain `{}` wants {count} of its own and {free} of the {} processors are left: it is not pinned",
            domain.name,
            cpus.len()
        ));
    }
    if !solution.proven {
        remarks.push("too many possibilities to try them all: there may be a better plan".into());
    }
    let links = planned_links(manifest, &places, topology, matrix);
    Plan { places, basis, remarks, links }
}

fn holds_measurements(matrix: &Matrix, cpus: &[u32]) -> bool {
    let is_of_these = |cpu: u32| cpus.binary_search(&cpu).is_ok();
    let mut measured = matrix.pairs().filter(|(_, hand_over)| hand_over.origin == Origin::Measured);
    measured.any(|((from, to), _)| is_of_these(from) && is_of_these(to))
}

/// The manifest and the machine in numbers.
fn problem(manifest: &Manifest, topology: &Topology, matrix: Option<&Matrix>) -> Problem {
    let cpus = &topology.allowed;
    let place = |cpu: &u32| cpus.binary_search(cpu).ok();
    let core = |&cpu: &u32| topology.cpu(cpu).map_or(cpu, |cpu| cpu.core()) as usize;
    let demand = |domain: &crate::manifest::Domain| match &domain.cpus {
        Cpus::All => Demand::Anywhere,
        Cpus::List(list) => Demand::Fixed(list.iter().filter_map(place).collect()),
        Cpus::Auto(count) => Demand::Some(usize::from(*count)),
    };
    let link = |link: &crate::manifest::Link| {
        let [a, b] = &link.between;
        Some((manifest.position(a)?, manifest.position(b)?, u64::from(link.lanes)))
    };
    let row = |&a: &u32| cpus.iter().map(|&b| cost(topology, matrix, a, b)).collect();
    Problem {
        cores: cpus.iter().map(core).collect(),
        costs: cpus.iter().map(row).collect(),
        domains: manifest.domains.iter().map(demand).collect(),
        links: manifest.links.iter().filter_map(link).collect(),
    }
}

/// A hand-over there and one back, in tenths of nanoseconds.
fn cost(topology: &Topology, matrix: Option<&Matrix>, a: u32, b: u32) -> u64 {
    let way = |from, to| match matrix.and_then(|matrix| matrix.get(from, to)) {
        Some(hand_over) => hand_over.ns,
        None => topology.distance(from, to).nominal_ns(),
    };
    // The conversion is saturating.
    (((way(a, b) + way(b, a)) * 10.0).round() as u64).min(MAX_COST)
}

fn planned_links(
    manifest: &Manifest,
    places: &[Place],
    topology: &Topology,
    matrix: Option<&Matrix>,
) -> Vec<PlannedLink> {
    let mut links = Vec::new();
    for link in &manifest.links {
        let [a, b] = link.between.each_ref().map(|end| manifest.position(end).and_then(|at| places.get(at)));
        let (Some(a), Some(b)) = (a, b) else { continue };
        let pairs: Vec<(u32, u32)> = a.cpus().iter().flat_map(|&a| b.cpus().iter().map(move |&b| (a, b))).collect();
        let Some(distance) = pairs.iter().map(|&(a, b)| topology.distance(a, b)).max() else { continue };
        let tenths: u64 = pairs.iter().map(|&(a, b)| cost(topology, matrix, a, b)).sum();
        let is_measured = |from, to| {
            matrix.and_then(|matrix| matrix.get(from, to)).is_some_and(|cell| cell.origin == Origin::Measured)
        };
        let all_measured = pairs.iter().all(|&(a, b)| is_measured(a, b) && is_measured(b, a));
        // There and back, in tenths.
        let ns = all_measured.then(|| tenths / pairs.len() as u64 / 20);
        links.push(PlannedLink { name: link.name.clone(), distance, ns });
    }
    links
}
