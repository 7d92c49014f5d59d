//! One io_uring over a [`FileDevice`](super::FileDevice).
//!
//! `submit` only fills ring entries; `flush_submissions` hands all of them to the kernel with one system call; `poll`
//! reads completions from the mapped ring without any. The ring's descriptor is the wake descriptor.
//!
//! A read needs a buffer before it can start. While the arena has none, reads wait in order, and a timer of the ring
//! wakes the queue every millisecond to look again (a buffer may be returned by any thread, which rings no bell
//! here). A read that has waited [`BUFFER_PATIENCE`] fails with [`BlockError::NoBuffer`]: its caller may be holding
//! the very buffers it waits for.
//!
//! A queue may go from thread to thread, but a thread that has used it must not end before what it submitted has: the
//! kernel fails requests, reads with EFAULT, with the thread that submitted them.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fido_core::foreign::Landing;
use fido_core::memory::Memory;
use fido_core::wait::{Source, WakeId};
use io_uring::{IoUring, opcode, squeue, types};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use super::direct::{Registered, Ways, WaysTaken};
use super::holes;
use super::open::{FileError, Shared, os};
use super::request::{Request, Step};
use crate::backend::size::Follower;
use crate::extents;
use crate::finished::Finished;
use crate::queue::{BlockCompletion, BlockError, BlockOp, BlockQueue, Busy, Features, Geometry};

/// How long a read waits for a buffer.
pub const BUFFER_PATIENCE: Duration = Duration::from_secs(1);
/// How long a dropped queue waits for what the kernel still has.
const DROP_PATIENCE: Duration = Duration::from_secs(5);
/// How often a queue looks for a buffer that has been returned.
const BUFFER_INTERVAL_NANOS: u32 = 1_000_000;
/// The timer's completion; requests have their index in the table.
const TIMER: u64 = u64::MAX;
/// The completion of the wait for the bell of the device's size.
const BELL: u64 = u64::MAX - 1;

/// A queue of a [`FileDevice`](super::FileDevice).
pub struct FileQueue {
    device: Arc<Shared>,
    memory: Memory,
    ring: IoUring,
    registered: Registered,
    ways: WaysTaken,
    follower: Follower,
    id: WakeId,
    /// What the kernel has, by index; `None` where free.
    table: Vec<Option<Request>>,
    free: Vec<usize>,
    /// Reads without a buffer, in order.
    waiting: VecDeque<Waiting>,
    finished: Finished,
    timer: Box<types::Timespec>,
    timer_set: bool,
    /// Entries that `poll` has made or the kernel did not take: `poll` itself hands them on.
    owed: bool,
}

#[derive(Debug)]
struct Waiting {
    id: u64,
    offset: u64,
    len: u32,
    since: Instant,
}

