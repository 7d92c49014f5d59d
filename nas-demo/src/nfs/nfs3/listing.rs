//! READDIR and READDIRPLUS: as many entries as the client's limits have room for, in encoded bytes.

use nfs3_types::nfs3::{
    Nfs3Option, cookieverf3, entry3, entryplus3, filename3, nfs_fh3, nfsstat3, post_op_attr, post_op_fh3,
};
use nfs3_types::xdr_codec::{Opaque, Pack};

use super::attr;
use super::results::ResultsError;
use crate::nfs::handle::{self, HANDLE_BYTES};
use crate::volume::ops::{Attr, DirEntry};

/// The most bytes of one listing, whatever the client would take.
pub const MAX_LISTING_BYTES: u32 = 64 << 10;
/// The encoded length of an entry with the shortest name: its mark, inode number, name and cookie.
pub const MIN_ENTRY_BYTES: u32 = 28;
/// The same with attributes and handle.
pub const MIN_ENTRY_PLUS_BYTES: u32 = MIN_ENTRY_BYTES + ATTR_BYTES as u32 + 8 + HANDLE_BYTES as u32;

/// Attributes and the mark before them.
const ATTR_BYTES: usize = 88;
/// What is there without any entry: the directory's attributes, the cookie verifier, the list's end, `eof`.
const FRAME_BYTES: usize = ATTR_BYTES + 8 + 4 + 4;

/// A volume's answer to `ReadDir`.
#[derive(Debug)]
pub struct Listing<'a> {
    /// The entries.
    pub entries: &'a [DirEntry],
    /// Whether they are the last ones.
    pub eof: bool,
    /// The directory.
    pub dir: &'a Attr,
}

impl Listing<'_> {
    /// Writes the results of READDIR, at most `limit` bytes.
    ///
    /// # Errors
    /// `NFS3ERR_TOOSMALL` if there is no room for a single entry.
    pub fn write(&self, fsid: u64, limit: u32, out: &mut Vec<u8>) -> Result<(), ResultsError> {
        self.write_entries(fsid, limit, out, |entry, _| Some(plain(entry)))
    }

    /// Writes the results of READDIRPLUS, at most `maxcount` bytes, of which entries without attributes and handles
    /// take at most `dircount` (but for the first: a hint must not stop the listing).
    ///
    /// # Errors
    /// `NFS3ERR_TOOSMALL` if there is no room for a single entry.
    pub fn write_plus(&self, fsid: u64, dircount: u32, maxcount: u32, out: &mut Vec<u8>) -> Result<(), ResultsError> {
        let mut names = 0;
        self.write_entries(fsid, maxcount, out, |entry, first| {
            names += 4 + plain(entry).packed_size();
            (first || names <= dircount as usize).then(|| plus(fsid, entry))
        })
    }

    /// Writes what `encode` makes of the entries until it makes none or there is no room.
    fn write_entries<'e, T: Pack>(
        &'e self,
        fsid: u64,
        limit: u32,
        out: &mut Vec<u8>,
        mut encode: impl FnMut(&'e DirEntry, bool) -> Option<T>,
    ) -> Result<(), ResultsError> {
        let mut room = (limit as usize).checked_sub(FRAME_BYTES).ok_or(nfsstat3::NFS3ERR_TOOSMALL)?;
        attr::post_op(fsid, self.dir).pack(out)?;
        cookieverf3::default().pack(out)?;
        let mut written = 0;
        for entry in self.entries {
            let Some(encoded) = encode(entry, written == 0) else {
                break;
            };
            let Some(left) = room.checked_sub(4 + encoded.packed_size()) else {
                break;
            };
            room = left;
            true.pack(out)?;
            encoded.pack(out)?;
            written += 1;
        }
        if written == 0 && !self.entries.is_empty() {
            return Err(nfsstat3::NFS3ERR_TOOSMALL.into());
        }
        false.pack(out)?;
        (self.eof && written == self.entries.len()).pack(out)?;
        Ok(())
    }
}

fn plain(entry: &DirEntry) -> entry3<'_> {
    entry3 { fileid: entry.attr.ino, name: filename3::from(&entry.name[..]), cookie: entry.cookie }
}

