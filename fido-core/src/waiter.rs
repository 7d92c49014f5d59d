//! How a thread waits for many sources with one sleep.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use crate::assignment::WaitStrategy;
use crate::wait::Source;

/// The longest the adaptive strategy spins before it sleeps: what waking a sleeper costs, about. (Karlin et al. 1994:
/// spinning as long as a block costs is at most twice as bad as knowing the future.)
const MAX_SPIN: Duration = Duration::from_micros(24);
/// The shortest spin that is still a try.
const MIN_SPIN: Duration = Duration::from_micros(2);
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
    /// How long to spin, learned from how long waits were. Zero: spinning has not been paying off.
    spin: Duration,
    sleeps: u64,
}

impl Waiter {
    /// A waiter.
    ///
    /// # Errors
    /// The kernel's, if there is no descriptor left.
    pub fn new(strategy: WaitStrategy) -> io::Result<Self> {
        let alone = std::thread::available_parallelism().is_ok_and(|cores| cores.get() == 1);
        Ok(Self {
            strategy,
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            watched: Vec::new(),
            idle_since: None,
            spin: if alone { Duration::ZERO } else { MAX_SPIN },
            sleeps: 0,
        })
    }

    /// How often it has slept.
    pub fn sleeps(&self) -> u64 {
        self.sleeps
    }

    /// The last round found work.
    pub fn busy(&mut self) {
        if let Some(since) = self.idle_since.take()
            && self.strategy == WaitStrategy::Adaptive
            && self.spin > Duration::ZERO
            && since.elapsed() <= self.spin
        {
            // Spinning was enough: keep at it.
            self.spin = (self.spin * 2).min(MAX_SPIN);
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
            WaitStrategy::Adaptive => since.elapsed() < self.spin,
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
            self.idle_since = None;
        }
        sources.iter_mut().for_each(|source| source.disarm());
        Ok(())
    }

    fn sleep(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.sleeps += 1;
        let began = Instant::now();
        let timeout = timeout.and_then(|limit| rustix::event::Timespec::try_from(limit).ok());
        let mut events = [const { std::mem::MaybeUninit::uninit() }; 16];
        match epoll::wait(&self.epoll, &mut events[..], timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if self.strategy == WaitStrategy::Adaptive {
            self.learn(began.elapsed());
        }
        Ok(())
    }

    /// A short sleep would have been a successful spin; a long one says that spinning was for nothing.
    fn learn(&mut self, slept: Duration) {
        if self.spin == Duration::ZERO {
            // One processor: whoever we wait for needs it.
            return;
        }
        self.spin = if slept < 2 * MAX_SPIN { (self.spin * 2).min(MAX_SPIN) } else { (self.spin / 2).max(MIN_SPIN) };
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

    #[test]
    fn spinners_never_sleep() {
        let mut waiter = Waiter::new(WaitStrategy::Spin).unwrap();
        for _ in 0..10 {
            waiter.idle(&mut [], Some(Duration::ZERO)).unwrap();
        }
        assert_eq!(waiter.sleeps(), 0);
    }

    #[test]
    fn an_idle_time_lasts_until_a_sleep_or_work() {
        let mut waiter = Waiter::new(WaitStrategy::Sleep).unwrap();
        let mut source = Restless(crate::bell::Bell::new().unwrap());
        waiter.idle(&mut [&mut source], None).unwrap();
        assert!(waiter.sleeps() == 0 && waiter.idle_since.is_some());
        waiter.busy();
        assert!(waiter.idle_since.is_none());
        waiter.idle(&mut [], Some(Duration::ZERO)).unwrap();
        assert!(waiter.sleeps() == 1 && waiter.idle_since.is_none());
    }
}
