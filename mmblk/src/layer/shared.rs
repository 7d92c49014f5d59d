//! Several queues over one: for a device that has only one queue, as an array, and several users of it.
//!
//! The queue below belongs to whoever looks after it at the moment. Each user has a *desk*: a tray of what it asks and a
//! tray of what has ended. A user that looks after the device takes from all desks and serves all; one that finds another at it
//! leaves what it wants on its own desk, goes on, and never waits for the other. So a thread that serves all users alone pays
//! for no more than uncontended locks, and several threads take turns.
//!
//! # Fair
//! The requests that the device takes at a time are shared out: half of them to equal parts, one for each desk, the other
//! half to whoever comes first. Desks are asked by turns, a request each. So a user that floods has to leave room for every other, and
//! is not held back if the others rest.
//!
//! # Sleeping
//! A desk's wake descriptor is readable when something is put on it while its user sleeps, or the device wants to be
//! looked after. All that sleep wake for the latter; who comes first does it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use fido_core::bell::{Bell, Ringer};
use fido_core::wait::{Source, WakeId};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use crate::queue::{BlockCompletion, BlockOp, BlockQueue, Busy, Features, Geometry};
use crate::slab::Slab;

/// How often whoever looks after the device goes round before it goes on with its own.
const ROUNDS: usize = 4;

/// The queue below, and who has a desk.
#[derive(Debug)]
pub struct Shared<Q>(Arc<Mutex<Office<Q>>>);

/// What whoever looks after the device has.
#[derive(Debug)]
struct Office<Q> {
    queue: Q,
    desks: Vec<Option<Seat>>,
    /// What the device has: whose it is, and the user's number for it.
    flights: Slab<(usize, u64)>,
    /// Whose turn it is to be asked.
    turn: usize,
    sleepers: usize,
}

/// A desk as the office sees it.
#[derive(Debug)]
struct Seat {
    desk: Arc<Desk>,
    in_flight: usize,
}

#[derive(Debug)]
struct Desk {
    trays: Mutex<Trays>,
    /// Its user sleeps, or is about to.
    asleep: AtomicBool,
    bell: Bell,
    /// The bell has been rung and not been reset.
    rung: AtomicBool,
}

#[derive(Debug, Default)]
struct Trays {
    asked: VecDeque<(u64, BlockOp)>,
    /// Something has been asked that nobody has looked at.
    fresh: bool,
    ended: VecDeque<BlockCompletion>,
    resized: Option<Geometry>,
    /// Nobody sits here any more.
    left: bool,
}

/// One of the queues, for one thread.
#[derive(Debug)]
pub struct SharedQueue<Q> {
    office: Arc<Mutex<Office<Q>>>,
    desk: Arc<Desk>,
    geometry: Geometry,
    features: Features,
    /// Requests that have not been reported as ended.
    open: usize,
    wake: OwnedFd,
    id: WakeId,
}

impl Desk {
    fn trays(&self) -> MutexGuard<'_, Trays> {
        self.trays.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes its user, if it sleeps.
    fn ring(&self) {
        if self.asleep.load(Ordering::SeqCst) {
            self.wake();
        }
    }

    fn wake(&self) {
        self.bell.ring();
        // Afterwards: at worst it is reset one sleep later.
        self.rung.store(true, Ordering::Release);
    }
}

impl<Q: BlockQueue> Shared<Q> {
    /// A device with one queue. Nothing else may use it.
    pub fn new(queue: Q) -> Self {
        let (desks, flights) = (Vec::new(), Slab::default());
        Self(Arc::new(Mutex::new(Office { queue, desks, flights, turn: 0, sleepers: 0 })))
    }

    /// Looks at the queue below. Whoever wants to use it waits meanwhile.
    pub fn look<T>(&self, look: impl FnOnce(&Q) -> T) -> T {
        look(&self.0.lock().unwrap_or_else(PoisonError::into_inner).queue)
    }

