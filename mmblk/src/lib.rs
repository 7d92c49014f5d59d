//! MMBlk: a block device between domains, by address.
//!
//! Everything meets at one trait, [`queue::BlockQueue`]: a back end implements it over a file or memory ([`backend`]), and
//! [`link`] puts a lane between a queue and its user. [`layer`]s go around any queue, [`export`] serves queues to the world,
//! [`device`] opens what a text describes, and [`component`] is what the program `mmblk-disk` is made of. [`blocking`] is a
//! simple face on any queue for callers that do one thing at a time.

pub mod backend;
pub mod blocking;
pub mod component;
pub mod device;
pub mod export;
pub mod extents;
mod finished;
pub mod layer;
pub mod link;
pub mod nbd;
pub mod queue;
pub mod signals;
mod slab;
