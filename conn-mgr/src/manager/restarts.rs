//! Whether and when a domain that ended is started again.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::manifest::{Restart, RestartPolicy};

/// The longest back-off, unless the manifest's `restart-delay` itself is longer.
const LONGEST_DELAY: Duration = Duration::from_secs(5);

/// How a domain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Exit status 0, not killed.
    pub clean: bool,
    /// By itself, with whatever exit status: not killed.
    pub exited: bool,
    /// It had been ready before.
    pub was_ready: bool,
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Start it again then.
    Restart(Instant),
    /// It is done.
    Ended,
    /// It has failed, and the policy gives it no further start.
    Failed(&'static str),
}

/// One domain's history of restarts.
#[derive(Debug)]
pub struct Restarts {
    policy: RestartPolicy,
    recent: VecDeque<Instant>,
    /// It has been ready once: it can work.
    proven: bool,
}

impl Restarts {
    /// A domain that has not been restarted.
    pub fn new(policy: RestartPolicy) -> Self {
        Self { policy, recent: VecDeque::new(), proven: false }
    }

    /// Judges an end; a restart that it grants is counted.
    pub fn judge(&mut self, end: End, now: Instant) -> Verdict {
        let in_order = end.clean && end.was_ready;
        self.proven |= end.was_ready;
        match self.policy.when {
            Restart::Never | Restart::OnFailure if in_order => return Verdict::Ended,
            Restart::Never => return Verdict::Failed("it ended and is not to be restarted"),
            // A component that gives up at its first start has said why, and would say it again.
            _ if end.exited && !self.proven => return Verdict::Failed("it gave up before it was ever ready"),
            Restart::Always | Restart::OnFailure => {}
        }
        while self.recent.front().is_some_and(|&then| now.saturating_duration_since(then) >= self.policy.window) {
            self.recent.pop_front();
        }
        let count = u32::try_from(self.recent.len()).unwrap_or(u32::MAX);
        if count >= self.policy.limit {
            return Verdict::Failed("it ended more often than its restart limit allows");
        }
        self.recent.push_back(now);
        let delay = self.policy.delay.saturating_mul(2u32.saturating_pow(count));
        Verdict::Restart(now + delay.min(LONGEST_DELAY.max(self.policy.delay)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CRASH: End = End { clean: false, exited: false, was_ready: true };
    const DONE: End = End { clean: true, exited: true, was_ready: true };
    const EARLY: End = End { clean: false, exited: false, was_ready: false };

    fn restarts(when: Restart, limit: u32) -> Restarts {
        let (window, delay) = (Duration::from_secs(60), Duration::from_millis(10));
        Restarts::new(RestartPolicy { when, limit, window, delay })
    }

    #[test]
    fn the_policies() {
        let now = Instant::now();
        for (when, crash, done, early) in [
            (Restart::Always, true, true, true),
            (Restart::OnFailure, true, false, true),
            (Restart::Never, false, false, false),
        ] {
            for (end, restart) in [(CRASH, crash), (DONE, done), (EARLY, early)] {
                let verdict = restarts(when, 1).judge(end, now);
                assert_eq!(matches!(verdict, Verdict::Restart(_)), restart, "{when:?} {end:?}");
                assert_eq!(verdict == Verdict::Ended, !restart && end == DONE, "{when:?} {end:?}");
            }
        }
    }

    #[test]
    fn who_gives_up_at_once_is_not_asked_again() {
        let now = Instant::now();
        let gave_up = End { clean: false, exited: true, was_ready: false };
        let mut restarts = restarts(Restart::Always, 10);
        assert!(matches!(restarts.judge(EARLY, now), Verdict::Restart(_)), "killed: that says nothing of it");
        assert!(matches!(restarts.judge(gave_up, now), Verdict::Failed(_)));
        assert!(matches!(restarts.judge(CRASH, now), Verdict::Restart(_)));
        assert!(matches!(restarts.judge(gave_up, now), Verdict::Restart(_)), "it could work once");
    }

    #[test]
    fn the_limit_counts_within_the_window_and_the_delay_doubles() {
        let now = Instant::now();
        let mut restarts = restarts(Restart::Always, 2);
        assert_eq!(restarts.judge(CRASH, now), Verdict::Restart(now + Duration::from_millis(10)));
        assert_eq!(restarts.judge(CRASH, now), Verdict::Restart(now + Duration::from_millis(20)));
        assert!(matches!(restarts.judge(CRASH, now), Verdict::Failed(_)));
        let later = now + Duration::from_secs(60);
        assert_eq!(restarts.judge(CRASH, later), Verdict::Restart(later + Duration::from_millis(10)));
        assert!(matches!(self::restarts(Restart::Always, 0).judge(CRASH, now), Verdict::Failed(_)));
    }

    #[test]
    fn the_delay_has_a_ceiling() {
        let now = Instant::now();
        let mut restarts = restarts(Restart::Always, 100);
        let last = (0..100).map(|_| restarts.judge(CRASH, now)).last();
        assert_eq!(last, Some(Verdict::Restart(now + LONGEST_DELAY)));
    }
}
