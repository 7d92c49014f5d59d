//! Byte streams by address.
//!
//! [`TcpPort`] has the outside's sockets. A domain that owns them for another gives them on with a [`Gateway`], and
//! the other has them as a [`LinkPort`]: a [`StreamPort`] like the sockets themselves.

pub mod codec;
mod gateway;
pub(crate) mod lease;
mod link;
mod port;
mod rescue;
pub(crate) mod slab;
mod tcp;
#[cfg(test)]
pub(crate) mod testkit;
#[cfg(test)]
mod tests;

pub use gateway::Gateway;
pub use link::LinkPort;
pub use port::{MAX_QUEUED_BYTES, SendError, StreamEvent, StreamId, StreamPort};
pub use slab::MAX_CONNECTIONS;
pub use tcp::{BindError, Limits, TcpPort, raise_file_limit};

/// After how many sent bytes a gateway tells the inside so.
const ACKNOWLEDGE_BYTES: u64 = MAX_QUEUED_BYTES / 4;
