//! Reports for machines.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use super::Report;
use crate::Failure;

/// Where a report is written to, beside the terminal.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Output {
    /// Writes everything that was measured as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Writes the tables' cells as CSV, one a line.
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Draws each table as an SVG file in this folder.
    #[arg(long, value_name = "FOLDER")]
    pub plot: Option<PathBuf>,
}

impl Report {
    /// Prints it, and writes what is asked for.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn publish(&self, output: &Output) -> Result<(), Failure> {
        println!("{self}");
        output.json.iter().try_for_each(|path| self.write_json(path))?;
        output.csv.iter().try_for_each(|path| self.write_csv(path))?;
        output.plot.iter().try_for_each(|folder| self.write_plots(folder).map(drop))
    }

    /// Writes everything that was measured, as one JSON object.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_json(&self, path: &Path) -> Result<(), Failure> {
        write(path, &format!("{}\n", serde_json::to_string(self)?))
    }

    /// Writes the cells of all tables, one a line: table, row, column, unit, value. A remark is a line whose column is
    /// `remark`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_csv(&self, path: &Path) -> Result<(), Failure> {
        write(path, &self.csv())
    }

    fn csv(&self) -> String {
        let mut text = String::from("table,row,column,unit,value\n");
        let mut line = |fields: [&str; 5]| {
            let _ = writeln!(text, "{}", fields.map(quoted).join(","));
        };
        for table in &self.tables {
            for row in &table.rows {
                for (column, value) in table.columns.iter().zip(&row.cells) {
                    let value = value.map_or_else(String::new, |value| value.to_string());
                    line([&table.name, &row.label, &column.heading, &column.unit, &value]);
                }
                if let Some(remark) = &row.remark {
                    line([&table.name, &row.label, "remark", "", remark]);
                }
            }
        }
        text
    }
}

/// A field as RFC 4180 has it.
fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) { format!("\"{}\"", field.replace('"', "\"\"")) } else { field.into() }
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    fs::write(path, text).map_err(|error| format!("cannot write {}: {error}", path.display()).into())
}

#[cfg(test)]
mod tests {
    use super::super::{Column, Row, Table};
    use super::*;
    use crate::machine::Machine;

    #[test]
    fn a_cell_is_a_line() {
        let mut table = Table::new("trip", "t", vec![Column::new("median", "ns", 0)]);
        table.rows.push(Row::new("ring, bare", vec![Some(1.5)]));
        table.rows.push(Row::absent("umwait", "says \"no\""));
        let report = Report { machine: Machine::here(None), tables: vec![table], targets: Vec::new() };
        let expected = "table,row,column,unit,value\ntrip,\"ring, bare\",median,ns,1.5\n\
                        trip,umwait,remark,,\"says \"\"no\"\"\"\n";
        assert_eq!(report.csv(), expected);
    }

    #[test]
    fn what_cannot_be_written_is_named() {
        let report = Report { machine: Machine::here(None), tables: Vec::new(), targets: Vec::new() };
        let error = report.write_json(Path::new("/nonexistent/x.json")).expect_err("no such folder");
        assert!(error.to_string().contains("/nonexistent/x.json"), "{error}");
    }
}
