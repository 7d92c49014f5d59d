//! Storm limits: how many frames a port may send to everybody, as a bucket of tokens that fills with time.

/// Nanoseconds of a second.
const SECOND: u64 = 1_000_000_000;

/// Leave for so many frames a second, and for a tenth of that at once.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    /// Nanoseconds that a frame costs.
    cost: u64,
    /// Nanoseconds in the bucket at most, and now.
    depth: u64,
    level: u64,
    /// When it was looked at last, in nanoseconds.
    filled: u64,
}

impl Bucket {
    /// Full. `per_second` is at least 1.
    pub(super) fn new(per_second: u32) -> Self {
        let cost = SECOND / u64::from(per_second.max(1));
        let depth = (SECOND / 10).max(cost);
        Self { cost, depth, level: depth, filled: 0 }
    }

    /// Whether one more frame may pass at `now`, in nanoseconds of a clock that does not go back.
    pub(super) fn take(&mut self, now: u64) -> bool {
        self.level = self.level.saturating_add(now.saturating_sub(self.filled)).min(self.depth);
        self.filled = self.filled.max(now);
        let left = self.level.checked_sub(self.cost);
        self.level = left.unwrap_or(self.level);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_of_a_second_at_once_and_then_the_rate() {
        let mut bucket = Bucket::new(1000);
        assert_eq!((0..1000).filter(|_| bucket.take(0)).count(), 100);
        let passed = (1..=1_000_000).filter(|micros| bucket.take(micros * 1000)).count();
        assert_eq!(passed, 1000);
        let mut slow = Bucket::new(1);
        assert!(slow.take(0) && !slow.take(SECOND - 1) && slow.take(SECOND) && !slow.take(0));
    }
}
