//! Whether to move to another processor, away from a peer that sits on the same one: learned from what moves brought.
//!
//! Two threads that a wake-up has brought to one processor stay there: they hand it over to each other by offering it,
//! each of them never waits long, and the kernel sees nothing to mend although another processor idles. A hand-over
//! there takes ten times as long as between two processors, a move as long as ten of them. So a move pays if the two
//! then stay apart for long enough, and if there was a processor for both, which nobody says. Hence each move has an
//! account: what it cost, against what the waits after it were shorter than hand-overs were before. When the two meet
//! again, the account is settled: a move that has paid is repeated at once, and after one that has not there is none
//! for [`RATE`] times as long as it cost. So moves that bring nothing take at most 1 % of the time.

use super::{TRIAL, TRIAL_RATE as RATE, mean};

/// Hand-overs in a row before a move, unless the last one has paid.
const PATIENCE: u32 = TRIAL + 1;

/// What one thread knows of moves.
#[derive(Debug, Clone, Default)]
pub(super) struct Parting {
    /// So many waits in a row ended by a hand-over of this processor.
    met: u32,
    /// The last move has paid.
    proven: bool,
    /// The mean length of such waits.
    hand_over: Option<u64>,
    /// What the last move has brought so far less its cost, until that is settled; and its cost.
    account: Option<(i64, u64)>,
    /// No move before.
    next: u64,
}

impl Parting {
    /// Whether to move, in a wait at whose beginning a peer that is awake says that it is on this processor.
    pub(super) fn is_due(&mut self, now: u64) -> bool {
        // A peer that tries to spin is to see what that brings here before anything changes.
        if self.met < if self.proven { 1 } else { PATIENCE } {
            return false;
        }
        if let Some((balance, cost)) = self.account.take() {
            self.proven = balance >= 0;
            if !self.proven {
                self.rest(cost, now);
            }
        }
        self.may_move(now)
    }

    /// Whether a move is allowed.
    pub(super) fn may_move(&self, now: u64) -> bool {
        now >= self.next
    }

    /// A move has taken so long, at `now`; or it turned out that there is nowhere to go.
    pub(super) fn moved(&mut self, now: u64, took: u64, went: bool) {
        self.met = 0;
        if went {
            self.account = Some((-(took as i64), took));
        } else {
            self.rest(took, now);
        }
    }

    /// A wait is over: what came was brought by whom this processor was offered to.
    pub(super) fn handed_over(&mut self, length: u64) {
        self.met = self.met.saturating_add(1);
        self.hand_over = Some(mean(self.hand_over, length));
    }

    /// A wait is over in which nobody had this processor, or it came back too late.
    pub(super) fn apart(&mut self, length: u64) {
        self.met = 0;
        if let Some((balance, _)) = &mut self.account {
            let gain = self.hand_over.unwrap_or(0) as i64 - length.min(i64::MAX as u64) as i64;
            *balance = balance.saturating_add(gain);
        }
    }

    fn rest(&mut self, cost: u64, now: u64) {
        self.next = now.saturating_add(RATE.saturating_mul(cost));
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
