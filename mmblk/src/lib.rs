//! MMBlk: a block device between domains, by address.

pub mod queue;
