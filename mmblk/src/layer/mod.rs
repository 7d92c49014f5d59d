//! Layers: queues around a queue, which see, spoil or delay what passes. For tests, for demonstrations, and to look at a
//! device in use.
//!
//! | layer | what it does |
//! |---|---|
//! | [`trace::Trace`] | counts and logs every request and how long it took |
//! | [`fault::Fault`] | makes requests fail, vanish, tear or stall by rules, reproducibly; a whole device can die |
//! | [`delay::Delay`] | makes each completion wait, as a slow disk or a long way would |
//! | [`shared::Shared`] | makes several queues of one, for several threads |
//!
//! A layer is a [`crate::queue::BlockQueue`] like what it wraps, so layers can be put around layers. Each queue of a device gets its own;
//! what they share (counts, a dead device) is a handle that clones.

pub mod delay;
pub mod fault;
pub mod shared;
pub mod trace;

use crate::queue::BlockOp;

/// The kinds of requests, as layers tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// [`BlockOp::Read`], and reads into foreign memory.
    Read,
    /// [`BlockOp::Write`].
    Write,
    /// [`BlockOp::Flush`].
    Flush,
    /// [`BlockOp::Discard`].
    Discard,
    /// [`BlockOp::WriteZeroes`].
    WriteZeroes,
    /// [`BlockOp::Extents`].
    Extents,
}

impl Kind {
    /// All of them, in the order of their declaration.
    pub const ALL: [Self; 6] = [Self::Read, Self::Write, Self::Flush, Self::Discard, Self::WriteZeroes, Self::Extents];

    /// Of which kind a request is.
    pub fn of(op: &BlockOp) -> Self {
        match op {
            BlockOp::Read { .. } => Self::Read,
            BlockOp::Write { .. } => Self::Write,
            BlockOp::Flush => Self::Flush,
            BlockOp::Discard { .. } => Self::Discard,
            BlockOp::WriteZeroes { .. } => Self::WriteZeroes,
            BlockOp::Extents { .. } => Self::Extents,
        }
    }

    /// Its name, in small letters with hyphens.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
            Self::WriteZeroes => "write-zeroes",
            Self::Extents => "extents",
        }
    }
}
