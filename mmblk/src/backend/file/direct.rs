//! Past the page cache: which requests can go directly between the device and the memory their payload lies in, and how.
//!
//! `O_DIRECT` wants the place on the device, every length and every address aligned. What a request looks like is its
//! sender's affair, so it is decided for each (and anew for the rest of one that ended short): what is aligned goes
//! directly, all else through the page cache, which the kernel keeps coherent with direct requests that do not overlap
//! in time. Nothing is copied in user space either way.
//!
//! Memory of the own arena is registered with the ring, so that the kernel does not look its pages up for each request.
//! A peer's cannot be: registering wants writable memory, which a window is not. It goes by its addresses.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use fido_core::memory::Memory;
use io_uring::{IoUring, types};
use rustix::fs::{AtFlags, StatxFlags};

use super::open::{FileError, os};

/// The most bytes the kernel takes as one registered buffer.
const MAX_BUFFER_BYTES: usize = 1 << 30;
/// The alignment that is assumed where the kernel (before Linux 6.1) does not tell.
const USUAL_ALIGN: u32 = 4096;

/// A file opened for direct requests.
#[derive(Debug)]
pub(super) struct Direct {
    file: File,
    /// What addresses in memory must be multiples of.
    memory: usize,
    /// What offsets and lengths must be multiples of.
    block: u64,
}

impl Direct {
    /// Opens what `file` is a second time, for a device that shows blocks of `block` bytes and may be read only.
    ///
    /// # Errors
    /// [`FileError::NoDirect`] if its file system or device cannot do it, or not in blocks of that size.
    pub(super) fn open(file: &File, path: &Path, block: u32, read_only: bool) -> Result<Self, FileError> {
        let no = |reason: String| FileError::NoDirect { path: path.to_path_buf(), reason };
        // By the descriptor, not the name: it shall be the file that is locked.
        let name = format!("/proc/self/fd/{}", file.as_raw_fd());
        let mut options = OpenOptions::new();
        options.read(true).write(!read_only).custom_flags(libc::O_DIRECT);
        let direct = options.open(name).map_err(|error| no(error.to_string()))?;
        let (memory, needed) = alignment(&direct).map_err(os(path, "find the alignment of direct requests to it"))?;
        if memory == 0 || needed == 0 {
            return Err(no("its file system says so".into()));
        }
        if !block.is_multiple_of(needed) {
            return Err(no(format!("it needs blocks of {needed} bytes, and the device shows {block}")));
        }
        Ok(Self { file: direct, memory: memory as usize, block: needed.into() })
    }

    fn takes(&self, at: u64, memory: &[libc::iovec]) -> bool {
        let aligned = |part: &libc::iovec| {
            part.iov_base.addr().is_multiple_of(self.memory) && (part.iov_len as u64).is_multiple_of(self.block)
        };
        at.is_multiple_of(self.block) && memory.iter().all(aligned)
    }
}

/// The alignment of memory, and of offsets and lengths; zeros if there are no direct requests.
fn alignment(file: &File) -> io::Result<(u32, u32)> {
    let stat = rustix::fs::statx(file.as_fd(), "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)?;
    Ok(match StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::DIOALIGN) {
        true => (stat.stx_dio_mem_align, stat.stx_dio_offset_align),
        false => (USUAL_ALIGN, USUAL_ALIGN),
    })
}

/// The own arena as a ring has it registered, in buffers of [`MAX_BUFFER_BYTES`].
#[derive(Debug)]
pub(super) struct Registered {
    base: usize,
    len: usize,
}

impl Registered {
    /// Registers the arena of `memory` with `ring`, if the kernel lets it: its pages count against the limit for locked
    /// memory (`ulimit -l`).
    pub(super) fn new(ring: &IoUring, memory: &Memory) -> Self {
        let arena = memory.arena();
        let (base, len) = (arena.base().as_ptr(), arena.len() as usize);
        let buffers: Vec<libc::iovec> = (0..len)
            .step_by(MAX_BUFFER_BYTES)
            .map(|at| libc::iovec { iov_base: base.wrapping_add(at).cast(), iov_len: MAX_BUFFER_BYTES.min(len - at) })
            .collect();
        // SAFETY: the arena is mapped for that length. The kernel keeps the pages, not the addresses; what is later
        // asked of it about them is argued where the entry is made.
        match unsafe { ring.submitter().register_buffers(&buffers) } {
            Ok(()) => Self { base: base.addr(), len },
            Err(error) => {
                tracing::info!(%error, bytes = len, "the arena is not registered for direct requests (ulimit -l?)");
                Self::none()
            }
        }
    }

