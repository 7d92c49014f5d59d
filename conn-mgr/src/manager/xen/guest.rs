//! One guest as the manager sees it, and what it says in xenstore. A guest may write anything there at any time: names
//! and values are decoded strictly, each is believed once, and what is wrong is a refusal that names the node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use fido_core::addr::DomainId;
use fido_core::assignment::WireId;
use fido_core::platform::xen::layout::{
    self, DOMAIN_BASE, DomainNode, LayoutError, MAX_VALUE_BYTES, Passed, ProviderKind,
};
use fido_core::platform::xen::store::{Store, StoreError};
use fido_core::window::Window;

use super::super::carrier::Heritage;
use super::super::topology::{Index, Topology};
use super::vault::Hold;
use super::xl::Running;

/// The first number that no event channel can have.
const MAX_PORTS: u32 = 1 << 17;
/// So many characters of a guest's words are shown.
const SHOWN: usize = 400;
/// Where a guest's first process says how its program has ended, in its home.
const EXIT_NODE: &str = "data/fido-exit";

/// An incarnation.
pub(super) struct Guest {
    pub(super) id: DomainId,
    /// Tells it from every other guest of this machine.
    pub(super) uuid: String,
    /// Its number on this machine, and its nodes, once it is created.
    pub(super) place: Option<Home>,
    /// The command that creates or destroys it.
    pub(super) command: Option<(Step, Running)>,
    /// It is to be destroyed.
    pub(super) is_doomed: bool,
    /// The manager has killed it: it is not heard any more.
    pub(super) is_killed: bool,
    /// Attempts to destroy it that have failed, and when the next one is due.
    pub(super) failures: u32,
    pub(super) retry_at: Option<Instant>,
    /// Why it could not be created.
    pub(super) failed: Option<String>,
    /// Its nodes have changed.
    pub(super) is_news: bool,
    /// Not looked at before then: a guest that writes all the time must not keep the manager from the others.
    pub(super) rest_until: Option<Instant>,
    /// Incarnations that it has been told of, by whatever node.
    pub(super) knows: BTreeSet<DomainId>,
    pub(super) said: Said,
    /// What it inherits, until it is welcomed.
    pub(super) heritage: Option<Heritage>,
    /// Holds what it inherits, until it is ready.
    pub(super) bequest: Option<Hold>,
    /// Its arena, if it leaves something to a successor.
    pub(super) kept: Option<Arc<Window>>,
}

/// Where a guest is.
pub(super) struct Home {
    /// Its number.
    pub(super) domain: u16,
    /// The path of its nodes.
    pub(super) path: String,
}

/// What `xl` does with a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Create,
    Destroy,
}

impl Guest {
    pub(super) fn new(id: DomainId, uuid: String, command: Running, heritage: Option<Heritage>) -> Self {
        Self {
            id,
            uuid,
            place: None,
            command: Some((Step::Create, command)),
            is_doomed: false,
            is_killed: false,
            failures: 0,
            retry_at: None,
            failed: None,
            is_news: false,
            rest_until: None,
            knows: BTreeSet::new(),
            said: Said::default(),
            heritage,
            bequest: None,
            kept: None,
        }
    }
}

/// What a guest has said so far.
#[derive(Default)]
pub(super) struct Said {
    is_greeted: bool,
    has_arena: bool,
    /// Grant reference of the root page for dom0, which keeps its arena.
    pub(super) kept: Option<u32>,
    bells: BTreeSet<u32>,
    /// Grant references of the root pages, by reader.
    pub(super) roots: BTreeMap<DomainId, u32>,
    /// Ports of a link, by peer.
    pub(super) ports: BTreeMap<(u32, DomainId), Vec<u32>>,
    mapped: BTreeSet<DomainId>,
    passed: BTreeSet<DomainId>,
    notes: Option<BTreeMap<String, String>>,
    problem: Option<String>,
    /// How its program has ended.
    pub(super) exit: Option<Exit>,
}

