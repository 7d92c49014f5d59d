//! Byte streams by address.

mod port;
mod slab;
mod tcp;
#[cfg(test)]
mod testkit;

pub use port::{MAX_QUEUED_BYTES, SendError, StreamEvent, StreamId, StreamPort};
pub use slab::MAX_CONNECTIONS;
pub use tcp::{BindError, Limits, TcpPort, raise_file_limit};
