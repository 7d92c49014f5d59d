//! The questions, a table each.

pub mod batch;
mod cores;
pub mod scale;
pub mod stream;
pub mod trip;
mod waits;

use hdrhistogram::Histogram;

use super::Bench;
use crate::Failure;
use crate::report::{Column, Raw, Row, Table};

/// Measures what answers a question.
type Ask = fn(&mut Bench) -> Result<Table, Failure>;

/// All questions, in the order of the report.
pub const ALL: [(&str, Ask); 10] = [
    (trip::NAME, trip::ask),
    (batch::NAME, batch::ask),
    (waits::PAUSE, waits::ask_pause),
    (waits::MONITOR, waits::ask_monitor),
    (cores::SIBLINGS, cores::ask_siblings),
    (cores::PAIRS, cores::ask_pairs),
    (stream::NAME, stream::ask),
    (scale::LOANS, scale::ask_loans),
    (scale::LANES_NAME, scale::ask_lanes),
    (scale::FAN_IN, scale::ask_fan_in),
];

/// The names of all questions.
pub fn names() -> [&'static str; ALL.len()] {
    ALL.map(|(name, _)| name)
}

/// Columns of exchanges.
fn quantiles() -> Vec<Column> {
    vec![Column::new("median", "ns", 0), Column::new("p99", "ns", 0), Column::new("p99.9", "ns", 0)]
}

/// The cells for [`quantiles`].
fn quantile_cells(histogram: &Histogram<u64>) -> Vec<Option<f64>> {
    [0.5, 0.99, 0.999].map(|at| Some(histogram.value_at_quantile(at) as f64)).to_vec()
}

fn median(histogram: &Histogram<u64>) -> f64 {
    histogram.value_at_quantile(0.5) as f64
}

fn histogram_row(label: String, cells: Vec<Option<f64>>, histogram: &Histogram<u64>) -> Row {
    Row { raw: Raw::of(histogram), ..Row::new(label, cells) }
}

/// What reading the clock costs: it is in every exchange.
fn clock() -> Result<Histogram<u64>, Failure> {
    let mut histogram = super::histogram()?;
    for _ in 0..100_000 {
        histogram.record(std::time::Instant::now().elapsed().as_nanos().try_into()?)?;
    }
    Ok(histogram)
}