impl FileQueue {
    pub(super) fn new(device: Arc<Shared>, memory: Memory) -> Result<Self, FileError> {
        let depth = device.opened.depth;
        // Two entries more than requests, for the timer and the size's bell: so neither ring can overflow.
        let ring = IoUring::new(depth + 2).map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::NOSYS | Errno::PERM | Errno::ACCESS) => {
                FileError::NoIoUring { path: device.path.clone(), error }
            }
            _ => os(&device.path, "make a ring for it")(error),
        })?;
        let follower = device.size.follow(device.opened).map_err(os(&device.path, "follow its size"))?;
        let registered = if device.direct.is_some() { Registered::new(&ring, &memory) } else { Registered::none() };
        let mut queue = Self {
            device,
            memory,
            ring,
            registered,
            ways: WaysTaken::default(),
            follower,
            id: WakeId::unique(),
            table: (0..depth).map(|_| None).collect(),
            free: (0..depth as usize).rev().collect(),
            waiting: VecDeque::new(),
            finished: Finished::default(),
            timer: Box::new(types::Timespec::new().nsec(BUFFER_INTERVAL_NANOS)),
            timer_set: false,
            owed: false,
        };
        queue.listen();
        Ok(queue)
    }

    /// Has the ring wake this queue when the device's size changes.
    fn listen(&mut self) {
        let fd = types::Fd(self.follower.as_fd().as_raw_fd());
        let entry = opcode::PollAdd::new(fd, libc::POLLIN as u32).build().user_data(BELL);
        // SAFETY: the entry points to no memory.
        self.owed |= unsafe { self.push(&entry) };
    }

    /// The memory that it translates with and lends buffers of.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// By which ways reads and writes have gone so far.
    pub fn ways_taken(&self) -> WaysTaken {
        self.ways
    }

    /// Requests in the kernel's hands, or about to be.
    fn in_flight(&self) -> usize {
        self.table.len() - self.free.len()
    }

    fn is_full(&self) -> bool {
        self.in_flight() + self.waiting.len() + self.finished.len() >= self.table.len()
    }

    fn start(&mut self, id: u64, mut op: BlockOp) -> Result<(), BlockError> {
        self.device.features.check(&op)?;
        self.device.geometry().check(&op)?;
        if let BlockOp::Write { durable, .. } | BlockOp::WriteZeroes { durable, .. } = &mut op {
            *durable |= self.device.write_through;
        }
        if op.is_durable() {
            self.device.sync_latch.check()?;
        }
        match op {
            BlockOp::Read { offset, len } => {
                self.waiting.push_back(Waiting { id, offset, len, since: Instant::now() });
                self.start_reads();
            }
            BlockOp::Write { offset, data, durable } => {
                let spans = self.memory.translate_all(&data).map_err(|e| BlockError::Address(e.to_string()))?;
                self.begin(Request::write(id, offset, data, spans, durable));
            }
            BlockOp::Flush => self.begin(Request::flush(id)),
            BlockOp::Discard { offset, len } => self.begin(Request::discard(id, offset, len)),
            BlockOp::WriteZeroes { offset, len, durable, unmap } => {
                self.begin(Request::zeroes(id, offset, len, durable, unmap));
            }
            BlockOp::Extents { offset, len } => {
                let list = holes::extents(&self.device.file, offset, len, self.device.opened.block)?;
                self.finished.push(id, Ok(extents::write(&list, &self.memory)?));
            }
        }
        Ok(())
    }

    /// Starts waiting reads as far as there are buffers.
    fn start_reads(&mut self) {
        while let Some(first) = self.waiting.front() {
            if let Ok(buf) = self.memory.alloc(first.len as usize) {
                let request = Request::read(first.id, first.offset, buf);
                self.waiting.pop_front();
                self.begin(request);
            } else if first.since.elapsed() >= BUFFER_PATIENCE {
                self.finished.push(first.id, Err(BlockError::NoBuffer));
                self.waiting.pop_front();
            } else {
                return self.set_timer();
            }
        }
    }

    fn set_timer(&mut self) {
        if !self.timer_set {
            let entry = opcode::Timeout::new(&raw const *self.timer).build().user_data(TIMER);
            // SAFETY: the kernel copies the time when the entry is handed on, and the box lives as long as the ring.
            self.timer_set = unsafe { self.push(&entry) };
            self.owed = true;
        }
    }

    /// Puts a request into the table and the ring.
    fn begin(&mut self, request: Request) {
        // `submit` takes no more requests than the table has places.
        let Some(index) = self.free.pop() else {
            return self.finished.push(request.id, Err(BlockError::Io { errno: libc::EBUSY }));
        };
        if let Some(place) = self.table.get_mut(index) {
            *place = Some(request);
        }
        self.enqueue(index);
    }

    /// Puts the next (or first) entry of the request at `index` into the ring.
    fn enqueue(&mut self, index: usize) {
        let Self { device, registered, .. } = self;
        let ways = Ways { cached: device.file.as_raw_fd(), direct: device.direct.as_ref(), registered };
        let Some(request) = self.table.get_mut(index).and_then(Option::as_mut) else { return };
        let (entry, way) = request.entry(ways);
        let entry = entry.user_data(index as u64);
        way.into_iter().for_each(|way| self.ways.count(way));
        // SAFETY: the entry points into memory that the request at `index` keeps in place: an own buffer, or iovecs
        // on the heap and the spans or areas behind them. It leaves the table only in `complete`, after the kernel's
        // completion, or is leaked when the queue is dropped.
        if !unsafe { self.push(&entry) } {
            self.finish(index, Err(BlockError::Io { errno: libc::EBUSY }));
        }
    }

    /// Puts an entry into the ring. Returns whether there was room, which the ring's size guarantees.
    ///
    /// # Safety
    /// What the entry points to must stay valid until its completion.
    unsafe fn push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: as the caller promises.
        unsafe { self.ring.submission().push(entry) }.is_ok()
    }

    /// Hands the ring's entries to the kernel.
    fn enter(&mut self) {
        if self.ring.submission().is_empty() {
            self.owed = false;
            return;
        }
        self.memory.stats().syscalls.add(1);
        // An error (EINTR, or EAGAIN and EBUSY for want of memory) leaves the entries where they are, for the next
        // poll.
        self.owed = match self.ring.submit() {
            Ok(_) => !self.ring.submission().is_empty(),
            Err(error) => {
                tracing::debug!(%error, "the ring took no entries");
                true
            }
        };
    }

    /// Takes all completions from the ring.
    fn reap(&mut self) {
        while let Some(entry) = { self.ring.completion().next() } {
            match entry.user_data() {
                TIMER => self.timer_set = false,
                BELL => {
                    self.follower.reset();
                    // The kernel ends the wait with the thread that has begun it, too; else with no error.
                    if entry.result() >= 0 || entry.result() == -libc::ECANCELED {
                        self.listen();
                    }
                }
                index => self.complete(index as usize, entry.result()),
            }
        }
    }

    fn complete(&mut self, index: usize, result: i32) {
        let Some(request) = self.table.get_mut(index).and_then(Option::as_mut) else { return };
        match request.step(result) {
            Step::Again => {
                self.enqueue(index);
                self.owed = true;
            }
            Step::End(mut result) => {
                if let Some(errno) = result.as_ref().err().and_then(|error| request.sync_failure(error)) {
                    tracing::error!(path = %self.device.path.display(), errno, "not durable: no flush succeeds any more");
                    self.device.sync_latch.set(errno);
                }
                if request.syncs() {
                    // Another one's failure may have been what this one would have been told.
                    result = result.and_then(|()| self.device.sync_latch.check());
                }
                self.finish(index, result);
            }
        }
    }

    fn finish(&mut self, index: usize, result: Result<(), BlockError>) {
        let Some(request) = self.table.get_mut(index).and_then(Option::take) else { return };
        self.free.push(index);
        let id = request.id;
        let (payload, moved) = request.into_result();
        self.finished.push_counted(id, result.map(|()| payload), moved, self.memory.stats());
    }
}

