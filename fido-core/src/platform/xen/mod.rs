//! The platform of Xen guests. `docs/xen.md` describes how domains and the manager meet in xenstore.

pub mod arena;
pub mod channel;
mod client;
pub mod costs;
pub mod devices;
pub mod directory;
pub mod error;
pub mod follower;
pub mod layout;
mod nodes;
pub mod store;
mod sys;
pub mod window;

pub use client::XenPlatform;
