//! Byte streams by address.
//!
//! [`TcpPort`] has the outside's sockets. A domain that owns them for another gives them on with a [`Gateway`], and
//! the other has them as a [`LinkPort`]: a [`StreamPort`] like the sockets themselves. A domain that wants connections
//! of its own to another opens them with a [`DialPort`], without sockets and TCP.

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};

use fido_core::addr::DomainId;

pub mod codec;
mod dial;
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

pub use dial::{DialError, DialPort};
pub use gateway::Gateway;
pub use link::LinkPort;
pub use port::{MAX_QUEUED_BYTES, SendError, StreamEvent, StreamId, StreamPort};
pub use slab::MAX_CONNECTIONS;
pub use tcp::{BindError, Limits, TcpPort, raise_file_limit};

/// After how many sent bytes a gateway tells the inside so.
const ACKNOWLEDGE_BYTES: u64 = MAX_QUEUED_BYTES / 4;

/// What stands for a domain where an address is asked for: a unique local one, `fd00:f1d0::GENERATION:SLOT`, port 0.
fn domain_address(domain: Option<DomainId>) -> SocketAddr {
    let (generation, slot) = domain.map_or((0, 0), |id| (id.generation.number(), id.slot.number()));
    SocketAddrV6::new(Ipv6Addr::new(0xfd00, 0xf1d0, 0, 0, 0, 0, generation, slot), 0, 0, 0).into()
}
