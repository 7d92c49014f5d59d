//! What is on stable storage before a write in place begins, and when it is not needed any more.
//!
//! `docs/adr/0022-raid-write-hole.md` has the reasons.

use std::collections::BTreeSet;
use std::ops::Range;

use fido_core::heap::ArenaBuf;
use fido_core::payload::{MAX_SEGMENTS, Payload};

use super::array::RaidQueue;
use super::layout::Level;
use super::log::record::{Content, Head};
use super::members::Purpose;
use super::stripe::{MemberWrite, Next, Op, Stage, Work};
use super::superblock::LOG_OFFSET;
use crate::queue::{BlockError, BlockOp};

/// A checkpoint under way: what it retires, and what is outstanding of its present step.
#[derive(Debug)]
pub(super) struct Checkpoint {
    retired: BTreeSet<u64>,
    /// The number of its flush.
    flush: u64,
    pending: usize,
    /// The new tail, once it is being written.
    tail: Option<u64>,
}

/// How a write is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protection {
    None,
    Intent,
    Redo,
}

impl RaidQueue {
    fn protection(&self, op: &Op) -> Protection {
        let Work::Write(work) = &op.work else { return Protection::None };
        let members: BTreeSet<usize> = op.writes.iter().map(|write| write.member).collect();
        let several = members.len() > 1;
        match self.layout.level {
            Level::Raid0 => Protection::None,
            Level::Raid1 => {
                if several {
                    Protection::Intent
                } else {
                    Protection::None
                }
            }
            // What is live stays in the log, whatever is written: a recovery would undo it.
            Level::Raid5 if self.log.is_live(op.stripe) => Protection::Redo,
            // Without parity the members' contents do not depend on each other.
            Level::Raid5 if work.plan.bands.is_empty() || !several => Protection::None,
            Level::Raid5 if !work.plan.full || self.options.log_full_stripes => Protection::Redo,
            // Without one member there is nothing to make anew.
            Level::Raid5 if self.present(op.stripe).count_ones() as usize == self.layout.members => Protection::Intent,
            Level::Raid5 => Protection::None,
        }
    }

    /// Sees to it that a crash in the middle of the writes of `op` leaves the stripe consistent.
    pub(super) fn protect(&mut self, id: u64, op: &mut Op) -> Next {
        op.stage = Stage::Protect;
        if self.is_changing() {
            // It may have been planned without somebody whom the superblocks still count on: a recovery would miss a part
            // that does not exist, or do without one that does.
            self.held.push(id);
            return Next::Wait;
        }
        let rests = matches!(&op.work, Work::Write(work) if !work.plan.reads.is_empty());
        if rests && self.log.is_soft(op.stripe) {
            // The parity was computed from what a loss of power may undo.
            self.flush_waiting.push(id);
            return Next::Wait;
        }
        match self.protection(op) {
            Protection::None => {
                op.stage = Stage::Log;
                self.write_in_place(id, op)
            }
            Protection::Redo => self.log_redo(id, op),
            Protection::Intent => self.log_intent(id, op),
        }
    }

    fn log_redo(&mut self, id: u64, op: &mut Op) -> Next {
        let block = u64::from(self.geometry.block);
        let mut members: Vec<(usize, u64)> = Vec::new();
        for write in &op.writes {
            match members.iter_mut().find(|(member, _)| *member == write.member) {
                Some((_, len)) => *len += write.data.len(),
                None => members.push((write.member, block + write.data.len())),
            }
        }
        // All that can be missing is got before any place is taken.
        let mut records = Vec::new();
        let participants = members.iter().fold(0, |mask, (member, _)| mask | 1 << member);
        for (member, _) in &members {
            match self.redo_record(op, *member, participants) {
                Ok(record) => records.push(record),
                Err(BlockError::NoBuffer) => return Next::Starve,
                Err(error) => return Next::Done(Err(error)),
            }
        }
        let Some(blocks) = self.blocks(members.len()) else { return Next::Starve };
        let Some((seq, places)) = self.log.redo(op.stripe, &members) else {
            self.log_waiting.push_back(id);
            return Next::Wait;
        };
        op.record = Some(seq);
        op.stage = Stage::Log;
        op.pending = members.len();
        self.status.logged_bytes += members.iter().map(|(_, len)| len).sum::<u64>();
        let parts = members.into_iter().zip(records).zip(blocks).zip(places);
        for (index, ((((member, _), (content, data)), block), at)) in parts.enumerate() {
            let mut record = self.head_block(block, seq, member, content);
            record.append(data);
            let write = BlockOp::Write { offset: LOG_OFFSET + at, data: record, durable: true };
            self.send(member, Purpose::Op { op: id, index }, write);
        }
        Next::Wait
    }

