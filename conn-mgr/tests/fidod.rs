//! The program `fidod`, from outside.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use support::{Bench, PATIENCE, eventually, is_alive};

/// Becomes a domain when the manager starts this program again.
#[test]
fn component() {
    support::component();
}

struct Fidod {
    child: Child,
    manifest: PathBuf,
}

impl Fidod {
    fn start(bench: &Bench, arguments: &[&str]) -> Self {
        let manifest = bench.path("nas.toml");
        std::fs::write(&manifest, bench.text()).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_fidod"))
            .arg(&manifest)
            .args(arguments)
            .env("XDG_RUNTIME_DIR", bench.path("run"))
            .env_remove("RUST_LOG")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { child, manifest }
    }

    fn first_line(&mut self) -> String {
        let mut line = String::new();
        BufReader::new(self.child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        line
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Its exit status and what it said on standard error.
    fn end(mut self) -> (ExitStatus, String) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline {
                self.child.kill().unwrap();
                panic!("fidod did not end");
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        };
        let mut errors = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        (status, errors)
    }
}

fn two_domains(bench: &mut Bench, words: &[&str]) {
    bench.domain("net", words, &["after = [\"fs\"]"]).domain("fs", &[], &[]).link("nfs", "net", "fs", 1);
}

/// The processes of the domains, as they have logged them.
fn pids(bench: &Bench) -> Vec<u32> {
    let pid = |line: String| line.split(" pid ").nth(1)?.split(' ').next()?.parse().ok();
    bench.log().into_iter().filter_map(pid).collect()
}

#[test]
fn a_signal_shuts_down_in_order_and_leaves_nothing_behind() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut bench = Bench::new();
        two_domains(&mut bench, &[]);
        let mut fidod = Fidod::start(&bench, &[]);
        let line = fidod.first_line();
        assert!(line.starts_with("appliance `test` is ready: net (pid ") && line.contains("port=1234"), "{line}");
        fidod.signal(signal);
        let (status, errors) = fidod.end();
        assert_eq!(status.code(), Some(0), "{errors}");
        assert!(errors.contains("[fs 1] "), "output is prefixed: {errors}");
        assert!(bench.position("net 1 shutdown") < bench.position("fs 1 shutdown"));
        assert_eq!(pids(&bench).len(), 2);
        assert!(pids(&bench).into_iter().all(|pid| !is_alive(pid)));
        assert!(bench.is_swept());
    }
}

#[test]
fn no_domain_survives_a_manager_that_is_killed_and_the_next_one_cleans_up() {
    let mut bench = Bench::new();
    two_domains(&mut bench, &[]);
    let mut fidod = Fidod::start(&bench, &[]);
    fidod.first_line();
    fidod.signal(Signal::KILL);
    fidod.end();
    let left = pids(&bench);
    assert_eq!(left.len(), 2);
    eventually("the kernel kills the domains", || left.iter().all(|&pid| !is_alive(pid)));
    assert!(!bench.is_swept());
    let mut next = Fidod::start(&bench, &[]);
    next.first_line();
    next.signal(Signal::TERM);
    assert!(next.end().0.success());
    assert!(bench.is_swept());
}

#[test]
fn the_status_as_json() {
    let mut bench = Bench::new();
    two_domains(&mut bench, &[]);
    let mut fidod = Fidod::start(&bench, &["--json"]);
    let status: serde_json::Value = serde_json::from_str(&fidod.first_line()).unwrap();
    assert_eq!(status["appliance"], "test");
    assert_eq!(status["domains"][1]["state"], "ready");
    assert_eq!(status["domains"][1]["notes"]["port"], "1234");
    fidod.signal(Signal::TERM);
    assert!(fidod.end().0.success());
}

#[test]
fn checks_without_starting() {
    let mut bench = Bench::new();
    two_domains(&mut bench, &[]);
    let mut fidod = Fidod::start(&bench, &["--check"]);
    assert!(fidod.first_line().contains("2 domains, 1 links"));
    assert_eq!(fidod.end().0.code(), Some(0));
    assert!(bench.log().is_empty());
}

#[test]
fn a_wrong_manifest_is_shown() {
    let mut bench = Bench::new();
    two_domains(&mut bench, &[]);
    bench.link("block", "fs", "dsk", 1);
    let fidod = Fidod::start(&bench, &[]);
    let name = fidod.manifest.display().to_string();
    let (status, errors) = fidod.end();
    assert_eq!(status.code(), Some(1));
    assert!(errors.contains("error: unknown domain `dsk`") && errors.contains(&name), "{errors}");
    assert!(errors.contains("= expected `net`, `fs`"), "{errors}");
    let status = Command::new(env!("CARGO_BIN_EXE_fidod")).stderr(Stdio::null()).status().unwrap();
    assert_eq!(status.code(), Some(2), "no manifest at all");
    let help = Command::new(env!("CARGO_BIN_EXE_fidod")).arg("--help").output().unwrap();
    assert!(String::from_utf8_lossy(&help.stdout).contains("Exit codes:"));
}

#[test]
fn failing_for_good_ends_it_if_asked() {
    let mut bench = Bench::new();
    bench.domain("good", &[], &[]).domain("bad", &["crash"], &["restart = \"never\""]);
    let (status, errors) = Fidod::start(&bench, &["--fail-fast"]).end();
    assert_eq!(status.code(), Some(4), "{errors}");
    assert!(errors.contains("a domain failed"), "{errors}");
    assert!(bench.is_swept());
}

#[test]
fn a_second_signal_takes_all_patience_away() {
    let mut bench = Bench::new();
    two_domains(&mut bench, &["ignore-shutdown", "ignore-term"]);
    let mut fidod = Fidod::start(&bench, &["--shutdown-timeout", "3600"]);
    fidod.first_line();
    fidod.signal(Signal::INT);
    bench.wait_for("net 1 shutdown");
    fidod.signal(Signal::INT);
    let (status, errors) = fidod.end();
    assert_eq!(status.code(), Some(3), "{errors}");
    assert!(errors.contains("had to kill: net"), "{errors}");
    assert!(bench.is_swept());
}
