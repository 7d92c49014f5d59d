//! The platform of plain Linux processes: arenas are sealed memfds, bells are eventfds, and the connection manager
//! hands both around over its Unix socket.

mod client;
pub mod memory;
pub mod protocol;

pub use client::HostPlatform;
