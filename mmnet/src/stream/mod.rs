//! Byte streams by address.

mod port;

pub use port::{MAX_QUEUED_BYTES, SendError, StreamEvent, StreamId, StreamPort};
