//! NFSv3 (RFC 1813) between the wire and the volume: a call becomes a [`Plan`], a volume's answer becomes a reply.
//!
//! No state and no memory of its own: [`args::plan`] reads a bounded copy of a call's head and says what to ask the
//! volume, [`results::write`] writes the results for what was answered. The data of READ and WRITE goes past here as
//! [`fido_core::payload::Payload`].

pub mod args;
pub mod attr;
pub mod listing;
pub mod results;

use nfs3_types::nfs3::{NFS_PROGRAM, nfsstat3};

use super::handle::HandleError;
use super::xdr::Malformed;
use crate::volume::ops::{Caller, Ino, VolumeOp};

/// What becomes of a call.
#[derive(Debug)]
pub enum Plan {
    /// NULL: nothing is done, nothing is answered but success.
    Nothing,
    /// The volume need not be asked: the call fails with this status.
    Fail(nfsstat3),
    /// The volume is asked; its answer gets this shape.
    Ask(VolumeOp, Shape),
}

/// What the results of a call look like, and what of the call is needed to write them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shape {
    /// GETATTR.
    GetAttr,
    /// SETATTR.
    SetAttr,
    /// LOOKUP.
    Lookup,
    /// ACCESS: for whom, and which bits were asked for.
    Access {
        /// Who asks.
        caller: Caller,
        /// The bits of `ACCESS3_*`.
        wanted: u32,
    },
    /// READLINK.
    ReadLink,
    /// READ of at most so many bytes.
    Read {
        /// The limit.
        count: u32,
    },
    /// WRITE.
    Write,
    /// CREATE, MKDIR, SYMLINK and MKNOD.
    Create,
    /// REMOVE and RMDIR.
    Remove,
    /// RENAME.
    Rename,
    /// LINK.
    Link,
    /// READDIR.
    ReadDir {
        /// The most bytes of results.
        count: u32,
    },
    /// READDIRPLUS.
    ReadDirPlus {
        /// The most bytes of names, cookies and inode numbers.
        dircount: u32,
        /// The most bytes of results.
        maxcount: u32,
    },
    /// FSSTAT of the file system that an inode is in.
    FsStat(Ino),
    /// FSINFO.
    FsInfo,
    /// PATHCONF.
    PathConf,
    /// COMMIT.
    Commit,
}

/// Why arguments do not make a [`Plan`] that asks the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArgsError {
    /// They cannot be decoded: GARBAGE_ARGS.
    Garbage(Malformed),
    /// They can, but make no sense: the call's results are this status.
    Status(nfsstat3),
}

impl From<Malformed> for ArgsError {
    fn from(error: Malformed) -> Self {
        Self::Garbage(error)
    }
}

impl From<nfsstat3> for ArgsError {
    fn from(status: nfsstat3) -> Self {
        Self::Status(status)
    }
}

impl From<HandleError> for ArgsError {
    fn from(error: HandleError) -> Self {
        Self::Status(match error {
            HandleError::Bad => nfsstat3::NFS3ERR_BADHANDLE,
            HandleError::Stale => nfsstat3::NFS3ERR_STALE,
        })
    }
}

/// How many optional attributes (each one word that says "none") follow the status when a procedure fails.
pub fn absent_attributes(procedure: NFS_PROGRAM) -> usize {
    use NFS_PROGRAM as P;
    match procedure {
        P::NFSPROC3_NULL | P::NFSPROC3_GETATTR => 0,
        P::NFSPROC3_LOOKUP
        | P::NFSPROC3_ACCESS
        | P::NFSPROC3_READLINK
        | P::NFSPROC3_READ
        | P::NFSPROC3_READDIR
        | P::NFSPROC3_READDIRPLUS
        | P::NFSPROC3_FSSTAT
        | P::NFSPROC3_FSINFO
        | P::NFSPROC3_PATHCONF => 1,
        P::NFSPROC3_SETATTR
        | P::NFSPROC3_WRITE
        | P::NFSPROC3_CREATE
        | P::NFSPROC3_MKDIR
        | P::NFSPROC3_SYMLINK
        | P::NFSPROC3_MKNOD
        | P::NFSPROC3_REMOVE
        | P::NFSPROC3_RMDIR
        | P::NFSPROC3_COMMIT => 2,
        P::NFSPROC3_LINK => 3,
        P::NFSPROC3_RENAME => 4,
    }
}

/// Whether carrying a procedure out twice may differ from once, so that its reply is remembered.
pub fn must_not_repeat(procedure: NFS_PROGRAM) -> bool {
    use NFS_PROGRAM as P;
    matches!(
        procedure,
        P::NFSPROC3_SETATTR
            | P::NFSPROC3_CREATE
            | P::NFSPROC3_MKDIR
            | P::NFSPROC3_SYMLINK
            | P::NFSPROC3_REMOVE
            | P::NFSPROC3_RMDIR
            | P::NFSPROC3_RENAME
            | P::NFSPROC3_LINK
    )
}
