//! Scrub: looks whether the redundancy of every stripe is right, and puts it right if asked to.
//!
//! Which of two mirrors is right, or whether data or parity is wrong, nobody can tell. What is made right is the
//! redundancy: parity from the data, mirrors from the first of them. What a member could not read is written again from
//! the others.

use fido_core::payload::Payload;

use super::array::RaidQueue;
use super::layout::Level;
use super::rebuild::Pace;
use super::stripe::{MemberWrite, Next, Op, Stage, Work};
use super::superblock::Role;
use super::{RaidError, ScrubReport};
use crate::queue::BlockError;

/// The most stripes that a report names.
pub const MAX_NAMED: usize = 64;
/// Stripes looked at at the same time.
const WINDOW: usize = 2;

/// A scrub under way.
#[derive(Debug)]
pub(super) struct Scrub {
    pub(super) next: u64,
    open: usize,
    repair: bool,
    report: ScrubReport,
    pace: Pace,
}

impl RaidQueue {
    /// Begins to look at every stripe, at the rate of [`RaidQueue::set_rate`]; with `repair`, what is wrong is put right.
    /// The report is in the status when it is done.
    ///
    /// # Errors
    /// [`RaidError`] if there is no redundancy to look at, or a scrub is under way.
    pub fn start_scrub(&mut self, repair: bool) -> Result<(), RaidError> {
        if self.layout.level == Level::Raid0 || self.members.all.iter().any(|member| member.role != Role::Active) {
            return Err(RaidError::NotRedundant);
        }
        if self.scrub.is_some() {
            return Err(RaidError::Scrubbing);
        }
        let report = ScrubReport::default();
        self.scrub = Some(Scrub { next: 0, open: 0, repair, report, pace: Pace::default() });
        Ok(())
    }

    pub(super) fn scrub_waits(&self) -> bool {
        self.scrub.as_ref().is_some_and(|scrub| scrub.open < WINDOW && scrub.next < self.layout.stripes)
    }

    pub(super) fn step_scrub(&mut self) {
        let (rate, chunk) = (self.options.rate, u64::from(self.layout.chunk));
        while let Some(scrub) = &mut self.scrub {
            if scrub.next == self.layout.stripes && scrub.open == 0 {
                self.status.scrubbed = self.scrub.take().map(|scrub| scrub.report);
                return;
            }
            if scrub.next == self.layout.stripes || scrub.open >= WINDOW || !scrub.pace.spend(rate, chunk) {
                return;
            }
            let stripe = scrub.next;
            scrub.next += 1;
            scrub.open += 1;
            self.start_op(stripe, Work::Scrub);
            self.run();
        }
    }

    /// All that can be read of a stripe is there.
    pub(super) fn compare(&mut self, id: u64, op: &mut Op) -> Next {
        let complete = self.present(op.stripe).count_ones() as usize == self.layout.members;
        if !complete {
            return Next::Done(Err(BlockError::Unsupported));
        }
        let missing: Vec<usize> = (0..self.layout.members).filter(|m| op.avoid >> m & 1 == 1).collect();
        let writes = match self.redundancy(op, &missing) {
            Ok(writes) => writes,
            Err(BlockError::NoBuffer) => return Next::Starve,
            Err(error) => return Next::Done(Err(error)),
        };
        let Some(scrub) = &mut self.scrub else { return Next::Done(Ok(Payload::new())) };
        scrub.report.stripes += 1;
        scrub.report.unreadable += missing.len() as u64;
        if writes.is_empty() {
            return Next::Done(Ok(Payload::new()));
        }
        if missing.is_empty() {
            scrub.report.mismatches += 1;
            if scrub.report.named.len() < MAX_NAMED {
                scrub.report.named.push(op.stripe);
            }
        }
        if !scrub.repair {
            return Next::Done(Ok(Payload::new()));
        }
        scrub.report.repaired += 1;
        op.writes = writes;
        op.stage = Stage::Log;
        self.write_in_place(id, op)
    }

    /// What would have to be written to make a stripe right.
    fn redundancy(&self, op: &Op, missing: &[usize]) -> Result<Vec<MemberWrite>, BlockError> {
        let rows = 0..self.layout.chunk;
        let readers: Vec<usize> = (0..self.layout.members).filter(|m| !missing.contains(m)).collect();
        let write = |member, data| MemberWrite { member, rows: rows.clone(), data };
        let sum = |reads: Vec<Payload>| self.sum(reads).map_err(|(_, error)| error);
        if self.layout.level == Level::Raid1 {
            let Some(first) = op.reads.first() else { return Err(BlockError::Io { errno: libc::EIO }) };
            let mut writes: Vec<MemberWrite> = missing.iter().map(|member| write(*member, first.clone())).collect();
            for (member, other) in readers.iter().zip(&op.reads).skip(1) {
                if !self.is_zero(&sum(vec![first.clone(), other.clone()])?)? {
                    writes.push(write(*member, first.clone()));
                }
            }
            return Ok(writes);
        }
        match missing {
            [] => {
                if self.is_zero(&sum(op.reads.clone())?)? {
                    return Ok(Vec::new());
                }
                let Some(parity) = self.layout.parity_member(op.stripe) else { return Ok(Vec::new()) };
                let data = readers.iter().zip(&op.reads).filter(|(member, _)| **member != parity);
                Ok(vec![write(parity, sum(data.map(|(_, data)| data.clone()).collect())?)])
            }
            [one] => Ok(vec![write(*one, sum(op.reads.clone())?)]),
            _ => Err(BlockError::Io { errno: libc::EIO }),
        }
    }

    fn is_zero(&self, data: &Payload) -> Result<bool, BlockError> {
        let mut zero = true;
        let looked = self.memory.inspect(data, |piece| zero &= piece.iter().all(|byte| *byte == 0));
        looked.map_err(|error| BlockError::Address(error.to_string()))?;
        Ok(zero)
    }

    /// A stripe has been looked at.
    pub(super) fn scrubbed(&mut self, success: bool) {
        if let Some(scrub) = &mut self.scrub {
            scrub.open = scrub.open.saturating_sub(1);
            scrub.report.skipped += u64::from(!success);
        }
    }
}