/// How a guest's program has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Exit {
    /// With status 0.
    pub(super) clean: bool,
    /// In words.
    pub(super) how: String,
}

/// Something new that a guest has said.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Saying {
    Arena,
    Bells(u32),
    Root(DomainId),
    Ports(u32, DomainId),
    Mapped(DomainId),
    Passed(DomainId, Vec<DomainId>),
    Ready(BTreeMap<String, String>),
    Problem(String),
    Exit,
}

/// Why a guest cannot be heard.
#[derive(Debug, thiserror::Error)]
pub(super) enum Flaw {
    /// It wrote what it may not write.
    #[error("{0}")]
    Wrong(String),
    /// xenstore does not answer.
    #[error(transparent)]
    Store(StoreError),
}

impl From<StoreError> for Flaw {
    fn from(error: StoreError) -> Self {
        match error {
            // About one node: it is what the guest has made of it.
            StoreError::Refused { .. } | StoreError::Wire(_) | StoreError::Directory { .. } => {
                Self::Wrong(error.to_string())
            }
            error => Self::Store(error),
        }
    }
}

impl From<LayoutError> for Flaw {
    fn from(error: LayoutError) -> Self {
        match error {
            LayoutError::Store(error) => error.into(),
            error => Self::Wrong(error.to_string()),
        }
    }
}

/// What the manager knows of a guest, to judge by.
pub(super) struct Expected<'m> {
    pub(super) topology: &'m Topology,
    pub(super) index: Index,
    pub(super) arena_bytes: u64,
    /// Its arena is kept for a successor.
    pub(super) is_kept: bool,
    pub(super) knows: &'m BTreeSet<DomainId>,
}

impl Said {
    /// Reads what is new below a guest's home.
    pub(super) fn listen(&mut self, store: &Store, home: &str, expected: &Expected) -> Result<Vec<Saying>, Flaw> {
        let base = format!("{home}/{DOMAIN_BASE}");
        let mut sayings = Vec::new();
        // Looked at first, told last: what the guest said before its end is then among the nodes below.
        let exit = self.ended(store, home)?;
        let names = store.now().children(&base)?;
        for name in &names {
            match name.as_str() {
                "bells" | "roots" | "ports" | "mapped" | "passed" => {}
                name => match DomainNode::of(name) {
                    Some(node) => self.single(store, &base, node, expected, &mut sayings)?,
                    None => return Err(unknown(name)),
                },
            }
        }
        // In the order in which they come in a guest's life.
        for folder in ["bells", "roots", "mapped", "ports", "passed"] {
            let has = names.iter().any(|name| name == folder);
            let children = if has { store.now().children(&format!("{base}/{folder}"))? } else { Vec::new() };
            let nodes = children.iter().map(|name| {
                let name = format!("{folder}/{name}");
                DomainNode::of(&name).ok_or_else(|| unknown(&name))
            });
            let nodes: Vec<_> = nodes.collect::<Result<_, _>>()?;
            self.forget(folder, &nodes);
            for node in nodes {
                self.several(store, &base, node, expected, &mut sayings)?;
            }
        }
        if names.iter().any(|name| name == "ready") {
            self.ready(store, &base, &mut sayings)?;
        }
        if let Some(exit) = exit {
            self.exit = Some(exit);
            sayings.push(Saying::Exit);
        }
        Ok(sayings)
    }

