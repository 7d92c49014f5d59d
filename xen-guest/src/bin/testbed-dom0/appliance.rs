//! Appliances of guests under the real connection manager, which runs here in dom0.

use std::time::Duration;

use conn_mgr::manager::{Manager, Options, Status};
use conn_mgr::manifest::{Domain, FencePolicy, Guest, GuestType, Link, Manifest, Platform, Restart};
use fido_core::assignment::WaitStrategy;
use fido_core::conformance::{self, ALL_CASES, LOWER_LINK, PASSED, ROLES, UPPER_LINK};
use xen_guest::report::Kind;

use crate::machine::Machine;
use crate::{Failure, Reporter};

/// How long the whole suite may take; each case has a limit of its own.
const SUITE_LIMIT: Duration = Duration::from_secs(200);
/// How long a survivor may take to let go. The suite has one do so late; under emulation that takes its time.
const FENCE_LIMIT: Duration = Duration::from_secs(60);
/// How long guests may take to finish when they are told to.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(60);
/// A guest's memory, arena included.
const MEMORY: u64 = 192 << 20;

/// A domain that the image `NAME.cpio` is for, on the processor after those of the domains before it.
fn domain(name: &str, image: &str, position: u32, machine: &Machine) -> Domain {
    let kind = if machine.pvh { GuestType::Pvh } else { GuestType::Pv };
    let cpu = 1 + position % (machine.processors() - 1).max(1);
    let guest = Guest { kind, memory: MEMORY, cpus: vec![cpu], ..Guest::new("/guest/vmlinux", image) };
    Domain { arena: 16 << 20, guest: Some(guest), ..Domain::new(name, "/fido/program") }
}

fn start(manifest: Manifest) -> Result<Manager, Failure> {
    // A guest boots under emulation before it can say anything.
    let options = Options { start_deadline: Duration::from_secs(120), ..Options::default() };
    Manager::start(manifest, options).map_err(|error| format!("the manager does not start: {error}"))
}

/// The conformance suite of fido-core, unchanged, with guests for its three roles.
pub fn conform(machine: &Machine, reporter: &mut Reporter, wait: WaitStrategy) -> Result<String, Failure> {
    let [judge, peer, third] = ROLES;
    let fence = FencePolicy { deadline: FENCE_LIMIT };
    let mut manifest = Manifest { platform: Platform::Xen, fence, ..Manifest::new("conformance") };
    for (position, role) in (0..).zip(ROLES) {
        let domain = domain(role, "/guest/conformance.cpio", position, machine);
        manifest.domains.push(Domain { wait, ..domain });
    }
    manifest.domains[2].windows.push(judge.into());
    // A second life of the judge would find the others in the middle of the script, and its verdict say nothing.
    manifest.domains[0].restart.when = Restart::Never;
    for (name, a, b) in [(UPPER_LINK, judge, peer), (LOWER_LINK, peer, third)] {
        manifest.links.push(Link { slots: 16, ..Link::new(name, a, b) });
    }
    let manager = start(manifest)?;
    let mut said = String::new();
    let mut report = Ok(());
    manager.wait_until(SUITE_LIMIT, |status| {
        let case = note(status, "case").unwrap_or_default();
        if report.is_ok() && case != said {
            said = case.to_owned();
            report = reporter.send(Kind::Note, "conformance", format!("done: {case}").as_bytes());
        }
        report.is_err() || is_over(status)
    });
    report?;
    let status = manager.status();
    let down = manager.shutdown(SHUTDOWN_LIMIT);
    let passed = note(&status, "passed").unwrap_or("0");
    let all = conformance::cases().len().to_string();
    if note(&status, "verdict") != Some(PASSED) || note(&status, "case") != Some(ALL_CASES) || passed != all {
        return Err(format!("{passed} of {all} cases passed; {}", problems(&status)));
    }
    down.map_err(|error| format!("the guests do not end: {error}"))?;
    Ok(format!("{passed} cases passed"))
}

fn note<'a>(status: &'a Status, name: &str) -> Option<&'a str> {
    status.domain(ROLES[0])?.notes.get(name).map(String::as_str)
}

fn is_over(status: &Status) -> bool {
    note(status, "case") == Some(ALL_CASES)
        || note(status, "verdict").is_some_and(|verdict| verdict != PASSED)
        || status.failed().next().is_some()
}

/// What the judge and the manager have to say.
fn problems(status: &Status) -> String {
    let mut lines = vec![format!("the judge says {:?}", note(status, "verdict"))];
    for domain in &status.domains {
        let problem = domain.problem.as_deref().unwrap_or("no problem");
        lines.push(format!("{} {:?}, generation {}: {problem}", domain.name, domain.state, domain.generation));
    }
    lines.join("; ")
}
