//! Making an array.

use fido_core::assignment::WaitStrategy;
use fido_core::memory::Memory;
use fido_core::waiter::Waiter;

use super::layout::{Layout, Level};
use super::members::MemberQueue;
use super::superblock::{LOG_OFFSET, Role, SUPERBLOCK_OFFSETS, Superblock};
use super::{ArrayId, MAX_MEMBERS, RaidError, random, random128};
use crate::blocking::{Blocking, Copied};
use crate::queue::{BlockQueue, Geometry};

/// What kind of array to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CreateOptions {
    /// How the members are put together.
    pub level: Level,
    /// Bytes of a chunk.
    pub chunk: u32,
    /// Bytes of the log on each member, in whole blocks.
    pub log_bytes: u64,
    /// All members read as zeros (new image files): they need not be overwritten.
    pub zeroed: bool,
}

impl CreateOptions {
    /// The usual chunk and log for a level.
    pub fn new(level: Level) -> Self {
        let chunk = if level == Level::Raid1 { 1 << 20 } else { 128 << 10 };
        Self { level, chunk, log_bytes: 16 << 20, zeroed: false }
    }
}

/// The least log for these chunks and blocks: records of two whole chunks, and the blocks around them.
pub fn least_log_bytes(chunk: u32, block: u32) -> u64 {
    // The head never reaches the tail, and a record does not wrap: one chunk may go unused at the end.
    4 * (u64::from(chunk) + u64::from(block)) + 70 * u64::from(block)
}

/// Whether a member is large enough, and its blocks small enough.
pub(super) fn fits(layout: &Layout, block: u32, member: Geometry) -> Result<(), RaidError> {
    let needed = layout.data_offset + layout.stripes * u64::from(layout.chunk);
    if member.bytes < needed || member.block > block {
        return Err(RaidError::Unfit { bytes: member.bytes, block: member.block, needed, most: block });
    }
    Ok(())
}

/// A waiter for what blocks here.
pub(super) fn blocking(queue: MemberQueue, memory: &Memory) -> Result<Blocking<MemberQueue>, RaidError> {
    let waiter = Waiter::new(WaitStrategy::Sleep).map_err(RaidError::Wake)?;
    Ok(Blocking::new(queue, memory.clone(), waiter))
}

/// Writes superblocks on all members, in their order, and makes their redundancy right by writing zeros everywhere
/// (unless `zeroed`). What was on the members is lost. Gives the members back, to be assembled. Blocks.
///
/// # Errors
/// [`RaidError`] if it cannot be, or a member fails.
pub fn create(
    members: Vec<MemberQueue>,
    options: &CreateOptions,
    memory: &Memory,
) -> Result<(ArrayId, Vec<MemberQueue>), RaidError> {
    let count = members.len();
    let block = members.iter().map(|queue| queue.geometry().block).max().unwrap_or(512).max(512);
    let bytes = members.iter().map(|queue| queue.geometry().bytes).min().unwrap_or(0);
    let least = least_log_bytes(options.chunk.min(super::layout::MAX_CHUNK_BYTES), block);
    if options.log_bytes < least || !options.log_bytes.is_multiple_of(block.into()) || options.log_bytes >> 40 != 0 {
        return Err(RaidError::Log { bytes: options.log_bytes, least });
    }
    let data_offset = (LOG_OFFSET + options.log_bytes).next_multiple_of(1 << 16);
    let stripes = bytes.saturating_sub(data_offset) / u64::from(options.chunk.max(1));
    let layout = Layout { level: options.level, members: count, chunk: options.chunk, data_offset, stripes };
    let layout = layout.checked(block, bytes)?;
    let mut roles = [Role::Missing; MAX_MEMBERS];
    roles.iter_mut().take(count).for_each(|role| *role = Role::Active);
    let superblock = Superblock {
        array: ArrayId(random128().to_le_bytes()),
        index: None,
        layout,
        block,
        log_bytes: options.log_bytes,
        generation: 1,
        nonce: random(),
        log_id: random128(),
        clean: true,
        roles,
        rebuilt: 0,
    };
    let mut made = Vec::with_capacity(count);
    for (index, queue) in members.into_iter().enumerate() {
        let failed = |error| RaidError::Member { member: index, error };
        let mut queue = blocking(queue, memory)?;
        if !options.zeroed {
            zero(&mut queue, &layout).map_err(failed)?;
        }
        let mut bytes = vec![0; block as usize];
        let copy = Superblock { index: Some(index), ..superblock.clone() }.encode();
        bytes.iter_mut().zip(copy).for_each(|(to, from)| *to = from);
        for offset in SUPERBLOCK_OFFSETS {
            queue.write_from(offset, &bytes, true, Copied::Metadata).map_err(failed)?;
        }
        queue.flush().map_err(failed)?;
        made.push(queue.into_inner());
    }
    Ok((superblock.array, made))
}

/// Makes all that will hold data read as zeros.
fn zero(queue: &mut Blocking<MemberQueue>, layout: &Layout) -> Result<(), crate::queue::BlockError> {
    let (start, len) = (layout.data_offset, layout.stripes * u64::from(layout.chunk));
    if queue.features().write_zeroes {
        return queue.write_zeroes(start, len, false, true);
    }
    let zeros = vec![0; layout.chunk as usize];
    for stripe in 0..layout.stripes {
        queue.write_from(layout.member_offset(stripe, 0), &zeros, false, Copied::Metadata)?;
    }
    Ok(())
}
