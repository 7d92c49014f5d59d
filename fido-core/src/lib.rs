//! Fido's data path: arenas, windows, global addresses, rings, lanes, links, loans, doorbells and waiting.

#![cfg_attr(loom, allow(dead_code, reason = "only the models use the protocols under loom"))]

pub mod ring;
mod sync;

// Under loom only the protocols that it checks are built: its atomics do not fit into shared memory.
#[cfg(not(loom))]
pub mod addr;
#[cfg(not(loom))]
pub mod arena;
#[cfg(not(loom))]
pub mod assignment;
#[cfg(not(loom))]
pub mod bell;
#[cfg(not(loom))]
pub mod conformance;
#[cfg(not(loom))]
pub mod domain;
#[cfg(not(loom))]
pub mod fuzzing;
#[cfg(not(loom))]
pub mod heap;
#[cfg(not(loom))]
pub mod heritage;
#[cfg(not(loom))]
pub mod lane;
#[cfg(not(loom))]
pub mod memory;
#[cfg(not(loom))]
pub mod message;
#[cfg(not(loom))]
pub mod payload;
#[cfg(not(loom))]
pub mod platform;
#[cfg(not(loom))]
mod spin;
#[cfg(not(loom))]
pub mod stats;
#[cfg(not(loom))]
pub mod testing;
#[cfg(not(loom))]
pub mod wait;
#[cfg(not(loom))]
pub mod waiter;
#[cfg(not(loom))]
pub mod window;
