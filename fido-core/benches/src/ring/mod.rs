//! `fido bench ring`: what rings, lanes and loans cost between two processes, against the bare exchange of cache lines
//! below which nothing can go, and against what others offer.
//!
//! Each side has a sealed arena and a read-only window on the other's, as under the connection manager, and is pinned to
//! a core. Each question (`questions`) is a table; within a table all subjects are measured in turn in every round, so
//! that a disturbance of the machine hits all of them. Exchanges are timed one by one (the clock itself is a subject: its
//! cost is in every other), rates over a whole round. Every wait is bounded: a side that is gone or stuck ends the run
//! with an error.
//!
//! It says nothing about sleeping peers: both sides spin, except in what the kernel offers.

mod channel;
mod end;
mod fan;
mod lanes;
mod loans;
mod monitor;
mod questions;
mod shared;
mod spin;
mod verdict;
mod work;

use std::time::Duration;

use clap::Args;
use hdrhistogram::Histogram;

use crate::Failure;
use crate::machine::{self, Machine};
use crate::other_side::{Control, Part, Partner, Program};
use crate::report::{Output, Report};
use channel::{Via, Wait};
use end::{End, Side};
pub(crate) use end::{begin, domain};
pub(crate) use spin::spin;
use work::{Say, Work};

/// What is to be measured, and where the results go.
#[derive(Debug, Clone, Default, Args)]
pub struct Options {
    /// How often every subject gets its turn.
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rounds: u32,
    /// A twentieth of the messages and at most three rounds: for a first look.
    #[arg(long)]
    pub quick: bool,
    /// A few messages of each kind, once: to see that every table is filled, on a machine that has other things to do.
    #[arg(long, hide = true, conflicts_with = "quick")]
    pub tiny: bool,
    /// Asks only this question (may be given more than once).
    #[arg(long, value_name = "NAME", value_parser = questions::names())]
    pub only: Vec<String>,
    /// The cores of the measuring and of the other side [default: the first and the last that may be used].
    #[arg(long, value_name = "A,B", value_parser = pair)]
    pub cores: Option<(usize, usize)>,
    /// Where the results go.
    #[command(flatten)]
    pub output: Output,
}

/// Two different cores, as `A,B`.
fn pair(text: &str) -> Result<(usize, usize), String> {
    let cores = text.split_once(',').and_then(|(a, b)| Some((a.trim().parse().ok()?, b.trim().parse().ok()?)));
    match cores {
        Some((a, b)) if a == b => Err(format!("core {a} cannot be both")),
        Some(cores) => Ok(cores),
        None => Err("two numbers with a comma between them".into()),
    }
}

/// Measures, prints the tables, and writes what the options ask for. `program` says how this program becomes the other
/// side.
///
/// # Errors
/// If a side fails or a file cannot be written.
pub fn run(options: &Options, program: &Program<'_>) -> Result<(), Failure> {
    let cores = match options.cores {
        Some(cores) => cores,
        None => machine::two_cores()?.ok_or("two cores are needed, and this process may use only one")?,
    };
    let machine = Machine::here(Some(cores));
    let mut bench = Bench::start(program, cores, options)?;
    let mut tables = Vec::new();
    for (name, ask) in questions::ALL {
        if options.only.is_empty() || options.only.iter().any(|only| only == name) {
            eprintln!("{name} ...");
            tables.push(ask(&mut bench)?);
        }
    }
    bench.finish()?;
    let targets = verdict::targets(&tables);
    let report = Report { machine, tables, targets };
    report.publish(&options.output)
}

/// The median round trip of a message on a bare ring between two processes, in nanoseconds: a unit for other benchmarks.
///
/// # Errors
/// As for [`run`].
pub(crate) fn round_trip(program: &Program<'_>, quick: bool) -> Result<f64, Failure> {
    // Not on the caller's thread, which would stay on the core that this one is put on.
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let options = Options { rounds: 5, quick, ..Options::default() };
            let cores = machine::two_cores()?.ok_or("two cores are needed, and this process may use only one")?;
            let mut bench = Bench::start(program, cores, &options)?;
            let work = Work::Exchange { via: Via::Ring(Wait::Busy), batch: 1, count: bench.count(20_000) };
            let trips = bench.exchanges(&[work])?;
            bench.finish()?;
            Ok(trips.first().map_or(f64::NAN, |trips| trips.value_at_quantile(0.5) as f64))
        });
        thread.join().unwrap_or_else(|_| Err("the measuring thread panicked".into()))
    })
}

