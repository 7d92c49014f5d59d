//! How long nobody has had a receive buffer, and who is to blame.
//!
//! A famine begins when a connection finds none and ends when any connection gets one. That leases end is not enough:
//! those of a connection that keeps its buffer end again and again and give nobody anything.

use std::time::{Duration, Instant};

/// The famine that lasts, or how many there were.
#[derive(Debug, Default)]
pub(super) struct Famine {
    since: Option<Instant>,
    count: u64,
}

impl Famine {
    /// A connection has found no buffer. Whether that has been so for `patience`.
    pub(super) fn is_due(&mut self, patience: Duration) -> bool {
        match self.since {
            Some(since) => since.elapsed() >= patience,
            None => {
                self.since = Some(Instant::now());
                self.count += 1;
                false
            }
        }
    }

    /// A connection has got a buffer, or one that held some has been reset.
    pub(super) fn end(&mut self) {
        self.since = None;
    }

    /// Which famine this is; while there is none, which the last one was.
    pub(super) fn count(&self) -> u64 {
        self.count
    }
}

/// How much a connection is to blame for a famine, the greatest last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Blame {
    /// It has received nothing since the famine began: whoever moves, however slowly, comes after those.
    pub(super) still: bool,
    /// And there is nothing to receive: whoever waits for a buffer itself, or for its reader, comes after those.
    pub(super) silent: bool,
    /// What it has on loan.
    pub(super) on_loan: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_begins_the_patience_anew() {
        let mut famine = Famine::default();
        assert!(!famine.is_due(Duration::ZERO), "it begins");
        assert!(famine.is_due(Duration::ZERO));
        assert!(!famine.is_due(Duration::MAX));
        famine.end();
        assert!(!famine.is_due(Duration::ZERO));
        assert_eq!(famine.count(), 2);
    }

    #[test]
    fn the_silent_go_first_and_the_moving_last() {
        let blame = |still, silent, on_loan| Blame { still, silent, on_loan };
        assert!(blame(true, true, 2) > blame(true, true, 1));
        assert!(blame(true, true, 1) > blame(true, false, 9));
        assert!(blame(true, false, 1) > blame(false, false, 9));
    }
}
