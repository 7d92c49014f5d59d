//! The case study: a NAS of net, fs and disk domains, its monolithic twin and its workloads.

pub mod nfs;
pub mod volume;
pub mod workload;
