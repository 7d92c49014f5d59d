//! Results of the store thread: caches follow what is committed, in the order of the commits.

use mmblk::queue::BlockQueue;

use super::extents::{ExtentMap, Piece, State};
use super::job::{Answer, Effects, Mutation, Outcome};
use super::nas::{JobState, NasVolume};
use super::node::{Node, Parked, Range};
use super::ops::{Attr, Before, Change, Ino, Kind, Stability, VolumeError, VolumeOp, VolumeReply};
use super::record::{Mark, Record, before};
use super::superblock::BLOCK_BYTES;
use super::write::CutOp;

/// What to do with the result of a job.
#[derive(Debug)]
pub(super) enum Purpose {
    /// Answer with it.
    Answer { ticket: u64 },
    /// Answer a creation, which may have found a file that is to be cut.
    Create { ticket: u64, caller: super::ops::Caller },
    /// Answer a stable write.
    Written { ticket: u64, count: u32, before: Before },
    /// Answer a commit.
    Committed { ticket: u64, before: Before },
    /// Go on with a change of a file's length, which has the whole file for itself.
    SetSize { id: u64, ticket: u64, ino: Ino, size: u64, tail: Option<Piece> },
    /// Go on with those who wait for an inode.
    Load { ino: Ino },
    /// Answer with the volume's space.
    Usage { ticket: u64 },
    /// Nothing: nobody has asked.
    Background,
}

/// What of an inode's changes a job carries.
#[derive(Debug)]
pub(super) struct Sent {
    pub ino: Ino,
    /// The version of the inode that it makes durable.
    pub version: u64,
    pub pieces: Vec<Piece>,
    /// Blocks that it makes free.
    pub owed: u64,
    /// Whether the store may have some of the pieces already: then it alone says what becomes free.
    pub doubt: bool,
    /// What of the journal it makes obsolete.
    pub mark: Option<Mark>,
    /// The inode's failed commits when it was sent: what failed after that was meant to be durable before this.
    pub failures: u64,
}

impl JobState {
    /// Whether its success may free blocks.
    pub(super) fn may_free(&self) -> bool {
        match (&self.purpose, &self.sent) {
            (_, Some(sent)) => sent.owed > 0,
            (Purpose::Answer { .. } | Purpose::SetSize { .. }, None) => true,
            _ => false,
        }
    }
}

impl<Q: BlockQueue> NasVolume<Q> {
    /// Sends what writes have changed of an inode to the store, or, if all of that is sent, only waits for it.
    pub(super) fn send_commit(&mut self, ino: Ino, purpose: Purpose) {
        let background = matches!(purpose, Purpose::Background);
        let Some(node) = self.nodes.get_mut(&ino) else { return };
        let written = node.written.filter(|_| node.is_unsent());
        if background && written.is_none() {
            return;
        }
        let pieces = node.map.as_mut().map(ExtentMap::send_dirty).unwrap_or_default();
        let (owed, failures) = (std::mem::take(&mut node.owed), node.failures);
        let (version, doubt) = (node.version, node.doubt);
        let mark = written.and_then(|_| self.journal.mark(ino));
        let sent = Sent { ino, version, pieces: pieces.clone(), owed, doubt, mark, failures };
        node.sent = node.version;
        node.jobs += 1;
        self.owing.remove(&ino);
        self.change(Mutation::Commit { ino, written, pieces, mark }, purpose, Some(sent));
    }

    pub(super) fn begin_commit(&mut self, ino: Ino, parked: Parked) {
        let Some(Parked { ticket, .. }) = self.need(ino, false, parked) else { return };
        let Some(node) = self.nodes.peek(&ino) else { return };
        let attr = node.attr(ino);
        if attr.kind != Kind::File {
            return self.answer(ticket, Err(VolumeError::Invalid));
        }
        if node.written.is_none() && node.jobs == 0 {
            let unchanged = Change { before: Some(before(&attr)), after: Some(attr) };
            return self.answer(ticket, Ok(VolumeReply::Committed(unchanged)));
        }
        self.send_commit(ino, Purpose::Committed { ticket, before: before(&attr) });
    }

    pub(super) fn begin_set_attr(&mut self, parked: Parked) {
        let VolumeOp::SetAttr { ino, set, .. } = &parked.op else { return };
        let (ino, size) = (*ino, set.size);
        if size.is_none() {
            // What was written before must be stored before, or it would undo a time that is set.
            self.send_commit(ino, Purpose::Background);
            let Parked { ticket, op: VolumeOp::SetAttr { set, guard, caller, .. }, .. } = parked else { return };
            let mutation = Mutation::SetAttr { ino, set, guard, caller, tail: None };
            return self.change(mutation, Purpose::Answer { ticket }, None);
        }
        let Some(parked) = self.need(ino, true, parked) else { return };
        let Some(node) = self.nodes.get_mut(&ino) else { return };
        let Some(parked) = node.locks.acquire(Range::ALL, parked) else { return };
        let Parked { id, ticket, op: VolumeOp::SetAttr { set, guard, caller, .. }, .. } = parked else { return };
        let cut = CutOp { ticket, set, guard, caller };
        match self.start_cut(id, ino, size.unwrap_or(0), &cut) {
            Ok(true) => {}
            Ok(false) => self.send_set_attr(id, ino, cut, None),
            Err(error) => {
                self.answer(ticket, Err(error));
                self.unlock(ino, id);
            }
        }
    }

