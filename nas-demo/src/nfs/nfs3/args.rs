//! Reading the arguments of NFSv3 calls.
//!
//! Everything is checked before the volume is asked: handles, names, sizes and times.

use fido_core::payload::Payload;
use nfs3_types::nfs3::{NFS_PROGRAM, NFS3_FHSIZE, nfsstat3};

use super::listing::{MAX_LISTING_BYTES, MIN_ENTRY_BYTES, MIN_ENTRY_PLUS_BYTES};
use super::{ArgsError, Plan, Shape};
use crate::nfs::handle;
use crate::nfs::xdr::{Cursor, Malformed};
use crate::volume::ops::{
    Caller, CreateMode, Ino, MAX_FILE_BYTES, MAX_IO_BYTES, MAX_NAME_BYTES, MAX_SYMLINK_BYTES, SetAttr, SetTime,
    Stability, Time, VolumeOp,
};

/// The most entries that the volume is asked for at once.
const MAX_ENTRIES: u32 = 1024;
const MODE_BITS: u32 = 0o7777;

/// A call's arguments and what is needed to understand them.
#[derive(Debug)]
pub struct Args<'a> {
    /// Stands at the first argument, in a copy of the record's head.
    pub cursor: Cursor<'a>,
    /// The record, for the data of WRITE.
    pub record: &'a Payload,
    /// Who calls.
    pub caller: Caller,
    /// The volume that handles must be of.
    pub fsid: u64,
}

type Planned = Result<Plan, ArgsError>;

/// What a call wants of the volume.
///
/// # Errors
/// [`Malformed`] if the arguments cannot be decoded.
pub fn plan(procedure: NFS_PROGRAM, args: Args<'_>) -> Result<Plan, Malformed> {
    match args.plan(procedure) {
        Ok(plan) => Ok(plan),
        Err(ArgsError::Status(status)) => Ok(Plan::Fail(status)),
        Err(ArgsError::Garbage(error)) => Err(error),
    }
}

fn ask(op: VolumeOp, shape: Shape) -> Planned {
    Ok(Plan::Ask(op, shape))
}

