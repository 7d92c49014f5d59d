//! What waiting costs: spinning, sleeping and adaptive waiting in turns, in the situations that differ; what a sleep on
//! many sources costs, and by which means; an idle appliance; and serving threads that come and go with the load.

mod regimes;
mod tables;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use fido_core::assignment::WaitStrategy;
use hdrhistogram::Histogram;

use crate::Failure;
use crate::machine::Machine;
use crate::report::Report;
use regimes::{Length, REGIMES, Regime, Turn};

/// What is to be measured, and where the results go.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// How often every way to wait gets its turn.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rounds: u32,
    /// Writes everything that was measured as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Writes the tables' cells as CSV, one a line.
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Short turns: to see that it works, not what it costs.
    #[arg(long)]
    pub quick: bool,
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

/// Measures, prints the tables, and writes what the options ask for.
///
/// # Errors
/// If a thread fails or a file cannot be written.
pub fn run(options: &Options) -> Result<(), Failure> {
    let machine = Machine::here(None);
    let measured = measure(options)?;
    let mut report = Report { machine, tables: Vec::new(), targets: Vec::new() };
    tables::regimes(&measured, options.rounds, &mut report);
    println!("{report}");
    if let Some(path) = &options.json {
        report.write_json(path)?;
    }
    if let Some(path) = &options.csv {
        report.write_csv(path)?;
    }
    Ok(())
}

fn measure(options: &Options) -> Result<Vec<Measured>, Failure> {
    let millis = if options.quick { (5, 10) } else { (150, 350) };
    let length = Length { warm_up: Duration::from_millis(millis.0), counted: Duration::from_millis(millis.1) };
    let mut all = Vec::new();
    for regime in REGIMES {
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
