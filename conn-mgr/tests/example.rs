//! The worked example, run as a user runs it: real processes under the manager.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

const BUILD: &str = "`cargo test -p conn-mgr` builds it, and so does `cargo build -p conn-mgr --example request`; \
                     `--test example` alone does not";

/// The example beside this test. It is built with the tests of the whole crate, but not with this one alone.
fn program() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let program = tests.ancestors().nth(2).unwrap().join("examples/request");
    assert!(program.exists(), "{} is not built. {BUILD}", program.display());
    // What cargo has noted of its sources: one that has changed since means that this is the example of yesterday.
    let noted = std::fs::read_to_string(program.with_extension("d")).unwrap();
    let built = program.metadata().unwrap().modified().unwrap();
    let sources = sources(&noted);
    assert!(sources.iter().any(|source| source.ends_with("conn-mgr/examples/request.rs")), "{sources:?}");
    for source in sources {
        let is_older = source.metadata().and_then(|source| source.modified()).is_ok_and(|changed| changed <= built);
        assert!(is_older, "{} is older than {}. {BUILD}", program.display(), source.display());
    }
    program
}

/// `program: source source …`, in which a blank within a name has a backslash before it.
fn sources(noted: &str) -> Vec<PathBuf> {
    let (_, names) = noted.split_once(": ").unwrap();
    let names = names.replace("\\ ", "\0");
    names.split_whitespace().map(|name| Path::new(&name.replace('\0', " ")).to_owned()).collect()
}

#[test]
fn a_request_with_a_loan_and_a_reply() {
    let output = support::run::output(&mut Command::new(program()));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(said.contains("has 6 words; bytes of payload copied: 0"), "{said}");
}
