//! The unfinished requests of one queue, and what has come of their answers.

use fido_core::memory::Memory;
use fido_core::payload::{MAX_SEGMENTS, Payload};

use crate::extents::Extent;
use crate::nbd::ExportFlags;
use crate::nbd::transmission::{CommandFlags, Request, command, error};
use crate::queue::{BlockError, BlockOp};

/// The most bytes of one request that carries no payload: the protocol has 32 bits for it.
const PIECE_BYTES: u64 = 1 << 30;

/// An unfinished request.
#[derive(Debug)]
pub(super) struct Pending {
    /// The caller's id.
    pub(super) id: u64,
    /// Kept until the end, so that it can be sent again.
    pub(super) op: BlockOp,
    /// What is asked of the server now: several things in turn, if one request cannot say it.
    pub(super) asked: Request,
    /// How many bytes have been done by what was asked before.
    done: u64,
    /// What has been read, with its offset.
    pieces: Vec<(u64, Payload)>,
    /// Bytes of the answer that have been announced.
    announced: u64,
    pub(super) extents: Vec<Extent>,
    pub(super) error: Option<BlockError>,
    order: u64,
    sent: bool,
}

/// Up to `depth` requests. A cookie is `number:48 | place:16`; each is good for one answer.
#[derive(Debug)]
pub(super) struct Table {
    places: Vec<Option<Pending>>,
    free: Vec<u16>,
    submitted: u64,
    cookies: u64,
    flags: ExportFlags,
}

/// What a request that has been answered needs next.
#[derive(Debug)]
pub(super) enum Next {
    /// It has ended: its id, its result, and how many bytes it has moved.
    End(u64, Result<Payload, BlockError>, u64),
    /// Something else has to be asked for it.
    Ask,
}

impl Table {
    pub(super) fn new(depth: u32, flags: ExportFlags) -> Self {
        let depth = u16::try_from(depth).unwrap_or(u16::MAX);
        let places = (0..depth).map(|_| None).collect();
        Self { places, free: (0..depth).rev().collect(), submitted: 0, cookies: 0, flags }
    }

    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Keeps a request; returns its place, or the request if there is none.
    pub(super) fn insert(&mut self, id: u64, op: BlockOp) -> Result<u16, BlockOp> {
        let Some(index) = self.free.pop() else { return Err(op) };
        let asked = first(&op, self.flags);
        let order = self.submitted;
        self.submitted += 1;
        let (pieces, extents) = (Vec::new(), Vec::new());
        let pending =
            Pending { id, op, asked, done: 0, pieces, announced: 0, extents, error: None, order, sent: false };
        if let Some(place) = self.places.get_mut(usize::from(index)) {
            *place = Some(pending);
        }
        Ok(index)
    }

    /// What to send for the request at that place, under a fresh cookie.
    pub(super) fn ask(&mut self, index: u16) -> Option<(Request, Payload)> {
        let pending = self.places.get_mut(usize::from(index))?.as_mut()?;
        self.cookies = self.cookies.wrapping_add(1) & (u64::MAX >> 16);
        pending.asked.cookie = self.cookies << 16 | u64::from(index);
        pending.sent = true;
        pending.pieces.clear();
        pending.announced = 0;
        pending.extents.clear();
        pending.error = None;
        let data = match &pending.op {
            BlockOp::Write { data, .. } if pending.asked.command == command::WRITE => data.clone(),
            _ => Payload::new(),
        };
        Some((pending.asked, data))
    }

    /// The request that was sent under that cookie and has not been answered.
    pub(super) fn get_mut(&mut self, cookie: u64) -> Option<&mut Pending> {
        let pending = self.places.get_mut(usize::from(cookie as u16))?.as_mut()?;
        (pending.sent && pending.asked.cookie == cookie).then_some(pending)
    }

    /// All that was asked under that cookie has been answered. The request ends, or has to be asked on at its place.
    pub(super) fn answered(&mut self, cookie: u64, memory: &Memory) -> Option<Next> {
        let flags = self.flags;
        let pending = self.get_mut(cookie)?;
        pending.sent = false;
        if pending.error.is_none() && pending.go_on(flags) {
            return Some(Next::Ask);
        }
        let pending = self.remove(cookie as u16)?;
        let (id, moved) = (pending.id, pending.op.payload_bytes());
        Some(Next::End(id, pending.result(memory), moved))
    }

    /// Takes a request out.
    pub(super) fn remove(&mut self, index: u16) -> Option<Pending> {
        let pending = self.places.get_mut(usize::from(index))?.take()?;
        self.free.push(index);
        Some(pending)
    }

    /// Marks all requests as not sent, and begins each anew: what the server has lost may be what it had answered of a
    /// request whose flush it had not. Returns their places in the order of their submission.
    pub(super) fn recall(&mut self) -> Vec<u16> {
        let mut all = Vec::with_capacity(self.len());
        for (index, place) in (0u16..).zip(&mut self.places) {
            if let Some(pending) = place {
                (pending.sent, pending.done) = (false, 0);
                pending.asked = first(&pending.op, self.flags);
                all.push((pending.order, index));
            }
        }
        all.sort_unstable();
        all.into_iter().map(|(_, index)| index).collect()
    }
}

