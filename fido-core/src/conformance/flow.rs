//! Cases about messages, wake-ups and loans among living domains.

use std::collections::VecDeque;
use std::time::Duration;

use super::Failure;
use super::judge::{Details, Judge};
use super::script::{FOR_THIRD, Order, digest, pattern};
use crate::lane::SendError;
use crate::message::Head;
use crate::payload::{MAX_SEGMENTS, Payload};

/// Long enough for an idle domain to have gone to sleep, whatever its strategy but spinning.
const UNTIL_ASLEEP: Duration = Duration::from_millis(40);

pub(super) fn messages_in_order(judge: &mut Judge) -> Result<(), Failure> {
    let slots = judge.lane().slots();
    let mut open = VecDeque::new();
    for n in 0..20 * slots {
        // Some with payload, in bursts of different lengths.
        let payload = if n % 3 == 0 { judge.buffer(n, 1 + n as usize % 200)? } else { Payload::new() };
        open.push_back((n, judge.order(Order::Echo, Details { args: [n, !n], payload, ..Details::default() })?));
        let most = 1 + n % (slots / 2);
        while open.len() > most as usize {
            check_echo(judge, &mut open)?;
        }
    }
    while !open.is_empty() {
        check_echo(judge, &mut open)?;
    }
    judge.until_returned()
}

fn check_echo(judge: &mut Judge, open: &mut VecDeque<(u32, u32)>) -> Result<(), Failure> {
    let Some((n, number)) = open.pop_front() else { return Ok(()) };
    let echo = judge.answer(Order::Echo, number)?;
    judge.check(echo.args == [n, !n, !number], "the echo has other arguments than the order")?;
    let len = if n % 3 == 0 { 1 + n as usize % 200 } else { 0 };
    judge.check(echo.payload.len() == len as u64, "the echo's payload has another length")?;
    judge.check(judge.digest_of(&echo.payload)? == digest(pattern(n).take(len)), "the echo has other bytes")
}

pub(super) fn full_ring_and_credit(judge: &mut Judge) -> Result<(), Failure> {
    let before = judge.have(Order::Counted, Details::default())?.args[0];
    let mut counted = 0;
    // The ring fills up while the peer pauses. On a busy machine the judge may itself be late: then with more time.
    for pause in (0..).map(|n| 50 << n) {
        judge.order(Order::Pause, Details { args: [pause, 0], ..Details::default() })?;
        let slots = judge.lane().slots();
        let mut sent = 0;
        while sent <= 2 * slots && judge.try_order(Order::Count, &Details::default())?.is_some() {
            sent += 1;
        }
        counted += sent;
        let is_full = sent <= 2 * slots;
        if is_full {
            judge.check(sent >= slots - slots / 4, "the ring was full before it was")?;
            // These orders have no answers: nothing but credit can wake the judge here.
            judge.order(Order::Count, Details::default())?;
            counted += 1;
        }
        let after = judge.have(Order::Counted, Details::default())?.args[0];
        judge.check(after == before + counted, "messages were lost or doubled at a full ring")?;
        if is_full {
            break;
        }
    }
    Ok(())
}

pub(super) fn a_message_wakes(judge: &mut Judge) -> Result<(), Failure> {
    for flags in [0, FOR_THIRD, 0, FOR_THIRD] {
        // The others sleep when the order comes ...
        std::thread::sleep(UNTIL_ASLEEP);
        judge.have(Order::Echo, Details { flags, ..Details::default() })?;
        // ... and here the judge sleeps when the answer comes.
        let args = [UNTIL_ASLEEP.as_millis() as u32, 0];
        judge.order(Order::Pause, Details { flags, args, ..Details::default() })?;
        judge.have(Order::Echo, Details { flags, ..Details::default() })?;
    }
    Ok(())
}

