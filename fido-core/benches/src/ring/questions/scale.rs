//! How do costs grow: with the size of a loan, with lanes, with links?

use crate::Failure;
use crate::report::{Column, Raw, Row, Table, median};
use crate::ring::Bench;
use crate::ring::end::LANES;
use crate::ring::fan::{LINKS, Requests};
use crate::ring::lanes::Lanes;
use crate::ring::loans::Loans;
use crate::ring::work::Work;

pub const LOANS: &str = "loans";
pub const LANES_NAME: &str = "lanes";
pub const FAN_IN: &str = "fan-in";

const SIZES: [u32; 6] = [64, 1 << 10, 16 << 10, 256 << 10, 1 << 20, 4 << 20];
/// The column with an untouched loan against one of 64 bytes.
pub const OF_SMALLEST: usize = 1;

pub fn ask_loans(bench: &mut Bench) -> Result<Table, Failure> {
    let mut works = Vec::new();
    for bytes in SIZES {
        let count = bench.count(50_000);
        works.push((Work::Loans(Loans { bytes, touch: false, count }), count));
        let count = bench.count(((64 << 20) / bytes).clamp(64, 20_000));
        works.push((Work::Loans(Loans { bytes, touch: true, count }), count));
    }
    let costs = bench.costs(&works)?;
    let columns = vec![
        Column::new("untouched, each", "ns", 1),
        Column::new("x 64 B", "", 2),
        Column::new("filled and read, each", "ns", 1),
        Column::new("bytes", "GB/s", 2),
    ];
    let mut table = Table::new(LOANS, "loans: lent, received and returned", columns);
    let smallest = costs.first().map_or(f64::NAN, |costs| median(costs));
    for (bytes, costs) in SIZES.iter().zip(costs.chunks_exact(2)) {
        let (untouched, touched) = (median(&costs[0]), median(&costs[1]));
        let rate = f64::from(*bytes) / touched;
        let cells = vec![Some(untouched), Some(untouched / smallest), Some(touched), Some(rate)];
        table.rows.push(Row { raw: Raw::Rounds(costs[0].clone()), ..Row::new(size(*bytes), cells) });
    }
    table.notes.push("untouched: one buffer lent again and again; nobody looks at its bytes".into());
    let note = "filled and read: the lender allocates a buffer for each loan and writes all of it, the borrower reads a \
                word of every cache line";
    table.notes.push(note.into());
    Ok(table)
}

/// The labels of all rows of [`ask_loans`].
pub fn loan_labels() -> [String; SIZES.len()] {
    SIZES.map(size)
}

fn size(bytes: u32) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..0x10_0000 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

pub fn ask_lanes(bench: &mut Bench) -> Result<Table, Failure> {
    let count = bench.count(200_000);
    let counts: Vec<usize> = (0..).map(|power| 1 << power).take_while(|lanes| *lanes <= LANES).collect();
    let cores = if bench.chosen { 2 } else { bench.end.allowed.len() };
    let lanes: Vec<_> = counts.iter().map(|lanes| Lanes::new(*lanes, cores, count)).collect();
    let works: Vec<_> = lanes.iter().map(|lanes| (Work::Lanes(*lanes), count)).collect();
    let columns = vec![
        Column::new("threads a side", "", 0),
        Column::new("median", "M/s", 2),
        Column::new("each", "ns", 1),
        Column::new("x one lane", "", 2),
    ];
    let mut table = Table::new(LANES_NAME, "lanes: messages one way over several lanes of a link", columns);
    let costs = bench.costs(&works)?;
    let one = costs.first().map_or(f64::NAN, |costs| median(costs));
    for (lanes, costs) in lanes.iter().zip(costs) {
        let each = median(&costs);
        let cells = vec![Some(lanes.threads as f64), Some(1e3 / each), Some(each), Some(one / each)];
        let label = format!("lanes {}", lanes.lanes);
        table.rows.push(Row { raw: Raw::Rounds(costs), ..Row::new(label, cells) });
    }
    let note = "a side has a thread for each lane, as long as there are cores for the threads of both sides; a thread with \
                several lanes looks at them in turn";
    table.notes.push(note.into());
    Ok(table)
}

pub fn ask_fan_in(bench: &mut Bench) -> Result<Table, Failure> {
    let count = bench.count(64_000);
    let all = |links| Requests { links, busy: links, count };
    let one_of = |links| Requests { links, busy: 1, count };
    let subjects = [all(1), all(4), all(16), all(LINKS), one_of(4), one_of(16), one_of(LINKS)];
    let works = subjects.map(|requests| (Work::Fan(requests), count));
    let columns = vec![Column::new("median", "M/s", 2), Column::new("each", "ns", 1), Column::new("x one link", "", 2)];
    let title = "fan-in: requests and answers of many domains with a link each to one that one thread serves";
    let mut table = Table::new(FAN_IN, title, columns);
    let costs = bench.costs(&works)?;
    let one = costs.first().map_or(f64::NAN, |costs| median(costs));
    for (Requests { links, busy, .. }, costs) in subjects.iter().zip(costs) {
        let each = median(&costs);
        let label = match busy == links {
            true => format!("{links} link{}", if *links == 1 { "" } else { "s" }),
            false => format!("{links} links, {busy} with requests"),
        };
        let cells = vec![Some(1e3 / each), Some(each), Some(one / each)];
        table.rows.push(Row { raw: Raw::Rounds(costs), ..Row::new(label, cells) });
    }
    table.notes.push("8 requests of each link under way; all clients share a thread of the other process".into());
    Ok(table)
}
