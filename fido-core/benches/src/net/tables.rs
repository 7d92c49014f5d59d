//! From what was measured to tables and verdicts.

use super::netperf::{TESTS, Test};
use super::way::{WAYS, Way};
use super::{Measured, SIZES};
use crate::report::{Column, Limit, Raw, Row, Table, Target, median};

/// What a stream by address is to carry, against loopback, from messages of so many bytes on.
const TIMES_LOOPBACK: f64 = 2.0;
const LARGE: usize = 16 << 10;
/// How much shorter its transactions are to be.
const TIMES_FASTER: f64 = 10.0;
/// Millions of small frames that a lane is to carry each second.
const MEGA_FRAMES: f64 = 10.0;
/// What of bytes is a gigabit.
const GIGABIT: f64 = 125e6;

/// All tables, and the targets.
pub fn all(measured: &[Measured], rounds: u32, no_veth: Option<&str>) -> (Vec<Table>, Vec<Target>) {
    let mut tables = Vec::new();
    for test in TESTS {
        let of: Vec<&Measured> = measured.iter().filter(|m| m.test == test && m.way != Way::Frames).collect();
        if of.is_empty() {
            continue;
        }
        if test.is_stream() {
            tables.push(streams(test, &of, rounds));
        } else {
            tables.push(transactions(test, &of, rounds));
            tables.push(tails(test, &of, rounds));
        }
    }
    let copied: Vec<&Measured> = measured.iter().filter(|m| m.test.is_stream() && m.bytes == LARGE).collect();
    if !copied.is_empty() {
        tables.push(copies(&copied));
    }
    if let Some(why) = no_veth {
        tables.iter_mut().for_each(|table| table.notes.push(format!("veth: {why}")));
    }
    tables.extend(measured.iter().find(|m| m.way == Way::Frames).map(|m| frames(m, rounds)));
    (tables, targets(measured))
}

/// `tcp-stream` for `TCP_STREAM`.
fn file_name(test: Test) -> String {
    test.name().to_lowercase().replace('_', "-")
}

fn size(bytes: usize) -> String {
    if bytes < 1024 { format!("{bytes} B") } else { format!("{} KiB", bytes >> 10) }
}

/// The columns of all ways with one unit, then with another.
fn columns(unit: &str, digits: usize, cost: &str) -> Vec<Column> {
    let by_way = WAYS.into_iter().map(|way| Column::new(way.name(), unit, digits));
    let costs = WAYS.into_iter().map(|way| Column::new(&format!("CPU, {}", way.name()), cost, 2));
    by_way.chain(costs).collect()
}

/// A row for each size: what `show` makes of each way's results, then the costs times `scale`.
fn rows(table: &mut Table, of: &[&Measured], scale: f64, show: impl Fn(&Measured) -> f64) {
    for bytes in SIZES {
        let by: Vec<Option<&&Measured>> =
            WAYS.iter().map(|way| of.iter().find(|m| m.bytes == bytes && m.way == *way)).collect();
        let mut cells: Vec<Option<f64>> = by.iter().map(|m| m.map(|m| show(m))).collect();
        cells.extend(by.iter().map(|m| m.map(|m| median(&m.costs) * scale)));
        let raw = Raw::Rounds(by.iter().flatten().flat_map(|m| m.rates.iter().copied()).collect());
        table.rows.push(Row { raw, ..Row::new(size(bytes), cells) });
    }
}

fn streams(test: Test, of: &[&Measured], rounds: u32) -> Table {
    let title = format!("{}: bytes that arrived, by size of message ({rounds} rounds)", test.name());
    let mut table = Table::new(&file_name(test), title, columns("Gb/s", 2, "s/GB"));
    // Nanoseconds per byte are seconds per gigabyte.
    rows(&mut table, of, 1.0, |m| median(&m.rates) / GIGABIT);
    table
        .notes
        .push("CPU: processor time of both processes; rounds in the raw data: bytes per second, way by way".into());
    table.notes.push(MODELS.into());
    if test.is_udp() {
        table.notes.push(format!("64 KiB: {} bytes, the longest datagram; streams have none", super::DATAGRAM_BYTES));
    }
    table
}

const MODELS: &str =
    "NetFront and XenLoop are models made for this benchmark: they copy once in and once out, and have no TCP above";

fn transactions(test: Test, of: &[&Measured], rounds: u32) -> Table {
    let title = format!("{}: median of a transaction, by size of request and response ({rounds} rounds)", test.name());
    let mut table = Table::new(&file_name(test), title, columns("us", 2, "us/transaction"));
    rows(&mut table, of, 1e-3, |m| m.at(0.5));
    table.notes.push(MODELS.into());
    table
}

