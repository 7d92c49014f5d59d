//! Fido's data path: arenas, windows, global addresses, rings, lanes, links, loans, doorbells and waiting.

#![cfg_attr(loom, allow(dead_code, reason = "only the models use the protocols under loom"))]

pub mod addr;
pub mod arena;
pub mod assignment;
pub mod bell;
mod clock;
pub mod heap;
pub mod heritage;
pub mod memory;
pub mod payload;
pub mod platform;
mod poll_set;
pub mod presence;
pub mod ring;
pub mod spin;
pub mod stats;
mod sync;
pub mod wait;
pub mod waiter;
pub mod window;

#[cfg(not(loom))]
pub mod conformance;
#[cfg(not(loom))]
pub mod domain;
#[cfg(not(loom))]
pub mod fuzzing;
#[cfg(not(loom))]
pub mod lane;
#[cfg(not(loom))]
pub mod message;
#[cfg(not(loom))]
pub mod testing;
#[cfg(not(loom))]
pub mod topology;

// Loom's atomics do not fit into shared memory, so there are no lanes under loom: only what the models check.
#[cfg(loom)]
mod lane {
    mod loan;
    mod mailbox;
    pub use loan::PassFence;
}
#[cfg(loom)]
mod domain {
    mod fences;
}
