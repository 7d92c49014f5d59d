//! A component's view of its domain: its memory, its lanes, its settings, and what becomes of its peers.
//!
//! [`Domain::join`] introduces the process to the manager, makes the arena and starts a control thread. That thread
//! maps windows, tells the lanes what becomes of their peers and drops windows when their fence is passed; the data
//! path never waits for it.

mod fences;
mod notices;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use serde::de::DeserializeOwned;

use crate::addr::DomainId;
use crate::arena::{ArenaError, LanePlan, OwnArena};
use crate::assignment::{Assignment, LinkAssignment};
use crate::bell::Bell;
use crate::crew::{Crew, CrewError, Job, Limits};
use crate::lane::{Lane, LaneSetup, Mailbox, News};
use crate::memory::Memory;
use crate::platform::host::HostPlatform;
use crate::platform::xen::XenPlatform;
use crate::platform::{Event, Platform, PlatformError, Reporter};
use crate::waiter::Waiter;
use crate::window::{Window, WindowTable};
use fences::FenceDesk;
use notices::Board;
pub use notices::{Notice, Notices};

/// Why a domain cannot be what its component wants.
#[derive(Debug, thiserror::Error)]
pub enum DomainError {
    /// The platform failed.
    #[error(transparent)]
    Platform(#[from] PlatformError),
    /// The arena cannot be laid out as assigned.
    #[error("the arena cannot be laid out: {0}")]
    Arena(#[from] ArenaError),
    /// The system has no descriptor or thread left.
    #[error("the domain cannot be set up: {0}")]
    System(#[from] io::Error),
    /// The manifest links this domain otherwise.
    #[error("domain {domain} has no link {link:?}; its links are: {known}")]
    NoLink {
        /// This domain.
        domain: String,
        /// What the component asked for.
        link: String,
        /// What there is.
        known: String,
    },
    /// The link has fewer lanes, or the lane has been taken already.
    #[error("link {link:?} has no lane {lane} to take: it has {lanes}, each can be taken once")]
    NoLane {
        /// The link.
        link: String,
        /// What the component asked for.
        lane: u16,
        /// How many there are.
        lanes: u16,
    },
    /// The component says it is ready but leaves lanes lying: their peers would wait for ever.
    #[error("the component does not serve {0}; set `lanes` in the manifest to what it serves")]
    UnusedLane(String),
    /// A setting in the manifest is missing or wrong.
    #[error("setting `params.{name}` of domain {domain}: {reason}")]
    Param {
        /// This domain.
        domain: String,
        /// The setting.
        name: String,
        /// What is wrong.
        reason: String,
    },
}

/// A lane that waits to be taken, or has been.
struct Port {
    link: u32,
    lane: u16,
    mailbox: Arc<Mailbox>,
    setup: Option<LaneSetup>,
}

/// What the component and the control thread share.
struct Shared {
    ports: Mutex<Vec<Port>>,
    board: Board,
    windows: Arc<WindowTable>,
}

/// This process as a domain of an appliance.
pub struct Domain {
    assignment: Assignment,
    memory: Memory,
    shared: Arc<Shared>,
    reporter: Arc<dyn Reporter>,
    predecessor: Mutex<Option<Arc<Window>>>,
}

impl Domain {
    /// Joins the appliance on the platform that this program finds itself on: `host` if a manager has started it, else
    /// `xen` if this is a Xen guest.
    ///
    /// # Errors
    /// [`DomainError`] with what to do about it.
    pub fn join() -> Result<Self, DomainError> {
        match HostPlatform::join() {
            Err(PlatformError::NoManager(_)) if XenPlatform::is_here() => Self::on(Box::new(XenPlatform::join()?)),
            joined => Self::on(Box::new(joined?)),
        }
    }

    /// Joins the appliance on any platform.
    ///
    /// # Errors
    /// [`DomainError`] with what to do about it.
    pub fn on(mut platform: Box<dyn Platform>) -> Result<Self, DomainError> {
        let (domain, control) = Self::stepped(platform.as_mut())?;
        let follow = move || control.follow(platform.as_mut());
        std::thread::Builder::new().name("fido-control".into()).spawn(follow)?;
        Ok(domain)
    }

    /// Joins the appliance without a thread of its own: whoever holds the [`Control`] feeds it the platform's events.
    /// For simulators, in which every step is chosen.
    ///
    /// # Errors
    /// [`DomainError`] with what to do about it.
    pub fn stepped(platform: &mut dyn Platform) -> Result<(Self, Control), DomainError> {
        let assignment = platform.assignment().clone();
        let id = assignment.id.check().ok_or_else(|| {
            PlatformError::Unexpected(format!("an assignment with {:?}, which is no incarnation", assignment.id))
        })?;
        let plans: Vec<LanePlan> = assignment.links.iter().flat_map(lane_plans).collect();
        let predecessor = Mutex::new(platform.take_predecessor().map(Arc::new));
        let raw = platform.create_arena(id, assignment.arena_bytes)?;
        // SAFETY: fresh memory from the platform, which by its contract only this domain can write.
        let arena = unsafe { OwnArena::format(raw, id, &plans)? };
        let windows = Arc::new(WindowTable::default());
        let memory = Memory::new(arena, windows.clone());
        let reporter = platform.reporter();
        let fences = Arc::new(FenceDesk::new(&assignment.links, reporter.clone()));
        let (ports, bells) = ports(platform, &assignment.links, &memory, &fences)?;
        platform.offer(&bells)?;
        let shared = Arc::new(Shared { ports: Mutex::new(ports), board: Board::default(), windows });
        let control = Control { shared: shared.clone(), links: assignment.links.clone(), reporter: reporter.clone() };
        Ok((Self { assignment, memory, shared, reporter, predecessor }, control))
    }

    /// What the manager has told this domain about itself.
    pub fn assignment(&self) -> &Assignment {
        &self.assignment
    }

    /// The domain's name.
    pub fn name(&self) -> &str {
        &self.assignment.domain
    }

    /// The domain's memory, for one thread; call it again for another.
    pub fn memory(&self) -> Memory {
        self.memory.clone()
    }

    /// The arena of the incarnation before this one, if the manifest says `inherit = true` and there is one: the last
    /// that has been ready. Once; it is unmapped when the last one who holds it lets go.
    /// [`crate::heritage::Inherited::of`] reads what it left.
    pub fn take_predecessor(&self) -> Option<Arc<Window>> {
        self.predecessor.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// A waiter with the strategy of the manifest, for one thread.
    ///
    /// # Errors
    /// The kernel's, if there is no descriptor left.
    pub fn waiter(&self) -> io::Result<Waiter> {
        Ok(Waiter::among(self.assignment.wait, self.assignment.processors.into())?.counting_in(&self.memory))
    }

    /// Threads that share out `jobs` by their load, each with a waiter as the manifest says.
    ///
    /// # Errors
    /// [`CrewError`] if the limits make no sense, or the first threads cannot be started.
    pub fn crew<J: Job + 'static>(&self, limits: Limits, jobs: Vec<J>) -> Result<Crew<J>, CrewError> {
        let (wait, processors, memory) = (self.assignment.wait, self.assignment.processors.into(), self.memory());
        Crew::start(limits, move || Ok(Waiter::among(wait, processors)?.counting_in(&memory)), jobs)
    }

    /// One of the domain's links.
    ///
    /// # Errors
    /// [`DomainError::NoLink`] if the manifest has no such link for this domain.
    pub fn link(&self, name: &str) -> Result<&LinkAssignment, DomainError> {
        self.assignment.links.iter().find(|link| link.name == name).ok_or_else(|| DomainError::NoLink {
            domain: self.assignment.domain.clone(),
            link: name.to_owned(),
            known: self.assignment.links.iter().map(|link| link.name.as_str()).collect::<Vec<_>>().join(", "),
        })
    }

    /// A lane of a link. It can be taken before the peer is there: [`Lane::change`] tells when it comes.
    ///
    /// # Errors
    /// [`DomainError`] if there is no such link or lane, or it has been taken.
    pub fn take_lane(&self, link: &str, lane: u16) -> Result<Lane, DomainError> {
        let link = self.link(link)?;
        let mut ports = self.shared.ports.lock().unwrap_or_else(PoisonError::into_inner);
        let port = ports.iter_mut().find(|port| port.link == link.link && port.lane == lane);
        let setup = port.and_then(|port| port.setup.take()).ok_or_else(|| DomainError::NoLane {
            link: link.name.clone(),
            lane,
            lanes: link.lanes,
        })?;
        Ok(Lane::new(setup))
    }

    /// All lanes of a link, in order.
    ///
    /// # Errors
    /// [`DomainError`] if there is no such link, or one of its lanes has been taken.
    pub fn take_lanes(&self, link: &str) -> Result<Vec<Lane>, DomainError> {
        (0..self.link(link)?.lanes).map(|lane| self.take_lane(link, lane)).collect()
    }

    /// A setting of this domain from the manifest (`[domain.NAME.params]`), or `default` if it is not there.
    ///
    /// # Errors
    /// [`DomainError::Param`] if it is there but of the wrong kind.
    pub fn param<T: DeserializeOwned>(&self, name: &str, default: T) -> Result<T, DomainError> {
        Ok(self.optional_param(name)?.unwrap_or(default))
    }

    /// A setting of this domain from the manifest that must be there.
    ///
    /// # Errors
    /// [`DomainError::Param`] if it is missing or of the wrong kind.
    pub fn required_param<T: DeserializeOwned>(&self, name: &str) -> Result<T, DomainError> {
        self.optional_param(name)?.ok_or_else(|| self.bad_param(name, "it is missing".into()))
    }

    fn optional_param<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, DomainError> {
        let Some(value) = self.assignment.params.get(name) else { return Ok(None) };
        serde_json::from_value(value.clone()).map(Some).map_err(|error| self.bad_param(name, error.to_string()))
    }

    /// The error for a setting whose value makes no sense.
    pub fn bad_param(&self, name: &str, reason: String) -> DomainError {
        DomainError::Param { domain: self.assignment.domain.clone(), name: name.to_owned(), reason }
    }

    /// Tells the manager that the component serves; `notes` say what others may want to know, such as the address it
    /// listens on.
    ///
    /// # Errors
    /// [`DomainError::UnusedLane`] if a lane was not taken; [`DomainError::Platform`] if the manager is gone.
    pub fn ready(&self, notes: &[(&str, String)]) -> Result<(), DomainError> {
        let unused = self.shared.ports.lock().unwrap_or_else(PoisonError::into_inner).iter().find_map(|port| {
            let setup = port.setup.as_ref()?;
            Some(setup.name.clone())
        });
        if let Some(name) = unused {
            return Err(DomainError::UnusedLane(name));
        }
        let notes: BTreeMap<_, _> = notes.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        Ok(self.reporter.ready(&notes)?)
    }

    /// What becomes of the appliance, for one thread; call it again for another.
    ///
    /// # Errors
    /// The kernel's, if there is no descriptor left.
    pub fn notices(&self) -> io::Result<Notices> {
        self.shared.board.subscribe()
    }
}

impl std::fmt::Debug for Domain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Domain({} {})", self.assignment.domain, self.memory.id())
    }
}

fn lane_plans(link: &LinkAssignment) -> impl Iterator<Item = LanePlan> {
    let (number, slots) = (link.link, link.slots);
    (0..link.lanes).map(move |lane| LanePlan { link: number, lane, slots })
}

type Bells = Vec<(u32, Vec<Arc<Bell>>)>;

/// A port for every lane, and the bells that wake them, by link.
fn ports(
    platform: &mut dyn Platform,
    links: &[LinkAssignment],
    memory: &Memory,
    fences: &Arc<FenceDesk>,
) -> Result<(Vec<Port>, Bells), PlatformError> {
    let mut places = memory.arena().lanes().iter();
    let (mut ports, mut all_bells) = (Vec::new(), Vec::new());
    for link in links {
        let mut bells = Vec::new();
        for (lane, place) in (0..link.lanes).zip(&mut places) {
            let bell = Arc::new(platform.bell(link.link, lane)?);
            let mailbox = Arc::new(Mailbox::new(bell.clone()));
            bells.push(bell);
            let setup = LaneSetup {
                name: format!("{}[{lane}]", link.name),
                place: *place,
                transport: link.transport,
                memory: memory.clone(),
                mailbox: mailbox.clone(),
                fence: fences.clone(),
            };
            ports.push(Port { link: link.link, lane, mailbox, setup: Some(setup) });
        }
        all_bells.push((link.link, bells));
    }
    Ok((ports, all_bells))
}

/// The domain's ear to the manager: it maps windows, tells the lanes what becomes of their peers, and drops windows
/// whose fence is passed. A control thread's, or a simulator's.
pub struct Control {
    shared: Arc<Shared>,
    links: Vec<LinkAssignment>,
    reporter: Arc<dyn Reporter>,
}

impl Control {
    /// The control thread: follows the platform until the end of the appliance.
    fn follow(&self, platform: &mut dyn Platform) {
        loop {
            match platform.next_event() {
                Ok(event) => self.take_in(event),
                Err(PlatformError::ManagerGone) => return self.take_in(Event::Shutdown),
                Err(error) => tracing::error!(%error, "news from the manager are passed over"),
            }
        }
    }

