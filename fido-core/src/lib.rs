//! Fido's data path: arenas, windows, global addresses, rings, lanes, links, loans, doorbells and waiting.

pub mod addr;
pub mod arena;
pub mod assignment;
pub mod heap;
pub mod memory;
pub mod payload;
pub mod platform;
pub mod stats;
pub mod testing;
pub mod wait;
pub mod window;
