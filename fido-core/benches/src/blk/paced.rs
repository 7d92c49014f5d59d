//! A queue that takes its time, as disks do.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use fido_core::wait::Source;
use mmblk::queue::{BlockCompletion, BlockOp, BlockQueue, Busy, Features, Geometry};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

use crate::Failure;

/// A queue whose writes end no faster than its rate. What is behind it must end everything at once, in order.
pub struct Paced<Q> {
    queue: Q,
    /// Bytes per second.
    rate: f64,
    free_at: Instant,
    ended: VecDeque<(Instant, BlockCompletion)>,
    sizes: VecDeque<u64>,
    timer: OwnedFd,
}

impl<Q: BlockQueue> Paced<Q> {
    /// `queue`, at so many bytes per second.
    pub fn new(queue: Q, rate: f64) -> Result<Self, Failure> {
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK)?;
        Ok(Self { queue, rate, free_at: Instant::now(), ended: VecDeque::new(), sizes: VecDeque::new(), timer })
    }
}

impl<Q: BlockQueue> BlockQueue for Paced<Q> {
    fn geometry(&self) -> Geometry {
        self.queue.geometry()
    }

    fn features(&self) -> Features {
        self.queue.features()
    }

    fn submit(&mut self, id: u64, op: BlockOp) -> Result<(), Busy> {
        if self.ended.len() >= self.geometry().depth as usize {
            return Err(Busy(op));
        }
        let bytes = op.payload_bytes();
        self.queue.submit(id, op)?;
        self.sizes.push_back(bytes);
        while let Some(completion) = self.queue.poll() {
            let time = Duration::from_secs_f64(self.sizes.pop_front().unwrap_or(0) as f64 / self.rate);
            self.free_at = self.free_at.max(Instant::now()) + time;
            self.ended.push_back((self.free_at, completion));
        }
        Ok(())
    }

    fn poll(&mut self) -> Option<BlockCompletion> {
        if self.ended.front()?.0 > Instant::now() {
            return None;
        }
        self.ended.pop_front().map(|(_, completion)| completion)
    }

    fn flush_submissions(&mut self) {}
}

impl<Q: BlockQueue> Source for Paced<Q> {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }

    fn arm(&mut self) {
        let Some((at, _)) = self.ended.front() else { return };
        let wait = at.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: wait.subsec_nanos().into() };
        let once = Itimerspec { it_interval: zero, it_value: value };
        // Without it, whoever waits looks again by itself.
        let _ = rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once);
    }

    fn ready(&mut self) -> bool {
        self.ended.front().is_some_and(|(at, _)| *at <= Instant::now())
    }

    fn disarm(&mut self) {
        let _ = rustix::io::read(&self.timer, &mut [0; 8]);
    }
}
