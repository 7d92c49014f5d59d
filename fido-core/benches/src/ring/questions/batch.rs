//! What does a message cost when several are sent together? (Fip-see's Table 1.)

use hdrhistogram::Histogram;

use super::{clock, median};
use crate::Failure;
use crate::report::{Column, Row, Table};
use crate::ring::Bench;
use crate::ring::channel::{Via, Wait};
use crate::ring::work::Work;

pub const NAME: &str = "batch";

const BATCHES: [u32; 7] = [1, 2, 4, 8, 16, 32, 64];
const VIAS: [Via; 4] = [Via::Ring(Wait::Busy), Via::Lane, Via::Flagged(Wait::Busy), Via::Indexed];
/// The column with Fido's ring against its own batch of 1.
pub const OF_ONE: usize = 4;
/// The column with Fido's ring against the ring with flags.
pub const OF_FLAGGED: usize = 5;

pub fn ask(bench: &mut Bench) -> Result<Table, Failure> {
    let (messages, least) = (bench.count(64_000), bench.count(100));
    let works: Vec<Work> = BATCHES
        .iter()
        .flat_map(|batch| VIAS.map(|via| Work::Exchange { via, batch: *batch, count: messages / 4 / batch + least }))
        .collect();
    let results = bench.exchanges(&works)?;
    let clock = median(&clock()?);
    let names = ["Fido ring", "Fido lane", "flags", "indices"];
    let mut columns: Vec<Column> = names.map(|name| Column::new(name, "ns", 1)).to_vec();
    columns.push(Column::new("ring / its batch 1", "", 3));
    columns.push(Column::new("ring / flags", "", 3));
    let title = "batch: the cost of a message when batches go there and back (half a round trip / messages in it)";
    let mut table = Table::new(NAME, title, columns);
    let mut of_one = f64::NAN;
    for (batch, row) in BATCHES.iter().zip(results.chunks_exact(VIAS.len())) {
        let each = |histogram: &Histogram<u64>| (median(histogram) - clock) / f64::from(2 * batch);
        let costs: Vec<f64> = row.iter().map(each).collect();
        let &[ring, _, flags, _] = costs.as_slice() else { return Err("other columns".into()) };
        if *batch == 1 {
            of_one = ring;
        }
        let cells = costs.iter().copied().chain([ring / of_one, ring / flags]).map(Some).collect();
        table.rows.push(Row::new(label(*batch), cells));
    }
    table.notes.push("medians, without the clock read".into());
    Ok(table)
}

/// The label of a batch's row.
pub fn label(batch: u32) -> String {
    format!("batch {batch}")
}

/// The labels of all rows.
pub fn labels() -> [String; BATCHES.len()] {
    BATCHES.map(label)
}
