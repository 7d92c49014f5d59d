//! Workloads on the NAS: real NFS calls over real TCP connections.

pub mod client;
pub mod iozone;
pub mod rpc;
