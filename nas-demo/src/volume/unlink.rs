//! Removing and renaming, inside a write transaction. See [`super::mutate`].

use super::job::Effects;
use super::mutate::{Mutator, change, check_name, is_dots};
use super::ops::{Attr, Caller, Ino, MAX_LINKS, ROOT, VolumeError, VolumeReply};
use super::perm::{self, EXEC, WRITE};
use super::record::Record;
use super::tables::Fail;

/// The deepest directory that a rename looks up from: beyond it the tree must be damaged.
const MAX_DEPTH: usize = 1 << 16;

/// A directory that a rename changes.
struct Place<'n> {
    ino: Ino,
    record: Record,
    old: Attr,
    name: &'n [u8],
}

impl Mutator<'_, '_> {
    pub(super) fn remove(
        &mut self,
        dir: Ino,
        name: &[u8],
        directory: bool,
        caller: &Caller,
    ) -> Result<VolumeReply, Fail> {
        let mut place = self.place(dir, name, caller)?;
        let Some((ino, _)) = self.tables.entry(dir, name)? else { return Err(VolumeError::NotFound.into()) };
        let record = self.tables.record(ino)?;
        match (directory, record.is_dir()) {
            (true, false) => return Err(VolumeError::NotDirectory.into()),
            (false, true) => return Err(VolumeError::IsDirectory.into()),
            _ => {}
        }
        perm::check_unlink(&place.old, &record.attr(ino), caller)?;
        if directory && self.tables.has_entries(ino)? {
            return Err(VolumeError::NotEmpty.into());
        }
        self.tables.remove_entry(dir, &mut place.record, name)?;
        self.drop_link(ino, record, &mut place.record)?;
        self.effects.names.push((dir, name.to_vec(), None));
        let dir = self.finish(place)?;
        Ok(VolumeReply::Removed { dir })
    }

    pub(super) fn rename(
        &mut self,
        (from_dir, from): (Ino, &[u8]),
        (to_dir, to): (Ino, &[u8]),
        caller: &Caller,
    ) -> Result<VolumeReply, Fail> {
        let source = self.place(from_dir, from, caller)?;
        let target = self.place(to_dir, to, caller)?;
        let Some((ino, _)) = self.tables.entry(from_dir, from)? else { return Err(VolumeError::NotFound.into()) };
        let record = self.tables.record(ino)?;
        perm::check_unlink(&source.old, &record.attr(ino), caller)?;
        perm::check(&target.old, caller, WRITE | EXEC)?;
        let replaced = match self.tables.entry(to_dir, to)? {
            Some((other, _)) if other == ino => {
                let same = |place: &Place| change(&place.old, &place.old);
                return Ok(VolumeReply::Renamed { from_dir: same(&source), to_dir: same(&target) });
            }
            Some((other, _)) => Some((other, self.tables.record(other)?)),
            None => None,
        };
        if let Some((other, old)) = &replaced {
            self.check_replace(&target, (&record, *other, old), caller)?;
        }
        if record.is_dir() && from_dir != to_dir {
            self.check_move(ino, &record, &target, replaced.is_none(), caller)?;
        }
        self.move_entry(ino, record, source, target, replaced)
    }

    /// A directory whose entry `name` is to change, which the caller may.
    fn place<'n>(&self, ino: Ino, name: &'n [u8], caller: &Caller) -> Result<Place<'n>, Fail> {
        let record = self.dir(ino)?;
        let old = record.attr(ino);
        check_name(name)?;
        if is_dots(name) {
            return Err(VolumeError::Invalid.into());
        }
        perm::check(&old, caller, EXEC)?;
        Ok(Place { ino, record, old, name })
    }

    /// Whether an entry may be replaced by what is renamed.
    fn check_replace(
        &self,
        target: &Place<'_>,
        (record, other, old): (&Record, Ino, &Record),
        caller: &Caller,
    ) -> Result<(), Fail> {
        perm::check_unlink(&target.old, &old.attr(other), caller)?;
        match (record.is_dir(), old.is_dir()) {
            (true, false) => Err(VolumeError::NotDirectory.into()),
            (false, true) => Err(VolumeError::IsDirectory.into()),
            (true, true) if self.tables.has_entries(other)? => Err(VolumeError::NotEmpty.into()),
            _ => Ok(()),
        }
    }

    /// Whether a directory may move under `target`: not into itself, and its own `..` changes.
    fn check_move(
        &self,
        ino: Ino,
        record: &Record,
        target: &Place<'_>,
        grows: bool,
        caller: &Caller,
    ) -> Result<(), Fail> {
        perm::check(&record.attr(ino), caller, WRITE)?;
        let mut at = target.ino;
        for _ in 0..MAX_DEPTH {
            if at == ino {
                return Err(VolumeError::Invalid.into());
            }
            if at == ROOT {
                let full = grows && target.record.nlink >= MAX_LINKS;
                return if full { Err(VolumeError::TooManyLinks.into()) } else { Ok(()) };
            }
            at = self.dir(at)?.tag;
        }
        Err(VolumeError::Io.into())
    }

    /// Everything is checked: moves the entry.
    fn move_entry(
        &mut self,
        ino: Ino,
        mut record: Record,
        mut source: Place<'_>,
        mut target: Place<'_>,
        replaced: Option<(Ino, Record)>,
    ) -> Result<VolumeReply, Fail> {
        let one_dir = source.ino == target.ino;
        let (from, to) = (source.name, target.name);
        self.tables.remove_entry(source.ino, &mut source.record, from)?;
        if one_dir {
            target.record = source.record;
        }
        if let Some((other, old)) = replaced {
            self.tables.remove_entry(target.ino, &mut target.record, to)?;
            self.drop_link(other, old, &mut target.record)?;
        }
        self.tables.add_entry(target.ino, &mut target.record, to, ino)?;
        if record.is_dir() && !one_dir {
            record.tag = target.ino;
            source.record.nlink = source.record.nlink.saturating_sub(1);
            target.record.nlink += 1;
        }
        record.ctime = self.now;
        self.put(ino, &record)?;
        self.effects.names.push((source.ino, from.to_vec(), None));
        self.effects.names.push((target.ino, to.to_vec(), Some(ino)));
        let to_dir = self.finish(target)?;
        let from_dir = if one_dir { to_dir } else { self.finish(source)? };
        Ok(VolumeReply::Renamed { from_dir, to_dir })
    }

    /// Stores a changed directory.
    fn finish(&mut self, mut place: Place<'_>) -> Result<super::ops::Change, Fail> {
        place.record.touch(self.now);
        self.put(place.ino, &place.record)?;
        Ok(change(&place.old, &place.record.attr(place.ino)))
    }

    /// An inode has lost a name in `parent`; with the last one it goes.
    fn drop_link(&mut self, ino: Ino, mut record: Record, parent: &mut Record) -> Result<(), Fail> {
        if record.is_dir() {
            parent.nlink = parent.nlink.saturating_sub(1);
        } else if record.nlink > 1 {
            record.nlink -= 1;
            record.ctime = self.now;
            return self.put(ino, &record);
        }
        let Effects { freed, .. } = self.effects;
        self.tables.cut_extents(ino, 0, freed)?;
        self.tables.remove_inode(ino)?;
        self.effects.records.push((ino, None));
        Ok(())
    }
}
