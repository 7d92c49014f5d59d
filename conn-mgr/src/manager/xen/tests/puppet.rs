//! A guest without arenas and channels: follows the manager's nodes as a real one does, and writes what it is told to.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fido_core::addr::DomainId;
use fido_core::assignment::Assignment;
use fido_core::platform::xen::follower::{Follower, Snapshot, Step};
use fido_core::platform::xen::layout::{self, DomainNode, LayoutError, ManagerNode};
use fido_core::platform::xen::store::{Store, StoreError};

/// How a guest behaves.
#[derive(Debug, Clone, Default)]
pub struct Manners {
    /// Values of nodes that are otherwise than they should be; other nodes when all peers are mapped.
    pub says: Vec<(String, String)>,
    pub never_grants: bool,
    pub never_opens: bool,
    /// Its program ends before it is ready.
    pub exits_early: Option<String>,
    /// Its program ends when it is ready.
    pub exits: Option<String>,
}

pub struct Puppet {
    store: Store,
    manners: Manners,
    domains: Vec<String>,
    log: Arc<Mutex<Vec<String>>>,
    assignment: Option<Assignment>,
    mapped: usize,
}

impl Puppet {
    pub fn new(store: Store, manners: Manners, domains: Vec<String>, log: Arc<Mutex<Vec<String>>>) -> Self {
        Self { store, manners, domains, log, assignment: None, mapped: 0 }
    }

    /// Lives until it is switched off, its program ends or xenstore is gone.
    pub fn live(mut self, is_on: &AtomicBool) {
        if let Err(error) = self.try_live(is_on)
            && is_on.load(Ordering::SeqCst)
            && !matches!(&error, LayoutError::Store(error) if error.code().is_none())
        {
            self.log.lock().unwrap().push(format!("a guest failed: {error}"));
        }
    }

    fn try_live(&mut self, is_on: &AtomicBool) -> Result<(), LayoutError> {
        let mut follower = Follower::default();
        self.store.watch("fido", "manager")?;
        while is_on.load(Ordering::SeqCst) {
            self.store.wait_event(Some(Duration::from_millis(20)))?;
            if !self.begin()? {
                continue;
            }
            let (steps, errors) = follower.follow(self.look()?);
            assert!(errors.is_empty(), "the manager has said what makes no sense: {errors:?}");
            for step in steps {
                if step == Step::Stop {
                    return Ok(self.store.now().write("data/fido-exit", b"exit 0")?);
                }
                self.act(step)?;
            }
            let exit = if self.manners.exits_early.is_some() { &self.manners.exits_early } else { &self.manners.exits };
            if let Some(how) = exit {
                return Ok(self.store.now().write("data/fido-exit", how.as_bytes())?);
            }
        }
        Ok(())
    }

    /// Whether it has begun; says what is to be said at the beginning.
    fn begin(&mut self) -> Result<bool, LayoutError> {
        if self.assignment.is_some() {
            return Ok(true);
        }
        if self.store.now().read_if_any(&ManagerNode::Version.path(""))?.is_none() {
            return Ok(false);
        }
        let document = layout::read_document(&self.store.now(), &ManagerNode::Assignment.path(""))?;
        let assignment: Assignment = serde_json::from_slice(&document).unwrap();
        self.say(DomainNode::Version, "1")?;
        if self.read("keeper")?.is_some_and(|keeper| keeper == b"{\"domain\":0}") {
            self.say(DomainNode::Kept, "78")?;
        }
        if let Some(left) = self.read("predecessor")? {
            let left: layout::Predecessor = layout::decode("predecessor", &left)?;
            let (id, root) = (left.id.check().unwrap(), left.root);
            let line = format!("{} {} finds {root} of {}", assignment.domain, assignment.id.generation, id.generation);
            self.log.lock().unwrap().push(line);
        }
        self.say(DomainNode::Arena, &format!("{{\"bytes\":{},\"provider\":\"module\"}}", assignment.arena_bytes))?;
        for link in &assignment.links {
            self.say(DomainNode::Bells(link.link), &link.lanes.to_string())?;
        }
        if self.manners.exits_early.is_none() {
            let notes = BTreeMap::from([("note", "x".repeat(3000))]);
            let notes = self.overridden("ready/0").unwrap_or_else(|| serde_json::to_string(&notes).unwrap());
            let path = DomainNode::Ready.path("");
            let mut written = Ok(());
            self.store.transaction(|view| match layout::write_document(view, &path, notes.as_bytes()) {
                Err(LayoutError::Store(error)) => Err(error),
                result => {
                    written = result;
                    Ok(())
                }
            })?;
            written?;
        }
        self.assignment = Some(assignment);
        Ok(true)
    }

