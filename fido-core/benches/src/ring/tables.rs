//! From what was measured to tables.

use super::Measured;
use super::subjects::{Rate, Trip};
use crate::report::{Column, Raw, Row, Table, median};

/// All tables.
pub fn all(measured: &Measured, rounds: u32) -> Vec<Table> {
    vec![trips(measured, rounds), rates(measured)]
}

fn trips(measured: &Measured, rounds: u32) -> Table {
    let p50 = |wanted: Trip| {
        let found = measured.trips.iter().find(|(trip, _)| *trip == wanted);
        found.map_or(f64::NAN, |(_, histogram)| histogram.value_at_quantile(0.5) as f64)
    };
    let (floor, socket) = (p50(Trip::Floor), p50(Trip::Socket));
    let columns = vec![
        Column::new("median", "ns", 0),
        Column::new("p99", "ns", 0),
        Column::new("p99.9", "ns", 0),
        Column::new("x floor", "", 2),
        Column::new("socket / this", "", 1),
    ];
    let title = format!("round trip between two processes ({rounds} rounds, subjects in turn)");
    let mut table = Table::new("trip", title, columns);
    for (trip, histogram) in &measured.trips {
        let [median, p99, p999] = [0.5, 0.99, 0.999].map(|at| histogram.value_at_quantile(at) as f64);
        let ratios = if *trip == Trip::Clock { [None; 2] } else { [Some(median / floor), Some(socket / median)] };
        let cells = [Some(median), Some(p99), Some(p999)].into_iter().chain(ratios).collect();
        table.rows.push(Row { raw: Raw::of(histogram), ..Row::new(trip.name(), cells) });
    }
    table
}

fn rates(measured: &Measured) -> Table {
    let packets = measured.rates.iter().find(|(rate, _)| *rate == Rate::Socket);
    let packets = packets.map_or(f64::NAN, |(_, rates)| median(rates));
    let columns = vec![
        Column::new("median", "M/s", 2),
        Column::new("least", "M/s", 2),
        Column::new("most", "M/s", 2),
        Column::new("each", "ns", 1),
        Column::new("this / socket", "", 1),
    ];
    let mut table = Table::new("stream", "one way (median of the rounds)", columns);
    for (rate, results) in &measured.rates {
        let least = results.iter().copied().fold(f64::INFINITY, f64::min);
        let (median, most) = (median(results), results.iter().copied().fold(0.0, f64::max));
        let millions = [median, least, most].map(|rate| rate / 1e6);
        let cells = millions.into_iter().chain([1e9 / median, median / packets]).map(Some).collect();
        table.rows.push(Row { raw: Raw::Rounds(results.clone()), ..Row::new(rate.name(), cells) });
    }
    table
}
