//! Feature `libxen`: event channels through the crate `xenevtchn` (which loads Xen's C library) and the store through the
//! crate `xenstore-rs`, for those who must not go past them. Both are GPL-3, and so is what is built with them.
//!
//! Neither crate has all that the platform needs, so both variants have the kernel's devices in common:
//!
//! | | with the crate | without |
//! |---|---|---|
//! | event channels | bind a peer's port, ring it, hear and unmask it, close it | make a port for a peer to bind, and ring and hear that |
//! | xenstore | read, write, list and remove outside of transactions | watches, transactions, permissions, values that are not text, directories beyond one packet |
//!
//! What the crates do worse: a request to the store has no limit in time, and a port that is refused costs a descriptor.

pub(super) mod events;
pub(super) mod plain;
