//! Permission checks by mode bits. User 0 passes everywhere.

use super::ops::{Attr, Caller, VolumeError};

/// May list or read.
pub const READ: u32 = 4;
/// May change.
pub const WRITE: u32 = 2;
/// May search or execute.
pub const EXEC: u32 = 1;

/// The permission bit that guards the entries of a shared directory.
const STICKY: u32 = 0o1000;

impl Caller {
    /// Whether the caller is in `gid`.
    pub fn is_in(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }

    /// Whether the caller is `uid` or the superuser.
    pub fn is_owner(&self, uid: u32) -> bool {
        self.uid == 0 || self.uid == uid
    }
}

/// Whether the bits give the caller all of `wanted`.
///
/// # Errors
/// [`VolumeError::Access`].
pub fn check(attr: &Attr, caller: &Caller, wanted: u32) -> Result<(), VolumeError> {
    let bits = if caller.uid == attr.uid {
        attr.mode >> 6
    } else if caller.is_in(attr.gid) {
        attr.mode >> 3
    } else {
        attr.mode
    };
    if caller.uid == 0 || bits & wanted == wanted { Ok(()) } else { Err(VolumeError::Access) }
}

/// As [`check`], but the owner may always: NFS checks at each read and write what POSIX checks when a file is opened.
///
/// # Errors
/// [`VolumeError::Access`].
pub fn check_open(attr: &Attr, caller: &Caller, wanted: u32) -> Result<(), VolumeError> {
    if caller.is_owner(attr.uid) { Ok(()) } else { check(attr, caller, wanted) }
}

/// Whether the caller may read: who may execute may also read, for a client that runs a program has to fetch it.
///
/// # Errors
/// [`VolumeError::Access`].
pub fn check_read(attr: &Attr, caller: &Caller) -> Result<(), VolumeError> {
    check_open(attr, caller, READ).or_else(|_| check(attr, caller, EXEC))
}

/// Whether the caller may take `entry` out of `dir` (in a sticky directory only the owner of either may).
///
/// # Errors
/// [`VolumeError::Access`] or [`VolumeError::NotPermitted`].
pub fn check_unlink(dir: &Attr, entry: &Attr, caller: &Caller) -> Result<(), VolumeError> {
    check(dir, caller, WRITE | EXEC)?;
    if dir.mode & STICKY != 0 && !caller.is_owner(dir.uid) && !caller.is_owner(entry.uid) {
        return Err(VolumeError::NotPermitted);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::ops::{Kind, Time};
    use crate::volume::record::Record;

    fn attr(mode: u32) -> Attr {
        Record::new(Kind::File, mode, 10, 20, Time::default()).attr(5)
    }

    fn caller(uid: u32, gid: u32, groups: &[u32]) -> Caller {
        Caller { uid, gid, groups: groups.to_vec() }
    }

    #[test]
    fn the_first_matching_class_decides() {
        let file = attr(0o047);
        assert!(check(&file, &caller(10, 20, &[]), READ).is_err());
        assert!(check(&file, &caller(11, 20, &[]), READ).is_ok());
        assert!(check(&file, &caller(11, 3, &[20]), WRITE).is_err());
        assert!(check(&file, &caller(11, 3, &[]), READ | WRITE | EXEC).is_ok());
        assert!(check(&file, &caller(0, 0, &[]), READ).is_ok());
    }

    #[test]
    fn the_owner_goes_on_with_an_open_file() {
        assert!(check_open(&attr(0), &caller(10, 1, &[]), WRITE).is_ok());
        assert!(check_open(&attr(0), &caller(11, 1, &[]), WRITE).is_err());
        assert!(check_read(&attr(0o001), &caller(11, 1, &[])).is_ok());
    }

    #[test]
    fn sticky_directories_keep_foreign_entries() {
        let (dir, entry) = (attr(0o1777), Record::new(Kind::File, 0o666, 30, 30, Time::default()).attr(6));
        assert!(check_unlink(&dir, &entry, &caller(30, 1, &[])).is_ok());
        assert!(check_unlink(&dir, &entry, &caller(10, 1, &[])).is_ok());
        assert_eq!(check_unlink(&dir, &entry, &caller(40, 1, &[])), Err(VolumeError::NotPermitted));
    }
}
