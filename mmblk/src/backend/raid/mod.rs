//! RAID 0, 1 and 5 over any block queues.
//!
//! [`create`](create::create) makes an array of members, [`assemble`](assemble::assemble) finds it again and brings it
//! into a consistent state; the result is a [`RaidQueue`], a block queue like any other. Members are queues of whatever
//! kind: files, memory, other domains, other machines.
//!
//! | file | what |
//! |---|---|
//! | `layout`, `superblock`, `log::record` | what is on the members; `docs/raid.md` has it for a second implementation |
//! | `create`, `assemble`, `recover` | before the array is used; these block |
//! | `array`, `request`, `members`, `locks`, `wake` | the queue: requests, the members' queues, stripe locks |
//! | `stripe`, `plan`, `protect`, `log` | a write to a stripe: what to read, parity, the log before it |
//! | `blame`, `membership` | failures and superblocks |
//! | `rebuild`, `scrub` | in the background |
//! | `measure` | how fast it is, against its members |
//!
//! Payload is passed on by address: data of a write goes to its member, and to the log, as the segments it came as; data
//! of a read is the members' loans. What is computed (parity, the content of a missing member) is in buffers of the own
//! arena.

use crate::queue::{BlockError, GeometryError};

mod array;
pub mod assemble;
mod blame;
pub mod create;
pub mod layout;
mod locks;
pub mod log;
pub mod measure;
mod members;
mod membership;
mod plan;
mod protect;
mod rebuild;
mod recover;
mod request;
mod scrub;
mod stripe;
pub mod superblock;
mod wake;

pub use array::RaidQueue;
pub use members::MemberQueue;

/// The most members of an array.
pub const MAX_MEMBERS: usize = 32;

/// The random number that tells an array from all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ArrayId(pub [u8; 16]);

impl std::fmt::Display for ArrayId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// How an array is run. Nothing of it is on the members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RaidOptions {
    /// The most requests in flight.
    pub depth: u32,
    /// Writes of whole stripes are recorded in the log as those of parts are. They are then atomic too, and cost twice the
    /// writing.
    pub log_full_stripes: bool,
    /// Bytes of a member that rebuild and scrub may go through in a second; `None` for no limit.
    pub rate: Option<u64>,
    /// A member that has had requests for so long without ending any has failed, if the array can do without it.
    pub stall_limit: Option<std::time::Duration>,
    /// A member that the superblocks count on may be missing when the array is assembled.
    pub allow_degraded: bool,
}

impl Default for RaidOptions {
    fn default() -> Self {
        Self { depth: 128, log_full_stripes: false, rate: None, stall_limit: None, allow_degraded: false }
    }
}

/// Why an array cannot be made or assembled, or does not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum RaidError {
    /// The layout.
    #[error(transparent)]
    Layout(#[from] layout::LayoutError),
    /// The geometry that results.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// A member does not fit the array.
    #[error(
        "a member of {bytes} bytes with blocks of {block}; the array needs {needed} bytes and blocks of at most {most}"
    )]
    Unfit {
        /// The member's size.
        bytes: u64,
        /// The member's block size.
        block: u32,
        /// What the array needs of each member.
        needed: u64,
        /// The array's block size.
        most: u32,
    },
    /// The log is too small for what has to be in it at once.
    #[error("a log of {bytes} bytes; it must have at least {least}, in whole blocks")]
    Log {
        /// What was asked for.
        bytes: u64,
        /// What it takes.
        least: u64,
    },
    /// A member cannot be read or written.
    #[error("member number {member} of those given: {error}")]
    Member {
        /// Its place in the list that was given.
        member: usize,
        /// What it said.
        error: BlockError,
    },
    /// The members do not make an array.
    #[error(transparent)]
    Assemble(#[from] assemble::AssembleError),
    /// The log of a member says what cannot be.
    #[error("the array has no room for its buffers: {0}")]
    Memory(fido_core::heap::HeapError),
    /// The system has no descriptor to wait with.
    #[error("no wake descriptor: {0}")]
    Wake(std::io::Error),
    /// There is no redundancy to look at.
    #[error("the array has no redundancy, or a member is missing")]
    NotRedundant,
    /// A scrub is under way.
    #[error("a scrub is under way")]
    Scrubbing,
}

/// Why an array does not take writes any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("member {member} has failed ({error}), and the array cannot do without it")]
pub struct ArrayFailure {
    /// The member that was one too many.
    pub member: usize,
    /// What it said.
    pub error: BlockError,
}

/// How far a rebuild is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The place that is rebuilt.
    pub member: usize,
    /// Stripes that are.
    pub done: u64,
    /// Stripes in all.
    pub stripes: u64,
}

/// What a scrub has found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ScrubReport {
    /// Stripes that were looked at.
    pub stripes: u64,
    /// Stripes that were not, because a member was missing or could not be read.
    pub skipped: u64,
    /// Stripes whose redundancy was wrong.
    pub mismatches: u64,
    /// The first of them, at most 64.
    pub named: Vec<u64>,
    /// Chunks that their member could not read.
    pub unreadable: u64,
    /// Stripes that were written anew.
    pub repaired: u64,
}

/// How an array is, and what has happened since it was assembled.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RaidStatus {
    /// What each place holds.
    pub roles: Vec<superblock::Role>,
    /// The superblocks' generation.
    pub generation: u64,
    /// Reads that each member has failed.
    pub read_errors: Vec<u64>,
    /// The rebuild under way.
    pub rebuild: Option<Progress>,
    /// The scrub under way: stripes begun, stripes in all.
    pub scrub: Option<(u64, u64)>,
    /// What the last scrub has found.
    pub scrubbed: Option<ScrubReport>,
    /// Spares that have no place yet.
    pub spares: usize,
    /// Why it takes no more writes.
    pub failure: Option<ArrayFailure>,
    /// Members kicked.
    pub kicked: u64,
    /// Rebuilds that came to an end, and that could not go on.
    pub rebuilds: u64,
    /// Rebuilds that could not go on.
    pub rebuilds_failed: u64,
    /// Reads of what a missing member would have.
    pub degraded_reads: u64,
    /// Bytes written to logs, heads included.
    pub logged_bytes: u64,
    /// Checkpoints of the log.
    pub checkpoints: u64,
}

/// Random bits from the kernel; should it have none, the clock's. They tell apart what only chance could make equal.
fn random() -> u64 {
    let mut bytes = [0; 8];
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) {
        Ok(8) => u64::from_le_bytes(bytes),
        _ => fallback(),
    }
}

fn fallback() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |time| time.as_nanos() as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

fn random128() -> u128 {
    u128::from(random()) << 64 | u128::from(random())
}
