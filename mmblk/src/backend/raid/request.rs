//! What the array's user asks: cut into parts, and put together again.

use fido_core::payload::Payload;

use super::array::RaidQueue;
use super::blame::is_scarce;
use super::layout::{Level, Piece};
use super::members::Purpose;
use super::stripe::{ReadWork, Work, WriteWork};
use super::superblock::Role;
use crate::queue::{BlockError, BlockOp, MAX_REQUEST_BYTES};

/// A request under way.
#[derive(Debug)]
pub(super) struct Request {
    id: u64,
    /// The data of a read, part by part.
    parts: Vec<Part>,
    /// Parts that have not ended.
    open: usize,
    error: Option<BlockError>,
    /// What is left of a range of zeros.
    zeros: Option<(u64, u64)>,
    durable: bool,
    /// Its success is that the members are as they should be: told only when the superblocks say who they are.
    changes: bool,
}

/// A part of a read.
#[derive(Debug, Clone)]
struct Part {
    piece: Piece,
    data: Payload,
    /// Members that could not read it.
    avoid: u32,
}

impl RaidQueue {
    pub(super) fn start_request(&mut self, id: u64, op: BlockOp) -> Result<(), BlockError> {
        let durable = op.is_durable();
        let mut request = Request { id, parts: Vec::new(), open: 0, error: None, zeros: None, durable, changes: true };
        if !matches!(op, BlockOp::Read { .. }) && self.failure.is_some() {
            return Err(failed());
        }
        match op {
            BlockOp::Read { offset, len } => {
                request.changes = false;
                self.start_read(request, offset, len);
            }
            BlockOp::Write { offset, data, .. } => {
                // Every address is looked at before the first byte is written.
                self.memory.translate_all(&data).map_err(|e| BlockError::Address(e.to_string()))?;
                let request = self.new_request(request);
                self.start_write(request, offset, &data, durable);
            }
            BlockOp::Flush => {
                let members = self.members.with_queue();
                request.open = members.len();
                let request = self.new_request(request);
                for member in members {
                    self.send(member, Purpose::Part { request, part: 0 }, BlockOp::Flush);
                }
            }
            BlockOp::WriteZeroes { offset, len, .. } => {
                request.zeros = Some((offset, len));
                let request = self.new_request(request);
                self.more_zeros(request);
            }
            BlockOp::Discard { .. } | BlockOp::Extents { .. } => return Err(BlockError::Unsupported),
        }
        Ok(())
    }

    fn start_read(&mut self, mut request: Request, offset: u64, len: u32) {
        let part = |piece| Part { piece, data: Payload::new(), avoid: 0 };
        if self.layout.level == Level::Raid1 {
            // Any mirror has all of it in one piece; row and chunk are the whole array's.
            let stripe = offset / u64::from(self.layout.chunk);
            let row = (offset % u64::from(self.layout.chunk)) as u32;
            request.parts.push(part(Piece { stripe, chunk: 0, row, len }));
        } else {
            request.parts.extend(self.layout.pieces(offset, len.into()).map(part));
        }
        request.open = request.parts.len();
        let parts = request.open;
        let request = self.new_request(request);
        for part in 0..parts {
            self.read_part(request, part);
        }
    }

    /// Starts a part of a read: from the member that has it, or from the others.
    fn read_part(&mut self, request: u64, part: usize) {
        let Some(Part { piece, avoid, .. }) = self.requests.get(&request).and_then(|r| r.parts.get(part)).cloned()
        else {
            return;
        };
        let member = match self.layout.level {
            Level::Raid1 => self.nearest_mirror(&piece, avoid),
            _ => {
                let member = self.layout.data_member(piece.stripe, piece.chunk);
                (self.is_present(member, piece.stripe) && avoid >> member & 1 == 0).then_some(member)
            }
        };
        match (member, self.layout.level) {
            (Some(member), _) => {
                let offset = self.layout.member_offset(piece.stripe, piece.row);
                let op = BlockOp::Read { offset, len: piece.len };
                self.send(member, Purpose::Part { request, part }, op);
            }
            (None, Level::Raid5) => {
                let rows = piece.row..piece.row + piece.len;
                let work = ReadWork::new(request, part, piece.chunk, rows, avoid);
                self.status.degraded_reads += 1;
                self.start_op(piece.stripe, Work::Read(work));
            }
            (None, _) => self.request_part_done(request, part, Err(failed())),
        }
    }

    /// The mirror to read from: one that goes on where it is, else the one with the least to do.
    fn nearest_mirror(&self, piece: &Piece, avoid: u32) -> Option<usize> {
        let offset = self.layout.member_offset(piece.stripe, piece.row);
        let candidates = self.members.all.iter().enumerate();
        candidates
            .filter(|(index, member)| member.role == Role::Active && avoid >> index & 1 == 0)
            .min_by_key(|(_, member)| {
                let goes_on = member.last_end == offset;
                (member.in_flight.saturating_sub(usize::from(goes_on) * 2), !goes_on)
            })
            .map(|(index, _)| index)
    }

