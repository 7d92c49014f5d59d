//! Operations on a stripe, under its lock: from the plan to the last write.
//!
//! A write goes through these stages: *read* what the parity needs, *protect* (record in the logs what is to be written,
//! or that it is), *hold* while the superblocks do not yet say who is a member, *write* in place. Only the first can be
//! begun again, when a member turns out to be missing: nothing has been changed by then.

use std::ops::Range;
use std::time::Instant;

use fido_core::heap::ArenaBuf;
use fido_core::payload::Payload;

use super::array::{BUFFER_PATIENCE, RaidQueue};
use super::blame::is_scarce;
use super::layout::Level;
use super::members::Purpose;
use super::plan::{Plan, plan, rows_of};
use super::request::failed;
use crate::queue::{BlockError, BlockOp};

/// An operation.
#[derive(Debug)]
pub(super) struct Op {
    pub(super) stripe: u64,
    pub(super) work: Work,
    pub(super) stage: Stage,
    /// Requests to members that have not ended.
    pub(super) pending: usize,
    /// What could not be read, and why.
    pub(super) errors: Vec<(usize, BlockError)>,
    /// What was read, in the order of the requests.
    pub(super) reads: Vec<Payload>,
    /// What is to be written.
    pub(super) writes: Vec<MemberWrite>,
    /// The record that covers it.
    pub(super) record: Option<u64>,
    /// Members that could not read what it needs.
    pub(super) avoid: u32,
    /// It waits for a buffer since then.
    pub(super) starved: Option<Instant>,
}

/// How far an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Begin,
    Read,
    Protect,
    Log,
    Write,
}

/// What it is about.
#[derive(Debug)]
pub(super) enum Work {
    Write(WriteWork),
    Read(ReadWork),
    /// Makes the stripe's chunk of the member that is rebuilt.
    Rebuild {
        member: usize,
        /// The rebuild's number: the place may have another spare by then.
        rebuild: u64,
    },
    /// Looks whether the redundancy is right.
    Scrub,
}

/// A write of a range of a stripe.
#[derive(Debug)]
pub(super) struct WriteWork {
    request: u64,
    pub(super) range: Range<u64>,
    pub(super) data: Payload,
    durable: bool,
    pub(super) plan: Plan,
}

impl WriteWork {
    pub(super) fn new(request: u64, range: Range<u64>, data: Payload, durable: bool) -> Self {
        Self { request, range, data, durable, plan: Plan::default() }
    }
}

/// A read of rows of a chunk from the other members.
#[derive(Debug)]
pub(super) struct ReadWork {
    request: u64,
    part: usize,
    chunk: usize,
    rows: Range<u32>,
    avoid: u32,
}

impl ReadWork {
    pub(super) fn new(request: u64, part: usize, chunk: usize, rows: Range<u32>, avoid: u32) -> Self {
        Self { request, part, chunk, rows, avoid }
    }
}

/// Rows to be written to a member.
#[derive(Debug, Clone)]
pub(super) struct MemberWrite {
    pub(super) member: usize,
    pub(super) rows: Range<u32>,
    pub(super) data: Payload,
}

impl Op {
    pub(super) fn new(stripe: u64, work: Work) -> Self {
        Self {
            stripe,
            work,
            stage: Stage::Begin,
            pending: 0,
            errors: Vec::new(),
            reads: Vec::new(),
            writes: Vec::new(),
            record: None,
            avoid: 0,
            starved: None,
        }
    }
}

