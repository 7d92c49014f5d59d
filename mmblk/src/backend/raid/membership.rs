//! Who is a member: failures, and the superblocks that say so.
//!
//! A member that does not do what it must is *kicked*: the others' superblocks get a new generation that does not count
//! on it. Until that is durable on all of them no write in place begins and no write is acknowledged. So a member that
//! comes back with an older generation has missed nothing only if the newest superblocks still count on it.

use super::array::{RaidQueue, survives};
use super::members::Purpose;
use super::superblock::{Role, SUPERBLOCK_OFFSETS, Superblock};
use super::{ArrayFailure, random};
use crate::queue::{BlockError, BlockOp};

/// What the superblocks say, and whether they do so yet.
#[derive(Debug)]
pub(super) struct Membership {
    /// The present one; `index` differs from member to member.
    pub(super) superblock: Superblock,
    /// It has changed since the last update began.
    pub(super) dirty: bool,
    update: Option<Update>,
    /// Requests that have ended but for that.
    pub(super) held_requests: Vec<u64>,
    /// The log's number when a member was kicked last.
    pub(super) kicked_at: u64,
}

/// An update under way: first one copy on all members, then the other.
#[derive(Debug)]
struct Update {
    second: bool,
    pending: usize,
}

impl Membership {
    pub(super) fn new(superblock: Superblock) -> Self {
        Self { superblock, dirty: false, update: None, held_requests: Vec::new(), kicked_at: 0 }
    }
}

impl RaidQueue {
    /// Whether the superblocks do not yet say what is so.
    pub(super) fn is_changing(&self) -> bool {
        self.membership.dirty || self.membership.update.is_some()
    }

    /// Whether a change is to be written down that has not begun: there was no buffer for it, or nobody has polled.
    pub(super) fn membership_waits(&self) -> bool {
        self.membership.dirty && self.membership.update.is_none() && self.failure.is_none()
    }

    /// Whether the array can do without a member that it has.
    pub(super) fn can_lose(&self, member: usize) -> bool {
        let roles: Vec<Role> = self.members.all.iter().map(|member| member.role).collect();
        match roles.get(member) {
            Some(Role::Active) => survives(self.layout.level, &roles, member),
            Some(Role::Rebuilding) => true,
            _ => false,
        }
    }

    /// Does without a member from now on, as if it had failed. The array goes on without redundancy, or fails.
    ///
    /// Returns whether there was such a member.
    pub fn fail_member(&mut self, member: usize) -> bool {
        let known = self.members.all.get(member).is_some_and(|member| member.role != Role::Missing);
        if known {
            self.kick(member, &BlockError::Io { errno: libc::ENODEV });
        }
        known
    }

    /// A member has not done what it must.
    pub(super) fn kick(&mut self, member: usize, error: &BlockError) {
        let Some(role) = self.members.all.get(member).map(|member| member.role) else { return };
        if role == Role::Missing || self.failure.is_some() {
            return;
        }
        if !self.can_lose(member) {
            tracing::error!(member, %error, "the array has failed");
            // The superblocks stay as they are: with this member it can be assembled again.
            self.failure = Some(ArrayFailure { member, error: error.clone() });
            self.release_all();
            self.release_requests();
            return;
        }
        tracing::error!(member, %error, "a member has failed; the array goes on without it");
        self.status.kicked += 1;
        self.membership.kicked_at = self.log.next;
        if role == Role::Rebuilding {
            self.rebuild = None;
        }
        let orphans = self.members.fail(member);
        self.events.extend(orphans);
        self.set_role(member, Role::Missing);
    }

    /// What a place of the array holds from now on; the superblocks will say so.
    pub(super) fn set_role(&mut self, member: usize, role: Role) {
        if let Some(place) = self.members.all.get_mut(member) {
            place.role = role;
        }
        if let Some(place) = self.membership.superblock.roles.get_mut(member) {
            *place = role;
        }
        self.membership.dirty = true;
    }

    /// Begins an update if there is need of one.
    pub(super) fn step_membership(&mut self) {
        if !self.membership_waits() {
            return;
        }
        let superblock = &mut self.membership.superblock;
        let (generation, nonce) = (superblock.generation, superblock.nonce);
        superblock.generation += 1;
        superblock.nonce = random();
        self.membership.dirty = false;
        if !self.write_superblocks(false) {
            let superblock = &mut self.membership.superblock;
            (superblock.generation, superblock.nonce) = (generation, nonce);
            self.membership.dirty = true;
        }
    }

    /// Writes one copy on all members. Whether there were buffers for it.
    fn write_superblocks(&mut self, second: bool) -> bool {
        let members = self.members.with_queue();
        let block = self.geometry.block as usize;
        let mut copies = Vec::new();
        for member in &members {
            let Ok(mut buf) = self.memory.alloc(block) else { return false };
            let superblock = Superblock { index: Some(*member), ..self.membership.superblock.clone() };
            buf.as_mut_slice().fill(0);
            buf.as_mut_slice().iter_mut().zip(superblock.encode()).for_each(|(to, from)| *to = from);
            copies.push(buf.into_payload());
        }
        self.membership.update = Some(Update { second, pending: members.len() });
        for (member, data) in members.into_iter().zip(copies) {
            let copy = 1 - self.members.all.get(member).map_or(0, |member| member.newest_copy);
            let offset = SUPERBLOCK_OFFSETS[copy];
            self.send(member, Purpose::Superblock { copy }, BlockOp::Write { offset, data, durable: true });
        }
        true
    }

    pub(super) fn superblock_event(
        &mut self,
        copy: usize,
        member: usize,
        result: Result<fido_core::payload::Payload, BlockError>,
    ) {
        match result {
            Ok(_) => {
                if let Some(place) = self.members.all.get_mut(member) {
                    place.newest_copy = copy;
                }
            }
            Err(error) => self.kick(member, &error),
        }
        let Some(update) = &mut self.membership.update else { return };
        update.pending = update.pending.saturating_sub(1);
        if update.pending == 0 {
            self.copy_written();
        }
    }

    /// One copy is durable on all members.
    fn copy_written(&mut self) {
        let second = self.membership.update.take().is_some_and(|update| update.second);
        if self.failure.is_some() || self.membership.dirty {
            // Another change has come meanwhile; the next update says both.
            return;
        }
        if !second && !self.write_superblocks(true) {
            // No buffer: the same again, as a new update.
            self.membership.dirty = true;
            return;
        }
        if second {
            self.runnable.extend(std::mem::take(&mut self.held));
            self.release_requests();
            self.rebuild_announced();
        }
    }
}
