//! Runs simulated appliances, by seed or for a time: see `docs/testing.md`.

#[path = "../tests/simulation/simulator/mod.rs"]
mod simulator;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use simulator::{Coverage, Mutation, Plan, Shape};

/// Simulates appliances step by step: crashes, stalls, restarts, wild domains, late messages.
#[derive(Parser)]
struct Arguments {
    /// One seed.
    #[arg(long)]
    seed: Option<u64>,
    /// Seeds FROM..TO.
    #[arg(long, value_parser = range, conflicts_with = "seed")]
    seeds: Option<std::ops::Range<u64>>,
    /// So many minutes, from the first seed on.
    #[arg(long)]
    minutes: Option<u64>,
    /// Steps with faults.
    #[arg(long, default_value_t = Plan::STEPS)]
    steps: u64,
    /// pair, chain3, chain4, fan-in or ring; otherwise by the seed.
    #[arg(long)]
    topology: Option<Shape>,
    /// Break a rule on purpose.
    #[arg(long)]
    mutation: Option<Mutation>,
    /// Print every step.
    #[arg(long)]
    trace: bool,
    /// Go on after a failure.
    #[arg(long)]
    keep_going: bool,
}

fn range(text: &str) -> Result<std::ops::Range<u64>, String> {
    let parse = |number: &str| number.parse::<u64>().map_err(|error| format!("{number:?}: {error}"));
    let (from, to) = text.split_once("..").ok_or("seeds are given as FROM..TO")?;
    Ok(parse(from)?..parse(to)?)
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seeds = match (arguments.seed, arguments.seeds.clone()) {
        (Some(seed), _) => seed..seed + 1,
        (None, Some(seeds)) => seeds,
        (None, None) => 0..u64::MAX,
    };
    let bounded = arguments.seed.is_some() || arguments.seeds.is_some();
    let limit = arguments.minutes.or((!bounded).then_some(1)).map(|minutes| Duration::from_secs(60 * minutes));
    let (began, mut total, mut runs, mut failures) = (Instant::now(), Coverage::default(), 0u64, 0u64);
    for seed in seeds {
        if limit.is_some_and(|limit| began.elapsed() >= limit) {
            break;
        }
        let plan = Plan::of(seed);
        let shape = arguments.topology.unwrap_or(plan.shape);
        let plan = Plan { steps: arguments.steps, shape, mutation: arguments.mutation, trace: arguments.trace, ..plan };
        runs += 1;
        match simulator::run(plan) {
            Ok(coverage) => total.add(&coverage),
            Err(failure) if arguments.trace => {
                failures += 1;
                println!("{failure}");
            }
            Err(failure) => {
                failures += 1;
                println!("{}", simulator::shrink(failure));
            }
        }
        if failures > 0 && !arguments.keep_going {
            break;
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    println!("{runs} appliances in {seconds:.1} s, {failures} failures");
    print!("{total}");
    let rate = |count: u64| count as f64 / seconds;
    println!("{:.0} steps and {:.0} deliveries per second", rate(total.steps), rate(total.deliveries));
    if failures > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
