//! What a domain and the connection manager say to each other: one JSON message per `SOCK_SEQPACKET` datagram, with
//! file descriptors beside it (`SCM_RIGHTS`).
//!
//! The course of a domain's life:
//!
//! ```text
//! domain                                   manager
//!   Hello ------------------------------------>   (who it is: checked by SO_PEERCRED)
//!   <------------------ Welcome [+ memfd]         (its assignment; what its predecessor left, if it inherits)
//!   Arena + [memfd] --------------------------->
//!   Bells + [eventfd, one per lane] ----------->  (one message per link; they wake this domain)
//!   <------------------ Peer + [memfd]            (once per incarnation of each domain it may read)
//!   Mapped ----------------------------------->   (that window is in place)
//!   <------------------ Link + [eventfds]         (the peer's bells of that link, in lane order; only when everybody
//!                                                  who may be sent bytes of either end has its window in place)
//!   Ready ------------------------------------->
//!   …
//!   <------------------ Died                      (that incarnation is dead; stop using its links)
//!   Passed ------------------------------------>  (nothing that came through it is held here any more)
//!   <------------------ Fenced                    (nobody holds anything of it: reclaim loans, drop the window)
//!   <---------------- Shutdown                    (finish and exit with status 0)
//! ```
//!
//! Both ends check whatever they receive; a malformed message is an error that names its sender, never a panic.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::assignment::{Assignment, WireId};

/// Version of this protocol; the manager refuses any other.
pub const PROTOCOL_VERSION: u32 = 1;
/// The largest message, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024;
/// The most file descriptors beside one message: so many lanes can a link have.
pub const MAX_FDS: usize = 64;
/// Environment variable that tells a domain the manager's socket.
pub const SOCKET_VARIABLE: &str = "FIDO_MANAGER";
/// Environment variable that tells a domain its name.
pub const DOMAIN_VARIABLE: &str = "FIDO_DOMAIN";

/// From a domain to the manager.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "kebab-case", deny_unknown_fields)]
pub enum FromDomain {
    /// First message.
    Hello {
        /// [`PROTOCOL_VERSION`].
        version: u32,
        /// The name it was started under.
        domain: String,
    },
    /// Its arena; one descriptor: the sealed memfd.
    Arena {
        /// Length in bytes.
        bytes: u64,
    },
    /// The eventfds that wake its lanes of one link; one descriptor per lane, in order.
    Bells {
        /// The link's number.
        link: u32,
    },
    /// It serves. May be said again with other notes.
    Ready {
        /// What others may want to know, such as the address it listens on.
        notes: std::collections::BTreeMap<String, String>,
    },
    /// Its window on that incarnation's arena is in place.
    Mapped {
        /// The arena's owner.
        id: WireId,
    },
    /// It holds nothing any more that came through that dead incarnation.
    Passed {
        /// The dead incarnation.
        id: WireId,
        /// Other dead incarnations to which it had forwarded such things: it does not wait for their fences before it
        /// says this (they may wait for its word), so this fence will wait for theirs.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        except: Vec<WireId>,
    },
}

/// From the manager to a domain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "kebab-case", deny_unknown_fields)]
pub enum FromManager {
    /// Answer to `Hello`.
    Welcome {
        /// What the domain is to be.
        assignment: Box<Assignment>,
        /// Whose arena comes with it, if the manifest lets this domain inherit and there is something; one descriptor
        /// then: the sealed memfd.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        predecessor: Option<Predecessor>,
    },
    /// The manager will not have it; the connection ends.
    Refused {
        /// Why.
        reason: String,
    },
    /// An arena that this domain may read; one descriptor: the sealed memfd.
    Peer {
        /// Whose.
        id: WireId,
        /// The name in the manifest.
        domain: String,
        /// Length in bytes.
        bytes: u64,
    },
    /// The other end of a link is there; one descriptor per lane: the bells that wake it.
    Link {
        /// The link's number.
        link: u32,
        /// The incarnation at the other end.
        peer: WireId,
    },
    /// An incarnation is dead.
    Died {
        /// Which.
        id: WireId,
    },
    /// The fence of a dead incarnation has been passed by all.
    Fenced {
        /// Which.
        id: WireId,
    },
    /// Finish what is under way and exit.
    Shutdown,
}

/// An earlier incarnation of a domain, whose arena is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Predecessor {
    /// Which.
    pub id: WireId,
    /// Length of its arena in bytes.
    pub bytes: u64,
}

