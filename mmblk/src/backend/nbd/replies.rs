//! What a server answers, as a machine without a socket: bytes in, finished requests out.

use fido_core::memory::Memory;
use fido_core::payload::Payload;

use super::table::{Table, failure};
use crate::extents::{Extent, MAX_EXTENTS};
use crate::nbd::Fields;
use crate::nbd::incoming::Incoming;
use crate::nbd::transmission::{CHUNK_BYTES, Chunk, Reply, SIMPLE_BYTES, allocation, chunk, command};
use crate::queue::{BlockError, MAX_REQUEST_BYTES};

/// The most bytes of a chunk that is no data: a list of extents, as long as any server makes it.
const MAX_SMALL: u32 = (1 << 20) + 4;
/// The longest piece of a hole's zeros.
const ZEROS_BYTES: usize = 256 << 10;

/// What a reply must not be.
pub(super) type Nonsense = String;

/// What comes next.
#[derive(Debug)]
enum Expect {
    /// The head of a reply.
    Head,
    /// The offset of data.
    Offset(Chunk),
    /// Data of a read.
    Data { cookie: u64, offset: u64, left: u32, last: bool },
    /// A chunk that is no data.
    Small(Chunk),
}

/// The answers of one connection.
#[derive(Debug)]
pub(super) struct Replies {
    structured: bool,
    allocation: Option<u32>,
    block: u64,
    expect: Expect,
    /// Private bytes of what is expected, `want` of them, of which `have` have come.
    small: Vec<u8>,
    have: usize,
    zeros: Option<Payload>,
}

impl Replies {
    pub(super) fn new(structured: bool, allocation: Option<u32>, block: u32) -> Self {
        let small = vec![0; SIMPLE_BYTES];
        Self { structured, allocation, block: block.into(), expect: Expect::Head, small, have: 0, zeros: None }
    }

    /// Whether the server can say what is allocated.
    pub(super) fn tells_extents(&self) -> bool {
        self.allocation.is_some()
    }

    /// Lets go of what is only kept for later.
    pub(super) fn shrink(&mut self) {
        self.zeros = None;
    }

    /// How many bytes of payload are known to come; 0 between replies.
    pub(super) fn expected(&self) -> usize {
        match &self.expect {
            Expect::Data { left, .. } => *left as usize,
            Expect::Head => self.have.min(1),
            Expect::Offset(chunk) | Expect::Small(chunk) => chunk.len as usize,
        }
    }

    /// Private memory for what is expected, unless that is data.
    pub(super) fn aside(&mut self) -> Option<&mut [u8]> {
        match self.expect {
            Expect::Data { .. } => None,
            _ => self.small.get_mut(self.have..),
        }
    }

    /// That much of [`Replies::aside`] has been filled.
    pub(super) fn filled(&mut self, count: usize) {
        self.have += count;
    }

    /// So many bytes of data could not be kept: the read they belong to fails.
    pub(super) fn dropped(&mut self, count: usize, table: &mut Table) {
        if let Expect::Data { cookie, left, .. } = &mut self.expect {
            *left -= (count as u32).min(*left);
            if let Some(pending) = table.get_mut(*cookie) {
                pending.error.get_or_insert(BlockError::NoBuffer);
            }
        }
    }

    /// Goes on as far as bytes have come. Returns the cookie of a request when all of its answer is there.
    ///
    /// # Errors
    /// [`Nonsense`] if the server does not keep to the protocol; the connection is then good for nothing.
    pub(super) fn next(
        &mut self,
        incoming: &mut Incoming,
        table: &mut Table,
        memory: &Memory,
    ) -> Result<Option<u64>, Nonsense> {
        loop {
            let answered = match self.expect {
                Expect::Data { cookie, offset, left, last } => {
                    let piece = incoming.lend(left as usize);
                    let count = piece.len() as u32;
                    if let Some(pending) = table.get_mut(cookie).filter(|_| count > 0) {
                        pending.read(offset, piece);
                    }
                    if count < left {
                        self.expect =
                            Expect::Data { cookie, offset: offset + u64::from(count), left: left - count, last };
                        return Ok(None);
                    }
                    self.begin(Expect::Head, SIMPLE_BYTES);
                    last.then_some(cookie)
                }
                _ => {
                    let have = self.have;
                    self.have += incoming.take(self.small.get_mut(have..).unwrap_or_default(), memory);
                    if self.have < self.small.len() {
                        return Ok(None);
                    }
                    self.whole(table, memory)?
                }
            };
            if answered.is_some() {
                return Ok(answered);
            }
        }
    }

