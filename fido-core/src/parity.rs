//! Parity: the exclusive or of payloads, straight from the windows.
//!
//! Sources may lie in any arena. They are read with raw loads, a cache line at a time, and never referred to; a plain
//! loop that the compiler vectorises runs as fast as memory. The target is worked on in tiles that stay in the
//! processor's first cache, so that with several sources each byte of it goes to memory once.

use std::ptr::NonNull;

use crate::heap::ArenaBuf;
use crate::memory::Memory;
use crate::payload::Payload;
use crate::window::{AddressError, Span};

/// Bytes of the target that all sources are added to before the next are begun.
const TILE_BYTES: usize = 16 << 10;
/// Bytes of one step: a cache line.
const STEP_BYTES: usize = 64;

/// Why there is no parity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParityError {
    /// A source has no memory behind it here.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The range is not all in the target.
    #[error("{at}+{len} is beyond a buffer of {room} bytes")]
    Target {
        /// First byte in the target.
        at: usize,
        /// Bytes to be written.
        len: usize,
        /// What the target has.
        room: usize,
    },
    /// A source has another length than the range.
    #[error("a source of {found} bytes for a parity of {len}")]
    Length {
        /// What the source has.
        found: u64,
        /// What it must have.
        len: usize,
    },
}

/// A source, and how far it has been read.
struct Cursor {
    spans: Vec<Span>,
    index: usize,
    at: usize,
}

impl Cursor {
    /// The next bytes, at most `most`, that lie in one piece.
    fn next(&mut self, most: usize) -> Option<(NonNull<u8>, usize)> {
        let span = self.spans.get(self.index)?;
        let count = most.min(span.len() - self.at);
        // SAFETY: `at` is within the span, see below.
        let from = unsafe { span.as_ptr().add(self.at) };
        self.at += count;
        if self.at == span.len() {
            (self.index, self.at) = (self.index + 1, 0);
        }
        Some((from, count))
    }
}

impl Memory {
    /// Writes the exclusive or of `sources` to `len` bytes of `target` from `at` on; zeros if there are none. Each source
    /// must have `len` bytes.
    ///
    /// This computes from the bytes and does not move them: nothing is counted as copied. A source whose owner changes it
    /// meanwhile gives odd parity, nothing worse, even if it lies in the target itself.
    ///
    /// # Errors
    /// [`ParityError`]; the target is then as it was.
    pub fn parity(&self, sources: &[Payload], target: &mut ArenaBuf, at: usize, len: usize) -> Result<(), ParityError> {
        let room = target.len();
        if at.checked_add(len).is_none_or(|end| end > room) {
            return Err(ParityError::Target { at, len, room });
        }
        let mut cursors = Vec::with_capacity(sources.len());
        for source in sources {
            if source.len() != len as u64 {
                return Err(ParityError::Length { found: source.len(), len });
            }
            cursors.push(Cursor { spans: self.translate_all(source)?, index: 0, at: 0 });
        }
        let mut done = 0;
        while done < len {
            let count = TILE_BYTES.min(len - done);
            // SAFETY: `at + done + count` is at most the target's length.
            let tile = unsafe { target.as_ptr().add(at + done) };
            // SAFETY: `count` bytes of the target from `tile` on, which nobody has a reference to: `target` is exclusively
            // borrowed here, and all access below is raw.
            unsafe { add_all(&mut cursors, tile, count) };
            done += count;
        }
        Ok(())
    }
}

/// Writes the exclusive or of the next `count` bytes of all cursors to `tile`.
///
/// # Safety
/// `tile` must be valid for reads and writes of `count` bytes, and no reference to them may be live.
unsafe fn add_all(cursors: &mut [Cursor], tile: NonNull<u8>, count: usize) {
    if cursors.is_empty() {
        // SAFETY: as the caller promises.
        unsafe { std::ptr::write_bytes(tile.as_ptr(), 0, count) };
    }
    for (index, cursor) in cursors.iter_mut().enumerate() {
        let mut at = 0;
        while at < count
            && let Some((from, found)) = cursor.next(count - at)
        {
            // SAFETY: `found <= count - at` bytes on both sides: mapped by the span, and by the caller's promise. A peer's
            // concurrent store happens outside this program; no value that is read here is relied on. They may overlap,
            // if a peer alleges an address in our arena.
            unsafe {
                let to = tile.add(at);
                if index == 0 {
                    std::ptr::copy(from.as_ptr(), to.as_ptr(), found);
                } else {
                    xor(from.as_ptr(), to.as_ptr(), found);
                }
            }
            at += found;
        }
    }
}

