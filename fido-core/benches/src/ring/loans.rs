//! Loans of any size: lent, received and returned, with and without anybody looking at the bytes.

use std::sync::atomic::{AtomicU64, Ordering};

use fido_core::heap::HeapError;
use fido_core::message::Head;
use fido_core::payload::Payload;
use serde::{Deserialize, Serialize};

use super::channel;
use super::end::End;
use super::spin::spin;
use crate::Failure;

/// Both sides flush after so many loans.
const BATCH: u32 = 16;
const HEAD: Head = Head { kind: 1, flags: 0, args: [0; 4] };

/// So many loans.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Loans {
    /// Bytes of each.
    pub bytes: u32,
    /// Whether the lender allocates and fills a buffer for each, and the borrower reads it; otherwise the same buffer is
    /// lent again and again and nobody looks.
    pub touch: bool,
    /// How many.
    pub count: u32,
}

impl Loans {
    /// Lends, and waits until everything has been returned.
    pub fn lead(self, end: &mut End) -> Result<(), Failure> {
        let again = end.memory.alloc(self.bytes as usize)?.into_payload();
        for number in 1..=self.count {
            let payload = if self.touch { self.filled(end, number)? } else { again.clone() };
            let first = end.lanes.first_mut().ok_or("no lane")?;
            channel::send(first, HEAD, payload)?;
            if number % BATCH == 0 {
                first.flush();
            }
        }
        let first = end.lanes.first_mut().ok_or("no lane")?;
        spin("return of loans", || {
            first.flush();
            (first.loans() == 0).then_some(())
        })?;
        channel::receive(first).map(drop)
    }

    /// A fresh buffer, when there is room, with something in every cache line.
    fn filled(self, end: &mut End, number: u32) -> Result<Payload, Failure> {
        let (memory, first) = (&end.memory, end.lanes.first_mut().ok_or("no lane")?);
        let mut buffer = spin("return of a buffer", || match memory.alloc(self.bytes as usize) {
            Err(HeapError::Exhausted { wanted, capacity, .. }) if wanted <= capacity => {
                first.flush();
                None
            }
            other => Some(other),
        })??;
        buffer.as_mut_slice().fill(number as u8);
        Ok(buffer.into_payload())
    }

    /// Takes the loans and returns them.
    pub fn follow(self, end: &mut End) -> Result<(), Failure> {
        for number in 1..=self.count {
            let first = end.lanes.first_mut().ok_or("no lane")?;
            let (_, payload) = channel::receive(first)?;
            if self.touch {
                look(end, &payload, number)?;
            }
            drop(payload);
            // Where each loan is a buffer of its own that is much of the heap, the lender is not kept waiting for the end of
            // a batch.
            if number % BATCH == 0 || self.touch && self.bytes > 1 << 20 {
                end.lanes.first_mut().ok_or("no lane")?.flush();
            }
        }
        let first = end.lanes.first_mut().ok_or("no lane")?;
        channel::send(first, HEAD, Payload::new())?;
        first.flush();
        Ok(())
    }
}

/// Reads a word of every cache line.
fn look(end: &End, payload: &Payload, number: u32) -> Result<(), Failure> {
    let expected = u64::from_ne_bytes([number as u8; 8]);
    for segment in payload.segments() {
        let span = end.memory.translate(segment)?;
        for at in (0..span.len().saturating_sub(7)).step_by(64) {
            // SAFETY: 8 bytes inside the span, which is mapped; buffers are aligned to 64 bytes, and only atomically read.
            let word = unsafe { AtomicU64::from_ptr(span.as_ptr().as_ptr().add(at).cast()) };
            if word.load(Ordering::Relaxed) != expected {
                return Err(format!("loan {number} has other bytes than were lent, at {at}").into());
            }
        }
    }
    Ok(())
}