impl RaidQueue {
    /// Takes an operation on, from where it is.
    pub(super) fn step_op(&mut self, id: u64) {
        let Some(mut op) = self.ops.remove(&id) else { return };
        if self.failure.is_some() && !matches!(op.work, Work::Read(_)) {
            return self.finish_op(op, Err(failed()));
        }
        let next = match op.stage {
            Stage::Begin => self.begin(id, &mut op),
            Stage::Read => self.compute(id, &mut op),
            Stage::Protect => self.protect(id, &mut op),
            Stage::Log => self.write_in_place(id, &mut op),
            Stage::Write => Next::Done(Ok(Payload::new())),
        };
        match next {
            Next::Wait => {
                self.ops.insert(id, op);
            }
            Next::Starve => {
                let since = *op.starved.get_or_insert_with(Instant::now);
                if since.elapsed() >= BUFFER_PATIENCE {
                    return self.finish_op(op, Err(BlockError::NoBuffer));
                }
                self.ops.insert(id, op);
                self.starved.push_back((id, since));
            }
            Next::Again => {
                self.ops.insert(id, op);
                self.runnable.push_back(id);
            }
            Next::Done(result) => self.finish_op(op, result),
        }
    }

    /// What a member says to a request of an operation.
    pub(super) fn op_event(&mut self, id: u64, index: usize, member: usize, result: Result<Payload, BlockError>) {
        let Some(op) = self.ops.get_mut(&id) else { return };
        op.pending = op.pending.saturating_sub(1);
        match result {
            Ok(data) => {
                if op.stage == Stage::Read
                    && let Some(place) = op.reads.get_mut(index)
                {
                    *place = data;
                }
            }
            Err(error) if op.stage == Stage::Read => op.errors.push((member, error)),
            // At once: another may have taken its place when the others have ended.
            Err(error) => self.kick(member, &error),
        }
        if self.ops.get(&id).is_some_and(|op| op.pending == 0) {
            self.stage_ended(id);
        }
    }

    /// All that was asked of members in this stage has ended.
    fn stage_ended(&mut self, id: u64) {
        let Some(op) = self.ops.get_mut(&id) else { return };
        let errors = std::mem::take(&mut op.errors);
        if op.stage == Stage::Read {
            if errors.iter().any(|(_, error)| is_scarce(error)) {
                let error = BlockError::NoBuffer;
                if let Some(op) = self.ops.remove(&id) {
                    self.finish_op(op, Err(error));
                }
                return;
            }
            if !errors.is_empty() {
                // Nothing has been changed yet: once more, without them.
                op.stage = Stage::Begin;
                op.reads.clear();
                for (member, error) in errors {
                    op.avoid |= 1 << member;
                    if let Some(place) = self.members.all.get_mut(member) {
                        place.read_errors += 1;
                        tracing::warn!(member, %error, "a member could not read; the others are asked");
                    }
                }
            }
        }
        self.runnable.push_back(id);
    }

    fn begin(&mut self, id: u64, op: &mut Op) -> Next {
        let writable = self.present(op.stripe);
        let readable = writable & !op.avoid;
        let reads = match &mut op.work {
            Work::Write(work) if self.layout.level == Level::Raid5 => {
                let Some(plan) = plan(&self.layout, op.stripe, &work.range, readable, writable) else {
                    return Next::Done(Err(failed()));
                };
                work.plan = plan;
                let reads = work.plan.reads.iter();
                reads.map(|read| (read.member, read.rows.clone())).collect::<Vec<_>>()
            }
            Work::Write(_) => Vec::new(),
            Work::Read(work) => {
                let member = self.layout.data_member(op.stripe, work.chunk);
                let readable = readable & !work.avoid;
                if readable >> member & 1 == 1 {
                    // It has come back meanwhile.
                    vec![(member, work.rows.clone())]
                } else {
                    let others: Vec<usize> = (0..self.layout.members).filter(|m| *m != member).collect();
                    if others.iter().any(|other| readable >> other & 1 == 0) {
                        return Next::Done(Err(failed()));
                    }
                    others.into_iter().map(|member| (member, work.rows.clone())).collect()
                }
            }
            Work::Rebuild { member, .. } => {
                let member = *member;
                match self.rebuild_sources(member, readable) {
                    Some(sources) => sources.into_iter().map(|m| (m, 0..self.layout.chunk)).collect(),
                    None => return Next::Done(Err(failed())),
                }
            }
            Work::Scrub => {
                (0..self.layout.members).filter(|m| readable >> m & 1 == 1).map(|m| (m, 0..self.layout.chunk)).collect()
            }
        };
        op.stage = Stage::Read;
        if reads.is_empty() {
            return Next::Again;
        }
        op.reads = vec![Payload::new(); reads.len()];
        op.pending = reads.len();
        for (index, (member, rows)) in reads.into_iter().enumerate() {
            let offset = self.layout.member_offset(op.stripe, rows.start);
            let request = BlockOp::Read { offset, len: rows.end - rows.start };
            self.send(member, Purpose::Op { op: id, index }, request);
        }
        Next::Wait
    }

