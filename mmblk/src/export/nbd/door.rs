//! Where a worker is told what happens elsewhere: new clients, deaths.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use fido_core::addr::DomainId;
use fido_core::bell::{Bell, Ringer};

/// What a worker is told.
#[derive(Debug)]
pub(super) enum News {
    /// A connected socket is its to serve.
    Client(OwnedFd),
    /// A domain is dead, and its fence is to be passed.
    Dead(DomainId),
}

/// The door of one worker.
#[derive(Debug)]
pub(super) struct Door {
    bell: Bell,
    knocked: AtomicBool,
    inbox: Mutex<Vec<News>>,
    /// How many clients the worker has.
    clients: AtomicUsize,
}

impl Door {
    pub(super) fn new() -> io::Result<Self> {
        let (knocked, clients) = (AtomicBool::new(false), AtomicUsize::new(0));
        Ok(Self { bell: Bell::new()?, knocked, inbox: Mutex::default(), clients })
    }

    /// Readable when something is told; edge-triggered.
    pub(super) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    pub(super) fn put(&self, news: News) {
        if matches!(news, News::Client(_)) {
            self.clients.fetch_add(1, Ordering::Relaxed);
        }
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner).push(news);
        // SYNC: pairs with the acquire swap in `take`; the bell wakes who had looked before.
        self.knocked.store(true, Ordering::Release);
        self.bell.ring();
    }

    pub(super) fn take(&self) -> Vec<News> {
        // SYNC: pairs with the release store in `put`.
        if !self.has_news() || !self.knocked.swap(false, Ordering::Acquire) {
            return Vec::new();
        }
        std::mem::take(&mut *self.inbox.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn has_news(&self) -> bool {
        self.knocked.load(Ordering::Relaxed)
    }

    pub(super) fn clients(&self) -> usize {
        self.clients.load(Ordering::Relaxed)
    }

    /// A client of the worker's is gone.
    pub(super) fn gone(&self) {
        self.clients.fetch_sub(1, Ordering::Relaxed);
    }
}
