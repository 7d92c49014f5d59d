//! Cases in which the peer dies: sessions, fences, generations.

use super::Failure;
use super::judge::{Details, Judge};
use super::script::{FOR_THIRD, Order, digest, pattern};
use crate::addr::{DomainId, Segment};
use crate::payload::Payload;

/// Kills the peer and waits until the lane says so. Returns who it was.
fn kill_peer(judge: &mut Judge) -> Result<DomainId, Failure> {
    let victim = judge.peer()?;
    judge.order(Order::Die, Details::default())?;
    judge.until_down(victim)?;
    Ok(victim)
}

/// The successor of a dead peer.
fn successor(judge: &mut Judge, dead: DomainId) -> Result<DomainId, Failure> {
    let successor = judge.peer()?;
    let expected = DomainId { generation: dead.generation.next(), ..dead };
    judge.check(successor == expected, &format!("{successor} came after {dead}, not {expected}"))?;
    Ok(successor)
}

/// Everything that was on loan to dead peers is free again.
fn until_fenced(judge: &mut Judge) -> Result<(), Failure> {
    judge.until("end of the quarantine", |judge| Ok((judge.lane().quarantined() == 0).then_some(())))
}

/// A buffer in the peer's arena.
fn given(judge: &mut Judge, seed: u32) -> Result<Payload, Failure> {
    Ok(judge.have(Order::Give, Details { args: [seed, 10_000], ..Details::default() })?.payload)
}

pub(super) fn a_lone_death(judge: &mut Judge) -> Result<(), Failure> {
    let payload = judge.buffer(20, 1000)?;
    judge.have(Order::Hold, Details { payload, ..Details::default() })?;
    let dead = kill_peer(judge)?;
    successor(judge, dead)?;
    for flags in [0, FOR_THIRD] {
        let payload = judge.buffer(21, 1000)?;
        let seen = judge.have(Order::Digest, Details { flags, payload, ..Details::default() })?;
        judge.check(seen.args[0] == digest(pattern(21).take(1000)), "other bytes arrived in the new session")?;
    }
    until_fenced(judge)?;
    judge.until_returned()
}

pub(super) fn frozen_window(judge: &mut Judge) -> Result<(), Failure> {
    let frozen = given(judge, 30)?;
    let lent = judge.buffer(31, 100)?;
    judge.have(Order::Hold, Details { payload: lent, ..Details::default() })?;
    let dead = kill_peer(judge)?;
    successor(judge, dead)?;
    judge.have(Order::Echo, Details { flags: FOR_THIRD, ..Details::default() })?;
    let expected = digest(pattern(30).take(10_000));
    judge.check(judge.digest_of(&frozen)? == expected, "the dead peer's bytes have changed")?;
    // The judge itself has not passed the fence, so it cannot be over.
    judge.check(judge.lane().quarantined() == 1, "the fence was passed although a hold is alive")?;
    drop(frozen);
    until_fenced(judge)
}

pub(super) fn the_third_delays_the_fence(judge: &mut Judge) -> Result<(), Failure> {
    let held = judge.buffer(40, 50_000)?;
    let expected = digest(pattern(40).take(50_000));
    let for_third = || Details { flags: FOR_THIRD, ..Details::default() };
    judge.have(Order::Hold, Details { payload: held, ..for_third() })?;
    let dead = kill_peer(judge)?;
    successor(judge, dead)?;
    let seen = judge.have(Order::DigestHeld, for_third())?;
    judge.check(seen.args[0] == expected, "what the third holds has changed after the death of who brought it")?;
    judge.check(judge.lane().quarantined() == 1, "a loan came back from the dead although the third holds it")?;
    judge.have(Order::Release, for_third())?;
    until_fenced(judge)?;
    judge.check(judge.memory().heap().used() == 0, "buffers are still in use after the fence")
}

pub(super) fn nothing_left_over(judge: &mut Judge) -> Result<(), Failure> {
    let dead = judge.peer()?;
    judge.order(Order::Die, Details::default())?;
    // Behind the order to die, and for nobody. If the news are quick, there is no lane any more.
    for _ in 0..judge.lane().slots() / 2 {
        if !judge.lane().is_up() || judge.try_order(Order::Count, &Details::default()).is_err() {
            break;
        }
    }
    judge.until_down(dead)?;
    successor(judge, dead)?;
    let counted = judge.have(Order::Counted, Details::default())?.args[0];
    judge.check(counted == 0, "messages to the dead reached its successor")
}

pub(super) fn old_generations_are_refused(judge: &mut Judge) -> Result<(), Failure> {
    let old: Vec<Segment> = given(judge, 50)?.segments().collect();
    let lent = judge.buffer(51, 100)?;
    judge.have(Order::Hold, Details { payload: lent, ..Details::default() })?;
    let dead = kill_peer(judge)?;
    successor(judge, dead)?;
    for flags in [0, FOR_THIRD] {
        let mut payload = Payload::new();
        old.iter().for_each(|segment| payload.push(*segment, None));
        let answer = judge.ask(Order::Digest, Details { flags, payload, ..Details::default() })?;
        judge.check(answer.refused, "an address of an old generation was accepted")?;
    }
    until_fenced(judge)?;
    let refused = old.iter().all(|segment| judge.memory().translate(*segment).is_err());
    judge.check(refused, "the window on the dead is still there after the fence")
}
