//! What one side has: a domain with lanes and a bare ring, and one end of everything that it is compared with.

use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
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
use fido_core::window::Window;
use rustix::event::EventfdFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;
use serde::{Deserialize, Serialize};

use super::shared::Shared;
use super::spin::spin;
use crate::Failure;
use crate::machine;
use crate::other_side::Control;

/// Slots of every ring.
pub const SLOTS: u32 = 1024;
/// Lanes of the link.
pub const LANES: usize = 8;
const ARENA_BYTES: u64 = 64 << 20;
/// The number of the link whose only lane's place has the bare ring and the cache lines of the floor.
const BARE: u32 = 2;

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
        domain(if self == Self::Lead { 1 } else { 2 })
    }

    fn other(self) -> Self {
        if self == Self::Lead { Self::Follow } else { Self::Lead }
    }
}

/// The first incarnation of the domain in a slot.
pub fn domain(slot: u16) -> Result<DomainId, Failure> {
    let slot = Slot::new(slot).ok_or("no such slot")?;
    Ok(DomainId { slot, generation: Generation::FIRST })
}

/// What the two sides exchange before anything is measured.
#[derive(Debug, Serialize, Deserialize)]
enum Meeting {
    /// Descriptors: the arena, then a bell for each lane.
    Domain,
    /// From the leading side, descriptors: one end of each [`Kernel`] and the shared memory; and a number that is its
    /// own.
    Peers { run: u32 },
}

/// What the kernel offers to two processes: one side's ends.
#[derive(Debug)]
pub struct Kernel {
    /// Of a Unix socket pair for packets.
    pub socket: OwnedFd,
    /// Of a loopback TCP connection.
    pub tcp: OwnedFd,
    /// The pipe to read from.
    pub pipe_in: OwnedFd,
    /// The pipe to write to.
    pub pipe_out: OwnedFd,
    /// The eventfd that wakes this side.
    pub own_event: OwnedFd,
    /// The eventfd that wakes the other side.
    pub other_event: OwnedFd,
}

impl Kernel {
    /// Both sides' ends, the leading one's first.
    fn pair() -> Result<[Self; 2], Failure> {
        let (socket, their_socket) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let tcp = TcpStream::connect(listener.local_addr()?)?;
        let (their_tcp, _) = listener.accept()?;
        tcp.set_nodelay(true)?;
        their_tcp.set_nodelay(true)?;
        let (pipe_in, their_pipe_out) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (their_pipe_in, pipe_out) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let event = || rustix::event::eventfd(0, EventfdFlags::CLOEXEC);
        let (lead, follow) = (event()?, event()?);
        let (lead_too, follow_too) = (lead.try_clone()?, follow.try_clone()?);
        let ours = Self { socket, tcp: tcp.into(), pipe_in, pipe_out, own_event: lead, other_event: follow };
        let theirs = Self {
            socket: their_socket,
            tcp: their_tcp.into(),
            pipe_in: their_pipe_in,
            pipe_out: their_pipe_out,
            own_event: follow_too,
            other_event: lead_too,
        };
        Ok([ours, theirs])
    }

    fn fds(&self) -> [BorrowedFd<'_>; 6] {
        let Self { socket, tcp, pipe_in, pipe_out, own_event, other_event } = self;
        [socket, tcp, pipe_in, pipe_out, own_event, other_event].map(|fd| fd.as_fd())
    }

    fn from_fds([socket, tcp, pipe_in, pipe_out, own_event, other_event]: [OwnedFd; 6]) -> Self {
        Self { socket, tcp, pipe_in, pipe_out, own_event, other_event }
    }
}

/// The bare ring, and the control lines of both sides.
#[derive(Debug)]
pub struct Bare {
    /// What this side sends.
    pub tx: ring::Producer,
    /// What this side receives.
    pub rx: ring::Consumer,
    /// Where the other side's next message will be: the line to watch.
    pub slots: *const ring::Slot,
    /// How many messages were received.
    pub received: u32,
    own: *const ring::Control,
    other: *const ring::Control,
}

impl Bare {
    /// Own control lines.
    pub fn own(&self) -> &ring::Control {
        // SAFETY: aligned atomics in the own arena, mapped while the `End` lives.
        unsafe { &*self.own }
    }

    /// The other side's control lines.
    pub fn other(&self) -> &ring::Control {
        // SAFETY: aligned atomics in the peer's window, mapped while the `End` lives; they are only loaded.
        unsafe { &*self.other }
    }
}

/// One side's access to everything that is measured.
#[derive(Debug)]
pub struct End {
    /// Which side it is.
    pub side: Side,
    /// The cores that this process may use.
    pub allowed: Vec<usize>,
    /// The domain's memory.
    pub memory: Memory,
    /// The lanes to the other side.
    pub lanes: Vec<Lane>,
    /// The bare ring and the words of the floor.
    pub bare: Bare,
    /// The floor's words count on from here.
    pub exchanged: u32,
    /// What the kernel offers.
    pub kernel: Kernel,
    /// Memory that both sides write.
    pub shared: Shared,
    /// Positions in the foreign rings.
    pub foreign: super::channel::Positions,
    /// A number that both sides know and no other run has.
    #[cfg_attr(not(feature = "iceoryx2"), expect(dead_code, reason = "names iceoryx2's services"))]
    pub run: u32,
    /// Many domains that talk to one, when they have been asked for.
    pub fan: Option<super::fan::Fan>,
    /// Ports of iceoryx2, from their first use on.
    #[cfg(feature = "iceoryx2")]
    pub iceoryx: Option<super::channel::iceoryx::Ports>,
    _window: Arc<Window>,
}

