//! A guest as a domain: follows what the manager tells in xenstore, shares its arena, maps those of others, connects
//! bells.

#[cfg(not(loom))]
#[cfg(test)]
mod machine;
#[cfg(not(loom))]
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::devices::{Devices, KernelDevices, LaneNumber};
use super::error::XenError;
use super::follower::{Follower, Step};
use super::layout::{self, DomainNode, LAYOUT_VERSION, LayoutError, Passed};
use super::nodes::Nodes;
use super::store::{Store, StoreError};
use super::window::Owner;
use crate::addr::DomainId;
use crate::arena::{Peer, RawArena};
use crate::assignment::Assignment;
use crate::bell::{Bell, Ringer};
use crate::platform::{Event, Platform, PlatformError, Reporter};
use crate::window::Window;

/// How long a guest waits for the manager to tell it what it is to be.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a guest without the kernel module waits to be told its only reader, which may have to be created yet.
const PAIR_PATIENCE: Duration = Duration::from_secs(60);

/// The platform of Xen guests, from within a domain.
pub struct XenPlatform {
    nodes: Nodes,
    devices: Box<dyn Devices>,
    assignment: Assignment,
    own_number: u16,
    follower: Follower,
    steps: VecDeque<Step>,
    /// Numbers of readers that the arena is granted to.
    readers: HashMap<DomainId, u16>,
    peers: Arc<Mutex<Peers>>,
    arena: Option<layout::Arena>,
    /// What the predecessor left, until it is asked for.
    predecessor: Option<Window>,
}

/// What may be reported of whom: a word that comes too late must leave no node behind.
#[derive(Debug, Default)]
struct Peers {
    mapped: HashSet<DomainId>,
    dead: HashSet<DomainId>,
}

impl XenPlatform {
    /// Whether this machine can be a Xen guest: there is a way to xenstore.
    pub fn is_here() -> bool {
        super::store::DEVICES.iter().any(|path| std::path::Path::new(path).exists())
    }

    /// Waits for the manager in dom0 to tell this guest what it is to be.
    ///
    /// # Errors
    /// [`PlatformError`]: no xenstore, no manager, or what it tells makes no sense.
    pub fn join() -> Result<Self, PlatformError> {
        let store = Store::connect().map_err(XenError::from)?;
        Self::over(store, "", Box::new(KernelDevices::default()), PATIENCE)
    }

    /// As [`XenPlatform::join`], over a connection, for the nodes below `home` (empty for the guest's own), with what is
    /// behind `devices`; waits for the manager as long as `patience`.
    ///
    /// # Errors
    /// [`PlatformError`]: no manager, or what it tells makes no sense.
    pub fn over(
        store: Store,
        home: &str,
        devices: Box<dyn Devices>,
        patience: Duration,
    ) -> Result<Self, PlatformError> {
        let nodes = Nodes::new(store, home.to_owned());
        nodes.watch().map_err(XenError::from)?;
        let begin = || -> Result<_, XenError> {
            nodes.clear()?;
            tracing::info!(patience = patience.as_secs(), "waiting for what the manager in dom0 says this domain is");
            if wait(nodes.store(), patience, || Ok(nodes.is_announced()?.then_some(())))?.is_none() {
                return Ok(None);
            }
            let found = (nodes.assignment()?, nodes.own_number()?);
            nodes.say(DomainNode::Version, &LAYOUT_VERSION)?;
            Ok(Some(found))
        };
        let Some((assignment, own_number)) = begin().inspect_err(|error| nodes.complain(error))? else {
            let node = layout::ManagerNode::Version.path(home);
            return Err(PlatformError::NoManager(format!("within {} s nobody wrote {node}", patience.as_secs())));
        };
        let (mut devices, mut predecessor) = (devices, None);
        match open_predecessor(&nodes, devices.as_mut(), own_number) {
            Ok(window) => predecessor = window,
            // A domain can live without.
            Err(error) => {
                tracing::warn!(%error, "what the predecessor has left cannot be had");
                nodes.complain(&error);
            }
        }
        Ok(Self {
            nodes,
            devices,
            assignment,
            own_number,
            follower: Follower::default(),
            steps: VecDeque::new(),
            readers: HashMap::new(),
            peers: Arc::default(),
            arena: None,
            predecessor,
        })
    }

