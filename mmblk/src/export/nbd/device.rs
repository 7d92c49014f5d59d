//! A worker's queues, and the requests that are in them.

use std::collections::VecDeque;

use super::client::Key;
use super::session::Open;
use crate::queue::{BlockOp, BlockQueue, Busy};

/// A request for which the queue has had no place.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) client: Key,
    pub(super) open: Open,
    op: BlockOp,
    /// The client's first request of two counts as at the device already.
    pub(super) second: bool,
}

/// The queue on one export.
#[derive(Debug)]
pub(super) struct Outlet<Q> {
    pub(super) queue: Q,
    /// In turn, one of each client.
    waiting: VecDeque<Waiting>,
    /// Something has been submitted that may have to be handed on.
    owed: bool,
}

/// The requests in all queues of a worker, by the id that they have there.
#[derive(Debug, Default)]
pub(super) struct Requests {
    places: Vec<Option<(Key, Open)>>,
    free: Vec<usize>,
}

impl Requests {
    fn insert(&mut self, client: Key, open: Open) -> usize {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        if let Some(place) = self.places.get_mut(index) {
            *place = Some((client, open));
        }
        index
    }

    /// Takes the request of that id out.
    pub(super) fn remove(&mut self, id: u64) -> Option<(Key, Open)> {
        let index = usize::try_from(id).ok()?;
        let found = self.places.get_mut(index)?.take()?;
        self.free.push(index);
        Some(found)
    }

    /// How many are a client's.
    pub(super) fn count(&self, client: Key) -> usize {
        self.places.iter().flatten().filter(|(key, _)| *key == client).count()
    }
}

impl<Q: BlockQueue> Outlet<Q> {
    pub(super) fn new(queue: Q) -> Self {
        Self { queue, waiting: VecDeque::new(), owed: false }
    }

    /// Gives a request to the queue, or lets it wait for its turn. Returns whether the queue has it.
    pub(super) fn submit(
        &mut self,
        requests: &mut Requests,
        client: Key,
        open: Open,
        op: BlockOp,
        second: bool,
    ) -> bool {
        if !self.waiting.is_empty() {
            self.waiting.push_back(Waiting { client, open, op, second });
            return false;
        }
        match self.try_submit(requests, Waiting { client, open, op, second }) {
            Ok(_) => true,
            Err(waiting) => {
                self.waiting.push_back(waiting);
                false
            }
        }
    }

    /// Gives the queue the next request that waits, if it has a place. Returns whose it was, and what.
    pub(super) fn submit_next(&mut self, requests: &mut Requests) -> Option<(Key, Open, bool)> {
        let waiting = self.waiting.pop_front()?;
        match self.try_submit(requests, waiting) {
            Ok(submitted) => Some(submitted),
            Err(waiting) => {
                self.waiting.push_front(waiting);
                None
            }
        }
    }

    fn try_submit(&mut self, requests: &mut Requests, waiting: Waiting) -> Result<(Key, Open, bool), Waiting> {
        let Waiting { client, open, op, second } = waiting;
        let id = requests.insert(client, open);
        match self.queue.submit(id as u64, op) {
            Ok(()) => {
                self.owed = true;
                Ok((client, open, second))
            }
            Err(Busy(op)) => {
                requests.remove(id as u64);
                Err(Waiting { client, open, op, second })
            }
        }
    }

    /// Forgets what waits of a client that is gone.
    pub(super) fn forget(&mut self, client: Key) {
        self.waiting.retain(|waiting| waiting.client != client);
    }

    /// Hands on what has been submitted.
    pub(super) fn flush(&mut self) {
        if std::mem::take(&mut self.owed) {
            self.queue.flush_submissions();
        }
    }
}
