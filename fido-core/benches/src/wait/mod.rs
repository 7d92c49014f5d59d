//! What waiting costs: spinning, sleeping and adaptive waiting in turns, in the situations that differ; what binding
//! domains to processors brings when there are more domains than processors; what a sleep on
//! many sources costs, and by which means; an idle appliance; and serving threads that come and go with the load.

pub mod idle;
mod placement;
mod regimes;
mod scaling;
mod sources;
mod tables;

use std::time::Duration;

use clap::Args;
use clap::builder::PossibleValuesParser;
use fido_core::assignment::WaitStrategy;
use hdrhistogram::Histogram;

use crate::Failure;
use crate::machine::Machine;
use crate::other_side::Program;
use crate::report::{Output, Report};
use regimes::{Length, REGIMES, Regime, TABLES, Turn};
use sources::{MEANS, SOURCES, Wakes};

/// What is to be measured, and where the results go.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// How often every way to wait gets its turn.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rounds: u32,
    /// Where the results go.
    #[command(flatten)]
    pub output: Output,
    /// Short turns: to see that it works, not what it costs.
    #[arg(long)]
    pub quick: bool,
    /// Measures only this table (may be given more than once).
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(names()))]
    pub only: Vec<String>,
}

impl Options {
    fn asks_for(&self, table: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == table)
    }
}

/// The names of all tables.
fn names() -> impl Iterator<Item = &'static str> {
    TABLES.into_iter().chain(["placement", "sources", "lanes", "idle", "crew"])
}

/// The ways to wait.
const WAYS: [WaitStrategy; 3] = [WaitStrategy::Spin, WaitStrategy::Sleep, WaitStrategy::Adaptive];

/// One way to wait in one regime.
struct Measured {
    regime: Regime,
    wait: WaitStrategy,
    times: Histogram<u64>,
    turns: Vec<Turn>,
}

/// Measures, prints the tables, and writes what the options ask for. `domain` says how this program becomes a domain of
/// the appliance that idles ([`idle::domain`]).
///
/// # Errors
/// If a thread or a domain fails, or a file cannot be written.
pub fn run(options: &Options, domain: &Program<'_>) -> Result<(), Failure> {
    let mut report = Report { machine: Machine::here(None), tables: Vec::new(), targets: Vec::new() };
    let millis = |quick, full| Duration::from_millis(if options.quick { quick } else { full });
    let length = Length { warm_up: millis(5, 150), counted: millis(10, 350) };
    tables::regimes(&regimes_in_turn(options, length)?, options.rounds, &mut report);
    if options.asks_for("placement") {
        tables::placement(&placement::measure(options.rounds, length)?, &mut report);
    }
    if options.asks_for("sources") {
        tables::sources(&sources_in_turn(options)?, &mut report);
    }
    if options.asks_for("lanes") {
        tables::lanes(&lanes(options)?, &mut report);
    }
    if options.asks_for("idle") {
        let idle = |wait| Ok((wait, idle::measure(wait, millis(200, 5000), domain)?));
        let both =
            [WaitStrategy::Sleep, WaitStrategy::Adaptive].map(idle).into_iter().collect::<Result<Vec<_>, Failure>>();
        tables::idle(&both?, &mut report);
    }
    if options.asks_for("crew") {
        let most = std::thread::available_parallelism().map_or(1, usize::from);
        for most in [1, most.max(2)] {
            tables::scaling(most, &scaling::measure(most, millis(50, 1000))?, &mut report);
        }
    }
    report.publish(&options.output)
}

fn regimes_in_turn(options: &Options, length: Length) -> Result<Vec<Measured>, Failure> {
    let mut all = Vec::new();
    for regime in REGIMES.into_iter().filter(|regime| options.asks_for(regime.table())) {
        for wait in WAYS {
            all.push(Measured { regime, wait, times: Histogram::new(3)?, turns: Vec::new() });
        }
    }
    for _ in 0..options.rounds {
        for measured in &mut all {
            let turn = regimes::play(measured.regime, measured.wait, length, &mut measured.times)?;
            measured.turns.push(turn);
        }
    }
    Ok(all)
}

/// Every means with every number of sources.
fn sources_in_turn(options: &Options) -> Result<Vec<Wakes>, Failure> {
    let wakes = if options.quick { 20 } else { 2000 };
    let mut all = Vec::new();
    for sources in SOURCES {
        for means in MEANS {
            all.push(sources::measure(means, sources, wakes)?);
        }
    }
    Ok(all)
}

/// A sleep of a thread with so many lanes, in nanoseconds.
fn lanes(options: &Options) -> Result<Vec<(usize, f64)>, Failure> {
    let sleeps = if options.quick { 20 } else { 2000 };
    SOURCES.into_iter().map(|lanes| Ok((lanes, sources::lanes(lanes, sleeps)?))).collect()
}