    /// One more queue on it.
    ///
    /// # Errors
    /// The kernel's, if there is no descriptor left.
    pub fn queue(&self) -> io::Result<SharedQueue<Q>> {
        let bell = Bell::new()?;
        let mut office = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let wake = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&wake, &bell, EventData::new_u64(0), EventFlags::IN)?;
        let edge = if office.queue.edge_triggered() { EventFlags::ET } else { EventFlags::empty() };
        epoll::add(&wake, office.queue.wake_fd(), EventData::new_u64(1), EventFlags::IN | edge)?;
        let desk = Arc::new(Desk {
            trays: Mutex::default(),
            asleep: AtomicBool::new(false),
            bell,
            rung: AtomicBool::new(false),
        });
        let seat = Some(Seat { desk: desk.clone(), in_flight: 0 });
        match office.desks.iter_mut().find(|seat| seat.is_none()) {
            Some(free) => *free = seat,
            None => office.desks.push(seat),
        }
        let (geometry, features) = (office.queue.geometry(), office.queue.features());
        drop(office);
        Ok(SharedQueue { office: self.0.clone(), desk, geometry, features, open: 0, wake, id: WakeId::unique() })
    }
}

impl<Q: BlockQueue> Office<Q> {
    /// Takes what is asked, and puts on the desks what has ended, until nothing moves; but a bounded number of times, for
    /// others who ask as fast as this goes must not keep the thread from its own. Its next poll goes on here.
    fn work(&mut self) {
        for round in 1..=ROUNDS {
            let mut moved = self.take_requests();
            self.queue.flush_submissions();
            if round == ROUNDS {
                // Not a poll behind it: what room that made would be offered to nobody. The device says what is left.
                break;
            }
            while let Some(completion) = self.queue.poll() {
                self.deliver(completion);
                moved = true;
            }
            if let Some(geometry) = self.queue.resized() {
                for seat in self.desks.iter().flatten() {
                    seat.desk.trays().resized = Some(geometry);
                    seat.desk.ring();
                }
            }
            if !moved {
                break;
            }
        }
        // Of one that has left, the place is free when the last of its requests has ended.
        for seat in &mut self.desks {
            seat.take_if(|seat| seat.in_flight == 0 && seat.desk.trays().left);
        }
    }

    /// One request of each desk by turns, as long as there is room. Whether there was any.
    fn take_requests(&mut self) -> bool {
        let (mut any, mut idle) = (false, 0);
        while idle < self.desks.len() {
            self.turn = (self.turn + 1) % self.desks.len();
            if self.take_one(self.turn) {
                (any, idle) = (true, 0);
            } else {
                idle += 1;
            }
        }
        any
    }

    fn take_one(&mut self, index: usize) -> bool {
        let may = self.may_take(index);
        let Some(Some(seat)) = self.desks.get_mut(index) else { return false };
        let mut trays = seat.desk.trays();
        trays.fresh = false;
        if !may {
            return false;
        }
        let Some((id, op)) = trays.asked.pop_front() else { return false };
        let number = self.flights.insert((index, id));
        match self.queue.submit(number, op) {
            Ok(()) => {
                seat.in_flight += 1;
                true
            }
            Err(Busy(op)) => {
                self.flights.remove(number);
                trays.asked.push_front((id, op));
                false
            }
        }
    }

    /// Whether a desk may have one more request at the device: its part of one half of all, or a free place of the other.
    fn may_take(&self, index: usize) -> bool {
        let depth = self.queue.geometry().depth as usize;
        let mut seats = self.desks.iter().flatten();
        let part = (depth / 2 / self.desks.len().max(1)).max(1);
        let own = self.desks.get(index).and_then(Option::as_ref).map_or(0, |seat| seat.in_flight);
        if own < part {
            return true;
        }
        // What the others have left of their parts stays theirs.
        let reserved: usize = seats.by_ref().map(|seat| part.saturating_sub(seat.in_flight)).sum();
        self.flights.len() + reserved < depth
    }