    /// What a member's record of an operation says, and its data.
    fn redo_record(&self, op: &Op, member: usize, participants: u32) -> Result<(Content, Payload), BlockError> {
        let mut writes: Vec<&MemberWrite> = op.writes.iter().filter(|write| write.member == member).collect();
        writes.sort_by_key(|write| write.rows.start);
        let ranges: Vec<Range<u32>> = writes.iter().map(|write| write.rows.clone()).collect();
        let mut data = Payload::new();
        writes.iter().for_each(|write| data.append(write.data.clone()));
        if data.parts().len() >= MAX_SEGMENTS {
            // With the head one segment too many.
            let copy = self.memory.copy_in(&data).map_err(|_| BlockError::NoBuffer)?;
            data = copy.map(ArenaBuf::into_payload).unwrap_or_default();
        }
        let mut hasher = crc32fast::Hasher::new();
        self.memory.inspect(&data, |piece| hasher.update(piece)).map_err(|e| BlockError::Address(e.to_string()))?;
        Ok((Content::Redo { stripe: op.stripe, participants, ranges, sum: hasher.finalize() }, data))
    }

    /// Buffers for blocks of the log.
    fn blocks(&self, count: usize) -> Option<Vec<ArenaBuf>> {
        (0..count).map(|_| self.memory.alloc(self.geometry.block as usize).ok()).collect()
    }

    /// A block with the head of a record.
    fn head_block(&self, mut block: ArenaBuf, seq: u64, member: usize, content: Content) -> Payload {
        let head = Head { log_id: self.log.id, seq, tail: self.log.tail, member, content }.encode();
        let bytes = block.as_mut_slice();
        bytes.fill(0);
        bytes.iter_mut().zip(head).for_each(|(to, from)| *to = from);
        block.into_payload()
    }

    fn log_intent(&mut self, id: u64, op: &mut Op) -> Next {
        if let Some((seq, durable)) = self.log.use_intent(op.stripe) {
            op.record = Some(seq);
            op.stage = Stage::Log;
            if durable {
                return self.write_in_place(id, op);
            }
            self.intent_waiting.entry(seq).or_default().1.push(id);
            return Next::Wait;
        }
        let block = u64::from(self.geometry.block);
        let members: Vec<(usize, u64)> = self.members.with_queue().into_iter().map(|member| (member, block)).collect();
        let (first, count) = self.log.region(op.stripe, self.layout.stripes);
        let Some(blocks) = self.blocks(members.len()) else { return Next::Starve };
        let Some((seq, places)) = self.log.new_intent(op.stripe, &members) else {
            self.log_waiting.push_back(id);
            return Next::Wait;
        };
        op.record = Some(seq);
        op.stage = Stage::Log;
        self.intent_waiting.insert(seq, (members.len() as u32, vec![id]));
        for (((member, _), at), block) in members.into_iter().zip(places).zip(blocks) {
            let data = self.head_block(block, seq, member, Content::Intent { first, count });
            let write = BlockOp::Write { offset: LOG_OFFSET + at, data, durable: true };
            self.send(member, Purpose::Intent { seq }, write);
        }
        Next::Wait
    }

