//! Writing: always to newly allocated blocks. The payload goes to the device by address; where it does not fill its
//! first or last block, the old bytes are read (a loan of the device) and put around it, again by address.
//!
//! Cutting a file within a block is the same: its last block is written anew with zeros in its tail.

use fido_core::payload::{MAX_SEGMENTS, Payload};
use mmblk::queue::{BlockError, BlockOp, BlockQueue, MAX_REQUEST_BYTES};

use super::device::Owner;
use super::extents::{Piece, Run, State};
use super::job::Written;
use super::nas::{NasVolume, Op};
use super::node::{Parked, Range};
use super::ops::{
    Before, Caller, Change, Ino, Kind, MAX_FILE_BYTES, MAX_IO_BYTES, SetAttr, Stability, Time, VolumeError, VolumeOp,
    VolumeReply,
};
use super::perm::{self, WRITE};
use super::record::{before, now};
use super::settle::Purpose;
use super::space::Reading;
use super::superblock::BLOCK_BYTES;

/// What becomes of the blocks once they are written.
#[derive(Debug)]
pub(super) enum Goal {
    /// They hold what a client wrote.
    Write { ticket: u64, stability: Stability, count: u32, before: Before },
    /// They are the last block of a file that is cut.
    Cut(CutOp),
}

/// A change of a file's length under way.
#[derive(Debug, Clone)]
pub(super) struct CutOp {
    pub ticket: u64,
    pub set: SetAttr,
    pub guard: Option<Time>,
    pub caller: Caller,
}

/// A write under way.
#[derive(Debug)]
pub(super) struct WriteOp {
    ino: Ino,
    goal: Goal,
    offset: u64,
    data: Payload,
    /// The old first and last block, where they are needed.
    head: Payload,
    tail: Payload,
    reading: Option<Reading>,
    runs: Vec<Run>,
    left: usize,
    failed: Option<VolumeError>,
}

/// Which of the requests of a [`WriteOp`] an old block belongs to.
const HEAD: usize = 0;
const TAIL: usize = 1;

impl<Q: BlockQueue> NasVolume<Q> {
    pub(super) fn begin_write(&mut self, parked: Parked) {
        let VolumeOp::Write { ino, offset, data, .. } = &parked.op else { return };
        let (ino, offset, count) = (*ino, *offset, data.len().min(u64::from(MAX_IO_BYTES)));
        let Some(parked) = self.need(ino, true, parked) else { return };
        let VolumeOp::Write { caller, .. } = &parked.op else { return };
        let checked = match self.attr(ino) {
            None => Err(VolumeError::Stale),
            Some(attr) => match attr.kind {
                Kind::Directory => Err(VolumeError::IsDirectory),
                Kind::Symlink => Err(VolumeError::Invalid),
                Kind::File => perm::check_open(&attr, caller, WRITE).map(|()| attr),
            },
        };
        let end = offset.checked_add(count).filter(|end| *end <= MAX_FILE_BYTES);
        let (attr, end) = match (checked, end) {
            (Err(error), _) => return self.give_up(ino, &parked, error),
            (_, None) => return self.give_up(ino, &parked, VolumeError::TooBig),
            (Ok(attr), Some(end)) => (attr, end),
        };
        if count == 0 {
            let VolumeOp::Write { stability, .. } = &parked.op else { return };
            let (stability, change) = (*stability, Change { before: Some(before(&attr)), after: Some(attr) });
            return self.answer(parked.ticket, Ok(VolumeReply::Written { count: 0, stability, change }));
        }
        let range = Range { first: offset / BLOCK_BYTES, end: end.div_ceil(BLOCK_BYTES) };
        let Some(node) = self.nodes.get_mut(&ino) else { return };
        let Some(parked) = node.locks.acquire(range, parked) else { return };
        let Some(runs) = self.space.take(range.end - range.first) else { return self.starve(ino, parked) };
        let Parked { id, ticket, op: VolumeOp::Write { mut data, stability, .. }, .. } = parked else { return };
        let data = data.split_to(count);
        let Some(attr) = self.attr(ino) else { return };
        let goal = Goal::Write { ticket, stability, count: count as u32, before: before(&attr) };
        self.start_write(id, ino, goal, (offset, data), runs);
    }

