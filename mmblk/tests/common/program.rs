//! Programs of others, each with a limit on its time.

#![allow(dead_code, reason = "each test file uses its part")]

use std::process::{Command, Output};

/// Seconds that a program may take.
const LIMIT: &str = "60";

fn output(program: &str, args: &[&str]) -> Output {
    let found = Command::new("timeout").arg(LIMIT).arg(program).args(args).output().unwrap();
    assert_ne!(found.status.code(), Some(127), "{program} is missing: .ci/blk installs its Debian package");
    assert_ne!(found.status.code(), Some(124), "{program} {args:?} takes longer than {LIMIT} s");
    found
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Runs it, which must succeed, and returns what it says.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = output(program, args);
    assert!(output.status.success(), "{program} {args:?} ends with {}: {}", output.status, said(&output));
    said(&output)
}

/// Runs it, which must not succeed, and returns what it says.
pub fn fails(program: &str, args: &[&str]) -> String {
    let output = output(program, args);
    assert!(!output.status.success(), "{program} {args:?} succeeds: {}", said(&output));
    said(&output)
}
