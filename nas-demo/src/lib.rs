//! The case study: a NAS of net, fs and disk domains, its monolithic twin and its workloads.
//!
//! * [`components`]: the domains' programs, one file each.
//! * [`nfs`] and [`volume`]: what the fs domain consists of.
//! * [`appliance`]: the manifest of each mode; [`demo`] and [`serve`] start it.
//! * [`workload`]: what the demo measures, with [`probe`] for its costs and [`report`] for its table.

pub mod appliance;
pub mod cli;
pub mod components;
pub mod demo;
pub mod interrupt;
pub mod nfs;
pub mod probe;
pub mod report;
pub mod say;
pub mod serve;
pub mod volume;
pub mod workload;
