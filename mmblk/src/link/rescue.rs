//! Copying out of a dead device's arena what is still to be written: its successor has no window there, and the dead
//! one's fence has to be passed.
//!
//! What is copied is every part that lies in that arena, and every part under the same hold as one of those: a loan
//! ends only when all of it is dropped. All else stays where it is.

use std::sync::Arc;

use fido_core::addr::{DomainId, Slot};
use fido_core::memory::{CopyError, Memory};
use fido_core::payload::{Part, Payload};

/// Who is dead: every incarnation of the device but its present one. (Generations wrap, so "every one before" would
/// not be the same.)
#[derive(Debug, Clone, Copy)]
pub(super) struct Dead {
    /// The device's place.
    pub(super) slot: Slot,
    /// The successor, once it is there.
    pub(super) except: Option<DomainId>,
}

/// Replaces what lies in the arenas of the `dead` by copies in the own arena. Without success `data` stays as it is.
pub(super) fn rescue(data: &mut Payload, dead: Dead, memory: &Memory) -> Result<(), CopyError> {
    let lies_there = |part: &Part| {
        let owner = part.segment.addr.domain();
        owner.slot == dead.slot && Some(owner) != dead.except
    };
    if !data.parts().iter().any(lies_there) {
        return Ok(());
    }
    let mut rescued = Payload::new();
    for part in data.parts() {
        let mut one = Payload::new();
        one.push(part.segment, part.hold.clone());
        if data.parts().iter().any(|lost| lies_there(lost) && ends_with(lost, part))
            && let Some(copy) = memory.copy_in(&one)?
        {
            one = copy.into_payload();
        }
        rescued.append(one);
    }
    *data = rescued;
    Ok(())
}

/// Whether a part is another, or is kept by the same hold.
fn ends_with(a: &Part, b: &Part) -> bool {
    match (&a.hold, &b.hold) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        _ => a.segment == b.segment,
    }
}
