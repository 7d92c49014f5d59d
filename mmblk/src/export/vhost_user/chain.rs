//! Chains of descriptors: the pieces of a guest's memory that make one request.
//!
//! Each descriptor is copied out once, and the copy is checked. A chain ends after as many descriptors as the ring has
//! places (or its indirect table has entries): so no loop can hold anybody up.

use fido_core::foreign::{Area, Foreign};

use super::wire::Reader;

/// The most entries of an indirect table.
pub const MAX_INDIRECT: u32 = 1024;

const BYTES: u32 = 16;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Why a chain is not well formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// A descriptor that does not exist.
    #[error("descriptor {0} does not exist")]
    Index(u16),
    /// More descriptors than there are: a loop.
    #[error("it does not end")]
    Loop,
    /// Memory that the guest does not have.
    #[error("{len} bytes at {at:#x} are not in the guest's memory")]
    Address {
        /// Where.
        at: u64,
        /// How many.
        len: u32,
    },
    /// A table in a table, a table that is not alone, or one of a wrong length.
    #[error("an indirect table of {len} bytes with flags {flags:#x}")]
    Indirect {
        /// Its length.
        len: u32,
        /// The descriptor's flags.
        flags: u16,
    },
    /// Something to read after something to write.
    #[error("something to read comes after something to write")]
    Order,
}

/// One request's memory: what the device reads, and then what it writes.
#[derive(Debug, Default)]
pub struct Chain {
    /// What the guest has written for the device.
    pub readable: Vec<Area>,
    /// Where the device is to write.
    pub writable: Vec<Area>,
}

struct Descriptor {
    at: u64,
    len: u32,
    flags: u16,
    next: u16,
}

/// A table of descriptors: the ring's or an indirect one, in pieces where it crosses regions.
struct Table<'a> {
    areas: &'a [Area],
    entries: u32,
}

impl Table<'_> {
    fn read(&self, index: u16) -> Result<Descriptor, ChainError> {
        if u32::from(index) >= self.entries {
            return Err(ChainError::Index(index));
        }
        let mut skip = usize::from(index) * BYTES as usize;
        let (mut bytes, mut have) = ([0; BYTES as usize], 0);
        for area in self.areas {
            if skip < area.len() {
                have += area.read(skip, &mut bytes[have..]);
                skip = 0;
            } else {
                skip -= area.len();
            }
        }
        let mut reader = Reader::new(&bytes);
        Ok(Descriptor { at: reader.u64(), len: reader.u32(), flags: reader.u16(), next: reader.u16() })
    }
}

impl Chain {
    /// Collects the chain that begins at descriptor `head`.
    ///
    /// # Errors
    /// [`ChainError`] if it is not well formed.
    pub fn collect(&mut self, memory: &Foreign, descriptors: &Area, head: u16) -> Result<(), ChainError> {
        self.readable.clear();
        self.writable.clear();
        let table = Table { areas: std::slice::from_ref(descriptors), entries: descriptors.len() as u32 / BYTES };
        let Some(inner) = self.walk(memory, &table, head, true)? else { return Ok(()) };
        let mut areas = Vec::new();
        pieces(memory, inner.at, inner.len, &mut areas)?;
        let table = Table { areas: &areas, entries: inner.len / BYTES };
        self.walk(memory, &table, 0, false)?;
        Ok(())
    }

    /// Follows a chain in one table. Returns the descriptor of an indirect table, if the chain ends with one.
    fn walk(
        &mut self,
        memory: &Foreign,
        table: &Table<'_>,
        first: u16,
        outer: bool,
    ) -> Result<Option<Descriptor>, ChainError> {
        let mut index = first;
        for _ in 0..table.entries {
            let descriptor = table.read(index)?;
            let Descriptor { at, len, flags, next } = descriptor;
            if flags & INDIRECT != 0 {
                let fits = len > 0 && len.is_multiple_of(BYTES) && len / BYTES <= MAX_INDIRECT;
                if !outer || !fits || flags & NEXT != 0 {
                    return Err(ChainError::Indirect { len, flags });
                }
                return Ok(Some(descriptor));
            }
            if flags & WRITE != 0 {
                pieces(memory, at, len, &mut self.writable)?;
            } else if self.writable.is_empty() {
                pieces(memory, at, len, &mut self.readable)?;
            } else {
                return Err(ChainError::Order);
            }
            if flags & NEXT == 0 {
                return Ok(None);
            }
            index = next;
        }
        Err(ChainError::Loop)
    }
}

/// A range of the guest's memory, in as many pieces as it crosses regions.
fn pieces(memory: &Foreign, at: u64, len: u32, areas: &mut Vec<Area>) -> Result<(), ChainError> {
    let mut done = 0;
    while done < len {
        let area = at.checked_add(done.into()).and_then(|from| memory.guest(from, len - done));
        let area = area.ok_or(ChainError::Address { at, len })?;
        done += area.len() as u32;
        areas.push(area);
    }
    Ok(())
}
