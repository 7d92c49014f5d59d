//! The journal of unstable writes: what a killed volume still owes.
//!
//! An unstable write is answered when its data is on the device, but before the store knows where. If the process dies
//! then, the data is all there and only the mapping is gone. So each write is first entered here, in the part of the
//! arena that a successor inherits ([`fido_core::heritage`]), as what it changes: pieces of the mapping, length, time.
//! An entry costs a copy of 128 bytes; there is no system call and no I/O.
//!
//! It guarantees that the entries in order, applied to what the store holds, yield exactly what was answered:
//! * an entry is made before its write is answered, and before any block that it displaces can be used again; stable
//!   writes are entered too, for they displace blocks of unstable ones;
//! * every commit stores with the inode how far the journal is included ([`Mark`]), in the same transaction: older
//!   entries are never applied over newer state. A removed inode's entries mean nothing, for numbers are never used
//!   again. A change of the length follows a commit in the store's order, so everything before it is included;
//! * an entry is given up only when the store includes it. When half of the journal is in use, commits are asked for;
//!   a write that finds no room waits for them;
//! * it is all or nothing. If a commit fails, or there is no other way, the journal is *void* until everything is
//!   stored: a successor then begins with what the store holds and a new write verifier. A part of the entries is no
//!   use, since later ones may have given its blocks to others.
//!
//! It does not survive a power failure, nor is it meant to: then the verifier changes, as RFC 1813 has it.

mod ring;
mod testament;

pub use ring::Journal;
pub use testament::{Entry, Testament};

/// First word of a journal.
const MAGIC: u64 = u64::from_le_bytes(*b"FIDOJRNL");
/// Version of the layout.
const VERSION: u64 = 1;
/// The fixed head, with the words that change from [`TAIL_AT`] on.
const HEADER_BYTES: usize = 256;
/// The fixed head's checksum, over all before it: magic, version, fsid, boots, write verifier, records.
const CHECKSUM_AT: usize = 48;
/// The first record that counts.
const TAIL_AT: usize = 64;
/// The record after the last one that counts.
const HEAD_AT: usize = 72;
/// Not 0 while the journal is void.
const VOID_AT: usize = 80;

/// A record: sequence, inode, length, time, number of pieces, pieces, boots, checksum.
const RECORD_BYTES: usize = 128;
/// The pieces of one record; a write with more takes several.
const PIECES: usize = 3;
/// Where a record's checksum lies.
const SUM_AT: usize = RECORD_BYTES - 8;

/// Where a record lies.
fn place(sequence: u64, records: u64) -> usize {
    HEADER_BYTES + (sequence % records.max(1)) as usize * RECORD_BYTES
}
