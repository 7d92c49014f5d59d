//! The two system calls by which a device that carries packets (a TAP device) touches arena memory: one packet is read
//! into fresh buffers, one is written from windows.
//!
//! Neither blocks, if the descriptor is non-blocking. Bytes go between kernel and arena; user space does not touch them.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use crate::heap::ArenaBuf;
use crate::socket::{MAX_PIECES, Piece};
use crate::stats::Stats;

/// The most buffers that one packet is read into.
pub const MAX_BUFFERS: usize = 7;

/// Reads one packet: its first bytes into `head`, what follows into the buffers (the first [`MAX_BUFFERS`] of them), each
/// filled before the next. Returns how many bytes there were. What did not fit is lost, as the device has it.
///
/// # Errors
/// The kernel's; `WouldBlock` if there is no packet now.
pub fn read(fd: &impl AsFd, head: &mut [u8], buffers: &mut [ArenaBuf], stats: &Stats) -> io::Result<usize> {
    stats.syscalls.add(1);
    let mut iovecs = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; 1 + MAX_BUFFERS];
    iovecs[0] = libc::iovec { iov_base: head.as_mut_ptr().cast(), iov_len: head.len() };
    let mut count = 1;
    for (place, buffer) in iovecs[1..].iter_mut().zip(buffers) {
        *place = libc::iovec { iov_base: buffer.as_ptr().as_ptr().cast(), iov_len: buffer.len() };
        count += 1;
    }
    // SAFETY: the first `count` iovecs name `head`, and buffers that are exclusively their holder's, all of which we borrow
    // exclusively; the kernel writes within their lengths.
    let read = unsafe { libc::readv(fd.as_fd().as_raw_fd(), iovecs.as_ptr(), count) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// Writes pieces (the first [`MAX_PIECES`] of them) as one packet from where they lie.
///
/// # Errors
/// The kernel's; `WouldBlock` if the device takes nothing now.
pub fn write<'a>(fd: &impl AsFd, pieces: impl Iterator<Item = Piece<'a>>, stats: &Stats) -> io::Result<usize> {
    stats.syscalls.add(1);
    let iovecs: Vec<libc::iovec> = pieces.take(MAX_PIECES).map(|piece| piece.iovec()).collect();
    // SAFETY: the iovecs outlive the call; each names own bytes that are borrowed for `'a`, or memory that a span,
    // borrowed as long, keeps mapped. The kernel only reads them. There are at most `MAX_PIECES`.
    let written = unsafe { libc::writev(fd.as_fd().as_raw_fd(), iovecs.as_ptr(), iovecs.len() as libc::c_int) };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
#[cfg(not(any(loom, miri)))]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;
    use crate::testing::private_memory;

    #[test]
    fn a_packet_fills_one_buffer_after_the_other_and_goes_out_of_pieces() {
        let memory = private_memory(1 << 20);
        let (near, far) = UnixDatagram::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let bytes: Vec<u8> = (0..200).collect();
        far.send(&bytes).unwrap();
        let mut head = [0; 12];
        let mut buffers: Vec<_> = [64, 64, 128].map(|len| memory.alloc(len).unwrap()).into();
        let stats = memory.stats();
        assert_eq!(read(&near, &mut head, &mut buffers, stats).unwrap(), 200);
        let mut found = head.to_vec();
        buffers.iter().for_each(|buffer| found.extend_from_slice(buffer.as_slice()));
        assert_eq!(found[..200], bytes);
        let none = read(&near, &mut head, &mut buffers, stats).unwrap_err();
        assert_eq!(none.kind(), io::ErrorKind::WouldBlock);

        let spans: Vec<_> = buffers.iter().map(|buffer| memory.translate(buffer.segment()).unwrap()).collect();
        let pieces = spans.iter().map(|span| Piece::Span { span, skip: 60 });
        assert_eq!(write(&near, std::iter::once(Piece::Bytes(&head)).chain(pieces), stats).unwrap(), 12 + 4 + 4 + 68);
        let mut back = [0; 200];
        assert_eq!(far.recv(&mut back).unwrap(), 88);
        assert_eq!((&back[..12], &back[12..16], &back[16..20]), (&head[..], &bytes[72..76], &bytes[136..140]));
    }
}
