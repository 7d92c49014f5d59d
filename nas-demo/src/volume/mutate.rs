//! The changes of the store, each inside a write transaction that it may share with others: everything is checked
//! before anything is modified, so a refused change leaves no trace.

use super::extents::{Piece, Run};
use super::job::{Answer, Effects, Mutation, Written};
use super::ops::{
    Attr, Caller, Change, CreateMode, Ino, Kind, MAX_FILE_BYTES, MAX_LINKS, MAX_NAME_BYTES, MAX_SYMLINK_BYTES, SetAttr,
    SetTime, Time, VolumeError, VolumeReply,
};
use super::perm::{self, EXEC, WRITE};
use super::record::{Mark, Record, before, now};
use super::superblock::BLOCK_BYTES;
use super::tables::{Fail, Writable};

/// How many bytes of rows the metadata region takes. A row costs up to three times its size there (half-filled pages,
/// branches, old versions), so these are fractions of a third of the region.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Beyond this nothing new is created.
    pub create: u64,
    /// Beyond this no data is committed. Removing is always possible.
    pub commit: u64,
}

/// What an inode is counted with in the nominal number of inodes.
const NOMINAL_INODE_BYTES: u64 = 256;

impl Limits {
    /// The limits of a metadata region of `bytes`.
    pub fn of(bytes: u64) -> Self {
        Self { create: bytes / 5, commit: bytes / 4 }
    }

    /// A nominal number of inodes.
    pub fn inodes(self) -> u64 {
        self.create / NOMINAL_INODE_BYTES
    }
}

/// One change under way.
pub struct Mutator<'a, 'txn> {
    pub(super) tables: &'a mut Writable<'txn>,
    pub(super) effects: &'a mut Effects,
    pub(super) now: Time,
    limits: Limits,
}

impl<'a, 'txn> Mutator<'a, 'txn> {
    /// Makes one change. On success `effects` says what is different now.
    ///
    /// # Errors
    /// [`Fail::Refused`] if nothing was changed, [`Fail::Broken`] if the transaction must be given up.
    pub fn apply(
        tables: &'a mut Writable<'txn>,
        effects: &'a mut Effects,
        limits: Limits,
        mutation: &Mutation,
    ) -> Result<Answer, Fail> {
        let mut this = Self { tables, effects, now: now(), limits };
        let reply = match mutation {
            Mutation::SetAttr { ino, set, guard, caller, tail } => this.set_attr(*ino, set, *guard, caller, *tail)?,
            Mutation::Commit { ino, written, pieces, mark } => this.commit(*ino, *written, pieces, *mark)?,
            Mutation::Create { dir, name, mode, caller } => return this.create(*dir, name, mode, caller),
            Mutation::MakeDir { dir, name, set, caller } => this.make(*dir, name, Kind::Directory, set, &[], caller)?,
            Mutation::Symlink { dir, name, target, set, caller } => {
                if target.len() > MAX_SYMLINK_BYTES {
                    return Err(VolumeError::NameTooLong.into());
                }
                if target.is_empty() {
                    return Err(VolumeError::Invalid.into());
                }
                this.make(*dir, name, Kind::Symlink, set, target, caller)?
            }
            Mutation::Remove { dir, name, directory, caller } => this.remove(*dir, name, *directory, caller)?,
            Mutation::Rename { from_dir, from, to_dir, to, caller } => {
                this.rename((*from_dir, from), (*to_dir, to), caller)?
            }
            Mutation::Link { ino, dir, name, caller } => this.link(*ino, *dir, name, caller)?,
        };
        Ok(Answer::Reply(reply))
    }

    /// A directory's record.
    pub(super) fn dir(&self, dir: Ino) -> Result<Record, Fail> {
        let record = self.tables.record(dir)?;
        if record.is_dir() { Ok(record) } else { Err(VolumeError::NotDirectory.into()) }
    }