impl End {
    /// Exchanges arenas and descriptors with the other side, and connects. Nobody is pinned yet.
    pub fn meet(control: &mut Control, side: Side) -> Result<Self, Failure> {
        let allowed = machine::allowed_cores()?;
        let (kernel, shared, run) = meet_peers(control, side)?;
        let (me, peer) = (side.id()?, side.other().id()?);
        let plan = |link, lane: usize| LanePlan { link, lane: lane as u16, slots: SLOTS };
        let plans: Vec<_> = (0..LANES).map(|lane| plan(1, lane)).chain([plan(BARE, 0)]).collect();
        let (file, raw) = memory::create("bench", me, ARENA_BYTES)?;
        // SAFETY: fresh memory from the platform, which nobody can write but through this arena.
        let arena = unsafe { OwnArena::format(raw, me, &plans)? };
        let bells: Vec<_> = (0..LANES).map(|_| Bell::new().map(Arc::new)).collect::<Result<_, _>>()?;
        let fds: Vec<_> = std::iter::once(file.as_fd()).chain(bells.iter().map(|bell| bell.as_fd())).collect();
        control.say(&Meeting::Domain, &fds)?;
        let (Meeting::Domain, theirs) = control.hear()? else { return Err("no domain was offered".into()) };
        let mut theirs = theirs.into_iter();
        let file = theirs.next().ok_or("an offer without an arena")?;
        let window = Arc::new(memory::open(file.as_fd(), peer, ARENA_BYTES)?);
        let memory = Memory::new(arena, Arc::default());
        memory.windows().insert(window.clone());
        let places = memory.arena().lanes().to_vec();
        let mut lanes = Vec::new();
        for ((place, bell), ringer) in places.iter().zip(bells).zip(theirs) {
            lanes.push(begin(&memory, *place, bell, peer, Bell::from_fd(ringer)));
        }
        if lanes.len() != LANES {
            return Err(format!("{} lanes instead of {LANES}", lanes.len()).into());
        }
        lanes.iter_mut().try_for_each(|lane| spin("lane", || lane.change()).map(drop))?;
        let bare = bare(&memory, &window, places.last().ok_or("no place for the bare ring")?)?;
        Ok(Self {
            side,
            allowed,
            memory,
            lanes,
            bare,
            exchanged: 0,
            kernel,
            shared,
            foreign: Default::default(),
            run,
            fan: None,
            #[cfg(feature = "iceoryx2")]
            iceoryx: None,
            _window: window,
        })
    }
}

/// The ends of what Fido is compared with.
fn meet_peers(control: &mut Control, side: Side) -> Result<(Kernel, Shared, u32), Failure> {
    if side == Side::Lead {
        let [ours, theirs] = Kernel::pair()?;
        let (file, run) = (Shared::create()?, std::process::id());
        let fds: Vec<_> = theirs.fds().into_iter().chain([file.as_fd()]).collect();
        control.say(&Meeting::Peers { run }, &fds)?;
        return Ok((ours, Shared::map(file.as_fd())?, run));
    }
    let (Meeting::Peers { run }, mut fds) = control.hear()? else { return Err("no peers were offered".into()) };
    let file = fds.pop().ok_or("an offer without memory")?;
    let fds = fds.try_into().map_err(|fds: Vec<_>| format!("an offer of {} descriptors", fds.len()))?;
    Ok((Kernel::from_fds(fds), Shared::map(file.as_fd())?, run))
}

fn bare(memory: &Memory, window: &Window, place: &LanePlace) -> Result<Bare, Failure> {
    let at = |window: &Window, offset, len: usize| {
        window.at(offset, len as u64).map(|place| place.as_ptr()).ok_or("the place is outside the arena")
    };
    let (lines, ring) = (size_of::<ring::Control>(), SLOTS as usize * size_of::<ring::Slot>());
    let own = memory.arena().window();
    let slots = at(window, place.ring, ring)?.cast();
    Ok(Bare {
        // SAFETY: the place of a ring in the own arena, which the `End` keeps mapped; the other side has not begun.
        tx: unsafe { ring::Producer::new(at(own, place.ring, ring)?.cast(), SLOTS) },
        // SAFETY: the same place in the peer's arena (both have the same layout), which the `End` keeps mapped.
        rx: unsafe { ring::Consumer::new(slots, SLOTS) },
        slots,
        received: 0,
        own: at(own, place.control, lines)?.cast(),
        other: at(window, place.control, lines)?.cast(),
    })
}

/// A lane with its session begun on this side.
pub fn begin(memory: &Memory, place: LanePlace, bell: Arc<Bell>, peer: DomainId, ringer: Bell) -> Lane {
    let mailbox = Arc::new(Mailbox::new(bell));
    mailbox.put(News::Up(peer, Box::new(ringer)));
    Lane::new(LaneSetup {
        name: format!("bench-{peer}[{}]", place.plan.lane),
        place,
        transport: Transport::Pointer,
        memory: memory.clone(),
        mailbox,
        fence: Arc::new(Passes::default()),
    })
}