/// Why a message could not be exchanged.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// The other end is gone.
    #[error("the other end closed the connection")]
    Closed,
    /// Nothing to read now, or no room to send now (non-blocking socket).
    #[error("the socket is not ready")]
    WouldBlock,
    /// The operating system's error.
    #[error("socket error: {0}")]
    Io(#[from] std::io::Error),
    /// Beyond [`MAX_MESSAGE_BYTES`].
    #[error("a message of more than {MAX_MESSAGE_BYTES} bytes")]
    TooLong,
    /// Beyond [`MAX_FDS`], or the receiver has no descriptor left.
    #[error("more file descriptors than allowed (limit {MAX_FDS}) or than this process can take")]
    TooManyFds,
    /// Not a message of this protocol.
    #[error("malformed message: {reason} in {text:?}")]
    Malformed {
        /// What the decoder says.
        reason: String,
        /// The beginning of what was received.
        text: String,
    },
}

/// Decodes a message as [`receive`] does. Never panics, whatever the bytes.
///
/// # Errors
/// [`ProtocolError::Malformed`].
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ProtocolError> {
    serde_json::from_slice(bytes).map_err(|error| ProtocolError::Malformed {
        reason: error.to_string(),
        text: String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned(),
    })
}

/// Sends one message with descriptors beside it.
///
/// # Errors
/// [`ProtocolError`]; nothing has been sent then.
pub fn send<T: Serialize>(socket: BorrowedFd<'_>, message: &T, fds: &[BorrowedFd<'_>]) -> Result<(), ProtocolError> {
    let bytes = serde_json::to_vec(message).map_err(|error| ProtocolError::Io(error.into()))?;
    if bytes.len() > MAX_MESSAGE_BYTES {
        return Err(ProtocolError::TooLong);
    }
    if fds.len() > MAX_FDS {
        return Err(ProtocolError::TooManyFds);
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(ProtocolError::TooManyFds);
    }
    loop {
        match rustix::net::sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(socket_error(errno)),
        }
    }
}

/// Receives one message and the descriptors beside it.
///
/// # Errors
/// [`ProtocolError`]; descriptors that came with a bad message are closed.
pub fn receive<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> Result<(T, Vec<OwnedFd>), ProtocolError> {
    let mut bytes = vec![0; MAX_MESSAGE_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut buffers = [IoSliceMut::new(&mut bytes)];
        match rustix::net::recvmsg(socket.as_fd(), &mut buffers, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => break received,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(socket_error(errno)),
        }
    };
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.bytes == 0 {
        return Err(ProtocolError::Closed);
    }
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(ProtocolError::TooLong);
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(ProtocolError::TooManyFds);
    }
    Ok((decode(&bytes[..received.bytes])?, fds))
}

fn socket_error(errno: Errno) -> ProtocolError {
    match errno {
        Errno::AGAIN => ProtocolError::WouldBlock,
        Errno::PIPE | Errno::CONNRESET => ProtocolError::Closed,
        errno => ProtocolError::Io(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType};

    fn pair() -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
    }

    #[test]
    fn a_message_and_its_descriptors_arrive() {
        let (a, b) = pair();
        let message = FromDomain::Bells { link: 7 };
        send(a.as_fd(), &message, &[a.as_fd(); MAX_FDS]).unwrap();
        let (received, fds) = receive::<FromDomain>(b.as_fd()).unwrap();
        assert_eq!((received, fds.len()), (message.clone(), MAX_FDS));
        assert!(matches!(send(a.as_fd(), &message, &[a.as_fd(); MAX_FDS + 1]), Err(ProtocolError::TooManyFds)));
        assert!(matches!(receive::<FromDomain>(b.as_fd()), Err(ProtocolError::WouldBlock)));
        drop((a, fds));
        assert!(matches!(receive::<FromDomain>(b.as_fd()), Err(ProtocolError::Closed)));
    }

    #[test]
    fn the_length_limit() {
        let (a, b) = pair();
        let hello = |len: usize| FromDomain::Hello { version: 1, domain: "x".repeat(len) };
        let overhead = serde_json::to_vec(&hello(0)).unwrap().len();
        send(a.as_fd(), &hello(MAX_MESSAGE_BYTES - overhead), &[]).unwrap();
        assert!(receive::<FromDomain>(b.as_fd()).is_ok());
        let error = send(a.as_fd(), &hello(MAX_MESSAGE_BYTES - overhead + 1), &[]).unwrap_err();
        assert!(matches!(error, ProtocolError::TooLong));
        rustix::net::send(&a, &vec![b' '; MAX_MESSAGE_BYTES + 1], SendFlags::empty()).unwrap();
        assert!(matches!(receive::<FromDomain>(b.as_fd()), Err(ProtocolError::TooLong)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes: Vec<u8>) {
            let _ = decode::<FromDomain>(&bytes);
            let _ = decode::<FromManager>(&bytes);
        }
    }
}
