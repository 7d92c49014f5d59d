//! Notices to the component's threads: deaths that concern more than one lane, and the end.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::addr::DomainId;
use crate::bell::{Bell, Ringer};
use crate::wait::{Source, WakeId};

/// What a component is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// A domain whose arena this one may read is dead. Whoever queues its bytes without a lane to it (bytes that were
    /// forwarded by a third) sees to it that they do not wait for long.
    Died(DomainId),
    /// Finish what is under way and exit.
    Shutdown,
}

#[derive(Debug)]
struct Subscriber {
    has_notices: AtomicBool,
    notices: Mutex<VecDeque<Notice>>,
    bell: Bell,
}

/// Where notices are posted. Late subscribers learn of a shutdown too.
#[derive(Debug, Default)]
pub(super) struct Board {
    inner: Mutex<(Vec<Arc<Subscriber>>, bool)>,
}

impl Board {
    pub(super) fn subscribe(&self) -> io::Result<Notices> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let subscriber =
            Arc::new(Subscriber { has_notices: AtomicBool::new(false), notices: Mutex::default(), bell: Bell::new()? });
        if inner.1 {
            subscriber.post(Notice::Shutdown);
        }
        inner.0.push(subscriber.clone());
        Ok(Notices(subscriber))
    }

    pub(super) fn post(&self, notice: Notice) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.1 |= notice == Notice::Shutdown;
        inner.0.iter().for_each(|subscriber| subscriber.post(notice));
    }
}

impl Subscriber {
    fn post(&self, notice: Notice) {
        self.notices.lock().unwrap_or_else(PoisonError::into_inner).push_back(notice);
        // SYNC: pairs with the acquire load in `Notices::poll`.
        self.has_notices.store(true, Ordering::Release);
        self.bell.ring();
    }
}

/// One thread's notices. Polling costs one load while there are none.
#[derive(Debug)]
pub struct Notices(Arc<Subscriber>);

impl Notices {
    /// The oldest notice.
    pub fn poll(&mut self) -> Option<Notice> {
        // SYNC: pairs with the release store in `Subscriber::post`.
        if !self.0.has_notices.load(Ordering::Acquire) {
            return None;
        }
        let mut notices = self.0.notices.lock().unwrap_or_else(PoisonError::into_inner);
        let notice = notices.pop_front();
        if notices.is_empty() {
            self.0.has_notices.store(false, Ordering::Relaxed);
        }
        notice
    }
}

impl Source for Notices {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.0.bell.as_fd()
    }

    fn wake_id(&self) -> Option<WakeId> {
        Some(self.0.bell.id())
    }

    fn edge_triggered(&self) -> bool {
        true
    }

    fn ready(&mut self) -> bool {
        self.0.has_notices.load(Ordering::Acquire)
    }
}
