//! Arrays of devices: see [`crate::backend::raid`].
//!
//! | kind | options |
//! |---|---|
//! | `raid0`, `raid1`, `raid5` | `create=yes`: make one, if none of the members has been part of any; then `chunk`, `log` (sizes) and `zeroed=yes` (the members read as zeros) count. `degraded=yes`: a member may be missing that the others count on, or not open. `replace=yes`: members that are new, or stale, are filled again. `strict=yes`: whole stripes are recorded too. `rate`: bytes of a member per second for rebuild and scrub. `depth` (128) |
//!
//! An array has one queue, see `docs/adr/0023-one-thread-per-array.md`; its users share it, see
//! `docs/adr/0031-several-queues-of-one.md`.

use std::sync::{Arc, Mutex, PoisonError};

use fido_core::memory::Memory;

use super::catalogue::open_members;
use super::description::Description;
use super::options::Options;
use super::{BoxQueue, Device, OpenError};
use crate::backend::raid::assemble::{AssembleError, assemble, examine};
use crate::backend::raid::create::{CreateOptions, create};
use crate::backend::raid::layout::Level;
use crate::backend::raid::superblock::{Role, SuperblockError};
use crate::backend::raid::{MemberQueue, RaidError, RaidOptions, RaidQueue};
use crate::layer::shared::Shared;
use crate::queue::Geometry;

/// Buffers to look at the members with, before the array has its domain's.
const LOOK_BYTES: u64 = 8 << 20;

#[derive(Debug)]
struct RaidDevice {
    kind: String,
    /// The array's.
    members: Vec<Arc<dyn Device>>,
    /// To be filled.
    spares: Vec<Arc<dyn Device>>,
    options: RaidOptions,
    geometry: Geometry,
    /// Once somebody has asked for a queue.
    array: Mutex<Option<Shared<RaidQueue>>>,
}

pub(super) fn raid0(device: &Description) -> Result<Arc<dyn Device>, OpenError> {
    raid(device, Level::Raid0)
}

pub(super) fn raid1(device: &Description) -> Result<Arc<dyn Device>, OpenError> {
    raid(device, Level::Raid1)
}

pub(super) fn raid5(device: &Description) -> Result<Arc<dyn Device>, OpenError> {
    raid(device, Level::Raid5)
}

fn raid(device: &Description, level: Level) -> Result<Arc<dyn Device>, OpenError> {
    let other = |error: RaidError| OpenError::Other { kind: device.kind.clone(), error: error.into() };
    let mut options = Options::of(device);
    let usual = CreateOptions::new(level);
    let (may_create, replace) = (options.flag("create")?, options.flag("replace")?);
    let chunk = options.size("chunk")?.unwrap_or(usual.chunk.into());
    let make = CreateOptions {
        level,
        chunk: u32::try_from(chunk).unwrap_or(u32::MAX),
        log_bytes: options.size("log")?.unwrap_or(usual.log_bytes),
        zeroed: options.flag("zeroed")?,
    };
    let usual = RaidOptions::default();
    let run = RaidOptions {
        depth: options.number("depth")?.unwrap_or(usual.depth),
        log_full_stripes: options.flag("strict")?,
        rate: options.size("rate")?,
        allow_degraded: options.flag("degraded")?,
        ..usual
    };
    options.done()?;
    let memory = Memory::private(LOOK_BYTES)?;
    let (mut members, closed) = open_members(device);
    if let Some(error) = closed {
        // An array that is made has all its members.
        if !run.allow_degraded || members.is_empty() || may_create && is_new(&members, run, &memory)? {
            return Err(error);
        }
        tracing::warn!(%error, "a member cannot be opened; the array does without it");
    }
    if may_create && is_new(&members, run, &memory)? {
        create(queues(&members, &memory)?, &make, &memory).map_err(other)?;
    }
    let mut spares = Vec::new();
    let newest = loop {
        match examine(queues(&members, &memory)?, None, run, &memory) {
            Ok(choice) => break choice.newest,
            Err(RaidError::Assemble(
                AssembleError::NoSuperblock { member, .. } | AssembleError::Stale { member, .. },
            )) if replace && members.len() > 1 => spares.push(members.remove(member)),
            Err(error) => return Err(other(error)),
        }
    };
    if newest.layout.level != level {
        let found = newest.layout.level.number();
        return Err(Options::of(device).error("the members", format!("they are a raid{found}")));
    }
    let geometry = Geometry { bytes: newest.layout.bytes(), block: newest.block, depth: run.depth };
    geometry.checked().map_err(|error| other(error.into()))?;
    let (kind, array) = (device.kind.clone(), Mutex::new(None));
    Ok(Arc::new(RaidDevice { kind, members, spares, options: run, geometry, array }))
}

