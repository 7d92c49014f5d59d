//! The guests' part in the scenario `handshake`: one that leaves between two nodes of the handshake, or says there what is
//! not so, and two that it has to do with.
//!
//! ```text
//! good ──"first"── bad ──"second"── last
//! ```
//!
//! The bad one does something else in each of its lives ([`LIVES`]), and after those it behaves: it asks a question over
//! each link and says so in its notes. The others know nothing of all that.

use std::io;
use std::thread::sleep;
use std::time::Duration;

use fido_core::addr::DomainId;
use fido_core::arena::RawArena;
use fido_core::assignment::Assignment;
use fido_core::domain::{Domain, Notice};
use fido_core::lane::{Change, Lane};
use fido_core::platform::xen::arena::{Provider, SharedArena};
use fido_core::platform::xen::layout::{
    self, Arena, DOMAIN_BASE, DomainNode, LAYOUT_VERSION, LayoutError, MANAGER_BASE, ManagerNode, encode,
};
use fido_core::platform::xen::store::Store;

use crate::pace;

/// The domains' names.
pub const ROLES: [&str; 3] = ["good", "bad", "last"];
/// The links' names.
pub const LINKS: [&str; 2] = ["first", "second"];
/// The note of who has been answered over each link.
pub const ANSWERED: &str = "answered";

/// How the bad one lives.
#[derive(Clone, Copy, Debug)]
pub enum Life {
    /// Writes a node that does not exist in the layout.
    Nonsense,
    /// Grants its arena and is destroyed when it is to connect a link: a directory, and no port.
    NoPort,
    /// Says ports and is destroyed before it has granted its arena: ports, and no directory.
    NoDirectory,
    /// Says references that it has not granted.
    Reference,
    /// Says ports that it does not have.
    Port,
}

/// Its lives, in order.
pub const LIVES: [Life; 5] = [Life::Nonsense, Life::NoPort, Life::NoDirectory, Life::Reference, Life::Port];

/// What the bad one says as its problem where a life is to end.
#[must_use]
pub fn leaves_here(life: Life) -> String {
    format!("{life:?}: it leaves here")
}

/// A reference that no guest of the scenario has granted, and a port that none has made.
const NOTHING: u32 = 100_000;
const TICK: Duration = Duration::from_millis(5);

/// Plays the role that is the domain's name.
///
/// # Errors
/// What the platform says.
pub fn run() -> io::Result<()> {
    let store = Store::connect().map_err(io::Error::other)?;
    let assignment = loop {
        if store.now().read_if_any(&ManagerNode::Version.path("")).map_err(io::Error::other)?.is_some() {
            let path = ManagerNode::Assignment.path("");
            let document = layout::read_document(&store.now(), &path).map_err(io::Error::other)?;
            break layout::decode::<Assignment>("assignment", &document).map_err(io::Error::other)?;
        }
        sleep(TICK);
    };
    let life = LIVES.get(usize::from(assignment.id.generation).saturating_sub(1));
    match (assignment.domain.as_str(), life) {
        ("good", _) => answer(LINKS[0]),
        ("last", _) => answer(LINKS[1]),
        ("bad", None) => ask(),
        ("bad", Some(life)) => Bad::new(store, assignment)?.live(*life),
        (other, _) => Err(io::Error::other(format!("no role is called {other:?}"))),
    }
}

/// Answers until the shutdown.
fn answer(link: &str) -> io::Result<()> {
    let domain = Domain::join().map_err(io::Error::other)?;
    let mut lane = domain.take_lane(link, 0).map_err(io::Error::other)?;
    domain.ready(&[]).map_err(io::Error::other)?;
    serve(&domain, &mut [&mut lane])
}

/// Asks once over each link, and says so.
fn ask() -> io::Result<()> {
    let domain = Domain::join().map_err(io::Error::other)?;
    let mut lanes = Vec::new();
    for link in LINKS {
        let mut lane = domain.take_lane(link, 0).map_err(io::Error::other)?;
        while !matches!(lane.change(), Some(Change::Up(_))) {
            sleep(TICK);
        }
        pace::ask(&mut lane, 1)?;
        lanes.push(lane);
    }
    domain.ready(&[(ANSWERED, lanes.len().to_string())]).map_err(io::Error::other)?;
    serve(&domain, &mut lanes.iter_mut().collect::<Vec<_>>())
}

fn serve(domain: &Domain, lanes: &mut [&mut Lane]) -> io::Result<()> {
    let mut notices = domain.notices()?;
    while notices.poll() != Some(Notice::Shutdown) {
        for lane in &mut *lanes {
            pace::answer(lane, &mut [])?;
        }
        sleep(TICK);
    }
    Ok(())
}