impl Args<'_> {
    fn plan(mut self, procedure: NFS_PROGRAM) -> Planned {
        use NFS_PROGRAM as P;
        match procedure {
            P::NFSPROC3_NULL => Ok(Plan::Nothing),
            P::NFSPROC3_GETATTR => ask(VolumeOp::GetAttr { ino: self.handle()? }, Shape::GetAttr),
            P::NFSPROC3_SETATTR => self.set_attr(),
            P::NFSPROC3_LOOKUP => self.lookup(),
            P::NFSPROC3_ACCESS => self.access(),
            P::NFSPROC3_READLINK => ask(VolumeOp::ReadLink { ino: self.handle()? }, Shape::ReadLink),
            P::NFSPROC3_READ => self.read(),
            P::NFSPROC3_WRITE => self.write(),
            P::NFSPROC3_CREATE => self.create(),
            P::NFSPROC3_MKDIR => self.make_dir(),
            P::NFSPROC3_SYMLINK => self.symlink(),
            P::NFSPROC3_MKNOD => self.make_node(),
            P::NFSPROC3_REMOVE => self.remove(),
            P::NFSPROC3_RMDIR => self.remove_dir(),
            P::NFSPROC3_RENAME => self.rename(),
            P::NFSPROC3_LINK => self.link(),
            P::NFSPROC3_READDIR => self.read_dir(),
            P::NFSPROC3_READDIRPLUS => self.read_dir_plus(),
            P::NFSPROC3_FSSTAT => {
                let ino = self.handle()?;
                ask(VolumeOp::Stat, Shape::FsStat(ino))
            }
            P::NFSPROC3_FSINFO => ask(VolumeOp::GetAttr { ino: self.handle()? }, Shape::FsInfo),
            P::NFSPROC3_PATHCONF => ask(VolumeOp::GetAttr { ino: self.handle()? }, Shape::PathConf),
            P::NFSPROC3_COMMIT => self.commit(),
        }
    }

    fn handle(&mut self) -> Result<Ino, ArgsError> {
        Ok(handle::decode(self.fsid, self.cursor.opaque(NFS3_FHSIZE)?)?)
    }

    /// A directory and a name to look up in it. The name is read before the handle is judged, so that garbage is
    /// recognised as such.
    fn dir_and_name(&mut self) -> Result<(Ino, Vec<u8>), ArgsError> {
        let dir = self.cursor.opaque(NFS3_FHSIZE)?;
        let name = self.cursor.opaque(usize::MAX)?;
        let dir = handle::decode(self.fsid, dir)?;
        check_name(name)?;
        Ok((dir, name.to_vec()))
    }

    /// As [`Args::dir_and_name`], for a name that is to be made.
    fn dir_and_new_name(&mut self) -> Result<(Ino, Vec<u8>), ArgsError> {
        let (dir, name) = self.dir_and_name()?;
        if is_dot(&name) { Err(nfsstat3::NFS3ERR_EXIST.into()) } else { Ok((dir, name)) }
    }

    fn set_attr(mut self) -> Planned {
        let object = self.cursor.opaque(NFS3_FHSIZE)?;
        let set = read_set_attr(&mut self.cursor)?;
        let guard = if self.cursor.bool()? { Some(read_time(&mut self.cursor)?) } else { None };
        let ino = handle::decode(self.fsid, object)?;
        ask(VolumeOp::SetAttr { ino, set: set.checked()?, guard, caller: self.caller }, Shape::SetAttr)
    }

    fn lookup(mut self) -> Planned {
        let (dir, name) = self.dir_and_name()?;
        ask(VolumeOp::Lookup { dir, name, caller: self.caller }, Shape::Lookup)
    }

    fn access(mut self) -> Planned {
        let object = self.cursor.opaque(NFS3_FHSIZE)?;
        let wanted = self.cursor.u32()?;
        let ino = handle::decode(self.fsid, object)?;
        ask(VolumeOp::GetAttr { ino }, Shape::Access { caller: self.caller, wanted })
    }

    fn read(mut self) -> Planned {
        let file = self.cursor.opaque(NFS3_FHSIZE)?;
        let (offset, count) = (self.cursor.u64()?, self.cursor.u32()?.min(MAX_IO_BYTES));
        let ino = handle::decode(self.fsid, file)?;
        offset.checked_add(u64::from(count)).ok_or(nfsstat3::NFS3ERR_INVAL)?;
        ask(VolumeOp::Read { ino, offset, count, caller: self.caller }, Shape::Read { count })
    }

    /// The data is what the record holds behind the head, by address. `count` says how much of it is meant: more than
    /// there is makes no sense, less is taken at its word, and beyond [`MAX_IO_BYTES`] the write is a short one.
    fn write(mut self) -> Planned {
        let file = self.cursor.opaque(NFS3_FHSIZE)?;
        let (offset, count) = (self.cursor.u64()?, self.cursor.u32()?);
        let at = self.cursor.position();
        let stability = match self.cursor.u32()? {
            0 => Stability::Unstable,
            1 => Stability::DataSync,
            2 => Stability::FileSync,
            _ => return Err(Malformed { at }.into()),
        };
        let len = self.cursor.u32()?;
        let at = self.cursor.position();
        let mut data = self.record.slice(at as u64, u64::from(len)).ok_or(Malformed { at })?;
        let ino = handle::decode(self.fsid, file)?;
        if count > len {
            return Err(nfsstat3::NFS3ERR_INVAL.into());
        }
        let count = count.min(MAX_IO_BYTES);
        if offset.checked_add(u64::from(count)).is_none_or(|end| end > MAX_FILE_BYTES) {
            return Err(nfsstat3::NFS3ERR_FBIG.into());
        }
        let data = data.split_to(u64::from(count));
        ask(VolumeOp::Write { ino, offset, data, stability, caller: self.caller }, Shape::Write)
    }

    fn create(mut self) -> Planned {
        let (dir, name) = self.dir_and_new_name()?;
        let at = self.cursor.position();
        let mode = match self.cursor.u32()? {
            0 => CreateMode::Unchecked(read_set_attr(&mut self.cursor)?.checked()?),
            1 => CreateMode::Guarded(read_set_attr(&mut self.cursor)?.checked()?),
            2 => CreateMode::Exclusive(self.cursor.array()?),
            _ => return Err(Malformed { at }.into()),
        };
        ask(VolumeOp::Create { dir, name, mode, caller: self.caller }, Shape::Create)
    }

    fn make_dir(mut self) -> Planned {
        let (dir, name) = self.dir_and_new_name()?;
        let set = SetAttr { size: None, ..read_set_attr(&mut self.cursor)?.checked()? };
        ask(VolumeOp::MakeDir { dir, name, set, caller: self.caller }, Shape::Create)
    }

    fn symlink(mut self) -> Planned {
        let (dir, name) = self.dir_and_new_name()?;
        let set = SetAttr { size: None, ..read_set_attr(&mut self.cursor)?.checked()? };
        let target = self.cursor.opaque(usize::MAX)?;
        if target.len() > MAX_SYMLINK_BYTES {
            return Err(nfsstat3::NFS3ERR_NAMETOOLONG.into());
        }
        if target.is_empty() || target.contains(&0) {
            return Err(nfsstat3::NFS3ERR_INVAL.into());
        }
        let target = target.to_vec();
        ask(VolumeOp::Symlink { dir, name, target, set, caller: self.caller }, Shape::Create)
    }

    /// Devices, sockets and pipes are not served; what is no kind of node at all is a wrong type.
    fn make_node(mut self) -> Planned {
        self.dir_and_new_name()?;
        Err(match self.cursor.u32()? {
            3 | 4 | 6 | 7 => nfsstat3::NFS3ERR_NOTSUPP,
            _ => nfsstat3::NFS3ERR_BADTYPE,
        }
        .into())
    }

    fn remove(mut self) -> Planned {
        let (dir, name) = self.dir_and_name()?;
        if is_dot(&name) {
            return Err(nfsstat3::NFS3ERR_INVAL.into());
        }
        ask(VolumeOp::Remove { dir, name, caller: self.caller }, Shape::Remove)
    }

    fn remove_dir(mut self) -> Planned {
        let (dir, name) = self.dir_and_name()?;
        match &name[..] {
            b"." => Err(nfsstat3::NFS3ERR_INVAL.into()),
            b".." => Err(nfsstat3::NFS3ERR_EXIST.into()),
            _ => ask(VolumeOp::RemoveDir { dir, name, caller: self.caller }, Shape::Remove),
        }
    }

    fn rename(mut self) -> Planned {
        let (from_dir, from) = self.dir_and_name()?;
        let (to_dir, to) = self.dir_and_name()?;
        if is_dot(&from) || is_dot(&to) {
            return Err(nfsstat3::NFS3ERR_INVAL.into());
        }
        ask(VolumeOp::Rename { from_dir, from, to_dir, to, caller: self.caller }, Shape::Rename)
    }

    fn link(mut self) -> Planned {
        let ino = self.handle()?;
        let (dir, name) = self.dir_and_new_name()?;
        ask(VolumeOp::Link { ino, dir, name, caller: self.caller }, Shape::Link)
    }

    /// Directory, cookie; cookies are valid for ever, so their verifier is zero and nothing else.
    fn dir_and_cookie(&mut self) -> Result<(Ino, u64), ArgsError> {
        let dir = self.cursor.opaque(NFS3_FHSIZE)?;
        let (cookie, verifier) = (self.cursor.u64()?, self.cursor.u64()?);
        let dir = handle::decode(self.fsid, dir)?;
        if cookie != 0 && verifier != 0 {
            return Err(nfsstat3::NFS3ERR_BAD_COOKIE.into());
        }
        Ok((dir, cookie))
    }

    fn read_dir(mut self) -> Planned {
        let (dir, cookie) = self.dir_and_cookie()?;
        let bytes = self.cursor.u32()?.min(MAX_LISTING_BYTES);
        let count = (bytes / MIN_ENTRY_BYTES).clamp(1, MAX_ENTRIES);
        ask(VolumeOp::ReadDir { dir, cookie, count, caller: self.caller }, Shape::ReadDir { count: bytes })
    }

    fn read_dir_plus(mut self) -> Planned {
        let (dir, cookie) = self.dir_and_cookie()?;
        let (dircount, maxcount) = (self.cursor.u32()?, self.cursor.u32()?.min(MAX_LISTING_BYTES));
        let by_names = dircount.div_ceil(MIN_ENTRY_BYTES);
        let count = (maxcount / MIN_ENTRY_PLUS_BYTES).min(by_names).clamp(1, MAX_ENTRIES);
        let shape = Shape::ReadDirPlus { dircount, maxcount };
        ask(VolumeOp::ReadDir { dir, cookie, count, caller: self.caller }, shape)
    }

    /// The range is ignored: a volume commits whole files. One that cannot be is refused nevertheless.
    fn commit(mut self) -> Planned {
        let file = self.cursor.opaque(NFS3_FHSIZE)?;
        let (offset, count) = (self.cursor.u64()?, self.cursor.u32()?);
        let ino = handle::decode(self.fsid, file)?;
        offset.checked_add(u64::from(count)).ok_or(nfsstat3::NFS3ERR_INVAL)?;
        ask(VolumeOp::Commit { ino }, Shape::Commit)
    }
}

