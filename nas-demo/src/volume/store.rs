//! The metadata store: opened, written in group commits, and opened again when it has failed.
//!
//! redb refuses everything after an error of its storage, and may panic on a damaged file. Both are confined here: the
//! store is closed and opened again, and a number stored by each transaction tells whether the one that failed had
//! taken effect.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use mmblk::queue::BlockQueue;
use redb::{Database, ReadableDatabase};

use super::backend::Region;
use super::extents::Run;
use super::job::{Effects, Mutation, Outcome, Query};
use super::journal::Testament;
use super::mutate::{Limits, Mutator};
use super::ops::{Kind, ROOT, VolumeError};
use super::query::{Facts, ask};
use super::record::{Record, now};
use super::superblock::{OpenError, Superblock};
use super::tables::{BATCH, BOOTS, Fail, NEXT_INO, Readable, WRITER, Writable, used_runs};

/// How often, and after which pause, a failed store is opened again before its callers hear of it.
const REOPEN_ATTEMPTS: u32 = 3;
const REOPEN_PAUSE: Duration = Duration::from_millis(30);

/// Who owns the root directory of a new volume.
#[derive(Debug, Clone, Copy)]
pub struct RootOwner {
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// What an opened store says of itself.
#[derive(Debug)]
pub struct Mounted {
    /// The volume's superblock.
    pub superblock: Superblock,
    /// How often it has been opened, this time included.
    pub boots: u64,
    /// Every run of the data region that is in use.
    pub used: Vec<Run>,
    /// The write verifier of the mount before, if all that it had answered is in the store now.
    pub verifier: Option<[u8; 8]>,
}

/// The store of one volume.
pub struct Store<Q> {
    pub(super) region: Region<Q>,
    /// `None` while it cannot be opened.
    database: Option<Database>,
    cache_bytes: usize,
    pub(super) batch: u64,
    pub(super) boots: u64,
    pub(super) limits: Limits,
    pub(super) facts: Facts,
}

impl<Q: BlockQueue + Send + 'static> Store<Q> {
    /// Opens the store in `region`, or sets one up if the region is new. What the mount before has `left` in its journal
    /// is made part of it, if that is possible.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(
        region: Region<Q>,
        cache_bytes: usize,
        root: RootOwner,
        left: Option<&Testament>,
    ) -> Result<(Self, Mounted), OpenError> {
        let superblock = region.superblock();
        if !superblock.ready {
            region.reset()?;
        }
        let limits = Limits::of(superblock.meta_bytes);
        let facts = Facts { data_blocks: superblock.data_blocks, total_inodes: limits.inodes() };
        let mut store = Self { region, database: None, cache_bytes, batch: 0, boots: 0, limits, facts };
        let fail = |fail| match fail {
            Fail::Broken(why) => OpenError::Store(why),
            Fail::Refused(error) => OpenError::Store(error.to_string()),
        };
        let mounted = confined(|| store.mount(superblock, root, left)).map_err(fail)?;
        if !superblock.ready {
            store.region.set_ready()?;
        }
        Ok((store, mounted))
    }

    fn mount(&mut self, superblock: Superblock, root: RootOwner, left: Option<&Testament>) -> Result<Mounted, Fail> {
        self.database = Some(self.open_database()?);
        let database = self.database()?;
        let txn = database.begin_write()?;
        let mut tables = Writable::open(&txn, self.facts.data_blocks)?;
        if !superblock.ready && tables.counter(NEXT_INO)? == 0 {
            tables.set_counter(NEXT_INO, ROOT + 1)?;
            let record =
                Record { tag: ROOT, nlink: 2, ..Record::new(Kind::Directory, root.mode, root.uid, root.gid, now()) };
            tables.put_record(ROOT, &record)?;
        }
        let boots = tables.counter(BOOTS)? + 1;
        tables.set_counter(BOOTS, boots)?;
        let batch = tables.counter(BATCH)? + 1;
        tables.finish(batch)?;
        txn.commit()?;
        (self.batch, self.boots) = (batch, boots);
        let verifier = left.and_then(|left| self.inherit(superblock.fsid, left));
        let used = used_runs(&self.readable()?.extents, self.facts.data_blocks)?;
        Ok(Mounted { superblock, boots, used, verifier })
    }

    /// A read transaction's tables, for the consistency check.
    ///
    /// # Errors
    /// `Fail::Broken`.
    pub fn readable(&self) -> Result<Readable, Fail> {
        Readable::open(&self.database()?.begin_read()?)
    }

    /// Answers questions from what is committed.
    pub fn ask(&mut self, queries: &[Query]) -> Vec<Outcome> {
        match self.try_ask(queries) {
            Ok(outcomes) => outcomes,
            Err(Fail::Broken(why)) if self.reopen(&why) => {
                // One at a time: only the one that meets the damage fails.
                let single = |query| self.try_ask(std::slice::from_ref(query)).ok()?.pop();
                queries.iter().map(single).map(|outcome| outcome.unwrap_or(Outcome::Refused(VolumeError::Io))).collect()
            }
            Err(_) => queries.iter().map(|_| Outcome::Refused(VolumeError::Io)).collect(),
        }
    }

    fn try_ask(&self, queries: &[Query]) -> Result<Vec<Outcome>, Fail> {
        confined(|| {
            let tables = self.readable()?;
            let one = |query| {
                let mut effects = Effects::default();
                match ask(&tables, &mut effects, self.facts, query) {
                    Ok(answer) => Ok(Outcome::Done(answer, effects)),
                    Err(Fail::Refused(error)) => Ok(Outcome::Refused(error)),
                    Err(broken) => Err(broken),
                }
            };
            queries.iter().map(one).collect()
        })
    }

    /// Makes changes in one transaction, durably. If it fails, each is tried on its own, so that only those fail that
    /// cannot be made.
    pub fn change(&mut self, mutations: &[Mutation]) -> Vec<Outcome> {
        if self.database.is_none() && !self.reopen("it could not be opened before") {
            // Nothing was begun: that is known.
            return mutations.iter().map(|_| Outcome::Refused(VolumeError::Io)).collect();
        }
        self.batch += 1;
        let mut outcomes = Vec::new();
        let Err(Fail::Broken(why)) = confined(|| self.try_change(mutations, &mut outcomes)) else { return outcomes };
        let complete = outcomes.len() == mutations.len();
        let full = self.region.take_full();
        if !self.reopen(&why) {
            return mutations.iter().map(|_| Outcome::Unknown).collect();
        }
        match self.landed() {
            Some(true) if complete => outcomes,
            Some(false) if mutations.len() == 1 => {
                vec![Outcome::Refused(if full { VolumeError::NoSpace } else { VolumeError::Io })]
            }
            Some(false) => mutations.iter().flat_map(|one| self.change(std::slice::from_ref(one))).collect(),
            _ => mutations.iter().map(|_| Outcome::Unknown).collect(),
        }
    }

    fn try_change(&self, mutations: &[Mutation], outcomes: &mut Vec<Outcome>) -> Result<(), Fail> {
        let txn = self.database()?.begin_write()?;
        let mut tables = Writable::open(&txn, self.facts.data_blocks)?;
        let (mut changed, mut data) = (false, false);
        for mutation in mutations {
            let mut effects = Effects::default();
            match Mutator::apply(&mut tables, &mut effects, self.limits, mutation) {
                Ok(answer) => {
                    changed |= !effects.records.is_empty();
                    data |= matches!(mutation, Mutation::Commit { .. } | Mutation::SetAttr { tail: Some(_), .. });
                    outcomes.push(Outcome::Done(answer, effects));
                }
                Err(Fail::Refused(error)) => outcomes.push(Outcome::Refused(error)),
                Err(broken) => return Err(broken),
            }
        }
        if !changed {
            drop(tables);
            return Ok(txn.abort()?);
        }
        if tables.counter(WRITER)? != self.boots {
            tables.set_counter(WRITER, self.boots)?;
        }
        tables.finish(self.batch)?;
        if data {
            // The file data must be durable before anything can refer to it: the commit's own flush would make both
            // durable in any order.
            self.region.flush().map_err(|error| Fail::Broken(error.to_string()))?;
        }
        Ok(txn.commit()?)
    }

    /// Whether the last transaction has taken effect; `None` if that cannot be found out.
    fn landed(&self) -> Option<bool> {
        confined(|| self.readable()?.counter(BATCH)).ok().map(|batch| batch == self.batch)
    }

    pub(super) fn database(&self) -> Result<&Database, Fail> {
        self.database.as_ref().ok_or_else(|| Fail::Broken("the store is not open".into()))
    }

    fn open_database(&self) -> Result<Database, Fail> {
        let mut builder = Database::builder();
        builder.set_cache_size(self.cache_bytes);
        builder.create_with_backend(self.region.clone()).map_err(|error| Fail::Broken(error.to_string()))
    }

    /// Closes the store and opens it again.
    fn reopen(&mut self, why: &str) -> bool {
        tracing::warn!(why, "the metadata store failed; opening it again");
        let old = self.database.take();
        if catch_unwind(AssertUnwindSafe(|| drop(old))).is_err() {
            tracing::warn!("the metadata store could not be closed");
        }
        for attempt in 0..REOPEN_ATTEMPTS {
            if attempt > 0 {
                std::thread::sleep(REOPEN_PAUSE);
            }
            match confined(|| self.open_database()) {
                Ok(database) => {
                    self.database = Some(database);
                    return true;
                }
                Err(fail) => tracing::warn!(?fail, "the metadata store cannot be opened"),
            }
        }
        false
    }
}

/// Runs what calls redb; a panic in it counts as a broken store.
fn confined<T>(body: impl FnOnce() -> Result<T, Fail>) -> Result<T, Fail> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|_| Err(Fail::Broken("the store panicked".into())))
}
