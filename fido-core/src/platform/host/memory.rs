//! Arenas as sealed memfds, windows as read-only mappings of them.
//!
//! The owner maps the file writable, then seals it: `F_SEAL_FUTURE_WRITE` (nobody can map or write it from now on,
//! not even through `/proc/PID/fd`), `F_SEAL_SHRINK` and `F_SEAL_GROW` (its size is fixed, so a mapping never faults)
//! and `F_SEAL_SEAL`. A reader checks the seals before it trusts the mapping.
//!
//! Where they lie in a process: [`crate::platform::place`].

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::mm::{Advice, ProtFlags};

use crate::addr::DomainId;
use crate::arena::RawArena;
use crate::platform::place::{Mapping, map};
use crate::window::Window;

const SEALS: libc::c_int = libc::F_SEAL_FUTURE_WRITE | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;

/// Why memory cannot be shared on this platform.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The kernel refused a step.
    #[error("cannot {step} an arena of {len} bytes: {source}")]
    Kernel {
        /// What was being done.
        step: &'static str,
        /// The arena's length.
        len: u64,
        /// The kernel's reason.
        source: io::Error,
    },
    /// A peer's file is not sealed as an arena must be.
    #[error("the arena of domain {id} is not sealed: seals {found:#x}, needed {SEALS:#x}")]
    Unsealed {
        /// Whose arena.
        id: DomainId,
        /// The seals it has.
        found: i32,
    },
    /// A peer's file has another size than was announced.
    #[error("the arena of domain {id} has {found} bytes, {announced} were announced")]
    Size {
        /// Whose arena.
        id: DomainId,
        /// The file's size.
        found: u64,
        /// What was announced.
        announced: u64,
    },
}

/// Creates an arena of `len` bytes: mapped writable here, prefaulted, then sealed. Huge pages where the system gives
/// them. The file is for the peers.
///
/// # Errors
/// [`MemoryError::Kernel`] with the step that failed.
pub fn create(name: &str, id: DomainId, len: u64) -> Result<(OwnedFd, RawArena), MemoryError> {
    let error = |step| move |source: io::Error| MemoryError::Kernel { step, len, source };
    let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create(format!("fido-arena-{name}"), flags).map_err(|e| error("create")(e.into()))?;
    rustix::fs::ftruncate(&fd, len).map_err(|e| error("size")(e.into()))?;
    let mapping = map(fd.as_fd(), 0, id, len, ProtFlags::READ | ProtFlags::WRITE).map_err(error("map"))?;
    prefault(&mapping, Advice::LinuxPopulateWrite).map_err(error("find the memory for"))?;
    // SAFETY: a plain fcntl on a file descriptor we own.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, SEALS) } < 0 {
        return Err(error("seal")(io::Error::last_os_error()));
    }
    Ok((fd, RawArena { base: mapping.base, len, mapping: Box::new(mapping) }))
}

/// Maps a peer's arena read-only, after checking its seals and size.
///
/// # Errors
/// [`MemoryError`] if the file is not what was announced, or the kernel refuses.
pub fn open(fd: BorrowedFd<'_>, id: DomainId, len: u64) -> Result<Window, MemoryError> {
    let error = |step| move |source: io::Error| MemoryError::Kernel { step, len, source };
    // SAFETY: a plain fcntl on a borrowed file descriptor.
    let seals = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) };
    if seals < 0 || seals & SEALS != SEALS {
        return Err(MemoryError::Unsealed { id, found: seals.max(0) });
    }
    let found = rustix::fs::fstat(fd).map_err(|e| error("examine")(e.into()))?.st_size as u64;
    if found != len || len == 0 {
        return Err(MemoryError::Size { id, found, announced: len });
    }
    let mapping = map(fd, 0, id, len, ProtFlags::READ).map_err(error("map"))?;
    prefault(&mapping, Advice::LinuxPopulateRead).map_err(error("prefault"))?;
    let base = mapping.base;
    // SAFETY: `mapping` keeps the range readable, and mmap aligns to a page; the seals fix the file's size.
    Ok(unsafe { Window::new(id, base, len, Box::new(mapping)) })
}

