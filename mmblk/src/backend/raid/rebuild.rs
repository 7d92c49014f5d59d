//! Rebuild: a spare takes the place of a missing member, stripe by stripe, while the array is in use.
//!
//! A stripe is rebuilt under its lock; from then on the member takes part in it. How far it is is written to the
//! superblocks now and then, after a flush, and a rebuild that was interrupted goes on from there.

use std::collections::BTreeSet;
use std::time::Instant;

use fido_core::payload::Payload;

use super::array::RaidQueue;
use super::blame::is_scarce;
use super::layout::{Layout, Level};
use super::members::{Member, MemberQueue, Purpose};
use super::stripe::Work;
use super::superblock::Role;
use super::{Progress, RaidError};
use crate::queue::{BlockError, BlockOp, BlockQueue};

/// Stripes rebuilt at the same time.
const WINDOW: usize = 4;
/// How much is rebuilt until the progress is written down, as a part of the member.
const SAVE_PART: u64 = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The superblocks do not say so yet.
    Announce,
    Copy,
    /// All members are flushed before the progress is written down: what was rebuilt rests on what the others have. How far
    /// it had come, and how many have not been flushed yet.
    Flush(u64, usize),
    /// The progress is being written down.
    Save,
    /// That the member is a whole one is being written down; it counts as one only then.
    Finish,
}

/// A rebuild under way.
#[derive(Debug)]
pub(super) struct Rebuild {
    pub(super) member: usize,
    /// Tells it from those before it: what was asked for one of them may end now.
    number: u64,
    stage: Stage,
    /// The next stripe to begin.
    next: u64,
    /// All stripes before this one are rebuilt.
    base: u64,
    /// Those that are rebuilt beyond.
    ahead: BTreeSet<u64>,
    /// Those that found no buffer, to be begun again.
    again: Vec<u64>,
    open: usize,
    saved: u64,
    pace: Pace,
}

impl Rebuild {
    pub(super) fn new(member: usize, from: u64, announced: bool) -> Self {
        Self {
            member,
            number: 0,
            stage: if announced { Stage::Copy } else { Stage::Announce },
            next: from,
            base: from,
            ahead: BTreeSet::new(),
            again: Vec::new(),
            open: 0,
            saved: from,
            pace: Pace::default(),
        }
    }

    /// Whether a stripe is rebuilt.
    pub(super) fn has(&self, stripe: u64) -> bool {
        stripe < self.base || self.ahead.contains(&stripe)
    }

    /// Whether there are stripes to begin.
    fn has_more(&self, stripes: u64) -> bool {
        self.next < stripes || !self.again.is_empty()
    }

    pub(super) fn progress(&self, layout: &Layout) -> Progress {
        Progress { member: self.member, done: self.base, stripes: layout.stripes }
    }
}

/// Bytes that may be spent by now at a rate.
#[derive(Debug)]
pub(super) struct Pace {
    since: Instant,
    spent: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { since: Instant::now(), spent: 0 }
    }
}

impl Pace {
    /// Spends `bytes` if the rate (bytes per second; none is no limit) allows it now. What was not used does not add up
    /// to more than a second's worth.
    pub(super) fn spend(&mut self, rate: Option<u64>, bytes: u64) -> bool {
        let Some(rate) = rate else { return true };
        let allowed = (self.since.elapsed().as_secs_f64() * rate as f64) as u64;
        if self.spent > allowed {
            return false;
        }
        if allowed - self.spent > rate {
            (self.since, self.spent) = (Instant::now(), 0);
        }
        self.spent += bytes;
        true
    }
}

impl RaidQueue {
    /// Gives the array a spare. If a member is missing, or when one fails, it takes its place and is rebuilt; whatever is
    /// on it is lost then.
    ///
    /// # Errors
    /// [`RaidError`] if it is too small or has larger blocks than the array.
    pub fn add_spare(&mut self, spare: MemberQueue) -> Result<(), RaidError> {
        super::create::fits(&self.layout, self.geometry.block, spare.geometry())?;
        self.wake.watch(&spare).map_err(RaidError::Wake)?;
        self.spares.push(spare);
        Ok(())
    }

    /// How fast rebuild and scrub may go from now on, in bytes of a member per second; `None` for no limit.
    pub fn set_rate(&mut self, rate: Option<u64>) {
        self.options.rate = rate;
    }

    /// Whether a rebuild cannot begin before the log has forgotten who was kicked.
    pub(super) fn rebuild_waits_for_tail(&self) -> bool {
        self.rebuild.is_none()
            && !self.spares.is_empty()
            && self.missing().is_some()
            && self.log.oldest() < self.membership.kicked_at
    }

    fn missing(&self) -> Option<usize> {
        if self.layout.level == Level::Raid0 {
            return None;
        }
        self.members.all.iter().position(|member| member.role == Role::Missing)
    }

    /// Moves rebuild and scrub on.
    pub(super) fn step_background(&mut self) {
        if self.failure.is_some() {
            return;
        }
        self.begin_rebuild();
        self.copy_more();
        self.step_scrub();
    }