pub(super) fn loans_return(judge: &mut Judge) -> Result<(), Failure> {
    judge.until_returned()?;
    let before = judge.memory().heap().used();
    let mut open = VecDeque::new();
    for n in 0..300 {
        let payload = judge.buffer(n, 1 + 37 * n as usize)?;
        open.push_back((n, judge.order(Order::Digest, Details { payload, ..Details::default() })?));
        if open.len() == 3 {
            let Some((n, number)) = open.pop_front() else { continue };
            let seen = judge.answer(Order::Digest, number)?;
            judge.check(seen.args[0] == digest(pattern(n).take(1 + 37 * n as usize)), "other bytes arrived")?;
        }
    }
    for (_, number) in open {
        judge.answer(Order::Digest, number)?;
    }
    judge.until_returned()?;
    judge.check(judge.memory().heap().used() == before, "returned loans are not free again")
}

pub(super) fn a_return_wakes(judge: &mut Judge) -> Result<(), Failure> {
    for flags in [0, FOR_THIRD] {
        let payload = judge.buffer(5, 5000)?;
        judge.have(Order::Hold, Details { flags, payload, ..Details::default() })?;
        judge.have(Order::Echo, Details { flags, ..Details::default() })?;
        judge.check(judge.lane().loans() == 1, "a loan was returned although it is held")?;
        // The hold is dropped on another thread, while all domains sleep.
        let args = [UNTIL_ASLEEP.as_millis() as u32, 0];
        judge.order(Order::ReleaseElsewhere, Details { flags, args, ..Details::default() })?;
        judge.until_returned()?;
    }
    Ok(())
}

/// A payload of `count` segments that cannot be joined, together the bytes of `seed`.
fn list(judge: &Judge, seed: u32, count: usize) -> Result<Payload, Failure> {
    let mut payload = Payload::new();
    for n in 0..count {
        payload.append(judge.buffer(seed + n as u32, 1)?);
    }
    Ok(payload)
}

pub(super) fn scatter_gather(judge: &mut Judge) -> Result<(), Failure> {
    for count in [1, 3, 4, MAX_SEGMENTS] {
        for flags in [0, FOR_THIRD] {
            let payload = list(judge, 9, count)?;
            let segments: Vec<_> = payload.segments().collect();
            let details = Details { flags, payload: payload.clone(), ..Details::default() };
            let seen = judge.have(Order::Digest, details)?;
            judge.check(seen.args[0] == digest(pattern(9).take(count)), "a list arrived with other bytes")?;
            let echo = judge.have(Order::Echo, Details { flags, payload, ..Details::default() })?;
            judge.check(echo.payload.segments().eq(segments), "a list came back with other addresses")?;
        }
    }
    let payload = list(judge, 9, MAX_SEGMENTS + 1)?;
    let head = Head { kind: Order::Echo as u8, ..Head::default() };
    let sent = judge.lane_mut().send(head, payload);
    let refused = matches!(sent, Err(SendError::TooManySegments(payload)) if payload.parts().len() == MAX_SEGMENTS + 1);
    judge.check(refused, "257 segments were not refused at the sender")?;
    judge.until_returned()
}

pub(super) fn transitive_forward(judge: &mut Judge) -> Result<(), Failure> {
    let payload = judge.buffer(11, 100_000)?;
    let address = payload.segments().next().map(|segment| segment.addr);
    let details = Details { flags: FOR_THIRD, payload: payload.clone(), ..Details::default() };
    let seen = judge.have(Order::Hold, details)?;
    judge
        .check(seen.args[0] == digest(pattern(11).take(100_000)), "the third reads other bytes than the judge lent")?;
    judge.check(Some(seen.address()) == address, "the bytes have been moved on their way to the third")?;
    // The peer has long done its part: the loan is out because the third holds it.
    judge.have(Order::Echo, Details::default())?;
    judge.check(judge.lane().loans() == 1, "the loan was returned although the third holds it")?;
    judge.have(Order::Release, Details { flags: FOR_THIRD, ..Details::default() })?;
    judge.until_returned()?;
    let echo = judge.have(Order::Echo, Details { flags: FOR_THIRD, payload, ..Details::default() })?;
    judge
        .check(echo.payload.segments().next().map(|segment| segment.addr) == address, "the third sent other bytes back")
}
