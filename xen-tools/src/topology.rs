//! A machine's topology and its matrix of hand-overs, for people: tables and a heat map.

use std::collections::BTreeMap;
use std::fmt;

use fido_bench::machine::Machine;
use fido_bench::plot::{Cell, HeatMap};
use fido_core::topology::{Cache, CacheKind, Distance, HandOver, Matrix, Origin, Topology, list};

use crate::table::Table;

/// Up to so many processors the whole matrix is printed.
const MOST_COLUMNS: usize = 16;
/// Up to so many pairs each is printed with its halves and its spread.
const MOST_PAIRS: usize = 12;

/// The processors that are online, one a row.
pub struct Processors<'a>(pub &'a Topology);

impl fmt::Display for Processors<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(["cpu", "allowed", "core", "siblings", "package", "node", "caches (shared by)"]);
        let number = |number: Option<u32>| number.map_or("-".into(), |number| number.to_string());
        for cpu in &self.0.cpus {
            let data = cpu.caches.iter().filter(|cache| cache.kind != CacheKind::Instruction);
            let caches: Vec<String> = data.map(cache).collect();
            let allowed = self.0.allowed.binary_search(&cpu.number).is_ok();
            table.row([
                cpu.number.to_string(),
                if allowed { "yes" } else { "no" }.into(),
                cpu.core().to_string(),
                list::format(&cpu.siblings),
                number(cpu.package),
                number(cpu.node),
                if caches.is_empty() { "-".into() } else { caches.join(", ") },
            ]);
        }
        write!(f, "{table}")
    }
}

fn cache(cache: &Cache) -> String {
    let size = cache.bytes.map_or(String::new(), |bytes| match bytes >> 10 {
        kib if kib >= 10_240 => format!(" {} MiB", kib >> 10),
        kib => format!(" {kib} KiB"),
    });
    format!("L{}{size} ({})", cache.level, list::format(&cache.shared))
}

/// What is not to be seen on this machine; an empty line if that is nothing.
pub struct Absences<'a>(pub &'a Topology);

impl fmt::Display for Absences<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.absences().iter().try_for_each(|absence| writeln!(f, "* {absence}"))
    }
}

/// The matrix: writers down, readers across. `~` marks what was not measured itself.
pub struct HandOvers<'a>(pub &'a Matrix);

impl fmt::Display for HandOvers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cpus = self.0.cpus();
        write!(f, "hand-over of a cache line, median ns: from the writer (row) to the reader (column)")?;
        if cpus.len() > MOST_COLUMNS {
            return write!(f, "\n({} processors: the whole matrix is in --json and --svg)", cpus.len());
        }
        write!(f, "\n{:>6}", "")?;
        cpus.iter().try_for_each(|cpu| write!(f, " {cpu:>6}"))?;
        for &from in cpus {
            write!(f, "\n{from:>6}")?;
            for &to in cpus {
                write!(f, " {:>6}", self.0.get(from, to).map_or("-".into(), short))?;
            }
        }
        let estimated = self.0.count(Origin::Estimated) + self.0.count(Origin::Nominal);
        if estimated > 0 {
            write!(f, "\n~ not measured itself ({estimated} pairs): see below")?;
        }
        if self.0.pairs().count() <= MOST_PAIRS {
            write!(f, "\n\n{}", pairs(self.0))?;
        }
        Ok(())
    }
}

fn short(hand_over: &HandOver) -> String {
    let mark = if hand_over.origin == Origin::Measured { "" } else { "~" };
    format!("{mark}{:.0}", hand_over.ns)
}

/// Each pair with its halves and its spread.
fn pairs(matrix: &Matrix) -> Table {
    let headings = ["pair", "median ns", "10 % below", "10 % above", "writer waits", "reader waits", "rounds"];
    let mut table = Table::new(headings);
    for ((from, to), hand_over) in matrix.pairs() {
        let values = [hand_over.low_ns, hand_over.high_ns, hand_over.write_ns, hand_over.read_ns];
        let [low, high, write, read] = values.map(|ns| format!("{ns:.1}"));
        let rounds = hand_over.rounds.to_string();
        table.row([format!("{from} -> {to}"), format!("{:.1}", hand_over.ns), low, high, write, read, rounds]);
    }
    table
}