/// The first thing to ask for an operation.
fn first(op: &BlockOp, flags: ExportFlags) -> Request {
    let (offset, len, _) = op.extent();
    let mut asked = Request {
        flags: CommandFlags::empty(),
        command: command::FLUSH,
        cookie: 0,
        offset,
        len: len.min(PIECE_BYTES) as u32,
    };
    let fua = if flags.contains(ExportFlags::SEND_FUA) { CommandFlags::FUA } else { CommandFlags::empty() };
    match op {
        BlockOp::Read { .. } => asked.command = command::READ,
        BlockOp::Write { durable, .. } => {
            asked.command = command::WRITE;
            asked.flags.set(fua, *durable);
        }
        BlockOp::Flush => {}
        BlockOp::Discard { .. } => asked.command = command::TRIM,
        BlockOp::WriteZeroes { durable, unmap, .. } => {
            asked.command = command::WRITE_ZEROES;
            asked.flags.set(fua, *durable);
            asked.flags.set(CommandFlags::NO_HOLE, !unmap);
        }
        BlockOp::Extents { .. } => asked.command = command::BLOCK_STATUS,
    }
    asked
}

impl Pending {
    /// Whether something else has to be asked, after what was asked has succeeded.
    fn go_on(&mut self, flags: ExportFlags) -> bool {
        let (offset, len, _) = self.op.extent();
        if self.asked.command == command::FLUSH || matches!(self.op, BlockOp::Extents { .. }) {
            return false;
        }
        self.done += u64::from(self.asked.len);
        if self.done < len {
            self.asked.offset = offset + self.done;
            self.asked.len = (len - self.done).min(PIECE_BYTES) as u32;
            return true;
        }
        if self.op.is_durable() && !flags.contains(ExportFlags::SEND_FUA) && flags.contains(ExportFlags::SEND_FLUSH) {
            (self.asked.command, self.asked.offset, self.asked.len) = (command::FLUSH, 0, 0);
            return true;
        }
        false
    }

    /// Notes that so many bytes of the answer come. Whether it is no more than was asked for: else a server could make
    /// us keep piece after piece.
    pub(super) fn announce(&mut self, len: u32) -> bool {
        self.announced += u64::from(len);
        self.announced <= self.asked.len.into()
    }

    /// Takes bytes that were read at `offset`.
    pub(super) fn read(&mut self, offset: u64, data: Payload) {
        match self.pieces.last_mut() {
            Some((start, last)) if *start + last.len() == offset => last.append(data),
            _ => self.pieces.push((offset, data)),
        }
    }

    fn result(mut self, memory: &Memory) -> Result<Payload, BlockError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        match self.op {
            BlockOp::Extents { .. } if self.extents.is_empty() => {
                Err(BlockError::Protocol("no extents in the answer".into()))
            }
            BlockOp::Extents { .. } => crate::extents::write(&self.extents, memory),
            BlockOp::Read { offset, len } => {
                self.pieces.sort_by_key(|(start, _)| *start);
                let mut all = Payload::new();
                for (start, data) in self.pieces {
                    if start != offset + all.len() {
                        return Err(BlockError::Protocol(format!("an answer with a gap or an overlap at {start}")));
                    }
                    all.append(data);
                }
                if all.len() != u64::from(len) {
                    return Err(BlockError::Protocol(format!("{} bytes, not {len}", all.len())));
                }
                if all.parts().len() <= MAX_SEGMENTS {
                    return Ok(all);
                }
                // A server that answers in crumbs: more than a request may carry.
                let copy = memory.copy_in(&all).map_err(|_| BlockError::NoBuffer)?;
                Ok(copy.map_or_else(Payload::new, |copy| copy.into_payload()))
            }
            _ => Ok(Payload::new()),
        }
    }
}

/// What the server's number means.
pub(super) fn failure(number: u32) -> BlockError {
    match number {
        error::ENOSPC => BlockError::NoSpace,
        error::ENOTSUP => BlockError::Unsupported,
        error::EPERM => BlockError::ReadOnly,
        other => BlockError::Io { errno: i32::try_from(other).unwrap_or(error::EIO.cast_signed()) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fido_core::testing::private_memory;

    #[test]
    fn a_durable_write_whose_flush_was_not_answered_is_written_again() {
        let memory = private_memory(1 << 20);
        let data = memory.alloc(512).unwrap().into_payload();
        let mut table = Table::new(1, ExportFlags::HAS_FLAGS | ExportFlags::SEND_FLUSH);
        let index = table.insert(7, BlockOp::Write { offset: 0, data, durable: true }).unwrap();
        let asked = |table: &mut Table| table.ask(index).map(|(request, data)| (request, data.len())).unwrap();
        let (write, _) = asked(&mut table);
        assert!(matches!(table.answered(write.cookie, &memory), Some(Next::Ask)));
        assert_eq!(asked(&mut table).0.command, command::FLUSH);
        assert_eq!(table.recall(), [index]);
        let (again, len) = asked(&mut table);
        assert_eq!((again.command, len), (command::WRITE, 512));
        assert!(matches!(table.answered(again.cookie, &memory), Some(Next::Ask)));
        let (flush, _) = asked(&mut table);
        assert!(matches!(table.answered(flush.cookie, &memory), Some(Next::End(7, Ok(_), 512))));
    }

    #[test]
    fn no_more_of_an_answer_is_kept_than_was_asked_for() {
        let mut table = Table::new(1, ExportFlags::empty());
        let index = table.insert(7, BlockOp::Read { offset: 0, len: 1024 }).unwrap();
        for _ in 0..2 {
            let (request, _) = table.ask(index).unwrap();
            let pending = table.get_mut(request.cookie).unwrap();
            assert!(pending.announce(512) && pending.announce(512) && !pending.announce(1));
        }
    }
}