    /// Stores a record and notes it for the caches.
    pub(super) fn put(&mut self, ino: Ino, record: &Record) -> Result<(), Fail> {
        self.tables.put_record(ino, record)?;
        self.effects.records.push((ino, Some(*record)));
        Ok(())
    }

    fn room(&self, limit: u64) -> Result<(), VolumeError> {
        if self.tables.usage < limit { Ok(()) } else { Err(VolumeError::NoSpace) }
    }

    fn create(&mut self, dir: Ino, name: &[u8], mode: &CreateMode, caller: &Caller) -> Result<Answer, Fail> {
        let record = self.dir(dir)?;
        perm::check(&record.attr(dir), caller, EXEC)?;
        check_new_name(name)?;
        if let Some((ino, _)) = self.tables.entry(dir, name)? {
            return self.create_existing(dir, &record, ino, mode);
        }
        let (set, tag) = match mode {
            CreateMode::Unchecked(set) | CreateMode::Guarded(set) => (*set, 0),
            CreateMode::Exclusive(verifier) => {
                (SetAttr { mode: Some(0o600), ..SetAttr::default() }, u64::from_le_bytes(*verifier))
            }
        };
        let size = set.size.unwrap_or(0);
        if size > MAX_FILE_BYTES {
            return Err(VolumeError::TooBig.into());
        }
        let reply =
            self.make_with(dir, name, Kind::File, &set, caller, |record| (record.size, record.tag) = (size, tag))?;
        Ok(Answer::Reply(reply))
    }

    /// The name is there already: fine if the mode says so. Of the attributes only the size is set, as `open` with
    /// `O_CREAT` wants it.
    fn create_existing(&mut self, dir: Ino, dir_record: &Record, ino: Ino, mode: &CreateMode) -> Result<Answer, Fail> {
        let record = self.tables.record(ino)?;
        let attr = dir_record.attr(dir);
        let unchanged = Change { before: Some(before(&attr)), after: Some(attr) };
        let existing = VolumeReply::Created { attr: record.attr(ino), dir: unchanged };
        match mode {
            _ if record.kind != Kind::File => Err(VolumeError::Exists.into()),
            CreateMode::Unchecked(SetAttr { size: Some(size), .. }) => {
                Ok(Answer::Existing { ino, size: *size, dir: unchanged })
            }
            CreateMode::Unchecked(_) => Ok(Answer::Reply(existing)),
            CreateMode::Exclusive(verifier) if record.tag == u64::from_le_bytes(*verifier) => {
                Ok(Answer::Reply(existing))
            }
            CreateMode::Guarded(_) | CreateMode::Exclusive(_) => Err(VolumeError::Exists.into()),
        }
    }

    fn make(
        &mut self,
        dir: Ino,
        name: &[u8],
        kind: Kind,
        set: &SetAttr,
        target: &[u8],
        caller: &Caller,
    ) -> Result<VolumeReply, Fail> {
        let record = self.dir(dir)?;
        perm::check(&record.attr(dir), caller, EXEC)?;
        check_new_name(name)?;
        if self.tables.entry(dir, name)?.is_some() {
            return Err(VolumeError::Exists.into());
        }
        if kind == Kind::Directory && record.nlink >= MAX_LINKS {
            return Err(VolumeError::TooManyLinks.into());
        }
        let reply = self.make_with(dir, name, kind, set, caller, |made| match kind {
            Kind::Directory => (made.tag, made.nlink) = (dir, 2),
            _ => made.size = target.len() as u64,
        })?;
        if kind == Kind::Symlink
            && let Some(ino) = self.effects.created
        {
            self.tables.put_target(ino, target)?;
        }
        Ok(reply)
    }