/// The matrix by kinds of distance.
pub struct Kinds<'a>(pub &'a Matrix, pub &'a Topology);

impl fmt::Display for Kinds<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut kinds: BTreeMap<Distance, Vec<&HandOver>> = BTreeMap::new();
        for ((from, to), hand_over) in self.0.pairs() {
            kinds.entry(self.1.distance(from, to)).or_default().push(hand_over);
        }
        let mut table = Table::new(["distance", "pairs", "measured", "median ns", "least", "most"]);
        for (distance, all) in kinds {
            let mut values: Vec<f64> =
                all.iter().filter(|one| one.origin == Origin::Measured).map(|one| one.ns).collect();
            values.sort_by(f64::total_cmp);
            let show = |value: Option<&f64>| value.map_or("-".into(), |ns| format!("{ns:.0}"));
            table.row([
                distance.to_string(),
                all.len().to_string(),
                values.len().to_string(),
                show(values.get(values.len() / 2)),
                show(values.first()),
                show(values.last()),
            ]);
        }
        write!(f, "{table}")
    }
}

/// The matrix as a picture.
pub fn heat_map(matrix: &Matrix, topology: &Topology, machine: &Machine) -> HeatMap {
    let cpus = matrix.cpus();
    let cell = |hand_over: &HandOver| Cell { value: hand_over.ns, estimated: hand_over.origin != Origin::Measured };
    let row = |&from: &u32| cpus.iter().map(|&to| matrix.get(from, to).map(cell)).collect();
    let remarks = topology.absences().into_iter().map(|absence| format!("\n* {absence}"));
    HeatMap {
        title: "Hand-over of a cache line between processors, median".into(),
        unit: "ns".into(),
        rows_name: "writer".into(),
        columns_name: "reader".into(),
        labels: cpus.iter().map(u32::to_string).collect(),
        cells: cpus.iter().map(row).collect(),
        footer: format!("{machine}{}", remarks.collect::<String>()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]
mod tests {
    use super::*;

    fn matrix(count: u32) -> Matrix {
        let pairs = (0..count).flat_map(|a| (0..count).map(move |b| (a, b))).filter(|(a, b)| a != b);
        let cell = |(a, b): (u32, u32)| {
            let origin = if a + b == 3 { Origin::Estimated } else { Origin::Measured };
            let ns = f64::from(100 + a);
            ((a, b), HandOver { ns, low_ns: ns, high_ns: ns, write_ns: 40.0, read_ns: ns - 40.0, rounds: 9, origin })
        };
        Matrix::new((0..count).collect(), pairs.map(cell)).unwrap()
    }

    #[test]
    fn the_matrix_is_readable_at_every_size() {
        let text = HandOvers(&matrix(3)).to_string();
        assert!(text.contains("\n     0      -    100    100\n     1    101      -   ~101\n"), "{text}");
        assert!(text.contains("2 -> 1") && text.contains("2 pairs"), "{text}");
        assert!(!HandOvers(&matrix(16)).to_string().contains("->"));
        assert!(HandOvers(&matrix(17)).to_string().contains("17 processors"));
    }

    #[test]
    fn kinds_count_only_what_was_measured() {
        let text = Kinds(&matrix(3), &Topology::flat(&[0, 1, 2])).to_string();
        assert!(text.contains("same package") && text.contains("6      4"), "{text}");
    }

    #[test]
    fn the_picture_marks_estimates() {
        let map = heat_map(&matrix(4), &Topology::flat(&[0, 1, 2, 3]), &Machine::here(None));
        assert_eq!((map.cells[0][0], map.cells[1][2].unwrap().estimated), (None, true));
        assert!(map.footer.contains("kernel") && map.footer.contains("nothing of caches"), "{}", map.footer);
    }
}
