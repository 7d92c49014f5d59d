//! Record marking (RFC 5531, 11): cutting the bytes of a TCP connection into RPC messages, where they lie.
//!
//! A message is one or more fragments, each behind a four-byte mark: the top bit says "last", the rest is the length.
//! Only the marks are copied; a record is the rope of what lies between them, on loan from whoever received it.
//!
//! Limits: [`MAX_RECORD_BYTES`], [`MAX_FRAGMENTS`], and [`MAX_PARTS`] pieces of memory in a rope. A connection whose
//! bytes dribble in would exceed the last and pin one loan per piece, so then (and only then) runs of small pieces
//! are copied together, which the domain's counters show.

use fido_core::memory::{CopyError, Memory};
use fido_core::payload::{MAX_SEGMENTS, Part, Payload};
use fido_core::window::AddressError;

use crate::volume::ops::MAX_IO_BYTES;

/// The largest record, in bytes: the largest WRITE and its head.
pub const MAX_RECORD_BYTES: u64 = MAX_IO_BYTES as u64 + (64 << 10);
/// The most fragments of a record.
pub const MAX_FRAGMENTS: u32 = 1024;
/// The most parts of a rope before small ones are copied together; leaves room for what a volume may have to add.
pub const MAX_PARTS: usize = MAX_SEGMENTS - 64;

/// What counts as a small part when a rope has too many: first only the smallest are copied together, and larger ones
/// only if that did not help. What comes out is not small by the same measure, so no byte is copied more than three
/// times, however finely it arrives.
const SMALL_PART_BYTES: [u32; 3] = [64, 1 << 10, 16 << 10];
/// The size of the buffers that small parts are copied to.
const GATHER_BYTES: u64 = 64 << 10;
const MARK_BYTES: u64 = 4;
const LAST: u32 = 1 << 31;

/// Why a connection's bytes are no records. It cannot be resynchronised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Beyond [`MAX_RECORD_BYTES`].
    #[error("a record of {bytes} bytes or more, the limit is {MAX_RECORD_BYTES}")]
    TooLong {
        /// The length so far, by the marks.
        bytes: u64,
    },
    /// Beyond [`MAX_FRAGMENTS`].
    #[error("a record of more than {MAX_FRAGMENTS} fragments")]
    TooManyFragments,
    /// A record without a byte.
    #[error("an empty record")]
    Empty,
    /// The received bytes have no memory behind them.
    #[error(transparent)]
    Address(#[from] AddressError),
}

/// What [`Records::next`] found.
#[derive(Debug)]
pub enum Next {
    /// A whole record.
    Record(Payload),
    /// Not all of one.
    Partial,
    /// A whole one, but it has to be copied together first and there is no buffer: try again later.
    NoBuffer,
}

/// Reassembles the records of one connection.
#[derive(Debug, Default)]
pub struct Records {
    /// Received, not looked at.
    input: Payload,
    /// The fragments of the record so far.
    record: Payload,
    fragments: u32,
    /// Bytes of the current fragment that are still to come, and whether it is the last.
    fragment: Option<(u64, bool)>,
}

impl Records {
    /// Adds received bytes.
    pub fn push(&mut self, data: Payload, memory: &Memory) {
        self.input.append(data);
        // If there is no buffer now, the next push tries again; `next` insists.
        let _ = gather_small_parts(&mut self.input, memory);
    }

    /// Whether nothing is left over: no record has been begun.
    pub fn is_empty(&self) -> bool {
        self.input.is_empty() && self.record.is_empty() && self.fragments == 0
    }

    /// The next record, if it has arrived.
    ///
    /// # Errors
    /// [`RecordError`] if what arrived is no record; nothing that follows can be understood.
    pub fn next(&mut self, memory: &Memory) -> Result<Next, RecordError> {
        loop {
            let Some((left, last)) = self.fragment else {
                if !self.begin_fragment(memory)? {
                    return Ok(Next::Partial);
                }
                continue;
            };
            let piece = self.input.split_to(left);
            let left = left - piece.len();
            self.record.append(piece);
            self.fragment = Some((left, last));
            if left > 0 {
                let _ = gather_small_parts(&mut self.record, memory);
                return Ok(Next::Partial);
            }
            if !last {
                self.fragment = None;
                continue;
            }
            return match gather_small_parts(&mut self.record, memory) {
                Ok(()) => Ok(Next::Record(self.finish_record())),
                Err(CopyError::Heap(_)) => Ok(Next::NoBuffer),
                Err(CopyError::Address(error)) => Err(error.into()),
            };
        }
    }

