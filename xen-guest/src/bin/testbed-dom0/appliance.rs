//! Appliances of guests under the real connection manager, which runs here in dom0.

use std::time::{Duration, Instant};

use conn_mgr::manager::{Manager, Options, Status};
use conn_mgr::manifest::{Domain, FencePolicy, Guest, GuestType, Link, Manifest, Platform, Restart};
use fido_core::assignment::WaitStrategy;
use fido_core::conformance::{self, ALL_CASES, LOWER_LINK, PASSED, ROLES, UPPER_LINK};
use xen_guest::report::Kind;
use xen_guest::{chain, pace};

use crate::machine::{Machine, xl};
use crate::{Failure, Reporter, hypercalls};

/// How long the whole suite may take; each case has a limit of its own.
const SUITE_LIMIT: Duration = Duration::from_secs(200);
/// How long a domain may take to come back, and how long until something flows then.
const RETURN_LIMIT: Duration = Duration::from_secs(90);
/// How long a survivor may take to let go. The suite has one do so late; under emulation that takes its time.
pub const FENCE_LIMIT: Duration = Duration::from_secs(60);
/// How long guests may take to finish when they are told to.
pub const SHUTDOWN_LIMIT: Duration = Duration::from_secs(60);
/// A guest's memory, arena included.
const MEMORY: u64 = 192 << 20;

/// A domain that the image `NAME.cpio` is for, on the processor after those of the domains before it.
pub fn domain(name: &str, image: &str, position: u32, machine: &Machine) -> Domain {
    let kind = if machine.pvh { GuestType::Pvh } else { GuestType::Pv };
    let cpu = 1 + position % (machine.processors() - 1).max(1);
    let guest = Guest { kind, memory: MEMORY, cpus: vec![cpu], ..Guest::new("/guest/vmlinux", image) };
    Domain { arena: 16 << 20, guest: Some(guest), ..Domain::new(name, "/fido/program") }
}

/// Starts an appliance under a manager.
pub fn start(manifest: Manifest) -> Result<Manager, Failure> {
    // A guest boots under emulation before it can say anything.
    let options = Options { start_deadline: Duration::from_secs(120), ..Options::default() };
    Manager::start(manifest, options).map_err(|error| format!("the manager does not start: {error}"))
}

/// The conformance suite of fido-core, unchanged, with guests for its three roles: once for each way to wait that leaves
/// the host's processors to others. With `spin` it passes as well; `ring` spins.
pub fn conform(machine: &Machine, reporter: &mut Reporter) -> Result<String, Failure> {
    let mut found = Vec::new();
    for wait in [WaitStrategy::Sleep, WaitStrategy::Adaptive] {
        let began = Instant::now();
        let passed = conform_with(machine, reporter, wait).map_err(|failure| format!("{wait:?}: {failure}"))?;
        let seconds = began.elapsed().as_secs_f64();
        let text = format!("{wait:?}: {passed} cases passed within {seconds:.1} s, guests created and destroyed");
        reporter.send(Kind::Note, "conformance", text.as_bytes())?;
        found.push(format!("{passed} ({wait:?})"));
    }
    Ok(format!("cases passed, by the way to wait: {}", found.join(", ")))
}

/// The suite with one way to wait. How many cases have passed, which is all of them.
fn conform_with(machine: &Machine, reporter: &mut Reporter, wait: WaitStrategy) -> Result<usize, Failure> {
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
    let all = conformance::cases().len();
    if note(&status, "verdict") != Some(PASSED) || note(&status, "case") != Some(ALL_CASES) || passed != all.to_string()
    {
        return Err(format!(
            "{passed} of {all} cases passed; the judge says {:?}; {}",
            note(&status, "verdict"),
            problems(&status)
        ));
    }
    down.map_err(|error| format!("the guests do not end: {error}"))?;
    Ok(all)
}

fn note<'a>(status: &'a Status, name: &str) -> Option<&'a str> {
    status.domain(ROLES[0])?.notes.get(name).map(String::as_str)
}

fn is_over(status: &Status) -> bool {
    note(status, "case") == Some(ALL_CASES)
        || note(status, "verdict").is_some_and(|verdict| verdict != PASSED)
        || status.failed().next().is_some()
}

/// What the manager has to say.
pub fn problems(status: &Status) -> String {
    let mut lines = Vec::new();
    for domain in &status.domains {
        let problem = domain.problem.as_deref().unwrap_or("no problem");
        lines.push(format!("{} {:?}, generation {}: {problem}", domain.name, domain.state, domain.generation));
    }
    lines.join("; ")
}