/// A guest that does by hand what a domain does, or not.
struct Bad {
    store: Store,
    assignment: Assignment,
    arena: SharedArena,
    _memory: RawArena,
}

impl Bad {
    fn new(store: Store, assignment: Assignment) -> io::Result<Self> {
        let id = assignment.id.check().ok_or_else(|| io::Error::other("an identity that cannot be"))?;
        let provider = Provider::find(|| Ok(None)).map_err(io::Error::other)?;
        let (arena, memory) = SharedArena::create(provider, id, assignment.arena_bytes).map_err(io::Error::other)?;
        Ok(Self { store, assignment, arena, _memory: memory })
    }

    fn live(mut self, life: Life) -> io::Result<()> {
        self.say(DomainNode::Version, encode("version", &LAYOUT_VERSION))?;
        let provider = self.arena.provider().kind();
        let arena = Arena { bytes: self.assignment.arena_bytes, provider };
        self.say(DomainNode::Arena, encode("arena", &arena))?;
        for link in &self.assignment.links {
            self.say(DomainNode::Bells(link.link), encode("bells", &link.lanes))?;
        }
        let readers = self.wait("readers", 2)?;
        match life {
            Life::Nonsense => {
                self.store.now().write(&format!("{DOMAIN_BASE}/roots/nobody"), b"1").map_err(io::Error::other)?;
            }
            Life::NoDirectory => {
                for peer in readers {
                    let node = DomainNode::Ports { link: self.link_with(peer)?, peer };
                    self.say(node, encode("ports", &[NOTHING]))?;
                }
                self.leave(life)?;
            }
            Life::Reference => {
                for reader in readers {
                    self.say(DomainNode::Root(reader), encode("roots", &NOTHING))?;
                }
            }
            Life::NoPort => {
                self.meet(&readers)?;
                self.wait("links", 1)?;
                self.leave(life)?;
            }
            Life::Port => {
                self.meet(&readers)?;
                // The one with the higher slot binds what this one says.
                let peer = readers.into_iter().max().ok_or_else(|| io::Error::other("no reader"))?;
                let node = DomainNode::Ports { link: self.link_with(peer)?, peer };
                self.say(node, encode("ports", &[NOTHING]))?;
            }
        }
        // Until somebody ends it.
        loop {
            sleep(Duration::from_secs(3600));
        }
    }

    /// Grants the arena to all, and says that it has mapped theirs.
    fn meet(&mut self, readers: &[DomainId]) -> io::Result<()> {
        for &reader in readers {
            let path = ManagerNode::Reader(reader).path("");
            let value = self.store.now().read(&path).map_err(io::Error::other)?;
            let number = layout::decode::<layout::Reader>("readers", &value).map_err(io::Error::other)?.domain;
            let root = self.arena.grant(number).map_err(io::Error::other)?;
            self.say(DomainNode::Root(reader), encode("roots", &root))?;
        }
        for peer in self.wait("peers", readers.len())? {
            self.say(DomainNode::Mapped(peer), Ok(b"{}".to_vec()))?;
        }
        Ok(())
    }

    /// Says that this is where it is to leave: dom0 destroys it then, without a word.
    fn leave(&self, life: Life) -> io::Result<()> {
        self.say(DomainNode::Problem, Ok(leaves_here(life).into_bytes()))
    }

    fn link_with(&self, peer: DomainId) -> io::Result<u32> {
        let link = self.assignment.links.iter().find(|link| link.peer_slot == peer.slot.number());
        link.map(|link| link.link).ok_or_else(|| io::Error::other("no link with that peer"))
    }

    fn say(&self, node: DomainNode, value: Result<Vec<u8>, LayoutError>) -> io::Result<()> {
        self.store.now().write(&node.path(""), &value.map_err(io::Error::other)?).map_err(io::Error::other)
    }

    /// Waits until the manager has written so many nodes in a folder: whom they are about.
    fn wait(&self, folder: &str, count: usize) -> io::Result<Vec<DomainId>> {
        loop {
            let names = self.store.now().children(&format!("{MANAGER_BASE}/{folder}")).map_err(io::Error::other)?;
            let of = |name: &String| match ManagerNode::of(&format!("{folder}/{name}"))? {
                ManagerNode::Reader(id) | ManagerNode::Peer(id) | ManagerNode::Link { peer: id, .. } => Some(id),
                _ => None,
            };
            let found: Vec<_> = names.iter().filter_map(of).collect();
            if found.len() >= count {
                return Ok(found);
            }
            sleep(TICK);
        }
    }
}
