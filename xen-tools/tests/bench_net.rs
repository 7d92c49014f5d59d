//! `fido bench net`, from outside: that it works, with turns too short to say what anything costs.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "../../conn-mgr/tests/support/run.rs"]
mod support;

use std::process::Command;

const STREAMS: [&str; 2] = ["tcp-stream", "tcp-maerts"];
const TRANSACTIONS: [&str; 2] = ["tcp-rr", "tcp-crr"];

#[test]
fn every_table_of_the_benchmark_of_networks_is_filled() {
    let folder = tempfile::tempdir().unwrap();
    let [json, csv, plots] = ["net.json", "net.csv", "plots"].map(|name| folder.path().join(name));
    let output = support::output(
        Command::new(env!("CARGO_BIN_EXE_fido")).args(["bench", "net", "--quick", "--rounds", "1"]).args([
            &"--json".into(),
            &json,
            &"--csv".into(),
            &csv,
            &"--plot".into(),
            &plots,
        ]),
    );
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (out, err) = (text(output.stdout), text(output.stderr));
    assert_eq!(output.status.code(), Some(0), "{out}{err}");
    let csv = std::fs::read_to_string(csv).unwrap();
    let has_number = |start: &str| {
        let value = csv.lines().find_map(|line| line.strip_prefix(start)).and_then(|rest| rest.parse::<f64>().ok());
        assert!(value.is_some_and(|value| value > 0.0), "no number in {start} of {csv}");
    };
    for way in ["Loop", "NetFront", "XenLoop", "MMNet", "MMNet stream", "\"MMNet stream, read\""] {
        for size in ["64 B", "64 KiB"] {
            STREAMS.iter().for_each(|table| has_number(&format!("{table},{size},{way},Gb/s,")));
            TRANSACTIONS.iter().for_each(|table| has_number(&format!("{table},{size},{way},us,")));
        }
        has_number(&format!("tcp-rr-tail,{way},p99.9,us,"));
        if !way.contains("stream") {
            has_number(&format!("udp-stream,1 KiB,{way},Gb/s,"));
            has_number(&format!("udp-rr,1 KiB,{way},us,"));
        }
    }
    has_number("frames,one lane,median,M/s,");
    if !out.contains("\n* veth: ") {
        has_number("tcp-stream,64 B,veth,Gb/s,");
        has_number("udp-rr,64 KiB,veth,us,");
    }
    assert!(!csv.contains("programs,"), "only when asked for: {csv}");
    // What a model of one copy in and one out copies, and what is lent.
    assert!(csv.contains("\ncopies,XenLoop,TCP_STREAM,,2\n"), "{csv}");
    assert!(csv.contains("\ncopies,MMNet stream,TCP_STREAM,,0\n"), "{csv}");
    assert!(out.contains("\ntargets") && out.contains("times Loop"), "{out}");
    assert!(std::fs::read_to_string(json).unwrap().starts_with("{\"machine\":"));
    assert_eq!(
        std::fs::read_dir(plots).unwrap().count(),
        csv.lines().map(table_of).collect::<std::collections::BTreeSet<_>>().len()
    );
}

/// The table that a line of the CSV is of; the heading's is left out.
fn table_of(line: &str) -> &str {
    let table = line.split(',').next().unwrap();
    if table == "table" { "tcp-stream" } else { table }
}
