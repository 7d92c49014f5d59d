//! Finding an array again: which of the given queues are its members, and whether they will do.

use fido_core::memory::Memory;

use super::array::{Parts, RaidQueue, survives};
use super::create::{blocking, fits};
use super::layout::Level;
use super::log::Log;
use super::members::{Member, MemberQueue, Members};
use super::membership::Membership;
use super::rebuild::Rebuild;
use super::recover::recover;
use super::superblock::{Role, SUPERBLOCK_BYTES, SUPERBLOCK_OFFSETS, Superblock, SuperblockError};
use super::wake::Wake;
use super::{ArrayId, RaidError, RaidOptions, random, random128};
use crate::blocking::{Blocking, Copied};
use crate::queue::BlockError;

/// Bytes of zeros that an array keeps to write.
const ZEROS_BYTES: usize = 64 << 10;

/// Why the queues that were given are not an array. `member` is a place in the list that was given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AssembleError {
    /// There is no valid superblock.
    #[error("member number {member} of those given: {error}")]
    NoSuperblock {
        /// Its place in the list.
        member: usize,
        /// What is wrong with the better copy.
        error: SuperblockError,
    },
    /// It belongs to another array.
    #[error("member number {member} of those given belongs to the array {found}, not to {expected}")]
    Foreign {
        /// Its place in the list.
        member: usize,
        /// The array it belongs to.
        found: ArrayId,
        /// The array that was asked for, or that the others belong to.
        expected: ArrayId,
    },
    /// The array has gone on without it.
    #[error(
        "member number {member} of those given is stale: generation {found}; the array is at {newest} and does not count on it"
    )]
    Stale {
        /// Its place in the list.
        member: usize,
        /// Its generation.
        found: u64,
        /// The newest generation.
        newest: u64,
    },
    /// Two of them say that they are the same.
    #[error("members number {first} and {second} of those given are both at place {index} of the array")]
    Duplicate {
        /// One.
        first: usize,
        /// The other.
        second: usize,
        /// The place.
        index: usize,
    },
    /// They were written to separately: each has gone on without the other.
    #[error("members number {first} and {second} of those given have gone separate ways since generation {generation}")]
    Separated {
        /// One.
        first: usize,
        /// The other.
        second: usize,
        /// The lower of their generations.
        generation: u64,
    },
    /// A member that the array counts on is not there.
    #[error("place {index} of the array is missing; it can be done without, but that has to be allowed")]
    Degraded {
        /// Its place in the array.
        index: usize,
    },
    /// Too many are missing.
    #[error("{found} of {members} members are there and valid; that is not enough")]
    TooFew {
        /// How many are.
        found: usize,
        /// How many there were.
        members: usize,
    },
    /// Nothing was given.
    #[error("no members were given")]
    Nothing,
}

/// What a given queue says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The newest valid superblock.
    pub superblock: Superblock,
    /// The copy that it is in.
    pub copy: usize,
}

/// Which of the given queues is at which place of the array, and what the newest superblock says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The newest superblock.
    pub newest: Superblock,
    /// The place in the given list, for each place of the array.
    pub places: Vec<Option<usize>>,
    /// Given queues that are spares.
    pub spares: Vec<usize>,
}