    /// The new last block, if one is needed, is written: changes the length.
    pub(super) fn send_set_attr(&mut self, id: u64, ino: Ino, cut: CutOp, tail: Option<Piece>) {
        self.send_commit(ino, Purpose::Background);
        let CutOp { ticket, set, guard, caller } = cut;
        let purpose = Purpose::SetSize { id, ticket, ino, size: set.size.unwrap_or(0), tail };
        self.change(Mutation::SetAttr { ino, set, guard, caller, tail }, purpose, None);
    }

    /// Takes in the result of a job.
    pub(super) fn settle(&mut self, job: JobState, outcome: Outcome) {
        let JobState { purpose, sent } = job;
        let known = !matches!(outcome, Outcome::Unknown);
        let mut result = match outcome {
            Outcome::Done(answer, effects) => {
                self.learn(effects);
                Ok(answer)
            }
            Outcome::Refused(error) => Err(error),
            Outcome::Unknown => {
                self.forget();
                Err(VolumeError::Io)
            }
        };
        if let Some(sent) = sent {
            let unmet = self.nodes.peek(&sent.ino).is_some_and(|node| node.failures != sent.failures);
            self.settle_sent(sent, result.is_ok(), known);
            if unmet {
                result = result.and(Err(VolumeError::Io));
            }
        }
        // Whatever may have become free: those who wait for space look again.
        self.freed = true;
        match purpose {
            Purpose::Background => {}
            Purpose::Load { ino } => self.loaded(ino, result),
            Purpose::Usage { ticket } => {
                let answer = result.and_then(|answer| self.usage(&answer));
                self.answer(ticket, answer);
            }
            Purpose::SetSize { id, ticket, ino, size, tail } => {
                self.settle_size(ino, size, tail, result.is_ok(), known);
                self.answer_with(ticket, result);
                self.unlock(ino, id);
            }
            Purpose::Written { ticket, count, before } => {
                let answer = result.map(|answer| {
                    let change = Change { before: Some(before), after: self.committed(&answer) };
                    VolumeReply::Written { count, stability: Stability::FileSync, change }
                });
                self.answer(ticket, answer);
            }
            Purpose::Committed { ticket, before } => {
                let answer = result.map(|answer| {
                    VolumeReply::Committed(Change { before: Some(before), after: self.committed(&answer) })
                });
                self.answer(ticket, answer);
            }
            Purpose::Create { ticket, caller } => self.settle_create(ticket, caller, result),
            Purpose::Answer { ticket } => self.answer_with(ticket, result),
        }
        self.feed_crowded();
    }

    /// The attributes after a commit, with what was written since.
    fn committed(&self, answer: &Answer) -> Option<Attr> {
        let Answer::Reply(VolumeReply::Committed(Change { after: Some(attr), .. })) = answer else { return None };
        let mut attr = *attr;
        self.overlay(&mut attr);
        Some(attr)
    }

    fn answer_with(&mut self, ticket: u64, result: Result<Answer, VolumeError>) {
        let answer = match result {
            Ok(Answer::Reply(mut reply)) => {
                self.overlay_reply(&mut reply);
                Ok(reply)
            }
            Ok(_) => Err(VolumeError::Io),
            Err(error) => Err(error),
        };
        self.answer(ticket, answer);
    }

