//! What a stack is told, and why there is none.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use smoltcp::socket::tcp::ConnectError;

use crate::stream::MAX_CONNECTIONS;

/// The most addresses of one stack.
pub const MAX_ADDRESSES: usize = 8;
/// The most sockets that wait for handshakes to one port.
pub const MAX_BACKLOG: usize = 1024;

/// How a stack appears on its network, and what it may use.
#[derive(Debug, Clone)]
pub struct StackConfig {
    /// Its hardware address: not that of a group, and of nobody else on the network.
    pub hardware: [u8; 6],
    /// Its addresses, each with the length of its network's prefix; 1 to [`MAX_ADDRESSES`].
    pub addresses: Vec<(IpAddr, u8)>,
    /// Through whom other networks are reached.
    pub gateway_v4: Option<Ipv4Addr>,
    /// The same for IPv6.
    pub gateway_v6: Option<Ipv6Addr>,
    /// Bytes of each socket's buffer, in each direction: 2 KiB to 16 MiB. The receive window.
    pub buffer_bytes: usize,
    /// Bytes of one connection on loan before no more is taken out of its socket.
    pub receive_bytes: u64,
    /// Connections at a time, 1 to 65536.
    pub connections: usize,
    /// Handshakes at a time for each port that is listened to, 1 to [`MAX_BACKLOG`].
    pub backlog: usize,
}

impl Default for StackConfig {
    /// No address yet.
    fn default() -> Self {
        Self {
            hardware: [2, 0, 0, 0, 0, 1],
            addresses: Vec::new(),
            gateway_v4: None,
            gateway_v6: None,
            buffer_bytes: 256 << 10,
            receive_bytes: 4 << 20,
            connections: 1024,
            backlog: 16,
        }
    }
}

/// Why there is no stack, listener or connection.
#[derive(Debug, thiserror::Error)]
pub enum StackError {
    /// A limit is out of range.
    #[error("{what} is {value}; it must be {range}")]
    Limit {
        /// Which one.
        what: &'static str,
        /// Its value.
        value: u64,
        /// What it may be.
        range: &'static str,
    },
    /// No address that a stack can have.
    #[error("address {address}/{prefix}: it must be one host's, with a prefix no longer than it is")]
    Address {
        /// The address.
        address: IpAddr,
        /// The prefix's length.
        prefix: u8,
    },
    /// The hardware address is that of a group or of nobody.
    #[error("hardware address {0:02x?}; it must be one host's")]
    Hardware([u8; 6]),
    /// Port 0, or one that is listened to already.
    #[error("port {0} cannot be listened to: it is 0 or listened to already")]
    Port(u16),
    /// As many connections as there may be.
    #[error("there are {0} connections already, as many as there may be")]
    Connections(usize),
    /// All ports for connections from here are in use.
    #[error("all ports for connections from here are in use")]
    NoLocalPort,
    /// There is no way there.
    #[error("no connection to {to}: {error}")]
    Connect {
        /// Where to.
        to: SocketAddr,
        /// Why not.
        error: ConnectError,
    },
    /// The system has no descriptor left.
    #[error(transparent)]
    System(#[from] rustix::io::Errno),
}

impl StackConfig {
    pub(super) fn check(&self) -> Result<(), StackError> {
        let limits = [
            ("the number of addresses", self.addresses.len(), 1..=MAX_ADDRESSES, "1 to 8"),
            ("buffer_bytes", self.buffer_bytes, 2 << 10..=16 << 20, "2 KiB to 16 MiB"),
            ("connections", self.connections, 1..=MAX_CONNECTIONS, "1 to 65536"),
            ("backlog", self.backlog, 1..=MAX_BACKLOG, "1 to 1024"),
        ];
        for (what, value, allowed, range) in limits {
            if !allowed.contains(&value) {
                return Err(StackError::Limit { what, value: value as u64, range });
            }
        }
        if self.receive_bytes == 0 {
            return Err(StackError::Limit { what: "receive_bytes", value: 0, range: "at least 1" });
        }
        if self.hardware[0] & 1 != 0 || self.hardware == [0; 6] {
            return Err(StackError::Hardware(self.hardware));
        }
        for (address, prefix) in &self.addresses {
            let bits = if address.is_ipv4() { 32 } else { 128 };
            let is_host = !address.is_multicast() && !address.is_unspecified() && *address != Ipv4Addr::BROADCAST;
            if *prefix > bits || !is_host {
                return Err(StackError::Address { address: *address, prefix: *prefix });
            }
        }
        Ok(())
    }
}