/// Adds `len` bytes at `from` to those at `to`.
///
/// # Safety
/// `from` must be valid for reads and `to` for reads and writes of `len` bytes. They may overlap; the result is then a
/// mixture.
unsafe fn xor(from: *const u8, to: *mut u8, len: usize) {
    type Step = [u64; STEP_BYTES / 8];
    let steps = len / STEP_BYTES;
    for index in 0..steps {
        // SAFETY: within `len` bytes on both sides. Loads and stores are by value and unaligned: no reference is formed.
        unsafe {
            let source = from.add(index * STEP_BYTES).cast::<Step>().read_unaligned();
            let place = to.add(index * STEP_BYTES).cast::<Step>();
            let mut sum = place.read_unaligned();
            for (sum, word) in sum.iter_mut().zip(source) {
                *sum ^= word;
            }
            place.write_unaligned(sum);
        }
    }
    for index in steps * STEP_BYTES..len {
        // SAFETY: as above.
        unsafe { *to.add(index) ^= from.add(index).read() };
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::addr::{GlobalAddr, Segment};
    use crate::testing::private_memory;

    fn payload(memory: &Memory, bytes: &[u8]) -> Payload {
        let mut buf = memory.alloc(bytes.len()).unwrap();
        buf.as_mut_slice().copy_from_slice(bytes);
        buf.into_payload()
    }

    fn bytes(seed: u32, len: usize) -> Vec<u8> {
        (0..len as u32).map(|i| (i.wrapping_add(seed).wrapping_mul(0x9E37_79B9) >> 11) as u8).collect()
    }

    /// `bytes` in pieces of odd lengths at odd places.
    fn scattered(memory: &Memory, bytes: &[u8], step: usize) -> Payload {
        let mut all = Payload::new();
        for piece in bytes.chunks(step) {
            let mut longer = vec![0; 3];
            longer.extend_from_slice(piece);
            all.append(payload(memory, &longer).slice(3, piece.len() as u64).unwrap());
        }
        all
    }

    #[test]
    fn parity_of_any_number_of_scattered_sources() {
        let memory = private_memory(8 << 20);
        for len in [1, 63, 64, 65, 4096, TILE_BYTES - 1, TILE_BYTES + 1, 3 * TILE_BYTES + 77] {
            for count in 0..5_u32 {
                let contents: Vec<_> = (0..count).map(|seed| bytes(seed * 77, len)).collect();
                let sources: Vec<_> =
                    contents.iter().zip([997, 64, 4099, 131, 7777]).map(|(c, s)| scattered(&memory, c, s)).collect();
                let mut target = memory.alloc(len + 10).unwrap();
                target.as_mut_slice().fill(0xAA);
                memory.parity(&sources, &mut target, 5, len).unwrap();
                let expected: Vec<u8> = (0..len).map(|i| contents.iter().fold(0, |sum, c| sum ^ c[i])).collect();
                assert!(target.as_slice()[5..5 + len] == expected, "{count} sources of {len} bytes");
                assert!(target.as_slice()[..5] == [0xAA; 5] && target.as_slice()[5 + len..] == [0xAA; 5]);
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let memory = private_memory(1 << 20);
        let mut target = memory.alloc(4096).unwrap();
        let source = payload(&memory, &[1; 4096]);
        assert!(memory.parity(std::slice::from_ref(&source), &mut target, 0, 4096).is_ok());
        let beyond = memory.parity(std::slice::from_ref(&source), &mut target, 1, 4096);
        assert_eq!(beyond, Err(ParityError::Target { at: 1, len: 4096, room: 4096 }));
        let short = memory.parity(&[source.slice(0, 4095).unwrap()], &mut target, 0, 4096);
        assert_eq!(short, Err(ParityError::Length { found: 4095, len: 4096 }));
        let stranger = private_memory(1 << 20).id();
        let wild = Segment::new(GlobalAddr::new(stranger, 0).unwrap(), 4096);
        let mut nowhere = Payload::new();
        nowhere.push(wild, None);
        assert!(matches!(memory.parity(&[source, nowhere], &mut target, 0, 4096), Err(ParityError::Address(_))));
        assert!(target.as_slice().iter().all(|byte| *byte == 1), "as it was");
    }

    #[test]
    fn a_source_may_lie_in_the_target() {
        let memory = private_memory(1 << 20);
        let mut target = memory.alloc(4096).unwrap();
        target.as_mut_slice().fill(3);
        let mut alleged = Payload::new();
        alleged.push(target.segment(), None);
        let other = payload(&memory, &[5; 4096]);
        memory.parity(&[alleged, other], &mut target, 0, 4096).unwrap();
        assert!(target.as_slice().iter().all(|byte| *byte == 6));
    }
}
