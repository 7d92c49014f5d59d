//! The table, and the raw results.

use std::fs;
use std::process::Command;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::subjects::{Rate, Trip};
use super::{Failure, Measured};

/// What the results depend on.
pub struct Machine {
    cpu: String,
    kernel: String,
    load: String,
    commit: String,
}

impl Machine {
    /// This machine, and the commit in the working directory.
    pub fn here() -> Self {
        let file = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let info = file("/proc/cpuinfo");
        let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let load = file("/proc/loadavg");
        Self {
            cpu: model.map_or_else(|| "unknown".into(), |(_, name)| name.trim().to_owned()),
            kernel: file("/proc/sys/kernel/osrelease").trim().to_owned(),
            load: load.split(' ').take(3).collect::<Vec<_>>().join(" "),
            commit: commit().unwrap_or_else(|| "unknown".into()),
        }
    }

    fn lines(&self, cores: Option<(usize, usize)>) -> [String; 4] {
        let cores = cores.map_or("not pinned (one core)".into(), |(a, b)| format!("{a} and {b}"));
        [
            format!("CPU     {}", self.cpu),
            format!("cores   {cores}; load before the run {}", self.load),
            format!("kernel  {}", self.kernel),
            format!("commit  {}", self.commit),
        ]
    }
}

fn commit() -> Option<String> {
    let output = Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=12"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn p50(measured: &Measured, wanted: Trip) -> f64 {
    let found = measured.trips.iter().find(|(trip, _)| *trip == wanted);
    found.map_or(f64::NAN, |(_, histogram)| histogram.value_at_quantile(0.5) as f64)
}

/// Prints the table.
pub fn print(machine: &Machine, cores: Option<(usize, usize)>, rounds: u32, measured: &Measured) {
    machine.lines(cores).iter().for_each(|line| println!("{line}"));
    let (floor, socket) = (p50(measured, Trip::Floor), p50(measured, Trip::Socket));
    println!("\nround trip between two processes, ns ({rounds} rounds, subjects in turn)");
    println!("{:<40}{:>9}{:>9}{:>9}{:>10}{:>14}", "", "median", "p99", "p99.9", "x floor", "socket / this");
    for (trip, histogram) in &measured.trips {
        let [median, p99, p999] = [0.5, 0.99, 0.999].map(|at| histogram.value_at_quantile(at));
        let name = trip.name();
        print!("{name:<40}{median:>9}{p99:>9}{p999:>9}");
        match trip {
            Trip::Clock => println!(),
            _ => println!("{:>10.1}{:>14.1}", median as f64 / floor, socket / median as f64),
        }
    }
    let packets = measured.rates.iter().find(|(rate, _)| *rate == Rate::Socket);
    let packets = packets.map_or(f64::NAN, |(_, rates)| median(rates));
    println!("\none way, million per second (median of the rounds)");
    println!("{:<40}{:>9}{:>9}{:>9}{:>10}{:>14}", "", "median", "least", "most", "ns each", "this / socket");
    for (rate, results) in &measured.rates {
        let least = results.iter().copied().fold(f64::INFINITY, f64::min);
        let (median, most) = (median(results), results.iter().copied().fold(0.0, f64::max));
        let name = rate.name();
        let [a, b, c] = [median, least, most].map(|rate| rate / 1e6);
        println!("{name:<40}{a:>9.2}{b:>9.2}{c:>9.2}{:>10.1}{:>14.1}", 1e9 / median, median / packets);
    }
}

fn buckets(histogram: &Histogram<u64>) -> Vec<Value> {
    histogram.iter_recorded().map(|step| json!([step.value_iterated_to(), step.count_at_value()])).collect()
}

/// Writes everything that was measured.
pub fn write_json(
    path: &str,
    machine: &Machine,
    cores: Option<(usize, usize)>,
    rounds: u32,
    measured: &Measured,
) -> Result<(), Failure> {
    let trips: Vec<Value> = measured
        .trips
        .iter()
        .map(|(trip, histogram)| json!({ "name": trip.name(), "unit": "ns", "histogram": buckets(histogram) }))
        .collect();
    let rates: Vec<Value> = measured
        .rates
        .iter()
        .map(|(rate, results)| json!({ "name": rate.name(), "unit": "1/s", "rounds": results }))
        .collect();
    let all = json!({
        "cpu": machine.cpu, "kernel": machine.kernel, "load": machine.load, "commit": machine.commit,
        "cores": cores.map(|(a, b)| [a, b]), "rounds": rounds, "round_trips": trips, "rates": rates,
    });
    fs::write(path, format!("{all}\n")).map_err(|error| format!("cannot write {path}: {error}"))?;
    Ok(())
}