    fn begin_rebuild(&mut self) {
        if self.rebuild.is_some() || self.is_changing() || self.rebuild_waits_for_tail() {
            return;
        }
        // Two at a time are not rebuilt.
        let Some(member) = self.missing() else { return };
        let Some(spare) = self.spares.pop() else { return };
        tracing::info!(member, "a spare takes the place of a missing member");
        if let Some(place) = self.members.all.get_mut(member) {
            *place = Member::new(Some(spare), Role::Rebuilding, 1);
        }
        self.membership.superblock.rebuilt = 0;
        self.rebuilds_begun += 1;
        self.rebuild = Some(Rebuild { number: self.rebuilds_begun, ..Rebuild::new(member, 0, false) });
        self.set_role(member, Role::Rebuilding);
    }

    /// The superblocks say what is so.
    pub(super) fn rebuild_announced(&mut self) {
        if let Some(rebuild) = &mut self.rebuild
            && matches!(rebuild.stage, Stage::Announce | Stage::Save)
        {
            rebuild.stage = Stage::Copy;
        } else if let Some(rebuild) = self.rebuild.take_if(|rebuild| rebuild.stage == Stage::Finish) {
            tracing::info!(member = rebuild.member, "rebuilt");
            self.status.rebuilds += 1;
            if let Some(place) = self.members.all.get_mut(rebuild.member) {
                place.role = Role::Active;
            }
        }
    }

    /// Whether only the rate keeps the background from going on.
    pub(super) fn waits_for_rate(&self) -> bool {
        let rebuild = self
            .rebuild
            .as_ref()
            .is_some_and(|r| r.stage == Stage::Copy && r.open < WINDOW && r.has_more(self.layout.stripes));
        rebuild || self.scrub_waits()
    }

    fn copy_more(&mut self) {
        let (rate, chunk, stripes) = (self.options.rate, u64::from(self.layout.chunk), self.layout.stripes);
        loop {
            let Some(rebuild) = &mut self.rebuild else { return };
            if rebuild.stage != Stage::Copy {
                return;
            }
            let due = rebuild.base - rebuild.saved >= (stripes / SAVE_PART).max(1) || rebuild.base == stripes;
            if due {
                let members = self.members.with_queue();
                rebuild.stage = Stage::Flush(rebuild.base, members.len());
                let purpose = Purpose::Progress { rebuild: rebuild.number };
                return members.into_iter().for_each(|m| self.send(m, purpose, BlockOp::Flush));
            }
            if rebuild.open >= WINDOW || !rebuild.has_more(stripes) || !rebuild.pace.spend(rate, chunk) {
                return;
            }
            let stripe = rebuild.again.pop().unwrap_or(rebuild.next);
            rebuild.next = rebuild.next.max(stripe + 1);
            rebuild.open += 1;
            let work = Work::Rebuild { member: rebuild.member, rebuild: rebuild.number };
            self.start_op(stripe, work);
            self.run();
        }
    }

    /// Whom to read in order to rebuild a stripe of a member.
    pub(super) fn rebuild_sources(&self, member: usize, readable: u32) -> Option<Vec<usize>> {
        if self.members.all.get(member)?.role != Role::Rebuilding {
            return None;
        }
        let others = (0..self.layout.members).filter(|other| *other != member);
        let can = |other: &usize| readable >> other & 1 == 1;
        match self.layout.level {
            Level::Raid0 => None,
            Level::Raid1 => others.into_iter().find(can).map(|one| vec![one]),
            Level::Raid5 => {
                let others: Vec<usize> = others.collect();
                others.iter().all(can).then_some(others)
            }
        }
    }

    /// A stripe is rebuilt, or cannot be. What a rebuild before this one has begun does not count.
    pub(super) fn rebuilt(&mut self, number: u64, stripe: u64, result: Result<(), BlockError>) {
        let Some(rebuild) = self.rebuild.as_mut().filter(|rebuild| rebuild.number == number) else { return };
        rebuild.open = rebuild.open.saturating_sub(1);
        match result {
            Ok(()) => {}
            Err(error) if is_scarce(&error) => return rebuild.again.push(stripe),
            Err(error) => {
                let member = rebuild.member;
                tracing::error!(member, stripe, %error, "the rebuild cannot go on: a stripe cannot be read");
                self.status.rebuilds_failed += 1;
                return self.kick(member, &error);
            }
        }
        rebuild.ahead.insert(stripe);
        while rebuild.ahead.remove(&rebuild.base) {
            rebuild.base += 1;
        }
    }

    /// A member has been flushed for the progress of the rebuild.
    pub(super) fn progress_event(&mut self, number: u64, member: usize, result: Result<Payload, BlockError>) {
        if let Err(error) = result {
            self.kick(member, &error);
        }
        let stripes = self.layout.stripes;
        let Some(rebuild) = self.rebuild.as_mut().filter(|rebuild| rebuild.number == number) else { return };
        let Stage::Flush(base, pending) = rebuild.stage else { return };
        rebuild.stage = Stage::Flush(base, pending.saturating_sub(1));
        if pending > 1 {
            return;
        }
        let member = rebuild.member;
        rebuild.stage = Stage::Save;
        rebuild.saved = base;
        self.membership.superblock.rebuilt = base;
        self.membership.dirty = true;
        if base == stripes {
            rebuild.stage = Stage::Finish;
            self.membership.superblock.rebuilt = 0;
            if let Some(role) = self.membership.superblock.roles.get_mut(member) {
                *role = Role::Active;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_without_limit_and_with() {
        let mut pace = Pace::default();
        assert!((0..1000).all(|_| pace.spend(None, 1 << 20)));
        let mut pace = Pace::default();
        assert!(pace.spend(Some(1), 1 << 30), "the first is on credit");
        assert!(!pace.spend(Some(1), 1));
    }
}