fn plus(fsid: u64, entry: &DirEntry) -> entryplus3<'_> {
    entryplus3 {
        fileid: entry.attr.ino,
        name: filename3::from(&entry.name[..]),
        cookie: entry.cookie,
        name_attributes: post_op_attr::Some(attr::fattr(fsid, &entry.attr)),
        name_handle: post_handle(fsid, &entry.attr),
    }
}

/// An inode's handle, as it follows the making or listing of it.
pub fn post_handle(fsid: u64, attr: &Attr) -> post_op_fh3 {
    Nfs3Option::Some(nfs_fh3 { data: Opaque::owned(handle::encode(fsid, attr.ino).to_vec()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::ops::{Kind, Time};
    use nfs3_types::nfs3::{READDIR3resok, READDIRPLUS3resok};
    use nfs3_types::xdr_codec::Unpack;
    use proptest::prelude::*;

    fn attr(ino: u64) -> Attr {
        let time = Time::default();
        let kind = Kind::File;
        Attr { ino, kind, mode: 0, nlink: 1, uid: 0, gid: 0, size: 0, used: 0, atime: time, mtime: time, ctime: time }
    }

    fn entries(names: &[usize]) -> Vec<DirEntry> {
        let entry = |(i, len): (usize, &usize)| {
            let ino = i as u64 + 1;
            DirEntry { name: vec![b'n'; *len], cookie: ino, attr: attr(ino) }
        };
        names.iter().enumerate().map(entry).collect()
    }

    fn too_small(result: Result<(), ResultsError>) -> bool {
        matches!(result, Err(ResultsError::Status(nfsstat3::NFS3ERR_TOOSMALL)))
    }

    #[test]
    fn an_entry_fits_exactly_or_not_at_all() {
        let (entries, dir) = (entries(&[1, 1]), attr(9));
        let listing = Listing { entries: &entries, eof: true, dir: &dir };
        let one = FRAME_BYTES as u32 + MIN_ENTRY_BYTES;
        let count = |limit| {
            let mut out = Vec::new();
            listing.write(1, limit, &mut out).unwrap();
            assert!(out.len() <= limit as usize);
            let (got, _) = READDIR3resok::unpack(&mut &out[..]).unwrap();
            (got.reply.entries.0.len(), got.reply.eof)
        };
        assert_eq!(count(one), (1, false));
        assert_eq!(count(one + MIN_ENTRY_BYTES - 1), (1, false));
        assert_eq!(count(one + MIN_ENTRY_BYTES), (2, true));
        assert!(too_small(listing.write(1, one - 1, &mut Vec::new())));
        assert!(too_small(listing.write_plus(1, 0, FRAME_BYTES as u32 + MIN_ENTRY_PLUS_BYTES - 1, &mut Vec::new())));
        assert!(listing.write_plus(1, 0, FRAME_BYTES as u32 + MIN_ENTRY_PLUS_BYTES, &mut Vec::new()).is_ok());
    }

    #[test]
    fn an_empty_rest_is_no_error() {
        let dir = attr(9);
        let mut out = Vec::new();
        Listing { entries: &[], eof: true, dir: &dir }.write(1, FRAME_BYTES as u32, &mut out).unwrap();
        assert_eq!(out.len(), FRAME_BYTES);
    }

    proptest! {
        #[test]
        fn limits_hold_in_encoded_bytes(
            names in prop::collection::vec(1usize..256, 1..40), dircount in 0u32..4000, maxcount in 0u32..9000,
        ) {
            let (entries, dir) = (entries(&names), attr(9));
            let listing = Listing { entries: &entries, eof: true, dir: &dir };
            let mut out = Vec::new();
            if listing.write_plus(1, dircount, maxcount, &mut out).is_ok() {
                prop_assert!(out.len() <= maxcount as usize);
                let (got, used) = READDIRPLUS3resok::unpack(&mut &out[..]).unwrap();
                prop_assert_eq!(used, out.len());
                let got_entries = got.reply.entries.0;
                let by_names: usize = got_entries.iter().map(|entry| 24 + entry.name.len().next_multiple_of(4)).sum();
                prop_assert!(got_entries.len() == 1 || by_names <= dircount as usize);
                prop_assert_eq!(got.reply.eof, got_entries.len() == entries.len());
            }
        }
    }
}
