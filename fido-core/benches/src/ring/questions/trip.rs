//! How long does a message and its answer take?

use super::{clock, histogram_row, median, quantile_cells, quantiles};
use crate::Failure;
use crate::report::{Column, Row, Table};
use crate::ring::Bench;
use crate::ring::channel::{Via, Wait};
use crate::ring::work::Work;

pub const NAME: &str = "trip";

const VIAS: [Via; 15] = [
    Via::Floor(Wait::Busy),
    Via::Ring(Wait::Busy),
    Via::Lane,
    Via::Loan,
    Via::Flagged(Wait::Busy),
    Via::Indexed,
    Via::RingThreads,
    Via::Rtrb,
    Via::Iceoryx,
    Via::Socket,
    Via::Pipe,
    Via::Tcp,
    Via::Event,
    Via::Futex,
    Via::Floor(Wait::Pause),
];

/// The column with the ratio to the floor.
pub const X_FLOOR: usize = 3;

pub fn ask(bench: &mut Bench) -> Result<Table, Failure> {
    let clock = clock()?;
    let vias: Vec<Via> = VIAS.into_iter().filter(|via| via.absent().is_none()).collect();
    let works: Vec<Work> = vias
        .iter()
        .map(|via| Work::Exchange {
            via: *via,
            batch: 1,
            count: bench.count(if via.is_slow() { 1000 } else { 20_000 }),
        })
        .collect();
    let results = bench.exchanges(&works)?;
    let net = |histogram| median(histogram) - median(&clock);
    let floor = results.first().map_or(f64::NAN, net);
    let columns = [quantiles(), vec![Column::new("x floor", "", 2)]].concat();
    let title = format!("trip: a message and its answer between two processes ({} rounds)", bench.rounds);
    let mut table = Table::new(NAME, title, columns);
    table.rows.push(histogram_row("clock read (in every figure below)".into(), quantile_cells(&clock), &clock));
    for (via, histogram) in vias.iter().zip(&results) {
        let cells = [quantile_cells(histogram), vec![Some(net(histogram) / floor)]].concat();
        table.rows.push(histogram_row(via.name(), cells, histogram));
    }
    let absent = VIAS.into_iter().filter_map(|via| Some(Row::absent(via.name(), via.absent()?)));
    table.rows.extend(absent);
    table.notes.push("x floor: without the clock read".into());
    table
        .notes
        .push("what the kernel offers is used blocking: its figures have the waking of a sleeping core in them".into());
    Ok(table)
}
