//! The net domain: owns the outside's TCP sockets and hands their connections to the fs domain as streams over link
//! `nfs`.

use std::error::Error;
use std::net::SocketAddr;

use fido_core::addr::DomainId;
use fido_core::domain::Domain;
use fido_core::wait::Source;
use mmnet::stream::{Gateway, Limits, TcpPort, raise_file_limit};

use super::event_loop::{self, Component};

/// Listens, passes connections on, and says where.
pub fn run(domain: &Domain) -> Result<(), Box<dyn Error>> {
    let port = listen(domain)?;
    let address = port.local_addr();
    let gateway = Gateway::new(port, domain.take_lane("nfs", 0)?);
    domain.ready(&[("listen", address.to_string())])?;
    event_loop::run(domain, Net { gateway })
}

/// The listening socket that the manifest names.
pub fn listen(domain: &Domain) -> Result<TcpPort, Box<dyn Error>> {
    let listen: SocketAddr = domain.required_param("listen")?;
    let limits = Limits::default();
    // A descriptor each, and some for everything else. Where the system allows fewer, further clients wait.
    raise_file_limit(limits.connections as u64 + 64);
    Ok(TcpPort::bind(domain.memory(), listen, limits)?)
}

struct Net {
    gateway: Gateway<TcpPort>,
}

impl Component for Net {
    fn poll(&mut self) -> bool {
        self.gateway.turn()
    }

    /// A turn hands on by itself.
    fn flush(&mut self) {}

    fn sources(&mut self) -> Vec<&mut dyn Source> {
        self.gateway.sources().into()
    }

    /// Bytes of a dead domain that wait for a slow client must not hold up its fence.
    fn died(&mut self, dead: DomainId) {
        self.gateway.rescue(dead);
    }
}
