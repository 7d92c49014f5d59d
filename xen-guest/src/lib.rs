//! What runs inside Xen domains, linked statically so that an image needs no libraries.
//!
//! * `fido-init`: the first process of a guest image: it mounts, loads modules, runs the component, says how it ended.
//! * `testbed-dom0`: the first process of the testbed's dom0: it runs the scenarios and reports.
//! * `testbed-guest`: the programs that the scenarios run in guests.
//! * [`grants`]: the hypervisor's own account of who shares what.
//! * [`costs`]: what the platform's primitives take.
//! * [`memory`]: the guests' part in the scenarios `memory` and `costs`.
//! * [`chain`]: the guests' part in the scenario `destroy`.
//! * [`handshake`]: the guests' part in the scenario `handshake`.
//! * [`disks`]: waiting for a guest's disks.
//! * [`network`]: addresses of network interfaces.
//! * [`pace`]: the guests' part in the scenario `ring`.
//! * [`report`]: how results come out of the emulated machine; the other end is in `xen-tools`.
//! * [`steady`]: what `ping` does while dom0 counts.
//! * [`trace`]: the hypervisor's own account of what it was called for.

pub mod boot;
pub mod chain;
pub mod costs;
pub mod disks;
pub mod grants;
pub mod handshake;
pub mod memory;
pub mod network;
pub mod pace;
pub mod report;
pub mod steady;
pub mod trace;
