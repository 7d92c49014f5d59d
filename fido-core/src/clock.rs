//! Time as waiting needs it: cheap, and the same for all domains of one kernel.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds of the monotonic clock.
pub(crate) fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// A tick of the stamps in shared memory, as a shift: 256 ns. 32 bits of them last 18 minutes.
const TICK: u32 = 8;

/// A moment as a stamp for shared memory; never 0, which means "never".
pub(crate) fn stamp(now: u64) -> u32 {
    ((now >> TICK) as u32).max(1)
}

/// How many nanoseconds before `now` a peer says that something happened, if that is at most `limit` ago. A domain of
/// another kernel has another clock, and a broken one writes anything: then this is `None`, or wrong but within the
/// limit.
pub(crate) fn age(stamp: u32, now: u64, limit: u64) -> Option<u64> {
    let age = u64::from(((now >> TICK) as u32).wrapping_sub(stamp)) << TICK;
    (stamp != 0 && age <= limit).then_some(age)
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn ages_hold_over_the_wrap_and_wild_stamps_have_none() {
        for now in [1_000_000, 1 << 40, (1 << 40) + 300, (1 << 40) - 1] {
            let age = age(stamp(now), now + 100_000, 200_000).unwrap();
            assert!((99_000..101_000).contains(&age), "{age} at {now}");
        }
        assert_eq!(age(0, 1 << 30, u64::MAX), None, "never");
        assert_eq!(age(stamp(1 << 30), (1 << 30) + 100_000, 50_000), None, "too long ago");
        assert_eq!(age(stamp(1 << 30), 1 << 29, 50_000), None, "in the future");
    }
}
