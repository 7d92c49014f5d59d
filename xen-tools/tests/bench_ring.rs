//! `fido bench ring`, from outside.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::io::Read;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The benchmark spins on both cores: one at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn fido(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fido")).args(arguments).output().unwrap()
}

#[test]
fn every_table_of_the_ring_benchmark_is_filled() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let (json, csv) = (folder.path().join("ring.json"), folder.path().join("ring.csv"));
    let plots = folder.path().join("plots");
    let [json, csv, plots] = [&json, &csv, &plots].map(|path| path.to_str().unwrap());
    let files = ["--json", json, "--csv", csv, "--plot", plots];
    let output = fido(&[&["bench", "ring", "--quick", "--rounds", "1"][..], &files].concat());
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
    struct Lead(Child);
    impl Drop for Lead {
        fn drop(&mut self) {
            // A test that fails leaves nobody behind.
            let _ = self.0.kill();
        }
    }
    let mut lead = Lead(
        Command::new(env!("CARGO_BIN_EXE_fido"))
            .args(["bench", "ring", "--only", "trip", "--rounds", "100000"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let children = format!("/proc/{0}/task/{0}/children", lead.0.id());
    let deadline = Instant::now() + Duration::from_secs(60);
    let other = loop {
        assert!(Instant::now() < deadline, "no other side is started");
        let children = std::fs::read_to_string(&children).unwrap_or_default();
        // It has others for a moment, such as the one that asks for the commit.
        let is_other_side = |child: &&str| {
            std::fs::read_to_string(format!("/proc/{child}/cmdline")).is_ok_and(|line| line.contains("other-side"))
        };
        if let Some(child) = children.split_whitespace().find(is_other_side) {
            break child.to_owned();
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    std::thread::sleep(Duration::from_millis(300));
    assert!(Command::new("sh").args(["-c", &format!("kill -KILL {other}")]).status().unwrap().success());
    let code = loop {
        if let Some(status) = lead.0.try_wait().unwrap() {
            break status.code();
        }
        assert!(Instant::now() < deadline, "the leading side goes on without the other");
        std::thread::sleep(Duration::from_millis(20));
    };
    let mut err = String::new();
    lead.0.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert!(code == Some(1) && err.contains("error: "), "{code:?} {err}");
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
