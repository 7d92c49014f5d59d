//! After a crash: what the logs say is written again, what was being written as a whole is made redundant again.
//!
//! A record counts if each member that took part and is still one has its part of it. Then everything it describes may
//! have been written in place, or some of it, or nothing: all of it is written now. If a part is missing, nothing was.
//! Doing this twice does no harm, so a crash in the middle of it is none.

use std::collections::BTreeMap;
use std::ops::Range;

use fido_core::memory::Memory;
use fido_core::payload::Payload;

use super::RaidError;
use super::layout::{Layout, Level};
use super::log::record::{Content, HEAD_BYTES, Head};
use super::members::MemberQueue;
use super::superblock::{LOG_OFFSET, Role, Superblock};
use crate::blocking::{Blocking, Copied};
use crate::queue::BlockError;

/// Bytes of a log that are read at once.
const READ_BYTES: u64 = 1 << 20;

type Places = [Option<Blocking<MemberQueue>>];

/// A member's part of a redo record: where its data is in the log.
#[derive(Debug)]
struct Part {
    at: u64,
    ranges: Vec<Range<u32>>,
    sum: u32,
}

/// What all logs say.
#[derive(Debug, Default)]
struct Found {
    tail: u64,
    /// By number: the stripe, the participants, and each member's part.
    redo: BTreeMap<u64, (u64, u32, BTreeMap<usize, Part>)>,
    intents: BTreeMap<u64, (u64, u64)>,
}

/// Follows the logs of all members.
///
/// # Errors
/// [`RaidError::Member`].
pub(super) fn recover(places: &mut Places, superblock: &Superblock, memory: &Memory) -> Result<(), RaidError> {
    let mut found = Found::default();
    for (index, queue) in places.iter_mut().enumerate() {
        let failed = |error| RaidError::Member { member: index, error };
        if let Some(queue) = queue {
            scan(queue, index, superblock, &mut found).map_err(failed)?;
        }
    }
    let tail = found.tail;
    let (redo, intents) = (found.redo.split_off(&tail), found.intents.split_off(&tail));
    let mut count = 0;
    for (stripe, participants, parts) in redo.into_values() {
        count += u64::from(redo_stripe(places, superblock, memory, stripe, participants, &parts)?);
    }
    for (first, stripes) in intents.into_values() {
        for stripe in first..first + stripes {
            resync(places, superblock, memory, stripe)?;
        }
    }
    tracing::info!(array = %superblock.array, redone = count, "the array has been made consistent");
    for (index, queue) in places.iter_mut().enumerate() {
        let failed = |error| RaidError::Member { member: index, error };
        queue.as_mut().map_or(Ok(()), Blocking::flush).map_err(failed)?;
    }
    Ok(())
}

/// Whether a member's content of a stripe is valid.
fn is_present(superblock: &Superblock, member: usize, stripe: u64) -> bool {
    match superblock.roles.get(member) {
        Some(Role::Active) => true,
        Some(Role::Rebuilding) => stripe < superblock.rebuilt,
        _ => false,
    }
}

/// Takes in the records of one member's log.
fn scan(
    queue: &mut Blocking<MemberQueue>,
    member: usize,
    superblock: &Superblock,
    found: &mut Found,
) -> Result<(), BlockError> {
    let block = u64::from(superblock.block);
    let mut at = 0;
    while at < superblock.log_bytes {
        let len = READ_BYTES.min(superblock.log_bytes - at);
        let mut bytes = vec![0; len as usize];
        queue.read_into(LOG_OFFSET + at, &mut bytes, Copied::Metadata)?;
        for (index, chunk) in bytes.chunks_exact(block as usize).enumerate() {
            let Some(head) = chunk.first_chunk::<HEAD_BYTES>() else { continue };
            let Ok(head) = Head::decode(head, superblock.log_id, &superblock.layout) else { continue };
            if head.member == member {
                take(head, at + (index as u64 + 1) * block, found);
            }
        }
        at += len;
    }
    Ok(())
}

fn take(head: Head, data_at: u64, found: &mut Found) {
    found.tail = found.tail.max(head.tail);
    match head.content {
        Content::Redo { stripe, participants, ranges, sum } => {
            let (_, _, parts) = found.redo.entry(head.seq).or_insert_with(|| (stripe, participants, BTreeMap::new()));
            parts.insert(head.member, Part { at: data_at, ranges, sum });
        }
        Content::Intent { first, count } => {
            found.intents.insert(head.seq, (first, count));
        }
        Content::Tail => {}
    }
}

