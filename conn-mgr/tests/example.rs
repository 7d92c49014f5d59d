//! The worked example, run as a user runs it: real processes under the manager.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::process::Command;

#[test]
fn a_request_with_a_loan_and_a_reply() {
    let tests = std::env::current_exe().unwrap();
    let program = tests.ancestors().nth(2).unwrap().join("examples/request");
    assert!(program.exists(), "{program:?} is not built: cargo build -p conn-mgr --examples");
    // The program itself has limits on how long it waits.
    let output = Command::new(program).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(said.contains("has 6 words; bytes of payload copied: 0"), "{said}");
}
