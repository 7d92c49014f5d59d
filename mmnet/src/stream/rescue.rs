//! Copying out of a dead domain's arena what is still to be sent, so that its fence passes at once and clients notice
//! nothing.
//!
//! What is copied is every part that lies in that arena, and every part under the same hold as one of those: a loan
//! ends only when all of it is dropped, and as long as it lasts the dead domain's own loan, further back, lasts too.

use std::collections::VecDeque;
use std::sync::Arc;

use fido_core::addr::DomainId;
use fido_core::memory::{CopyError, Memory};
use fido_core::payload::{Hold, Part, Payload};

/// Whether two parts are kept by the same hold.
pub(super) fn same_hold(a: &Part, b: &Part) -> bool {
    matches!((&a.hold, &b.hold), (Some(a), Some(b)) if address(a) == address(b))
}

/// Copies parts of a queue; `front_is_tainted` says that its front is under one hold with something of `dead`'s that
/// is not in the queue any more.
pub(super) fn rescue_parts(
    parts: &mut VecDeque<Part>,
    front_is_tainted: bool,
    dead: DomainId,
    memory: &Memory,
) -> Result<(), CopyError> {
    let lies_there = |part: &Part| part.segment.addr.domain() == dead;
    let front = parts.front().filter(|_| front_is_tainted);
    let tainted: Vec<usize> = parts
        .iter()
        .filter(|part| lies_there(part))
        .chain(front)
        .filter_map(|part| part.hold.as_ref().map(address))
        .collect();
    for part in parts.iter_mut() {
        if lies_there(part) || part.hold.as_ref().is_some_and(|hold| tainted.contains(&address(hold))) {
            let mut one = Payload::new();
            one.push(part.segment, part.hold.clone());
            if let Some(copy) = memory.copy_in(&one)? {
                *part = Part { segment: copy.segment(), hold: Some(Arc::new(copy)) };
            }
        }
    }
    Ok(())
}

/// Copies a whole message's payload, if any of it lies in `dead`'s arena.
pub(super) fn rescue_payload(payload: &mut Payload, dead: DomainId, memory: &Memory) -> Result<(), CopyError> {
    if payload.segments().any(|segment| segment.addr.domain() == dead)
        && let Some(copy) = memory.copy_in(payload)?
    {
        *payload = copy.into_payload();
    }
    Ok(())
}

fn address(hold: &Hold) -> usize {
    Arc::as_ptr(hold).cast::<()>().addr()
}
