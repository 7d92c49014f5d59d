//! Carries calls out: from a record to operations on the volume, from answers to replies.
//!
//! Knows nothing of streams but where a call came from. Every call ends in exactly one [`Answered`], or at once.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Instant;

use fido_core::memory::Memory;
use fido_core::payload::Payload;
use fido_core::window::AddressError;
use mmnet::stream::StreamId;
use nfs3_types::mount::{MOUNT_PROGRAM, mountstat3};
use nfs3_types::nfs3::NFS_PROGRAM;
use nfs3_types::rpc::accept_stat_data;

use super::budget::{Meter, Permit};
use super::drc::{DuplicateCache, Key, Seen};
use super::mount::{self, Mounts};
use super::nfs3::args::{self, Args};
use super::nfs3::results::{self, Context};
use super::nfs3::{self, Shape};
use super::reply::Reply;
use super::rpc::{self, Call, Program, Refusal};
use crate::volume::ops::{Caller, Ino, Kind, ROOT, Volume, VolumeError, VolumeOp, VolumeReply};

/// What a call without data is taken to keep in use, in bytes: its reply, what is written down about it, and its share
/// of the loans that the lane to the outside can have. With the limits in use, a client that reads no replies stops at
/// fewer replies than there are loans for all.
const SMALL_CALL_BYTES: u64 = 4096;

/// Where a call came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The connection.
    pub stream: StreamId,
    /// Tells it from others that had the same name before.
    pub serial: u64,
    /// The client.
    pub remote: IpAddr,
}

/// What became of a record.
#[derive(Debug)]
pub enum Outcome {
    /// It is answered already.
    Replied(Reply),
    /// It is under way; an [`Answered`] follows.
    Asked,
    /// Another transmission of it is under way, and that one will be answered.
    Dropped,
    /// It is no call: the connection is of no use.
    NotACall,
    /// Its bytes are not there.
    Unreadable(AddressError),
}

/// The reply to a call that was under way.
#[derive(Debug)]
pub struct Answered {
    /// Where it came from.
    pub origin: Origin,
    /// The reply.
    pub reply: Reply,
}

#[derive(Debug)]
struct Pending {
    origin: Origin,
    /// The connection is gone: a retransmission of the call may take its place.
    orphaned: bool,
    xid: u32,
    work: Work,
    key: Option<Key>,
    permit: Permit,
    /// The volume's write verifier when it was asked.
    verifier: [u8; 8],
}

#[derive(Debug)]
enum Work {
    Nfs(NFS_PROGRAM, Shape),
    /// MNT: what the client calls it, and the names still to be looked up.
    Mount(Vec<u8>, VecDeque<Vec<u8>>),
}

/// The programs and what they remember.
#[derive(Debug)]
pub struct Service<V> {
    volume: V,
    memory: Memory,
    mounts: Mounts,
    duplicates: DuplicateCache,
    pending: HashMap<u64, Pending>,
    next_ticket: u64,
    /// The memory that all calls and replies keep in use.
    meter: Meter,
    /// The head that is being decoded; kept for its capacity.
    head: Vec<u8>,
}

impl<V: Volume> Service<V> {
    /// Serves `volume` under the name `export`.
    pub fn new(memory: Memory, volume: V, export: &str) -> Self {
        Self {
            volume,
            memory,
            mounts: Mounts::new(export),
            duplicates: DuplicateCache::default(),
            pending: HashMap::new(),
            next_ticket: 0,
            meter: Meter::default(),
            head: Vec::new(),
        }
    }

    /// The volume.
    pub fn volume(&mut self) -> &mut V {
        &mut self.volume
    }

    /// Calls under way.
    pub fn calls(&self) -> usize {
        self.pending.len()
    }

    /// Bytes that calls and replies of all connections keep in use.
    pub fn used(&self) -> u64 {
        self.meter.used()
    }

    /// Says that a connection is gone. Its calls are carried out nevertheless.
    pub fn abandon(&mut self, serial: u64) {
        for pending in self.pending.values_mut().filter(|pending| pending.origin.serial == serial) {
            pending.orphaned = true;
        }
    }