    /// Makes an inode under a name that is known to be free.
    fn make_with(
        &mut self,
        dir: Ino,
        name: &[u8],
        kind: Kind,
        set: &SetAttr,
        caller: &Caller,
        finish: impl FnOnce(&mut Record),
    ) -> Result<VolumeReply, Fail> {
        let mut parent = self.dir(dir)?;
        let old = parent.attr(dir);
        perm::check(&old, caller, WRITE | EXEC)?;
        self.room(self.limits.create)?;
        let inherits = parent.mode & SET_GID != 0;
        let (default_mode, gid) =
            (if kind == Kind::File { 0o644 } else { 0o755 }, if inherits { parent.gid } else { caller.gid });
        let mut record = Record::new(kind, default_mode, caller.uid, gid, self.now);
        let owner = record.attr(0);
        let chosen = SetAttr { size: None, ..*set };
        check_set(&owner, &chosen, caller)?;
        apply_set(&mut record, &chosen, self.now);
        if kind == Kind::Directory && inherits {
            record.mode |= SET_GID;
        }
        finish(&mut record);
        let ino = self.tables.new_ino()?;
        self.tables.add_entry(dir, &mut parent, name, ino)?;
        parent.touch(self.now);
        parent.nlink += u32::from(kind == Kind::Directory);
        self.put(dir, &parent)?;
        self.put(ino, &record)?;
        self.effects.created = Some(ino);
        self.effects.names.push((dir, name.to_vec(), Some(ino)));
        Ok(VolumeReply::Created { attr: record.attr(ino), dir: change(&old, &parent.attr(dir)) })
    }

    fn link(&mut self, ino: Ino, dir: Ino, name: &[u8], caller: &Caller) -> Result<VolumeReply, Fail> {
        let mut record = self.tables.record(ino)?;
        let mut parent = self.dir(dir)?;
        let old = parent.attr(dir);
        check_new_name(name)?;
        if record.is_dir() {
            return Err(VolumeError::NotPermitted.into());
        }
        perm::check(&old, caller, WRITE | EXEC)?;
        if self.tables.entry(dir, name)?.is_some() {
            return Err(VolumeError::Exists.into());
        }
        if record.nlink >= MAX_LINKS {
            return Err(VolumeError::TooManyLinks.into());
        }
        self.room(self.limits.create)?;
        record.nlink += 1;
        record.ctime = self.now;
        self.tables.add_entry(dir, &mut parent, name, ino)?;
        parent.touch(self.now);
        self.put(dir, &parent)?;
        self.put(ino, &record)?;
        self.effects.names.push((dir, name.to_vec(), Some(ino)));
        Ok(VolumeReply::Linked { attr: record.attr(ino), dir: change(&old, &parent.attr(dir)) })
    }

    fn set_attr(
        &mut self,
        ino: Ino,
        set: &SetAttr,
        guard: Option<Time>,
        caller: &Caller,
        tail: Option<Piece>,
    ) -> Result<VolumeReply, Fail> {
        let mut record = self.tables.record(ino)?;
        let old = record.attr(ino);
        if guard.is_some_and(|ctime| ctime != record.ctime) {
            return Err(VolumeError::NotSync.into());
        }
        check_set(&old, set, caller)?;
        if let Some(size) = set.size {
            let mut dropped = Vec::new();
            if size < record.size {
                let gone = self.tables.cut_extents(ino, size.div_ceil(BLOCK_BYTES), &mut dropped)?;
                record.blocks = record.blocks.saturating_sub(gone);
            }
            if let Some(tail) = tail {
                record.blocks += self.tables.put_extent(ino, tail, &mut dropped)?;
            }
            record.size = size;
            record.mtime = self.now;
            self.effects.freed.append(&mut dropped);
        }
        apply_set(&mut record, set, self.now);
        self.put(ino, &record)?;
        Ok(VolumeReply::Changed(change(&old, &record.attr(ino))))
    }