/// Chooses the members among what was found. Their order does not matter.
///
/// # Errors
/// [`AssembleError`].
pub fn choose(found: &[Found], array: Option<ArrayId>, allow_degraded: bool) -> Result<Choice, AssembleError> {
    let newest = found.iter().enumerate().filter(|(_, found)| found.superblock.index.is_some());
    let newest = newest.max_by_key(|(_, found)| found.superblock.generation);
    let (first, newest) = newest.map(|(at, found)| (at, found.superblock.clone())).ok_or(AssembleError::Nothing)?;
    let expected = array.unwrap_or(newest.array);
    let mut choice = Choice { places: vec![None; newest.layout.members], newest, spares: Vec::new() };
    for (member, Found { superblock, .. }) in found.iter().enumerate() {
        if superblock.array != expected {
            return Err(AssembleError::Foreign { member, found: superblock.array, expected });
        }
        let Some(index) = superblock.index else {
            choice.spares.push(member);
            continue;
        };
        let newest = &choice.newest;
        let stale = AssembleError::Stale { member, found: superblock.generation, newest: newest.generation };
        if superblock.generation == newest.generation && superblock.nonce != newest.nonce {
            return Err(AssembleError::Separated { first, second: member, generation: newest.generation });
        }
        // An update that was interrupted has left some one behind, and nothing was written in between.
        let counted = newest.roles.get(index).is_some_and(|role| *role != Role::Missing);
        if !counted || superblock.generation + 1 < newest.generation || superblock.layout != newest.layout {
            let without = newest.index.and_then(|index| superblock.roles.get(index)) == Some(&Role::Missing);
            if without && !counted {
                // It is not what stayed behind: it has gone on, too, and which is right is not for generations to say.
                let generation = superblock.generation;
                return Err(AssembleError::Separated { first, second: member, generation });
            }
            return Err(stale);
        }
        match choice.places.get_mut(index) {
            Some(place @ None) => *place = Some(member),
            Some(Some(first)) => return Err(AssembleError::Duplicate { first: *first, second: member, index }),
            None => return Err(stale),
        }
    }
    check_roles(&mut choice, allow_degraded)?;
    Ok(choice)
}

/// What is missing becomes missing in the superblock, if the array can do without it.
fn check_roles(choice: &mut Choice, allow_degraded: bool) -> Result<(), AssembleError> {
    let members = choice.newest.layout.members;
    for (index, place) in choice.places.iter().enumerate() {
        let Some(role) = choice.newest.roles.get_mut(index) else { continue };
        if place.is_none() && *role == Role::Active && !allow_degraded {
            let roles = choice.newest.roles.get(..members).unwrap_or_default();
            if survives(choice.newest.layout.level, roles, index) {
                return Err(AssembleError::Degraded { index });
            }
            continue;
        }
        if place.is_none() {
            *role = Role::Missing;
        }
    }
    let found =
        choice.places.iter().zip(&choice.newest.roles).filter(|(p, r)| p.is_some() && **r == Role::Active).count();
    let enough = match choice.newest.layout.level {
        Level::Raid0 => found == members,
        Level::Raid1 => found >= 1,
        Level::Raid5 => found + 1 >= members,
    };
    if enough { Ok(()) } else { Err(AssembleError::TooFew { found, members }) }
}

/// Reads the newest valid superblock of a queue.
fn find(queue: &mut Blocking<MemberQueue>, member: usize) -> Result<Found, RaidError> {
    let mut best: Result<Found, SuperblockError> = Err(SuperblockError::Magic);
    let block = queue.geometry().block.max(SUPERBLOCK_BYTES as u32) as usize;
    for (copy, offset) in SUPERBLOCK_OFFSETS.into_iter().enumerate() {
        let mut bytes = vec![0; block];
        if offset + block as u64 > queue.geometry().bytes {
            continue;
        }
        let read = queue.read_into(offset, &mut bytes, Copied::Metadata);
        read.map_err(|error| RaidError::Member { member, error })?;
        let bytes =
            bytes.first_chunk::<SUPERBLOCK_BYTES>().ok_or(RaidError::Member { member, error: BlockError::NoBuffer })?;
        match (Superblock::decode(bytes), &best) {
            (Ok(superblock), Ok(other)) if superblock.generation <= other.superblock.generation => {}
            (Ok(superblock), _) => best = Ok(Found { superblock, copy }),
            (Err(error), Err(_)) if error != SuperblockError::Magic => best = Err(error),
            _ => {}
        }
    }
    best.map_err(|error| AssembleError::NoSuperblock { member, error }.into())
}

