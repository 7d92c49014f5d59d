//! The note of requests under way that outlives this process: memory that the front end keeps and hands to a
//! successor, which then knows which chains were taken and not given back.
//!
//! Layout for each queue, from `docs/interop/vhost-user.rst` of QEMU ("Inflight I/O tracking", split virtqueue): a head
//! (features, version, places, the chain given back last, the used index) and 16 bytes for each descriptor (under way or
//! not, a link that batches need and we do not, a counter that gives the order). What a chain's end does is in three
//! steps, so that after a death at any moment exactly the chains that the guest still waits for are done again.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;

use fido_core::addr::Generation;
use fido_core::foreign::{Area, Foreign, ForeignError, Region};
use rustix::fs::{MemfdFlags, SealFlags};

use super::message::InflightPlan;
use super::ring::MAX_PLACES;

const VERSION_AT: usize = 8;
const PLACES_AT: usize = 10;
const LAST_AT: usize = 12;
const USED_AT: usize = 14;
const HEAD: usize = 16;
const ENTRY: usize = 16;
const NEXT_AT: usize = 6;
const COUNTER_AT: usize = 8;
const VERSION: u16 = 1;

/// Why there is no such memory.
#[derive(Debug, thiserror::Error)]
pub enum InflightError {
    /// Numbers that cannot be.
    #[error("a note of {queues} queues with {places} places in {bytes} bytes")]
    Plan {
        /// Queues.
        queues: u16,
        /// Places of each.
        places: u16,
        /// Its length.
        bytes: u64,
    },
    /// It cannot be mapped.
    #[error(transparent)]
    Memory(#[from] ForeignError),
    /// The system has no memory for it.
    #[error("no memory for a note of requests: {0}")]
    System(#[from] rustix::io::Errno),
}

/// The note of all queues.
#[derive(Debug)]
pub struct Inflight {
    memory: Foreign,
    plan: InflightPlan,
}

/// Bytes of one queue's part.
fn part(places: u16) -> u64 {
    (HEAD + ENTRY * usize::from(places)).next_multiple_of(64) as u64
}

/// How long the whole is, in whole pages.
fn length(plan: &InflightPlan, most_queues: usize) -> Result<u64, InflightError> {
    let InflightPlan { queues, places, bytes, .. } = *plan;
    if queues == 0 || usize::from(queues) > most_queues || places == 0 || places > MAX_PLACES {
        return Err(InflightError::Plan { queues, places, bytes });
    }
    Ok((u64::from(queues) * part(places)).next_multiple_of(rustix::param::page_size() as u64))
}

/// New memory for a note, all zeros, and its plan.
///
/// # Errors
/// [`InflightError`].
pub fn create(mut plan: InflightPlan, most_queues: usize) -> Result<(InflightPlan, OwnedFd), InflightError> {
    (plan.bytes, plan.offset) = (length(&plan, most_queues)?, 0);
    let fd = rustix::fs::memfd_create("fido-vhost-inflight", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&fd, plan.bytes)?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok((plan, fd))
}

impl Inflight {
    /// Maps a note that the front end has kept.
    ///
    /// # Errors
    /// [`InflightError`] if it is not what it should be.
    pub fn open(plan: InflightPlan, file: OwnedFd, most_queues: usize) -> Result<Self, InflightError> {
        let needed = length(&plan, most_queues)?;
        if plan.bytes < needed {
            return Err(InflightError::Plan { queues: plan.queues, places: plan.places, bytes: plan.bytes });
        }
        let file = file.as_fd().try_clone_to_owned().map_err(|_| rustix::io::Errno::MFILE)?;
        let region = Region { guest: 0, user: 0, len: needed, offset: plan.offset, file };
        Ok(Self { memory: Foreign::map(Generation::NONE, &[region])?, plan })
    }

    /// The part of a queue with that many places.
    ///
    /// # Errors
    /// [`InflightError::Plan`] if it has none for it.
    pub fn queue(&self, ring: usize, places: u16) -> Result<Notes, InflightError> {
        let none = InflightError::Plan { queues: self.plan.queues, places: self.plan.places, bytes: self.plan.bytes };
        if ring >= usize::from(self.plan.queues) || places > self.plan.places {
            return Err(none);
        }
        let bytes = part(self.plan.places);
        let area = self.memory.guest(ring as u64 * bytes, bytes as u32).ok_or(none)?;
        Ok(Notes { area, places, counter: 0 })
    }
}

/// The notes of one queue.
#[derive(Debug)]
pub struct Notes {
    area: Area,
    places: u16,
    counter: u64,
}

impl Notes {
    fn entry(head: u16) -> usize {
        HEAD + ENTRY * usize::from(head)
    }

    /// Which chains a predecessor has taken and not given back, in order, given the ring's used index. Notes that
    /// nobody has used begin here.
    pub fn recover(&mut self, used: u16) -> Vec<u16> {
        let area = &self.area;
        if area.load_u16(VERSION_AT, Ordering::Acquire) != VERSION {
            area.store_u16(PLACES_AT, self.places, Ordering::Relaxed);
            area.store_u16(USED_AT, used, Ordering::Relaxed);
            area.store_u16(VERSION_AT, VERSION, Ordering::Release);
        }
        if area.load_u16(USED_AT, Ordering::Acquire) != used {
            // It died after it had given the last chain back, and before it had noted that.
            let last = area.load_u16(LAST_AT, Ordering::Relaxed);
            if last < self.places {
                area.store_u8(Self::entry(last), 0, Ordering::Release);
            }
            area.store_u16(USED_AT, used, Ordering::Release);
        }
        let under_way = |head: &u16| area.load_u8(Self::entry(*head), Ordering::Relaxed) == 1;
        let counter = |head: u16| area.load_u64(Self::entry(head) + COUNTER_AT, Ordering::Relaxed);
        let mut found: Vec<(u64, u16)> = (0..self.places).filter(under_way).map(|head| (counter(head), head)).collect();
        found.sort_unstable();
        self.counter = found.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        found.into_iter().map(|(_, head)| head).collect()
    }

    /// A chain was taken.
    pub fn begin(&mut self, head: u16) {
        let entry = Self::entry(head);
        self.area.store_u64(entry + COUNTER_AT, self.counter, Ordering::Relaxed);
        self.counter = self.counter.wrapping_add(1);
        // SYNC: after the counter, for whoever reads this memory when we are dead.
        self.area.store_u8(entry, 1, Ordering::Release);
    }

    /// A chain is about to be given back.
    pub fn ending(&mut self, head: u16) {
        let last = self.area.load_u16(LAST_AT, Ordering::Relaxed);
        self.area.store_u16(Self::entry(head) + NEXT_AT, last, Ordering::Relaxed);
        // SYNC: before the used index, which is stored with release.
        self.area.store_u16(LAST_AT, head, Ordering::Release);
    }

    /// It was given back, and the used index is now this.
    pub fn ended(&mut self, head: u16, used: u16) {
        // SYNC: after the used index, and before the note of it: each is a store with release.
        self.area.store_u8(Self::entry(head), 0, Ordering::Release);
        self.area.store_u16(USED_AT, used, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: InflightPlan = InflightPlan { bytes: 0, offset: 0, queues: 2, places: 8, body: 24 };

    /// The notes of a new life on the same memory.
    fn life(plan: InflightPlan, file: &OwnedFd) -> Notes {
        Inflight::open(plan, file.try_clone().unwrap(), 2).unwrap().queue(1, 8).unwrap()
    }

    #[test]
    fn a_successor_finds_what_was_under_way_in_order() {
        let (plan, file) = create(PLAN, 2).unwrap();
        let mut first = life(plan, &file);
        assert!(first.recover(7).is_empty());
        for head in [5, 2, 7, 0] {
            first.begin(head);
        }
        first.ending(2);
        first.ended(2, 8);
        assert_eq!(life(plan, &file).recover(8), [5, 7, 0]);
        // It dies after the used index was raised for chain 7, and before that was noted.
        first.ending(7);
        let mut second = life(plan, &file);
        assert_eq!(second.recover(9), [5, 0]);
        second.begin(3);
        // It dies before the used index was raised.
        second.ending(0);
        assert_eq!(life(plan, &file).recover(9), [5, 0, 3]);
    }

    #[test]
    fn plans_and_files_that_lie_are_refused() {
        let (plan, file) = create(PLAN, 2).unwrap();
        let open = |edit: fn(&mut InflightPlan)| {
            let mut plan = plan;
            edit(&mut plan);
            Inflight::open(plan, file.try_clone().unwrap(), 2)
        };
        assert!(open(|_| ()).is_ok());
        assert!(open(|plan| plan.queues = 3).is_err());
        assert!(open(|plan| plan.queues = 0).is_err());
        assert!(open(|plan| plan.places = 0).is_err());
        assert!(open(|plan| plan.places = MAX_PLACES + 1).is_err());
        assert!(open(|plan| plan.bytes = 100).is_err());
        assert!(open(|plan| plan.offset = 1).is_err());
        assert!(open(|plan| plan.offset = u64::MAX - 4095).is_err());
        assert!(open(|plan| plan.places = MAX_PLACES).is_err(), "longer than the file");
        let notes = open(|_| ()).unwrap();
        assert!(notes.queue(2, 8).is_err());
        assert!(notes.queue(0, 9).is_err());
    }

    #[test]
    fn any_content_is_taken_without_harm() {
        let (plan, file) = create(PLAN, 2).unwrap();
        rustix::io::pwrite(&file, &[0xff; 4096][..plan.bytes as usize], 0).unwrap();
        let mut notes = life(plan, &file);
        assert!(notes.recover(3).is_empty());
        notes.area.store_u16(VERSION_AT, VERSION, Ordering::Relaxed);
        (0..8).for_each(|head| notes.area.store_u8(Notes::entry(head), 1, Ordering::Relaxed));
        assert_eq!(notes.recover(3).len(), 8);
        notes.begin(0);
    }
}