    fn deliver(&mut self, completion: BlockCompletion) {
        let Some((index, id)) = self.flights.remove(completion.id) else { return };
        let Some(Some(seat)) = self.desks.get_mut(index) else { return };
        seat.in_flight = seat.in_flight.saturating_sub(1);
        let mut trays = seat.desk.trays();
        if !trays.left {
            trays.ended.push_back(BlockCompletion { id, ..completion });
            drop(trays);
            // SYNC: it says that it sleeps before it looks at its tray for the last time, and both take the tray's lock.
            seat.desk.ring();
        }
    }
}

impl<Q: BlockQueue> SharedQueue<Q> {
    /// Looks after the device, unless somebody else is at it.
    fn look_after(&self) {
        match self.office.try_lock() {
            Ok(mut office) => office.work(),
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner().work(),
            Err(TryLockError::WouldBlock) => {}
        }
    }

    fn office(&self) -> MutexGuard<'_, Office<Q>> {
        self.office.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn awake(&self, office: &mut Office<Q>) {
        if self.desk.asleep.swap(false, Ordering::SeqCst) {
            office.sleepers = office.sleepers.saturating_sub(1);
        }
    }
}

impl<Q: BlockQueue> BlockQueue for SharedQueue<Q> {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn features(&self) -> Features {
        self.features
    }

    fn resized(&mut self) -> Option<Geometry> {
        self.geometry = self.desk.trays().resized.take()?;
        Some(self.geometry)
    }

    fn submit(&mut self, id: u64, op: BlockOp) -> Result<(), Busy> {
        if self.open >= self.geometry.depth as usize {
            return Err(Busy(op));
        }
        self.open += 1;
        let mut trays = self.desk.trays();
        trays.asked.push_back((id, op));
        trays.fresh = true;
        Ok(())
    }

    fn poll(&mut self) -> Option<BlockCompletion> {
        let mut ended = self.desk.trays().ended.pop_front();
        if ended.is_none() {
            self.look_after();
            ended = self.desk.trays().ended.pop_front();
        }
        self.open = self.open.saturating_sub(usize::from(ended.is_some()));
        ended
    }

    fn flush_submissions(&mut self) {
        if self.desk.trays().fresh {
            self.look_after();
        }
    }
}

impl<Q: BlockQueue> Source for SharedQueue<Q> {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    fn wake_id(&self) -> Option<WakeId> {
        Some(self.id)
    }

    fn arm(&mut self) {
        self.desk.bell.arm();
        let mut office = self.office();
        if !self.desk.asleep.swap(true, Ordering::SeqCst) {
            office.sleepers += 1;
        }
        office.queue.arm();
    }

    fn ready(&mut self) -> bool {
        let trays = self.desk.trays();
        if trays.fresh || !trays.ended.is_empty() || trays.resized.is_some() {
            return true;
        }
        drop(trays);
        // Waits for who is at it, who may be somebody that only looks ([`Shared::look`]) and sees nothing of what came.
        self.office().queue.ready()
    }

    fn disarm(&mut self) {
        if self.desk.rung.swap(false, Ordering::Acquire) {
            self.desk.bell.reset();
        }
        let mut office = self.office();
        self.awake(&mut office);
        office.queue.disarm();
        if office.sleepers > 0 {
            // The others sleep on. What came in between is seen by the poll that follows.
            office.queue.arm();
            fence(Ordering::SeqCst);
        }
    }
}

impl<Q> Drop for SharedQueue<Q> {
    fn drop(&mut self) {
        let mut office = self.office.lock().unwrap_or_else(PoisonError::into_inner);
        if self.desk.asleep.swap(false, Ordering::SeqCst) {
            office.sleepers = office.sleepers.saturating_sub(1);
        }
        let mut trays = self.desk.trays();
        *trays = Trays { left: true, ..Trays::default() };
        drop(trays);
        // It may have been woken for the device, and cannot look after it any more.
        office.desks.iter().flatten().for_each(|seat| seat.desk.wake());
    }
}
