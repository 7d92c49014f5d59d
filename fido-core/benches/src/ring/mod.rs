//! What a ring and a lane cost between two processes, against the bare cache-line exchange below which nothing can
//! go, and against what the kernel offers instead.
//!
//! Each side has a sealed arena and a read-only window on the other's, as under the connection manager. Both are pinned
//! to a core of their own if there are two. All subjects are measured in turn in every round, so that a disturbance of
//! the machine hits all of them. Round trips are timed one by one (the clock itself is a subject: its cost is in every
//! other), rates over a whole round.

mod setup;
mod subjects;
mod tables;

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use hdrhistogram::Histogram;

use crate::Failure;
use crate::machine::{self, Machine};
use crate::other_side::{Control, Part, Partner, Program};
use crate::report::Report;
use setup::{End, Say, Side};
use subjects::{RATES, Rate, TRIPS, Trip};

/// What is to be measured, and where the results go.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// How often every subject gets its turn.
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rounds: u32,
    /// Writes everything that was measured as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Writes the tables' cells as CSV, one a line.
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
}

/// What was measured.
struct Measured {
    /// Round trips in nanoseconds, one histogram for each of [`TRIPS`].
    trips: Vec<(Trip, Histogram<u64>)>,
    /// Messages per second in each round, for each of [`RATES`].
    rates: Vec<(Rate, Vec<f64>)>,
}

/// Measures, prints the tables, and writes what the options ask for. `program` says how this program becomes the other
/// side.
///
/// # Errors
/// If a side fails or a file cannot be written.
pub fn run(options: &Options, program: &Program<'_>) -> Result<(), Failure> {
    let cores = machine::two_cores()?;
    let machine = Machine::here(cores);
    machine::pin(cores.map(|(lead, _)| lead))?;
    let (partner, mut control) = Partner::start(program, Part::Ring)?;
    let mut end = End::meet(&mut control, Side::Lead, cores.map(|(_, follow)| follow))?;
    let measured = measure(&mut control, &mut end, options.rounds)?;
    partner.finish()?;
    let report = Report { machine, tables: tables::all(&measured, options.rounds), targets: Vec::new() };
    println!("{report}");
    if let Some(path) = &options.json {
        report.write_json(path)?;
    }
    if let Some(path) = &options.csv {
        report.write_csv(path)?;
    }
    Ok(())
}

fn measure(control: &mut Control, end: &mut End, rounds: u32) -> Result<Measured, Failure> {
    let empty = || Histogram::<u64>::new(3);
    let mut trips = Vec::new();
    for trip in TRIPS {
        trips.push((trip, empty()?));
    }
    let mut rates: Vec<_> = RATES.iter().map(|rate| (*rate, Vec::new())).collect();
    // Round 0 warms everything up and does not count.
    for round in 0..=rounds {
        for (index, (trip, histogram)) in trips.iter_mut().enumerate() {
            order(control, Say::Trip { index })?;
            let mut warm_up = empty()?;
            trip.lead(end, if round == 0 { &mut warm_up } else { histogram })?;
        }
        for (index, (rate, results)) in rates.iter_mut().enumerate() {
            order(control, Say::Rate { index })?;
            let began = Instant::now();
            rate.lead(end)?;
            if round > 0 {
                results.push(f64::from(rate.count()) / began.elapsed().as_secs_f64());
            }
        }
    }
    control.say(&Say::Done, &[])?;
    Ok(Measured { trips, rates })
}

/// Has the other side play its part, and waits until it is about to.
fn order(control: &mut Control, say: Say) -> Result<(), Failure> {
    control.say(&say, &[])?;
    match control.hear()? {
        (Say::Ready, _) => Ok(()),
        (other, _) => Err(format!("the other side said {other:?}").into()),
    }
}

/// The other side's part.
pub(crate) fn follow(control: &mut Control) -> Result<(), Failure> {
    let mut end = End::meet(control, Side::Follow, None)?;
    loop {
        let (say, _) = control.hear()?;
        let known = |index| format!("no subject {index}");
        match say {
            Say::Trip { index } => {
                let trip = TRIPS.get(index).ok_or_else(|| known(index))?;
                control.say(&Say::Ready, &[])?;
                trip.follow(&mut end)?;
            }
            Say::Rate { index } => {
                let rate = RATES.get(index).ok_or_else(|| known(index))?;
                control.say(&Say::Ready, &[])?;
                rate.follow(&mut end)?;
            }
            Say::Done => return Ok(()),
            other => return Err(format!("the leading side said {other:?}").into()),
        }
    }
}
