//! `fido bench blk`, from outside: that it works, with turns too short to say what anything costs.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "../../conn-mgr/tests/support/run.rs"]
mod support;

use std::path::Path;
use std::process::Command;

/// What one run has said and written.
struct Found {
    out: String,
    csv: String,
    plots: usize,
}

/// Runs the benchmark in a folder, with these words and the folder of these programs if it is to have no others.
fn bench(words: &[&str], path: Option<&Path>) -> Found {
    let folder = tempfile::tempdir().unwrap();
    let [json, csv, plots] = ["blk.json", "blk.csv", "plots"].map(|name| folder.path().join(name));
    let mut command = Command::new(env!("CARGO_BIN_EXE_fido"));
    command.args(["bench", "blk", "--quick", "--rounds", "1"]).args(words);
    command.args([&"--folder".into(), &folder.path().to_owned()]);
    command.args([&"--json".into(), &json, &"--csv".into(), &csv, &"--plot".into(), &plots]);
    if let Some(path) = path {
        command.env("PATH", path);
    }
    let output = support::output(&mut command);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (out, err) = (text(output.stdout), text(output.stderr));
    assert_eq!(output.status.code(), Some(0), "{out}{err}");
    assert!(std::fs::read_to_string(json).unwrap().starts_with("{\"machine\":"));
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 3, "images and sockets are gone");
    let csv = std::fs::read_to_string(csv).unwrap();
    Found { out, csv, plots: std::fs::read_dir(plots).unwrap().count() }
}

impl Found {
    fn has_cell(&self, table: &str, row: &str, column: &str) {
        let field = |text: &str| if text.contains(',') { format!("\"{text}\"") } else { text.into() };
        let cell = format!("\n{table},{},{},", field(row), field(column));
        let value = self.csv.split(&cell).nth(1).and_then(|rest| rest.lines().next()?.split(',').nth(1));
        let value = value.unwrap_or_else(|| panic!("no cell {cell} in {}", self.csv));
        assert!(value.parse::<f64>().is_ok(), "{cell} is {value:?} in {}", self.csv);
    }
}

#[test]
fn every_table_of_the_benchmark_of_block_devices_is_filled() {
    let found = bench(&["--only", "ways", "--only", "arrays"], None);
    for device in ["null", "memory", "file", "file, O_DIRECT"] {
        for (table, load) in [("iops-64", "read 4096"), ("iops-64-jobs", "write 512"), ("large-8", "write 262144")] {
            for column in ["direct", "copying", "MMBlk"] {
                found.has_cell(table, &format!("{device}, {load}"), column);
            }
        }
    }
    found.has_cell("latency-1", "null, read 512, MMBlk", "beyond direct");
    for members in ["memory at 150 MiB/s", "memory", "file", "file, O_DIRECT"] {
        for column in ["array, data", "members alone", "together", "array / alone"] {
            found.has_cell("raid5", members, column);
        }
    }
    found.has_cell("parity", "8 sources", "copy");
    assert!(found.out.contains("\ntargets") && found.out.contains("times copying"), "{}", found.out);
    assert!(found.out.contains("RAID 5, whole stripes, memory at 150 MiB/s: data and parity, of the members alone"));
    assert_eq!(found.plots, 6);
}

#[test]
fn programs_that_are_missing_are_named_with_their_packages() {
    let nothing = tempfile::tempdir().unwrap();
    let found = bench(&["--only", "faces"], Some(nothing.path()));
    let says = |text: &str| assert!(found.csv.contains(text), "{text} in {}", found.csv);
    says("\nnbd-latency,\"read, 1 x 1, mmblk-nbd\",remark,,missing: fio is not installed (Debian's package fio)\n");
    says("\nvhost-rates,\"read, 1 x 1\",remark,,missing: qemu-storage-daemon is not installed (Debian's package");
    found.has_cell("vhost-rates", "write, 64 x 2", "mmblk-vhost");
    assert!(found.out.contains("null, nbd, read, 64 x 1: of nbdkit"), "{}", found.out);
    assert!(!found.out.contains("met\nnull, nbd"), "{}", found.out);
}

#[test]
#[ignore = "needs Debian's fio, nbdkit and qemu-system-common: .ci/blk runs it"]
fn standard_faces_are_measured_against_those_of_others() {
    let found = bench(&["--only", "faces"], None);
    for load in ["read, 1 x 1", "write, 1 x 2", "read, 64 x 2", "write, 64 x 1"] {
        for server in ["nbdkit", "mmblk-nbd", "mmblk-nbd-link"] {
            found.has_cell("nbd-rates", load, server);
            found.has_cell("nbd-rates", load, &format!("CPU, {server}"));
        }
        for server in ["qemu-storage-daemon", "mmblk-vhost"] {
            found.has_cell("vhost-rates", load, server);
        }
    }
    found.has_cell("nbd-rates", "read, 64 x 1", "mmblk-nbd / nbdkit");
    found.has_cell("nbd-latency", "write, 1 x 1, mmblk-nbd-link", "p99.9");
    found.has_cell("vhost-latency", "read, 1 x 2, mmblk-vhost", "median");
    assert!(!found.csv.contains("missing"), "{}", found.csv);
    assert_eq!(found.plots, 4);
}
