//! What every queue keeps between the end of a request and the poll that reports it.

use std::collections::VecDeque;

use fido_core::payload::Payload;
use fido_core::stats::Stats;

use crate::queue::{BlockCompletion, BlockError};

/// Completions that wait for the next poll.
#[derive(Debug, Default)]
pub(crate) struct Finished(VecDeque<BlockCompletion>);

impl Finished {
    pub(crate) fn push(&mut self, id: u64, result: Result<Payload, BlockError>) {
        self.0.push_back(BlockCompletion { id, result });
    }

    /// As `push`, and counts what was moved, once, here at the device.
    pub(crate) fn push_counted(&mut self, id: u64, result: Result<Payload, BlockError>, moved: u64, stats: &Stats) {
        if result.is_ok() {
            stats.payload_bytes.add(moved);
        }
        self.push(id, result);
    }

    pub(crate) fn pop(&mut self) -> Option<BlockCompletion> {
        self.0.pop_front()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