    /// Begins to carry out a record from `origin`, whose connection has this `meter`.
    pub fn call(&mut self, origin: Origin, meter: &Meter, record: &Payload) -> Outcome {
        let mut head = std::mem::take(&mut self.head);
        let outcome = match rpc::copy_head(&self.memory, record, &mut head) {
            Ok(()) => self.dispatch(origin, meter, record, &head).unwrap_or_else(|refusal| {
                tracing::debug!(client = %origin.remote, ?refusal, "refused");
                match refusal.reply() {
                    Some(reply) => Outcome::Replied(self.small_reply(reply, meter)),
                    None => Outcome::NotACall,
                }
            }),
            Err(error) => Outcome::Unreadable(error),
        };
        self.head = head;
        outcome
    }

    fn dispatch(&mut self, origin: Origin, meter: &Meter, record: &Payload, head: &[u8]) -> Result<Outcome, Refusal> {
        let call = rpc::decode(head)?;
        let is_write = call.program == Program::Nfs && call.procedure == NFS_PROGRAM::NFSPROC3_WRITE as u32;
        if record.len() > head.len() as u64 && !is_write {
            return Err(Refusal::Accepted(call.xid, accept_stat_data::GARBAGE_ARGS));
        }
        match call.program {
            Program::Nfs => self.nfs(origin, meter, record, head, call),
            Program::Mount => self.mount(origin, meter, call),
        }
    }

    fn nfs(
        &mut self,
        origin: Origin,
        meter: &Meter,
        record: &Payload,
        head: &[u8],
        call: Call<'_>,
    ) -> Result<Outcome, Refusal> {
        let xid = call.xid;
        let procedure = NFS_PROGRAM::try_from(call.procedure)
            .map_err(|_| Refusal::Accepted(xid, accept_stat_data::PROC_UNAVAIL))?;
        let key = nfs3::must_not_repeat(procedure).then(|| Key::new(origin.remote, xid, head));
        if let Some(known) = key.and_then(|key| self.repeated(&key, origin, meter)) {
            return Ok(known);
        }
        let fsid = self.volume.fsid();
        let args = Args { cursor: call.args, record, caller: call.caller, fsid };
        let plan = args::plan(procedure, args).map_err(|error| {
            tracing::debug!(client = %origin.remote, %procedure, %error, "garbage arguments");
            Refusal::Accepted(xid, accept_stat_data::GARBAGE_ARGS)
        })?;
        let mut out = rpc::begin_reply();
        rpc::put_success(&mut out, xid);
        match plan {
            nfs3::Plan::Nothing => {}
            nfs3::Plan::Fail(status) => {
                tracing::debug!(client = %origin.remote, %procedure, %status, "refused");
                results::write_failure(procedure, status, &mut out);
            }
            nfs3::Plan::Ask(op, shape) => {
                let permit = Permit::new(cost(&op, &shape), meter, &self.meter);
                let work = Work::Nfs(procedure, shape);
                let verifier = self.volume.write_verifier();
                self.ask(op, Pending { origin, orphaned: false, xid, work, key, permit, verifier });
                return Ok(Outcome::Asked);
            }
        }
        Ok(Outcome::Replied(self.small_reply(out, meter)))
    }

    /// What to do about a call that must not be carried out twice, if it has been seen.
    fn repeated(&mut self, key: &Key, origin: Origin, meter: &Meter) -> Option<Outcome> {
        match self.duplicates.look_up(key, Instant::now()) {
            Seen::New => None,
            Seen::Done(reply) => {
                let reply = reply.to_vec();
                Some(Outcome::Replied(self.small_reply(reply, meter)))
            }
            Seen::InProgress(ticket) => Some(match self.pending.get_mut(&ticket) {
                Some(pending) if pending.orphaned => {
                    pending.origin = origin;
                    pending.orphaned = false;
                    Outcome::Asked
                }
                _ => Outcome::Dropped,
            }),
        }
    }

    fn mount(&mut self, origin: Origin, meter: &Meter, call: Call<'_>) -> Result<Outcome, Refusal> {
        let xid = call.xid;
        let procedure = MOUNT_PROGRAM::try_from(call.procedure)
            .map_err(|_| Refusal::Accepted(xid, accept_stat_data::PROC_UNAVAIL))?;
        let plan = self
            .mounts
            .plan(procedure, call.args, origin.remote)
            .map_err(|_| Refusal::Accepted(xid, accept_stat_data::GARBAGE_ARGS))?;
        match plan {
            mount::Plan::Done(results) => {
                let mut out = rpc::begin_reply();
                rpc::put_success(&mut out, xid);
                out.extend(results);
                Ok(Outcome::Replied(self.small_reply(out, meter)))
            }
            mount::Plan::Mount { path, names } => {
                let permit = Permit::new(SMALL_CALL_BYTES, meter, &self.meter);
                let work = Work::Mount(path, names);
                let verifier = self.volume.write_verifier();
                let pending = Pending { origin, orphaned: false, xid, work, key: None, permit, verifier };
                self.ask(VolumeOp::GetAttr { ino: ROOT }, pending);
                Ok(Outcome::Asked)
            }
        }
    }

