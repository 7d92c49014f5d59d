//! Cases about windows and addresses.

use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::mm::MprotectFlags;

use super::Failure;
use super::judge::{Details, Judge};
use super::script::{FOR_THIRD, Order, digest, pattern};
use crate::addr::{DomainId, GlobalAddr, MAX_ARENA_BYTES, Segment, Slot};
use crate::payload::Payload;

pub(super) fn windows_show_what_the_owner_writes(judge: &mut Judge) -> Result<(), Failure> {
    // The very first message goes on to the third: a link is up only when everybody who may read its ends can.
    for (seed, len) in [(1u32, 1u32), (2, 64), (3, 100_003), (4, 1 << 20)] {
        let expected = digest(pattern(seed).take(len as usize));
        for flags in [FOR_THIRD, 0] {
            let payload = judge.buffer(seed, len as usize)?;
            let seen = judge.have(Order::Digest, Details { flags, payload, ..Details::default() })?;
            judge.check(seen.args[0] == expected, "another domain reads other bytes than the judge wrote")?;
        }
        let given = judge.have(Order::Give, Details { args: [seed, len], ..Details::default() })?;
        judge.check(judge.digest_of(&given.payload)? == expected, "the judge reads other bytes than the peer wrote")?;
        let peer = judge.peer()?;
        let from_peer = given.payload.segments().all(|segment| segment.addr.domain() == peer);
        judge.check(from_peer, "the peer's bytes have been moved")?;
    }
    Ok(())
}

pub(super) fn windows_cannot_be_made_writable(judge: &mut Judge) -> Result<(), Failure> {
    let peer = judge.peer()?;
    let window = judge.memory().windows().get(peer).ok_or_else(|| judge.wrong("no window on the peer"))?;
    let (base, len) = (window.base().as_ptr(), window.len() as usize);
    // SAFETY: only asks for more rights on a mapping that `window` keeps, without any reference into it.
    let raised = unsafe { rustix::mm::mprotect(base.cast(), len, MprotectFlags::READ | MprotectFlags::WRITE) };
    judge.check(raised.is_err(), "mprotect makes the window writable")?;
    // The kernel's back door, which writes even where a process' own pages are read-only.
    if let Ok(memory) = File::options().write(true).open("/proc/self/mem") {
        let written = memory.write_at(&[0xFF], base.expose_provenance() as u64 + window.len() - 1);
        judge.check(written.is_err(), "/proc/self/mem writes through the window")?;
    }
    Ok(())
}

/// Payloads that no receiver may accept from `judge`.
fn wild_payloads(judge: &mut Judge) -> Result<Vec<(&'static str, Payload)>, Failure> {
    let (me, len) = (judge.memory().id(), judge.memory().arena().len());
    let peer = judge.peer()?;
    let at = |id, offset, len| {
        let mut payload = Payload::new();
        let addr = GlobalAddr::new(id, offset).unwrap_or(GlobalAddr::from_bits(0));
        payload.push(Segment::new(addr, len), None);
        payload
    };
    let stale = DomainId { generation: me.generation.next(), ..me };
    let nobody = DomainId { slot: Slot::new(Slot::COUNT as u16 - 1).unwrap_or(me.slot), ..me };
    let mut list = at(me, 0, 1);
    (1..9).for_each(|n| list.append(at(me, n * 8, 1)));
    list.append(at(stale, 0, 1));
    Ok(vec![
        ("another generation", at(stale, 0, 1)),
        ("a slot without a window", at(nobody, 0, 1)),
        ("the first byte behind the arena", at(me, len, 1)),
        ("a range that leaves the arena", at(me, len - 1, 2)),
        ("the receiver's own arena, out of bounds", at(peer, MAX_ARENA_BYTES - 1, 1)),
        ("a range that overflows the offset", at(me, MAX_ARENA_BYTES - 1, u32::MAX)),
        ("one wild segment in a long list", list),
    ])
}

pub(super) fn wild_addresses_are_refused(judge: &mut Judge) -> Result<(), Failure> {
    for (what, payload) in wild_payloads(judge)? {
        let answer = judge.ask(Order::Digest, Details { payload, ..Details::default() })?;
        judge.check(answer.refused, &format!("{what} was accepted"))?;
    }
    let payload = judge.buffer(7, 4096)?;
    let seen = judge.have(Order::Digest, Details { payload, ..Details::default() })?;
    judge.check(seen.args[0] == digest(pattern(7).take(4096)), "after refusals the lane carries other bytes")?;
    judge.until_returned()
}
