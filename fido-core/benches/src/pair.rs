//! Two processes that are connected: an arena and a window on the other's for each, and lanes between them.

use std::os::fd::AsFd;
use std::sync::Arc;

use fido_core::arena::{LanePlan, OwnArena};
use fido_core::bell::Bell;
use fido_core::lane::Lane;
use fido_core::memory::Memory;
use fido_core::platform::host::memory as host;
use fido_core::window::Window;
use rustix::event::EventfdFlags;
use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::notified::Events;
use crate::other_side::{Control, Part, Partner, Program};
use crate::ring::{begin, domain, spin};

/// The bytes of each side's arena.
const ARENA_BYTES: u64 = 64 << 20;
/// The leading side's slot.
const LEADER: u16 = 1;
/// The other side's slot.
pub const FOLLOWER: u16 = 2;
const SLOTS: u32 = 512;

/// What the two sides offer each other: descriptors of the arena, then of a bell and an event for each lane.
#[derive(Debug, Serialize, Deserialize)]
struct Offer;

/// One side's memory and its ends of the lanes.
#[derive(Debug)]
pub struct Pair {
    /// The domain's memory.
    pub memory: Memory,
    lanes: Vec<Lane>,
    events: Vec<Events>,
    _window: Arc<Window>,
}

/// The memory of a domain that has no lanes.
///
/// # Errors
/// If there is none.
pub fn memory() -> Result<Memory, Failure> {
    let id = domain(LEADER)?;
    let (_, raw) = host::create("bench", id, ARENA_BYTES)?;
    // SAFETY: fresh memory from the platform, which nobody can write but through this arena.
    Ok(Memory::new(unsafe { OwnArena::format(raw, id, &[])? }, Arc::default()))
}

impl Pair {
    /// Starts the other side and connects with it.
    ///
    /// # Errors
    /// If it cannot be started, or one side has no memory.
    pub fn start(program: &Program<'_>, part: Part, lanes: usize) -> Result<(Partner, Control, Self), Failure> {
        let (partner, mut control) = Partner::start(program, part)?;
        let pair = Self::meet(&mut control, LEADER, lanes)?;
        Ok((partner, control, pair))
    }

    /// Exchanges arenas and descriptors with the other side, and connects. `slot` is this side's.
    ///
    /// # Errors
    /// If one side has no memory or is gone.
    pub fn meet(control: &mut Control, slot: u16, lanes: usize) -> Result<Self, Failure> {
        let (me, peer) = (domain(slot)?, domain(LEADER + FOLLOWER - slot)?);
        let plans: Vec<_> = (0..lanes).map(|lane| LanePlan { link: 1, lane: lane as u16, slots: SLOTS }).collect();
        let (file, raw) = host::create("bench", me, ARENA_BYTES)?;
        // SAFETY: fresh memory from the platform, which nobody can write but through this arena.
        let memory = Memory::new(unsafe { OwnArena::format(raw, me, &plans)? }, Arc::default());
        let bells = (0..lanes).map(|_| Bell::new().map(Arc::new)).collect::<Result<Vec<_>, _>>()?;
        let event = || rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let events = (0..lanes).map(|_| event()).collect::<Result<Vec<_>, _>>()?;
        let mut fds = vec![file.as_fd()];
        for (bell, event) in bells.iter().zip(&events) {
            fds.extend([bell.as_fd(), event.as_fd()]);
        }
        control.say(&Offer, &fds)?;
        let (Offer, theirs) = control.hear()?;
        let mut theirs = theirs.into_iter();
        let file = theirs.next().ok_or("an offer without an arena")?;
        let window = Arc::new(host::open(file.as_fd(), peer, ARENA_BYTES)?);
        memory.windows().insert(window.clone());
        let (mut lanes, mut both) = (Vec::new(), Vec::new());
        for ((place, bell), own) in memory.arena().lanes().to_vec().into_iter().zip(bells).zip(events) {
            let (ringer, other) = theirs.next().zip(theirs.next()).ok_or("an offer without bells or events")?;
            lanes.push(begin(&memory, place, bell, peer, Bell::from_fd(ringer)));
            both.push(Events { own, other });
        }
        lanes.iter_mut().try_for_each(|lane| spin("lane", || lane.change()).map(drop))?;
        Ok(Self { memory, lanes, events: both, _window: window })
    }

    /// The lanes and their events, once.
    pub fn take(&mut self) -> (Vec<Lane>, Vec<Events>) {
        (std::mem::take(&mut self.lanes), std::mem::take(&mut self.events))
    }
}