    /// One step. `None` if it is nothing that the domain has to know.
    fn carry_out(&mut self, step: Step) -> Result<Option<Event>, XenError> {
        match step {
            Step::Grant { reader, domain } => {
                let root = self.devices.grant(domain)?;
                self.readers.insert(reader, domain);
                self.nodes.say(DomainNode::Root(reader), &root)?;
            }
            Step::Revoke(reader) => {
                // Whatever xenstore says to it: a grant that is not taken back now never will be.
                let unsaid = self.nodes.unsay(DomainNode::Root(reader));
                if let Some(domain) = self.readers.remove(&reader) {
                    self.devices.revoke(domain)?;
                }
                unsaid?;
            }
            Step::Map { peer, domain, root, bytes } => {
                let owner = Owner { id: peer, domain, bytes };
                let window = self.devices.map(owner, self.own_number, root)?;
                self.peers().mapped.insert(peer);
                return Ok(Some(Event::Window(window)));
            }
            Step::Open { link, peer, domain } => {
                let (mut ports, mut ringers) = (Vec::new(), Vec::new());
                for lane in self.lanes(link) {
                    let (port, ringer) = self.devices.offer_port(lane, domain)?;
                    ports.push(port);
                    ringers.push(ringer);
                }
                self.nodes.say(DomainNode::Ports { link, peer }, &ports)?;
                return Ok(Some(Event::Link { link, peer, ringers }));
            }
            Step::Bind { link, peer, domain, ports } => {
                let lanes: Vec<_> = self.lanes(link).collect();
                if lanes.len() != ports.len() {
                    return Err(XenError::Lanes { link, own: lanes.len(), ports: ports.len() });
                }
                let bind = |(lane, port)| self.devices.bind_port(lane, domain, port);
                let ringers: Vec<Box<dyn Ringer>> = lanes.into_iter().zip(ports).map(bind).collect::<Result<_, _>>()?;
                return Ok(Some(Event::Link { link, peer, ringers }));
            }
            // The lanes drop the ports themselves: they hear of the death.
            Step::Unlink { link, peer } => self.nodes.unsay(DomainNode::Ports { link, peer })?,
            Step::Died(peer) => {
                self.peers().dead.insert(peer);
                return Ok(Some(Event::Died(peer)));
            }
            Step::Fenced(peer) => {
                let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
                peers.mapped.remove(&peer);
                peers.dead.remove(&peer);
                self.nodes.unsay(DomainNode::Mapped(peer))?;
                self.nodes.unsay(DomainNode::Passed(peer))?;
                drop(peers);
                return Ok(Some(Event::Fenced(peer)));
            }
            Step::Stop => return Ok(Some(Event::Shutdown)),
        }
        Ok(None)
    }

    fn peers(&self) -> std::sync::MutexGuard<'_, Peers> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lanes(&self, link: u32) -> impl Iterator<Item = LaneNumber> + use<> {
        let lanes = self.assignment.links.iter().find(|known| known.link == link).map_or(0, |link| link.lanes);
        (0..lanes).map(move |lane| (link, lane))
    }

    /// Waits for a change and finds the steps that it means.
    fn look(&mut self) -> Result<(), PlatformError> {
        let (snapshot, mut errors) = self.nodes.snapshot().map_err(ended)?;
        let (steps, more) = self.follower.follow(snapshot);
        errors.extend(more);
        for error in errors {
            tracing::error!(%error, "a node of the manager is passed over");
            self.nodes.complain(&error);
        }
        if steps.is_empty() {
            self.nodes.store().wait_event(None).map_err(ended)?;
            // What else has come means the same: look again.
            while self.nodes.store().poll_event().map_err(ended)?.is_some() {}
        }
        self.steps.extend(steps);
        Ok(())
    }
}

impl std::fmt::Debug for XenPlatform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "XenPlatform({}, domain {})", self.assignment.domain, self.own_number)
    }
}

/// The window on what an earlier incarnation has left.
fn open_predecessor(nodes: &Nodes, devices: &mut dyn Devices, own_number: u16) -> Result<Option<Window>, XenError> {
    let Some((owner, root)) = nodes.predecessor()? else { return Ok(None) };
    let window = devices.map(owner, own_number, root)?;
    Peer::read(&window)
        .map_err(|error| XenError::System { step: "read a heritage", source: io::Error::other(error) })?;
    Ok(Some(window))
}