    /// Nothing is registered.
    pub(super) fn none() -> Self {
        Self { base: 0, len: 0 }
    }

    /// The index of the buffer that `part` lies in.
    fn index(&self, part: &libc::iovec) -> Option<u16> {
        let from = part.iov_base.addr().checked_sub(self.base)?;
        let last = from.checked_add(part.iov_len)?.checked_sub(1)?;
        let index = from / MAX_BUFFER_BYTES;
        (last < self.len && last / MAX_BUFFER_BYTES == index).then(|| u16::try_from(index).ok())?
    }
}

/// The ways into a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ways<'a> {
    pub(super) cached: RawFd,
    pub(super) direct: Option<&'a Direct>,
    pub(super) registered: &'a Registered,
}

/// The way that one request takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Way {
    pub(super) fd: types::Fd,
    pub(super) direct: bool,
    /// The registered buffer that all of its memory lies in.
    pub(super) buffer: Option<u16>,
}

impl Ways<'_> {
    /// Through the page cache.
    pub(super) fn cached(&self) -> Way {
        Way { fd: types::Fd(self.cached), direct: false, buffer: None }
    }

    /// The best for what moves between byte `at` of the file and `memory`.
    pub(super) fn best(&self, at: u64, memory: &[libc::iovec]) -> Way {
        let Some(direct) = self.direct.filter(|direct| direct.takes(at, memory)) else { return self.cached() };
        let buffer = if let [part] = memory { self.registered.index(part) } else { None };
        Way { fd: types::Fd(direct.file.as_raw_fd()), direct: true, buffer }
    }
}

/// How many times a queue has asked the kernel by which way.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct WaysTaken {
    /// Reads and writes through the page cache.
    pub cached: u64,
    /// Reads and writes past it.
    pub direct: u64,
    /// Those of the latter between registered memory and the device.
    pub registered: u64,
}

impl WaysTaken {
    pub(super) fn count(&mut self, way: Way) {
        self.cached += u64::from(!way.direct);
        self.direct += u64::from(way.direct);
        self.registered += u64::from(way.buffer.is_some());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(at: usize, len: usize) -> libc::iovec {
        libc::iovec { iov_base: std::ptr::without_provenance_mut(at), iov_len: len }
    }

    #[test]
    fn a_part_belongs_to_one_registered_buffer_or_none() {
        let registered = Registered { base: 0x1000, len: 2 * MAX_BUFFER_BYTES + 0x1000 };
        let index = |at, len| registered.index(&part(at, len));
        assert_eq!(index(0x1000, 1), Some(0));
        assert_eq!(index(0xFFF, 1), None);
        assert_eq!(index(0x1000, MAX_BUFFER_BYTES), Some(0));
        assert_eq!(index(0x1000, MAX_BUFFER_BYTES + 1), None, "crosses into the next");
        assert_eq!(index(0x1000 + MAX_BUFFER_BYTES, 1), Some(1));
        assert_eq!(index(0x1000 + 2 * MAX_BUFFER_BYTES, 0x1000), Some(2));
        assert_eq!(index(0x1000 + 2 * MAX_BUFFER_BYTES, 0x1001), None, "beyond the end");
        assert_eq!(index(0x1000, 0), None);
        assert_eq!(index(usize::MAX, 2), None);
        assert_eq!(Registered::none().index(&part(0, 1)), None);
    }

    #[test]
    fn only_what_is_aligned_goes_directly() {
        let file = tempfile::tempfile().unwrap();
        let direct = Direct { file, memory: 4, block: 512 };
        assert!(direct.takes(512, &[part(4, 512), part(8, 1024)]));
        assert!(!direct.takes(511, &[part(4, 512)]));
        assert!(!direct.takes(512, &[part(5, 512)]));
        assert!(!direct.takes(512, &[part(4, 512), part(4, 100)]));
    }
}
