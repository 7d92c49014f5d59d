//! Does it matter which cores the two sides have? (Fip-see's Figure 6: transfers are asymmetric.)

use fido_core::topology::Topology;

use super::{clock, median};
use crate::Failure;
use crate::report::{Column, Raw, Row, Table, median as middle};
use crate::ring::channel::{Via, Wait};
use crate::ring::questions::waits;
use crate::ring::work::Work;
use crate::ring::{Bench, histogram};

pub const SIBLINGS: &str = "siblings";
pub const PAIRS: &str = "pairs";

/// More pairs than these are not all measured.
const MOST_PAIRS: usize = 4096;

pub fn ask_siblings(bench: &mut Bench) -> Result<Table, Failure> {
    let title = "siblings: the two sides on hardware threads of one core";
    let Some(cores) = siblings(&bench.end.allowed)? else {
        let mut table = Table::new(SIBLINGS, title, Vec::new());
        let why = "this process may use no two hardware threads of one core";
        table.rows.push(Row::absent("sibling hardware threads", why));
        return Ok(table);
    };
    let before = bench.cores;
    bench.place(cores)?;
    let title = format!("{title} ({} and {})", cores.0, cores.1);
    let table = waits::waits(bench, SIBLINGS, &title, &[Wait::Busy, Wait::Pause])?;
    bench.place(before)?;
    Ok(table)
}

/// Two hardware threads of one core that this process may use.
fn siblings(allowed: &[usize]) -> Result<Option<(usize, usize)>, Failure> {
    let topology = Topology::discover()?;
    let usable = |number: &u32| allowed.contains(&(*number as usize));
    let pair = topology.cpus.iter().filter(|cpu| usable(&cpu.number)).find_map(|cpu| {
        let sibling = cpu.siblings.iter().find(|sibling| **sibling != cpu.number && usable(sibling))?;
        Some((cpu.number as usize, *sibling as usize))
    });
    Ok(pair)
}

pub fn ask_pairs(bench: &mut Bench) -> Result<Table, Failure> {
    let cores = bench.end.allowed.clone();
    let pairs = cores.iter().flat_map(|a| cores.iter().map(|b| (*a, *b))).filter(|(a, b)| a != b);
    let pairs: Vec<_> = pairs.take(MOST_PAIRS).collect();
    let before = bench.cores;
    let mut trips = vec![[histogram()?, histogram()?]; pairs.len()];
    let mut streams = vec![Vec::new(); pairs.len()];
    let (count, stream) = (bench.count(5_000), bench.count(50_000));
    let mut unused = histogram()?;
    for _ in 0..bench.rounds.div_ceil(2) {
        for (index, pair) in pairs.iter().enumerate() {
            bench.place(*pair)?;
            for (via, histogram) in [Via::Floor(Wait::Busy), Via::Ring(Wait::Busy)].into_iter().zip(&mut trips[index]) {
                bench.work(Work::Exchange { via, batch: 1, count }, histogram)?;
            }
            let work = Work::Stream { via: Via::Ring(Wait::Busy), batch: 1, count: stream };
            let took = bench.work(work, &mut unused)?;
            streams[index].push(took.as_secs_f64() * 1e9 / f64::from(stream));
        }
    }
    bench.place(before)?;
    let clock = median(&clock()?);
    let columns = vec![
        Column::new("floor", "ns", 0),
        Column::new("ring", "ns", 0),
        Column::new("ring / floor", "", 2),
        Column::new("one way, each", "ns", 1),
    ];
    let mut table = Table::new(PAIRS, "pairs: every ordered pair of cores, from the first to the second", columns);
    for ((pair, [floor, ring]), stream) in pairs.iter().zip(&trips).zip(streams) {
        let (floor, ring) = (median(floor) - clock, median(ring) - clock);
        let cells = vec![Some(floor), Some(ring), Some(ring / floor), Some(middle(&stream))];
        table.rows.push(Row { raw: Raw::Rounds(stream), ..Row::new(format!("{} to {}", pair.0, pair.1), cells) });
    }
    table.notes.push(
        "medians of round trips that the first core begins, without the clock read, and of messages one way".into(),
    );
    Ok(table)
}
