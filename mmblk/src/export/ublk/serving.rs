//! One queue of a device, and the thread that serves it.
//!
//! The kernel ties a queue to the thread that fetches its requests first: so each has its own, from the first command to
//! the last.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use fido_core::assignment::WaitStrategy;
use fido_core::heap::HeapError;
use fido_core::memory::Memory;
use fido_core::payload::Payload;
use fido_core::wait::{Source, WakeId};
use fido_core::waiter::Waiter;
use io_uring::{IoUring, opcode, types};

use super::command::{self, ABORTED, COMMIT_AND_FETCH, FETCH, Work};
use super::descriptors::Descriptors;
use crate::device::BoxQueue;
use crate::queue::{BlockCompletion, BlockOp, BlockQueue, Busy};

/// How often it is looked whether there is room for what waits for some.
const LOOK: Duration = Duration::from_millis(1);

/// What a request under way needs at its end.
#[derive(Debug, Clone, Copy)]
struct Flight {
    /// Bytes of payload.
    len: u32,
    /// They come from the device.
    is_read: bool,
}

/// A request that the device had no room for, or the arena.
#[derive(Debug)]
enum Next {
    Op(BlockOp),
    /// A write whose payload has not been taken from the kernel.
    Write {
        offset: u64,
        len: u32,
        durable: bool,
    },
}

/// A queue.
pub(super) struct Serving {
    number: u16,
    file: Arc<File>,
    descriptors: Descriptors,
    ring: IoUring,
    queue: BoxQueue,
    memory: Memory,
    /// By tag: those that the kernel may use still.
    live: Vec<bool>,
    flights: Vec<Option<Flight>>,
    waiting: VecDeque<(u16, Next)>,
    id: WakeId,
}

impl Serving {
    /// Says to the kernel that requests may come. In the thread that is to serve them.
    pub(super) fn start(number: u16, depth: u16, file: Arc<File>, queue: BoxQueue, memory: Memory) -> io::Result<Self> {
        let descriptors = Descriptors::map(&file, number, depth)?;
        // Each tag has at most one entry and one completion.
        let ring = IoUring::new(depth.into())?;
        let mut serving = Self {
            number,
            file,
            descriptors,
            ring,
            queue,
            memory,
            live: vec![true; depth.into()],
            flights: vec![None; depth.into()],
            waiting: VecDeque::new(),
            id: WakeId::unique(),
        };
        (0..depth).for_each(|tag| serving.command(FETCH, tag, 0));
        while !serving.ring.submission().is_empty() {
            serving.ring.submit()?;
        }
        Ok(serving)
    }

    /// Serves until the device is stopped.
    pub(super) fn run(mut self) -> io::Result<()> {
        let mut waiter = Waiter::new(WaitStrategy::Adaptive)?.counting_in(&self.memory);
        loop {
            let mut any = self.take();
            any |= self.go_on();
            self.queue.flush_submissions();
            any |= self.complete();
            self.enter()?;
            if self.queue.resized().is_some() {
                tracing::warn!("the device has another size, which this kernel is not told of");
            }
            if any {
                waiter.busy();
                continue;
            }
            if !self.live.contains(&true) && self.flights.iter().all(Option::is_none) {
                return Ok(());
            }
            let timeout = (!self.waiting.is_empty()).then_some(LOOK);
            let mut kernel = Kernel { ring: &mut self.ring, id: self.id };
            waiter.idle(&mut [&mut kernel, &mut self.queue], timeout)?;
        }
    }

    /// Puts a command for a tag into the ring.
    fn command(&mut self, code: u32, tag: u16, result: i32) {
        let text = command::tag(self.number, tag, result);
        let fd = types::Fd(self.file.as_raw_fd());
        let entry = opcode::UringCmd16::new(fd, code).cmd(text).build().user_data(tag.into());
        // SAFETY: the entry points to no memory: payload goes by reads and writes of the file.
        if unsafe { self.ring.submission().push(&entry) }.is_err() {
            // The ring has a place for each tag, and the kernel gives no tag twice.
            tracing::error!(tag, "no place for a command");
        }
    }

    fn enter(&mut self) -> io::Result<()> {
        if self.ring.submission().is_empty() {
            return Ok(());
        }
        self.memory.stats().syscalls.add(1);
        match self.ring.submit() {
            Err(error) if !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => Err(error),
            // What was not taken is with the next round.
            _ => Ok(()),
        }
    }

    /// Takes what the kernel asks.
    fn take(&mut self) -> bool {
        let mut any = false;
        while let Some(entry) = { self.ring.completion().next() } {
            any = true;
            let Ok(tag) = u16::try_from(entry.user_data()) else { continue };
            match entry.result() {
                0 => self.begin(tag),
                result => {
                    if result != ABORTED {
                        tracing::error!(tag, result, "the kernel refuses a command");
                    }
                    if let Some(live) = self.live.get_mut(usize::from(tag)) {
                        *live = false;
                    }
                }
            }
        }
        any
    }

