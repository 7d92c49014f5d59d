//! What of an image is allocated, by `lseek` with `SEEK_DATA` and `SEEK_HOLE`.
//!
//! io_uring has no such operation, so these calls are made on the queue's thread: two per extent, of at most
//! [`MAX_EXTENTS`]. The kernel answers from the file system's extent tree, which may have to be read from the disk first.

use std::fs::File;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::extents::{Extent, MAX_EXTENTS};
use crate::queue::BlockError;

/// The extents from `offset` on, which with `len` lies within the file and is aligned to `block`; so are they: what is
/// allocated in part counts as allocated.
///
/// # Errors
/// [`BlockError::Unsupported`] for what cannot say, such as a block device; [`BlockError::Io`].
pub(super) fn extents(file: &File, offset: u64, len: u64, block: u32) -> Result<Vec<Extent>, BlockError> {
    let (block, end) = (u64::from(block), offset + len);
    let mut list: Vec<Extent> = Vec::new();
    let mut at = offset;
    while at < end && list.len() < MAX_EXTENTS {
        let data = next(file, SeekFrom::Data(at))?.map_or(end, |data| data - data % block).clamp(at, end);
        if data > at {
            list.push(Extent { len: data - at, hole: true });
            at = data;
            continue;
        }
        let hole = next(file, SeekFrom::Hole(at))?.unwrap_or(end);
        // A hole that begins within a block begins for us behind it.
        let hole = hole.next_multiple_of(block).clamp(at + block, end);
        match list.last_mut() {
            Some(last) if !last.hole => last.len += hole - at,
            _ => list.push(Extent { len: hole - at, hole: false }),
        }
        at = hole;
    }
    Ok(list)
}

/// The next place of that kind; `None` if there is none before the file's end.
fn next(file: &File, from: SeekFrom) -> Result<Option<u64>, BlockError> {
    match rustix::fs::seek(file, from) {
        Ok(place) => Ok(Some(place)),
        Err(Errno::NXIO) => Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Err(BlockError::Unsupported),
        Err(errno) => Err(BlockError::Io { errno: errno.raw_os_error() }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn holes_are_found_and_cut_to_blocks() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let all = |offset, len, block| {
            let list = extents(&file, offset, len, block).unwrap();
            list.iter().map(|extent| (extent.len, extent.hole)).collect::<Vec<_>>()
        };
        assert_eq!(all(0, 1 << 20, 4096), [(1 << 20, true)]);
        file.write_all_at(&[1; 4096], 256 << 10).unwrap();
        let (before, after) = (256 << 10, (768 << 10) - 4096);
        assert_eq!(all(0, 1 << 20, 4096), [(before, true), (4096, false), (after, true)]);
        assert_eq!(all(0, 256 << 10, 4096), [(before, true)]);
        assert_eq!(all(256 << 10, 512, 512), [(512, false)]);
        assert_eq!(all((256 << 10) + 4096, 4096, 4096), [(4096, true)]);
        assert_eq!(all(0, 1 << 20, 65536), [(before, true), (65536, false), (after - 65536 + 4096, true)]);
        let last = (1 << 20) - 4096;
        file.write_all_at(&[1; 4096], last).unwrap();
        assert_eq!(all(last, 4096, 4096), [(4096, false)]);
    }

    #[test]
    fn a_list_ends_at_the_limit() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(16 << 20).unwrap();
        for at in 0..1000u64 {
            file.write_all_at(&[1], at * 16384).unwrap();
        }
        assert_eq!(extents(&file, 0, 16 << 20, 4096).unwrap().len(), MAX_EXTENTS);
    }
}
