//! What do the instructions do with which a spinning core waits? (Fip-see's Tables 3 to 7.)

use super::{histogram_row, median, quantile_cells, quantiles};
use crate::Failure;
use crate::report::{Column, Row, Table};
use crate::ring::Bench;
use crate::ring::channel::{Via, Wait};
use crate::ring::monitor;
use crate::ring::work::Work;

pub const PAUSE: &str = "pause";
pub const MONITOR: &str = "monitor";

const BATCH: u32 = 64;

pub fn ask_pause(bench: &mut Bench) -> Result<Table, Failure> {
    let title = "pause: spinning with and without the hint for spin loops";
    waits(bench, PAUSE, title, &[Wait::Busy, Wait::Pause])
}

pub fn ask_monitor(bench: &mut Bench) -> Result<Table, Failure> {
    let title = "monitor: waiting for a cache line by an instruction, beside spinning";
    let monitors = monitor::ALL.map(Wait::Monitor);
    waits(bench, MONITOR, title, &[&[Wait::Busy], &monitors[..]].concat())
}

/// Round trips, and batches there and back, of floor and rings under each way of waiting.
pub fn waits(bench: &mut Bench, name: &str, title: &str, waits: &[Wait]) -> Result<Table, Failure> {
    let vias: [fn(Wait) -> Via; 3] = [Via::Floor, Via::Ring, Via::Flagged];
    let all: Vec<Via> = vias.iter().flat_map(|via| waits.iter().map(|wait| via(*wait))).collect();
    let (absent, present): (Vec<Via>, Vec<Via>) = all.into_iter().partition(|via| via.absent().is_some());
    let (trips, batches) = (bench.count(20_000), bench.count(10_000) / BATCH + bench.count(100));
    let works: Vec<Work> = present
        .iter()
        .flat_map(|via| {
            let trip = Work::Exchange { via: *via, batch: 1, count: trips };
            let batch = Work::Exchange { via: *via, batch: BATCH, count: batches };
            // The floor has no batches.
            [Some(trip), (!matches!(via, Via::Floor(_))).then_some(batch)]
        })
        .flatten()
        .collect();
    let mut results = bench.exchanges(&works)?.into_iter();
    let columns = [quantiles(), vec![Column::new("batch of 64, each", "ns", 1)]].concat();
    let mut table = Table::new(name, title, columns);
    for via in &present {
        let trip = results.next().ok_or("a result is missing")?;
        let each = match via {
            Via::Floor(_) => None,
            _ => Some(median(&results.next().ok_or("a result is missing")?) / f64::from(2 * BATCH)),
        };
        let cells = [quantile_cells(&trip), vec![each]].concat();
        table.rows.push(histogram_row(via.name(), cells, &trip));
    }
    table.rows.extend(absent.into_iter().filter_map(|via| Some(Row::absent(via.name(), via.absent()?))));
    Ok(table)
}