/// Kills each domain of a chain in turn and waits until it serves again. Bytes are lent from end to end all the time.
pub fn destroy(machine: &Machine, reporter: &mut Reporter) -> Result<String, Failure> {
    let [top, middle, bottom] = chain::ROLES;
    let fence = FencePolicy { deadline: FENCE_LIMIT };
    let mut manifest = Manifest { platform: Platform::Xen, fence, ..Manifest::new("chain") };
    for (position, role) in (0..).zip(chain::ROLES) {
        let domain = domain(role, "/guest/chain.cpio", position, machine);
        manifest.domains.push(Domain { wait: WaitStrategy::Sleep, ..domain });
    }
    manifest.domains[0].params.insert(chain::DIE_AFTER.to_owned(), KILLED_AFTER.into());
    manifest.domains[2].windows.push(top.into());
    for (name, a, b) in [(chain::LINKS[0], top, middle), (chain::LINKS[1], middle, bottom)] {
        manifest.links.push(Link { slots: 16, ..Link::new(name, a, b) });
    }
    let manager = start(manifest)?;
    let (mut found, mut rows) = (Vec::new(), "destroyed,seconds_to_service\n".to_owned());
    // Its first life ends by a SIGKILL to the process that owns the arena.
    returns(&manager, top, 2, Instant::now())?;
    reporter.send(Kind::Note, "destroy", b"top serves again after a kill -9 of its process")?;
    for role in [bottom, middle, top] {
        let status = manager.status();
        let domain = status.domain(role).ok_or("the appliance has lost a domain")?;
        let guest = domain.guest.ok_or_else(|| format!("{role} has no guest"))?;
        let began = Instant::now();
        xl(&["destroy", &guest.to_string()])?;
        let seconds = returns(&manager, role, domain.generation + 1, began)?;
        found.push(format!("{role} {seconds:.1} s"));
        rows.push_str(&format!("{role},{seconds:.3}\n"));
        reporter.send(Kind::Note, "destroy", format!("{role} serves again after {seconds:.1} s").as_bytes())?;
    }
    manager.shutdown(SHUTDOWN_LIMIT).map_err(|error| format!("the guests do not end: {error}"))?;
    reporter.send(Kind::File, "destroy.csv", rows.as_bytes())?;
    Ok(format!("after a kill -9 of the owner and, by xl destroy, service again: {}", found.join(", ")))
}

/// The first life of the top has so many rounds.
const KILLED_AFTER: u32 = 15;

/// Waits until a domain's life of that generation is there and bytes go from end to end again. Seconds since `began`.
fn returns(manager: &Manager, role: &str, generation: u16, began: Instant) -> Result<f64, Failure> {
    let rounds = |status: &Status| -> u32 {
        let note = status.domain(chain::ROLES[0]).and_then(|top| top.notes.get(chain::ROUNDS));
        note.and_then(|note| note.parse().ok()).unwrap_or_default()
    };
    let is_there = |status: &Status| {
        status.domain(role).is_some_and(|domain| domain.generation == generation) && status.is_ready()
    };
    let there = manager.wait_until(RETURN_LIMIT, |status| is_there(status) || status.failed().next().is_some());
    let before = manager.status();
    if !there || !is_there(&before) {
        return Err(format!("{role} does not come back: {}", problems(&before)));
    }
    // Two reports: the first may be from before.
    let goes_on = manager.wait_until(RETURN_LIMIT, |status| rounds(status) > rounds(&before) + 10);
    if !goes_on || !is_there(&manager.status()) {
        return Err(format!("nothing flows after the return of {role}: {}", problems(&manager.status())));
    }
    Ok(began.elapsed().as_secs_f64())
}

/// What a lane between two guests takes.
pub fn ring(machine: &Machine, reporter: &mut Reporter) -> Result<String, Failure> {
    let [ping, pong, idle] = pace::ROLES;
    let mut manifest = Manifest { platform: Platform::Xen, ..Manifest::new("ring") };
    for (position, role) in (0..).zip(pace::ROLES) {
        let domain = domain(role, "/guest/pace.cpio", position, machine);
        let wait = if role == idle { WaitStrategy::Sleep } else { WaitStrategy::Spin };
        manifest.domains.push(Domain { wait, ..domain });
    }
    manifest.links.push(Link::new(pace::LINK, ping, pong));
    let manager = start(manifest)?;
    manager.wait_until(SUITE_LIMIT, |status| status.is_ready() || status.failed().next().is_some());
    let status = manager.status();
    if !status.is_ready() {
        return Err(format!("no figures: {}", problems(&status)));
    }
    let calls = hypercalls::count(&manager, machine, reporter);
    manager.shutdown(SHUTDOWN_LIMIT).map_err(|error| format!("the guests do not end: {error}"))?;
    let notes = status.domain(ping).map(|ping| &ping.notes).ok_or("ping is lost")?;
    let value = |name: &str| notes.get(name).map_or("?", String::as_str);
    let rows: String = pace::NOTES.iter().map(|name| format!("{name},{}\n", value(name))).collect();
    reporter.send(Kind::File, "ring.csv", format!("what,value\n{rows}").as_bytes())?;
    let asked: Vec<_> = pace::NOTES[3..].iter().map(|name| format!("{} {name}", value(name))).collect();
    if pace::NOTES[3..].iter().any(|name| value(name) != "0") {
        return Err(format!("who polls asked the kernel: {}", asked.join(", ")));
    }
    let [round, rate, copied, ..] = pace::NOTES.map(value);
    Ok(format!(
        "{round} ns there and back, {rate} messages/s, {copied} MiB/s lent and copied; {}; {}",
        asked.join(", "),
        calls?
    ))
}