    fn begin(&mut self, expect: Expect, want: usize) {
        self.expect = expect;
        self.small.clear();
        self.small.resize(want, 0);
        self.have = 0;
    }

    /// What was expected in private memory is there.
    fn whole(&mut self, table: &mut Table, memory: &Memory) -> Result<Option<u64>, Nonsense> {
        match self.expect {
            Expect::Head => self.head(table),
            Expect::Offset(chunk) => self.offset(chunk, table),
            Expect::Small(chunk) => {
                let body = std::mem::take(&mut self.small);
                self.begin(Expect::Head, SIMPLE_BYTES);
                self.small_chunk(chunk, &body, table, memory)?;
                Ok((chunk.flags & chunk::DONE != 0).then_some(chunk.cookie))
            }
            // Data is not kept in private memory.
            Expect::Data { .. } => Ok(None),
        }
    }

    fn head(&mut self, table: &mut Table) -> Result<Option<u64>, Nonsense> {
        let magic = self.small.first_chunk().copied().unwrap_or_default();
        if Reply::head_bytes(magic) == Some(CHUNK_BYTES) && self.small.len() < CHUNK_BYTES {
            self.small.resize(CHUNK_BYTES, 0);
            return Ok(None);
        }
        match Reply::decode(&self.small) {
            Some(Reply::Simple { error, cookie }) => self.simple(error, cookie, table),
            Some(Reply::Chunk(chunk)) => self.chunk(chunk, table),
            None => Err(format!("a reply that begins with {magic:x?}")),
        }
    }

    fn simple(&mut self, error: u32, cookie: u64, table: &mut Table) -> Result<Option<u64>, Nonsense> {
        let Some(pending) = table.get_mut(cookie) else { return Err("an answer to what was not asked".into()) };
        let asked = pending.asked;
        self.begin(Expect::Head, SIMPLE_BYTES);
        if error != 0 {
            pending.error = Some(failure(error));
            return Ok(Some(cookie));
        }
        match asked.command {
            command::READ if !self.structured => {
                self.expect = Expect::Data { cookie, offset: asked.offset, left: asked.len, last: true };
                Ok(None)
            }
            command::READ | command::BLOCK_STATUS => Err("a simple reply where chunks were agreed on".into()),
            _ => Ok(Some(cookie)),
        }
    }

    fn chunk(&mut self, head: Chunk, table: &mut Table) -> Result<Option<u64>, Nonsense> {
        if !self.structured {
            return Err("a chunk, though only simple replies were agreed on".into());
        }
        let Some(pending) = table.get_mut(head.cookie) else { return Err("a chunk for what was not asked".into()) };
        let (asked, last) = (pending.asked, head.flags == chunk::DONE);
        let read = asked.command == command::READ;
        let expect = match head.kind {
            _ if head.flags > chunk::DONE => None,
            chunk::NONE if last && head.len == 0 => {
                self.begin(Expect::Head, SIMPLE_BYTES);
                return Ok(Some(head.cookie));
            }
            chunk::OFFSET_DATA if read && head.len > 8 && head.len - 8 <= asked.len => Some((Expect::Offset(head), 8)),
            chunk::OFFSET_HOLE if read && head.len == 12 => Some((Expect::Small(head), 12)),
            chunk::BLOCK_STATUS if asked.command == command::BLOCK_STATUS && (12..=MAX_SMALL).contains(&head.len) => {
                Some((Expect::Small(head), head.len as usize))
            }
            kind if kind & chunk::ERROR_BIT != 0 && (6..=MAX_SMALL).contains(&head.len) => {
                Some((Expect::Small(head), head.len as usize))
            }
            _ => None,
        };
        let Some((expect, want)) = expect else { return Err(format!("{head:?} to {asked:?}")) };
        self.begin(expect, want);
        Ok(None)
    }

    fn offset(&mut self, head: Chunk, table: &mut Table) -> Result<Option<u64>, Nonsense> {
        let offset = Fields(&self.small).u64().unwrap_or(0);
        let (left, last) = (head.len - 8, head.flags & chunk::DONE != 0);
        within(table, head.cookie, offset, left)?;
        self.begin(Expect::Data { cookie: head.cookie, offset, left, last }, 0);
        Ok(None)
    }

