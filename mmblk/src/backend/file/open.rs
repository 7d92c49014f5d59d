//! Opening, creating and locking what is behind a [`FileDevice`].

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use fido_core::memory::Memory;
use rustix::fs::{FallocateFlags, FlockOperation};
use rustix::io::Errno;

use super::direct::Direct;
use super::queue::FileQueue;
use crate::backend::size::Size;
use crate::queue::{BlockError, Features, Geometry, GeometryError};

/// What to open, and how to present it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileOptions {
    /// An image file or a block device.
    pub path: PathBuf,
    /// Creates a missing (or empty) image with this many bytes, sparse. `None`: a missing image is an error.
    pub create_bytes: Option<u64>,
    /// Only reads it. The lock is then shared with others that only read.
    pub read_only: bool,
    /// The least size that makes sense to the caller.
    pub min_bytes: u64,
    /// Block size that the device shows. Through the page cache any power of two will do; below 4096, writes of
    /// parts of a page make the kernel read the rest of it.
    pub block: u32,
    /// Requests in flight on each queue.
    pub depth: u32,
    /// Whether reads and writes whose place and memory are aligned go past the page cache (`O_DIRECT`).
    pub direct: bool,
    /// A write is complete when it is durable, and not when it is in the page cache: for who must not lose what has
    /// completed when the whole kernel dies, as a guest's does with the guest. Costs a flush for each write.
    pub write_through: bool,
    /// How long to wait for another process's lock: after a crash, the kernel releases the predecessor's only when
    /// its last request has ended.
    pub lock_wait: Duration,
}

impl FileOptions {
    /// The usual options for `path`: must exist, blocks of 4096 bytes, depth 128, page cache, not written through, 5 s for
    /// the lock.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            create_bytes: None,
            read_only: false,
            min_bytes: 0,
            block: 4096,
            depth: 128,
            direct: false,
            write_through: false,
            lock_wait: Duration::from_secs(5),
        }
    }
}

/// Why a file device cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// There is nothing at that path.
    #[error("{}: no such image, or no such folder for it; create it, or give the size it shall have", path.display())]
    Missing {
        /// The path in question.
        path: PathBuf,
    },
    /// This process may not read and write it.
    #[error("{}: no permission to read and write it", path.display())]
    Permission {
        /// The path in question.
        path: PathBuf,
    },
    /// Neither a regular file nor a block device.
    #[error("{}: neither a regular file nor a block device", path.display())]
    Kind {
        /// The path in question.
        path: PathBuf,
    },
    /// Another process has it.
    #[error("{}: in use by another process, whose lock has not gone away within {waited:?}", path.display())]
    Locked {
        /// The path in question.
        path: PathBuf,
        /// For how long it was tried.
        waited: Duration,
    },
    /// Smaller than asked for, or than a block.
    #[error("{}: the image has {bytes} bytes; it needs at least {needed}", path.display())]
    TooSmall {
        /// The path in question.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The size it needs.
        needed: u64,
    },
    /// The block size, depth or size to show is beyond the limits.
    #[error("{}: {error}", path.display())]
    Geometry {
        /// The path in question.
        path: PathBuf,
        /// What is beyond its limit.
        error: GeometryError,
    },
    /// It cannot be read and written past the page cache.
    #[error("{}: no direct requests (O_DIRECT) are possible: {reason}; open it without", path.display())]
    NoDirect {
        /// The path in question.
        path: PathBuf,
        /// What stands against it.
        reason: String,
    },
    /// The kernel does not let this process use io_uring.
    #[error("{}: io_uring is not available (kernel.io_uring_disabled, or a seccomp filter?): {error}", path.display())]
    NoIoUring {
        /// The path in question.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// Anything else the system says.
    #[error("{}: cannot {action}: {error}", path.display())]
    Os {
        /// The path in question.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        error: io::Error,
    },
}

/// An open and locked file or block device. Clones and queues share it; the lock goes with the last of them.
#[derive(Debug, Clone)]
pub struct FileDevice(Arc<Shared>);

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) file: File,
    pub(super) direct: Option<Direct>,
    pub(super) path: PathBuf,
    /// As it was opened.
    pub(super) opened: Geometry,
    pub(super) size: Size,
    pub(super) features: Features,
    pub(super) sync_latch: SyncLatch,
    /// Every write is a durable one.
    pub(super) write_through: bool,
}

/// Remembers that the kernel has failed to make something durable. It says so once and then counts the lost pages as
/// clean: the next flush would succeed although the data is not on the disk. So none does.
#[derive(Debug, Default)]
pub(super) struct SyncLatch(AtomicI32);

impl SyncLatch {
    /// # Errors
    /// The first failure, as [`BlockError::Io`].
    pub(super) fn check(&self) -> Result<(), BlockError> {
        // Relaxed: it stands for itself, and no other memory is read on the strength of it.
        match self.0.load(Ordering::Relaxed) {
            0 => Ok(()),
            errno => Err(BlockError::Io { errno }),
        }
    }

    /// Something was not made durable.
    pub(super) fn set(&self, errno: i32) {
        // The first failure stays: it is the cause.
        let _ = self.0.compare_exchange(0, errno, Ordering::Relaxed, Ordering::Relaxed);
    }
}

impl Shared {
    pub(super) fn geometry(&self) -> Geometry {
        Geometry { bytes: self.size.get(), ..self.opened }
    }
}