/// Whether none of the members has a superblock, not even a damaged one.
fn is_new(members: &[Arc<dyn Device>], options: RaidOptions, memory: &Memory) -> Result<bool, OpenError> {
    for member in members {
        let looked = examine(queues(std::slice::from_ref(member), memory)?, None, options, memory);
        let none = AssembleError::NoSuperblock { member: 0, error: SuperblockError::Magic };
        if !matches!(looked, Err(RaidError::Assemble(error)) if error == none) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn queues(members: &[Arc<dyn Device>], memory: &Memory) -> Result<Vec<MemberQueue>, OpenError> {
    members.iter().map(|member| Ok(MemberQueue::new(member.queue(memory)?))).collect()
}

impl RaidDevice {
    fn assemble(&self, memory: &Memory) -> Result<RaidQueue, OpenError> {
        let other = |error: RaidError| OpenError::Other { kind: self.kind.clone(), error: error.into() };
        let mut array = assemble(queues(&self.members, memory)?, None, self.options, memory).map_err(other)?;
        for spare in queues(&self.spares, memory)? {
            array.add_spare(spare).map_err(other)?;
        }
        Ok(array)
    }
}

impl Device for RaidDevice {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Assembles the array at the first time; all queues share it, and the memory of the first.
    fn queue(&self, memory: &Memory) -> Result<BoxQueue, OpenError> {
        let mut place = self.array.lock().unwrap_or_else(PoisonError::into_inner);
        let array = match place.take() {
            Some(array) => array,
            None => Shared::new(self.assemble(memory)?),
        };
        let queue = place.insert(array).queue()?;
        Ok(Box::new(queue))
    }

    fn notes(&self) -> Vec<(&'static str, String)> {
        let place = self.array.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(status) = place.as_ref().map(|array| array.look(RaidQueue::status)) else { return Vec::new() };
        let whole = status.roles.iter().filter(|role| **role == Role::Active).count();
        let mut notes = vec![("members", status.roles.len().to_string()), ("whole", whole.to_string())];
        notes.extend(status.rebuild.map(|rebuild| ("rebuilt", format!("{}/{}", rebuild.done, rebuild.stripes))));
        notes.extend(status.failure.map(|failure| ("failure", failure.to_string())));
        notes
    }

    /// An array keeps its size.
    fn refresh(&self) -> Result<(), OpenError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::open_text;
    use super::*;

    const FOUR: &str = "memory:4MiB,block=512; memory:4MiB,block=512; memory:4MiB,block=512; memory:4MiB,block=512";

    #[test]
    fn arrays_by_their_description() {
        let memory = Memory::private(8 << 20).unwrap();
        for (kind, chunks) in [("raid0", 4), ("raid1", 1), ("raid5", 3)] {
            let text = format!("{kind}(create=yes,zeroed=yes,chunk=64KiB,log=512KiB; {FOUR})");
            let device = open_text(&text).unwrap();
            assert_eq!(device.geometry().bytes, ((4 << 20) - (640 << 10)) * chunks, "{kind}");
            assert_eq!(device.notes(), []);
            assert_eq!(device.queue(&memory).unwrap().geometry(), device.geometry());
            assert_eq!(device.notes(), [("members", "4".to_owned()), ("whole", "4".to_owned())]);
            assert_eq!(device.queue(&memory).unwrap().geometry(), device.geometry(), "a second queue");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, part) in [
            (format!("raid5({FOUR})"), "no superblock"),
            (format!("raid5(create=yes,chunk=3; {FOUR})"), "chunk"),
            (format!("raid5(create=yes,log=1KiB; {FOUR})"), "log"),
            (format!("raid5(color=red; {FOUR})"), "color"),
            ("raid5(create=yes; memory:32MiB; memory:32MiB)".into(), "2 members"),
            // A new array has all its members, and one without any is none.
            (format!("raid5(create=yes,degraded=yes; file:/nowhere/a; {FOUR})"), "/nowhere/a"),
            ("raid5(degraded=yes; file:/nowhere/a; file:/nowhere/b)".into(), "/nowhere/a"),
        ] {
            let error = open_text(&text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
