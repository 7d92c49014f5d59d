//! How many messages of 64 bytes go through, one way?

use crate::Failure;
use crate::report::{Column, Raw, Row, Table, median};
use crate::ring::Bench;
use crate::ring::channel::{Via, Wait};
use crate::ring::work::Work;

pub const NAME: &str = "stream";

const SUBJECTS: [(Via, u32); 20] = [
    (Via::Ring(Wait::Busy), 1),
    (Via::RingThreads, 1),
    (Via::Lane, 1),
    (Via::Lane, 16),
    (Via::Lane, 64),
    (Via::Flagged(Wait::Busy), 1),
    (Via::Indexed, 1),
    (Via::Indexed, 64),
    (Via::Rtrb, 1),
    (Via::RtrbChunks, 16),
    (Via::RtrbChunks, 64),
    (Via::Iceoryx, 1),
    (Via::Socket, 1),
    (Via::Pipe, 1),
    (Via::Pipe, 16),
    (Via::Pipe, 64),
    (Via::Tcp, 1),
    (Via::Tcp, 16),
    (Via::Tcp, 64),
    (Via::Ring(Wait::Pause), 1),
];

/// The column with the median rate.
pub const RATE: usize = 0;

pub fn ask(bench: &mut Bench) -> Result<Table, Failure> {
    let subjects: Vec<_> = SUBJECTS.into_iter().filter(|(via, _)| via.absent().is_none()).collect();
    let works: Vec<(Work, u32)> = subjects
        .iter()
        .map(|(via, batch)| {
            let count = bench.count(if via.is_slow() { 10_000 } else { 100_000 });
            (Work::Stream { via: *via, batch: *batch, count }, count)
        })
        .collect();
    let costs = bench.costs(&works)?;
    let columns = vec![
        Column::new("median", "M/s", 2),
        Column::new("least", "M/s", 2),
        Column::new("most", "M/s", 2),
        Column::new("each", "ns", 1),
        Column::new("x rtrb", "", 2),
    ];
    let mut table = Table::new(NAME, "stream: messages of 64 bytes, one way", columns);
    let rtrb = subjects.iter().position(|(via, _)| *via == Via::Rtrb);
    let rtrb = rtrb.and_then(|index| costs.get(index)).map_or(f64::NAN, |costs| median(costs));
    for ((via, batch), costs) in subjects.iter().zip(costs) {
        let least = costs.iter().copied().fold(0.0, f64::max);
        let most = costs.iter().copied().fold(f64::INFINITY, f64::min);
        let middle = median(&costs);
        let cells = vec![Some(1e3 / middle), Some(1e3 / least), Some(1e3 / most), Some(middle), Some(rtrb / middle)];
        table.rows.push(Row { raw: Raw::Rounds(costs), ..Row::new(label(*via, *batch), cells) });
    }
    let absent = SUBJECTS.into_iter().filter_map(|(via, _)| Some(Row::absent(via.name(), via.absent()?)));
    table.rows.extend(absent);
    table
        .notes
        .push("a batch is flushed, published or written at once; the ring publishes each message by itself".into());
    Ok(table)
}

/// The label of a row.
pub fn label(via: Via, batch: u32) -> String {
    if batch == 1 { via.name() } else { format!("{}, batches of {batch}", via.name()) }
}
