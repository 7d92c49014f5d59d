//! Whether a Xen guest, or dom0, has what Fido needs, and what to do where it has not.
//!
//! [`machine`] is what is looked at, with a real one and, in tests, folders; `checks` is what is looked for.

mod checks;
pub mod machine;

use std::fmt;

use conn_mgr::xen::limits::GrantLimits;
use machine::Machine;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// As it should be.
    Good,
    /// Works, but costs something or limits something.
    Note,
    /// Fido will not work.
    Bad,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub verdict: Verdict,
    /// What was found.
    pub what: String,
    /// What to do about it; empty if nothing.
    pub fix: String,
}

impl Finding {
    fn good(what: impl Into<String>) -> Self {
        Self { verdict: Verdict::Good, what: what.into(), fix: String::new() }
    }

    fn note(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { verdict: Verdict::Note, what: what.into(), fix: fix.into() }
    }

    fn bad(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { verdict: Verdict::Bad, what: what.into(), fix: fix.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.verdict {
            Verdict::Good => "ok",
            Verdict::Note => "note",
            Verdict::Bad => "BAD",
        };
        write!(f, "{word:5}{}", self.what)?;
        if !self.fix.is_empty() {
            write!(f, "\n     fix: {}", self.fix)?;
        }
        Ok(())
    }
}

/// What is asked of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wants {
    /// Bytes of the arena that a component here will have.
    pub arena: u64,
    /// What the guests of the manifest need of Xen.
    pub limits: GrantLimits,
}

/// What the doctor says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Diagnosis {
    /// There is no Xen below this system; why that is known.
    NotXen(String),
    /// All that was looked at, in order.
    Findings(Vec<Finding>),
}

/// Looks at everything.
#[must_use]
pub fn examine(machine: &dyn Machine, wants: &Wants) -> Diagnosis {
    let kind = machine.read("/sys/hypervisor/type").unwrap_or_default();
    if kind.trim() != "xen" {
        let seen = if kind.is_empty() { "does not exist".to_owned() } else { format!("says `{}`", kind.trim()) };
        return Diagnosis::NotXen(format!("not a Xen guest: /sys/hypervisor/type {seen}"));
    }
    Diagnosis::Findings(checks::all(machine, wants))
}

#[cfg(test)]
mod tests;
