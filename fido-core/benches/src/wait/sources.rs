//! One thread that sleeps on many sources: what wakes it how fast, by which of the kernel's means.
//!
//! The waker spins on a core of its own and rings one source after the other; the sleeper is on another core, which is
//! idle when the bell rings. Nothing is in flight but that one bell.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fido_core::assignment::WaitStrategy;
use fido_core::testing::mesh;
use fido_core::wait::Source;
use fido_core::waiter::Waiter;
use hdrhistogram::Histogram;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::thread::futex;
use rustix::time::ClockId;

use crate::{Failure, machine};

/// How many sources there are.
pub const SOURCES: [usize; 4] = [1, 16, 64, 224];
/// How long the sleeper is given to fall asleep.
const SETTLE: Duration = Duration::from_micros(50);
/// The most words that one futex_waitv takes.
const WAITV_MAX: usize = 128;
const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// A means of sleeping on many sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Means {
    /// An epoll set over an eventfd for each source, edge-triggered: what a lane has.
    EpollSet,
    /// poll over them.
    Poll,
    /// One eventfd for all, behind an epoll set, beside which there is room for sockets.
    SharedInSet,
    /// One eventfd for all, and a read that blocks: nothing else can be waited for.
    SharedRead,
    /// futex_waitv over a word for each source, in the waker's memory: no descriptors.
    Futexes,
}

/// All of them.
pub const MEANS: [Means; 5] = [Means::EpollSet, Means::Poll, Means::SharedInSet, Means::SharedRead, Means::Futexes];

impl Means {
    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::EpollSet => "epoll, an eventfd each",
            Self::Poll => "poll, an eventfd each",
            Self::SharedInSet => "epoll, one eventfd",
            Self::SharedRead => "read, one eventfd",
            Self::Futexes => "futex_waitv, a word each",
        }
    }
}

/// What one means came to with so many sources.
pub struct Wakes {
    /// The means.
    pub means: Means,
    /// The number of sources.
    pub sources: usize,
    /// From the ring to the sleeper's return, in nanoseconds; `None` if the kernel does not take so many.
    pub times: Option<Histogram<u64>>,
    /// What a ring took the waker, in nanoseconds, the median.
    pub ring: f64,
    /// What a look took that found nothing, in nanoseconds.
    pub look: f64,
}

/// The descriptors and words of one measurement.
struct Kit {
    means: Means,
    bells: Vec<OwnedFd>,
    set: OwnedFd,
    words: Vec<AtomicU32>,
}

impl Kit {
    fn new(means: Means, sources: usize) -> Result<Self, Failure> {
        let shared = matches!(means, Means::SharedInSet | Means::SharedRead);
        let flags = if means == Means::SharedRead { EventfdFlags::empty() } else { EventfdFlags::NONBLOCK };
        let bells: Vec<_> =
            (0..if shared { 1 } else { sources }).map(|_| eventfd(0, flags)).collect::<Result<_, _>>()?;
        let set = epoll::create(CreateFlags::CLOEXEC)?;
        for bell in &bells {
            epoll::add(&set, bell, EventData::new_u64(0), EventFlags::IN | EventFlags::ET)?;
        }
        Ok(Self { means, bells, set, words: (0..sources).map(|_| AtomicU32::new(0)).collect() })
    }

    fn ring(&self, turn: usize) -> Result<(), Errno> {
        if self.means == Means::Futexes {
            let word = &self.words[turn % self.words.len()];
            word.fetch_add(1, Ordering::SeqCst);
            futex::wake(word, futex::Flags::empty(), 1)?;
        } else {
            rustix::io::write(&self.bells[turn % self.bells.len()], &1u64.to_ne_bytes())?;
        }
        Ok(())
    }

    /// What the words are now: a sleep on them ends when one is another.
    fn expected(&self) -> Vec<futex::Wait> {
        let words = self.words.iter().map(|word| {
            let mut wait = futex::Wait::new();
            wait.val = word.load(Ordering::SeqCst).into();
            wait.uaddr = futex::WaitPtr::new(word.as_ptr().cast());
            wait.flags = futex::WaitFlags::SIZE_U32;
            wait
        });
        words.collect()
    }

