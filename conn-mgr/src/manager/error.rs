//! What the manager's handle can answer.

use std::io;

use crate::manifest::Fault;

/// Why there is no manager.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// The manifest is not in order.
    #[error("wrong manifest: {0}")]
    Manifest(#[from] Fault),
    /// The appliance cannot be run on this machine's Xen.
    #[error(transparent)]
    Xen(#[from] super::XenError),
    /// The operating system refused a step.
    #[error("cannot {step}: {source}")]
    System {
        /// What was being done.
        step: &'static str,
        /// The reason.
        source: io::Error,
    },
}

/// Why the appliance is not ready.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    /// A domain failed for good.
    #[error("domain `{domain}` has failed: {problem}")]
    Failed {
        /// Which.
        domain: String,
        /// Why.
        problem: String,
    },
    /// Some domains took longer.
    #[error("not ready in time: {}", missing.join(", "))]
    Timeout {
        /// Those that were not ready, with the reason if there is one.
        missing: Vec<String>,
    },
    /// The manager has been shut down.
    #[error("the manager has stopped")]
    Stopped,
}

/// Why a domain was not killed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KillError {
    /// There is none of that name.
    #[error("there is no domain `{0}`")]
    Unknown(String),
    /// It has no process now.
    #[error("domain `{0}` is not running")]
    NotRunning(String),
    /// The manager has been shut down.
    #[error("the manager has stopped")]
    Stopped,
}

/// What went wrong with a shutdown. The appliance is down all the same.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShutdownError {
    /// Some domains did not end by themselves.
    #[error("had to kill: {}", domains.join(", "))]
    Forced {
        /// Which.
        domains: Vec<String>,
    },
    /// Some domains could not be ended at all.
    #[error("could not end, and leaves behind: {}", domains.join(", "))]
    Left {
        /// Which.
        domains: Vec<String>,
    },
    /// The manager itself failed before.
    #[error("the manager failed: {reason}")]
    Broken {
        /// Why.
        reason: String,
    },
}