    /// Nodes that are there once.
    fn single(
        &mut self,
        store: &Store,
        base: &str,
        node: DomainNode,
        expected: &Expected,
        sayings: &mut Vec<Saying>,
    ) -> Result<(), Flaw> {
        let name = node.name();
        let read = || value(store, base, &name);
        match node {
            DomainNode::Version if !self.is_greeted => {
                if let Some(value) = read()? {
                    layout::check_version(&value)?;
                    self.is_greeted = true;
                }
            }
            DomainNode::Arena if !self.has_arena => {
                if let Some(value) = read()? {
                    self.arena(layout::decode(&name, &value)?, expected)?;
                    sayings.push(Saying::Arena);
                }
            }
            DomainNode::Kept if self.kept.is_none() => {
                if !expected.is_kept {
                    return wrong(format!("it wrote {name} although nobody keeps its arena"));
                }
                if let Some(value) = read()? {
                    self.kept = Some(layout::decode(&name, &value)?);
                }
            }
            DomainNode::Problem => {
                if let Some(value) = read()?.filter(|value| !value.is_empty()) {
                    let text = plain(&value);
                    if self.problem.as_ref() != Some(&text) {
                        self.problem = Some(text.clone());
                        sayings.push(Saying::Problem(text));
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn arena(&mut self, arena: layout::Arena, expected: &Expected) -> Result<(), Flaw> {
        if arena.bytes != expected.arena_bytes {
            let (said, assigned) = (arena.bytes, expected.arena_bytes);
            return wrong(format!("it laid out an arena of {said} bytes, {assigned} were assigned"));
        }
        if arena.provider == ProviderKind::Gntalloc && expected.is_kept {
            return wrong(
                "its kernel has no module fido_arena, and without it its arena cannot be kept for a successor (`inherit`): \
                 put the module into its image"
                    .into(),
            );
        }
        let topology = expected.topology;
        let readers = (0..topology.domains).filter(|&reader| topology.may_read(reader, expected.index)).count();
        if arena.provider == ProviderKind::Gntalloc && readers > 1 {
            return wrong(format!(
                "its kernel has no module fido_arena, and without it the arena can be granted to one guest only; {readers} \
                 read it: put the module into its image"
            ));
        }
        self.has_arena = true;
        Ok(())
    }

    /// Nodes in folders, one for each link or incarnation.
    fn several(
        &mut self,
        store: &Store,
        base: &str,
        node: DomainNode,
        expected: &Expected,
        sayings: &mut Vec<Saying>,
    ) -> Result<(), Flaw> {
        let name = node.name();
        let lanes = |link: u32| match expected.topology.edge(expected.index, link) {
            Some(edge) => Ok(usize::from(edge.lanes)),
            None => wrong(format!("it wrote {name} of a link that it does not have")),
        };
        let known = |id: &DomainId| match expected.knows.contains(id) {
            true => Ok(()),
            false => wrong(format!("it wrote {name} although it was not told of {id}")),
        };
        let read = || value(store, base, &name);
        match node {
            DomainNode::Bells(link) if !self.bells.contains(&link) => {
                let lanes = lanes(link)?;
                let Some(value) = read()? else { return Ok(()) };
                let said: usize = layout::decode(&name, &value)?;
                if said != lanes {
                    return wrong(format!("it has {said} lanes for link {link}, {lanes} were assigned"));
                }
                self.bells.insert(link);
                sayings.push(Saying::Bells(link));
            }
            DomainNode::Root(reader) if !self.roots.contains_key(&reader) => {
                known(&reader)?;
                let Some(value) = read()? else { return Ok(()) };
                self.roots.insert(reader, layout::decode(&name, &value)?);
                sayings.push(Saying::Root(reader));
            }
            DomainNode::Ports { link, peer } if !self.ports.contains_key(&(link, peer)) => {
                let lanes = lanes(link)?;
                known(&peer)?;
                let Some(value) = read()? else { return Ok(()) };
                let ports: Vec<u32> = layout::decode(&name, &value)?;
                let different: BTreeSet<_> = ports.iter().filter(|port| (1..MAX_PORTS).contains(*port)).collect();
                if ports.len() != lanes || different.len() != lanes {
                    return wrong(format!("{name} are {ports:?}, expected {lanes} different event-channel ports"));
                }
                self.ports.insert((link, peer), ports);
                sayings.push(Saying::Ports(link, peer));
            }
            DomainNode::Mapped(owner) if !self.mapped.contains(&owner) => {
                known(&owner)?;
                if read()?.is_some() {
                    self.mapped.insert(owner);
                    sayings.push(Saying::Mapped(owner));
                }
            }
            DomainNode::Passed(dead) if !self.passed.contains(&dead) => {
                known(&dead)?;
                let Some(value) = read()? else { return Ok(()) };
                let said: Passed = layout::decode(&name, &value)?;
                let except = said.except.into_iter().map(existing).collect::<Result<_, _>>()?;
                self.passed.insert(dead);
                sayings.push(Saying::Passed(dead, except));
            }
            _ => {}
        }
        Ok(())
    }

    /// What is not there any more can be said again: after 4095 restarts an identity comes back.
    fn forget(&mut self, folder: &str, nodes: &[DomainNode]) {
        match folder {
            "roots" => self.roots.retain(|reader, _| nodes.contains(&DomainNode::Root(*reader))),
            "ports" => {
                self.ports.retain(|&(link, peer), _| nodes.contains(&DomainNode::Ports { link, peer }));
            }
            "mapped" => self.mapped.retain(|owner| nodes.contains(&DomainNode::Mapped(*owner))),
            "passed" => self.passed.retain(|dead| nodes.contains(&DomainNode::Passed(*dead))),
            _ => {}
        }
    }

    fn ready(&mut self, store: &Store, base: &str, sayings: &mut Vec<Saying>) -> Result<(), Flaw> {
        let path = format!("{base}/ready");
        let mut broken = None;
        let document = store.transaction(|view| match layout::read_document(view, &path) {
            Ok(document) => Ok(document),
            Err(LayoutError::Store(error)) => Err(error),
            Err(error) => {
                broken = Some(error);
                Ok(Vec::new())
            }
        });
        let document = match (document, broken) {
            // Removed or replaced meanwhile: there will be another look.
            (Err(error), _) if error.code().is_some() => return Ok(()),
            (Err(error), _) => return Err(error.into()),
            (Ok(_), Some(error)) => return Err(error.into()),
            // Made, and not written yet.
            (Ok(document), None) if document.is_empty() => return Ok(()),
            (Ok(document), None) => document,
        };
        let notes: BTreeMap<String, String> = serde_json::from_slice(&document)
            .map_err(|error| Flaw::Wrong(format!("ready: {error}, in {:?}", plain(&document))))?;
        if self.notes.as_ref() != Some(&notes) {
            self.notes = Some(notes.clone());
            sayings.push(Saying::Ready(notes));
        }
        Ok(())
    }

    /// How the guest's program has ended, if that is news.
    fn ended(&self, store: &Store, home: &str) -> Result<Option<Exit>, Flaw> {
        if self.exit.is_some() {
            return Ok(None);
        }
        let value = store.now().read_if_any(&format!("{home}/{EXIT_NODE}"))?.filter(|value| !value.is_empty());
        Ok(value.map(|value| Exit { clean: value == b"exit 0", how: plain(&value) }))
    }
}

fn wrong<T>(what: String) -> Result<T, Flaw> {
    Err(Flaw::Wrong(what))
}

fn unknown(name: &str) -> Flaw {
    Flaw::Wrong(format!("it wrote {DOMAIN_BASE}/{}, which means nothing", plain(name.as_bytes())))
}

/// A node's value; `None` if it has gone since it was listed.
fn value(store: &Store, base: &str, name: &str) -> Result<Option<Vec<u8>>, Flaw> {
    let value = store.now().read_if_any(&format!("{base}/{name}"))?;
    match value {
        Some(value) if value.len() > MAX_VALUE_BYTES => {
            wrong(format!("{name} has {} bytes; the limit is {MAX_VALUE_BYTES}", value.len()))
        }
        value => Ok(value),
    }
}

fn existing(id: WireId) -> Result<DomainId, Flaw> {
    id.check().ok_or_else(|| Flaw::Wrong(format!("it spoke of {id:?}, which cannot exist")))
}

/// A guest's words, fit to be shown.
fn plain(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.chars().take(SHOWN).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
