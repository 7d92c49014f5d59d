//! An appliance of three domains on two processors: what becomes of the one that finds none of its own.
//!
//! `cpus = "auto"` places those with most lanes and leaves the others unbound. Beside that, nobody is bound, or
//! everybody is: the one that is left over to the processor of one of the others.

use conn_mgr::manifest::{Cpus, Domain, Link, Manifest};
use conn_mgr::placement::Plan;
use fido_core::assignment::WaitStrategy;
use hdrhistogram::Histogram;

use super::regimes::{self, DOMAINS, Length, Places, Turn};
use crate::{Failure, machine};

/// Questions under way.
const DEPTHS: [usize; 2] = [1, 16];

/// What one way to place the domains came to.
pub struct Placed {
    /// Who is where.
    pub name: String,
    /// Questions under way.
    pub depth: usize,
    /// It is what `auto` does.
    pub is_auto: bool,
    /// The times of all answers, in nanoseconds.
    pub times: Histogram<u64>,
    /// The turns.
    pub turns: Vec<Turn>,
}

/// Measures all ways in turn, so many times. Nothing where this process may use only one processor.
///
/// # Errors
/// If the system has no threads or descriptors left, or a thread failed.
pub fn measure(rounds: u32, length: Length) -> Result<Vec<Placed>, Failure> {
    let Some((first, last)) = machine::two_cores()? else { return Ok(Vec::new()) };
    let before = machine::allowed_cores()?;
    // Of more processors nobody would be left over.
    machine::keep_on(&[first, last])?;
    let mut ways = Vec::new();
    for depth in DEPTHS {
        for (name, is_auto, places) in ways_to_place(first, last)? {
            ways.push((places, Placed { name, depth, is_auto, times: Histogram::new(3)?, turns: Vec::new() }));
        }
    }
    for _ in 0..rounds {
        for (places, way) in &mut ways {
            let turn = regimes::appliance(WaitStrategy::Adaptive, way.depth, *places, length, &mut way.times)?;
            way.turns.push(turn);
        }
    }
    machine::keep_on(&before)?;
    Ok(ways.into_iter().map(|(_, way)| way).collect())
}

/// The names and the places, and whether that is what `auto` does.
fn ways_to_place(first: usize, last: usize) -> Result<Vec<(String, bool, Places)>, Failure> {
    let mut manifest = Manifest::new("crowded");
    for name in DOMAINS {
        manifest.domains.push(Domain { cpus: Cpus::Auto(1), ..Domain::new(name, "program") });
    }
    for pair in DOMAINS.windows(2) {
        manifest.links.push(Link::new(format!("{}-{}", pair[0], pair[1]), pair[0], pair[1]));
    }
    let plan = Plan::here(&manifest);
    let mut auto: Places = [None; DOMAINS.len()];
    for (place, planned) in auto.iter_mut().zip(&plan.places) {
        *place = planned.cpus().first().map(|cpu| *cpu as usize);
    }
    let left = auto.iter().position(Option::is_none).ok_or("three domains have found a place on two processors")?;
    let mut ways = vec![("nobody bound".to_owned(), false, [None; DOMAINS.len()])];
    ways.push((format!("auto: {} left over", DOMAINS[left]), true, auto));
    for cpu in [first, last] {
        let mut all = auto;
        all[left] = Some(cpu);
        let with = auto.iter().position(|place| *place == Some(cpu)).map_or("nobody", |index| DOMAINS[index]);
        ways.push((format!("all bound: {} to the processor of {with}", DOMAINS[left]), false, all));
    }
    Ok(ways)
}
