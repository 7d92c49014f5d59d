//! What a connection has lent, and who is told when it comes back.
//!
//! All pieces of one receive buffer are lent under one [`Lease`]: neighbouring pieces then join into one segment in a
//! [`Payload`](fido_core::payload::Payload), and the account is settled once per buffer. The price is that bytes of a
//! buffer count as lent until all that was lent from it is back, so an account runs up to one buffer ahead of what
//! the reader really holds.
//!
//! Leases end on any thread. The port that waits for one is woken, but only if it does wait: a connection that was
//! stopped, or a port that found the heap exhausted.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};

use fido_core::payload::Hold;
use rustix::event::{EventfdFlags, eventfd};

use crate::stream::StreamId;

/// Wakes a port from the threads on which leases end.
#[derive(Debug)]
pub(crate) struct Waker {
    /// Connections that may read again.
    released: Mutex<Vec<StreamId>>,
    /// There is news: `released`, or buffers for a starving port.
    pending: AtomicBool,
    /// The port is about to sleep.
    armed: AtomicBool,
    /// The port needs buffers and the heap had none.
    starving: AtomicBool,
    /// Edge-triggered in the port's epoll set, so nobody ever reads it.
    bell: OwnedFd,
}

impl Waker {
    pub(crate) fn new() -> rustix::io::Result<Self> {
        Ok(Self {
            released: Mutex::default(),
            pending: AtomicBool::new(false),
            armed: AtomicBool::new(false),
            starving: AtomicBool::new(false),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// What to put into the epoll set.
    pub(crate) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// The port is about to sleep (or awake again). Whoever arms issues a `SeqCst` fence before it asks
    /// [`Waker::has_news`].
    pub(crate) fn arm(&self, armed: bool) {
        self.armed.store(armed, Ordering::SeqCst);
    }

    /// Whether [`Waker::take`] would find something.
    pub(crate) fn has_news(&self) -> bool {
        self.pending.load(Ordering::SeqCst)
    }

    /// The port needs buffers: tell it when a lease ends. Look at the heap once more after this.
    pub(crate) fn starve(&self) {
        self.starving.store(true, Ordering::SeqCst);
    }

    /// The connections that may read again; `None` if there is no news at all.
    pub(crate) fn take(&self) -> Option<Vec<StreamId>> {
        // SYNC: pairs with the store in `notify`: what was released before is seen after.
        if !self.pending.swap(false, Ordering::SeqCst) {
            return None;
        }
        Some(std::mem::take(&mut *self.released.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    fn release(&self, id: StreamId) {
        self.released.lock().unwrap_or_else(PoisonError::into_inner).push(id);
        self.notify();
    }

    fn buffer_freed(&self) {
        if self.starving.load(Ordering::SeqCst) && self.starving.swap(false, Ordering::SeqCst) {
            self.notify();
        }
    }

    fn notify(&self) {
        self.pending.store(true, Ordering::SeqCst);
        // SYNC: pairs with the fence between `arm` and `has_news`: either the port sees the news before it sleeps, or
        // we see here that it is armed.
        fence(Ordering::SeqCst);
        if self.armed.load(Ordering::SeqCst) {
            // A full counter would mean that it has been readable all along.
            let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
        }
    }
}

/// What one connection has lent.
#[derive(Debug)]
pub(crate) struct Account {
    id: StreamId,
    limit: u64,
    on_loan: AtomicU64,
    /// The connection does not read until something comes back.
    blocked: AtomicBool,
    waker: Arc<Waker>,
}

impl Account {
    pub(crate) fn new(id: StreamId, limit: u64, waker: Arc<Waker>) -> Arc<Self> {
        Arc::new(Self { id, limit, on_loan: AtomicU64::new(0), blocked: AtomicBool::new(false), waker })
    }

    /// Whether the connection may lend more. If not, the waker will name it once it may.
    pub(crate) fn admits(&self) -> bool {
        if self.on_loan.load(Ordering::Relaxed) < self.limit {
            return true;
        }
        self.blocked.store(true, Ordering::SeqCst);
        // SYNC: pairs with `give_back`, which takes off before it looks at `blocked`, both `SeqCst`: either we see
        // here that there is room, or it sees that we are blocked. If both, it names us once more than necessary.
        if self.on_loan.load(Ordering::SeqCst) < self.limit {
            self.blocked.store(false, Ordering::SeqCst);
            return true;
        }
        false
    }

    /// How many bytes are lent.
    pub(crate) fn on_loan(&self) -> u64 {
        self.on_loan.load(Ordering::Relaxed)
    }

    fn give_back(&self, bytes: u64) {
        let before = self.on_loan.fetch_sub(bytes, Ordering::SeqCst);
        if before - bytes < self.limit && self.blocked.swap(false, Ordering::SeqCst) {
            self.waker.release(self.id);
        }
        self.waker.buffer_freed();
    }
}

/// The hold of all pieces of one receive buffer. While one is out, further pieces are lent under the same.
#[derive(Debug)]
pub(crate) struct Lease {
    account: Arc<Account>,
    bytes: AtomicU64,
    /// Keeps the buffer; taken out when the lease ends.
    buffer: Option<Hold>,
}

impl Lease {
    pub(crate) fn new(account: Arc<Account>, buffer: Hold) -> Arc<Self> {
        Arc::new(Self { account, bytes: AtomicU64::new(0), buffer: Some(buffer) })
    }

    /// Lends `bytes` more under it.
    pub(crate) fn extend(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.account.on_loan.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // The buffer first: a starving port that is woken must find it in the heap.
        drop(self.buffer.take());
        self.account.give_back(*self.bytes.get_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lend(account: &Arc<Account>, bytes: u64) -> Arc<Lease> {
        let lease = Lease::new(account.clone(), Arc::new(()));
        lease.extend(bytes);
        lease
    }

    #[test]
    fn the_limit_is_exact() {
        let waker = Arc::new(Waker::new().unwrap());
        let account = Account::new(StreamId(7), 100, waker.clone());
        let first = lend(&account, 99);
        assert!(account.admits());
        let second = lend(&account, 1);
        assert!(!account.admits());
        drop(second);
        assert_eq!(waker.take(), Some(vec![StreamId(7)]));
        assert!(account.admits());
        drop(first);
        assert_eq!(waker.take(), None, "nobody waited");
    }

    #[test]
    fn the_bell_rings_only_for_a_sleeper() {
        let waker = Arc::new(Waker::new().unwrap());
        let account = Account::new(StreamId(1), 1, waker.clone());
        let mut count = [0; 8];
        for armed in [false, true] {
            waker.arm(armed);
            let lease = lend(&account, 1);
            assert!(!account.admits());
            drop(lease);
            assert!(waker.has_news());
            assert_eq!(rustix::io::read(waker.bell(), &mut count).is_ok(), armed);
        }
    }

    #[test]
    fn a_starving_port_hears_of_the_next_buffer_once() {
        let waker = Arc::new(Waker::new().unwrap());
        let account = Account::new(StreamId(1), 100, waker.clone());
        let (first, second) = (lend(&account, 1), lend(&account, 1));
        waker.starve();
        drop(first);
        assert_eq!(waker.take(), Some(vec![]));
        drop(second);
        assert_eq!(waker.take(), None);
    }

    #[test]
    fn no_wake_up_is_lost_between_threads() {
        let waker = Arc::new(Waker::new().unwrap());
        let account = Account::new(StreamId(3), 1, waker.clone());
        let (sender, receiver) = std::sync::mpsc::channel::<Arc<Lease>>();
        let reader = std::thread::spawn(move || receiver.into_iter().for_each(drop));
        for _ in 0..20_000 {
            sender.send(lend(&account, 1)).unwrap();
            if account.admits() {
                continue;
            }
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
            while waker.take().is_none() {
                assert!(std::time::Instant::now() < deadline, "blocked for good");
                std::hint::spin_loop();
            }
        }
        drop(sender);
        reader.join().unwrap();
    }
}