fn tails(test: Test, of: &[&Measured], rounds: u32) -> Table {
    let bytes = SIZES[0];
    let title = format!("{} with {bytes} bytes ({rounds} rounds)", test.name());
    let columns = vec![
        Column::new("median", "us", 2),
        Column::new("p99", "us", 2),
        Column::new("p99.9", "us", 2),
        Column::new("transactions", "1/s", 0),
    ];
    let mut table = Table::new(&format!("{}-tail", file_name(test)), title, columns);
    for m in of.iter().filter(|m| m.bytes == bytes) {
        let mut cells: Vec<_> = [0.5, 0.99, 0.999].map(|at| Some(m.at(at))).to_vec();
        cells.push(Some(median(&m.rates)));
        table.rows.push(Row { raw: Raw::of(&m.times), ..Row::new(m.way.name(), cells) });
    }
    table
}

fn copies(of: &[&Measured]) -> Table {
    let columns =
        TESTS.into_iter().filter(|test| test.is_stream()).map(|test| Column::new(test.name(), "", 2)).collect();
    let title = format!("copies in user space of each byte that arrived, messages of {}", size(LARGE));
    let mut table = Table::new("copies", title, columns);
    for way in WAYS {
        let tests = TESTS.into_iter().filter(|test| test.is_stream());
        let cells: Vec<_> = tests.map(|test| of.iter().find(|m| m.way == way && m.test == test)?.copies).collect();
        if matches!(way, Way::Loop | Way::Veth) {
            table.rows.push(Row::absent(way.name(), "the kernel copies in and out: 2"));
        } else {
            table.rows.push(Row::new(way.name(), cells));
        }
    }
    table.notes.push(
        "counted by the domains' counters; for MMNet also what the sockets' faces copy, but not the stack's own copies \
         between its buffers and frames, which are 2 more"
            .into(),
    );
    table
}

/// Small frames with nothing above the link.
fn frames(m: &Measured, rounds: u32) -> Table {
    let title = format!("frames of {} bytes, one way ({rounds} rounds)", m.bytes);
    let columns = vec![Column::new("median", "M/s", 2), Column::new("CPU", "ns/frame", 1)];
    let mut table = Table::new("frames", title, columns);
    let (rate, cost) = (mega_frames(m), median(&m.costs) * m.bytes as f64);
    let row = Row::new("one lane", vec![Some(rate), Some(cost)]);
    table.rows.push(Row { raw: Raw::Rounds(m.rates.clone()), ..row });
    table.notes.push("CPU: of both sides; rounds in the raw data: bytes per second".into());
    table
}

/// Millions of frames a second.
fn mega_frames(m: &Measured) -> f64 {
    median(&m.rates) / m.bytes as f64 / 1e6
}

fn targets(measured: &[Measured]) -> Vec<Target> {
    let mut targets = Vec::new();
    let find = |test, bytes, way| measured.iter().find(|m| m.test == test && m.bytes == bytes && m.way == way);
    let mut aim = |what: String, limit, measured| targets.push(Target { what, limit, measured });
    let rate = |test, bytes, way| Some(median(&find(test, bytes, way)?.rates));
    for bytes in SIZES.into_iter().filter(|bytes| *bytes >= LARGE) {
        for way in [Way::Stream, Way::StreamRead] {
            let times = |test| Some(rate(test, bytes, way)? / rate(test, bytes, Way::Loop)?);
            let what = format!("TCP_STREAM, {}: {}, times Loop", size(bytes), way.name());
            aim(what, Limit::AtLeast(TIMES_LOOPBACK), times(Test::TcpStream));
        }
    }
    let bytes = SIZES[0];
    let faster = || {
        let at = |way| Some(find(Test::TcpRr, bytes, way)?.at(0.5));
        Some(at(Way::Loop)? / at(Way::Stream)?)
    };
    aim(
        format!("TCP_RR, {}: MMNet stream, times faster than Loop", size(bytes)),
        Limit::AtLeast(TIMES_FASTER),
        faster(),
    );
    for bytes in SIZES {
        let times = || Some(rate(Test::TcpStream, bytes, Way::MmNet)? / rate(Test::TcpStream, bytes, Way::XenLoop)?);
        aim(format!("TCP_STREAM, {}: MMNet, times XenLoop", size(bytes)), Limit::AtLeast(1.0), times());
    }
    let frames = measured.iter().find(|m| m.way == Way::Frames);
    let what = format!("frames of {} bytes over one lane, millions a second", super::SMALL_FRAME);
    aim(what, Limit::AtLeast(MEGA_FRAMES), frames.map(mega_frames));
    targets
}

impl Measured {
    /// A quantile of the times, in microseconds.
    fn at(&self, quantile: f64) -> f64 {
        self.times.value_at_quantile(quantile) as f64 / 1000.0
    }
}
