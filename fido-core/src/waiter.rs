//! How a thread waits for many sources with one sleep.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use crate::arena::OwnArena;
use crate::assignment::WaitStrategy;
use crate::memory::Memory;
use crate::spin::Spin;
use crate::wait::Source;

/// Rounds of the pause instruction between two looks at the sources.
const PAUSES: u32 = 16;

/// Waits by a [`WaitStrategy`]. One per thread.
#[derive(Debug)]
pub struct Waiter {
    strategy: WaitStrategy,
    epoll: OwnedFd,
    watched: Vec<RawFd>,
    /// When the present idle time began.
    idle_since: Option<Instant>,
    spin: Spin,
    /// Whose counters say how often it slept.
    arena: Option<Arc<OwnArena>>,
}

impl Waiter {
    /// A waiter of a thread that waits for one other.
    ///
    /// # Errors
    /// The kernel's, if there is no descriptor left.
    pub fn new(strategy: WaitStrategy) -> io::Result<Self> {
        Self::among(strategy, 2)
    }

    /// A waiter of one of `threads` threads that wait for each other. The adaptive strategy spins only where each of
    /// them can have a processor: else the spinner holds up the one it waits for.
    ///
    /// # Errors
    /// The kernel's, if there is no descriptor left.
    pub fn among(strategy: WaitStrategy, threads: usize) -> io::Result<Self> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            strategy,
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            watched: Vec::new(),
            idle_since: None,
            // Whoever is alone in its appliance still waits for the world outside.
            spin: Spin::new(processors >= threads.max(2)),
            arena: None,
        })
    }

    /// Counts sleeps in the domain's counters from now on.
    pub fn counting_in(self, memory: &Memory) -> Self {
        Self { arena: Some(memory.arena().clone()), ..self }
    }

    /// The last round found work.
    pub fn busy(&mut self) {
        if self.idle_since.take().is_some() {
            self.spin.waited(true);
        }
    }

    /// The last round found nothing: spins for a moment, or sleeps until a source is ready or `timeout` is over.
    /// Poll all sources after it returns, and try again what found no room, for whatever reason it does.
    ///
    /// # Errors
    /// The kernel's, if a source's descriptor cannot be waited for.
    pub fn idle(&mut self, sources: &mut [&mut dyn Source], timeout: Option<Duration>) -> io::Result<()> {
        let since = *self.idle_since.get_or_insert_with(Instant::now);
        let spins = match self.strategy {
            WaitStrategy::Spin => true,
            WaitStrategy::Adaptive => since.elapsed() < self.spin.budget(),
            WaitStrategy::Sleep => false,
        };
        if spins {
            (0..PAUSES).for_each(|_| std::hint::spin_loop());
            return Ok(());
        }
        self.watch(sources)?;
        sources.iter_mut().for_each(|source| source.arm());
        // SYNC: pairs with the fence in `ring::Waker::must_ring`: what a waker published before its fence is seen
        // below, or the armed words are seen by the waker.
        fence(Ordering::SeqCst);
        // What is ready at this look may turn out to be nothing: the spin before it was this idle time's only one.
        if !sources.iter_mut().any(|source| source.ready()) {
            self.sleep(timeout)?;
            self.spin.waited(false);
            self.idle_since = None;
        }
        sources.iter_mut().for_each(|source| source.disarm());
        Ok(())
    }

    fn sleep(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        if let Some(arena) = &self.arena {
            arena.stats().sleeps.add(1);
            arena.stats().syscalls.add(1);
        }
        let timeout = timeout.and_then(|limit| rustix::event::Timespec::try_from(limit).ok());
        let mut events = [const { std::mem::MaybeUninit::uninit() }; 16];
        match epoll::wait(&self.epoll, &mut events[..], timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Makes the epoll set that of `sources`; nothing to do if they are the same as last time.
    fn watch(&mut self, sources: &[&mut dyn Source]) -> io::Result<()> {
        let same = self.watched.len() == sources.len()
            && sources.iter().zip(&self.watched).all(|(source, fd)| source.wake_fd().as_raw_fd() == *fd);
        if same {
            return Ok(());
        }
        // A fresh set: descriptors of sources that are gone may be closed or stand for something else by now.
        self.epoll = epoll::create(CreateFlags::CLOEXEC)?;
        self.watched.clear();
        for source in sources {
            let fd = source.wake_fd();
            let mut flags = EventFlags::IN;
            if source.edge_triggered() {
                flags |= EventFlags::ET;
            }
            match epoll::add(self.epoll.as_fd(), fd, EventData::new_u64(0), flags) {
                // Two sources may share a descriptor.
                Ok(()) | Err(rustix::io::Errno::EXIST) => self.watched.push(fd.as_raw_fd()),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    /// Something to do that turns out to be nothing, ever again.
    struct Restless(crate::bell::Bell);

    impl Source for Restless {
        fn wake_fd(&self) -> std::os::fd::BorrowedFd<'_> {
            self.0.as_fd()
        }

        fn ready(&mut self) -> bool {
            true
        }
    }

    /// A waiter and the memory that counts its sleeps.
    fn counted(strategy: WaitStrategy) -> (Waiter, Memory) {
        let memory = crate::testing::private_memory(1 << 20);
        (Waiter::new(strategy).unwrap().counting_in(&memory), memory)
    }

    #[test]
    fn spinners_never_sleep() {
        let (mut waiter, memory) = counted(WaitStrategy::Spin);
        for _ in 0..10 {
            waiter.idle(&mut [], Some(Duration::ZERO)).unwrap();
        }
        assert_eq!(memory.stats().sleeps.get(), 0);
    }

    #[test]
    fn an_idle_time_lasts_until_a_sleep_or_work() {
        let (mut waiter, memory) = counted(WaitStrategy::Sleep);
        let sleeps = || memory.stats().sleeps.get();
        let mut source = Restless(crate::bell::Bell::new().unwrap());
        waiter.idle(&mut [&mut source], None).unwrap();
        assert!(sleeps() == 0 && waiter.idle_since.is_some());
        waiter.busy();
        assert!(waiter.idle_since.is_none());
        waiter.idle(&mut [], Some(Duration::ZERO)).unwrap();
        assert!(sleeps() == 1 && waiter.idle_since.is_none());
    }
}
