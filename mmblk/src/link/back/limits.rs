//! What one front end may take of a back end, so that it cannot take it from the others.

use fido_core::memory::Memory;

use crate::queue::{MAX_DEPTH, MAX_REQUEST_BYTES};

/// Limits of one front end, over all its lanes together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The most requests that the device has at one time; more wait. 1 to [`MAX_REQUESTS`].
    pub requests: u32,
    /// The most bytes of the back end's heap that its reads hold: from the start of a read until its data is returned,
    /// each rounded up to the power of two that the heap rounds up to. At least [`MAX_REQUEST_BYTES`]. A read beyond it
    /// waits for [`super::LOAN_PATIENCE`], then it fails with [`crate::queue::BlockError::NoBuffer`].
    pub lent_bytes: u64,
    /// The most requests that are taken from one lane before the next lane has its turn. 1 to [`MAX_TURN`].
    pub turn: u32,
}

/// The most that [`Limits::requests`] may be: that of 64 lanes with the deepest queues.
pub const MAX_REQUESTS: u32 = 64 * MAX_DEPTH;
/// The most that [`Limits::turn`] may be.
pub const MAX_TURN: u32 = MAX_DEPTH;

/// Limits that make no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LimitsError {
    /// Of requests in flight.
    #[error("{found} requests in flight for a front end; it must be 1 to {MAX_REQUESTS}")]
    Requests {
        /// The number in question.
        found: u32,
    },
    /// Of bytes on loan.
    #[error("{found} bytes on loan for a front end; it must be at least the {MAX_REQUEST_BYTES} of one request")]
    LentBytes {
        /// The number in question.
        found: u64,
    },
    /// Of requests in one turn.
    #[error("{found} requests in one turn; it must be 1 to {MAX_TURN}")]
    Turn {
        /// The number in question.
        found: u32,
    },
    /// The heap is too small for so many front ends.
    #[error(
        "a heap of {heap} bytes is too small for {front_ends} front ends: each needs {MAX_REQUEST_BYTES} bytes for the data of one request; raise the domain's `arena`"
    )]
    Heap {
        /// Its size.
        heap: u64,
        /// How many have to share it.
        front_ends: usize,
    },
}

impl Limits {
    /// No limits but the queues' depths: for a front end that is the only one. A turn has a bound all the same, and answers
    /// go out after each: were it as long as the queue is deep, either side would wait for all that the other does.
    pub const NONE: Self = Self { requests: MAX_REQUESTS, lent_bytes: u64::MAX, turn: 16 };

    /// What is fair among so many front ends of a back end that lends from `memory`: each gets an equal part of the
    /// heap, and one part is nobody's, since pieces of several sizes never fill a heap.
    ///
    /// # Errors
    /// [`LimitsError::Heap`] if a part is too small for the data of one request.
    pub fn fair(memory: &Memory, front_ends: usize) -> Result<Self, LimitsError> {
        let heap = memory.heap().capacity();
        let lent_bytes = heap / (front_ends as u64).saturating_add(1);
        if lent_bytes < MAX_REQUEST_BYTES.into() {
            return Err(LimitsError::Heap { heap, front_ends });
        }
        Ok(Self { requests: 1024, lent_bytes, ..Self::NONE })
    }

    /// The limits themselves, if they make sense.
    ///
    /// # Errors
    /// [`LimitsError`] that names the value.
    pub fn checked(self) -> Result<Self, LimitsError> {
        let Self { requests, lent_bytes, turn } = self;
        if !(1..=MAX_REQUESTS).contains(&requests) {
            return Err(LimitsError::Requests { found: requests });
        }
        if lent_bytes < MAX_REQUEST_BYTES.into() {
            return Err(LimitsError::LentBytes { found: lent_bytes });
        }
        if !(1..=MAX_TURN).contains(&turn) {
            return Err(LimitsError::Turn { found: turn });
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fido_core::testing::private_memory;

    #[test]
    fn at_the_limits_and_one_past_them() {
        let least = Limits { requests: 1, lent_bytes: MAX_REQUEST_BYTES.into(), turn: 1 };
        assert_eq!(least.checked(), Ok(least));
        assert_eq!(Limits::NONE.checked(), Ok(Limits::NONE));
        let most = Limits { requests: MAX_REQUESTS, lent_bytes: u64::MAX, turn: MAX_TURN };
        assert_eq!(most.checked(), Ok(most));
        for found in [0, MAX_REQUESTS + 1] {
            assert_eq!(Limits { requests: found, ..least }.checked(), Err(LimitsError::Requests { found }));
        }
        for found in [0, MAX_TURN + 1] {
            assert_eq!(Limits { turn: found, ..least }.checked(), Err(LimitsError::Turn { found }));
        }
        let found = u64::from(MAX_REQUEST_BYTES) - 1;
        assert_eq!(Limits { lent_bytes: found, ..least }.checked(), Err(LimitsError::LentBytes { found }));
    }

    #[test]
    fn a_fair_part_is_enough_for_one_request() {
        let memory = private_memory(17 << 20);
        let heap = memory.heap().capacity();
        let fair = Limits::fair(&memory, 3).unwrap();
        assert_eq!((fair.lent_bytes, fair.checked()), (heap / 4, Ok(fair)));
        assert_eq!(Limits::fair(&memory, 4), Err(LimitsError::Heap { heap, front_ends: 4 }));
    }
}
