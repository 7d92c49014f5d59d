//! `fido bench ring`, from outside.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "../../conn-mgr/tests/support/run.rs"]
mod support;

use std::process::{Command, Output};
use std::sync::{Mutex, PoisonError};

use rustix::process::{Pid, Signal, kill_process};
use support::Running;

/// The benchmark spins on both cores: one at a time. (Binaries are kept apart in `.config/nextest.toml`.)
static ALONE: Mutex<()> = Mutex::new(());

fn fido(arguments: &[&str]) -> Output {
    support::output(Command::new(env!("CARGO_BIN_EXE_fido")).args(arguments))
}

#[test]
fn every_table_of_the_ring_benchmark_is_filled() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let (json, csv) = (folder.path().join("ring.json"), folder.path().join("ring.csv"));
    let plots = folder.path().join("plots");
    let [json, csv, plots] = [&json, &csv, &plots].map(|path| path.to_str().unwrap());
    let files = ["--json", json, "--csv", csv, "--plot", plots];
    let output = fido(&[&["bench", "ring", "--tiny"][..], &files].concat());
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (out, err) = (text(output.stdout), text(output.stderr));
    assert_eq!(output.status.code(), Some(0), "{out}{err}");
    let csv = std::fs::read_to_string(csv).unwrap();
    for table in ["trip", "batch", "pause", "monitor", "siblings", "pairs", "stream", "loans", "lanes", "fan-in"] {
        assert!(out.contains(&format!("\n{table}: ")), "no table {table} in {out}");
        assert!(csv.contains(&format!("\n{table},")), "no rows of {table} in {csv}");
    }
    assert!(!out.contains("NaN"), "{out}");
    // The two tables that may have no numbers on a machine have no picture there.
    assert!(std::fs::read_dir(plots).unwrap().count() >= 8);
    assert!(std::fs::read_to_string(json).unwrap().starts_with("{\"machine\":"));
}

#[test]
fn a_side_that_dies_ends_the_benchmark() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    // More rounds than anybody waits for.
    let arguments = ["bench", "ring", "--only", "trip", "--rounds", "100000"];
    let mut lead = Running::start(Command::new(env!("CARGO_BIN_EXE_fido")).args(arguments));
    // Said when both sides have met and the first question is asked.
    lead.wait_for("the first question", |lead| lead.err().contains("trip ...").then_some(()));
    let other = lead.wait_for("the other side", |lead| {
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", lead.pid())).unwrap_or_default();
        // It has others for a moment, such as the one that asks for the commit.
        let is_other_side = |child: &&str| {
            std::fs::read_to_string(format!("/proc/{child}/cmdline")).is_ok_and(|line| line.contains("other-side"))
        };
        children.split_whitespace().find(is_other_side)?.parse().ok()
    });
    kill_process(Pid::from_raw(other).unwrap(), Signal::KILL).unwrap();
    let output = lead.end();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && err.contains("error: "), "{output:?}");
}

#[test]
fn what_the_ring_benchmark_cannot_do_is_said() {
    for (wrong, why) in [
        (&["--only", "trips"][..], "[possible values: trip, batch,"),
        (&["--cores", "0,0"], "core 0 cannot be both"),
        (&["--cores", "7"], "two numbers with a comma between them"),
        (&["--rounds", "0"], "0 is not in"),
    ] {
        let output = fido(&[&["bench", "ring"][..], wrong].concat());
        let err = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && err.contains(why), "{err}");
    }
    let output = fido(&["bench", "ring", "--cores", "0,999999"]);
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && err.contains("core 999999"), "{err}");
}
