//! The demo's table.

use std::fmt::Write as _;

use crate::appliance::Mode;
use crate::probe::Probe;
use crate::workload::iozone::{Outcome, Phase};

/// One mode's results.
#[derive(Debug, Clone)]
pub struct ModeResult {
    /// Which mode.
    pub mode: Mode,
    /// Its phases.
    pub outcomes: Vec<Outcome>,
    /// What they cost, all together.
    pub cost: Probe,
}

impl ModeResult {
    fn find(&self, record: u32, phase: Phase) -> Option<&Outcome> {
        self.outcomes.iter().find(|outcome| outcome.record == record && outcome.phase == phase)
    }

    fn calls(&self) -> u64 {
        self.outcomes.iter().map(|outcome| outcome.calls).sum()
    }

    fn bytes(&self) -> u64 {
        self.outcomes.iter().map(|outcome| outcome.bytes).sum()
    }
}

/// The whole table: throughput and latency by record size and phase, ratios, and what a call costs.
pub fn table(results: &[ModeResult]) -> String {
    let mut text = String::new();
    throughput(&mut text, results);
    text.push('\n');
    costs(&mut text, results);
    text
}

// Writing to a String cannot fail: the results of `write!` are dropped below.

fn throughput(text: &mut String, results: &[ModeResult]) {
    let _ = write!(text, "{:>7} {:<12}", "record", "phase");
    for result in results {
        let _ = write!(text, " | {:^26}", result.mode.name());
    }
    let base = results.iter().find(|result| result.mode == Mode::Monolithic);
    let compared: Vec<&ModeResult> = results.iter().filter(|result| result.mode != Mode::Monolithic).collect();
    for result in base.iter().flat_map(|_| &compared) {
        let _ = write!(text, " | {:>7}/mono", result.mode.name());
    }
    let _ = write!(text, "\n{:>20}", "");
    for _ in results {
        let _ = write!(text, " | {:>9} {:>7} {:>8}", "MB/s", "p50 µs", "p99 µs");
    }
    text.push('\n');
    let Some(first) = results.first() else { return };
    for outcome in &first.outcomes {
        let (record, phase) = (outcome.record, outcome.phase);
        let _ = write!(text, "{:>7} {:<12}", size(record), phase.name());
        for result in results {
            match result.find(record, phase) {
                Some(outcome) => {
                    let (p50, p99) = (outcome.latency.value_at_quantile(0.5), outcome.latency.value_at_quantile(0.99));
                    let _ = write!(text, " | {:>9.1} {p50:>7} {p99:>8}", outcome.megabytes_per_second());
                }
                None => {
                    let _ = write!(text, " | {:>26}", "");
                }
            }
        }
        if let Some(base) = base.and_then(|base| base.find(record, phase)) {
            for result in &compared {
                let ratio = result.find(record, phase).map_or(f64::NAN, Outcome::megabytes_per_second);
                let _ = write!(text, " | {:>12.2}", ratio / base.megabytes_per_second());
            }
        }
        text.push('\n');
    }
}

fn costs(text: &mut String, results: &[ModeResult]) {
    let _ = write!(text, "{:<44}", "all phases together, per mode");
    for result in results {
        let _ = write!(text, " | {:>12}", result.mode.name());
    }
    text.push('\n');
    type Value = fn(&ModeResult) -> f64;
    let rows: [(&str, Value); 10] = [
        ("payload bytes copied per payload byte", |r| ratio(r.cost.stats.payload_bytes_copied, r.bytes())),
        ("header bytes copied per payload byte", |r| ratio(r.cost.stats.header_bytes_copied, r.bytes())),
        ("context switches per call", |r| ratio(r.cost.switches, r.calls())),
        ("system calls per call (own count)", |r| ratio(r.cost.stats.syscalls, r.calls())),
        ("messages between domains per call", |r| ratio(r.cost.stats.messages_sent, r.calls())),
        ("sleeps per call", |r| ratio(r.cost.stats.sleeps, r.calls())),
        ("doorbells rung per call", |r| ratio(r.cost.stats.bells_rung, r.calls())),
        ("doorbells suppressed per call", |r| ratio(r.cost.stats.bells_suppressed, r.calls())),
        ("processor microseconds per call", |r| r.cost.cpu.as_secs_f64() * 1e6 / r.calls().max(1) as f64),
        ("refused descriptors and addresses", |r| r.cost.stats.refusals as f64),
    ];
    for (name, value) in rows {
        let _ = write!(text, "{name:<44}");
        for result in results {
            let _ = write!(text, " | {:>12.3}", value(result));
        }
        text.push('\n');
    }
}

fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

/// A record size as people say it.
fn size(bytes: u32) -> String {
    match bytes {
        bytes if bytes >= 1 << 20 => format!("{}M", bytes >> 20),
        bytes if bytes >= 1 << 10 => format!("{}K", bytes >> 10),
        bytes => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdrhistogram::Histogram;
    use std::time::Duration;

    fn result(mode: Mode, millis: u64, copied: u64) -> ModeResult {
        let mut latency = Histogram::new(3).unwrap();
        latency.record(100).unwrap();
        let outcome = Outcome {
            record: 65536,
            phase: Phase::Write,
            calls: 10,
            bytes: 1_000_000,
            elapsed: Duration::from_millis(millis),
            latency,
        };
        let mut cost = Probe::default();
        cost.stats.payload_bytes_copied = copied;
        ModeResult { mode, outcomes: vec![outcome], cost }
    }

    #[test]
    fn ratios_are_to_the_monolith() {
        let text =
            table(&[result(Mode::Split, 20, 0), result(Mode::Copying, 40, 4_000_000), result(Mode::Monolithic, 10, 0)]);
        let row = text.lines().find(|line| line.contains("64K write")).unwrap();
        assert!(row.contains("50.0") && row.ends_with("0.50 |         0.25"), "{row}");
        let copies = text.lines().find(|line| line.starts_with("payload bytes copied")).unwrap();
        assert!(copies.ends_with("0.000 |        4.000 |        0.000"), "{copies}");
    }
}
