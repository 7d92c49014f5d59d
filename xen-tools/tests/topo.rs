//! `fido topo`, from outside.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::process::Command;

#[test]
fn the_machine_is_shown_measured_drawn_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let picture = folder.path().join("matrix.svg");
    let cache = folder.path().join("cache");
    let topo = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fido"));
        command.args(["topo", "--quick"]).args(arguments).env("XDG_CACHE_HOME", &cache).output().unwrap()
    };
    let output = topo(&["--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let allowed = report["topology"]["allowed"].as_array().unwrap().len();
    let pairs = report["matrix"]["pairs"].as_array().map_or(0, Vec::len);
    assert_eq!(pairs, allowed * (allowed - 1), "every ordered pair");
    let output = topo(&["--svg", picture.to_str().unwrap(), "--save"]);
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(out.contains("\ncpu  allowed  core"), "{out}");
    if allowed == 1 {
        assert!(err.contains("no hand-overs"), "{err}");
        return;
    }
    assert_eq!(output.status.code(), Some(0), "{err}");
    assert!(out.contains("hand-over of a cache line") && out.contains("measured"), "{out}");
    assert!(std::fs::read_to_string(&picture).unwrap().contains("Hand-over of a cache line"));
    assert!(err.contains("kept in ") && cache.join("fido").read_dir().unwrap().count() == 1, "{err}");
    let manifest = folder.path().join("nas.toml");
    std::fs::write(&manifest, "appliance = \"a\"\n[domain.d]\nprogram = \"sh\"\ncpus = \"auto\"\n").unwrap();
    let mut check = Command::new(env!("CARGO_BIN_EXE_fido"));
    let output = check.arg("check").arg(&manifest).env("XDG_CACHE_HOME", &cache).output().unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    assert!(out.contains("placed by the hand-overs measured on this machine"), "{out}");
    let nowhere = topo(&["--svg", "/nonexistent/x.svg"]);
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(String::from_utf8(nowhere.stderr).unwrap().contains("/nonexistent/x.svg"));
}
