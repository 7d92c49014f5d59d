//! The scenario `doctor`: `fido xen doctor` in dom0 and in two guests. Their images and configurations were made by the
//! commands that users have, and they are created from them as a user would: by `xl create`.

use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use xen_guest::report::Kind;

use crate::machine::{CONSOLES, TOOLS, xl};
use crate::{Failure, Reporter};

const LIMIT: Duration = Duration::from_secs(90);
/// The arenas of this manifest are small enough for dom0 as it is.
const MANIFEST: &str = "/guest/clinic.toml";
/// Without a manifest, the doctor looks for room for an arena of 64 MiB.
const LIMIT_OF_GNTALLOC: &str = "/sys/module/xen_gntalloc/parameters/limit";

/// Plays it.
pub fn run(reporter: &mut Reporter) -> Result<String, Failure> {
    for name in ["well", "ill"] {
        xl(&["create", "-q", &format!("/guest/clinic-{name}.cfg")])?;
    }
    dom0()?;
    reporter.send(Kind::Note, "doctor", b"dom0 is well after what the doctor has said was done")?;
    let well = ended("well")?;
    says(
        &well,
        &["ok   this is a ", "ok   /dev/xen/gntdev (windows)", "ok   /dev/fido_arena", "the program ended: exit 0"],
    )?;
    if well.contains("BAD") {
        return Err(format!("a guest that has everything is not well:\n{well}"));
    }
    let ill = ended("ill")?;
    says(
        &ill,
        &[
            "BAD  /dev/xen/gntdev (windows)",
            "fix: modprobe xen-gntdev",
            "note /dev/fido_arena",
            "xen-tools/kmod",
            "BAD  gntalloc's limit of 1024 pages",
            "fix: echo 16401 > /sys/module/xen_gntalloc/parameters/limit",
            "the program ended: exit 1",
        ],
    )?;
    Ok("in dom0, in a guest that has everything and in one that lacks modules: right verdicts, fixes that mend"
        .to_owned())
}

/// With a manifest that fits it is well; without, it lacks room, says how to mend that, and is well when that is done.
fn dom0() -> Result<(), Failure> {
    let (code, text) = examine(&[MANIFEST])?;
    says(&text, &["this is dom0 of Xen", "Xen's limit of 1024 frames for grant tables"])?;
    if code != Some(0) {
        return Err(format!("dom0 is not well, exit code {code:?}:\n{text}"));
    }
    let (code, text) = examine(&[])?;
    says(&text, &["BAD  gntalloc's limit of 1024 pages"])?;
    let fix = text.lines().find_map(|line| line.trim().strip_prefix("fix: echo ")?.split_once(" > "));
    let (value, place) = fix.ok_or_else(|| format!("no fix is named:\n{text}"))?;
    if code != Some(1) || place != LIMIT_OF_GNTALLOC {
        return Err(format!("exit code {code:?}, and the fix is about {place}:\n{text}"));
    }
    std::fs::write(place, value).map_err(|error| format!("{place}: {error}"))?;
    let (code, text) = examine(&[])?;
    let _ = std::fs::write(place, "1024");
    if code == Some(0) { Ok(()) } else { Err(format!("after the fix, exit code {code:?}:\n{text}")) }
}

fn examine(words: &[&str]) -> Result<(Option<i32>, String), Failure> {
    let mut doctor = Command::new("/usr/bin/fido");
    let output = doctor.args(["xen", "doctor"]).args(words).env("PATH", TOOLS).output();
    let output = output.map_err(|error| format!("fido xen doctor: {error}"))?;
    Ok((output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned()))
}

fn says(text: &str, words: &[&str]) -> Result<(), Failure> {
    match words.iter().find(|word| !text.contains(**word)) {
        Some(missing) => Err(format!("the doctor does not say {missing:?}:\n{text}")),
        None => Ok(()),
    }
}

/// A guest's console, once its program has ended.
fn ended(name: &str) -> Result<String, Failure> {
    let (path, began) = (format!("{CONSOLES}/guest-clinic-{name}.log"), Instant::now());
    loop {
        // It comes line by line; the last is the one waited for.
        let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap_or_default()).replace('\r', "");
        if text.lines().any(|line| line.contains("the program ended: exit ")) {
            return Ok(text);
        }
        if began.elapsed() > LIMIT {
            return Err(format!("the program of {name} does not end; its console:\n{text}"));
        }
        sleep(Duration::from_millis(100));
    }
}
