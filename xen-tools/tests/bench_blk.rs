//! `fido bench blk`, from outside: that it works, with turns too short to say what anything costs.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "../../conn-mgr/tests/support/run.rs"]
mod support;

use std::process::Command;

#[test]
fn every_table_of_the_benchmark_of_block_devices_is_filled() {
    let folder = tempfile::tempdir().unwrap();
    let [json, csv, plots] = ["blk.json", "blk.csv", "plots"].map(|name| folder.path().join(name));
    let output = support::output(
        Command::new(env!("CARGO_BIN_EXE_fido"))
            .args(["bench", "blk", "--quick", "--rounds", "1"])
            .args([&"--folder".into(), &folder.path().to_owned()])
            .args([&"--json".into(), &json, &"--csv".into(), &csv, &"--plot".into(), &plots]),
    );
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (out, err) = (text(output.stdout), text(output.stderr));
    assert_eq!(output.status.code(), Some(0), "{out}{err}");
    let csv = std::fs::read_to_string(csv).unwrap();
    for device in ["null", "memory", "file", "file, O_DIRECT"] {
        for (table, load) in [("iops-64", "read 4096"), ("iops-64-jobs", "write 512"), ("large-8", "write 262144")] {
            for column in ["direct", "copying", "MMBlk"] {
                let label = format!("{device}, {load}");
                let label = if label.contains(',') { format!("\"{label}\"") } else { label };
                let cell = format!("\n{table},{label},{column},1/s,");
                assert!(csv.contains(&cell), "no cell {cell} in {csv}");
            }
        }
    }
    assert!(csv.contains("\nlatency-1,\"null, read 512, MMBlk\",beyond direct,ring trips,"), "{csv}");
    assert!(out.contains("\ntargets") && out.contains("times copying"), "{out}");
    assert!(std::fs::read_to_string(json).unwrap().starts_with("{\"machine\":"));
    assert_eq!(std::fs::read_dir(plots).unwrap().count(), 4);
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 3, "the image is gone");
}
