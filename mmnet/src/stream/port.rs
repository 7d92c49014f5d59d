//! The face of every byte-stream transport here: a port through which many connections come and go.
//!
//! A [`StreamPort`] is the outside's TCP sockets themselves, or a lane to the domain that owns them; whoever uses it
//! cannot tell. One port belongs to one thread.
//!
//! Backpressure, inwards: received bytes are on loan, and a port stops reading from a connection whose loans exceed
//! its limit until payloads are dropped. Outwards: a connection takes at most [`MAX_QUEUED_BYTES`] that have not been
//! sent; `send` refuses more, and [`StreamEvent::Writable`] says when there is room again.

use std::net::SocketAddr;

use fido_core::addr::DomainId;
use fido_core::payload::Payload;
use fido_core::wait::Source;

/// The most bytes queued for sending on one connection; a single send may exceed it on an empty queue.
pub const MAX_QUEUED_BYTES: u64 = 8 << 20;

/// Names a connection of a port. Not used again while anything of the old one is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u32);

/// What happens on a port.
#[derive(Debug)]
pub enum StreamEvent {
    /// A connection was accepted.
    Opened {
        /// Its name from now on.
        id: StreamId,
        /// The other end.
        remote: SocketAddr,
    },
    /// Bytes have arrived. They stay where they are until the payload is dropped.
    Data {
        /// The connection.
        id: StreamId,
        /// The bytes, never empty.
        data: Payload,
    },
    /// The other end sends no more (half-close). Sending is still possible.
    Finished {
        /// The connection.
        id: StreamId,
    },
    /// There is room again after a `send` was refused.
    Writable {
        /// The connection.
        id: StreamId,
    },
    /// The connection is gone: reset, failed, or closed on both sides. The last event of this name.
    Closed {
        /// The connection.
        id: StreamId,
    },
}

/// Why a payload was not taken.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// Too much is queued; [`StreamEvent::Writable`] follows. The payload comes back.
    #[error("the connection's send queue is full")]
    Full(Payload),
    /// There is no such connection (any more). A [`StreamEvent::Closed`] has been or will be delivered.
    #[error("no such connection")]
    Closed,
}

/// Many byte-stream connections, by address.
pub trait StreamPort: Source {
    /// Moves things along and returns the next event, if there is one. Never blocks.
    fn poll(&mut self) -> Option<StreamEvent>;

    /// Queues a payload for sending, wherever in the appliance its bytes lie. The port keeps it until it is sent.
    ///
    /// # Errors
    /// [`SendError`] if the queue is full or the connection gone.
    fn send(&mut self, id: StreamId, data: Payload) -> Result<(), SendError>;

    /// Sends no more after what is queued (half-close). Unknown names are ignored.
    fn finish(&mut self, id: StreamId);

    /// Drops the connection at once, and what is queued. Unknown names are ignored; `Closed` still follows.
    fn reset(&mut self, id: StreamId);

    /// Hands queued sends on. Call it after a batch and before waiting.
    fn flush(&mut self);

    /// `dead` is gone and its fence is to be passed: copies what is queued here and lies in its arena into own
    /// buffers, so that clients notice nothing; where there is no room for that, the connection is reset. A port whose
    /// queued bytes another domain keeps has nothing to do.
    fn rescue(&mut self, dead: DomainId) {
        let _ = dead;
    }
}
