//! An NBD server over block queues: every export is a queue, in this domain or at the other end of a lane.
//!
//! ```text
//!                       ┌── Worker ── a queue on each export
//!  clients ══ Server ═══┤        (one thread at a time; many clients each)
//!                       └── Worker ── a queue on each export
//! ```
//!
//! * A [`Worker`] serves any number of clients from one queue per export. Workers are jobs of a
//!   [`fido_core::crew::Crew`]. The first one accepts and gives each client to the worker that has fewest.
//! * Payload of a write is received into the own arena and lent to the queue where it lies; payload of a read goes to
//!   the socket from the window of whoever lends it. User space copies neither, but what a domain has lent that dies
//!   meanwhile.
//! * A client can hold up only itself: what is under way for it is bounded by [`Limits`], and it is not read while it is
//!   at its bound. Where the device has no place for a request, clients take turns.
//! * What the device cannot do is not offered. A flush covers the answered writes of all clients, on all connections, as
//!   every [`BlockQueue`] promises: so several connections of one client are welcome.
//!
//! When a client vanishes with requests at the device, nobody can enter that export until these have ended: else an old
//! write might overtake a new one. (What the kernel still holds of a client's bytes when the next one enters, nobody can
//! know.) The size of an export is told when a client enters; it does not hear of a change, but is measured by it.
//!
//! Not here: TLS (put a tunnel before it), `CACHE` and `RESIZE`, fast zeroes (no device here can promise them), extended
//! headers.

mod client;
mod device;
mod door;
pub mod fuzzing;
mod haggle;
mod listen;
mod session;
mod sockets;
mod worker;

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fido_core::addr::DomainId;
use fido_core::memory::Memory;

use crate::nbd::ExportFlags;
use crate::nbd::haggling::BlockSizes;
use crate::nbd::place::Place;
use crate::queue::{BlockQueue, Features, Geometry, MAX_REQUEST_BYTES};
use door::{Door, News};
pub use listen::ListenError;
use listen::Listener;
pub use worker::Worker;

/// What clients may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Clients that are served at a time, 1 to 4096. One more is told so. As many again may be negotiating; what
    /// is beyond waits in the kernel.
    pub clients: usize,
    /// Requests of one client that are under way or not yet with the kernel, 1 to 4096.
    pub requests: usize,
    /// Bytes of buffers that one client's writes take, and bytes of its reads that are under way or not yet with the
    /// kernel (which one more read may exceed); 8 MiB to 1 GiB. So that no client can exhaust them, the arenas of
    /// server and device each need this for every client.
    pub client_bytes: u64,
    /// How long a client may negotiate, 10 ms to an hour.
    pub patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { clients: 64, requests: 128, client_bytes: 8 << 20, patience: Duration::from_secs(10) }
    }
}

/// What is offered to clients under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// The name, at most 4096 bytes. The first export is also the one without a name.
    pub name: String,
    /// A text for humans, at most 4096 bytes; may be empty.
    pub description: String,
    /// Nothing may be changed, whatever the device allows.
    pub read_only: bool,
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// It cannot listen.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A limit is out of range.
    #[error("limit {what} = {value}; it must be {range}")]
    Limit {
        /// Which.
        what: &'static str,
        /// What it was set to.
        value: u64,
        /// What it may be.
        range: &'static str,
    },
    /// The exports' names.
    #[error("exports {0:?}; there must be one at least, and each must have a name of its own of at most 4096 bytes")]
    Names(Vec<String>),
    /// A worker must have a queue on each export.
    #[error("{found} queues for {exports} exports")]
    Queues {
        /// How many it got.
        found: usize,
        /// How many exports there are.
        exports: usize,
    },
    /// The system has no descriptor left.
    #[error("no descriptor for a worker: {0}")]
    System(#[from] std::io::Error),
}

/// What all workers share.
#[derive(Debug)]
struct Shared {
    exports: Vec<Export>,
    /// For each export, requests at the device whose clients have vanished.
    orphans: Vec<AtomicUsize>,
    limits: Limits,
    /// Clients that are served.
    served: AtomicUsize,
    /// All clients.
    clients: AtomicUsize,
    doors: Mutex<Vec<Arc<Door>>>,
}