impl BlockQueue for FileQueue {
    fn geometry(&self) -> Geometry {
        self.follower.geometry()
    }

    fn resized(&mut self) -> Option<Geometry> {
        self.follower.news(&self.device.size)
    }

    fn features(&self) -> Features {
        self.device.features
    }

    fn submit(&mut self, id: u64, op: BlockOp) -> Result<(), Busy> {
        if self.is_full() {
            return Err(Busy(op));
        }
        if let Err(error) = self.start(id, op) {
            self.finished.push(id, Err(error));
        }
        Ok(())
    }

    fn reaches_foreign(&self) -> bool {
        true
    }

    fn read_into(&mut self, id: u64, offset: u64, landing: Landing) -> Result<(), Landing> {
        if self.is_full() {
            return Err(landing);
        }
        match self.device.geometry().check_read_into(offset, &landing) {
            Ok(()) => self.begin(Request::read_into(id, offset, landing)),
            Err(error) => self.finished.push(id, Err(error)),
        }
        Ok(())
    }

    fn poll(&mut self) -> Option<BlockCompletion> {
        if self.finished.is_empty() {
            self.reap();
            let waiting = self.waiting.len();
            self.start_reads();
            // Nobody else will hand on what has been started here.
            self.owed |= self.waiting.len() != waiting;
            if self.owed {
                self.enter();
            }
        }
        self.finished.pop()
    }

    fn flush_submissions(&mut self) {
        self.enter();
    }
}

impl Source for FileQueue {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring's descriptor is open as long as the ring, and the borrow does not outlive `self`.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }

    fn wake_id(&self) -> Option<WakeId> {
        Some(self.id)
    }

    fn ready(&mut self) -> bool {
        let behind = self.follower.is_behind(&self.device.size);
        behind || self.owed || !self.finished.is_empty() || !self.ring.completion().is_empty()
    }
}

impl Drop for FileQueue {
    /// Waits until the kernel has ended all requests (those not yet handed on are carried out). A disk that hangs
    /// longer than `DROP_PATIENCE` costs their memory: it is leaked, since the kernel still uses it.
    fn drop(&mut self) {
        self.waiting.clear();
        let deadline = Instant::now() + DROP_PATIENCE;
        while self.in_flight() > 0 {
            self.enter();
            self.reap();
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            if self.in_flight() > 0 {
                let timeout = rustix::event::Timespec::try_from(left.min(Duration::from_millis(100))).ok();
                let ring = PollFd::from_borrowed_fd(self.wake_fd(), PollFlags::IN);
                // Whatever it says, the loop looks again.
                let _ = rustix::event::poll(&mut [ring], timeout.as_ref());
            }
        }
        if self.in_flight() > 0 {
            tracing::warn!(path = %self.device.path.display(), requests = self.in_flight(), "leaked: the disk hangs");
            // The requests keep their buffers and spans, and these keep their arenas mapped: leaking the table keeps
            // all of it in place for ever. The ring itself may go: requests do not need it to end.
            std::mem::forget(std::mem::take(&mut self.table));
        }
    }
}

impl std::fmt::Debug for FileQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FileQueue({}, {} in flight)", self.device.path.display(), self.in_flight())
    }
}
