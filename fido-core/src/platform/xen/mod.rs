//! The platform of Xen guests. `docs/xen.md` describes how domains and the manager meet in xenstore.

pub mod follower;
pub mod layout;
pub mod store;
