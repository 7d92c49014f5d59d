//! Attributes, permissions and errors, from the volume's words to the protocol's.

use nfs3_types::nfs3::{
    ACCESS3_DELETE, ACCESS3_EXECUTE, ACCESS3_EXTEND, ACCESS3_LOOKUP, ACCESS3_MODIFY, ACCESS3_READ, Nfs3Option, fattr3,
    ftype3, nfsstat3, nfstime3, post_op_attr, specdata3, wcc_attr, wcc_data,
};

use crate::volume::ops::{Attr, Before, Caller, Change, Kind, Time, VolumeError};

/// Attributes as they travel.
pub fn fattr(fsid: u64, attr: &Attr) -> fattr3 {
    fattr3 {
        type_: match attr.kind {
            Kind::File => ftype3::NF3REG,
            Kind::Directory => ftype3::NF3DIR,
            Kind::Symlink => ftype3::NF3LNK,
        },
        mode: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        size: attr.size,
        used: attr.used,
        rdev: specdata3::default(),
        fsid,
        fileid: attr.ino,
        atime: time(attr.atime),
        mtime: time(attr.mtime),
        ctime: time(attr.ctime),
    }
}

/// Attributes that are known.
pub fn post_op(fsid: u64, attr: &Attr) -> post_op_attr {
    Nfs3Option::Some(fattr(fsid, attr))
}

/// What was known before and after an operation.
pub fn wcc(fsid: u64, change: &Change) -> wcc_data {
    wcc_data {
        before: change.before.as_ref().map_or(Nfs3Option::None, |before| Nfs3Option::Some(wcc_before(before))),
        after: change.after.as_ref().map_or(Nfs3Option::None, |after| post_op(fsid, after)),
    }
}

fn wcc_before(before: &Before) -> wcc_attr {
    wcc_attr { size: before.size, mtime: time(before.mtime), ctime: time(before.ctime) }
}

fn time(time: Time) -> nfstime3 {
    nfstime3 { seconds: time.seconds, nseconds: time.nanos }
}

/// The status for a volume's error.
pub fn status(error: VolumeError) -> nfsstat3 {
    match error {
        VolumeError::NotPermitted => nfsstat3::NFS3ERR_PERM,
        VolumeError::NotFound => nfsstat3::NFS3ERR_NOENT,
        VolumeError::Io => nfsstat3::NFS3ERR_IO,
        VolumeError::Access => nfsstat3::NFS3ERR_ACCES,
        VolumeError::Exists => nfsstat3::NFS3ERR_EXIST,
        VolumeError::NotDirectory => nfsstat3::NFS3ERR_NOTDIR,
        VolumeError::IsDirectory => nfsstat3::NFS3ERR_ISDIR,
        VolumeError::Invalid => nfsstat3::NFS3ERR_INVAL,
        VolumeError::TooBig => nfsstat3::NFS3ERR_FBIG,
        VolumeError::NoSpace => nfsstat3::NFS3ERR_NOSPC,
        VolumeError::TooManyLinks => nfsstat3::NFS3ERR_MLINK,
        VolumeError::NameTooLong => nfsstat3::NFS3ERR_NAMETOOLONG,
        VolumeError::NotEmpty => nfsstat3::NFS3ERR_NOTEMPTY,
        VolumeError::Stale => nfsstat3::NFS3ERR_STALE,
        VolumeError::NotSync => nfsstat3::NFS3ERR_NOT_SYNC,
        VolumeError::Busy => nfsstat3::NFS3ERR_JUKEBOX,
    }
}

/// Which of the `wanted` bits of `ACCESS3_*` the permission bits grant. The superuser may all but execute a file that
/// nobody may execute.
pub fn access(attr: &Attr, caller: &Caller, wanted: u32) -> u32 {
    let directory = attr.kind == Kind::Directory;
    let bits = if caller.uid == 0 {
        let execute = directory || attr.mode & 0o111 != 0;
        0o6 | u32::from(execute)
    } else if caller.uid == attr.uid {
        attr.mode >> 6
    } else if caller.gid == attr.gid || caller.groups.contains(&attr.gid) {
        attr.mode >> 3
    } else {
        attr.mode
    };
    let mut granted = 0;
    if bits & 0o4 != 0 {
        granted |= ACCESS3_READ;
    }
    if bits & 0o2 != 0 {
        granted |= ACCESS3_MODIFY | ACCESS3_EXTEND;
        granted |= if directory { ACCESS3_DELETE } else { 0 };
    }
    if bits & 0o1 != 0 {
        granted |= if directory { ACCESS3_LOOKUP } else { ACCESS3_EXECUTE };
    }
    granted & wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u32 = 0x3f;

    fn attr(kind: Kind, mode: u32) -> Attr {
        let time = Time::default();
        let (uid, gid) = (10, 20);
        Attr { ino: 2, kind, mode, nlink: 1, uid, gid, size: 0, used: 0, atime: time, mtime: time, ctime: time }
    }

    fn caller(uid: u32, gid: u32, groups: &[u32]) -> Caller {
        Caller { uid, gid, groups: groups.to_vec() }
    }

    #[test]
    fn the_first_class_that_fits_decides() {
        let file = attr(Kind::File, 0o741);
        let all_of_file = ACCESS3_READ | ACCESS3_MODIFY | ACCESS3_EXTEND | ACCESS3_EXECUTE;
        assert_eq!(access(&file, &caller(10, 9, &[]), ALL), all_of_file);
        assert_eq!(access(&file, &caller(9, 20, &[]), ALL), ACCESS3_READ);
        assert_eq!(access(&file, &caller(9, 9, &[1, 20]), ALL), ACCESS3_READ);
        assert_eq!(access(&file, &caller(9, 9, &[]), ALL), ACCESS3_EXECUTE);
        assert_eq!(access(&attr(Kind::File, 0o077), &caller(10, 20, &[]), ALL), 0);
    }

    #[test]
    fn the_superuser_executes_only_what_somebody_may() {
        let root = caller(0, 0, &[]);
        assert_eq!(access(&attr(Kind::File, 0), &root, ALL), ACCESS3_READ | ACCESS3_MODIFY | ACCESS3_EXTEND);
        assert_eq!(access(&attr(Kind::File, 0o010), &root, ACCESS3_EXECUTE), ACCESS3_EXECUTE);
        let all_of_dir = ACCESS3_READ | ACCESS3_MODIFY | ACCESS3_EXTEND | ACCESS3_DELETE | ACCESS3_LOOKUP;
        assert_eq!(access(&attr(Kind::Directory, 0), &root, ALL), all_of_dir);
    }

    #[test]
    fn only_what_was_asked_for_is_granted() {
        assert_eq!(access(&attr(Kind::File, 0o777), &caller(1, 1, &[]), ACCESS3_READ | !ALL), ACCESS3_READ);
    }
}
