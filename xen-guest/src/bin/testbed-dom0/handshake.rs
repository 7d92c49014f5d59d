//! The scenario `handshake`: a guest that leaves between two nodes of the handshake, or says there what is not so, one life
//! after the other. Each time what is wrong is said by whom it concerns, in words that help; nobody else is harmed; and in
//! the end, when it behaves, all links work.

use std::time::Duration;

use conn_mgr::manager::{DomainState, Status};
use conn_mgr::manifest::{Domain, FencePolicy, Link, Manifest, Platform, Restart, RestartPolicy};
use fido_core::assignment::WaitStrategy;
use xen_guest::handshake::{ANSWERED, LINKS, LIVES, Life, ROLES, leaves_here};
use xen_guest::report::Kind;

use crate::appliance::{FENCE_LIMIT, SHUTDOWN_LIMIT, domain, problems, start};
use crate::machine::{Machine, xl};
use crate::{Failure, Reporter};

/// How long one life of the bad one may take.
const LIFE_LIMIT: Duration = Duration::from_secs(90);

/// What must be said of a life, by whom, in which words; and who ends it.
fn expected(life: Life) -> (&'static str, String, End) {
    let [good, bad, last] = ROLES;
    match life {
        Life::Nonsense => (bad, "which means nothing".into(), End::Manager),
        Life::NoPort | Life::NoDirectory => (bad, leaves_here(life), End::Destroyed),
        Life::Reference => (good, "its owner has no such reference".into(), End::Killed),
        Life::Port => (last, "cannot be bound".into(), End::Killed),
    }
}

/// How a life ends.
enum End {
    /// The manager will not have it.
    Manager,
    /// The guest is destroyed, behind the manager's back.
    Destroyed,
    /// The manager is asked to kill it.
    Killed,
}

/// Plays it.
pub fn run(machine: &Machine, reporter: &mut Reporter) -> Result<String, Failure> {
    let [good, bad, last] = ROLES;
    let fence = FencePolicy { deadline: FENCE_LIMIT };
    let mut manifest = Manifest { platform: Platform::Xen, fence, ..Manifest::new("handshake") };
    for (position, role) in (0..).zip(ROLES) {
        let domain = domain(role, "/guest/handshake.cpio", position, machine);
        manifest.domains.push(Domain { arena: 1 << 20, wait: WaitStrategy::Sleep, ..domain });
    }
    manifest.domains[1].restart = RestartPolicy { when: Restart::Always, ..RestartPolicy::default() };
    for (name, a, b) in [(LINKS[0], good, bad), (LINKS[1], bad, last)] {
        manifest.links.push(Link::new(name, a, b));
    }
    let manager = start(manifest)?;
    for (generation, life) in (1..).zip(LIVES) {
        let (by, words, end) = expected(life);
        let said = |status: &Status| {
            status.domain(by).and_then(|domain| domain.problem.as_ref()).is_some_and(|problem| problem.contains(&words))
        };
        if !manager.wait_until(LIFE_LIMIT, said) {
            return Err(format!("{life:?}: {by} does not say {words:?}: {}", problems(&manager.status())));
        }
        match end {
            End::Manager => {}
            End::Destroyed => {
                let guest = manager.status().domain(bad).and_then(|bad| bad.guest);
                let guest = guest.ok_or_else(|| format!("{life:?}: {bad} has no guest"))?;
                xl(&["destroy", &guest.to_string()])?;
            }
            End::Killed => manager.kill(bad).map_err(|error| format!("{life:?}: {error}"))?,
        }
        let is_over = |status: &Status| status.domain(bad).is_some_and(|bad| bad.generation > generation);
        if !manager.wait_until(LIFE_LIMIT, is_over) {
            return Err(format!("{life:?}: {bad} does not come back: {}", problems(&manager.status())));
        }
        reporter.send(Kind::Note, "handshake", format!("{life:?}: {by} says that {words:?}").as_bytes())?;
    }
    let is_answered =
        |status: &Status| status.is_ready() && status.domain(bad).is_some_and(|bad| bad.notes.contains_key(ANSWERED));
    manager.wait_until(LIFE_LIMIT, is_answered);
    let status = manager.status();
    let unharmed = |name: &&str| {
        status.domain(name).is_some_and(|domain| domain.generation == 1 && domain.state == DomainState::Ready)
    };
    if !is_answered(&status) || ![good, last].iter().all(unharmed) {
        return Err(format!("the links do not work in the end: {}", problems(&status)));
    }
    manager.shutdown(SHUTDOWN_LIMIT).map_err(|error| format!("the guests do not end: {error}"))?;
    Ok(format!("{} lives broke off or lied in the handshake, which was said; then both links worked", LIVES.len()))
}
