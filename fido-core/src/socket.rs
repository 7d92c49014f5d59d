//! The two system calls by which a stream socket touches arena memory: receiving into a buffer that is being filled,
//! and sending from windows.
//!
//! Both never block. Bytes go between kernel and arena; user space does not touch them.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use crate::heap::Filling;
use crate::stats::Stats;
use crate::window::Span;

/// The most pieces that one call takes (`UIO_MAXIOV`).
pub const MAX_PIECES: usize = 1024;

/// Something to be sent.
#[derive(Debug, Clone, Copy)]
pub enum Piece<'a> {
    /// Own bytes, such as a header.
    Bytes(&'a [u8]),
    /// Bytes of any arena, from `skip` on.
    Span {
        /// All of them.
        span: &'a Span,
        /// How many of them not to send, at most the span's length.
        skip: usize,
    },
}

impl Piece<'_> {
    /// How many bytes it sends.
    pub fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Span { span, skip } => span.len().saturating_sub(*skip),
        }
    }

    /// Whether it sends none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn iovec(&self) -> libc::iovec {
        let base = match self {
            Self::Bytes(bytes) => bytes.as_ptr(),
            // At most one past the span's end.
            Self::Span { span, skip } => span.as_ptr().as_ptr().wrapping_add((*skip).min(span.len())).cast_const(),
        };
        libc::iovec { iov_base: base.cast_mut().cast(), iov_len: self.len() }
    }
}

/// Receives into the free part of `filling`; the caller then lends or takes what has arrived. 0 is the stream's end (or
/// no room).
///
/// # Errors
/// The kernel's; `WouldBlock` if there is nothing now.
pub fn receive(fd: &impl AsFd, filling: &mut Filling, stats: &Stats) -> io::Result<usize> {
    stats.syscalls.add(1);
    let room = filling.room();
    // SAFETY: `spare` is valid for `room` bytes of the own arena that are lent to nobody and that only the holder of the
    // filling, which we borrow exclusively, may write.
    let count =
        unsafe { libc::recv(fd.as_fd().as_raw_fd(), filling.spare().as_ptr().cast(), room, libc::MSG_DONTWAIT) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Sends pieces (the first [`MAX_PIECES`] of them) from where they lie, and returns how many bytes went.
///
/// # Errors
/// The kernel's; `WouldBlock` if the socket takes nothing now.
pub fn send<'a>(fd: &impl AsFd, pieces: impl Iterator<Item = Piece<'a>>, stats: &Stats) -> io::Result<usize> {
    stats.syscalls.add(1);
    let iovecs: Vec<libc::iovec> = pieces.take(MAX_PIECES).map(|piece| piece.iovec()).collect();
    // SAFETY: `msghdr` is plain data for which zeros mean "absent".
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = iovecs.as_ptr().cast_mut();
    message.msg_iovlen = iovecs.len() as _;
    // SAFETY: the iovecs outlive the call; each names own bytes that are borrowed for `'a`, or memory that a span,
    // borrowed as long, keeps mapped. The kernel only reads them.
    let count = unsafe { libc::sendmsg(fd.as_fd().as_raw_fd(), &message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
#[cfg(not(any(loom, miri)))]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::testing::private_memory;

    #[test]
    fn pieces_go_out_in_order_and_come_in_without_a_copy() {
        let memory = private_memory(1 << 20);
        let (a, b) = UnixStream::pair().unwrap();
        let mut buf = memory.alloc(8).unwrap();
        buf.as_mut_slice().copy_from_slice(b"..world!");
        let lent = buf.into_payload();
        let spans = memory.translate_all(&lent).unwrap();
        let pieces = [Piece::Bytes(b"hello "), Piece::Span { span: &spans[0], skip: 2 }, Piece::Bytes(b"")];
        assert_eq!(pieces.iter().map(Piece::len).sum::<usize>(), 12);
        assert_eq!(send(&a, pieces.into_iter(), memory.stats()).unwrap(), 12);

        let mut filling = Filling::new(memory.alloc(4096).unwrap());
        assert_eq!(receive(&b, &mut filling, memory.stats()).unwrap(), 12);
        let mut head = [0; 6];
        assert_eq!(filling.take(&mut head), 6);
        let body = filling.lend(6);
        let mut text = [0; 6];
        memory.read_header(&body, 0, &mut text).unwrap();
        assert_eq!((&head, &text), (b"hello ", b"world!"));
        assert!(!filling.rewind(), "its bytes are on loan");
        drop(body);
        assert!(filling.rewind() && filling.room() == filling.len());
        assert_eq!(receive(&b, &mut filling, memory.stats()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(a);
        assert_eq!(receive(&b, &mut filling, memory.stats()).unwrap(), 0, "the end");
        assert_eq!(memory.stats().payload_bytes_copied.get(), 0);
    }
}
