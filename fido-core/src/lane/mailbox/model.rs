//! The mailbox under every interleaving, checked by loom: the control thread puts news in while the lane's thread takes
//! them, or drops the lane.
//!
//! | promise | mutations that break it |
//! |---|---|
//! | news are taken, in order, none is lost | "no news" is noted after the lock was let go |
//! | a death that comes while the lane is dropped passes the fence, once | the lock is let go between the last look and handing over |

use super::*;
use crate::addr::{Generation, Slot};
use crate::lane::loan::Borrower;
use crate::sync::Ordering;
use loom::thread;
use std::sync::atomic::AtomicUsize;

#[derive(Default)]
struct Passes(AtomicUsize);

impl PassFence for Passes {
    fn passed(&self, _dead: DomainId) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn peer(generation: u16) -> DomainId {
    let generation = Generation::new(generation).expect("below 4096");
    DomainId { slot: Slot::new(5).expect("below 4096"), generation }
}

fn mailbox() -> Arc<Mailbox> {
    Arc::new(Mailbox::new(Arc::new(Bell::new().expect("a bell"))))
}

/// The generations that news are about, as `take` gets them.
fn taken(mailbox: &Mailbox, take: fn(&Mailbox) -> Option<News>, out: &mut Vec<u16>) {
    while let Some(News::Fenced(id)) = take(mailbox) {
        out.push(id.generation.number());
    }
}

fn all_are_taken(take: fn(&Mailbox) -> Option<News>) {
    loom::model(move || {
        let mailbox = mailbox();
        mailbox.put(News::Fenced(peer(1)));
        let control = mailbox.clone();
        let control = thread::spawn(move || control.put(News::Fenced(peer(2))));
        let mut news = Vec::new();
        taken(&mailbox, take, &mut news);
        control.join().expect("the control thread ends");
        taken(&mailbox, Mailbox::take, &mut news);
        assert_eq!(news, [1, 2], "the news that were taken");
        assert!(!mailbox.has_news());
    });
}

#[test]
fn no_news_are_lost() {
    all_are_taken(Mailbox::take);
}

#[test]
#[should_panic(expected = "the news that were taken")]
fn mutation_no_news_is_noted_without_the_lock() {
    all_are_taken(|mailbox| {
        let mut reader = mailbox.reader.lock().expect("nobody panics");
        let Reader::Lane(queue) = &mut *reader else { return None };
        let (next, empty) = (queue.pop_front(), queue.is_empty());
        drop(reader);
        if empty {
            mailbox.has_news.store(false, Ordering::Relaxed);
        }
        next
    });
}

/// The lane is dropped, with a session whose hold another thread has, while its peer dies.
fn dropped_while_the_peer_dies(abandon: fn(&Mailbox, Estate)) {
    loom::model(move || {
        let (mailbox, passes) = (mailbox(), Arc::new(Passes::default()));
        let mut returns = Borrower::new(peer(1), passes.clone(), mailbox.bell().clone());
        let hold = returns.borrow(1);
        let holder = thread::spawn(move || drop(hold));
        let control = mailbox.clone();
        let control = thread::spawn(move || control.put(News::Died(peer(1))));
        let mut estate = Estate::new(passes.clone());
        estate.add(returns);
        abandon(&mailbox, estate);
        [holder, control].into_iter().for_each(|thread| thread.join().expect("the thread ends"));
        assert_eq!(passes.0.load(Ordering::SeqCst), 1, "how often the fence was passed");
    });
}

#[test]
fn a_dropped_lane_passes_the_fence() {
    dropped_while_the_peer_dies(Mailbox::abandon);
}

#[test]
#[should_panic(expected = "how often the fence was passed")]
fn mutation_the_lock_is_let_go_before_handing_over() {
    dropped_while_the_peer_dies(|mailbox, mut estate| {
        if let Reader::Lane(queue) = &mut *mailbox.reader.lock().expect("nobody panics") {
            for news in queue.drain(..) {
                if let News::Died(peer) = news {
                    estate.peer_died(peer);
                }
            }
        }
        *mailbox.reader.lock().expect("nobody panics") = Reader::Nobody(estate);
    });
}
