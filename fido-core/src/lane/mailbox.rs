//! Where a lane learns about its peer: the domain's control thread puts news in, the lane's thread takes them out.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::addr::DomainId;
use crate::bell::{Bell, Ringer};

/// What happened to the peer of a lane.
#[derive(Debug)]
pub enum News {
    /// An incarnation is there; its window is in the table already. The ringer wakes its end of this lane.
    Up(DomainId, Box<dyn Ringer>),
    /// That incarnation is dead.
    Died(DomainId),
    /// All others have let go of what came through that incarnation.
    Fenced(DomainId),
}

/// The news for one lane. Shared by the control thread and the lane.
#[derive(Debug)]
pub struct Mailbox {
    has_news: AtomicBool,
    news: Mutex<VecDeque<News>>,
    bell: Arc<Bell>,
}

impl Mailbox {
    /// An empty mailbox of the lane that `bell` wakes.
    pub fn new(bell: Arc<Bell>) -> Self {
        Self { has_news: AtomicBool::new(false), news: Mutex::default(), bell }
    }

    /// The lane's own bell.
    pub fn bell(&self) -> &Arc<Bell> {
        &self.bell
    }

    /// Tells the lane, and wakes it.
    pub fn put(&self, news: News) {
        self.news.lock().unwrap_or_else(PoisonError::into_inner).push_back(news);
        // SYNC: pairs with the acquire load in `take`.
        self.has_news.store(true, Ordering::Release);
        self.bell.ring();
    }

    /// Whether there are news; one load.
    pub(super) fn has_news(&self) -> bool {
        // SYNC: pairs with the release store in `put`.
        self.has_news.load(Ordering::Acquire)
    }

    /// The oldest news.
    pub(super) fn take(&self) -> Option<News> {
        if !self.has_news() {
            return None;
        }
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        let next = news.pop_front();
        if news.is_empty() {
            self.has_news.store(false, Ordering::Relaxed);
        }
        next
    }
}