    fn start_write(&mut self, request: u64, offset: u64, data: &Payload, durable: bool) {
        if self.layout.level == Level::Raid0 {
            let mut at = 0;
            for piece in self.layout.pieces(offset, data.len()).collect::<Vec<_>>() {
                let Some(data) = data.slice(at, piece.len.into()) else { continue };
                at += u64::from(piece.len);
                self.add_part(request);
                let member = self.layout.data_member(piece.stripe, piece.chunk);
                let offset = self.layout.member_offset(piece.stripe, piece.row);
                self.send(member, Purpose::Part { request, part: 0 }, BlockOp::Write { offset, data, durable });
            }
            return;
        }
        let mut rest = data.clone();
        for (stripe, start, end) in self.layout.stripe_ranges(offset, data.len()) {
            self.add_part(request);
            let work = WriteWork::new(request, start..end, rest.split_to(end - start), durable);
            self.start_op(stripe, Work::Write(work));
        }
    }

    fn add_part(&mut self, request: u64) {
        if let Some(request) = self.requests.get_mut(&request) {
            request.open += 1;
        }
    }

    /// Writes the next of a range of zeros, or ends the request.
    fn more_zeros(&mut self, id: u64) {
        let Some(request) = self.requests.get_mut(&id) else { return };
        let Some((offset, len)) = request.zeros.filter(|(_, len)| *len > 0 && request.error.is_none()) else {
            return self.finish_request(id);
        };
        let count = len.min(MAX_REQUEST_BYTES.into());
        request.zeros = Some((offset + count, len - count));
        let durable = request.durable;
        let mut data = Payload::new();
        while data.len() < count {
            let piece = self.zeros.slice(0, self.zeros.len().min(count - data.len()));
            data.append(piece.unwrap_or_default());
        }
        self.start_write(id, offset, &data, durable);
    }

    /// A member has done its part of a request.
    pub(super) fn part_ended(&mut self, request: u64, part: usize, member: usize, result: Result<Payload, BlockError>) {
        let is_read = self.requests.get(&request).is_some_and(|request| !request.changes);
        match result {
            // Its user's business, who may try again.
            Err(error) if is_scarce(&error) => self.request_part_done(request, part, Err(error)),
            Err(error) if is_read && self.layout.level != Level::Raid0 => {
                // The others have it too. A member that has just been kicked is not one more error.
                if let Some(place) = self.members.all.get_mut(member)
                    && place.role != Role::Missing
                {
                    place.read_errors += 1;
                    tracing::warn!(member, %error, "a member could not read; the others are asked");
                }
                if let Some(part) = self.requests.get_mut(&request).and_then(|r| r.parts.get_mut(part)) {
                    part.avoid |= 1 << member;
                }
                self.read_part(request, part);
            }
            Err(error) if !is_read && self.layout.level != Level::Raid0 => {
                // A flush: the member has not kept what it had promised.
                self.kick(member, &error);
                let result = if self.failure.is_some() { Err(failed()) } else { Ok(Payload::new()) };
                self.request_part_done(request, part, result);
            }
            result => self.request_part_done(request, part, result),
        }
    }

    /// A part of a request has ended.
    pub(super) fn request_part_done(&mut self, id: u64, part: usize, result: Result<Payload, BlockError>) {
        let Some(request) = self.requests.get_mut(&id) else { return };
        match result {
            Ok(data) => {
                if let Some(place) = request.parts.get_mut(part) {
                    place.data = data;
                }
            }
            Err(error) => {
                request.error.get_or_insert(error);
            }
        }
        request.open = request.open.saturating_sub(1);
        if request.open == 0 {
            if request.zeros.is_some() {
                self.more_zeros(id);
            } else {
                self.finish_request(id);
            }
        }
    }

    fn finish_request(&mut self, id: u64) {
        let Some(request) = self.requests.get(&id) else { return };
        if request.changes && self.failure.is_none() && self.is_changing() {
            return self.membership.held_requests.push(id);
        }
        let Some(request) = self.requests.remove(&id) else { return };
        let result = match request.error {
            Some(error) => Err(error),
            // Somebody may have missed it whom the superblocks still count on, and always will.
            None if request.changes && self.failure.is_some() => Err(failed()),
            None => {
                let mut all = Payload::new();
                request.parts.into_iter().for_each(|part| all.append(part.data));
                // More segments than a lane can carry: many small loans. One buffer of ours then.
                self.within_segments(all)
            }
        };
        // What was moved is counted where it was: at the members.
        self.finished.push(request.id, result);
    }

    fn within_segments(&self, data: Payload) -> Result<Payload, BlockError> {
        if data.parts().len() <= fido_core::payload::MAX_SEGMENTS {
            return Ok(data);
        }
        match self.memory.copy_in(&data) {
            Ok(Some(copy)) => Ok(copy.into_payload()),
            _ => Err(BlockError::NoBuffer),
        }
    }

    /// Requests that were held until the superblocks said who is a member.
    pub(super) fn release_requests(&mut self) {
        for id in std::mem::take(&mut self.membership.held_requests) {
            self.finish_request(id);
        }
    }
}

/// The error of what a failed array cannot do.
pub(super) fn failed() -> BlockError {
    BlockError::Io { errno: libc::EIO }
}