    /// Reads the next mark; `false` if it is not all there.
    fn begin_fragment(&mut self, memory: &Memory) -> Result<bool, RecordError> {
        let mut mark = [0; MARK_BYTES as usize];
        if self.input.len() < MARK_BYTES {
            return Ok(false);
        }
        memory.read_header(&self.input, 0, &mut mark)?;
        drop(self.input.split_to(MARK_BYTES));
        let mark = u32::from_be_bytes(mark);
        let (len, last) = (u64::from(mark & !LAST), mark & LAST != 0);
        let bytes = self.record.len() + len;
        self.fragments += 1;
        if bytes > MAX_RECORD_BYTES {
            return Err(RecordError::TooLong { bytes });
        }
        if bytes == 0 && last {
            return Err(RecordError::Empty);
        }
        if self.fragments > MAX_FRAGMENTS {
            return Err(RecordError::TooManyFragments);
        }
        self.fragment = Some((len, last));
        Ok(true)
    }

    fn finish_record(&mut self) -> Payload {
        self.fragment = None;
        self.fragments = 0;
        std::mem::take(&mut self.record)
    }
}

/// Copies runs of small parts together if `rope` has more than [`MAX_PARTS`], until it has half as many.
fn gather_small_parts(rope: &mut Payload, memory: &Memory) -> Result<(), CopyError> {
    if rope.parts().len() <= MAX_PARTS {
        return Ok(());
    }
    for small in SMALL_PART_BYTES {
        gather_below(small, rope, memory)?;
        if rope.parts().len() <= MAX_PARTS / 2 {
            break;
        }
    }
    Ok(())
}

/// Copies runs of parts below `small` bytes together.
fn gather_below(small: u32, rope: &mut Payload, memory: &Memory) -> Result<(), CopyError> {
    let mut gathered = Payload::new();
    let mut run = Payload::new();
    let mut result = Ok(());
    for Part { segment, hold } in rope.parts() {
        let is_small = segment.len < small;
        if !is_small || run.len() + u64::from(segment.len) > GATHER_BYTES {
            result = result.and(append_copied(&mut gathered, &mut run, memory));
        }
        let into = if is_small { &mut run } else { &mut gathered };
        into.push(*segment, hold.clone());
    }
    result = result.and(append_copied(&mut gathered, &mut run, memory));
    *rope = gathered;
    result
}

