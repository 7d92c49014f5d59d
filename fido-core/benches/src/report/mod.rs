//! What a benchmark has found: tables, each of which answers one question, and verdicts on targets.
//!
//! A report is printed as text ([`std::fmt::Display`]) and written as JSON and CSV for machines ([`Report::write_json`],
//! [`Report::write_csv`]). The JSON has everything that was measured, histograms included; the CSV has the tables' cells,
//! one a line.

mod files;
mod text;

pub use files::Output;
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::machine::Machine;

/// The results of one run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Where it ran.
    pub machine: Machine,
    /// One for each question.
    pub tables: Vec<Table>,
    /// What was aimed at.
    pub targets: Vec<Target>,
}

/// The answer to one question.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Table {
    /// A short name: that of files, and what a command line asks for.
    pub name: String,
    /// The question.
    pub title: String,
    /// What the numbers are.
    pub columns: Vec<Column>,
    /// The numbers.
    pub rows: Vec<Row>,
    /// What a reader has to know to understand them.
    pub notes: Vec<String>,
}

/// One kind of number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Column {
    /// Its name.
    pub heading: String,
    /// Its unit, such as `ns` or `1/s`; empty for ratios.
    pub unit: String,
    /// How many digits after the point are shown to people.
    pub digits: usize,
}

impl Column {
    /// A column that is shown with so many digits after the point.
    pub fn new(heading: &str, unit: &str, digits: usize) -> Self {
        Self { heading: heading.into(), unit: unit.into(), digits }
    }
}

/// The numbers of one thing that was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// What was measured.
    pub label: String,
    /// One for each column; `None` where there is nothing to say.
    pub cells: Vec<Option<f64>>,
    /// What is to be said instead of numbers or beside them, such as "not on this CPU".
    pub remark: Option<String>,
    /// What the numbers were made from.
    pub raw: Raw,
}

/// What was measured, before it was summed up.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Raw {
    /// Nothing, or what the cells say already.
    #[default]
    None,
    /// How many values were at most so big: pairs of a value in the table's unit and a count.
    Histogram(Vec<(u64, u64)>),
    /// A value for each round.
    Rounds(Vec<f64>),
}

impl Row {
    /// A row of numbers.
    pub fn new(label: impl Into<String>, cells: Vec<Option<f64>>) -> Self {
        Self { label: label.into(), cells, remark: None, raw: Raw::None }
    }

    /// A row without numbers, which says why.
    pub fn absent(label: impl Into<String>, why: impl Into<String>) -> Self {
        Self { label: label.into(), cells: Vec::new(), remark: Some(why.into()), raw: Raw::None }
    }

    /// The number in that column, if there is one.
    pub fn cell(&self, column: usize) -> Option<f64> {
        self.cells.get(column).copied().flatten()
    }
}

impl Raw {
    /// All that is in a histogram.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        let steps = histogram.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value()));
        Self::Histogram(steps.collect())
    }
}

impl Table {
    /// A table without rows.
    pub fn new(name: &str, title: impl Into<String>, columns: Vec<Column>) -> Self {
        Self { name: name.into(), title: title.into(), columns, rows: Vec::new(), notes: Vec::new() }
    }

    /// The row with that label.
    pub fn row(&self, label: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.label == label)
    }
}

/// A ratio that was aimed at, and what it was.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Target {
    /// What is compared with what.
    pub what: String,
    /// The limit.
    pub limit: Limit,
    /// The ratio measured; `None` if a table for it was not asked for.
    pub measured: Option<f64>,
}

/// On which side of a ratio it is good to be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// So much or less.
    AtMost(f64),
    /// So much or more.
    AtLeast(f64),
}

impl Target {
    /// Whether it was met; `None` if it was not measured.
    pub fn is_met(&self) -> Option<bool> {
        self.measured.map(|ratio| match self.limit {
            Limit::AtMost(most) => ratio <= most,
            Limit::AtLeast(least) => ratio >= least,
        })
    }
}

/// The median of some values; not a number if there are none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}