    /// Takes one event in. Never blocks.
    pub fn take_in(&self, event: Event) {
        match event {
            Event::Window(window) => {
                let owner = window.id();
                self.shared.windows.insert(Arc::new(window));
                if let Err(error) = self.reporter.mapped(owner) {
                    tracing::warn!(%owner, %error, "the manager was not told that a window is in place");
                }
            }
            Event::Link { link, peer, ringers } => self.link_up(link, peer, ringers),
            Event::Died(id) => {
                tracing::info!(peer = %id, "a peer is dead");
                self.tell_lanes(|| News::Died(id), id);
                self.shared.board.post(Notice::Died(id));
            }
            Event::Fenced(id) => {
                self.shared.windows.remove(id);
                self.tell_lanes(|| News::Fenced(id), id);
            }
            Event::Shutdown => self.shared.board.post(Notice::Shutdown),
        }
    }

    fn link_up(&self, link: u32, peer: DomainId, ringers: Vec<Box<dyn crate::bell::Ringer>>) {
        let ports = self.shared.ports.lock().unwrap_or_else(PoisonError::into_inner);
        for (lane, ringer) in (0u16..).zip(ringers) {
            if let Some(port) = ports.iter().find(|port| port.link == link && port.lane == lane) {
                port.mailbox.put(News::Up(peer, ringer));
            }
        }
    }

    /// Tells every lane that leads to that domain.
    fn tell_lanes(&self, news: impl Fn() -> News, id: DomainId) {
        let ports = self.shared.ports.lock().unwrap_or_else(PoisonError::into_inner);
        for link in self.links.iter().filter(|link| link.peer_slot == id.slot.number()) {
            for port in ports.iter().filter(|port| port.link == link.link) {
                match &port.setup {
                    // Nobody has taken the lane: it holds nothing of anybody, and passes every fence here and now.
                    Some(setup) => port.mailbox.put_untaken(news(), setup.fence.as_ref()),
                    None => port.mailbox.put(news()),
                }
            }
        }
    }
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Control({} links)", self.links.len())
    }
}
