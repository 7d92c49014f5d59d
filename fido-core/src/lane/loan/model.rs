//! The borrower's side of loans under every interleaving, checked by loom: holds are dropped on other threads while the
//! lane's thread returns them, goes to sleep, or ends the session.
//!
//! | promise | mutations that break it |
//! |---|---|
//! | a return never waits for a lane that sleeps | `due` is looked at before `sleeping` is set; the drop looks at `sleeping` before it notes the tag |
//! | every tag is returned, once | `due` is taken back after the lock was let go |
//! | the fence of a dead lender is passed, once, with the last hold | "dying" is noted after the holds were counted; it is noted before they are counted, with the lock let go in between |
//!
//! `Arc` and the bell are the real ones, which loom does not see into: their order is not relied on here.

use super::*;
use crate::addr::{Generation, Slot};
use loom::thread;
use std::sync::atomic::AtomicUsize;

#[derive(Default)]
struct Passes(AtomicUsize);

impl PassFence for Passes {
    fn passed(&self, _dead: DomainId) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn session() -> (Borrower, Arc<Passes>) {
    let peer = DomainId { slot: Slot::new(5).expect("below 4096"), generation: Generation::FIRST };
    let passes = Arc::new(Passes::default());
    (Borrower::new(peer, passes.clone(), Arc::new(Bell::new().expect("a bell"))), passes)
}

fn is_rung(session: &Borrower) -> bool {
    rustix::io::read(&session.shared.bell, &mut [0; 8]).is_ok()
}

/// A hold is dropped on another thread while the lane's thread goes to sleep.
fn sleep(look: fn(&Borrower) -> bool, end: fn(&Returns, u16)) {
    loom::model(move || {
        let (mut session, _) = session();
        (session.borrowed, session.out) = (1, 1);
        let returns = session.shared.clone();
        let holder = thread::spawn(move || end(&returns, 9));
        let saw = look(&session);
        holder.join().expect("the holder ends");
        assert!(saw || is_rung(&session), "lost wake-up");
        assert_eq!(session.take(), Some(9));
    });
}

fn say_so_and_look(session: &Borrower) -> bool {
    session.set_sleeping(true);
    session.is_due()
}

#[test]
fn a_return_wakes_a_sleeping_lane() {
    sleep(say_so_and_look, Returns::end);
}

#[test]
#[should_panic(expected = "lost wake-up")]
fn mutation_due_is_looked_at_before_sleeping_is_set() {
    let look = |session: &Borrower| {
        let due = session.is_due();
        session.set_sleeping(true);
        due
    };
    sleep(look, Returns::end);
}

#[test]
#[should_panic(expected = "lost wake-up")]
fn mutation_sleeping_is_looked_at_before_the_tag_is_noted() {
    let end = |session: &Returns, tag| {
        let ring = std::mem::take(&mut session.state().sleeping);
        session.state().tags.push(tag);
        session.due.store(true, Ordering::Relaxed);
        if ring {
            session.bell.ring();
        }
    };
    sleep(say_so_and_look, end);
}

/// One tag is there already; another hold is dropped while the lane's thread returns what there is.
fn return_both(take: fn(&Returns, &mut Vec<u16>)) {
    loom::model(move || {
        let (mut session, _) = session();
        let hold = session.borrow(2);
        drop(session.borrow(1));
        let holder = thread::spawn(move || drop(hold));
        let mut tags = Vec::new();
        take(&session.shared, &mut tags);
        holder.join().expect("the holder ends");
        tags.extend(std::iter::from_fn(|| session.take()));
        assert_eq!((tags, session.is_due()), (vec![1, 2], false), "the tags that were returned");
    });
}

#[test]
fn every_tag_is_returned_once() {
    return_both(Returns::take);
}

#[test]
#[should_panic(expected = "the tags that were returned")]
fn mutation_due_is_taken_back_without_the_lock() {
    return_both(|session, tags| {
        tags.append(&mut session.state().tags);
        session.due.store(false, Ordering::Relaxed);
    });
}

/// Two holds are dropped, on two threads, while the lane's thread learns that their lender is dead.
fn pass(peer_died: fn(&mut Borrower)) {
    loom::model(move || {
        let (mut session, passes) = session();
        let holds = [session.borrow(1), session.borrow(2)];
        let holders = holds.map(|hold| thread::spawn(move || drop(hold)));
        peer_died(&mut session);
        holders.into_iter().for_each(|holder| holder.join().expect("the holder ends"));
        assert_eq!(passes.0.load(Ordering::SeqCst), 1, "how often the fence was passed");
        assert!(!session.is_due(), "nobody is there to return anything to");
    });
}

#[test]
fn the_fence_is_passed_once() {
    pass(Borrower::peer_died);
}

#[test]
#[should_panic(expected = "how often the fence was passed")]
fn mutation_dying_is_noted_after_the_holds_were_counted() {
    pass(|session| {
        session.close();
        let shared = &session.shared;
        let passed = shared.state().ended == session.borrowed;
        shared.state().dying = Some(session.borrowed);
        if passed {
            shared.fence.passed(shared.peer);
        }
    });
}

#[test]
#[should_panic(expected = "how often the fence was passed")]
fn mutation_the_lock_is_let_go_between_dying_and_counting() {
    pass(|session| {
        session.close();
        let shared = &session.shared;
        shared.state().dying = Some(session.borrowed);
        let passed = shared.state().ended == session.borrowed;
        if passed {
            shared.fence.passed(shared.peer);
        }
    });
}
