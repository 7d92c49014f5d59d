//! The file device: an image file or a block device, through io_uring and the page cache.
//!
//! * A write goes to the kernel straight from the windows its payload points into: no copy in user space.
//! * A read goes from the kernel into a buffer of the own arena, which is then lent.
//! * A flush is `fdatasync`, a durable write is a write with `RWF_DSYNC`, a discard punches a hole.
//! * Write-zeroes punches a hole if the space may be given back, or else zeroes the range where it is (`fallocate`);
//!   where the file system cannot, zeros are written. If it must be durable, `fdatasync` follows.
//!
//! A write that has completed is in the page cache: it survives the death of this process, and with a flush the death
//! of the machine. See `docs/adr/0005-buffered-file-io.md` for why that is the default.
//!
//! With [`FileOptions::direct`], what is aligned goes past the page cache (`O_DIRECT`), between the device and the very
//! memory that payload lies in, in windows too; all else goes as before. Completed writes are then the disk's: they
//! survive this process too. See `docs/adr/0028-direct-file-io.md`.
//!
//! The device is locked (`flock`) as long as it or a queue on it exists, so that two appliances cannot write one image.

mod direct;
mod holes;
mod open;
mod queue;
mod request;
mod zeroes;

pub use direct::WaysTaken;
pub use open::{FileDevice, FileError, FileOptions};
pub use queue::FileQueue;

#[cfg(test)]
mod direct_tests;
#[cfg(test)]
mod tests;
