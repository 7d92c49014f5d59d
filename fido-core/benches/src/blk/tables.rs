//! From what was measured to tables and verdicts.

use super::load::Load;
use super::{Measured, Way};
use crate::report::{Column, Limit, Raw, Row, Table, Target, median};

/// Where the null device must be at the least, against copying.
const TIMES_COPYING: f64 = 5.0;
/// What of direct use must be left of a file.
const OF_DIRECT: f64 = 0.95;
/// How many round trips of a ring the way to the null device may cost.
const TRIPS: f64 = 1.5;

/// All tables, and the targets; `trip` is a ring's round trip in nanoseconds.
pub fn all(measured: &[Measured], trip: f64, rounds: u32) -> (Vec<Table>, Vec<Target>) {
    let of = |depth: u32, jobs: usize, bytes: fn(u32) -> bool| {
        let wanted = |m: &&Measured| m.load.depth == depth && m.load.jobs == jobs && bytes(m.load.bytes);
        measured.iter().filter(wanted).collect::<Vec<_>>()
    };
    let small: fn(u32) -> bool = |bytes| bytes <= 4096;
    let title = |what: &str| format!("{what} ({rounds} rounds)");
    let tables = vec![
        rates("iops-64", title("operations a second, 64 under way, one job"), &of(64, 1, small)),
        rates("iops-64-jobs", title("operations a second, 64 under way in each of two jobs"), &of(64, 2, small)),
        rates("large-8", title("operations of 256 KiB a second, 8 under way"), &of(8, 1, |bytes| bytes > 4096)),
        latencies(title("one request at a time"), &of(1, 1, small), trip),
    ];
    (tables, targets(measured, trip))
}

fn rates(name: &str, title: String, measured: &[&Measured]) -> Table {
    let mut columns: Vec<_> = super::WAYS.iter().map(|way| Column::new(way.name(), "1/s", 0)).collect();
    columns.push(Column::new("MMBlk / direct", "", 2));
    columns.push(Column::new("MMBlk / copying", "", 2));
    columns.extend(super::WAYS.iter().map(|way| Column::new(&format!("CPU, {}", way.name()), "us", 2)));
    let mut table = Table::new(name, title, columns);
    for first in measured.iter().filter(|m| m.way == Way::Direct) {
        let by = super::WAYS.map(|way| measured.iter().find(|m| m.is(first.subject, way, first.load)));
        let rate = by.map(|m| m.map(|m| median(&m.rates)));
        let ratio = |a: usize, b: usize| Some(rate[a]? / rate[b]?);
        let mut cells = rate.to_vec();
        cells.extend([ratio(2, 0), ratio(2, 1)]);
        cells.extend(by.map(|m| m.map(|m| median(&m.costs) / 1000.0)));
        let raw = Raw::Rounds(by.iter().flatten().flat_map(|m| m.rates.iter().copied()).collect());
        table.rows.push(Row { raw, ..Row::new(label(first), cells) });
    }
    table.notes.push(
        "CPU: processor time of both sides for each operation; rounds in the raw data: direct, copying, MMBlk".into(),
    );
    table
        .notes
        .push("copying is a model of blkfront and blkback: one copy, and a notification for each message".into());
    table
}

fn latencies(title: String, measured: &[&Measured], trip: f64) -> Table {
    let columns = vec![
        Column::new("median", "us", 2),
        Column::new("p99", "us", 2),
        Column::new("p99.9", "us", 2),
        Column::new("CPU", "us", 2),
        Column::new("beyond direct", "ring trips", 2),
    ];
    let mut table = Table::new("latency-1", title, columns);
    for first in measured.iter().filter(|m| m.way == Way::Direct) {
        for way in super::WAYS {
            let Some(one) = measured.iter().find(|m| m.is(first.subject, way, first.load)) else { continue };
            let beyond = (way != Way::Direct).then(|| (one.at(0.5) - first.at(0.5)) / trip);
            let times = [0.5, 0.99, 0.999].map(|at| Some(one.at(at) / 1000.0));
            let cells = [times.to_vec(), vec![Some(median(&one.costs) / 1000.0), beyond]].concat();
            let label = format!("{}, {}", label(first), way.name());
            table.rows.push(Row { raw: Raw::of(&one.times), ..Row::new(label, cells) });
        }
    }
    table.notes.push(format!("a ring's round trip in this run: {trip:.0} ns"));
    table
}

fn targets(measured: &[Measured], trip: f64) -> Vec<Target> {
    let mut targets = Vec::new();
    let find = |subject, way, load| measured.iter().find(|m| m.is(subject, way, load));
    let mut aim = |what: String, limit, measured| targets.push(Target { what, limit, measured });
    for direct in measured.iter().filter(|m| m.way == Way::Direct) {
        let Load { depth, .. } = direct.load;
        let by = |way| find(direct.subject, way, direct.load);
        let against = |other: Way| Some(median(&by(Way::MmBlk)?.rates) / median(&by(other)?.rates));
        let what = || format!("{}, {depth} x {}", label(direct), direct.load.jobs);
        if direct.subject == "null" && depth == 1 {
            let beyond = by(Way::MmBlk).map(|m| (m.at(0.5) - direct.at(0.5)) / trip);
            aim(format!("{}: ring trips beyond direct", what()), Limit::AtMost(TRIPS), beyond);
        } else if direct.subject == "null" && depth == 64 {
            aim(format!("{}: times copying", what()), Limit::AtLeast(TIMES_COPYING), against(Way::Copying));
        } else if direct.subject.starts_with("file") && depth > 1 {
            aim(format!("{}: of direct", what()), Limit::AtLeast(OF_DIRECT), against(Way::Direct));
        }
    }
    targets
}

fn label(measured: &Measured) -> String {
    let Load { write, bytes, .. } = measured.load;
    format!("{}, {} {bytes}", measured.subject, if write { "write" } else { "read" })
}

impl Measured {
    fn is(&self, subject: &str, way: Way, load: Load) -> bool {
        self.subject == subject && self.way == way && self.load == load
    }

    /// A quantile of the times, in nanoseconds.
    fn at(&self, quantile: f64) -> f64 {
        self.times.value_at_quantile(quantile) as f64
    }
}