/// Looks what the given queues would make, without writing anything. Blocks.
///
/// # Errors
/// [`RaidError`], as [`assemble`] would say.
pub fn examine(
    members: Vec<MemberQueue>,
    array: Option<ArrayId>,
    options: RaidOptions,
    memory: &Memory,
) -> Result<Choice, RaidError> {
    let mut found = Vec::new();
    for (index, queue) in members.into_iter().enumerate() {
        found.push(find(&mut blocking(queue, memory)?, index)?);
    }
    Ok(choose(&found, array, options.allow_degraded)?)
}

/// Assembles an array from its members, in any order, and makes it consistent: what the logs say is written again, what
/// was being written is made redundant again. `array` is the one that is expected, if that is known. Blocks; it does not
/// take longer than to read the logs, and at most 32 regions of 8 MiB on each member.
///
/// # Errors
/// [`RaidError`].
pub fn assemble(
    members: Vec<MemberQueue>,
    array: Option<ArrayId>,
    options: RaidOptions,
    memory: &Memory,
) -> Result<RaidQueue, RaidError> {
    let mut queues = Vec::new();
    let mut found = Vec::new();
    for (index, queue) in members.into_iter().enumerate() {
        let mut queue = blocking(queue, memory)?;
        found.push(find(&mut queue, index)?);
        queues.push(Some(queue));
    }
    let choice = choose(&found, array, options.allow_degraded)?;
    let superblock = Superblock { index: None, ..choice.newest };
    for found in queues.iter().flatten() {
        fits(&superblock.layout, superblock.block, found.geometry())?;
    }
    let mut take = |at: usize| queues.get_mut(at).and_then(Option::take);
    let mut places: Vec<Option<Blocking<MemberQueue>>> =
        choice.places.iter().map(|place| place.and_then(&mut take)).collect();
    let spares = choice.spares.iter().filter_map(|at| take(*at)).map(Blocking::into_inner).collect();
    let mut copies: Vec<usize> =
        choice.places.iter().map(|place| place.and_then(|at| found.get(at)).map_or(1, |found| found.copy)).collect();
    let behind = |place: &Option<usize>| {
        place.and_then(|at| found.get(at)).is_some_and(|found| found.superblock.generation < superblock.generation)
    };
    let behind: Vec<bool> = choice.places.iter().map(behind).collect();
    // No member may ever be two generations behind, however often an assembly is interrupted.
    write_copy(&mut places, &superblock, &mut copies, |index| behind.get(index) == Some(&true))?;
    let superblock = bring_up(&mut places, superblock, &mut copies, memory)?;
    let places = places.into_iter().map(|queue| queue.map(Blocking::into_inner)).collect();
    put_together(places, &copies, superblock, spares, options, memory)
}

/// Writes the older copy on some members.
fn write_copy(
    places: &mut [Option<Blocking<MemberQueue>>],
    superblock: &Superblock,
    copies: &mut [usize],
    which: impl Fn(usize) -> bool,
) -> Result<(), RaidError> {
    for (index, (queue, newest)) in places.iter_mut().zip(copies.iter_mut()).enumerate() {
        let Some(queue) = queue.as_mut().filter(|_| which(index)) else { continue };
        *newest = 1 - *newest;
        let mut bytes = vec![0; superblock.block as usize];
        let copy = Superblock { index: Some(index), ..superblock.clone() }.encode();
        bytes.iter_mut().zip(copy).for_each(|(to, from)| *to = from);
        let offset = SUPERBLOCK_OFFSETS.get(*newest).copied().unwrap_or(0);
        let written = queue.write_from(offset, &bytes, true, Copied::Metadata);
        written.map_err(|error| RaidError::Member { member: index, error })?;
    }
    Ok(())
}