impl FileDevice {
    /// Opens (or creates) and locks what `options` say.
    ///
    /// # Errors
    /// [`FileError`], which names the path.
    pub fn open(options: &FileOptions) -> Result<Self, FileError> {
        let FileOptions { path, block, depth, .. } = options;
        let geometry_error = |error| FileError::Geometry { path: path.clone(), error };
        let wanted = options.create_bytes.unwrap_or((*block).into());
        // Checked first, so that a mistake in the options creates nothing.
        Geometry { bytes: wanted, block: *block, depth: *depth }.checked().map_err(geometry_error)?;
        let file = open(path, options.create_bytes.is_some() && !options.read_only, options.read_only)?;
        let kind = file.metadata().map_err(os(path, "inspect it"))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(FileError::Kind { path: path.clone() });
        }
        lock(&file, path, options)?;
        let mut bytes = behind(&file).map_err(os(path, "find its size"))?;
        if let (0, true, false, Some(wanted)) = (bytes, kind.is_file(), options.read_only, options.create_bytes) {
            create(&file, path, wanted)?;
            bytes = wanted;
        }
        let needed = options.min_bytes.max((*block).into());
        if bytes < needed {
            return Err(FileError::TooSmall { path: path.clone(), bytes, needed });
        }
        let geometry = Geometry { bytes: bytes - bytes % u64::from(*block), block: *block, depth: *depth };
        let geometry = geometry.checked().map_err(geometry_error)?;
        let direct = options.direct.then(|| Direct::open(&file, path, *block, options.read_only)).transpose()?;
        let features = features(&file, &geometry, options.read_only);
        let (path, write_through) = (path.clone(), options.write_through);
        let sync_latch = SyncLatch::default();
        let size = Size::new(geometry.bytes);
        let shared = Shared { file, direct, path, opened: geometry, size, features, sync_latch, write_through };
        Ok(Self(Arc::new(shared)))
    }

    /// What the device is like.
    pub fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    /// Looks how large the image or block device is by now. If it has grown or shrunk, every queue on it hears of it.
    ///
    /// # Errors
    /// [`FileError`] if it cannot be found out, or is no size for a device; the device is then taken to be as before.
    pub fn refresh(&self) -> Result<Geometry, FileError> {
        let Shared { file, path, opened, size, .. } = &*self.0;
        let bytes = behind(file).map_err(os(path, "find its size"))?;
        let block = u64::from(opened.block);
        if bytes < block {
            return Err(FileError::TooSmall { path: path.clone(), bytes, needed: block });
        }
        let geometry = Geometry { bytes: bytes - bytes % block, ..*opened }.checked();
        let geometry = geometry.map_err(|error| FileError::Geometry { path: path.clone(), error })?;
        size.set(geometry.bytes);
        Ok(geometry)
    }

    /// What it can do.
    pub fn features(&self) -> Features {
        self.0.features
    }

    /// A queue on it, which lends buffers of `memory` and translates with it. One per thread.
    ///
    /// # Errors
    /// [`FileError`] if the kernel gives no ring.
    pub fn queue(&self, memory: Memory) -> Result<FileQueue, FileError> {
        FileQueue::new(self.0.clone(), memory)
    }
}

pub(super) fn os(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_path_buf();
    move |error| FileError::Os { path, action, error }
}

fn open(path: &Path, create: bool, read_only: bool) -> Result<File, FileError> {
    OpenOptions::new().read(true).write(!read_only).create(create).truncate(false).open(path).map_err(|error| {
        let path = path.to_path_buf();
        match Errno::from_io_error(&error) {
            Some(Errno::NOENT) => FileError::Missing { path },
            Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => FileError::Permission { path },
            Some(Errno::ISDIR) => FileError::Kind { path },
            _ => FileError::Os { path, action: "open it", error },
        }
    })
}

/// Takes the lock, which belongs to the open file: shared by this process's queues, gone when it is closed.
fn lock(file: &File, path: &Path, options: &FileOptions) -> Result<(), FileError> {
    let wait = options.lock_wait;
    let how = match options.read_only {
        true => FlockOperation::NonBlockingLockShared,
        false => FlockOperation::NonBlockingLockExclusive,
    };
    let start = Instant::now();
    loop {
        match rustix::fs::flock(file, how) {
            Ok(()) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) if start.elapsed() < wait => std::thread::sleep(Duration::from_millis(5)),
            Err(Errno::WOULDBLOCK) => return Err(FileError::Locked { path: path.to_path_buf(), waited: wait }),
            Err(error) => return Err(os(path, "lock it")(error.into())),
        }
    }
}

/// The page cache writes whole pages, and reads first what a write leaves of one.
fn features(file: &File, geometry: &Geometry, read_only: bool) -> Features {
    Features {
        read_only,
        discard: !read_only && can_punch(file, geometry),
        write_zeroes: !read_only,
        volatile_cache: true,
        preferred_block: geometry.block.max(rustix::param::page_size() as u32),
    }
}

/// Whether what is behind the device can give back space: tried behind the end of it, where nothing is. A block device
/// refuses that as such, and is believed to be able to: what it cannot, it says at each discard.
fn can_punch(file: &File, geometry: &Geometry) -> bool {
    let behind = geometry.bytes.next_multiple_of(1 << 20);
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(file, mode, behind, u64::from(geometry.block)) != Err(Errno::OPNOTSUPP)
}

/// The size, also of a block device (whose metadata say 0). Nothing here uses the file's position.
fn behind(mut file: &File) -> io::Result<u64> {
    io::Seek::seek(&mut file, io::SeekFrom::End(0))
}

/// Gives a new image its size, sparse, and makes that durable together with its name.
fn create(file: &File, path: &Path, bytes: u64) -> Result<(), FileError> {
    file.set_len(bytes).map_err(os(path, "give the new image its size"))?;
    file.sync_all().map_err(os(path, "make the new image durable"))?;
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let sync = File::open(parent).and_then(|dir| dir.sync_all());
    sync.map_err(os(path, "make the new image's name durable"))
}
