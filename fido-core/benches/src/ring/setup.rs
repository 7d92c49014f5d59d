//! Two processes that share memory as two domains do, without a manager.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use fido_core::addr::{DomainId, Generation, Slot};
use fido_core::arena::{LanePlace, LanePlan, OwnArena};
use fido_core::assignment::Transport;
use fido_core::bell::Bell;
use fido_core::lane::{Lane, LaneSetup, Mailbox, News};
use fido_core::memory::Memory;
use fido_core::platform::host::memory;
use fido_core::ring;
use fido_core::testing::Passes;
use fido_core::window::{Window, WindowTable};
use rustix::event::EventfdFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::machine::pin;
use crate::other_side::Control;

/// Slots of every ring.
pub const SLOTS: u32 = 1024;
const ARENA_BYTES: u64 = 16 << 20;
/// The lane, and a second place for a bare ring and the cache lines of the floor.
const PLANS: [LanePlan; 2] = [LanePlan { link: 1, lane: 0, slots: SLOTS }, LanePlan { link: 2, lane: 0, slots: SLOTS }];

/// What the two sides say to each other beside what is measured.
#[derive(Debug, Serialize, Deserialize)]
pub enum Say {
    /// Descriptors: the arena and the bell of the lane; from the leading side also one end of a socket pair and the
    /// eventfds that wake the leading and the following side.
    Offer {
        /// The core that the receiver is to run on.
        core: Option<usize>,
    },
    /// Play your part in that round trip.
    Trip { index: usize },
    /// Play your part in that rate.
    Rate { index: usize },
    /// From now on.
    Ready,
    /// That was all.
    Done,
}

/// Which of the two this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The one that measures.
    Lead,
    /// The one that answers.
    Follow,
}

impl Side {
    fn id(self) -> Result<DomainId, Failure> {
        let slot = Slot::new(if self == Self::Lead { 1 } else { 2 }).ok_or("no such slot")?;
        Ok(DomainId { slot, generation: Generation::FIRST })
    }

    fn other(self) -> Self {
        if self == Self::Lead { Self::Follow } else { Self::Lead }
    }
}

/// One side's access to everything that is measured.
pub struct End {
    pub memory: Memory,
    pub lane: Lane,
    pub tx: ring::Producer,
    pub rx: ring::Consumer,
    /// A kernel socket to the other side.
    pub socket: OwnedFd,
    /// The eventfd that wakes this side.
    pub own_event: OwnedFd,
    /// The eventfd that wakes the other side.
    pub other_event: OwnedFd,
    own: *const ring::Control,
    other: *const ring::Control,
    _window: Arc<Window>,
}

impl End {
    /// Exchanges arenas and descriptors with the other side, and connects.
    pub fn meet(control: &mut Control, side: Side, other_core: Option<usize>) -> Result<Self, Failure> {
        let (me, peer) = (side.id()?, side.other().id()?);
        let (file, raw) = memory::create("bench", me, ARENA_BYTES)?;
        // SAFETY: fresh memory from the platform, which nobody can write but through this arena.
        let arena = unsafe { OwnArena::format(raw, me, &PLANS)? };
        let bell = Arc::new(Bell::new()?);
        let ((socket, own_event, other_event), (their_file, their_bell)) = match side {
            Side::Lead => {
                let flags = SocketFlags::CLOEXEC;
                let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
                let lead = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?;
                let follow = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?;
                let fds = [file.as_fd(), bell.as_fd(), theirs.as_fd(), lead.as_fd(), follow.as_fd()];
                control.say(&Say::Offer { core: other_core }, &fds)?;
                let [their_file, their_bell] = offered(control)?;
                ((ours, lead, follow), (their_file, their_bell))
            }
            Side::Follow => {
                let [their_file, their_bell, socket, lead, follow] = offered(control)?;
                control.say(&Say::Offer { core: None }, &[file.as_fd(), bell.as_fd()])?;
                ((socket, follow, lead), (their_file, their_bell))
            }
        };
        let window = Arc::new(memory::open(their_file.as_fd(), peer, ARENA_BYTES)?);
        let memory = Memory::new(arena, Arc::default());
        let arena = memory.arena().clone();
        let table: &Arc<WindowTable> = memory.windows();
        table.insert(window.clone());
        let &[lane_place, ring_place] = arena.lanes() else { return Err("the arena has other lanes".into()) };
        let lane = connect(&memory, lane_place, bell, peer, Bell::from_fd(their_bell))?;
        let at = |window: &Window, offset, len: usize| {
            window.at(offset, len as u64).map(|place| place.as_ptr()).ok_or("the place is outside the arena")
        };
        let lines = size_of::<ring::Control>();
        let ring = SLOTS as usize * size_of::<ring::Slot>();
        // SAFETY: the place of a ring in the own arena, which `memory` keeps mapped; the other side has not begun.
        let tx = unsafe { ring::Producer::new(at(arena.window(), ring_place.ring, ring)?.cast(), SLOTS) };
        // SAFETY: the same place in the peer's arena (both have the same layout), which `_window` keeps mapped.
        let rx = unsafe { ring::Consumer::new(at(&window, ring_place.ring, ring)?.cast(), SLOTS) };
        let own = at(arena.window(), ring_place.control, lines)?.cast();
        let other = at(&window, ring_place.control, lines)?.cast();
        Ok(Self { memory, lane, tx, rx, socket, own_event, other_event, own, other, _window: window })
    }

    /// The bare ring and the control lines of both sides: own ring, other's ring, own lines, other's lines.
    pub fn ring(&mut self) -> (&mut ring::Producer, &mut ring::Consumer, &ring::Control, &ring::Control) {
        // SAFETY: aligned atomics in the own arena, mapped while `memory` lives.
        let own = unsafe { &*self.own };
        // SAFETY: aligned atomics in the peer's window, mapped while `_window` lives; they are only loaded.
        let other = unsafe { &*self.other };
        (&mut self.tx, &mut self.rx, own, other)
    }
}

/// What the other side offers; runs on the core that it says.
fn offered<const COUNT: usize>(control: &mut Control) -> Result<[OwnedFd; COUNT], Failure> {
    let (say, fds) = control.hear()?;
    let Say::Offer { core } = say else { return Err(format!("{say:?} instead of an offer").into()) };
    pin(core)?;
    fds.try_into().map_err(|fds: Vec<_>| format!("an offer of {} descriptors instead of {COUNT}", fds.len()).into())
}

/// The lane, with its session begun on this side.
fn connect(memory: &Memory, place: LanePlace, bell: Arc<Bell>, peer: DomainId, ringer: Bell) -> Result<Lane, Failure> {
    let mailbox = Arc::new(Mailbox::new(bell));
    mailbox.put(News::Up(peer, Box::new(ringer)));
    let mut lane = Lane::new(LaneSetup {
        name: "bench[0]".into(),
        place,
        transport: Transport::Pointer,
        memory: memory.clone(),
        mailbox,
        fence: Arc::new(Passes::default()),
    });
    super::subjects::spin("the other side's lane", || lane.change())?;
    Ok(lane)
}
