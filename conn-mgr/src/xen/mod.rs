//! Appliances on Xen: what follows from a manifest for the guests and for the hypervisor.
//!
//! * [`limits`]: how many grants a guest needs, and what Xen must be told for that.
//! * [`config`]: the guests' xl configurations.

pub mod config;
pub mod limits;
