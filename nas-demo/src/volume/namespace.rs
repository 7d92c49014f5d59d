//! Operations on names and attributes: answered from the caches if they can, by the store thread if not.

use mmblk::queue::BlockQueue;

use super::job::{Answer, Mutation, Query};
use super::nas::NasVolume;
use super::node::Parked;
use super::ops::{Caller, Ino, ROOT, Space as VolumeSpace, VolumeError, VolumeOp, VolumeReply};
use super::perm::{self, EXEC};
use super::settle::Purpose;
use super::superblock::BLOCK_BYTES;

impl<Q: BlockQueue> NasVolume<Q> {
    pub(super) fn begin_namespace(&mut self, parked: Parked) {
        match parked.op {
            VolumeOp::GetAttr { ino } => {
                let Some(parked) = self.need(ino, false, parked) else { return };
                let attr = self.attr(ino).ok_or(VolumeError::Stale);
                self.answer(parked.ticket, attr.map(VolumeReply::Attr));
            }
            VolumeOp::Lookup { .. } => self.begin_lookup(parked),
            VolumeOp::Stat => self.ask(Query::Usage, Purpose::Usage { ticket: parked.ticket }),
            VolumeOp::ReadLink { ino } => {
                self.ask(Query::ReadLink { ino }, Purpose::Answer { ticket: parked.ticket });
            }
            VolumeOp::ReadDir { dir, cookie, count, caller } => {
                let query = Query::ReadDir { dir, cookie, count, caller };
                self.ask(query, Purpose::Answer { ticket: parked.ticket });
            }
            op => self.begin_change(parked.ticket, op),
        }
    }

    fn begin_change(&mut self, ticket: u64, op: VolumeOp) {
        let mutation = match op {
            VolumeOp::Create { dir, name, mode, caller } => {
                let purpose = Purpose::Create { ticket, caller: caller.clone() };
                return self.change(Mutation::Create { dir, name, mode, caller }, purpose, None);
            }
            VolumeOp::MakeDir { dir, name, set, caller } => Mutation::MakeDir { dir, name, set, caller },
            VolumeOp::Symlink { dir, name, target, set, caller } => {
                Mutation::Symlink { dir, name, target, set, caller }
            }
            VolumeOp::Remove { dir, name, caller } => Mutation::Remove { dir, name, directory: false, caller },
            VolumeOp::RemoveDir { dir, name, caller } => Mutation::Remove { dir, name, directory: true, caller },
            VolumeOp::Rename { from_dir, from, to_dir, to, caller } => {
                Mutation::Rename { from_dir, from, to_dir, to, caller }
            }
            VolumeOp::Link { ino, dir, name, caller } => Mutation::Link { ino, dir, name, caller },
            // All others have been dealt with.
            _ => return self.answer(ticket, Err(VolumeError::Invalid)),
        };
        self.change(mutation, Purpose::Answer { ticket }, None);
    }

    fn begin_lookup(&mut self, parked: Parked) {
        let VolumeOp::Lookup { dir, name, caller } = &parked.op else { return };
        let dir = *dir;
        if name != b"." && name != b".." {
            let known = self.names.get_mut(&(dir, name.clone())).copied();
            if let Some(ino) = known
                && let Some(answer) = self.found(dir, ino, caller)
            {
                return self.answer(parked.ticket, answer);
            }
            let query = Query::Lookup { dir, name: name.clone(), caller: caller.clone() };
            return self.ask(query, Purpose::Answer { ticket: parked.ticket });
        }
        let up = name == b"..";
        let Some(parked) = self.need(dir, false, parked) else { return };
        let Some(record) = self.nodes.peek(&dir).map(|node| node.record) else { return };
        if !record.is_dir() {
            return self.answer(parked.ticket, Err(VolumeError::NotDirectory));
        }
        let target = if up { record.tag } else { dir };
        let Some(parked) = self.need(target, false, parked) else { return };
        let VolumeOp::Lookup { caller, .. } = &parked.op else { return };
        let answer = self.found(dir, target, caller).unwrap_or(Err(VolumeError::Stale));
        self.answer(parked.ticket, answer);
    }

    /// The answer to a look-up, if all of it is in memory.
    fn found(&mut self, dir: Ino, ino: Ino, caller: &Caller) -> Option<Result<VolumeReply, VolumeError>> {
        let dir = self.nodes.get_mut(&dir)?.attr(dir);
        let attr = self.nodes.get_mut(&ino)?.attr(ino);
        Some(perm::check(&dir, caller, EXEC).map(|()| VolumeReply::Found { attr, dir }))
    }

    /// The volume's space.
    pub(super) fn usage(&self, answer: &Answer) -> Result<VolumeReply, VolumeError> {
        let Answer::Usage { inodes, total_inodes } = answer else { return Err(VolumeError::Io) };
        let (total, free) = self.space.totals();
        let root = self.attr(ROOT).ok_or(VolumeError::Io)?;
        let space = VolumeSpace {
            total_bytes: total * BLOCK_BYTES,
            free_bytes: free * BLOCK_BYTES,
            total_inodes: *total_inodes,
            free_inodes: total_inodes.saturating_sub(*inodes),
        };
        Ok(VolumeReply::Space { space, root })
    }
}