impl Shared {
    /// Counts one more client as served, if the limit allows.
    fn reserve(&self) -> bool {
        let more = |served| (served < self.limits.clients).then_some(served + 1);
        // Relaxed: the number stands for itself.
        self.served.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    fn release(&self) {
        self.served.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether another client may negotiate.
    fn admits(&self) -> bool {
        self.clients.load(Ordering::Relaxed) < 2 * self.limits.clients
    }

    fn doors(&self) -> Vec<Arc<Door>> {
        self.doors.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A server that listens. Its workers serve.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    places: Vec<Place>,
    /// For the first worker.
    listeners: Vec<Listener>,
}

impl Server {
    /// Listens at `places` (port 0 takes any free one).
    ///
    /// # Errors
    /// [`ServerError`], which says what is wrong with which value.
    pub fn bind(places: &[Place], exports: Vec<Export>, limits: Limits) -> Result<Self, ServerError> {
        limits.check()?;
        let names: Vec<String> = exports.iter().map(|export| export.name.clone()).collect();
        let doubled = |(index, name)| names.iter().take(index).any(|other| other == name);
        let too_long = exports.iter().any(|e| e.name.len().max(e.description.len()) > crate::nbd::MAX_STRING);
        if names.is_empty() || too_long || names.iter().enumerate().any(doubled) {
            return Err(ServerError::Names(names));
        }
        let listeners = places.iter().map(Listener::bind).collect::<Result<Vec<_>, _>>()?;
        let places = listeners.iter().map(|listener| listener.place().clone()).collect();
        let orphans = exports.iter().map(|_| AtomicUsize::new(0)).collect();
        let (served, clients) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let shared = Arc::new(Shared { exports, orphans, limits, served, clients, doors: Mutex::default() });
        Ok(Self { shared, places, listeners })
    }

    /// Where it listens.
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// Another worker, which has a queue on each export, in their order. Nothing else may use the queues.
    ///
    /// # Errors
    /// [`ServerError`] if the number of queues is wrong or there is no descriptor left.
    pub fn worker<Q: BlockQueue>(&mut self, memory: Memory, queues: Vec<Q>) -> Result<Worker<Q>, ServerError> {
        let exports = self.shared.exports.len();
        if queues.len() != exports {
            return Err(ServerError::Queues { found: queues.len(), exports });
        }
        let door = Arc::new(Door::new()?);
        let listeners = std::mem::take(&mut self.listeners);
        let worker = Worker::new(self.shared.clone(), door.clone(), memory, queues, listeners)?;
        self.shared.doors.lock().unwrap_or_else(PoisonError::into_inner).push(door);
        Ok(worker)
    }

    /// Gives a connected stream socket to the worker that has the fewest clients, as if it had been accepted.
    pub fn admit(&self, socket: OwnedFd) {
        let doors = self.shared.doors();
        if let Some(door) = doors.iter().min_by_key(|door| door.clients()) {
            self.shared.clients.fetch_add(1, Ordering::Relaxed);
            door.put(News::Client(socket));
        }
    }

    /// `dead` is gone and its fence is to be passed: what it has lent and clients have not got yet is copied.
    pub fn rescue(&self, dead: DomainId) {
        self.shared.doors().iter().for_each(|door| door.put(News::Dead(dead)));
    }

    /// How many clients are served now.
    pub fn served(&self) -> usize {
        self.shared.served.load(Ordering::Relaxed)
    }
}

impl Limits {
    fn check(&self) -> Result<(), ServerError> {
        let wrong = |what, value, range| Err(ServerError::Limit { what, value, range });
        if !(1..=4096).contains(&self.clients) {
            return wrong("clients", self.clients as u64, "1 to 4096");
        }
        if !(1..=4096).contains(&self.requests) {
            return wrong("requests", self.requests as u64, "1 to 4096");
        }
        if !(8 << 20..=1 << 30).contains(&self.client_bytes) {
            return wrong("client_bytes", self.client_bytes, "8 MiB to 1 GiB");
        }
        if !(Duration::from_millis(10)..=Duration::from_secs(3600)).contains(&self.patience) {
            let millis = u64::try_from(self.patience.as_millis()).unwrap_or(u64::MAX);
            return wrong("patience (ms)", millis, "10 ms to an hour");
        }
        Ok(())
    }
}

/// What an export is like now.
#[derive(Debug, Clone, Copy)]
struct Facts {
    geometry: Geometry,
    flags: ExportFlags,
    sizes: BlockSizes,
}

impl Facts {
    fn of(export: &Export, geometry: Geometry, features: Features) -> Self {
        use ExportFlags as F;
        let mut flags = F::HAS_FLAGS | F::SEND_FLUSH | F::SEND_FUA | F::SEND_DF | F::CAN_MULTI_CONN;
        flags.set(F::SEND_TRIM, features.discard);
        flags.set(F::SEND_WRITE_ZEROES, features.write_zeroes);
        if export.read_only || features.read_only {
            flags.insert(F::READ_ONLY);
            flags.remove(F::SEND_TRIM | F::SEND_WRITE_ZEROES);
        }
        // The protocol wants a preferred size of 512 bytes at least; below a page nothing is fast.
        let preferred = features.preferred_block.max(geometry.block).max(4096);
        Self { geometry, flags, sizes: BlockSizes { min: geometry.block, preferred, max: MAX_REQUEST_BYTES } }
    }
}