/// Moves `run` to the end of `gathered`, as one part; if it cannot be copied, as it is.
fn append_copied(gathered: &mut Payload, run: &mut Payload, memory: &Memory) -> Result<(), CopyError> {
    let run = std::mem::take(run);
    if run.parts().len() < 2 {
        gathered.append(run);
        return Ok(());
    }
    match memory.copy_in(&run) {
        Ok(copy) => {
            gathered.append(copy.map(|buf| buf.into_payload()).unwrap_or_default());
            Ok(())
        }
        Err(error) => {
            gathered.append(run);
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fido_core::testing::private_memory;
    use proptest::prelude::*;

    fn lend(memory: &Memory, bytes: &[u8]) -> Payload {
        let mut buf = memory.alloc(bytes.len()).unwrap();
        buf.as_mut_slice().copy_from_slice(bytes);
        buf.into_payload()
    }

    fn bytes(memory: &Memory, payload: &Payload) -> Vec<u8> {
        let mut out = vec![0; payload.len() as usize];
        memory.copy_to_slice(payload, &mut out).unwrap();
        out
    }

    fn mark(len: usize, last: bool) -> [u8; 4] {
        (len as u32 | if last { LAST } else { 0 }).to_be_bytes()
    }

    fn drain(records: &mut Records, memory: &Memory) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        while let Next::Record(record) = records.next(memory).unwrap() {
            out.push(bytes(memory, &record));
        }
        out
    }

    #[test]
    fn limits_are_exact() {
        let memory = private_memory(1 << 20);
        let next = |marks: &[[u8; 4]]| {
            let mut records = Records::default();
            records.push(lend(&memory, &marks.concat()), &memory);
            records.next(&memory).map(|_| ())
        };
        let max = MAX_RECORD_BYTES as usize;
        assert_eq!(next(&[mark(max, true)]), Ok(()));
        assert_eq!(next(&[mark(max + 1, true)]), Err(RecordError::TooLong { bytes: MAX_RECORD_BYTES + 1 }));
        assert_eq!(next(&[mark(0, true)]), Err(RecordError::Empty));
        assert_eq!(next(&vec![mark(0, false); MAX_FRAGMENTS as usize]), Ok(()));
        assert_eq!(next(&vec![mark(0, false); MAX_FRAGMENTS as usize + 1]), Err(RecordError::TooManyFragments));
    }

    #[test]
    fn the_limit_holds_for_the_sum_of_fragments() {
        let memory = private_memory(8 << 20);
        let mut records = Records::default();
        let half = vec![1; MAX_RECORD_BYTES as usize / 2];
        records.push(lend(&memory, &mark(half.len(), false)), &memory);
        records.push(lend(&memory, &half), &memory);
        assert!(matches!(records.next(&memory), Ok(Next::Partial)));
        records.push(lend(&memory, &mark(half.len() + 1, true)), &memory);
        assert_eq!(records.next(&memory).map(|_| ()), Err(RecordError::TooLong { bytes: MAX_RECORD_BYTES + 1 }));
    }

    #[test]
    fn bytes_that_dribble_in_pin_few_loans_and_arrive_whole() {
        let memory = private_memory(16 << 20);
        let body: Vec<u8> = (0..40_000u32).map(|i| (i % 251) as u8).collect();
        let mut records = Records::default();
        records.push(lend(&memory, &mark(body.len(), true)), &memory);
        for byte in &body {
            records.push(lend(&memory, &[*byte]), &memory);
            assert!(records.input.parts().len() <= MAX_PARTS);
        }
        assert_eq!(drain(&mut records, &memory), vec![body.clone()]);
        assert!(memory.stats().snapshot().payload_bytes_copied <= 4 * body.len() as u64);
    }

    #[test]
    fn a_record_waits_for_a_buffer_to_be_copied_to() {
        let memory = private_memory(4 << 20);
        let mut records = Records::default();
        let body = vec![7; 2 * (MAX_PARTS + 1)];
        records.push(lend(&memory, &mark(body.len(), true)), &memory);
        let mut pieces: Vec<_> = body.chunks(2).map(|chunk| lend(&memory, chunk)).collect();
        let mut hoard = Vec::new();
        for size in [1 << 20, 64 << 10, 4096, 512, 64] {
            while let Ok(buf) = memory.alloc(size) {
                hoard.push(buf);
            }
        }
        for piece in pieces.drain(..) {
            records.push(piece, &memory);
        }
        assert!(matches!(records.next(&memory), Ok(Next::NoBuffer)));
        drop(hoard);
        assert_eq!(drain(&mut records, &memory), vec![body]);
    }

    proptest! {
        #[test]
        fn any_fragmentation_yields_the_same_records(
            wanted in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..200), 1..6),
            cuts in prop::collection::vec(0usize..80, 1..40),
            pieces in prop::collection::vec(1usize..70, 1..40),
        ) {
            let memory = private_memory(1 << 20);
            let (mut stream, mut cuts) = (Vec::new(), cuts.iter().cycle());
            for record in &wanted {
                let mut rest = &record[..];
                while !rest.is_empty() {
                    let len = (*cuts.next().unwrap()).min(rest.len());
                    let len = if len == 0 && stream.len() > 4000 { rest.len() } else { len };
                    let (now, later) = rest.split_at(len);
                    stream.extend(mark(len, later.is_empty()));
                    stream.extend(now);
                    rest = later;
                    if stream.len() > 8000 {
                        break;
                    }
                }
                prop_assume!(rest.is_empty());
            }
            let (mut records, mut got, mut pieces) = (Records::default(), Vec::new(), pieces.iter().cycle());
            let mut rest = &stream[..];
            while !rest.is_empty() {
                let (now, later) = rest.split_at((*pieces.next().unwrap()).min(rest.len()));
                records.push(lend(&memory, now), &memory);
                got.extend(drain(&mut records, &memory));
                rest = later;
            }
            prop_assert_eq!(got, wanted);
            prop_assert!(records.is_empty());
        }
    }
}
