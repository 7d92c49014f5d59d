//! Questions to the store, answered from a read transaction.

use super::job::{Answer, Effects, Query};
use super::mutate::check_name;
use super::ops::{Caller, DirEntry, Ino, Kind, ROOT, VolumeError, VolumeReply};
use super::perm::{self, EXEC};
use super::record::{FIRST_COOKIE, Record};
use super::tables::{self, Fail, INODE_COUNT, Readable};

/// The most entries of one answer.
const MAX_ENTRIES: u32 = 4096;
/// The cookies of `.` and `..`.
const DOT: u64 = 1;
const DOT_DOT: u64 = 2;

/// What a question needs to know beside the tables.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    /// Blocks of the data region.
    pub data_blocks: u64,
    /// A nominal number of inodes.
    pub total_inodes: u64,
}

/// Answers a question; `effects` carries the records that were read.
///
/// # Errors
/// [`Fail`].
pub fn ask(tables: &Readable, effects: &mut Effects, facts: Facts, query: &Query) -> Result<Answer, Fail> {
    let mut asker = Asker { tables, effects };
    match query {
        Query::Load { ino, extents } => asker.load(*ino, *extents, facts),
        Query::Lookup { dir, name, caller } => asker.lookup(*dir, name, caller).map(Answer::Reply),
        Query::ReadLink { ino } => asker.read_link(*ino).map(Answer::Reply),
        Query::ReadDir { dir, cookie, count, caller } => {
            asker.read_dir(*dir, *cookie, (*count).clamp(1, MAX_ENTRIES), caller).map(Answer::Reply)
        }
        Query::Usage => {
            asker.record(ROOT)?;
            Ok(Answer::Usage { inodes: tables.counter(INODE_COUNT)?, total_inodes: facts.total_inodes })
        }
    }
}

struct Asker<'a> {
    tables: &'a Readable,
    effects: &'a mut Effects,
}

impl Asker<'_> {
    fn record(&mut self, ino: Ino) -> Result<Record, Fail> {
        let record = tables::record(&self.tables.inodes, ino)?;
        self.effects.records.push((ino, Some(record)));
        Ok(record)
    }

    fn dir(&mut self, ino: Ino) -> Result<Record, Fail> {
        let record = self.record(ino)?;
        if record.is_dir() { Ok(record) } else { Err(VolumeError::NotDirectory.into()) }
    }

    /// The record of what an entry names: it must be there.
    fn entry_record(&mut self, ino: Ino) -> Result<Record, Fail> {
        self.record(ino).map_err(|fail| match fail {
            Fail::Refused(VolumeError::Stale) => Fail::Refused(VolumeError::Io),
            fail => fail,
        })
    }

    fn load(&mut self, ino: Ino, extents: bool, facts: Facts) -> Result<Answer, Fail> {
        let record = self.record(ino)?;
        let wanted = extents && record.kind == Kind::File;
        let extents = wanted.then(|| tables::extents(&self.tables.extents, ino, facts.data_blocks)).transpose()?;
        Ok(Answer::Loaded { ino, record, extents })
    }

    fn lookup(&mut self, dir: Ino, name: &[u8], caller: &Caller) -> Result<VolumeReply, Fail> {
        let record = self.dir(dir)?;
        perm::check(&record.attr(dir), caller, EXEC)?;
        check_name(name)?;
        let Some((ino, _)) = tables::entry(&self.tables.names, dir, name)? else {
            return Err(VolumeError::NotFound.into());
        };
        let attr = self.entry_record(ino)?.attr(ino);
        self.effects.names.push((dir, name.to_vec(), Some(ino)));
        Ok(VolumeReply::Found { attr, dir: record.attr(dir) })
    }

    fn read_link(&mut self, ino: Ino) -> Result<VolumeReply, Fail> {
        let record = self.record(ino)?;
        if record.kind != Kind::Symlink {
            return Err(VolumeError::Invalid.into());
        }
        let Some(target) = self.tables.targets.get(ino)? else { return Err(VolumeError::Io.into()) };
        Ok(VolumeReply::Target { target: target.value().to_vec(), attr: record.attr(ino) })
    }

    fn read_dir(&mut self, dir: Ino, cookie: u64, count: u32, caller: &Caller) -> Result<VolumeReply, Fail> {
        let record = self.dir(dir)?;
        perm::check(&record.attr(dir), caller, perm::READ)?;
        let mut entries = Vec::new();
        for (own, name, ino) in [(DOT, b".".as_slice(), dir), (DOT_DOT, b"..", record.tag)] {
            if cookie < own && entries.len() < count as usize {
                let attr = self.entry_record(ino)?.attr(ino);
                entries.push(DirEntry { name: name.to_vec(), cookie: own, attr });
            }
        }
        let first = cookie.saturating_add(1).max(FIRST_COOKIE);
        let mut eof = true;
        for row in self.tables.order.range((dir, first)..=(dir, u64::MAX))? {
            if entries.len() >= count as usize {
                eof = false;
                break;
            }
            let (key, name) = row?;
            let Some((ino, _)) = tables::entry(&self.tables.names, dir, name.value())? else {
                return Err(VolumeError::Io.into());
            };
            let attr = self.entry_record(ino)?.attr(ino);
            entries.push(DirEntry { name: name.value().to_vec(), cookie: key.value().1, attr });
        }
        eof &= entries.last().is_none_or(|last| last.cookie >= DOT_DOT);
        Ok(VolumeReply::Entries { entries, eof, dir: record.attr(dir) })
    }
}
