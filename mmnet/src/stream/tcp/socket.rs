//! The system calls of the port, each counted, and the two that touch arena memory by raw pointer.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use fido_core::heap::Filling;
use fido_core::stats::Stats;
use fido_core::window::Span;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use super::{BindError, Limits};

/// The most iovecs that one call takes (`UIO_MAXIOV`).
pub(super) const MAX_IOVECS: usize = 1024;

/// A peer that vanished without a word is given up after about a minute, whether we wait for it to read or to write.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;
const USER_TIMEOUT_MILLIS: u32 = 60_000;

/// A listening socket on `addr`. What is set on it, connections inherit (tcp(7)): four calls once, not per connection.
pub(super) fn listen(addr: SocketAddr, limits: &Limits) -> Result<OwnedFd, BindError> {
    let family = if addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let other = |errno: Errno| BindError::from_errno(addr, errno);
    let fd = rustix::net::socket_with(family, SocketType::STREAM, flags, None).map_err(other)?;
    sockopt::set_socket_reuseaddr(&fd, true).map_err(other)?;
    sockopt::set_tcp_nodelay(&fd, true).map_err(other)?;
    sockopt::set_socket_keepalive(&fd, true).map_err(other)?;
    sockopt::set_tcp_keepidle(&fd, KEEPALIVE_IDLE).map_err(other)?;
    sockopt::set_tcp_keepintvl(&fd, KEEPALIVE_INTERVAL).map_err(other)?;
    sockopt::set_tcp_keepcnt(&fd, KEEPALIVE_PROBES).map_err(other)?;
    sockopt::set_tcp_user_timeout(&fd, USER_TIMEOUT_MILLIS).map_err(other)?;
    rustix::net::bind(&fd, &addr).map_err(other)?;
    rustix::net::listen(&fd, limits.backlog).map_err(other)?;
    Ok(fd)
}

/// The next connection that waits.
pub(super) fn accept(listener: &OwnedFd, stats: &Stats) -> Result<(OwnedFd, SocketAddr), Errno> {
    stats.syscalls.add(1);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (fd, remote) = rustix::net::acceptfrom_with(listener, flags)?;
    let remote = remote.and_then(|any| SocketAddr::try_from(any).ok()).ok_or(Errno::CONNABORTED)?;
    Ok((fd, remote))
}

/// Receives into the free part of `filling`; the caller lends what arrived. 0 is the end of the stream.
pub(super) fn receive(fd: &OwnedFd, filling: &mut Filling, stats: &Stats) -> Result<usize, Errno> {
    stats.syscalls.add(1);
    let room = filling.room();
    // SAFETY: `spare` is valid for `room` bytes of the own arena that are lent to nobody and that only the holder of
    // the filling, which we borrow exclusively, may write.
    let count = unsafe { libc::recv(fd.as_raw_fd(), filling.spare().as_ptr().cast(), room, libc::MSG_DONTWAIT) };
    result(count)
}

/// Sends the bytes of `spans` (at most [`MAX_IOVECS`] of them) from where they lie, and returns how many went.
pub(super) fn send(fd: &OwnedFd, spans: &[Span], stats: &Stats) -> Result<usize, Errno> {
    stats.syscalls.add(1);
    let iovecs: Vec<libc::iovec> = spans
        .iter()
        .take(MAX_IOVECS)
        .map(|span| libc::iovec { iov_base: span.as_ptr().as_ptr().cast(), iov_len: span.len() })
        .collect();
    // SAFETY: `msghdr` is plain data for which zeros mean "absent".
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = iovecs.as_ptr().cast_mut();
    message.msg_iovlen = iovecs.len() as _;
    // SAFETY: the iovecs outlive the call; each names memory that its span keeps mapped, and the kernel only reads it.
    let count = unsafe { libc::sendmsg(fd.as_raw_fd(), &message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    result(count)
}

/// Says that no more will be sent.
pub(super) fn shutdown_write(fd: &OwnedFd, stats: &Stats) -> Result<(), Errno> {
    stats.syscalls.add(1);
    rustix::net::shutdown(fd, rustix::net::Shutdown::Write)
}

/// Closes; with `reset` the other end is told at once and nothing more is sent.
pub(super) fn close(fd: OwnedFd, reset: bool, stats: &Stats) {
    if reset {
        stats.syscalls.add(1);
        // If it fails the close is an orderly one: the peer still learns that the connection is gone.
        let _ = sockopt::set_socket_linger(fd.as_fd(), Some(Duration::ZERO));
    }
    stats.syscalls.add(1);
    drop(fd);
}

fn result(count: isize) -> Result<usize, Errno> {
    usize::try_from(count).map_err(|_| Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO))
}

/// Raises this process's limit of open files to `wanted`, or as near as the system lets it, and returns what it is.
/// A port with thousands of connections needs one file each; what the limit cuts off waits in the backlog.
pub fn raise_file_limit(wanted: u64) -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    let current = now.current.unwrap_or(u64::MAX);
    let raised = wanted.min(now.maximum.unwrap_or(u64::MAX));
    if raised <= current || setrlimit(Resource::Nofile, Rlimit { current: Some(raised), ..now }).is_err() {
        return current;
    }
    raised
}
