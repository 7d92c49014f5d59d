//! The stored record of an inode: fixed length, little endian, checked when it is read.

use super::ops::{Attr, Before, Ino, Kind, MAX_FILE_BYTES, Time};
use super::superblock::BLOCK_BYTES;

/// Length of an encoded record.
pub const RECORD_BYTES: usize = 96;
/// The first cookie of a directory's own entries; `.` and `..` come before it.
pub const FIRST_COOKIE: u64 = 3;
/// What an entry counts for in the size of a directory.
const ENTRY_BYTES: u64 = 32;

/// An inode as the store keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Number of names (for a directory: 2 and one for each subdirectory).
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length in bytes of a file or a target; for a directory, the number of entries.
    pub size: u64,
    /// Blocks of file data.
    pub blocks: u64,
    /// Last read.
    pub atime: Time,
    /// Last change of content.
    pub mtime: Time,
    /// Last change of attributes.
    pub ctime: Time,
    /// For a directory, its parent; for a file, the verifier it was created with.
    pub tag: u64,
    /// For a directory, the next entry's cookie.
    pub next_cookie: u64,
    /// How far the journal of unstable writes is included.
    pub journal: Mark,
}

/// A place in the journal of unstable writes, see [`super::journal`]. Later ones are greater, over all mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Mark {
    /// The mount that wrote the journal: how often the volume had been opened, that time included.
    pub boots: u64,
    /// The journal's record.
    pub sequence: u64,
}

impl Record {
    /// A new inode without content, a name to come.
    pub fn new(kind: Kind, mode: u32, uid: u32, gid: u32, now: Time) -> Self {
        Self {
            kind,
            mode: mode & 0o7777,
            nlink: 1,
            uid,
            gid,
            size: 0,
            blocks: 0,
            atime: now,
            mtime: now,
            ctime: now,
            tag: 0,
            next_cookie: FIRST_COOKIE,
            journal: Mark::default(),
        }
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind == Kind::Directory
    }

    /// The attributes, as NFS wants them.
    pub fn attr(&self, ino: Ino) -> Attr {
        let size = if self.is_dir() { self.size.saturating_mul(ENTRY_BYTES) } else { self.size };
        Attr {
            ino,
            kind: self.kind,
            mode: self.mode,
            nlink: self.nlink,
            uid: self.uid,
            gid: self.gid,
            size,
            used: self.blocks.saturating_mul(BLOCK_BYTES),
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
        }
    }

    /// Notes a change of content at `now`.
    pub fn touch(&mut self, now: Time) {
        self.mtime = now;
        self.ctime = now;
    }

    /// The stored bytes.
    pub fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut out = [0; RECORD_BYTES];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            out[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        let kind: u32 = match self.kind {
            Kind::File => 1,
            Kind::Directory => 2,
            Kind::Symlink => 3,
        };
        for field in [kind, self.mode, self.nlink, self.uid, self.gid] {
            put(&field.to_le_bytes());
        }
        for time in [self.atime, self.mtime, self.ctime] {
            put(&time.seconds.to_le_bytes());
            put(&time.nanos.to_le_bytes());
        }
        for field in [self.size, self.blocks, self.tag, self.next_cookie, self.journal.boots, self.journal.sequence] {
            put(&field.to_le_bytes());
        }
        out
    }

    /// Reads stored bytes; `None` if they make no sense.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != RECORD_BYTES {
            return None;
        }
        let narrow = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
        let wide = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
        let time = |at: usize| {
            let time = Time { seconds: narrow(at)?, nanos: narrow(at + 4)? };
            (time.nanos < 1_000_000_000).then_some(time)
        };
        let kind = match narrow(0)? {
            1 => Kind::File,
            2 => Kind::Directory,
            3 => Kind::Symlink,
            _ => return None,
        };
        let record = Self {
            kind,
            mode: narrow(4)?,
            nlink: narrow(8)?,
            uid: narrow(12)?,
            gid: narrow(16)?,
            atime: time(20)?,
            mtime: time(28)?,
            ctime: time(36)?,
            size: wide(44)?,
            blocks: wide(52)?,
            tag: wide(60)?,
            next_cookie: wide(68)?,
            journal: Mark { boots: wide(76)?, sequence: wide(84)? },
        };
        let sane = record.mode <= 0o7777
            && record.nlink > 0
            && record.size <= MAX_FILE_BYTES
            && record.blocks <= MAX_FILE_BYTES / BLOCK_BYTES
            && record.next_cookie >= FIRST_COOKIE;
        sane.then_some(record)
    }
}

/// What `wcc_data` wants to know of an inode before an operation.
pub fn before(attr: &Attr) -> Before {
    Before { size: attr.size, mtime: attr.mtime, ctime: attr.ctime }
}

/// The time now.
pub fn now() -> Time {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Time { seconds: since.as_secs() as u32, nanos: since.subsec_nanos() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_record_survives(mode in 0u32..0o10000, nlink in 1u32.., size in 0..=MAX_FILE_BYTES, tag: u64, nanos in 0u32..1_000_000_000) {
            let mut record = Record::new(Kind::Directory, mode, 1, 2, Time { seconds: 3, nanos });
            (record.nlink, record.size, record.tag) = (nlink, size, tag);
            prop_assert_eq!(Record::decode(&record.encode()), Some(record));
        }

        #[test]
        fn any_bytes_are_a_record_or_none(bytes in prop::collection::vec(any::<u8>(), RECORD_BYTES)) {
            if let Some(record) = Record::decode(&bytes) {
                prop_assert!(record.mtime.nanos < 1_000_000_000 && record.size <= MAX_FILE_BYTES);
            }
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let good = Record::new(Kind::File, 0o644, 0, 0, Time::default());
        assert!(Record::decode(&good.encode()[1..]).is_none());
        for (at, value) in [(0, 9u8), (6, 1), (8, 0), (49, 0x80), (75, 0)] {
            let mut bytes = good.encode();
            bytes[at] = value;
            let same = Record::decode(&bytes) == Some(good);
            assert!(same || Record::decode(&bytes).is_none(), "byte {at}");
        }
    }
}