    /// What has become of the changes that a job carried.
    fn settle_sent(&mut self, sent: Sent, done: bool, known: bool) {
        let Sent { ino, version, pieces, owed, doubt, mark, .. } = sent;
        let mut gone = Vec::new();
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.jobs = node.jobs.saturating_sub(1);
            let to = if done { State::Stored } else { State::Dirty };
            for piece in pieces {
                match node.map.as_mut() {
                    Some(map) => gone.extend(map.settle(piece, State::Sent, to)),
                    None => gone.push(piece),
                }
            }
            if done && node.version == version {
                node.written = None;
                node.doubt = false;
                self.journal.settled(ino);
            } else if done && let Some(mark) = mark {
                self.journal.stored(ino, mark);
            }
            if !done {
                self.journal.make_void("a commit has failed");
                if node.written.is_some() {
                    // A later commit may already be on its way, whose mark covers what has just failed.
                    self.journal.distrust(ino);
                }
                node.doubt |= !known;
                node.owed += owed;
                node.failures += 1;
                if node.written.is_some() && !node.is_unsent() {
                    node.version += 1;
                    self.unsent.push_back((std::time::Instant::now() + self.options.commit_interval, ino));
                }
                if node.owed > 0 {
                    self.owing.insert(ino);
                }
            }
        } else {
            gone = pieces;
        }
        // If it is done, the store refers to them, and the commit of what displaced them frees them. If nobody knows,
        // they stay taken until the next mount.
        if !done && known && !doubt {
            gone.into_iter().for_each(|piece| self.free(piece.run()));
        }
    }

    /// What has become of a change of a file's length.
    fn settle_size(&mut self, ino: Ino, size: u64, tail: Option<Piece>, done: bool, known: bool) {
        let mut free = Vec::new();
        if !done {
            free.extend(tail.filter(|_| known).map(Piece::run));
        } else if let Some(node) = self.nodes.get_mut(&ino) {
            if let Some(written) = node.written.as_mut() {
                written.size = size;
            }
            if let Some(map) = node.map.as_mut() {
                let mut old = map.remove(size.div_ceil(BLOCK_BYTES), u64::MAX);
                if let Some(tail) = tail {
                    old.extend(map.replace(tail, State::Stored));
                }
                // What the store knew, it has freed itself.
                let own = |(_, state): &&(Piece, State)| *state == State::Dirty && !node.doubt;
                free.extend(old.iter().filter(own).map(|(piece, _)| piece.run()));
            }
        }
        free.into_iter().for_each(|run| self.free(run));
    }

    fn settle_create(&mut self, ticket: u64, caller: super::ops::Caller, result: Result<Answer, VolumeError>) {
        let Ok(Answer::Existing { ino, size, dir }) = result else { return self.answer_with(ticket, result) };
        // The file is there and is to be cut, like any other. The answer to that becomes the answer to this.
        self.creating.insert(ticket, dir);
        let set = super::ops::SetAttr { size: Some(size), ..Default::default() };
        let id = self.new_id();
        self.begin(Parked { id, ticket, op: VolumeOp::SetAttr { ino, set, guard: None, caller }, tries: 0 });
    }

    fn loaded(&mut self, ino: Ino, result: Result<Answer, VolumeError>) {
        let waiters = self.loading.remove(&ino).unwrap_or_default();
        match result {
            Ok(Answer::Loaded { ino, extents, .. }) => {
                if let (Some(node), Some(extents)) = (self.nodes.get_mut(&ino), extents)
                    && node.map.is_none()
                {
                    self.begun += extents.len() as u64;
                    node.map = Some(ExtentMap::stored(extents));
                }
                for parked in waiters {
                    self.begin(parked);
                }
            }
            Ok(_) => {}
            Err(error) => waiters.iter().for_each(|parked| self.answer(parked.ticket, Err(error))),
        }
    }

    /// Follows what the store has changed or found.
    fn learn(&mut self, effects: Effects) {
        for (ino, record) in effects.records {
            match record {
                Some(record) => self.learn_record(ino, record, effects.created == Some(ino)),
                None => self.kill(ino),
            }
        }
        for (dir, name, ino) in effects.names {
            match ino {
                Some(ino) => self.names.insert((dir, name), ino),
                None => drop(self.names.remove(&(dir, name))),
            }
        }
        for run in effects.freed {
            self.free(run);
        }
    }

    fn learn_record(&mut self, ino: Ino, record: Record, created: bool) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.record = record;
            return;
        }
        let mut node = Node::new(record);
        node.map = (created && record.kind == Kind::File).then(ExtentMap::default);
        self.nodes.insert(ino, node);
    }

    /// An inode is gone.
    fn kill(&mut self, ino: Ino) {
        let Some(mut node) = self.nodes.remove(&ino) else { return };
        self.owing.remove(&ino);
        self.journal.settled(ino);
        node.unsent_runs().into_iter().for_each(|run| self.free(run));
        for parked in node.locks.give_up() {
            self.answer(parked.ticket, Err(VolumeError::Stale));
        }
    }

    /// Nobody knows what the store holds: forgets all that can be read again.
    fn forget(&mut self) {
        self.names.retain(|_, _| false);
        self.nodes.retain(|_, node| {
            node.reload = true;
            node.is_pinned()
        });
    }

    /// Adds to the attributes in an answer of the store what writes have changed since.
    fn overlay(&self, attr: &mut Attr) {
        if let Some(node) = self.nodes.peek(&attr.ino) {
            node.overlay(attr);
        }
    }

    pub(super) fn overlay_reply(&self, reply: &mut VolumeReply) {
        match reply {
            VolumeReply::Attr(attr)
            | VolumeReply::Found { attr, .. }
            | VolumeReply::Target { attr, .. }
            | VolumeReply::Created { attr, .. }
            | VolumeReply::Linked { attr, .. } => self.overlay(attr),
            VolumeReply::Changed(Change { after: Some(attr), .. }) => self.overlay(attr),
            VolumeReply::Entries { entries, .. } => entries.iter_mut().for_each(|entry| self.overlay(&mut entry.attr)),
            _ => {}
        }
    }
}