    fn small_chunk(&mut self, head: Chunk, body: &[u8], table: &mut Table, memory: &Memory) -> Result<(), Nonsense> {
        let mut fields = Fields(body);
        let short = || "a chunk that is too short".to_owned();
        match head.kind {
            chunk::OFFSET_HOLE => {
                let (offset, len) = (fields.u64().ok_or_else(short)?, fields.u32().ok_or_else(short)?);
                within(table, head.cookie, offset, len)?;
                let zeros = self.zeros(len, memory);
                if let Some(pending) = table.get_mut(head.cookie) {
                    match zeros {
                        Some(zeros) => pending.read(offset, zeros),
                        None => pending.error = Some(BlockError::NoBuffer),
                    }
                }
            }
            chunk::BLOCK_STATUS => {
                let id = fields.u32();
                let Some(pending) = table.get_mut(head.cookie) else { return Ok(()) };
                if id.is_some() && id == self.allocation {
                    pending.extents = extents(fields, pending.asked.len, self.block)?;
                }
            }
            _ => {
                let number = fields.u32().filter(|number| *number != 0).ok_or("an error without a number")?;
                if let Some(pending) = table.get_mut(head.cookie) {
                    pending.error = Some(failure(number));
                }
            }
        }
        Ok(())
    }

    /// Zeros of that length, all of which are the same few.
    fn zeros(&mut self, len: u32, memory: &Memory) -> Option<Payload> {
        if self.zeros.is_none() {
            let mut buf = memory.alloc(ZEROS_BYTES).ok()?;
            buf.as_mut_slice().fill(0);
            self.zeros = Some(buf.into_payload());
        }
        let zeros = self.zeros.as_ref()?;
        let (mut all, mut left) = (Payload::new(), u64::from(len.min(MAX_REQUEST_BYTES)));
        while left > 0 {
            let count = left.min(zeros.len());
            all.append(zeros.slice(0, count)?);
            left -= count;
        }
        Some(all)
    }
}

/// Whether a piece lies in what was asked for.
fn within(table: &mut Table, cookie: u64, offset: u64, len: u32) -> Result<(), Nonsense> {
    let Some(pending) = table.get_mut(cookie) else { return Err("a chunk for what was not asked".into()) };
    let (start, end) = (pending.asked.offset, pending.asked.offset + u64::from(pending.asked.len));
    let last = offset.checked_add(len.into());
    if len == 0 || offset < start || last.is_none_or(|last| last > end) {
        return Err(format!("{len} bytes at {offset} for a read of {start} to {end}"));
    }
    if !pending.announce(len) {
        return Err(format!("more bytes than the read of {start} to {end} asked for"));
    }
    Ok(())
}

/// A list of extents, cut to what was asked for and to blocks: what is allocated in part counts as allocated.
fn extents(mut fields: Fields<'_>, asked: u32, block: u64) -> Result<Vec<Extent>, Nonsense> {
    let asked = u64::from(asked);
    let mut list: Vec<Extent> = Vec::new();
    let mut push = |from: u64, to: u64, hole: bool| {
        if to > from && list.len() < MAX_EXTENTS {
            list.push(Extent { len: to - from, hole });
        }
    };
    let (mut at, mut told) = (0, 0);
    while let (Some(len), Some(state)) = (fields.u32(), fields.u32())
        && told < asked
    {
        if len == 0 {
            return Err("an extent of no length".into());
        }
        let end = (told + u64::from(len)).min(asked);
        let (from, to) = (told.next_multiple_of(block), end - end % block);
        if state & allocation::ZERO != 0 && to > from {
            push(at, from, false);
            push(from, to, true);
            at = to;
        }
        told = end;
    }
    let end = (told - told % block).max(block.min(asked));
    push(at, end, false);
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_cut_to_blocks_and_to_what_was_asked() {
        let list = |extents: &[(u32, u32)], asked, block| {
            let bytes: Vec<u8> =
                extents.iter().flat_map(|(len, state)| [len.to_be_bytes(), state.to_be_bytes()].concat()).collect();
            super::extents(Fields(&bytes), asked, block)
                .map(|list| list.iter().map(|extent| (extent.len, extent.hole)).collect::<Vec<_>>())
        };
        assert_eq!(list(&[(4096, 3), (4096, 0)], 8192, 512), Ok(vec![(4096, true), (4096, false)]));
        assert_eq!(list(&[(u32::MAX, 3)], 8192, 512), Ok(vec![(8192, true)]));
        assert_eq!(
            list(&[(100, 0), (924, 3), (7168, 0)], 8192, 512),
            Ok(vec![(512, false), (512, true), (7168, false)])
        );
        assert_eq!(list(&[(100, 3), (100, 0)], 8192, 512), Ok(vec![(512, false)]), "never nothing");
        assert_eq!(list(&[(8192, 1)], 8192, 512), Ok(vec![(8192, false)]), "a hole that does not read as zeros");
        assert!(list(&[(0, 0)], 8192, 512).is_err());
    }
}