/// Whether a directory has this name by itself.
fn is_dot(name: &[u8]) -> bool {
    matches!(name, b"." | b"..")
}

/// Refuses names that no entry can have.
pub fn check_name(name: &[u8]) -> Result<(), nfsstat3> {
    if name.len() > MAX_NAME_BYTES {
        return Err(nfsstat3::NFS3ERR_NAMETOOLONG);
    }
    if name.is_empty() || name.contains(&b'/') || name.contains(&0) {
        return Err(nfsstat3::NFS3ERR_INVAL);
    }
    Ok(())
}

/// `sattr3` as it was sent.
struct Requested(SetAttr);

impl Requested {
    /// The attributes to set, if they can be.
    fn checked(self) -> Result<SetAttr, nfsstat3> {
        let late = |time| matches!(time, SetTime::At(Time { nanos, .. }) if nanos >= 1_000_000_000);
        if late(self.0.atime) || late(self.0.mtime) {
            return Err(nfsstat3::NFS3ERR_INVAL);
        }
        if self.0.size.is_some_and(|size| size > MAX_FILE_BYTES) {
            return Err(nfsstat3::NFS3ERR_FBIG);
        }
        Ok(self.0)
    }
}

fn read_set_attr(cursor: &mut Cursor<'_>) -> Result<Requested, Malformed> {
    let optional = |cursor: &mut Cursor<'_>| Ok(if cursor.bool()? { Some(cursor.u32()?) } else { None });
    Ok(Requested(SetAttr {
        mode: optional(cursor)?.map(|mode| mode & MODE_BITS),
        uid: optional(cursor)?,
        gid: optional(cursor)?,
        size: if cursor.bool()? { Some(cursor.u64()?) } else { None },
        atime: read_set_time(cursor)?,
        mtime: read_set_time(cursor)?,
    }))
}

fn read_set_time(cursor: &mut Cursor<'_>) -> Result<SetTime, Malformed> {
    let at = cursor.position();
    match cursor.u32()? {
        0 => Ok(SetTime::Keep),
        1 => Ok(SetTime::Now),
        2 => Ok(SetTime::At(read_time(cursor)?)),
        _ => Err(Malformed { at }),
    }
}

fn read_time(cursor: &mut Cursor<'_>) -> Result<Time, Malformed> {
    Ok(Time { seconds: cursor.u32()?, nanos: cursor.u32()? })
}
