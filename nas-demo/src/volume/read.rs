//! Reading: the device lends its buffers, holes are a shared run of zeros, and what is answered is slices of those.

use fido_core::payload::{MAX_SEGMENTS, Payload};
use mmblk::queue::{BlockError, BlockOp, BlockQueue};

use super::device::Owner;
use super::nas::{NasVolume, Op};
use super::node::Parked;
use super::ops::{Attr, Ino, Kind, MAX_IO_BYTES, VolumeError, VolumeOp, VolumeReply};
use super::perm;
use super::space::Reading;
use super::superblock::BLOCK_BYTES;

/// The most runs of the device that one read touches; a more fragmented range is answered in part.
const MAX_RUNS: usize = 128;
/// The most parts of an answer: the one who sends it adds some of its own.
const MAX_PARTS: usize = MAX_SEGMENTS - 16;

/// A read under way.
#[derive(Debug)]
pub(super) struct ReadOp {
    ticket: u64,
    ino: Ino,
    reading: Reading,
    /// The blocks in order, with the length that each part must have; those that are still awaited are empty.
    parts: Vec<(u64, Payload)>,
    left: usize,
    /// How many bytes to leave out in front.
    skip: u64,
    len: u64,
    eof: bool,
    attr: Attr,
    failed: bool,
}

impl<Q: BlockQueue> NasVolume<Q> {
    pub(super) fn begin_read(&mut self, parked: Parked) {
        let VolumeOp::Read { ino, .. } = &parked.op else { return };
        let ino = *ino;
        let Some(Parked { id, ticket, op, .. }) = self.need(ino, true, parked) else { return };
        let VolumeOp::Read { offset, count, caller, .. } = op else { return };
        let Some(attr) = self.attr(ino) else { return self.answer(ticket, Err(VolumeError::Stale)) };
        let allowed = match attr.kind {
            Kind::Directory => Err(VolumeError::IsDirectory),
            Kind::Symlink => Err(VolumeError::Invalid),
            Kind::File => perm::check_read(&attr, &caller),
        };
        if let Err(error) = allowed {
            return self.answer(ticket, Err(error));
        }
        let len = u64::from(count.min(MAX_IO_BYTES)).min(attr.size.saturating_sub(offset));
        if len == 0 {
            let eof = offset >= attr.size;
            return self.answer(ticket, Ok(VolumeReply::Data { data: Payload::new(), eof, attr }));
        }
        let reading = self.space.open_read();
        let (skip, eof) = (offset % BLOCK_BYTES, offset + len == attr.size);
        let mut read = ReadOp { ticket, ino, reading, parts: Vec::new(), left: 0, skip, len, eof, attr, failed: false };
        self.start_parts(id, &mut read, offset);
        if read.left == 0 {
            return self.finish_read(read);
        }
        self.ops.insert(id, Op::Read(read));
    }

    /// Requests every mapped run of the range and puts zeros in between.
    fn start_parts(&mut self, id: u64, read: &mut ReadOp, offset: u64) {
        let (mut at, end) = (offset / BLOCK_BYTES, (offset + read.len).div_ceil(BLOCK_BYTES));
        let pieces = self.nodes.peek(&read.ino).and_then(|node| node.map.as_ref()).map(|map| map.range(at, end));
        for (piece, _) in pieces.unwrap_or_default() {
            if read.left == MAX_RUNS {
                break;
            }
            if piece.file > at {
                read.push_zeros(self.zeros((piece.file - at) * BLOCK_BYTES));
            }
            let len = piece.count * BLOCK_BYTES;
            let op = BlockOp::Read { offset: self.device_offset(piece.block), len: len as u32 };
            self.device.start(Owner { op: id, part: read.parts.len() }, op);
            read.parts.push((len, Payload::new()));
            read.left += 1;
            at = piece.end();
        }
        if read.left < MAX_RUNS {
            read.push_zeros(self.zeros((end - at) * BLOCK_BYTES));
        } else {
            read.shorten((at * BLOCK_BYTES).saturating_sub(offset));
        }
    }

    pub(super) fn read_part(&mut self, id: u64, mut read: ReadOp, part: usize, result: Result<Payload, BlockError>) {
        match (result, read.parts.get_mut(part)) {
            (Ok(data), Some((len, slot))) if data.len() == *len => *slot = data,
            (result, _) => {
                tracing::warn!(ino = read.ino, ?result, "a read failed");
                read.failed = true;
            }
        }
        read.left -= 1;
        if read.left == 0 {
            self.finish_read(read);
        } else {
            self.ops.insert(id, Op::Read(read));
        }
    }

    fn finish_read(&mut self, mut read: ReadOp) {
        self.freed |= self.space.close_read(read.reading);
        let mut all = Payload::new();
        for (_, part) in std::mem::take(&mut read.parts) {
            all.append(part);
        }
        drop(all.split_to(read.skip));
        let mut data = all.split_to(read.len);
        if data.parts().len() > MAX_PARTS {
            let kept = data.segments().take(MAX_PARTS).map(|segment| u64::from(segment.len)).sum();
            data = data.split_to(kept);
            read.shorten(kept);
        }
        let answer = if read.failed {
            Err(VolumeError::Io)
        } else {
            Ok(VolumeReply::Data { data, eof: read.eof, attr: read.attr })
        };
        self.answer(read.ticket, answer);
    }
}

impl ReadOp {
    fn push_zeros(&mut self, zeros: Payload) {
        self.parts.push((zeros.len(), zeros));
    }

    /// Answers only the first `len` bytes.
    fn shorten(&mut self, len: u64) {
        if len < self.len {
            self.len = len;
            self.eof = false;
        }
    }
}
