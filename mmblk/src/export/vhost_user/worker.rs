//! The thread that serves one ring.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use fido_core::assignment::WaitStrategy;
use fido_core::bell::{Bell, Ringer};
use fido_core::wait::{Source, WakeId};
use fido_core::waiter::Waiter;

use super::ring::RingError;
use super::serving::{Queue, Serving};
use crate::queue::Geometry;

/// How often it is looked whether there is room for what waits for some.
const LOOK: Duration = Duration::from_millis(1);

/// A descriptor of the front end's that is rung: to be replaced while the ring is served.
#[derive(Debug, Clone, Default)]
pub struct Call(Arc<Mutex<Option<OwnedFd>>>);

impl Call {
    /// Rings another one from now on.
    pub fn set(&self, fd: Option<OwnedFd>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = fd;
    }

    /// Rings, if there is something to ring.
    pub fn ring(&self) {
        if let Some(fd) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            // It does not block, and one that is full has been rung.
            let _ = rustix::io::write(fd, &1_u64.to_ne_bytes());
        }
    }
}

/// What the thread shares with whoever started it.
#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    bell: Bell,
}

/// What a worker needs besides the ring.
pub struct Tools {
    /// What the guest rings.
    pub kick: OwnedFd,
    /// What rings the guest.
    pub call: Call,
    /// What tells the front end that the ring is broken.
    pub error: Call,
    /// Where it counts.
    pub memory: fido_core::memory::Memory,
    /// Told of the device's new size.
    pub resized: Box<dyn Fn(Geometry) + Send>,
}

/// A ring that is served.
#[derive(Debug)]
pub struct Worker {
    shared: Arc<Shared>,
    thread: JoinHandle<Option<(Queue, u16)>>,
}

impl Worker {
    /// Starts to serve.
    ///
    /// # Errors
    /// The system's, with the queue.
    pub fn start(ring: usize, serving: Serving, tools: Tools) -> Result<Self, (io::Error, Queue)> {
        let made = || {
            let bell = Bell::new()?;
            let waiter = Waiter::new(WaitStrategy::Adaptive)?.counting_in(&tools.memory);
            Ok((bell.share()?, Arc::new(Shared { stop: AtomicBool::new(false), bell }), waiter))
        };
        let (bell, shared, waiter) = match made() {
            Ok(made) => made,
            Err(error) => return Err((error, serving.end().0)),
        };
        // The thread is there before it is given anything: a system that has none leaves the queue here.
        let (give, take) = mpsc::channel::<Loop>();
        let (call, error, resized) = (tools.call, tools.error, tools.resized);
        let serve = move || take.recv().ok().map(|loops| loops.run(&call, &error, &*resized));
        let thread = match std::thread::Builder::new().name(format!("vhost-user {ring}")).spawn(serve) {
            Ok(thread) => thread,
            Err(error) => return Err((error, serving.end().0)),
        };
        let kick = Bell::from_fd(tools.kick);
        let loops = Loop { ring, serving, kick, bell, waiter, shared: shared.clone(), stopping: false, broken: None };
        match give.send(loops) {
            Ok(()) => Ok(Self { shared, thread }),
            // It waits for just that.
            Err(mpsc::SendError(loops)) => Err((io::ErrorKind::BrokenPipe.into(), loops.serving.end().0)),
        }
    }

    /// Stops when all that is under way has ended. Returns the queue, unless the thread has panicked, and the position of
    /// the next chain.
    pub fn stop(self) -> Option<(Queue, u16)> {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.bell.ring();
        self.thread.join().ok().flatten()
    }
}

struct Loop {
    ring: usize,
    serving: Serving,
    kick: Bell,
    bell: Bell,
    waiter: Waiter,
    shared: Arc<Shared>,
    /// It has been seen that this is to end.
    stopping: bool,
    broken: Option<RingError>,
}

impl Loop {
    fn run(mut self, call: &Call, error: &Call, resized: &dyn Fn(Geometry)) -> (Queue, u16) {
        loop {
            let stopping = self.shared.stop.load(Ordering::Acquire);
            self.stopping = stopping;
            if stopping && (self.broken.is_some() || self.serving.is_idle()) {
                // What a broken ring has under way ends before its queue serves another.
                while self.broken.is_some() && self.serving.has_flights() {
                    self.serving.give_back(|| ());
                    std::thread::sleep(LOOK);
                }
                return self.serving.end();
            }
            let mut any = false;
            if self.broken.is_none() {
                match self.serving.take(!stopping) {
                    Ok(taken) => any |= taken,
                    Err(reason) => {
                        tracing::warn!(ring = self.ring, %reason, "a guest's ring is broken");
                        self.broken = Some(reason);
                        error.ring();
                    }
                }
            }
            any |= self.serving.give_back(|| call.ring());
            if let Some(geometry) = self.serving.queue().resized() {
                resized(geometry);
            }
            if any {
                self.waiter.busy();
            } else if let Err(error) = self.wait() {
                tracing::error!(%error, "nothing to wait with");
                std::thread::sleep(LOOK);
            }
        }
    }

    fn wait(&mut self) -> io::Result<()> {
        let timeout = self.serving.is_blocked().then_some(LOOK);
        let mut stop = Stop { bell: &self.bell, shared: &self.shared, seen: self.stopping };
        if self.broken.is_some() {
            let queue: &mut Queue = self.serving.queue();
            return self.waiter.idle(&mut [&mut stop, &mut **queue], Some(Duration::from_millis(100)));
        }
        let (ring, queue) = self.serving.sources();
        let mut kick = Kick { bell: &self.kick, ring };
        self.waiter.idle(&mut [&mut stop, &mut kick, &mut **queue], timeout)
    }
}

struct Stop<'a> {
    bell: &'a Bell,
    shared: &'a Shared,
    /// Then it is the device's turn, for which this must not keep anybody awake.
    seen: bool,
}

impl Source for Stop<'_> {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    fn wake_id(&self) -> Option<WakeId> {
        Some(self.bell.id())
    }

    fn edge_triggered(&self) -> bool {
        true
    }

    fn ready(&mut self) -> bool {
        !self.seen && self.shared.stop.load(Ordering::Acquire)
    }
}

/// The guest's kicks. Watched by their edges: nobody reads the descriptor, which is the front end's.
struct Kick<'a> {
    bell: &'a Bell,
    ring: &'a super::ring::Ring,
}

impl Source for Kick<'_> {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    fn wake_id(&self) -> Option<WakeId> {
        Some(self.bell.id())
    }

    fn edge_triggered(&self) -> bool {
        true
    }

    fn arm(&mut self) {
        self.ring.arm();
    }

    fn ready(&mut self) -> bool {
        self.ring.is_ready()
    }

    fn disarm(&mut self) {
        self.ring.disarm();
    }
}
