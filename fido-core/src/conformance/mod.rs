//! The conformance suite: what every platform has to pass, unchanged.
//!
//! It is played by three domains in a row, each a program that calls [`run`] with its role:
//!
//! ```text
//! judge ──"judge-peer"── peer ──"peer-third"── third        third also has a window on judge's arena
//! ```
//!
//! The judge drives the [`cases`] by orders to the others and says how it goes in its notes to the manager: `case` (the
//! latest, or [`ALL_CASES`] at the end), `verdict` ([`PASSED`], or what went wrong) and `passed` (how many so far). Each
//! case is bounded in time; one that hangs is named together with what it waited for. The peer is killed by its own
//! hand on the way, so the manager must restart it, and must do so while a fence is open.
//!
//! The suite waits by doorbells only, never by looking again after a while: a lost wake-up is a case that hangs. Run it
//! with every wait strategy, and with the transport `pointer` (it checks that bytes stay where they are).

mod death;
mod flow;
mod judge;
mod memory;
mod script;
mod servant;

use std::io;

use crate::domain::{Domain, DomainError};
use judge::Judge;
use servant::Servant;

/// The roles.
pub const ROLES: [&str; 3] = ["judge", "peer", "third"];
/// The link between the judge and the peer.
pub const UPPER_LINK: &str = "judge-peer";
/// The link between the peer and the third.
pub const LOWER_LINK: &str = "peer-third";
/// The note `case` when no case is left.
pub const ALL_CASES: &str = "all";
/// The note `verdict` of a case that went well.
pub const PASSED: &str = "passed";

/// Why a role could not be played, or what the platform does wrong.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The domain is not what the suite needs.
    #[error(transparent)]
    Domain(#[from] DomainError),
    /// The system refused the suite what it needs for itself.
    #[error("the suite cannot go on: {0}")]
    System(#[from] io::Error),
    /// There is no such role.
    #[error("there is no role {0:?}; the roles are judge, peer and third")]
    Role(String),
    /// A case waited for what did not come.
    #[error("case {case:?} hung: after {seconds} s there is still no {what}")]
    Hung {
        /// The case.
        case: &'static str,
        /// The time it had.
        seconds: u64,
        /// What it waited for.
        what: String,
    },
    /// A case saw what must not be.
    #[error("case {case:?}: {what}")]
    Wrong {
        /// The case.
        case: &'static str,
        /// What it saw.
        what: String,
    },
    /// The appliance was shut down before the end.
    #[error("shut down in the middle of case {case:?}")]
    Interrupted {
        /// The case.
        case: &'static str,
    },
}

/// A case: a name that says what is right, and the judge's part of it.
type Case = (&'static str, fn(&mut Judge) -> Result<(), Failure>);

/// The cases in the order they are run. Those in which the peer dies come last.
const CASES: [Case; 15] = [
    ("a window shows what the owner writes", memory::windows_show_what_the_owner_writes),
    ("a window cannot be made writable", memory::windows_cannot_be_made_writable),
    ("wild addresses are refused and the lane goes on", memory::wild_addresses_are_refused),
    ("messages go both ways in order, round and round the ring", flow::messages_in_order),
    ("a full ring says so and credit wakes the sender", flow::full_ring_and_credit),
    ("a message wakes a sleeping peer", flow::a_message_wakes),
    ("loans return", flow::loans_return),
    ("a returned loan wakes a sleeping lender", flow::a_return_wakes),
    ("lists of 1, 3, 4 and 256 segments arrive, 257 are refused", flow::scatter_gather),
    ("bytes are forwarded by address and returned hop by hop", flow::transitive_forward),
    ("a lone death is followed by a new session", death::a_lone_death),
    ("what the dead peer lent stays readable until it is dropped", death::frozen_window),
    ("loans to the dead wait for the fence, which the third delays", death::the_third_delays_the_fence),
    ("nothing of the old session reaches the successor", death::nothing_left_over),
    ("addresses of an old generation are refused", death::old_generations_are_refused),
];

/// The names of the cases.
pub fn cases() -> impl ExactSizeIterator<Item = &'static str> {
    CASES.iter().map(|(name, _)| *name)
}

/// Plays a role until the appliance is shut down.
///
/// # Errors
/// [`Failure`]; for the judge, of the first case that failed.
pub fn run(domain: &Domain, role: &str) -> Result<(), Failure> {
    match role {
        "judge" => judge(domain),
        "peer" => Servant::new(domain, UPPER_LINK, Some(LOWER_LINK))?.serve(domain),
        "third" => Servant::new(domain, LOWER_LINK, None)?.serve(domain),
        other => Err(Failure::Role(other.to_owned())),
    }
}

fn judge(domain: &Domain) -> Result<(), Failure> {
    let mut judge = Judge::new(domain)?;
    let mut passed = 0;
    let result = CASES.iter().try_for_each(|&(case, play)| {
        judge.begin(case);
        play(&mut judge)?;
        passed += 1;
        report(domain, case, PASSED, passed)
    });
    match &result {
        Ok(()) => report(domain, ALL_CASES, PASSED, passed)?,
        Err(Failure::Interrupted { .. }) => return result,
        Err(failure) => report(domain, judge.case(), &failure.to_string(), passed)?,
    }
    judge.wait_for_shutdown()?;
    result
}

fn report(domain: &Domain, case: &str, verdict: &str, passed: usize) -> Result<(), Failure> {
    let notes = [("case", case.to_owned()), ("verdict", verdict.to_owned()), ("passed", passed.to_string())];
    Ok(domain.ready(&notes)?)
}