    /// All that had to be read is there: what follows from it?
    fn compute(&mut self, id: u64, op: &mut Op) -> Next {
        let stripe = op.stripe;
        match &op.work {
            Work::Write(work) => {
                let writes = match self.layout.level {
                    Level::Raid5 => self.raid5_writes(stripe, work, &op.reads),
                    _ => Ok(self.mirror_writes(stripe, work)),
                };
                match writes {
                    Ok(writes) => op.writes = writes,
                    Err(BlockError::NoBuffer) => return Next::Starve,
                    Err(error) => return Next::Done(Err(error)),
                }
                op.stage = Stage::Protect;
                self.protect(id, op)
            }
            Work::Read(_) => match self.sum(std::mem::take(&mut op.reads)) {
                Ok(data) => Next::Done(Ok(data)),
                Err((reads, BlockError::NoBuffer)) => {
                    op.reads = reads;
                    Next::Starve
                }
                Err((_, error)) => Next::Done(Err(error)),
            },
            Work::Rebuild { member, .. } => {
                let member = *member;
                match self.sum(std::mem::take(&mut op.reads)) {
                    Ok(data) => {
                        op.writes = vec![MemberWrite { member, rows: 0..self.layout.chunk, data }];
                        op.stage = Stage::Log;
                        self.write_in_place(id, op)
                    }
                    Err((reads, BlockError::NoBuffer)) => {
                        op.reads = reads;
                        Next::Starve
                    }
                    Err((_, error)) => Next::Done(Err(error)),
                }
            }
            Work::Scrub => self.compare(id, op),
        }
    }

    /// The exclusive or of payloads of one length, in a buffer of ours; a single one as it is. What was given comes back
    /// with an error.
    pub(super) fn sum(&self, mut reads: Vec<Payload>) -> Result<Payload, (Vec<Payload>, BlockError)> {
        if reads.len() == 1 {
            return Ok(reads.pop().unwrap_or_default());
        }
        let len = reads.first().map_or(0, Payload::len) as usize;
        let Ok(mut buf) = self.memory.alloc(len) else { return Err((reads, BlockError::NoBuffer)) };
        match self.memory.parity(&reads, &mut buf, 0, len) {
            Ok(()) => Ok(buf.into_payload()),
            Err(error) => Err((reads, BlockError::Address(error.to_string()))),
        }
    }

    fn mirror_writes(&self, stripe: u64, work: &WriteWork) -> Vec<MemberWrite> {
        let rows = work.range.start as u32..work.range.end as u32;
        let write = |member| MemberWrite { member, rows: rows.clone(), data: work.data.clone() };
        (0..self.layout.members).filter(|member| self.is_present(*member, stripe)).map(write).collect()
    }

