//! Reports for people.

use std::fmt;

use super::{Column, Limit, Report, Row, Table, Target};

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.machine)?;
        for table in &self.tables {
            write!(f, "\n\n{table}")?;
        }
        if !self.targets.is_empty() {
            write!(f, "\n\ntargets")?;
        }
        let width = self.targets.iter().map(|target| target.what.chars().count()).max().unwrap_or(0);
        for target in &self.targets {
            write!(f, "\n{}", TargetLine { target, width })?;
        }
        Ok(())
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let label_width = self.rows.iter().map(|row| row.label.chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.columns.len()).map(|column| self.width(column)).collect();
        write!(f, "{}\n{:label_width$}", self.title, "")?;
        for (column, width) in self.columns.iter().zip(&widths) {
            write!(f, "  {:>width$}", heading(column))?;
        }
        for row in &self.rows {
            write!(f, "\n{:label_width$}", row.label)?;
            for (index, width) in widths.iter().enumerate().take(row.cells.len()) {
                write!(f, "  {:>width$}", self.cell(row, index))?;
            }
            if let Some(remark) = &row.remark {
                write!(f, "  {remark}")?;
            }
        }
        for note in &self.notes {
            write!(f, "\n* {note}")?;
        }
        Ok(())
    }
}

impl Table {
    fn cell(&self, row: &Row, index: usize) -> String {
        let digits = self.columns.get(index).map_or(0, |column| column.digits);
        row.cell(index).map_or_else(|| "-".into(), |value| format!("{value:.digits$}"))
    }

    fn width(&self, index: usize) -> usize {
        let cells = self.rows.iter().filter(|row| index < row.cells.len()).map(|row| self.cell(row, index));
        let heading = self.columns.get(index).map(heading);
        heading.into_iter().chain(cells).map(|text| text.chars().count()).max().unwrap_or(0)
    }
}

fn heading(column: &Column) -> String {
    if column.unit.is_empty() { column.heading.clone() } else { format!("{} {}", column.heading, column.unit) }
}

struct TargetLine<'a> {
    target: &'a Target,
    width: usize,
}

impl fmt::Display for TargetLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Target { what, limit, measured } = self.target;
        let limit = match limit {
            Limit::AtMost(most) => format!("at most {most}"),
            Limit::AtLeast(least) => format!("at least {least}"),
        };
        write!(f, "{what:width$}  {limit:>13}  ", width = self.width)?;
        match (measured, self.target.is_met()) {
            (Some(ratio), Some(true)) => write!(f, "{ratio:>7.3}  met"),
            (Some(ratio), _) => write!(f, "{ratio:>7.3}  MISSED"),
            (None, _) => write!(f, "{:>7}  not measured", "-"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_remarks_stand_in() {
        let mut table = Table::new("t", "how long", vec![Column::new("median", "ns", 0), Column::new("ratio", "", 2)]);
        table.rows.push(Row::new("short", vec![Some(7.4), Some(1.0)]));
        table.rows.push(Row::new("a longer one", vec![Some(1_234_567.0), None]));
        table.rows.push(Row::absent("umwait", "not on this CPU"));
        table.notes.push("a note".into());
        let expected = "how long
              median ns  ratio
short                 7   1.00
a longer one    1234567      -
umwait        not on this CPU
* a note";
        assert_eq!(table.to_string(), expected);
    }

    #[test]
    fn targets_say_whether_they_are_met() {
        let target = |limit, measured| Target { what: "x".into(), limit, measured };
        for (target, text) in [
            (target(Limit::AtMost(1.15), Some(1.15)), "x   at most 1.15    1.150  met"),
            (target(Limit::AtMost(1.15), Some(1.16)), "x   at most 1.15    1.160  MISSED"),
            (target(Limit::AtLeast(1.0), Some(0.9)), "x     at least 1    0.900  MISSED"),
            (target(Limit::AtLeast(1.0), Some(f64::NAN)), "x     at least 1      NaN  MISSED"),
            (target(Limit::AtLeast(1.0), None), "x     at least 1        -  not measured"),
        ] {
            assert_eq!(TargetLine { target: &target, width: 1 }.to_string(), text);
        }
    }
}
