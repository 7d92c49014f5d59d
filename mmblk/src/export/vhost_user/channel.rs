//! The socket to a front end: whole messages with their file descriptors.

use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

use super::message::{HEAD_BYTES, Head, MAX_TABLE, MessageError};

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The socket's error, or its end in the middle of a message.
    #[error("the connection: {0}")]
    Io(#[from] io::Error),
    /// What came is no message.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// More descriptors than any message may have; the rest is lost, so nothing that follows can be relied on.
    #[error("more than {MAX_TABLE} file descriptors with a message")]
    Fds,
}

/// A message: its head, its body, and its descriptors.
pub type Received = (Head, Vec<u8>, Vec<OwnedFd>);

/// Waits for the next message. `None` at the connection's end.
///
/// # Errors
/// [`ChannelError`], after which the connection is of no use.
pub fn receive(socket: &UnixStream) -> Result<Option<Received>, ChannelError> {
    let mut head = [0; HEAD_BYTES];
    let Some(fds) = receive_head(socket, &mut head)? else { return Ok(None) };
    let head = Head::parse(&head)?;
    let mut body = vec![0; head.size];
    (&mut &*socket).read_exact(&mut body)?;
    Ok(Some((head, body, fds)))
}

/// The head, and the descriptors: they come with a message's first byte.
fn receive_head(socket: &UnixStream, head: &mut [u8; HEAD_BYTES]) -> Result<Option<Vec<OwnedFd>>, ChannelError> {
    // One place more than allowed, so that too many are noticed.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_TABLE + 1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut buffers = [IoSliceMut::new(head)];
        match rustix::net::recvmsg(socket.as_fd(), &mut buffers, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other.map_err(io::Error::from)?,
        }
    };
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    if fds.len() > MAX_TABLE || received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(ChannelError::Fds);
    }
    let rest = head.get_mut(received.bytes..).unwrap_or_default();
    (&mut &*socket).read_exact(rest)?;
    Ok(Some(fds))
}

/// Sends a whole message, with a descriptor if there is one.
///
/// # Errors
/// The socket's.
pub fn send(socket: &UnixStream, message: &[u8], fd: Option<&OwnedFd>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = fd.map(AsFd::as_fd);
    if let Some(fd) = &fds {
        ancillary.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(fd)));
    }
    // Descriptors go with the first byte, and with no other.
    let mut sent = rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(socket, &[IoSlice::new(message)], &mut ancillary, SendFlags::NOSIGNAL)
    })?;
    while sent < message.len() {
        let rest = message.get(sent..).unwrap_or_default();
        sent += rustix::io::retry_on_intr(|| rustix::net::send(socket, rest, SendFlags::NOSIGNAL))?;
    }
    Ok(())
}
