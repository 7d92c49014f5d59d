//! A device that ends its requests only when it is told to.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use fido_core::bell::Bell;
use fido_core::payload::Payload;
use fido_core::wait::Source;
use mmblk::queue::{BlockCompletion, BlockOp, BlockQueue, Busy, Features, Geometry};

use super::FEATURES;

/// What a test sees of a [`Held`] queue, and lets go of.
#[derive(Clone, Default)]
pub struct Hand {
    held: Arc<Mutex<Vec<u64>>>,
    released: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

/// A queue that holds what it is given.
pub struct Held {
    geometry: Geometry,
    hand: Hand,
    wake: Bell,
}

impl Held {
    pub fn new(geometry: Geometry) -> (Self, Hand) {
        let hand = Hand::default();
        (Self { geometry, hand: hand.clone(), wake: Bell::new().unwrap() }, hand)
    }
}

impl Hand {
    /// How many requests the device has.
    pub fn len(&self) -> usize {
        self.held.lock().unwrap().len()
    }

    /// The most it has ever had.
    pub fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }

    /// Lets so many more end.
    pub fn release(&self, count: usize) {
        self.released.fetch_add(count, Ordering::SeqCst);
    }
}

impl Source for Held {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    fn ready(&mut self) -> bool {
        self.hand.released.load(Ordering::SeqCst) > 0 && self.hand.len() > 0
    }
}

impl BlockQueue for Held {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn features(&self) -> Features {
        FEATURES
    }

    fn submit(&mut self, id: u64, op: BlockOp) -> Result<(), Busy> {
        let mut held = self.hand.held.lock().unwrap();
        if held.len() >= self.geometry.depth as usize {
            return Err(Busy(op));
        }
        held.push(id);
        self.hand.most.fetch_max(held.len(), Ordering::SeqCst);
        Ok(())
    }

    fn poll(&mut self) -> Option<BlockCompletion> {
        let mut held = self.hand.held.lock().unwrap();
        let released = &self.hand.released;
        if held.is_empty() || released.load(Ordering::SeqCst) == 0 {
            return None;
        }
        released.fetch_sub(1, Ordering::SeqCst);
        Some(BlockCompletion { id: held.remove(0), result: Ok(Payload::new()) })
    }

    fn flush_submissions(&mut self) {}
}