    /// Sleeps until a source is rung, or only looks.
    fn sleep(&self, expected: &[futex::Wait], look: bool) -> Result<(), Errno> {
        let limit = look.then_some(&NOW);
        let slept = match self.means {
            Means::EpollSet | Means::SharedInSet => {
                let mut events = [const { std::mem::MaybeUninit::uninit() }; 16];
                epoll::wait(&self.set, &mut events[..], limit).map(drop)
            }
            Means::Poll => {
                let mut fds: Vec<_> = self.bells.iter().map(|bell| PollFd::new(bell, PollFlags::IN)).collect();
                poll(&mut fds, limit)?;
                for fd in fds.iter().filter(|fd| !fd.revents().is_empty()) {
                    rustix::io::read(fd.as_fd(), &mut [0; 8])?;
                }
                Ok(())
            }
            // There is no look that does not block; that of poll stands for it.
            Means::SharedRead if look => poll(&mut [PollFd::new(&self.bells[0], PollFlags::IN)], limit).map(drop),
            Means::SharedRead => rustix::io::read(&self.bells[0], &mut [0; 8]).map(drop),
            Means::Futexes => futex::waitv(expected, futex::WaitvFlags::empty(), limit, ClockId::Monotonic).map(drop),
        };
        match slept {
            Err(Errno::INTR | Errno::AGAIN | Errno::TIMEDOUT) => Ok(()),
            other => other,
        }
    }
}

/// Measures one means with so many sources.
///
/// # Errors
/// The kernel's.
pub fn measure(means: Means, sources: usize, wakes: u32) -> Result<Wakes, Failure> {
    if means == Means::Futexes && sources > WAITV_MAX {
        return Ok(Wakes { means, sources, times: None, ring: f64::NAN, look: f64::NAN });
    }
    let kit = Kit::new(means, sources)?;
    let look = look(&kit)?;
    let cores = machine::two_cores()?;
    let (asleep, woken, gone) = (AtomicU32::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let began = Instant::now();
    let mut times = Histogram::new(3)?;
    let mut rings = Histogram::<u64>::new(3)?;
    std::thread::scope(|scope| -> Result<(), Failure> {
        let sleeper = scope.spawn(|| -> Result<(), Failure> {
            let sleeps = || -> Result<(), Failure> {
                machine::pin(cores.map(|(_, core)| core))?;
                for turn in 1..=wakes {
                    let expected = kit.expected();
                    asleep.store(turn, Ordering::Release);
                    kit.sleep(&expected, false)?;
                    woken.store(began.elapsed().as_nanos() as u64, Ordering::Release);
                }
                Ok(())
            };
            let slept = sleeps();
            gone.store(slept.is_err(), Ordering::Release);
            slept
        });
        let waker = scope.spawn(|| -> Result<(), Failure> {
            machine::pin(cores.map(|(core, _)| core))?;
            for turn in 1..=wakes {
                while asleep.load(Ordering::Acquire) != turn && !gone.load(Ordering::Acquire) {
                    std::hint::spin_loop();
                }
                woken.store(0, Ordering::Relaxed);
                let settled = Instant::now() + SETTLE;
                while Instant::now() < settled {
                    std::hint::spin_loop();
                }
                let before = began.elapsed().as_nanos() as u64;
                kit.ring(turn as usize)?;
                rings.record(began.elapsed().as_nanos() as u64 - before)?;
                let mut at = 0;
                while at == 0 && !gone.load(Ordering::Acquire) {
                    at = woken.load(Ordering::Acquire);
                }
                times.record(at.saturating_sub(before))?;
            }
            Ok(())
        });
        waker.join().map_err(|_| "the waker panicked")??;
        sleeper.join().map_err(|_| "the sleeper panicked")?
    })?;
    Ok(Wakes { means, sources, times: Some(times), ring: rings.value_at_quantile(0.5) as f64, look })
}

/// What a look costs that finds nothing, in nanoseconds.
fn look(kit: &Kit) -> Result<f64, Failure> {
    const LOOKS: u32 = 1000;
    let expected = kit.expected();
    let began = Instant::now();
    for _ in 0..LOOKS {
        kit.sleep(&expected, true)?;
    }
    Ok(began.elapsed().as_nanos() as f64 / f64::from(LOOKS))
}

/// What the whole of a sleep costs a thread that serves so many lanes, in nanoseconds: arming, looking and disarming all
/// of them, and the system call, which finds nothing and is over at once.
///
/// # Errors
/// The kernel's.
pub fn lanes(lanes: usize, sleeps: u32) -> Result<f64, Failure> {
    let pairs = vec![(0, 1); lanes];
    let mut nodes = mesh(2, &pairs, 4, 4 << 20);
    let Some(node) = nodes.pop() else { return Err("two domains".into()) };
    let mut waiter = Waiter::new(WaitStrategy::Sleep)?.counting_in(&node.memory);
    let mut lanes = node.lanes;
    let mut took = Vec::new();
    for _ in 0..sleeps {
        let mut sources: Vec<&mut dyn Source> = lanes.iter_mut().map(|lane| lane as &mut dyn Source).collect();
        let began = Instant::now();
        waiter.idle(&mut sources, Some(Duration::ZERO))?;
        took.push(began.elapsed().as_nanos() as f64);
    }
    Ok(crate::report::median(&took))
}
