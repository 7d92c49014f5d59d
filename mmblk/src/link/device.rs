//! The front end of a whole link: one device, and a queue on each of its lanes.
//!
//! The queues share nothing, so each may go to a thread of its own, and none waits for another. What the device promises
//! holds over all of them: a flush on one covers every write that has completed on any.
//!
//! All lanes are connected before the first queue is handed out. If the device's domain dies, each queue waits for the
//! successor by itself and submits again what it had not finished; requests of different queues that were in flight
//! together are unordered anyway.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use fido_core::lane::Lane;

use super::codec::Identity;
use super::front::{ConnectError, LinkQueue};
use crate::queue::{Features, Geometry};

/// A block device behind a link.
#[derive(Debug)]
pub struct LinkDevice {
    identity: Identity,
    /// Those that nobody has taken yet, the last lane's first. Locked only to take one.
    queues: Mutex<Vec<LinkQueue>>,
}

impl LinkDevice {
    /// Asks at the other end of every lane who it is, and waits for the answers (also for the peer to come up).
    ///
    /// # Errors
    /// [`ConnectError`] which names the lane; [`ConnectError::Another`] if there is not the same device behind all, and
    /// [`ConnectError::NoLane`] if there are none.
    pub fn connect(lanes: Vec<Lane>, timeout: Duration) -> Result<Self, ConnectError> {
        let deadline = Instant::now() + timeout;
        let mut queues: Vec<LinkQueue> = Vec::with_capacity(lanes.len());
        for lane in lanes {
            let queue = LinkQueue::connect(lane, deadline.saturating_duration_since(Instant::now()))?;
            if let Some(first) = queues.first()
                && !first.identity().is_same(queue.identity())
            {
                let (expected, found) = (*first.identity(), *queue.identity());
                return Err(ConnectError::Another { lane: queue.name().to_owned(), found, expected });
            }
            queues.push(queue);
        }
        // The last one was asked last, so it knows the newest size.
        let identity = *queues.last().ok_or(ConnectError::NoLane)?.identity();
        queues.reverse();
        Ok(Self { identity, queues: Mutex::new(queues) })
    }

    /// What the device was like when it was connected; each queue follows its size.
    pub fn geometry(&self) -> Geometry {
        self.identity.geometry
    }

    /// What the device can do.
    pub fn features(&self) -> Features {
        self.identity.features
    }

    /// A queue for one thread; the next lane's. `None` when all are taken.
    pub fn queue(&self) -> Option<LinkQueue> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
}