    /// Writes the last block of a file anew, with zeros from `size` on. The operation has the whole file for itself.
    /// `false` if there is no such block.
    pub(super) fn start_cut(&mut self, id: u64, ino: Ino, size: u64, cut: &CutOp) -> Result<bool, VolumeError> {
        let node = self.nodes.peek(&ino);
        let mapped = node.and_then(|node| node.map.as_ref()?.get(size / BLOCK_BYTES)).is_some();
        if !mapped || size.is_multiple_of(BLOCK_BYTES) || node.is_some_and(|node| size >= node.size()) {
            return Ok(false);
        }
        let runs = self.space.take_reserve(1).ok_or(VolumeError::NoSpace)?;
        let zeros = self.zeros(BLOCK_BYTES - size % BLOCK_BYTES);
        self.start_write(id, ino, Goal::Cut(cut.clone()), (size, zeros), runs);
        Ok(true)
    }

    fn start_write(&mut self, id: u64, ino: Ino, goal: Goal, (offset, data): (u64, Payload), runs: Vec<Run>) {
        let end = offset + data.len();
        let (head_len, tail_len) = (offset % BLOCK_BYTES, end.next_multiple_of(BLOCK_BYTES) - end);
        let (first, last) = (offset / BLOCK_BYTES, (end - 1) / BLOCK_BYTES);
        let Some(node) = self.nodes.peek(&ino) else { return };
        let at = |file| node.map.as_ref().and_then(|map| map.get(file));
        let old_head = at(first).filter(|_| head_len > 0);
        // Beyond the end of a file its last block is zeros, so there is nothing to keep.
        let old_tail = at(last).filter(|_| tail_len > 0 && end < node.size());
        let wanted = [(HEAD, old_head), (TAIL, old_tail)];
        let (head, tail) = (self.zeros(head_len), self.zeros(tail_len));
        let mut write = WriteOp { ino, goal, offset, data, head, tail, reading: None, runs, left: 0, failed: None };
        for (part, block) in wanted {
            let Some(block) = block else { continue };
            write.reading.get_or_insert_with(|| self.space.open_read());
            write.left += 1;
            let op = BlockOp::Read { offset: self.device_offset(block), len: BLOCK_BYTES as u32 };
            self.device.start(Owner { op: id, part }, op);
        }
        if write.left == 0 {
            self.write_blocks(id, write);
        } else {
            self.ops.insert(id, Op::Write(write));
        }
    }

