//! The platform of Xen guests. `docs/xen.md` describes how domains and the manager meet in xenstore.

pub mod arena;
pub mod channel;
mod client;
pub mod costs;
pub mod devices;
pub mod directory;
pub mod error;
pub mod follower;
pub mod keeper;
pub mod layout;
#[cfg(feature = "libxen")]
mod libxen;
mod nodes;
pub mod store;
mod sys;
pub mod window;

pub use client::XenPlatform;

/// By way of what this build reaches event channels and xenstore.
pub const LAYER: &str = if cfg!(feature = "libxen") { "xenevtchn and xenstore-rs" } else { "the kernel's devices" };