    fn commit(
        &mut self,
        ino: Ino,
        written: Option<Written>,
        pieces: &[Piece],
        mark: Option<Mark>,
    ) -> Result<VolumeReply, Fail> {
        let mut record = self.tables.record(ino)?;
        let old = record.attr(ino);
        if record.kind != Kind::File {
            return Err(VolumeError::Io.into());
        }
        if !pieces.is_empty() {
            self.room(self.limits.commit)?;
        }
        let mut dropped: Vec<Run> = Vec::new();
        for piece in pieces {
            record.blocks += self.tables.put_extent(ino, *piece, &mut dropped)?;
        }
        if let Some(written) = written {
            record.size = written.size;
            record.mtime = written.time;
            record.ctime = record.ctime.max(written.time);
        }
        record.journal = record.journal.max(mark.unwrap_or_default());
        self.effects.freed.append(&mut dropped);
        self.put(ino, &record)?;
        Ok(VolumeReply::Committed(change(&old, &record.attr(ino))))
    }
}

const SET_GID: u32 = 0o2000;
const SET_IDS: u32 = 0o6000;

/// Before and after.
pub(super) fn change(old: &Attr, new: &Attr) -> Change {
    Change { before: Some(before(old)), after: Some(*new) }
}

/// Whether bytes can be the name of an entry.
pub(super) fn check_name(name: &[u8]) -> Result<(), VolumeError> {
    if name.len() > MAX_NAME_BYTES {
        return Err(VolumeError::NameTooLong);
    }
    if name.is_empty() || name.contains(&b'/') || name.contains(&0) { Err(VolumeError::Invalid) } else { Ok(()) }
}

pub(super) fn is_dots(name: &[u8]) -> bool {
    name == b"." || name == b".."
}

/// Whether bytes can be the name of a new entry.
fn check_new_name(name: &[u8]) -> Result<(), VolumeError> {
    check_name(name)?;
    if is_dots(name) { Err(VolumeError::Exists) } else { Ok(()) }
}

/// Whether the caller may set these attributes.
fn check_set(attr: &Attr, set: &SetAttr, caller: &Caller) -> Result<(), VolumeError> {
    let owner = caller.is_owner(attr.uid);
    let stamps = [set.atime, set.mtime];
    let chooses_time = stamps.iter().any(|time| matches!(time, SetTime::At(_)));
    let foreign_uid = set.uid.is_some_and(|uid| uid != attr.uid && caller.uid != 0);
    let foreign_gid = set.gid.is_some_and(|gid| gid != attr.gid && caller.uid != 0 && !caller.is_in(gid));
    let changes = set.mode.is_some() || set.uid.is_some() || set.gid.is_some() || chooses_time;
    if foreign_uid || foreign_gid || (changes && !owner) {
        return Err(VolumeError::NotPermitted);
    }
    if stamps.contains(&SetTime::Now) {
        perm::check_open(attr, caller, WRITE)?;
    }
    match (set.size, attr.kind) {
        (None, _) => Ok(()),
        (Some(_), Kind::Directory) => Err(VolumeError::IsDirectory),
        (Some(_), Kind::Symlink) => Err(VolumeError::Invalid),
        (Some(size), Kind::File) if size > MAX_FILE_BYTES => Err(VolumeError::TooBig),
        (Some(_), Kind::File) => perm::check_open(attr, caller, WRITE),
    }
}

/// Sets everything but the size.
fn apply_set(record: &mut Record, set: &SetAttr, now: Time) {
    let valid = |time: Time| Time { nanos: time.nanos.min(999_999_999), ..time };
    let stamp = |set: SetTime, old: Time| match set {
        SetTime::Keep => old,
        SetTime::Now => now,
        SetTime::At(time) => valid(time),
    };
    if set.uid.is_some_and(|uid| uid != record.uid) || set.gid.is_some_and(|gid| gid != record.gid) {
        record.mode &= !SET_IDS;
    }
    record.mode = set.mode.map_or(record.mode, |mode| mode & 0o7777);
    record.uid = set.uid.unwrap_or(record.uid);
    record.gid = set.gid.unwrap_or(record.gid);
    record.atime = stamp(set.atime, record.atime);
    record.mtime = stamp(set.mtime, record.mtime);
    record.ctime = now;
}