/// Reads a member's part of a record. `None` if it is not all there.
fn read_part(
    queue: &mut Blocking<MemberQueue>,
    superblock: &Superblock,
    memory: &Memory,
    part: &Part,
) -> Result<Option<Payload>, BlockError> {
    let len: u64 = part.ranges.iter().map(|rows| u64::from(rows.end - rows.start)).sum();
    if part.at + len > superblock.log_bytes || !len.is_multiple_of(superblock.block.into()) {
        return Ok(None);
    }
    let data = queue.read(LOG_OFFSET + part.at, len)?;
    let mut hasher = crc32fast::Hasher::new();
    memory.inspect(&data, |piece| hasher.update(piece)).map_err(|e| BlockError::Address(e.to_string()))?;
    Ok((hasher.finalize() == part.sum).then_some(data))
}

/// Writes what a record describes, if all have their part of it. Whether it was so.
fn redo_stripe(
    places: &mut Places,
    superblock: &Superblock,
    memory: &Memory,
    stripe: u64,
    participants: u32,
    parts: &BTreeMap<usize, Part>,
) -> Result<bool, RaidError> {
    let mut all = Vec::new();
    for member in 0..superblock.layout.members {
        if participants >> member & 1 == 0 || !is_present(superblock, member, stripe) {
            continue;
        }
        let failed = |error| RaidError::Member { member, error };
        let (Some(Some(queue)), Some(part)) = (places.get_mut(member), parts.get(&member)) else { return Ok(false) };
        match read_part(queue, superblock, memory, part).map_err(failed)? {
            Some(data) => all.push((member, part, data)),
            None => return Ok(false),
        }
    }
    for (member, part, mut data) in all {
        let failed = |error| RaidError::Member { member, error };
        let Some(Some(queue)) = places.get_mut(member) else { continue };
        for rows in &part.ranges {
            let piece = data.split_to(u64::from(rows.end - rows.start));
            queue.write(superblock.layout.member_offset(stripe, rows.start), piece, false).map_err(failed)?;
        }
    }
    Ok(true)
}

/// Makes a stripe's redundancy from its data, if all of it is there.
fn resync(places: &mut Places, superblock: &Superblock, memory: &Memory, stripe: u64) -> Result<(), RaidError> {
    let Layout { level, members, chunk, .. } = superblock.layout;
    let present: Vec<usize> = (0..members).filter(|member| is_present(superblock, *member, stripe)).collect();
    let offset = superblock.layout.member_offset(stripe, 0);
    let mut reads = Vec::new();
    if level == Level::Raid5 && present.len() < members {
        return Ok(());
    }
    for member in &present {
        let failed = |error| RaidError::Member { member: *member, error };
        let Some(Some(queue)) = places.get_mut(*member) else { return Ok(()) };
        reads.push(queue.read(offset, chunk.into()).map_err(failed)?);
    }
    let mut sum = memory.alloc(chunk as usize).map_err(RaidError::Memory)?;
    let mut add = |sources: &[Payload], member: usize| {
        let added = memory.parity(sources, &mut sum, 0, chunk as usize);
        added.map_err(|error| RaidError::Member { member, error: BlockError::Address(error.to_string()) })?;
        Ok::<_, RaidError>(sum.as_slice().iter().all(|byte| *byte == 0))
    };
    let mut writes = Vec::new();
    if level == Level::Raid1 {
        for (member, other) in present.iter().zip(&reads).skip(1) {
            if let Some(first) = reads.first()
                && !add(&[first.clone(), other.clone()], *member)?
            {
                writes.push((*member, first.clone()));
            }
        }
    } else if let Some(parity) = superblock.layout.parity_member(stripe)
        && !add(&reads, parity)?
    {
        let data: Vec<Payload> =
            present.iter().zip(&reads).filter(|(member, _)| **member != parity).map(|(_, data)| data.clone()).collect();
        add(&data, parity)?;
        writes.push((parity, sum.into_payload()));
    }
    for (member, data) in writes {
        let failed = |error| RaidError::Member { member, error };
        let Some(Some(queue)) = places.get_mut(member) else { continue };
        queue.write(offset, data, false).map_err(failed)?;
    }
    Ok(())
}
