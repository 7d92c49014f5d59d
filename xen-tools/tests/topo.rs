//! `fido topo`, from outside.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "../../conn-mgr/tests/support/run.rs"]
mod support;

use std::process::{Command, Output};
use std::time::Instant;

use support::LIMIT;

fn fido(cache: &std::path::Path, arguments: &[&str]) -> Output {
    support::output(Command::new(env!("CARGO_BIN_EXE_fido")).args(arguments).env("XDG_CACHE_HOME", cache))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Asks until the answer is there. The time of a pair is short, and on a busy machine may be over before there are
/// enough rounds: then nothing was measured, which is not what the tests are about.
fn until_measured<T>(mut ask: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(why) => assert!(Instant::now() < deadline, "nothing was measured within {LIMIT:?}: {why}"),
        }
    }
}

#[test]
fn every_pair_is_there_and_says_where_its_figure_comes_from() {
    let folder = tempfile::tempdir().unwrap();
    until_measured(|| {
        let report: serde_json::Value =
            serde_json::from_slice(&fido(folder.path(), &["topo", "--quick", "--json"]).stdout).unwrap();
        let allowed = report["topology"]["allowed"].as_array().unwrap().len();
        let none = Vec::new();
        let pairs = report["matrix"]["pairs"].as_array().unwrap_or(&none);
        assert_eq!(pairs.len(), allowed * (allowed - 1), "every ordered pair");
        let origins: Vec<&str> = pairs.iter().map(|pair| pair["origin"].as_str().unwrap()).collect();
        assert!(origins.iter().all(|origin| ["measured", "estimated", "nominal"].contains(origin)), "{origins:?}");
        for pair in pairs {
            assert_eq!(pair["origin"] == "measured", pair["rounds"].as_u64().unwrap() > 0, "{pair}");
        }
        if allowed == 1 || origins.contains(&"measured") { Ok(()) } else { Err(report.to_string()) }
    });
}

#[test]
fn the_machine_is_shown_drawn_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let picture = folder.path().join("matrix.svg");
    let cache = folder.path().join("cache");
    let allowed = std::thread::available_parallelism().unwrap().get();
    let output = until_measured(|| {
        let output = fido(&cache, &["topo", "--quick", "--svg", picture.to_str().unwrap(), "--save"]);
        let err = text(&output.stderr);
        if !err.contains("nothing is kept") {
            return Ok(output);
        }
        // What was not measured is refused, and is not there afterwards.
        assert!(output.status.code() == Some(1) && !cache.exists(), "{output:?}");
        Err(err)
    });
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(out.contains("\ncpu  allowed  core"), "{out}");
    if allowed == 1 {
        assert!(err.contains("no hand-overs"), "{err}");
        return;
    }
    assert_eq!(output.status.code(), Some(0), "{err}");
    assert!(out.contains("hand-over of a cache line"), "{out}");
    assert!(std::fs::read_to_string(&picture).unwrap().contains("Hand-over of a cache line"));
    assert!(err.contains("kept in ") && cache.join("fido").read_dir().unwrap().count() == 1, "{err}");
    let manifest = folder.path().join("nas.toml");
    std::fs::write(&manifest, "appliance = \"a\"\n[domain.d]\nprogram = \"sh\"\ncpus = \"auto\"\n").unwrap();
    let out = text(&fido(&cache, &["check", manifest.to_str().unwrap()]).stdout);
    assert!(out.contains("placed by the hand-overs measured on this machine"), "{out}");
    let nowhere = fido(&cache, &["topo", "--quick", "--svg", "/nonexistent/x.svg"]);
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(text(&nowhere.stderr).contains("/nonexistent/x.svg"));
}
