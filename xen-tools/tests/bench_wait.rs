//! `fido bench wait`, from outside: that it works, with turns too short to say what anything costs.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "../../conn-mgr/tests/support/run.rs"]
mod support;

use std::process::Command;

#[test]
fn every_table_of_the_benchmark_of_waiting_is_filled() {
    let folder = tempfile::tempdir().unwrap();
    let [json, csv, plots] = ["wait.json", "wait.csv", "plots"].map(|name| folder.path().join(name));
    let output = support::output(
        Command::new(env!("CARGO_BIN_EXE_fido")).args(["bench", "wait", "--quick", "--rounds", "1"]).args([
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
    let regimes = (1..=8).flat_map(|regime| ["spin", "sleep", "adaptive"].map(|way| format!("regime-{regime},{way}")));
    let most = std::thread::available_parallelism().map_or(1, usize::from).max(2);
    let others = ["placement,", "sources,", "lanes,", "idle,", "crew-1,"].map(String::from);
    for row in regimes.chain(others).chain([format!("crew-{most},")]) {
        assert!(csv.contains(&format!("\n{row}")), "no row {row} in {csv}");
    }
    assert!(out.contains("\ntargets") && out.contains("idle appliance: share of a core"), "{out}");
    assert!(std::fs::read_to_string(json).unwrap().starts_with("{\"machine\":"));
    assert!(std::fs::read_dir(plots).unwrap().count() >= 10);
}