    fn begin(&mut self, tag: u16) {
        let Some((operation, sectors, first)) = self.descriptors.get(tag) else { return };
        let work = match Work::parse(operation, sectors, first) {
            Ok(work) => work,
            Err(errno) => return self.command(COMMIT_AND_FETCH, tag, -errno),
        };
        let (flight, next) = match work {
            Work::Read { offset, len } => (Flight { len, is_read: true }, Next::Op(BlockOp::Read { offset, len })),
            Work::Write { offset, len, durable } => {
                (Flight { len, is_read: false }, Next::Write { offset, len, durable })
            }
            Work::Flush => (Flight { len: 0, is_read: false }, Next::Op(BlockOp::Flush)),
            Work::Discard { offset, len } => {
                (Flight { len: 0, is_read: false }, Next::Op(BlockOp::Discard { offset, len }))
            }
            Work::Zeroes { offset, len, durable, unmap } => {
                let op = BlockOp::WriteZeroes { offset, len, durable, unmap };
                (Flight { len: 0, is_read: false }, Next::Op(op))
            }
        };
        if let Some(place) = self.flights.get_mut(usize::from(tag)) {
            *place = Some(flight);
        }
        self.waiting.push_back((tag, next));
    }

    /// Hands to the device what waits, in order, as far as there is room.
    fn go_on(&mut self) -> bool {
        let mut any = false;
        while let Some((tag, next)) = self.waiting.pop_front() {
            let op = match next {
                Next::Op(op) => op,
                Next::Write { offset, len, durable } => match self.fetch(tag, len) {
                    Some(Ok(data)) => BlockOp::Write { offset, data, durable },
                    Some(Err(errno)) => {
                        self.end(tag, -errno);
                        any = true;
                        continue;
                    }
                    None => {
                        self.waiting.push_front((tag, next));
                        break;
                    }
                },
            };
            if let Err(Busy(op)) = self.queue.submit(tag.into(), op) {
                self.waiting.push_front((tag, Next::Op(op)));
                break;
            }
            any = true;
        }
        any
    }

    /// Takes a write's payload from the kernel into the arena; `None` if that has no room now.
    fn fetch(&mut self, tag: u16, len: u32) -> Option<Result<Payload, i32>> {
        let mut buf = match self.memory.alloc(len as usize) {
            Ok(buf) => buf,
            Err(HeapError::Exhausted { wanted, capacity, .. }) if wanted <= capacity => return None,
            // There will never be: waiting would hold up all that comes behind.
            Err(_) => return Some(Err(libc::ENOMEM)),
        };
        let (start, mut done) = (command::payload_at(self.number, tag), 0);
        while done < buf.len() {
            let at = start + done as u64;
            self.memory.stats().syscalls.add(1);
            match rustix::io::pread(&*self.file, &mut buf.as_mut_slice()[done..], at) {
                Ok(0) => return Some(Err(libc::EIO)),
                Ok(count) => done += count,
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Some(Err(errno.raw_os_error())),
            }
        }
        Some(Ok(buf.into_payload()))
    }

    /// Takes what the device has finished.
    fn complete(&mut self) -> bool {
        let mut any = false;
        while let Some(BlockCompletion { id, result }) = self.queue.poll() {
            any = true;
            let Ok(tag) = u16::try_from(id) else { continue };
            let Some(flight) = self.flights.get(usize::from(tag)).copied().flatten() else { continue };
            let result = match result {
                Ok(data) if flight.is_read => self.give(tag, &data, flight.len),
                Ok(_) => Ok(()),
                Err(error) => {
                    tracing::debug!(%error, "a request failed");
                    Err(command::errno(&error))
                }
            };
            self.end(tag, result.map_or_else(|errno| -errno, |()| flight.len as i32));
        }
        any
    }

    /// Gives a read's payload to the kernel, from where the device has lent it.
    fn give(&self, tag: u16, data: &Payload, len: u32) -> Result<(), i32> {
        if data.len() != u64::from(len) {
            return Err(libc::EIO);
        }
        let spans = self.memory.translate_all(data).map_err(|_| libc::EIO)?;
        let mut at = command::payload_at(self.number, tag);
        for span in &spans {
            let mut done = 0;
            while done < span.len() {
                self.memory.stats().syscalls.add(1);
                // SAFETY: the span is mapped for as long as it is there, and only the kernel reads what is behind the
                // address, whatever its owner writes there meanwhile. `done` is less than its length.
                let count = unsafe {
                    let from = span.as_ptr().as_ptr().add(done).cast();
                    libc::pwrite64(self.file.as_raw_fd(), from, span.len() - done, at as i64)
                };
                match usize::try_from(count) {
                    Ok(0) => return Err(libc::EIO),
                    Ok(count) => (done, at) = (done + count, at + count as u64),
                    Err(_) => match io::Error::last_os_error().raw_os_error() {
                        Some(libc::EINTR) => {}
                        errno => return Err(errno.unwrap_or(libc::EIO)),
                    },
                }
            }
        }
        Ok(())
    }

    fn end(&mut self, tag: u16, result: i32) {
        if let Some(place) = self.flights.get_mut(usize::from(tag)) {
            *place = None;
        }
        self.command(COMMIT_AND_FETCH, tag, result);
    }
}

/// What the kernel asks, as something to wait for.
struct Kernel<'a> {
    ring: &'a mut IoUring,
    id: WakeId,
}

impl Source for Kernel<'_> {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring's descriptor is open as long as the ring, which is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }

    fn wake_id(&self) -> Option<WakeId> {
        Some(self.id)
    }

    fn ready(&mut self) -> bool {
        !self.ring.completion().is_empty() || !self.ring.submission().is_empty()
    }
}
