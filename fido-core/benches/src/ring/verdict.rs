//! What was aimed at, and whether it was reached in this run.

use super::channel::{Via, Wait};
use super::questions::{batch, scale, stream, trip};
use crate::report::{Limit, Table, Target};

/// A loan of any size costs as much as one of 64 bytes: the scatter of the machine is allowed for.
const SAME: f64 = 1.15;

/// All targets.
pub fn targets(tables: &[Table]) -> Vec<Target> {
    let cell = |table: &str, row: &str, column: usize| {
        tables.iter().find(|candidate| candidate.name == table)?.row(row)?.cell(column)
    };
    let target = |what: &str, limit, measured| Target { what: what.into(), limit, measured };
    let trip = |via: Via, column| cell(trip::NAME, &via.name(), column);
    let ring = Via::Ring(Wait::Busy);
    let x_floor = |via| trip(via, trip::X_FLOOR);
    let rate = |via, batch| cell(stream::NAME, &stream::label(via, batch), stream::RATE);
    let worst = |table: &str, rows: &[String], column| {
        rows.iter().map(|row| cell(table, row, column)).try_fold(0.0, |worst: f64, ratio| Some(worst.max(ratio?)))
    };
    let ratio = |a: Option<f64>, b: Option<f64>| Some(a? / b?);
    let best_lane = [1, 16, 64].into_iter().filter_map(|batch| rate(Via::Lane, batch)).reduce(f64::max);
    vec![
        target("round trip: ring / floor", Limit::AtMost(1.15), x_floor(ring)),
        target("round trip: lane / floor", Limit::AtMost(1.15), x_floor(Via::Lane)),
        target(
            "cost of a message: batch of 64 / batch of 1",
            Limit::AtMost(0.16),
            cell(batch::NAME, &batch::label(64), batch::OF_ONE),
        ),
        target(
            "cost of a message: ring / ring with flags, worst batch",
            Limit::AtMost(1.0),
            worst(batch::NAME, &batch::labels(), batch::OF_FLAGGED),
        ),
        target(
            "streaming: ring between processes / rtrb between threads",
            Limit::AtLeast(1.0),
            ratio(rate(ring, 1), rate(Via::Rtrb, 1)),
        ),
        target(
            "streaming: lane, its best batch / rtrb between threads",
            Limit::AtLeast(1.0),
            ratio(best_lane, rate(Via::Rtrb, 1)),
        ),
        target("round trip: ring / iceoryx2", Limit::AtMost(0.5), ratio(x_floor(ring), x_floor(Via::Iceoryx))),
        target("round trip: lane / iceoryx2", Limit::AtMost(0.5), ratio(x_floor(Via::Lane), x_floor(Via::Iceoryx))),
        target(
            "cost of a loan: any size / 64 B, worst",
            Limit::AtMost(SAME),
            worst(scale::LOANS, &scale::loan_labels(), scale::OF_SMALLEST),
        ),
    ]
}