/// A connection that is at its end means that nothing will be heard of the manager any more.
fn ended(error: StoreError) -> PlatformError {
    tracing::error!(%error, "the manager cannot be heard any more");
    PlatformError::ManagerGone
}

/// Waits until `check` has something, looking whenever a watch fires; `None` when the time is over.
fn wait<T>(
    store: &Store,
    patience: Duration,
    mut check: impl FnMut() -> Result<Option<T>, XenError>,
) -> Result<Option<T>, XenError> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = check()? {
            return Ok(Some(found));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || store.wait_event(Some(left))?.is_none() {
            return Ok(None);
        }
    }
}

impl Platform for XenPlatform {
    fn assignment(&self) -> &Assignment {
        &self.assignment
    }

    fn take_predecessor(&mut self) -> Option<Window> {
        self.predecessor.take()
    }

    fn create_arena(&mut self, id: DomainId, bytes: u64) -> Result<RawArena, PlatformError> {
        let nodes = &self.nodes;
        let mut pair = || {
            let mut look = || Ok(nodes.pair()?);
            wait(nodes.store(), PAIR_PATIENCE, &mut look)
        };
        let created = self.devices.create_arena(id, bytes, &mut pair);
        let (raw, provider) = created.inspect_err(|error| nodes.complain(error))?;
        self.arena = Some(layout::Arena { bytes, provider });
        Ok(raw)
    }

    fn bell(&mut self, link: u32, lane: u16) -> Result<Bell, PlatformError> {
        Ok(self.devices.bell((link, lane)).inspect_err(|error| self.nodes.complain(error))?)
    }

    fn offer(&mut self, bells: &[(u32, Vec<Arc<Bell>>)]) -> Result<(), PlatformError> {
        let Some(arena) = self.arena.take() else {
            return Err(PlatformError::Unexpected("nothing, but the arena is to be offered before it is made".into()));
        };
        let mut say = || -> Result<(), XenError> {
            if let Some(frame) = self.devices.root_frame()? {
                self.nodes.say(DomainNode::Frames, &frame)?;
            }
            // Before anybody hears of the arena: whoever dies from then on leaves it.
            if let Some(keeper) = self.nodes.keeper()? {
                let root = self.devices.grant(keeper)?;
                self.nodes.say(DomainNode::Kept, &root)?;
            }
            self.nodes.say(DomainNode::Arena, &arena)?;
            for (link, bells) in bells {
                self.nodes.say(DomainNode::Bells(*link), &bells.len())?;
            }
            Ok(())
        };
        Ok(say().inspect_err(|error| self.nodes.complain(error))?)
    }

    fn reporter(&self) -> Arc<dyn Reporter> {
        Arc::new(XenReporter { nodes: self.nodes.clone(), peers: self.peers.clone() })
    }

    fn next_event(&mut self) -> Result<Event, PlatformError> {
        loop {
            while let Some(step) = self.steps.pop_front() {
                match self.carry_out(step) {
                    Ok(Some(event)) => return Ok(event),
                    Ok(None) => {}
                    Err(XenError::Store(error) | XenError::Layout(LayoutError::Store(error)))
                        if error.is_end_of_connection() =>
                    {
                        return Err(ended(error));
                    }
                    Err(error) => {
                        self.nodes.complain(&error);
                        return Err(error.into());
                    }
                }
            }
            self.look()?;
        }
    }
}

struct XenReporter {
    nodes: Nodes,
    peers: Arc<Mutex<Peers>>,
}

impl Reporter for XenReporter {
    fn ready(&self, notes: &BTreeMap<String, String>) -> Result<(), PlatformError> {
        Ok(self.nodes.ready(notes).map_err(XenError::from)?)
    }

    fn mapped(&self, owner: DomainId) -> Result<(), PlatformError> {
        let peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if peers.mapped.contains(&owner) {
            self.nodes.say(DomainNode::Mapped(owner), &BTreeMap::<String, ()>::new()).map_err(XenError::from)?;
        }
        Ok(())
    }

    fn passed(&self, dead: DomainId) -> Result<(), PlatformError> {
        let peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if peers.dead.contains(&dead) {
            self.nodes.say(DomainNode::Passed(dead), &Passed::default()).map_err(XenError::from)?;
        }
        Ok(())
    }
}