/// From what was found to an array in use: who is a member is written down first, then the logs are followed, and then
/// they are declared void.
fn bring_up(
    places: &mut [Option<Blocking<MemberQueue>>],
    mut superblock: Superblock,
    copies: &mut [usize],
    memory: &Memory,
) -> Result<Superblock, RaidError> {
    let was_clean = superblock.clean;
    superblock.clean = false;
    write_all(places, &mut superblock, copies)?;
    if !was_clean {
        recover(places, &superblock, memory)?;
    }
    superblock.log_id = random128();
    write_all(places, &mut superblock, copies)?;
    Ok(superblock)
}

/// Writes a new generation on all members: the older copy, then the other.
fn write_all(
    places: &mut [Option<Blocking<MemberQueue>>],
    superblock: &mut Superblock,
    copies: &mut [usize],
) -> Result<(), RaidError> {
    superblock.generation += 1;
    superblock.nonce = random();
    write_copy(places, superblock, copies, |_| true)?;
    write_copy(places, superblock, copies, |_| true)
}

fn put_together(
    places: Vec<Option<MemberQueue>>,
    copies: &[usize],
    superblock: Superblock,
    spares: Vec<MemberQueue>,
    options: RaidOptions,
    memory: &Memory,
) -> Result<RaidQueue, RaidError> {
    let layout = superblock.layout;
    crate::queue::Geometry { bytes: layout.bytes(), block: superblock.block, depth: options.depth }.checked()?;
    let wake = Wake::new().map_err(RaidError::Wake)?;
    for queue in places.iter().flatten().chain(&spares) {
        wake.watch(queue).map_err(RaidError::Wake)?;
    }
    let member = |(index, (queue, copy)): (usize, (Option<MemberQueue>, &usize))| {
        let role = superblock.roles.get(index).copied().unwrap_or_default();
        Member::new(queue, role, *copy)
    };
    let all: Vec<Member> = places.into_iter().zip(copies).enumerate().map(member).collect();
    let rebuilding = all.iter().position(|member| member.role == Role::Rebuilding);
    let mut zeros = memory.alloc(ZEROS_BYTES).map_err(RaidError::Memory)?;
    zeros.as_mut_slice().fill(0);
    Ok(RaidQueue::from_parts(Parts {
        members: Members::new(all, memory.clone()),
        rebuild: rebuilding.map(|member| Rebuild::new(member, superblock.rebuilt, true)),
        log: Log::new(superblock.log_id, layout.members, superblock.log_bytes, superblock.block, layout.chunk),
        membership: Membership::new(superblock),
        spares,
        memory: memory.clone(),
        options,
        zeros: zeros.into_payload(),
        wake,
    }))
}

impl RaidQueue {
    /// Stops the array in an orderly way, so that the next assembly has nothing to do but to read the superblocks. All
    /// requests must have ended. Gives the members back. Blocks.
    ///
    /// # Errors
    /// [`RaidError`] if a member fails; the next assembly then has the log.
    pub fn stop(mut self) -> Result<Vec<MemberQueue>, RaidError> {
        let mut places = Vec::new();
        let mut copies = Vec::new();
        for member in &mut self.members.all {
            let queue = member.queue.take().map(|queue| blocking(queue, &self.memory)).transpose()?;
            places.push(queue);
            copies.push(member.newest_copy);
        }
        let failed = |member: usize| move |error| RaidError::Member { member, error };
        for (index, queue) in places.iter_mut().enumerate() {
            queue.as_mut().map_or(Ok(()), Blocking::flush).map_err(failed(index))?;
        }
        if self.failure.is_none() && self.is_idle() && !self.is_changing() {
            let mut superblock = self.membership.superblock.clone();
            superblock.clean = true;
            if let Some(rebuild) = &self.rebuild {
                superblock.rebuilt = rebuild.progress(&self.layout).done;
            }
            write_all(&mut places, &mut superblock, &mut copies)?;
        }
        Ok(places.into_iter().flatten().map(Blocking::into_inner).collect())
    }
}