fn prefault(mapping: &Mapping, populate: Advice) -> io::Result<()> {
    let range = mapping.base.as_ptr().cast();
    // SAFETY: both pieces of advice keep the content; the range is ours. Huge pages are a wish: where the kernel has
    // none for shared memory it says so, and nothing else changes.
    let _ = unsafe { rustix::mm::madvise(range, mapping.len, Advice::LinuxHugepage) };
    // SAFETY: as above.
    match unsafe { rustix::mm::madvise(range, mapping.len, populate) } {
        // Before Linux 5.14 there is no such advice: pages are then found at first touch.
        Err(rustix::io::Errno::INVAL) | Ok(()) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Another descriptor of the same file, for one more peer.
///
/// # Errors
/// The kernel's, if the process has no descriptor left.
pub fn share(fd: &OwnedFd) -> io::Result<OwnedFd> {
    fd.try_clone()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{Generation, Slot};
    use crate::platform::place::{PLACE_BYTES, PSEUDO_GLOBAL_BASE, pseudo_global_place};
    use std::fs::File;
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    fn id(slot: u16, generation: u16) -> DomainId {
        DomainId { slot: Slot::new(slot).unwrap(), generation: Generation::new(generation).unwrap() }
    }

    const LEN: u64 = 1 << 20;

    #[test]
    fn a_peer_cannot_get_write_access_in_any_way() {
        let (fd, arena) = create("refusal", id(100, 1), LEN).unwrap();
        let writable = ProtFlags::READ | ProtFlags::WRITE;
        assert!(map(fd.as_fd(), 0, id(101, 1), LEN, writable).is_err(), "mmap writable");
        let window = open(fd.as_fd(), id(100, 1), LEN).unwrap();
        // SAFETY: only asks for more rights on a mapping that `window` keeps; the kernel refuses.
        let raised = unsafe {
            rustix::mm::mprotect(
                window.base().as_ptr().cast(),
                LEN as usize,
                rustix::mm::MprotectFlags::READ | rustix::mm::MprotectFlags::WRITE,
            )
        };
        assert!(raised.is_err(), "mprotect");
        let reopened = File::options().read(true).write(true).open(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        if let Ok(mut file) = reopened {
            assert!(map(file.as_fd(), 0, id(102, 1), LEN, writable).is_err(), "mmap of the reopened file");
            assert!(file.write(b"x").is_err(), "write");
            assert!(file.write_at(b"x", 0).is_err(), "pwrite to the reopened file");
        }
        assert!(File::from(share(&fd).unwrap()).write_at(b"x", 0).is_err(), "pwrite");
        assert!(rustix::fs::ftruncate(&fd, 0).is_err(), "shrink");
        assert!(rustix::fs::ftruncate(&fd, 2 * LEN).is_err(), "grow");
        // SAFETY: a plain fcntl on our own descriptor.
        assert!(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_WRITE) } < 0, "more seals");
        // SAFETY: the owner's mapping, still writable.
        unsafe { arena.base.write(42) };
        // SAFETY: the first byte of a live window; nobody writes it now.
        assert_eq!(unsafe { window.base().read() }, 42, "the owner still writes, the peer sees it");
    }

    #[test]
    fn windows_lie_at_the_pseudo_global_place_or_are_translated() {
        let (fd, arena) = create("place", id(200, 1), LEN).unwrap();
        assert_eq!(arena.base.addr().get(), pseudo_global_place(id(200, 1)));
        let elsewhere = open(fd.as_fd(), id(200, 1), LEN).unwrap();
        assert_ne!(elsewhere.base(), arena.base, "the place is taken, so the kernel picked another");
        assert_ne!(pseudo_global_place(id(200, 1)), pseudo_global_place(id(200, 2)));
        let last = pseudo_global_place(id(4095, 4095)) + PLACE_BYTES as usize;
        assert_eq!(last, PSEUDO_GLOBAL_BASE + (64 << 40));
    }

    #[test]
    fn a_file_that_is_not_an_arena_is_refused() {
        let open_file = rustix::fs::memfd_create("plain", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&open_file, LEN).unwrap();
        assert!(matches!(open(open_file.as_fd(), id(300, 1), LEN), Err(MemoryError::Unsealed { .. })));
        let (fd, _arena) = create("size", id(301, 1), LEN).unwrap();
        let error = open(fd.as_fd(), id(301, 1), LEN + 4096).unwrap_err();
        assert!(matches!(error, MemoryError::Size { found: LEN, .. }));
        let null = File::open("/dev/null").unwrap();
        assert!(open(null.as_fd(), id(302, 1), LEN).is_err());
        let _ = OwnedFd::from(null);
    }
}
