//! The asynchronous queue of file data: requests in flight, those that wait for room, and those to be tried again.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use fido_core::payload::Payload;
use mmblk::queue::{BlockError, BlockOp, BlockQueue, Busy};

/// How long to wait before asking again a device that had no buffer.
const RETRY: Duration = Duration::from_millis(1);

/// Whose request it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The operation.
    pub op: u64,
    /// Which of its requests.
    pub part: usize,
}

/// A block queue with its requests.
#[derive(Debug)]
pub struct Device<Q> {
    queue: Q,
    next: u64,
    /// In flight, with the reads themselves, which may be refused for want of a buffer. What a write holds is not kept
    /// here: the queue alone knows when the one who lent it has died.
    requests: HashMap<u64, (Owner, Option<BlockOp>)>,
    /// Not submitted yet.
    waiting: VecDeque<(Owner, BlockOp)>,
    /// Refused for want of a buffer.
    refused: Vec<(Owner, BlockOp)>,
    retry_at: Option<Instant>,
}

impl<Q: BlockQueue> Device<Q> {
    /// A device without requests.
    pub fn new(queue: Q) -> Self {
        let (waiting, refused) = (VecDeque::new(), Vec::new());
        Self { queue, next: 0, requests: HashMap::new(), waiting, refused, retry_at: None }
    }

    /// The queue, as something to wait for.
    pub fn queue(&mut self) -> &mut Q {
        &mut self.queue
    }

    /// Starts a request, now or when the queue has room.
    pub fn start(&mut self, owner: Owner, op: BlockOp) {
        self.waiting.push_back((owner, op));
        self.submit();
    }

    /// The next request that has ended.
    pub fn poll(&mut self) -> Option<(Owner, Result<Payload, BlockError>)> {
        if self.retry_at.is_some_and(|at| at <= Instant::now()) {
            self.retry_at = None;
            self.waiting.extend(self.refused.drain(..));
        }
        self.submit();
        while let Some(done) = self.queue.poll() {
            match (self.requests.remove(&done.id), done.result) {
                (Some((owner, Some(op))), Err(BlockError::NoBuffer)) => {
                    self.refused.push((owner, op));
                    self.retry_at.get_or_insert_with(|| Instant::now() + RETRY);
                }
                (Some((owner, _)), result) => return Some((owner, result)),
                // An id that is not ours is a device's mistake, and nobody waits for it.
                (None, _) => {}
            }
        }
        None
    }

    /// Hands submitted requests on.
    pub fn flush(&mut self) {
        self.submit();
        self.queue.flush_submissions();
    }

    /// When [`Device::poll`] has something to do again by itself.
    pub fn deadline(&self) -> Option<Instant> {
        self.retry_at
    }

    fn submit(&mut self) {
        while let Some((owner, op)) = self.waiting.pop_front() {
            let read = matches!(op, BlockOp::Read { .. }).then(|| op.clone());
            if let Err(Busy(op)) = self.queue.submit(self.next, op) {
                self.waiting.push_front((owner, op));
                return;
            }
            self.requests.insert(self.next, (owner, read));
            self.next += 1;
        }
    }
}
