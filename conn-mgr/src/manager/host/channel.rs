//! The manager's end of a domain's connection: never blocks, keeps what the socket does not take, within a limit.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fido_core::platform::host::protocol::{self, FromDomain, FromManager, ProtocolError};
use rustix::io::Errno;

/// Messages that wait for a domain to read its socket. One more and the domain is taken for stuck.
pub(super) const MAX_QUEUED: usize = 8192;
/// The pause when the kernel has too many descriptors under way.
const PAUSE: Duration = Duration::from_millis(5);

/// Descriptors beside a message; shared, because several messages may carry them.
pub(super) type Descriptors = Arc<[OwnedFd]>;

/// Why a connection is of no use any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChannelError {
    #[error("{0}")]
    Protocol(#[from] ProtocolError),
    #[error("it has left {MAX_QUEUED} messages unread")]
    Full,
}

/// A connection with a domain.
pub(super) struct Channel {
    socket: OwnedFd,
    queue: VecDeque<(FromManager, Descriptors)>,
    pause: Option<Instant>,
}

impl Channel {
    /// Over a non-blocking socket.
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self { socket, queue: VecDeque::new(), pause: None }
    }

    /// The socket, for polling.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether it is worth waiting for room in the socket.
    pub(super) fn wants_room(&self) -> bool {
        !self.queue.is_empty() && self.pause.is_none()
    }

    /// When to flush again although the socket has room.
    pub(super) fn pause(&self) -> Option<Instant> {
        self.pause
    }

    /// Sends, now or as soon as there is room.
    pub(super) fn send(&mut self, message: FromManager, fds: Descriptors, now: Instant) -> Result<(), ChannelError> {
        if self.queue.len() >= MAX_QUEUED {
            return Err(ChannelError::Full);
        }
        self.queue.push_back((message, fds));
        self.flush(now)
    }

    /// Sends what waits, as far as there is room.
    pub(super) fn flush(&mut self, now: Instant) -> Result<(), ChannelError> {
        if self.pause.is_some_and(|until| until > now) {
            return Ok(());
        }
        self.pause = None;
        while let Some((message, fds)) = self.queue.front() {
            let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            match protocol::send(self.socket.as_fd(), message, &fds) {
                Ok(()) => _ = self.queue.pop_front(),
                Err(ProtocolError::WouldBlock) => break,
                Err(ProtocolError::Io(error)) if error.raw_os_error() == Some(Errno::TOOMANYREFS.raw_os_error()) => {
                    self.pause = Some(now + PAUSE);
                    break;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The next message; `None` if there is none now.
    pub(super) fn receive(&self) -> Result<Option<(FromDomain, Vec<OwnedFd>)>, ProtocolError> {
        match protocol::receive(self.socket.as_fd()) {
            Ok(received) => Ok(Some(received)),
            Err(ProtocolError::WouldBlock) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType};

    #[test]
    fn a_peer_that_does_not_read_is_found_out_and_nothing_is_lost_before() {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (a, b) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let mut channel = Channel::new(a);
        let message = |n: usize| FromManager::Refused { reason: n.to_string() };
        let mut sent = 0;
        while channel.queue.len() < MAX_QUEUED {
            channel.send(message(sent), Arc::new([]), Instant::now()).unwrap();
            sent += 1;
        }
        assert!(channel.wants_room());
        assert!(matches!(channel.send(message(sent), Arc::new([]), Instant::now()), Err(ChannelError::Full)));
        for n in 0..sent {
            let (received, _) = protocol::receive::<FromManager>(b.as_fd()).unwrap();
            assert_eq!(received, message(n));
            channel.flush(Instant::now()).unwrap();
        }
        assert!(!channel.wants_room());
        drop(b);
        assert!(channel.send(message(0), Arc::new([]), Instant::now()).is_err());
    }
}