/// The two sides at work, as the leading one has them.
struct Bench {
    control: Control,
    end: End,
    partner: Partner,
    cores: (usize, usize),
    /// The cores were asked for: no others are to be used.
    chosen: bool,
    rounds: u32,
    size: Size,
}

/// How much is measured in a round.
#[derive(Debug, Clone, Copy)]
struct Size {
    /// One message of so many.
    divisor: u32,
    /// But so many of each kind.
    least: u32,
}

impl Bench {
    fn start(program: &Program<'_>, cores: (usize, usize), options: &Options) -> Result<Self, Failure> {
        let (partner, mut control) = Partner::start(program, Part::Ring)?;
        let end = End::meet(&mut control, Side::Lead)?;
        let (rounds, size) = match (options.tiny, options.quick) {
            (true, _) => (1, Size { divisor: 1000, least: 8 }),
            (_, true) => (options.rounds.min(3), Size { divisor: 20, least: 64 }),
            _ => (options.rounds, Size { divisor: 1, least: 64 }),
        };
        let chosen = options.cores.is_some();
        let mut bench = Self { control, end, partner, cores, chosen, rounds, size };
        bench.place(cores)?;
        Ok(bench)
    }

    /// Puts the two sides on these cores.
    fn place(&mut self, (lead, follow): (usize, usize)) -> Result<(), Failure> {
        machine::pin(Some(lead))?;
        self.cores = (lead, follow);
        self.work(Work::Move { core: follow }, &mut histogram()?).map(drop)
    }

    /// So many, or a part of them for a first look.
    fn count(&self, full: u32) -> u32 {
        (full / self.size.divisor).max(self.size.least)
    }

    /// Has both sides do a piece of work; how long it took.
    fn work(&mut self, work: Work, into: &mut Histogram<u64>) -> Result<Duration, Failure> {
        self.control.say(&Say::Work(work), &[])?;
        match self.control.hear()? {
            (Say::Ready, _) => {}
            (other, _) => return Err(format!("the other side said {other:?}").into()),
        }
        if matches!(work, Work::Fan(_)) && self.end.fan.is_none() {
            self.end.fan = Some(fan::Fan::meet(&mut self.control, Side::Lead)?);
        }
        self.partner.beat();
        work.lead(&mut self.end, Some(self.cores.1), into).map_err(|error| format!("{work:?}: {error}").into())
    }

    /// Does all of them in turn in every round: the exchanges of each, in nanoseconds. Round 0 warms everything up and
    /// does not count.
    fn exchanges(&mut self, works: &[Work]) -> Result<Vec<Histogram<u64>>, Failure> {
        let mut results = works.iter().map(|_| histogram()).collect::<Result<Vec<_>, _>>()?;
        let mut warm_up = histogram()?;
        for round in 0..=self.rounds {
            for (work, result) in works.iter().zip(&mut results) {
                self.work(*work, if round == 0 { &mut warm_up } else { result })?;
            }
        }
        Ok(results)
    }

    /// Does all of them in turn in every round: for each, how many nanoseconds one of its messages took in each round.
    fn costs(&mut self, works: &[(Work, u32)]) -> Result<Vec<Vec<f64>>, Failure> {
        let mut results = vec![Vec::new(); works.len()];
        let mut unused = histogram()?;
        for round in 0..=self.rounds {
            for ((work, count), result) in works.iter().zip(&mut results) {
                let took = self.work(*work, &mut unused)?;
                if round > 0 {
                    result.push(took.as_secs_f64() * 1e9 / f64::from(*count));
                }
            }
        }
        Ok(results)
    }

    fn finish(mut self) -> Result<(), Failure> {
        self.work(Work::Done, &mut histogram()?)?;
        self.partner.finish()
    }
}

fn histogram() -> Result<Histogram<u64>, Failure> {
    Ok(Histogram::new(3)?)
}

/// The other side's part.
pub(crate) fn follow(control: &mut Control) -> Result<(), Failure> {
    let mut end = End::meet(control, Side::Follow)?;
    loop {
        let (Say::Work(work), _) = control.hear()? else { return Err("the leading side is not ready either".into()) };
        control.say(&Say::Ready, &[])?;
        if matches!(work, Work::Fan(_)) && end.fan.is_none() {
            end.fan = Some(fan::Fan::meet(control, Side::Follow)?);
        }
        if matches!(work, Work::Done) {
            return Ok(());
        }
        work.follow(&mut end).map_err(|error| format!("{work:?}: {error}"))?;
    }
}