    /// A member has an intent, or has failed.
    pub(super) fn intent_event(&mut self, seq: u64, member: usize, result: Result<Payload, BlockError>) {
        if let Err(error) = result {
            self.kick(member, &error);
        }
        let Some((pending, _)) = self.intent_waiting.get_mut(&seq) else { return };
        *pending = pending.saturating_sub(1);
        if *pending == 0
            && let Some((_, ops)) = self.intent_waiting.remove(&seq)
        {
            self.log.intent_durable(seq);
            self.runnable.extend(ops);
        }
    }

    /// Starts a checkpoint if there is need of one.
    pub(super) fn step_checkpoint(&mut self) {
        if self.failure.is_some() || self.is_changing() {
            return;
        }
        if let Some(checkpoint) = &self.checkpoint {
            if checkpoint.pending == 0 {
                // There was no buffer for it.
                self.write_tail();
            }
            return;
        }
        if self.flush_waiting.is_empty() && !self.log.wants_checkpoint(self.rebuild_waits_for_tail()) {
            return;
        }
        let retired = self.log.begin_checkpoint();
        let members = self.members.with_queue();
        self.checkpoint =
            Some(Checkpoint { retired, flush: self.log.begin_flush(), pending: members.len(), tail: None });
        self.status.checkpoints += 1;
        for member in members {
            self.send(member, Purpose::Checkpoint, BlockOp::Flush);
        }
    }

    /// Whether the tail of a checkpoint waits for a buffer.
    pub(super) fn checkpoint_starves(&self) -> bool {
        self.checkpoint.as_ref().is_some_and(|checkpoint| checkpoint.pending == 0)
    }

    pub(super) fn checkpoint_event(&mut self, member: usize, result: Result<Payload, BlockError>) {
        if let Err(error) = result {
            self.kick(member, &error);
        }
        let Some(checkpoint) = &mut self.checkpoint else { return };
        checkpoint.pending = checkpoint.pending.saturating_sub(1);
        if checkpoint.pending > 0 {
            return;
        }
        if self.failure.is_some() {
            self.checkpoint = None;
            return;
        }
        match checkpoint.tail {
            Some(tail) => {
                self.checkpoint = None;
                self.log.set_tail(tail);
                self.runnable.extend(std::mem::take(&mut self.log_waiting));
            }
            None => {
                self.log.end_flush(checkpoint.flush);
                self.runnable.extend(std::mem::take(&mut self.flush_waiting));
                // One that has not flushed may still be counted on: then the tail has to wait, see `step_checkpoint`.
                if !self.is_changing() {
                    self.write_tail();
                }
            }
        }
    }

    /// All that is retired has been flushed: says so on all members. By turns in two blocks, so that one is always whole.
    fn write_tail(&mut self) {
        let members = self.members.with_queue();
        let Some(blocks) = self.blocks(members.len()) else { return };
        let Some(checkpoint) = &mut self.checkpoint else { return };
        let tail = self.log.tail_without(&checkpoint.retired);
        checkpoint.tail = Some(tail);
        checkpoint.pending = members.len();
        let slot = self.status.checkpoints % 2 * u64::from(self.geometry.block);
        for (member, mut block) in members.into_iter().zip(blocks) {
            let head = Head { log_id: self.log.id, seq: tail, tail, member, content: Content::Tail }.encode();
            block.as_mut_slice().fill(0);
            block.as_mut_slice().iter_mut().zip(head).for_each(|(to, from)| *to = from);
            let write = BlockOp::Write { offset: LOG_OFFSET + slot, data: block.into_payload(), durable: true };
            self.send(member, Purpose::Checkpoint, write);
        }
    }

    /// All that waits is let go when the array has failed.
    pub(super) fn release_all(&mut self) {
        self.runnable.extend(std::mem::take(&mut self.held));
        self.runnable.extend(std::mem::take(&mut self.log_waiting));
        self.runnable.extend(std::mem::take(&mut self.flush_waiting));
        self.runnable.extend(std::mem::take(&mut self.starved).into_iter().map(|(id, _)| id));
        self.runnable.extend(std::mem::take(&mut self.intent_waiting).into_values().flat_map(|(_, ops)| ops));
        self.checkpoint = None;
    }
}
