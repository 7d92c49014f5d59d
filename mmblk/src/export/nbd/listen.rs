//! The sockets on which clients arrive.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SocketFlags, sockopt};

use crate::nbd::place::Place;

/// A client that vanished without a word is given up after about a minute.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

/// Why a server cannot listen somewhere.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen at {place}: {error}")]
pub struct ListenError {
    /// Where.
    pub place: Place,
    /// What the system says.
    pub error: io::Error,
}

/// A listening socket. A Unix socket's name goes with it.
#[derive(Debug)]
pub(super) struct Listener {
    fd: OwnedFd,
    place: Place,
}

impl Listener {
    pub(super) fn bind(place: &Place) -> Result<Self, ListenError> {
        let failed = |error| ListenError { place: place.clone(), error };
        match place {
            Place::Tcp(host, port) => {
                let listener = TcpListener::bind((host.as_str(), *port)).map_err(failed)?;
                listener.set_nonblocking(true).map_err(failed)?;
                let port = listener.local_addr().map_err(failed)?.port();
                Ok(Self { fd: listener.into(), place: Place::Tcp(host.clone(), port) })
            }
            Place::Unix(path) => {
                let listener = crate::export::bind_unix(path).map_err(failed)?;
                listener.set_nonblocking(true).map_err(failed)?;
                Ok(Self { fd: listener.into(), place: place.clone() })
            }
        }
    }

    /// Where it listens.
    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// The next client that waits.
    pub(super) fn accept(&self) -> Result<OwnedFd, Errno> {
        rustix::net::accept_with(&self.fd, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Place::Unix(path) = &self.place {
            // If it is gone already, so much the better.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// What is set on a client's socket. Unix sockets have none of it, and need none.
pub(crate) fn tune(fd: &OwnedFd) {
    // Without these a connection works all the same.
    let _ = sockopt::set_tcp_nodelay(fd, true);
    let _ = sockopt::set_socket_keepalive(fd, true);
    let _ = sockopt::set_tcp_keepidle(fd, KEEPALIVE_IDLE);
    let _ = sockopt::set_tcp_keepintvl(fd, KEEPALIVE_INTERVAL);
    let _ = sockopt::set_tcp_keepcnt(fd, KEEPALIVE_PROBES);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_dead_predecessors_socket_is_replaced_and_a_living_ones_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::Unix(dir.path().join("socket"));
        let Place::Unix(path) = &place else { return };
        drop(UnixListener::bind(path).unwrap());
        let listener = Listener::bind(&place).unwrap();
        assert_eq!(Listener::bind(&place).unwrap_err().error.kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        assert!(!path.exists());
        std::fs::write(path, "no socket").unwrap();
        assert!(Listener::bind(&place).is_err() && path.exists());
    }
}
