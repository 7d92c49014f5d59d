//! What becomes of tables and matrices.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use super::layout::{Axis, number};
use super::*;
use crate::report::{Column, Row};

fn table(labels: &[&str], headings: &[(&str, &str)]) -> Table {
    let columns = headings.iter().map(|(heading, unit)| Column::new(heading, unit, 0)).collect();
    let mut table = Table::new("t", "how long a <thing> & another take", columns);
    for (row, label) in labels.iter().enumerate() {
        let value = |column: usize| Some((row + 1) as f64 * 10f64.powi(column as i32));
        table.rows.push(Row::new(*label, (0..headings.len()).map(value).collect()));
    }
    table
}

#[test]
fn rows_become_bars_and_ratios_are_left_out() {
    let mut table = table(&["ring", "pipe"], &[("median", "ns"), ("p99", "ns"), ("x floor", "")]);
    table.rows.push(Row::absent("umwait", "not on this CPU"));
    let Form::Bars { series, groups } = Plot::of(&table).unwrap().form else { panic!() };
    assert_eq!(series, ["median", "p99"]);
    assert_eq!(
        groups,
        [("ring".to_owned(), vec![Some(1.0), Some(10.0)]), ("pipe".into(), vec![Some(2.0), Some(20.0)])]
    );
    let empty = Table { rows: Vec::new(), ..table };
    assert_eq!(Plot::of(&empty), None);
}

#[test]
fn rising_numbers_become_lines() {
    let Form::Lines { x_name, series } =
        Plot::of(&table(&["batch 1", "batch 2", "batch 64"], &[("median", "ns"), ("each", "M/s")])).unwrap().form
    else {
        panic!()
    };
    assert_eq!((x_name.as_str(), series.len()), ("batch", 1));
    assert_eq!(series[0].points, [(1.0, 1.0), (2.0, 2.0), (64.0, 3.0)]);
    let headings = [("64 B", "ns"), ("4 KiB", "ns"), ("4 MiB", "ns")];
    let Form::Lines { x_name, series } = Plot::of(&table(&["ring", "socket"], &headings)).unwrap().form else {
        panic!()
    };
    assert_eq!((x_name.as_str(), series[1].name.as_str()), ("bytes", "socket"));
    assert_eq!(series[1].points, [(64.0, 2.0), (4096.0, 20.0), (4_194_304.0, 200.0)]);
    for labels in
        [&["1", "2"][..], &["4", "2", "1"], &["1 lane", "2 lanes", "x"], &["0", "1", "2"], &["1-2", "3-4", "5-6"]]
    {
        assert!(matches!(Plot::of(&table(labels, &[("m", "ns")])).unwrap().form, Form::Bars { .. }), "{labels:?}");
    }
}

/// The texts of an SVG with their places.
fn texts(svg: &str) -> Vec<String> {
    svg.split("<text")
        .skip(1)
        .filter_map(|rest| Some(rest.split_once('>')?.1.split("</text>").next()?.trim().into()))
        .collect()
}

#[test]
fn pictures_say_what_they_show() {
    let machine = Machine::here(None);
    for table in [
        table(&["ring", "pipe"], &[("median", "ns"), ("p99", "ns")]),
        table(&["1", "2", "4"], &[("median", "ns"), ("p99", "ns")]),
    ] {
        let svg = Plot::of(&table).unwrap().svg(&machine).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        let texts = texts(&svg);
        for wanted in ["how long a &lt;thing&gt; &amp; another take", "median", "p99", "ns"] {
            assert!(texts.iter().any(|text| text == wanted), "{wanted}: {texts:?}");
        }
        assert!(texts.iter().any(|text| text.starts_with("kernel ")), "{texts:?}");
    }
}

fn heat_map(count: usize) -> HeatMap {
    let cell = |row: usize, column: usize| {
        let estimated = row + column == 3;
        (row != column).then_some(Cell { value: 40.0 + (row * 7 + column) as f64, estimated })
    };
    HeatMap {
        title: "hand-over".into(),
        unit: "ns".into(),
        rows_name: "writer".into(),
        columns_name: "reader".into(),
        labels: (0..count).map(|cpu| cpu.to_string()).collect(),
        cells: (0..count).map(|row| (0..count).map(|column| cell(row, column)).collect()).collect(),
        footer: "a machine".into(),
    }
}

#[test]
fn heat_maps_of_all_sizes() {
    for count in [0, 1, 2, 8, 128] {
        let map = heat_map(count);
        let svg = map.svg().unwrap();
        assert!(svg.matches("<rect").count() > count * count, "{count}");
        assert_eq!(texts(&svg).iter().any(|text| text.starts_with("not measured")), count > 2, "{count}");
    }
    let short = HeatMap { cells: Vec::new(), ..heat_map(3) };
    assert!(short.svg().is_ok(), "what is missing is left out");
}

#[test]
fn axes() {
    let linear = Axis::new([3.0, 60.0].into_iter(), (0, 1000));
    assert_eq!(linear.ticks(100), [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0]);
    assert_eq!((linear.pixel(0.0), linear.pixel(30.6)), (0, 500));
    let log = Axis::new([90.0, 40_000.0].into_iter(), (100, 500));
    assert_eq!(log.ticks(70), [10.0, 100.0, 1000.0, 10_000.0, 100_000.0]);
    assert_eq!((log.pixel(10.0), log.pixel(1000.0), log.pixel(1e5)), (100, 300, 500));
    for odd in [vec![], vec![0.0], vec![0.0, 1e9], vec![1e-12]] {
        assert!(Axis::new(odd.iter().copied(), (0, 100)).ticks(70).len() < 100, "{odd:?}");
    }
}

#[test]
fn numbers() {
    let cases = [(0.0, "0"), (0.05, "0.05"), (12.34, "12.3"), (7.0, "7"), (131.4, "131"), (1234.0, "1234")];
    for (value, text) in cases.into_iter().chain([(29_000.0, "29\u{202f}000"), (5.6e9, "5.6e9"), (0.001, "1e-3")]) {
        assert_eq!(number(value), text);
    }
}

#[test]
fn a_folder_of_pictures() {
    let folder = std::env::temp_dir().join(format!("fido-plots-{}", std::process::id()));
    let (first, mut second) = (table(&["a"], &[("m", "ns")]), table(&[], &[("m", "ns")]));
    second.name = "empty".into();
    let report = Report { machine: Machine::here(None), tables: vec![first, second], targets: Vec::new() };
    let files = report.write_plots(&folder).unwrap();
    assert_eq!(files, [folder.join("t.svg")]);
    assert!(fs::read_to_string(&files[0]).unwrap().contains("</svg>"));
    let error = report.write_plots(&files[0]).unwrap_err().to_string();
    assert!(error.contains("t.svg"), "{error}");
    fs::remove_dir_all(&folder).unwrap();
}
