//! What the event loop asks of the store thread, and what comes back.

use super::extents::{Piece, Run};
use super::ops::{Caller, CreateMode, Ino, SetAttr, Time, VolumeError, VolumeReply};
use super::record::{Mark, Record};

/// A change of the store. Jobs take effect in the order they were sent.
#[derive(Debug, Clone)]
pub enum Mutation {
    /// Sets attributes. `tail` is the new last block of a file that is cut within a block.
    SetAttr { ino: Ino, set: SetAttr, guard: Option<Time>, caller: Caller, tail: Option<Piece> },
    /// Stores what writes have changed of a file; without `written`, only makes what was sent before durable. With it,
    /// the journal's records of the file up to `mark` are obsolete.
    Commit { ino: Ino, written: Option<Written>, pieces: Vec<Piece>, mark: Option<Mark> },
    /// Creates a regular file.
    Create { dir: Ino, name: Vec<u8>, mode: CreateMode, caller: Caller },
    /// Creates a directory.
    MakeDir { dir: Ino, name: Vec<u8>, set: SetAttr, caller: Caller },
    /// Creates a symbolic link.
    Symlink { dir: Ino, name: Vec<u8>, target: Vec<u8>, set: SetAttr, caller: Caller },
    /// Removes a name: of a directory or of anything else.
    Remove { dir: Ino, name: Vec<u8>, directory: bool, caller: Caller },
    /// Renames.
    Rename { from_dir: Ino, from: Vec<u8>, to_dir: Ino, to: Vec<u8>, caller: Caller },
    /// Another name for a file.
    Link { ino: Ino, dir: Ino, name: Vec<u8>, caller: Caller },
}

/// What writes change of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Length in bytes.
    pub size: u64,
    /// When the last write ended.
    pub time: Time,
}

/// A question to the store; answered from what is committed.
#[derive(Debug, Clone)]
pub enum Query {
    /// An inode, and the extents of a file if wanted.
    Load { ino: Ino, extents: bool },
    /// Finds a name that is neither `.` nor `..`.
    Lookup { dir: Ino, name: Vec<u8>, caller: Caller },
    /// The target of a symbolic link.
    ReadLink { ino: Ino },
    /// Entries of a directory.
    ReadDir { dir: Ino, cookie: u64, count: u32, caller: Caller },
    /// Bytes in use and inodes.
    Usage,
}

/// A request to the store thread.
#[derive(Debug)]
pub enum Work {
    /// A change.
    Change(Mutation),
    /// A question.
    Ask(Query),
}

/// A request and the number its result will bear.
#[derive(Debug)]
pub struct Job {
    /// Chosen by the event loop.
    pub id: u64,
    /// What to do.
    pub work: Work,
}

/// What a job yields when it succeeds, apart from its effects.
#[derive(Debug)]
pub enum Answer {
    /// The answer to the operation; attributes of files are as stored, without what writes have changed since.
    Reply(VolumeReply),
    /// `Create` found this file, which is to get the size that was asked for.
    Existing { ino: Ino, size: u64, dir: super::ops::Change },
    /// To `Load`.
    Loaded { ino: Ino, record: Record, extents: Option<Vec<Piece>> },
    /// To `Usage`.
    Usage { inodes: u64, total_inodes: u64 },
}

/// What a successful job has changed or found: for the caches, in the order of the results.
#[derive(Debug, Default)]
pub struct Effects {
    /// Records as they are now; `None`: the inode is gone.
    pub records: Vec<(Ino, Option<Record>)>,
    /// Inodes that have just been created.
    pub created: Option<Ino>,
    /// Names as they are now.
    pub names: Vec<(Ino, Vec<u8>, Option<Ino>)>,
    /// Runs of the data region that nothing in the store refers to any more.
    pub freed: Vec<Run>,
}

/// How a job ended.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "most are `Done`; a box would only add an allocation to each")]
pub enum Outcome {
    /// Done, and durable if it was a change.
    Done(Answer, Effects),
    /// Refused; nothing has changed.
    Refused(VolumeError),
    /// The store failed so badly that nobody knows whether the change took effect.
    Unknown,
}
