//! Heritage: what a domain leaves to its successor.
//!
//! An arena can outlive the domain that wrote it: on `host` it is a file, of which the manager holds the descriptor; on
//! Xen dom0 keeps the pages mapped, and copies what was left ([`restate`]). A component can
//! keep a log of what it has promised in an area of its arena, its [`Heritage`], and announce it in the arena's header.
//! When the domain dies, the manager hands the arena to the next incarnation (if the manifest says `inherit = true`),
//! read-only like any window; that reads the area as [`Inherited`] and makes good what was promised.
//!
//! It guarantees that the area is found, lies inside the arena and can be read without undefined behaviour, and that a
//! successor sees writes in the order in which they were published: a domain can die between any two instructions, but
//! never with [`Heritage::publish`]ed words that are ahead of the bytes written before them. It does not interpret
//! the content: to the successor every byte is an allegation, for a bug of the dead may have been what killed it. And
//! it survives the death of a process only, not that of the manager or of the machine.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::arena::{self, ArenaError, OwnArena, Peer, RawArena};
use crate::heap::{ArenaBuf, HeapError};
use crate::memory::Memory;
use crate::window::{Span, Window};

/// The owner's end: an area of the own arena.
#[derive(Debug)]
pub struct Heritage {
    buf: ArenaBuf,
    arena: Arc<OwnArena>,
}

impl Heritage {
    /// An area of `len` bytes, zeroed. Nobody knows of it until it is announced.
    ///
    /// # Errors
    /// [`HeapError`] if the arena has no room for it.
    pub fn new(memory: &Memory, len: usize) -> Result<Self, HeapError> {
        let mut buf = memory.alloc(len)?;
        buf.as_mut_slice().fill(0);
        Ok(Self { buf, arena: memory.arena().clone() })
    }

    /// Length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "an area is never empty")]
    pub fn len(&self) -> usize {
        self.buf.len()
    }

    /// Writes bytes at `at`; what would leave the area is left out.
    pub fn write(&mut self, at: usize, bytes: &[u8]) {
        if let Some(rest) = self.buf.as_mut_slice().get_mut(at..) {
            let count = rest.len().min(bytes.len());
            rest[..count].copy_from_slice(&bytes[..count]);
        }
    }

    /// Writes a word at `at`, a multiple of 8 inside the area (no effect otherwise), after everything that was written
    /// before and before everything that is written later.
    pub fn publish(&mut self, at: usize, value: u64) {
        if !at.is_multiple_of(8) || at.checked_add(8).is_none_or(|end| end > self.buf.len()) {
            return;
        }
        // SAFETY: inside the buffer by the check above, and aligned, because buffers are aligned to a cache line;
        // `&mut self` makes this the only access from this domain, and peers only read.
        let word = unsafe { AtomicU64::from_ptr(self.buf.as_ptr().add(at).cast().as_ptr()) };
        // SYNC: pairs with the acquire load in `Inherited::word`: what was written before is there.
        word.store(value.to_le(), Ordering::Release);
        // SYNC: what is written after this (such as over a record that the word has given up) stays after it.
        fence(Ordering::SeqCst);
    }

    /// Enters the area in the arena's header, in place of any other.
    pub fn announce(&self) {
        let segment = self.buf.segment();
        self.arena.set_heritage(segment.addr.offset(), u64::from(segment.len));
    }
}

impl Drop for Heritage {
    /// The memory goes back to the heap, so it must not be taken for a heritage any more.
    fn drop(&mut self) {
        self.arena.withdraw_heritage(self.buf.segment().addr.offset());
    }
}

/// The successor's view of an area. Its owner is dead, so the bytes do not change.
#[derive(Debug, Clone)]
pub struct Inherited(Span);

impl Inherited {
    /// What the arena behind `window` announces; `None` if it announces nothing.
    ///
    /// # Errors
    /// [`ArenaError`] if it is no arena, or the area lies outside it.
    pub fn of(window: &Arc<Window>) -> Result<Option<Self>, ArenaError> {
        let Some((at, len)) = Peer::read(window)?.heritage() else { return Ok(None) };
        let outside = ArenaError::Heritage { at, len };
        let short = u32::try_from(len).map_err(|_| outside.clone())?;
        Span::of(window, at, short).map(Self).map(Some).ok_or(outside)
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut all = vec![0; self.len()];
        self.read(0, &mut all);
        all
    }

    /// Copies bytes from `at` on, as many as both sides have; returns how many.
    pub fn read(&self, at: usize, out: &mut [u8]) -> usize {
        self.0.read(at, out)
    }

    /// A published word; `None` if there is none at `at`.
    pub fn word(&self, at: usize) -> Option<u64> {
        if at.checked_add(8)? > self.0.len() {
            return None;
        }
        // SAFETY: inside the mapping by the check above.
        let byte = unsafe { self.0.as_ptr().add(at) };
        if !byte.addr().get().is_multiple_of(8) {
            return None;
        }
        // SYNC: pairs with the release store in `Heritage::publish`.
        // SAFETY: 8 mapped, aligned bytes; accessed atomically, and only read.
        Some(u64::from_le(unsafe { AtomicU64::from_ptr(byte.cast().as_ptr()) }.load(Ordering::Acquire)))
    }
}