    pub(super) fn write_part(&mut self, id: u64, mut write: WriteOp, part: usize, result: Result<Payload, BlockError>) {
        write.left -= 1;
        let is_read = write.reading.is_some();
        match result {
            Ok(old) if is_read && !write.keep(part, &old) => write.failed = Some(VolumeError::Io),
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(ino = write.ino, %error, "a write failed");
                write.failed = Some(match error {
                    BlockError::NoSpace => VolumeError::NoSpace,
                    BlockError::NoBuffer => VolumeError::Busy,
                    _ => VolumeError::Io,
                });
            }
        }
        match (write.left, write.failed) {
            (0, Some(error)) => self.fail_write(id, write, error),
            (0, None) if is_read => self.write_blocks(id, write),
            (0, None) => self.finish_write(id, write),
            _ => {
                self.ops.insert(id, Op::Write(write));
            }
        }
    }

    /// All old bytes are there: writes whole blocks to the new runs.
    fn write_blocks(&mut self, id: u64, mut write: WriteOp) {
        self.close_reading(&mut write);
        let mut blocks = std::mem::take(&mut write.head);
        blocks.append(std::mem::take(&mut write.data));
        blocks.append(std::mem::take(&mut write.tail));
        for run in &write.runs {
            let mut rest = blocks.split_to(run.count * BLOCK_BYTES);
            let mut at = run.start;
            while !rest.is_empty() {
                let mut len = whole_blocks(&rest);
                let mut data = rest.split_to(len.max(BLOCK_BYTES));
                if len == 0 {
                    // More parts in one block than a message carries: only a client that sends bytes in crumbs does
                    // this, and gets them swept together.
                    len = BLOCK_BYTES;
                    match self.memory.copy_in(&data) {
                        Ok(copy) => data = copy.map_or_else(Payload::new, |buf| buf.into_payload()),
                        Err(error) => {
                            tracing::warn!(%error, "cannot gather a block");
                            write.failed = Some(VolumeError::Busy);
                            break;
                        }
                    }
                }
                let op = BlockOp::Write { offset: self.device_offset(at), data, durable: false };
                self.device.start(Owner { op: id, part: write.left }, op);
                write.left += 1;
                at += len / BLOCK_BYTES;
            }
        }
        match write.failed {
            Some(error) if write.left == 0 => self.fail_write(id, write, error),
            _ => {
                self.ops.insert(id, Op::Write(write));
            }
        }
    }

    fn finish_write(&mut self, id: u64, write: WriteOp) {
        let goal = &write.goal;
        if matches!(goal, Goal::Write { .. }) && !self.journal.has_room(write.runs.len()) {
            return self.wait_for_journal(id, write);
        }
        let WriteOp { ino, goal, offset, runs, .. } = write;
        if self.nodes.peek(&ino).is_none() {
            // Removed meanwhile.
            runs.into_iter().for_each(|run| self.free(run));
            return match goal {
                Goal::Write { ticket, .. } | Goal::Cut(CutOp { ticket, .. }) => {
                    self.answer(ticket, Err(VolumeError::Stale));
                }
            };
        }
        let pieces = pieces(offset / BLOCK_BYTES, &runs);
        match goal {
            Goal::Cut(cut) => self.send_set_attr(id, ino, cut, pieces.first().copied()),
            Goal::Write { ticket, stability, count, before } => {
                self.note_write(ino, offset + u64::from(count), pieces);
                self.unlock(ino, id);
                let after = self.attr(ino);
                if stability == Stability::Unstable {
                    let change = Change { before: Some(before), after };
                    self.answer(ticket, Ok(VolumeReply::Written { count, stability, change }));
                } else {
                    self.send_commit(ino, Purpose::Written { ticket, count, before });
                }
            }
        }
    }

    /// Maps newly written blocks. What only memory knew of is free at once, the rest when the commit is durable.
    fn map_dirty(&mut self, ino: Ino, piece: Piece) {
        let Some(node) = self.nodes.get_mut(&ino) else { return };
        let Some(map) = node.map.as_mut() else { return };
        let mut free = Vec::new();
        for (old, state) in map.replace(piece, State::Dirty) {
            if state == State::Dirty && !node.doubt {
                free.push(old.run());
            } else {
                node.owed += old.count;
                self.owing.insert(ino);
            }
        }
        free.into_iter().for_each(|run| self.free(run));
    }

    /// Notes a write that has ended at `end`: in the journal first, before any block that it displaces is free.
    fn note_write(&mut self, ino: Ino, end: u64, pieces: Vec<Piece>) {
        let Some(node) = self.nodes.get_mut(&ino) else { return };
        let written = Written { size: node.size().max(end), time: now() };
        self.journal.append(ino, written, &pieces);
        for piece in pieces {
            self.map_dirty(ino, piece);
        }
        let Some(node) = self.nodes.get_mut(&ino) else { return };
        node.written = Some(written);
        let first = !node.is_unsent();
        node.version += 1;
        let much = node.map.as_ref().is_some_and(|map| map.dirty_blocks() >= self.options.unsent_blocks);
        if first {
            self.unsent.push_back((std::time::Instant::now() + self.options.commit_interval, ino));
        }
        if much {
            self.send_commit(ino, Purpose::Background);
        }
        if self.journal.is_pressing() {
            self.commit_journal();
        }
    }

    /// Sends everything to the store that makes entries of the journal obsolete.
    fn commit_journal(&mut self) {
        for ino in self.journal.unstored() {
            self.send_commit(ino, Purpose::Background);
        }
    }

    /// The journal has no room for a write whose blocks are written: it goes on after the next commits.
    fn wait_for_journal(&mut self, id: u64, write: WriteOp) {
        self.commit_journal();
        if self.jobs.values().any(|job| job.sent.is_some()) {
            self.ops.insert(id, Op::Write(write));
            self.crowded.push(id);
            return;
        }
        self.journal.make_void("it is too small for a write");
        self.finish_write(id, write);
    }

    /// Goes on with the writes that wait for room in the journal.
    pub(super) fn feed_crowded(&mut self) {
        for id in std::mem::take(&mut self.crowded) {
            if let Some(Op::Write(write)) = self.ops.remove(&id) {
                self.finish_write(id, write);
            }
        }
    }

    fn fail_write(&mut self, id: u64, mut write: WriteOp, error: VolumeError) {
        self.close_reading(&mut write);
        for run in std::mem::take(&mut write.runs) {
            self.free(run);
        }
        match write.goal {
            Goal::Write { ticket, .. } | Goal::Cut(CutOp { ticket, .. }) => self.answer(ticket, Err(error)),
        }
        self.unlock(write.ino, id);
    }

    fn close_reading(&mut self, write: &mut WriteOp) {
        if let Some(reading) = write.reading.take() {
            self.freed |= self.space.close_read(reading);
        }
    }

    /// There are not enough free blocks: waits for those that are about to become free, if there are any.
    fn starve(&mut self, ino: Ino, mut parked: Parked) {
        /// How often an operation waits before the volume counts as full.
        const MAX_TRIES: u32 = 1000;
        if !self.has_hope() || parked.tries >= MAX_TRIES {
            return self.give_up(ino, &parked, VolumeError::NoSpace);
        }
        parked.tries += 1;
        self.hungry.push_back(parked);
    }

    /// Lets operations that wait for space try again, if something has become free or nothing will.
    pub(super) fn feed_hungry(&mut self) {
        if self.hungry.is_empty() {
            self.freed = false;
            return;
        }
        if !self.has_hope() || std::mem::take(&mut self.freed) {
            for parked in std::mem::take(&mut self.hungry) {
                self.begin(parked);
            }
        }
    }

    /// Whether something under way may free blocks. Commits that will are sent.
    fn has_hope(&mut self) -> bool {
        for owing in std::mem::take(&mut self.owing) {
            self.send_commit(owing, Purpose::Background);
        }
        let replaces = |op: &Op| matches!(op, Op::Write(_));
        self.space.is_waiting() || self.jobs.values().any(|job| job.may_free()) || self.ops.values().any(replaces)
    }

    /// Ends an operation that may have its range already.
    pub(super) fn give_up(&mut self, ino: Ino, parked: &Parked, error: VolumeError) {
        self.answer(parked.ticket, Err(error));
        self.unlock(ino, parked.id);
    }

    /// Takes an operation's range back and begins those that waited for it.
    pub(super) fn unlock(&mut self, ino: Ino, id: u64) {
        let ready = self.nodes.get_mut(&ino).map(|node| node.locks.release(id)).unwrap_or_default();
        for parked in ready {
            self.begin(parked);
        }
    }

    /// Nothing refers to a run any more.
    pub(super) fn free(&mut self, run: Run) {
        self.space.free(run);
        self.freed = true;
    }
}

impl WriteOp {
    /// Keeps what is needed of an old block, by address.
    fn keep(&mut self, part: usize, old: &Payload) -> bool {
        let slot = if part == HEAD { &mut self.head } else { &mut self.tail };
        let start = if part == HEAD { 0 } else { BLOCK_BYTES - slot.len() };
        match old.slice(start, slot.len()) {
            Some(kept) if old.len() == BLOCK_BYTES => *slot = kept,
            _ => return false,
        }
        true
    }
}

/// How many bytes of `data` fit in one request, in whole blocks.
fn whole_blocks(data: &Payload) -> u64 {
    let mut sum = 0u64;
    for segment in data.segments().take(MAX_SEGMENTS) {
        sum += u64::from(segment.len);
    }
    let sum = sum.min(u64::from(MAX_REQUEST_BYTES));
    sum - sum % BLOCK_BYTES
}

/// The runs as pieces of a file, from block `file` on.
fn pieces(mut file: u64, runs: &[Run]) -> Vec<Piece> {
    let mut out = Vec::new();
    for run in runs {
        out.push(Piece { file, block: run.start, count: run.count });
        file += run.count;
    }
    out
}
