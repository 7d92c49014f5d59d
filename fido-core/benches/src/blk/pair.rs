//! The two processes: an arena and a window on the other's for each, lanes between them, and who serves them.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fido_core::arena::{LanePlan, OwnArena};
use fido_core::assignment::WaitStrategy;
use fido_core::bell::Bell;
use fido_core::lane::Lane;
use fido_core::memory::Memory;
use fido_core::platform::host::memory as host;
use fido_core::waiter::Waiter;
use fido_core::window::Window;
use mmblk::device::{BoxQueue, Device, open_text};
use mmblk::link::back::BackEnd;
use mmblk::queue::Geometry;
use rustix::event::EventfdFlags;
use serde::{Deserialize, Serialize};

use super::copying::{CopyingBack, Events};
use crate::Failure;
use crate::machine::process_time;
use crate::other_side::{Control, Part, Partner, Program};
use crate::ring::{begin, domain, spin};

/// The most jobs: so many lanes.
pub const JOBS: usize = 2;
const SLOTS: u32 = 512;
const ARENA_BYTES: u64 = 64 << 20;
/// How often a serving thread looks whether it is over.
const LOOK: Duration = Duration::from_millis(50);

/// What the two sides say to each other.
#[derive(Debug, Serialize, Deserialize)]
pub enum Say {
    /// Descriptors: the arena, then a bell and an event for each lane.
    Domain,
    /// Open that device and serve it on all lanes.
    Serve { device: String, copying: bool },
    /// It is open, and like this.
    Serving(Shape),
    /// How much processor time was used so far?
    Cpu,
    /// So much.
    Used(Duration),
    /// That was all.
    Done,
}

/// A [`Geometry`], to be sent.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Shape {
    bytes: u64,
    block: u32,
    depth: u32,
}

impl From<Geometry> for Shape {
    fn from(Geometry { bytes, block, depth }: Geometry) -> Self {
        Self { bytes, block, depth }
    }
}

impl From<Shape> for Geometry {
    fn from(Shape { bytes, block, depth }: Shape) -> Self {
        Self { bytes, block, depth }
    }
}

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
pub fn memory() -> Result<Memory, Failure> {
    let id = domain(1)?;
    let (_, raw) = host::create("bench", id, ARENA_BYTES)?;
    // SAFETY: fresh memory from the platform, which nobody can write but through this arena.
    Ok(Memory::new(unsafe { OwnArena::format(raw, id, &[])? }, Arc::default()))
}

impl Pair {
    /// Starts the other side and connects with it.
    pub fn start(program: &Program<'_>) -> Result<(Partner, Control, Self), Failure> {
        let (partner, mut control) = Partner::start(program, Part::Blk)?;
        let pair = Self::meet(&mut control, 1)?;
        Ok((partner, control, pair))
    }

    /// Exchanges arenas and descriptors with the other side, and connects. `slot` is this side's: 1 or 2.
    fn meet(control: &mut Control, slot: u16) -> Result<Self, Failure> {
        let (me, peer) = (domain(slot)?, domain(3 - slot)?);
        let plans: Vec<_> = (0..JOBS).map(|lane| LanePlan { link: 1, lane: lane as u16, slots: SLOTS }).collect();
        let (file, raw) = host::create("bench", me, ARENA_BYTES)?;
        // SAFETY: fresh memory from the platform, which nobody can write but through this arena.
        let memory = Memory::new(unsafe { OwnArena::format(raw, me, &plans)? }, Arc::default());
        let bells = (0..JOBS).map(|_| Bell::new().map(Arc::new)).collect::<Result<Vec<_>, _>>()?;
        let event = || rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let events = (0..JOBS).map(|_| event()).collect::<Result<Vec<_>, _>>()?;
        let mut fds = vec![file.as_fd()];
        for (bell, event) in bells.iter().zip(&events) {
            fds.extend([bell.as_fd(), event.as_fd()]);
        }
        control.say(&Say::Domain, &fds)?;
        let (Say::Domain, theirs) = control.hear()? else { return Err("no domain was offered".into()) };
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

/// The serving side.
pub fn serve(control: &mut Control) -> Result<(), Failure> {
    let mut pair = Pair::meet(control, 2)?;
    let (Say::Serve { device, copying }, _) = control.hear()? else { return Err("no device to serve".into()) };
    let device = open_text(&device)?;
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (lanes, events) = pair.take();
        let mut threads = Vec::new();
        for (lane, events) in lanes.into_iter().zip(events) {
            let queue = device.queue(&pair.memory)?;
            let over = &over;
            threads.push(scope.spawn(move || {
                if copying { serve_copying(lane, events, queue, over) } else { serve_lane(lane, queue, over) }
            }));
        }
        let talked = talk(control, &*device);
        over.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().map_err(|_| "a serving thread panicked")??;
        }
        talked
    })
}

/// Answers the leading side until it is done.
fn talk(control: &mut Control, device: &dyn Device) -> Result<(), Failure> {
    control.say(&Say::Serving(device.geometry().into()), &[])?;
    loop {
        match control.hear()?.0 {
            Say::Cpu => control.say(&Say::Used(process_time()), &[])?,
            Say::Done => return Ok(()),
            other => return Err(format!("the leading side said {other:?}").into()),
        }
    }
}

fn serve_lane(lane: Lane, queue: BoxQueue, over: &AtomicBool) -> Result<(), Failure> {
    let mut back = BackEnd::new(lane, queue)?;
    let mut waiter = Waiter::new(WaitStrategy::Adaptive)?;
    while !over.load(Ordering::Relaxed) {
        if back.poll() {
            waiter.busy();
            continue;
        }
        back.flush();
        waiter.idle(&mut back.sources(), Some(LOOK))?;
    }
    Ok(())
}

fn serve_copying(lane: Lane, events: Events, queue: BoxQueue, over: &AtomicBool) -> Result<(), Failure> {
    let mut back = CopyingBack::new(lane, events, queue);
    let mut waiter = Waiter::new(WaitStrategy::Sleep)?;
    while !over.load(Ordering::Relaxed) {
        if !back.poll()? {
            waiter.idle(&mut back.sources(), Some(LOOK))?;
        }
    }
    Ok(())
}