    /// The writes of data and parity.
    fn raid5_writes(&self, stripe: u64, work: &WriteWork, reads: &[Payload]) -> Result<Vec<MemberWrite>, BlockError> {
        let chunk_bytes = self.layout.chunk;
        let slice = |chunk: usize, rows: &Range<u32>| {
            let at = chunk as u64 * u64::from(chunk_bytes) + u64::from(rows.start) - work.range.start;
            work.data.slice(at, u64::from(rows.end - rows.start)).unwrap_or_default()
        };
        let mut writes = Vec::new();
        for chunk in 0..self.layout.data_chunks() {
            let rows = rows_of(&work.range, chunk, chunk_bytes);
            let member = self.layout.data_member(stripe, chunk);
            if !rows.is_empty() && self.is_present(member, stripe) {
                writes.push(MemberWrite { member, data: slice(chunk, &rows), rows });
            }
        }
        let Some(parity) = self.layout.parity_member(stripe) else { return Ok(writes) };
        let total: u32 = work.plan.bands.iter().map(|band| band.rows.end - band.rows.start).sum();
        if total == 0 {
            return Ok(writes);
        }
        let mut buf: ArenaBuf = self.memory.alloc(total as usize).map_err(|_| BlockError::NoBuffer)?;
        let mut at = 0;
        let mut ranges: Vec<Range<u32>> = Vec::new();
        for (index, band) in work.plan.bands.iter().enumerate() {
            let planned = work.plan.reads.iter().zip(reads);
            let mut sources: Vec<Payload> =
                planned.filter(|(read, _)| read.band == index).map(|(_, data)| data.clone()).collect();
            sources.extend(band.chunks.iter().map(|chunk| slice(*chunk, &band.rows)));
            let len = (band.rows.end - band.rows.start) as usize;
            self.memory.parity(&sources, &mut buf, at, len).map_err(|e| BlockError::Address(e.to_string()))?;
            at += len;
            match ranges.last_mut() {
                Some(last) if last.end == band.rows.start => last.end = band.rows.end,
                _ => ranges.push(band.rows.clone()),
            }
        }
        let mut rest = buf.into_payload();
        for rows in ranges {
            let data = rest.split_to(u64::from(rows.end - rows.start));
            writes.push(MemberWrite { member: parity, rows, data });
        }
        Ok(writes)
    }

    /// Writes in place, unless it is not yet on the superblocks who is a member.
    pub(super) fn write_in_place(&mut self, id: u64, op: &mut Op) -> Next {
        if self.is_changing() {
            self.held.push(id);
            return Next::Wait;
        }
        let stripe = op.stripe;
        op.writes.retain(|write| self.members.all.get(write.member).is_some_and(|member| member.queue.is_some()));
        if op.writes.is_empty() {
            return Next::Done(Err(failed()));
        }
        // What is in the log is durable.
        let in_log = op.record.is_some() && self.log.is_live(stripe);
        let durable = matches!(&op.work, Work::Write(work) if work.durable) && !in_log;
        if !in_log && self.features.volatile_cache && self.layout.level == Level::Raid5 {
            self.log.soften(stripe);
        }
        op.stage = Stage::Write;
        op.pending = op.writes.len();
        for (index, write) in op.writes.clone().into_iter().enumerate() {
            let offset = self.layout.member_offset(stripe, write.rows.start);
            let request = BlockOp::Write { offset, data: write.data, durable };
            self.send(write.member, Purpose::Op { op: id, index }, request);
        }
        Next::Wait
    }

    pub(super) fn finish_op(&mut self, op: Op, result: Result<Payload, BlockError>) {
        let Op { stripe, work, record, .. } = op;
        if self.log.is_soft(stripe) && !matches!(work, Work::Read(_)) {
            // It counts from its end: a flush that has begun meanwhile need not cover it.
            self.log.soften(stripe);
        }
        if let Some(seq) = record
            && self.failure.is_none()
        {
            self.log.done(seq);
        }
        match work {
            Work::Write(work) => {
                let result = result.map(|_| Payload::new());
                self.request_part_done(work.request, 0, result);
            }
            Work::Read(work) => self.request_part_done(work.request, work.part, result),
            Work::Rebuild { rebuild, .. } => self.rebuilt(rebuild, stripe, result.map(drop)),
            Work::Scrub => self.scrubbed(result.is_ok()),
        }
        self.end_op(stripe);
    }
}

/// What comes next for an operation.
pub(super) enum Next {
    /// Somebody will say.
    Wait,
    /// A buffer is missing.
    Starve,
    /// The next stage, at once.
    Again,
    Done(Result<Payload, BlockError>),
}