    fn small_reply(&self, out: Vec<u8>, meter: &Meter) -> Reply {
        let permit = Permit::new(SMALL_CALL_BYTES, meter, &self.meter);
        Reply::new(out, Payload::new(), Some(permit))
    }

    fn ask(&mut self, op: VolumeOp, pending: Pending) {
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        if let Some(key) = pending.key {
            self.duplicates.begin(key, ticket);
        }
        self.pending.insert(ticket, pending);
        self.volume.submit(ticket, op);
    }

    /// Moves the volume along and returns the next reply, if there is one.
    pub fn poll(&mut self) -> Option<Answered> {
        loop {
            let (ticket, answer) = self.volume.poll()?;
            let Some(pending) = self.pending.remove(&ticket) else {
                tracing::error!(ticket, "the volume answered what it was not asked");
                continue;
            };
            if let Some(answered) = self.answered(pending, answer) {
                return Some(answered);
            }
        }
    }

    fn answered(&mut self, pending: Pending, answer: Result<VolumeReply, VolumeError>) -> Option<Answered> {
        let Pending { origin, orphaned, xid, work, key, permit, verifier } = pending;
        let busy = matches!(answer, Err(VolumeError::Busy));
        let mut out = rpc::begin_reply();
        rpc::put_success(&mut out, xid);
        let data = match work {
            Work::Nfs(procedure, shape) => {
                // If the volume restarts meanwhile, nobody knows on which side of that a write or a commit was. The
                // client is safe if writes get the older verifier and commits the newer one: it writes again.
                let verifier = if shape == Shape::Write { verifier } else { self.volume.write_verifier() };
                let context = Context { fsid: self.volume.fsid(), verifier };
                results::write(procedure, shape, answer, context, &mut out)
            }
            Work::Mount(path, mut names) => {
                match step(answer, names.pop_front()) {
                    Step::Down(op) => {
                        let work = Work::Mount(path, names);
                        self.ask(op, Pending { origin, orphaned, xid, work, key, permit, verifier });
                        return None;
                    }
                    Step::There(ino) => {
                        out.extend(self.mounts.mounted(self.volume.fsid(), ino, path, origin.remote));
                    }
                    Step::Lost(status) => {
                        tracing::debug!(client = %origin.remote, %status, path = %path.escape_ascii(), "not mounted");
                        out.extend(mount::failure(status));
                    }
                }
                Payload::new()
            }
        };
        let reply = Reply::new(out, data, Some(permit));
        match key {
            Some(key) if busy => self.duplicates.forget(&key),
            Some(key) => self.duplicates.finish(key, reply.head(), Instant::now()),
            None => {}
        }
        Some(Answered { origin, reply })
    }
}

/// One step on the way to a directory that is mounted.
enum Step {
    Down(VolumeOp),
    There(Ino),
    Lost(mountstat3),
}

/// Where to go from the inode that was found, if `name` is the next one on the way.
fn step(answer: Result<VolumeReply, VolumeError>, name: Option<Vec<u8>>) -> Step {
    let attr = match answer {
        Ok(VolumeReply::Attr(attr) | VolumeReply::Found { attr, .. }) => attr,
        Ok(_) => return Step::Lost(mountstat3::MNT3ERR_SERVERFAULT),
        Err(error) => return Step::Lost(mount::status(error)),
    };
    if attr.kind != Kind::Directory {
        return Step::Lost(mountstat3::MNT3ERR_NOTDIR);
    }
    match name {
        Some(name) => Step::Down(VolumeOp::Lookup { dir: attr.ino, name, caller: Caller::default() }),
        None => Step::There(attr.ino),
    }
}

/// The bytes that a call and its reply keep in use.
fn cost(op: &VolumeOp, shape: &Shape) -> u64 {
    let data = match (op, shape) {
        (VolumeOp::Write { data, .. }, _) => data.len(),
        (_, Shape::Read { count } | Shape::ReadDir { count }) => u64::from(*count),
        (_, Shape::ReadDirPlus { maxcount, .. }) => u64::from(*maxcount),
        _ => 0,
    };
    SMALL_CALL_BYTES + data
}