/// The length of an arena that holds a heritage of `len` bytes and nothing else: see [`restate`].
pub fn bytes_for(len: usize) -> u64 {
    (arena::BARE_BYTES + len as u64).next_multiple_of(4096).max(arena::MIN_ARENA_BYTES)
}

/// Makes an arena of the dead incarnation `id` that has its heritage and nothing else: for a platform that cannot hand
/// over the arena itself. `raw` must have [`bytes_for`] the bytes of the heritage.
///
/// # Errors
/// [`ArenaError`] if it has not.
///
/// # Safety
/// As for [`OwnArena::format`].
pub unsafe fn restate(raw: RawArena, id: crate::addr::DomainId, heritage: &[u8]) -> Result<OwnArena, ArenaError> {
    let needed = bytes_for(heritage.len());
    if raw.len < needed {
        return Err(ArenaError::TooSmall { needed, len: raw.len });
    }
    // SAFETY: the caller vouches for the memory.
    let arena = unsafe { OwnArena::format(raw, id, &[]) }?;
    let at = arena.heap_start();
    // SAFETY: inside the arena: `bytes_for` counts what is before the heap and the bytes.
    let start: NonNull<u8> = unsafe { arena.base().add(at as usize) };
    // SAFETY: as above; the memory is this process's own, and nobody knows of it yet.
    unsafe { std::ptr::copy_nonoverlapping(heritage.as_ptr(), start.as_ptr(), heritage.len()) };
    // With release, so that the bytes are there first.
    arena.set_heritage(at, heritage.len() as u64);
    Ok(arena)
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::testing::{plain_memory, private_memory};

    #[test]
    fn a_successor_reads_what_was_left() {
        let memory = private_memory(1 << 20);
        let window = memory.arena().window().clone();
        assert!(Inherited::of(&window).unwrap().is_none());
        let mut heritage = Heritage::new(&memory, 4096).unwrap();
        heritage.write(100, b"promised");
        heritage.publish(8, 42);
        assert!(Inherited::of(&window).unwrap().is_none(), "not announced");
        heritage.announce();
        let inherited = Inherited::of(&window).unwrap().unwrap();
        let mut out = [0; 8];
        assert_eq!((inherited.len(), inherited.read(100, &mut out)), (4096, 8));
        assert_eq!((&out, inherited.word(8)), (b"promised", Some(42)));
        drop(heritage);
        assert!(Inherited::of(&window).unwrap().is_none(), "its memory may be anything now");
    }

    #[test]
    fn what_leaves_the_area_is_left_out() {
        let memory = private_memory(1 << 20);
        let mut heritage = Heritage::new(&memory, 64).unwrap();
        heritage.announce();
        heritage.write(60, b"12345678");
        heritage.write(1000, b"x");
        for at in [57, 60, 64, usize::MAX] {
            heritage.publish(at, u64::MAX);
        }
        let inherited = Inherited::of(memory.arena().window()).unwrap().unwrap();
        let mut out = [0; 8];
        assert_eq!((inherited.read(56, &mut out), &out), (8, b"\0\0\0\x001234"));
        assert_eq!((inherited.word(56).is_some(), inherited.word(57), inherited.word(64)), (true, None, None));
        assert_eq!(inherited.word(usize::MAX), None);
    }

    #[test]
    fn a_later_heritage_takes_the_place_and_keeps_it() {
        let memory = private_memory(1 << 20);
        let first = Heritage::new(&memory, 64).unwrap();
        first.announce();
        let second = Heritage::new(&memory, 128).unwrap();
        second.announce();
        drop(first);
        assert_eq!(Inherited::of(memory.arena().window()).unwrap().unwrap().len(), 128);
    }

    #[test]
    fn a_restated_heritage_is_the_same_in_less_memory() {
        for len in [1, 4096, 49_152, 49_153, 100_000] {
            let memory = private_memory(1 << 20);
            let mut heritage = Heritage::new(&memory, len).unwrap();
            let bytes: Vec<u8> = (0..len).map(|at| (at * 7) as u8).collect();
            heritage.write(0, &bytes);
            heritage.announce();
            let left = Inherited::of(memory.arena().window()).unwrap().unwrap().to_vec();
            let exact = bytes_for(left.len());
            assert!(exact <= (len as u64).next_multiple_of(4096) + (64 << 10), "{exact} bytes for {len}");
            let id = memory.arena().id();
            // SAFETY: fresh memory of the test's own.
            let restated = unsafe { restate(plain_memory(exact), id, &left) }.unwrap();
            let inherited = Inherited::of(restated.window()).unwrap().unwrap();
            assert_eq!((restated.id(), &inherited.to_vec()[..len]), (id, &bytes[..]));
            if exact > arena::MIN_ARENA_BYTES {
                // SAFETY: as above.
                let error = unsafe { restate(plain_memory(exact - 4096), id, &left) }.unwrap_err();
                assert_eq!(error, ArenaError::TooSmall { needed: exact, len: exact - 4096 });
            }
        }
    }

    #[test]
    fn an_area_outside_the_arena_is_refused() {
        let memory = private_memory(1 << 20);
        for (at, len) in [(u64::MAX, 64), (1 << 20, 1), ((1 << 20) - 8, 16), (0, u64::MAX), (8192, 1 << 32)] {
            memory.arena().set_heritage(at, len);
            let error = Inherited::of(memory.arena().window()).unwrap_err();
            assert_eq!(error, ArenaError::Heritage { at, len });
        }
    }
}
