//! Where a lane learns about its peer: the domain's control thread puts news in, the lane's thread takes them out.

#[cfg(all(test, loom))]
mod model;

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};

use super::loan::{Estate, PassFence};
use crate::addr::DomainId;
use crate::bell::{Bell, Ringer};
use crate::sync::{AtomicBool, Mutex, Ordering};

/// What happened to the peer of a lane.
#[derive(Debug)]
pub enum News {
    /// An incarnation is there; its window is in the table already. The ringer wakes its end of this lane.
    Up(DomainId, Box<dyn Ringer>),
    /// That incarnation is dead.
    Died(DomainId),
    /// All others have let go of what came through that incarnation, and its window is out of the table.
    Fenced(DomainId),
}

/// The news for one lane. Shared by the control thread and the lane.
#[derive(Debug)]
pub struct Mailbox {
    has_news: AtomicBool,
    reader: Mutex<Reader>,
    bell: Arc<Bell>,
}

/// Who reads the news.
#[derive(Debug)]
enum Reader {
    /// The lane, when it comes to it.
    Lane(VecDeque<News>),
    /// The lane has been dropped; the holds that it gave out may live on, and fences must still be passed.
    Nobody(Estate),
}

impl Mailbox {
    /// An empty mailbox of the lane that `bell` wakes.
    pub fn new(bell: Arc<Bell>) -> Self {
        Self { has_news: AtomicBool::new(false), reader: Mutex::new(Reader::Lane(VecDeque::new())), bell }
    }

    /// The lane's own bell.
    pub fn bell(&self) -> &Arc<Bell> {
        &self.bell
    }

    /// Tells the lane, and wakes it.
    pub fn put(&self, news: News) {
        match &mut *self.reader.lock().unwrap_or_else(PoisonError::into_inner) {
            Reader::Lane(queue) => queue.push_back(news),
            Reader::Nobody(estate) => {
                if let News::Died(peer) = news {
                    estate.peer_died(peer);
                }
                return;
            }
        }
        // SYNC: pairs with the acquire load in `take`.
        self.has_news.store(true, Ordering::Release);
        self.bell.ring();
    }

    /// Keeps news for a lane that nobody has taken yet. A death takes with it what was said of the dead before, and its
    /// fence is passed at once.
    pub(crate) fn put_untaken(&self, news: News, fence: &dyn PassFence) {
        let News::Died(peer) = news else { return self.put(news) };
        if let Reader::Lane(queue) = &mut *self.reader.lock().unwrap_or_else(PoisonError::into_inner) {
            queue.retain(|news| !matches!(news, News::Up(of, _) if *of == peer));
        }
        fence.passed(peer);
    }

    /// Whether there are news; one load.
    #[inline]
    pub(super) fn has_news(&self) -> bool {
        // SYNC: pairs with the release store in `put`.
        self.has_news.load(Ordering::Acquire)
    }

    /// The oldest news.
    pub(super) fn take(&self) -> Option<News> {
        if !self.has_news() {
            return None;
        }
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        let Reader::Lane(queue) = &mut *reader else { return None };
        let next = queue.pop_front();
        if queue.is_empty() {
            self.has_news.store(false, Ordering::Relaxed);
        }
        next
    }

    /// The lane is being dropped: from now on deaths are dealt with here.
    pub(super) fn abandon(&self, mut estate: Estate) {
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        if let Reader::Lane(queue) = &mut *reader {
            for news in queue.drain(..) {
                if let News::Died(peer) = news {
                    estate.peer_died(peer);
                }
            }
        }
        *reader = Reader::Nobody(estate);
    }
}