    fn overridden(&mut self, name: &str) -> Option<String> {
        let at = self.manners.says.iter().position(|(node, _)| node == name)?;
        Some(self.manners.says.remove(at).1)
    }

    fn say(&mut self, node: DomainNode, value: &str) -> Result<(), StoreError> {
        let value = self.overridden(&node.name()).unwrap_or_else(|| value.to_owned());
        self.store.now().write(&node.path(""), value.as_bytes())
    }

    fn unsay(&self, node: DomainNode) -> Result<(), StoreError> {
        self.store.now().remove(&node.path("")).map(drop)
    }

    fn look(&self) -> Result<Snapshot, LayoutError> {
        let mut now = Snapshot { stop: self.read("stop")?.is_some(), ..Snapshot::default() };
        for folder in ["readers", "peers", "links"] {
            for name in self.store.now().children(&format!("fido/{folder}"))? {
                let name = format!("{folder}/{name}");
                let Some(value) = self.read(&name)? else { continue };
                match ManagerNode::of(&name) {
                    Some(ManagerNode::Reader(id)) => _ = now.readers.insert(id, layout::decode(&name, &value)?),
                    Some(ManagerNode::Peer(id)) => _ = now.peers.insert(id, layout::decode(&name, &value)?),
                    Some(ManagerNode::Link { link, peer }) => {
                        now.links.insert((link, peer), layout::decode(&name, &value)?);
                    }
                    _ => panic!("the manager wrote {name}"),
                }
            }
        }
        Ok(now)
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.store.now().read_if_any(&format!("fido/{name}"))
    }

    fn act(&mut self, step: Step) -> Result<(), LayoutError> {
        let lanes = |assignment: &Option<Assignment>, link: u32| {
            let links = assignment.iter().flat_map(|assignment| &assignment.links);
            links.clone().find(|l| l.link == link).map_or(0, |link| u32::from(link.lanes))
        };
        match step {
            Step::Grant { reader, .. } => {
                self.log("grant", reader, "");
                if !self.manners.never_grants {
                    self.say(DomainNode::Root(reader), "77")?;
                }
            }
            Step::Revoke(reader) => {
                self.log("revoke", reader, "");
                self.unsay(DomainNode::Root(reader))?;
            }
            Step::Map { peer, root, .. } => {
                assert_eq!(root, 77);
                self.log("map", peer, "");
                self.say(DomainNode::Mapped(peer), "{}")?;
                self.mapped += 1;
                if self.mapped == 2 || self.domains.len() == 2 {
                    for (node, value) in std::mem::take(&mut self.manners.says) {
                        // Those of links are still to come.
                        if node.starts_with("ports/") {
                            self.manners.says.push((node, value));
                        } else {
                            self.store.now().write(&format!("data/fido/{node}"), value.as_bytes())?;
                        }
                    }
                }
            }
            Step::Open { link, peer, .. } => {
                self.log(&format!("open {link}"), peer, "");
                let ports: Vec<_> = (0..lanes(&self.assignment, link)).map(|lane| 1001 + lane).collect();
                if !self.manners.never_opens {
                    self.say(DomainNode::Ports { link, peer }, &serde_json::to_string(&ports).unwrap())?;
                }
            }
            Step::Bind { link, peer, ports, .. } => {
                assert_eq!(ports.len(), lanes(&self.assignment, link) as usize);
                self.log(&format!("bind {link}"), peer, &format!(" {ports:?}"));
                self.log(&format!("bind {link}"), peer, "");
            }
            Step::Unlink { link, peer } => self.unsay(DomainNode::Ports { link, peer })?,
            Step::Died(peer) => {
                self.log("died", peer, "");
                self.say(DomainNode::Passed(peer), "{}")?;
            }
            Step::Fenced(peer) => {
                self.log("fenced", peer, "");
                self.unsay(DomainNode::Mapped(peer))?;
                self.unsay(DomainNode::Passed(peer))?;
            }
            Step::Stop => {}
        }
        Ok(())
    }

    fn log(&self, what: &str, other: DomainId, more: &str) {
        let Some(assignment) = &self.assignment else { return };
        let peer = usize::from(other.slot.number()).checked_sub(1).and_then(|index| self.domains.get(index));
        let (name, generation) = (&assignment.domain, assignment.id.generation);
        let line = format!("{name} {generation} {what} {} {}{more}", peer.unwrap(), other.generation);
        self.log.lock().unwrap().push(line);
    }
}
