//! The conformance suite on the platform `host`: real processes under the real manager.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::time::Duration;

use conn_mgr::manager::{Manager, Options, Status};
use conn_mgr::manifest::{Domain, Link, Manifest, Restart};
use fido_core::assignment::WaitStrategy;
use fido_core::conformance::{self, ALL_CASES, LOWER_LINK, PASSED, ROLES, UPPER_LINK};
use fido_core::platform::host::protocol::DOMAIN_VARIABLE;

/// How long the whole suite may take; each case has a limit of its own.
const PATIENCE: Duration = Duration::from_secs(300);

/// Becomes a domain when the manager starts this program again; the domain's name is its role.
#[test]
fn role() {
    if std::env::var_os(DOMAIN_VARIABLE).is_none() {
        return;
    }
    let domain = fido_core::domain::Domain::join().unwrap();
    if let Err(failure) = conformance::run(&domain, domain.name()) {
        panic!("{}: {failure}", domain.name());
    }
}

fn manifest(wait: WaitStrategy) -> Manifest {
    let program = std::env::current_exe().unwrap();
    let mut manifest = Manifest::new("conformance");
    for role in ROLES {
        let mut domain = Domain::new(role, &program);
        domain.args = ["role", "--exact", "--nocapture", "--test-threads=1"].map(String::from).to_vec();
        domain.arena = 16 << 20;
        domain.wait = wait;
        manifest.domains.push(domain);
    }
    let [judge, peer, third] = ROLES;
    manifest.domains[2].windows.push(judge.into());
    // A second life of the judge would find the others in the middle of the script, and its verdict say nothing.
    manifest.domains[0].restart.when = Restart::Never;
    for (name, a, b) in [(UPPER_LINK, judge, peer), (LOWER_LINK, peer, third)] {
        let mut link = Link::new(name, a, b);
        link.slots = 16;
        manifest.links.push(link);
    }
    manifest
}

fn note<'a>(status: &'a Status, name: &str) -> Option<&'a str> {
    status.domain(ROLES[0])?.notes.get(name).map(String::as_str)
}

fn is_over(status: &Status) -> bool {
    note(status, "case") == Some(ALL_CASES)
        || note(status, "verdict").is_some_and(|verdict| verdict != PASSED)
        || status.failed().next().is_some()
}

fn play(wait: WaitStrategy) {
    let run = tempfile::tempdir().unwrap();
    let options = Options { runtime_dir: Some(run.path().to_owned()), ..Options::default() };
    let manager = Manager::start(manifest(wait), options).unwrap();
    manager.wait_until(PATIENCE, is_over);
    let status = manager.status();
    let passed = conformance::cases().len().to_string();
    assert_eq!(note(&status, "verdict"), Some(PASSED), "{status:#?}");
    assert_eq!((note(&status, "case"), note(&status, "passed")), (Some(ALL_CASES), Some(passed.as_str())));
    manager.shutdown(PATIENCE).unwrap();
}

#[test]
fn host_conforms_when_domains_sleep() {
    play(WaitStrategy::Sleep);
}

#[test]
fn host_conforms_when_domains_adapt() {
    play(WaitStrategy::Adaptive);
}

#[test]
fn host_conforms_when_domains_spin() {
    play(WaitStrategy::Spin);
}
