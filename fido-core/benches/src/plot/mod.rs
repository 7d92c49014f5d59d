//! Pictures (SVG) of what was measured: tables as bars or lines, matrices as heat maps.
//!
//! [`Plot::of`] makes a picture from a [`Table`] as it is: the columns that share the unit of the first one are shown,
//! the others (ratios, mostly) are not. Which form it takes follows from the table:
//! * *lines* over a number, if the rows' labels are at least three rising numbers or sizes (`1`, `64 B`, `4 KiB`), or if
//!   the headings are;
//! * *bars* otherwise: a group for each row, a bar for each column.
//!
//! An axis is logarithmic when the values span more than a factor of 30. The machine stands below every picture.

mod bars;
mod heat;
mod layout;
mod lines;

#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};

use crate::Failure;
use crate::machine::Machine;
use crate::report::{Report, Table};

pub use heat::{Cell, HeatMap};

/// The error type of drawing: nothing that a caller could tell apart.
type Drawn = Result<(), Failure>;

/// What a table looks like as a picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Plot {
    title: String,
    /// What the values are counted in.
    unit: String,
    form: Form,
}

#[derive(Debug, Clone, PartialEq)]
enum Form {
    /// Groups of bars; each has a label and a value for each series.
    Bars { series: Vec<String>, groups: Vec<(String, Vec<Option<f64>>)> },
    /// Lines through points.
    Lines { x_name: String, series: Vec<Series> },
}

/// One line.
#[derive(Debug, Clone, PartialEq)]
struct Series {
    name: String,
    points: Vec<(f64, f64)>,
}

impl Plot {
    /// The picture of a table; `None` if there is no number in it.
    pub fn of(table: &Table) -> Option<Self> {
        let unit = table.columns.first()?.unit.clone();
        let shown: Vec<usize> = (0..table.columns.len()).filter(|&at| table.columns[at].unit == unit).collect();
        let value = |row: &crate::report::Row, at: usize| row.cell(at).filter(|value| value.is_finite());
        let headings: Vec<&str> = shown.iter().map(|&at| table.columns[at].heading.as_str()).collect();
        let rows: Vec<_> = table.rows.iter().filter(|row| shown.iter().any(|&at| value(row, at).is_some())).collect();
        if rows.is_empty() {
            return None;
        }
        let labels: Vec<&str> = rows.iter().map(|row| row.label.as_str()).collect();
        let form = if let Some((x_name, xs)) = rising(&labels) {
            let points = |at: usize| xs.iter().zip(&rows).filter_map(move |(&x, row)| Some((x, value(row, at)?)));
            let line = |&at: &usize| Series { name: table.columns[at].heading.clone(), points: points(at).collect() };
            Form::Lines { x_name, series: shown.iter().map(line).collect() }
        } else if let Some((x_name, xs)) = rising(&headings) {
            let series = rows.iter().map(|row| {
                let points = xs.iter().zip(&shown).filter_map(|(&x, &at)| Some((x, value(row, at)?)));
                Series { name: row.label.clone(), points: points.collect() }
            });
            Form::Lines { x_name, series: series.collect() }
        } else {
            let group = |row: &&crate::report::Row| {
                (row.label.clone(), shown.iter().map(|&at| value(row, at)).collect::<Vec<_>>())
            };
            Form::Bars {
                series: headings.iter().map(|&heading| heading.to_owned()).collect(),
                groups: rows.iter().map(group).collect(),
            }
        };
        Some(Self { title: table.title.clone(), unit, form })
    }

    /// The picture as SVG.
    ///
    /// # Errors
    /// If it cannot be drawn.
    pub fn svg(&self, machine: &Machine) -> Result<String, Failure> {
        let footer = machine.to_string();
        match &self.form {
            Form::Bars { series, groups } => bars::draw(&self.title, &self.unit, series, groups, &footer),
            Form::Lines { x_name, series } => lines::draw(&self.title, &self.unit, x_name, series, &footer),
        }
    }
}

impl Report {
    /// Writes a picture of each table into a folder, which is made if need be, as `NAME.svg`; returns the files. Tables
    /// without numbers have none.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write_plots(&self, folder: &Path) -> Result<Vec<PathBuf>, Failure> {
        fs::create_dir_all(folder).map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
        let mut files = Vec::new();
        for table in &self.tables {
            let Some(plot) = Plot::of(table) else { continue };
            let file = folder.join(format!("{}.svg", table.name));
            write(&file, &plot.svg(&self.machine)?)?;
            files.push(file);
        }
        Ok(files)
    }
}

/// Writes a picture to a file.
///
/// # Errors
/// If that is not possible; names the file.
pub fn write(file: &Path, svg: &str) -> Result<(), Failure> {
    fs::write(file, svg).map_err(|error| format!("cannot write {}: {error}", file.display()).into())
}

/// At least three labels that are rising positive numbers, with the same words before or units behind them; the words,
/// and the numbers. Sizes count in bytes.
fn rising(labels: &[&str]) -> Option<(String, Vec<f64>)> {
    let parsed: Vec<(String, f64)> = labels.iter().map(|label| quantity(label)).collect::<Option<_>>()?;
    let name = &parsed.first()?.0;
    let alike = parsed.iter().all(|(other, _)| other == name);
    let rises = parsed.is_sorted_by(|a, b| a.1 < b.1) && parsed[0].1 > 0.0;
    (labels.len() >= 3 && alike && rises).then(|| (name.clone(), parsed.iter().map(|(_, x)| *x).collect()))
}

/// `64`, `batch 64`, `64 lanes`, `4 KiB`: the words and the number.
fn quantity(label: &str) -> Option<(String, f64)> {
    let label = label.trim();
    let first = label.find(|c: char| c.is_ascii_digit())?;
    let (before, rest) = label.split_at(first);
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    let (number, after) = rest.split_at(end);
    let number: f64 = number.parse().ok()?;
    let (name, factor) = match after.trim() {
        "B" => ("bytes", 1.0),
        "KiB" => ("bytes", 1024.0),
        "MiB" => ("bytes", 1_048_576.0),
        other if other.contains(|c: char| c.is_ascii_digit()) => return None,
        other => (other, 1.0),
    };
    let name = [before.trim(), name].into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    Some((name, number * factor))
}
