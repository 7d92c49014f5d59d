//! A domain's own part of xenstore: reads what the manager tells, writes what the domain says.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::follower::Snapshot;
use super::layout::{self, DOMAIN_BASE, DomainNode, LayoutError, MANAGER_BASE, ManagerNode, check_domain, wrong};
use super::store::{Store, StoreError};
use super::window::Owner;
use crate::assignment::Assignment;

/// The longest text of `problem`, in bytes.
const MAX_PROBLEM_BYTES: usize = 900;

/// The nodes of a domain, for all its threads.
#[derive(Debug, Clone)]
pub(super) struct Nodes {
    store: Store,
    /// What comes before the bases: nothing, for a guest's own home.
    home: String,
}

impl Nodes {
    pub(super) fn new(store: Store, home: String) -> Self {
        Self { store, home }
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    /// Asks to be woken when the manager tells something.
    pub(super) fn watch(&self) -> Result<(), StoreError> {
        self.store.watch(&self.told(""), "manager")
    }

    fn told(&self, name: &str) -> String {
        let base = if self.home.is_empty() { MANAGER_BASE.into() } else { format!("{}/{MANAGER_BASE}", self.home) };
        if name.is_empty() { base } else { format!("{base}/{name}") }
    }

    /// Whether the manager has told all that is needed to begin.
    pub(super) fn is_announced(&self) -> Result<bool, LayoutError> {
        match self.store.now().read_if_any(&ManagerNode::Version.path(&self.home))? {
            Some(version) => layout::check_version(&version).map(|()| true),
            None => Ok(false),
        }
    }

    pub(super) fn assignment(&self) -> Result<Assignment, LayoutError> {
        let node = ManagerNode::Assignment;
        let mut result = Ok(Vec::new());
        self.store.transaction(|view| match layout::read_document(view, &node.path(&self.home)) {
            Err(LayoutError::Store(error)) => Err(error),
            other => {
                result = other;
                Ok(())
            }
        })?;
        let text = result?;
        serde_json::from_slice(&text).map_err(|error| wrong(&node.name(), &error.to_string(), &text))
    }

    /// The number of this domain on its host, which the toolstack writes.
    pub(super) fn own_number(&self) -> Result<u16, LayoutError> {
        let path = if self.home.is_empty() { "domid".to_owned() } else { format!("{}/domid", self.home) };
        check_domain("domid", layout::decode("domid", &self.store.now().read(&path)?)?)
    }

    pub(super) fn pair(&self) -> Result<Option<u16>, LayoutError> {
        let pair: Option<u16> = self.read(ManagerNode::Pair)?;
        pair.map(|pair| check_domain(&ManagerNode::Pair.name(), pair)).transpose()
    }

    /// The number of the domain that keeps the arena for a successor, if one does.
    pub(super) fn keeper(&self) -> Result<Option<u16>, LayoutError> {
        let keeper: Option<layout::Reader> = self.read(ManagerNode::Keeper)?;
        keeper.map(|keeper| check_domain(&ManagerNode::Keeper.name(), keeper.domain)).transpose()
    }

    /// What an earlier incarnation has left, if there is something.
    pub(super) fn predecessor(&self) -> Result<Option<(Owner, u32)>, LayoutError> {
        let name = ManagerNode::Predecessor.name();
        let Some(left) = self.read::<layout::Predecessor>(ManagerNode::Predecessor)? else { return Ok(None) };
        let id = left.id.check().ok_or_else(|| wrong(&name, "it is of no incarnation", &[]))?;
        let domain = check_domain(&name, left.domain)?;
        Ok(Some((Owner { id, domain, bytes: left.bytes }, left.root)))
    }

    fn read<T: DeserializeOwned>(&self, node: ManagerNode) -> Result<Option<T>, LayoutError> {
        let value = self.store.now().read_if_any(&node.path(&self.home))?;
        value.map(|value| layout::decode(&node.name(), &value)).transpose()
    }

    /// What the manager tells now. Nodes that make no sense are left out and reported.
    pub(super) fn snapshot(&self) -> Result<(Snapshot, Vec<LayoutError>), StoreError> {
        let (mut snapshot, mut errors) = (Snapshot::default(), Vec::new());
        for directory in ["readers", "peers", "links"] {
            for child in self.store.now().children(&self.told(directory))? {
                let name = format!("{directory}/{child}");
                // Gone between the listing and now: the next look will see it so.
                let Some(value) = self.store.now().read_if_any(&self.told(&name))? else { continue };
                if let Err(error) = take(&mut snapshot, &name, &value) {
                    errors.push(error);
                }
            }
        }
        snapshot.stop = self.store.now().read_if_any(&ManagerNode::Stop.path(&self.home))?.is_some();
        Ok((snapshot, errors))
    }

    /// Says something.
    pub(super) fn say<T: Serialize>(&self, node: DomainNode, value: &T) -> Result<(), LayoutError> {
        let value = layout::encode(&node.name(), value)?;
        Ok(self.store.now().write(&node.path(&self.home), &value)?)
    }

    /// Says nothing any more.
    pub(super) fn unsay(&self, node: DomainNode) -> Result<(), StoreError> {
        self.store.now().remove(&node.path(&self.home)).map(drop)
    }

    /// Forgets what an earlier program in this guest has said.
    pub(super) fn clear(&self) -> Result<(), StoreError> {
        let base = if self.home.is_empty() { DOMAIN_BASE.into() } else { format!("{}/{DOMAIN_BASE}", self.home) };
        self.store.now().remove(&base).map(drop)
    }

    pub(super) fn ready(&self, notes: &BTreeMap<String, String>) -> Result<(), LayoutError> {
        let path = DomainNode::Ready.path(&self.home);
        let text = serde_json::to_vec(notes).map_err(|error| wrong("ready", &error.to_string(), &[]))?;
        let mut result = Ok(());
        self.store.transaction(|view| match layout::write_document(view, &path, &text) {
            Err(LayoutError::Store(error)) => Err(error),
            other => {
                result = other;
                Ok(())
            }
        })?;
        result
    }

    /// Tells the manager, and who looks into xenstore, why something cannot be done. It is not worth an error of its own.
    pub(super) fn complain(&self, problem: &dyn std::fmt::Display) {
        let mut text = problem.to_string();
        while text.len() > MAX_PROBLEM_BYTES {
            text.pop();
        }
        if let Err(error) = self.store.now().write(&DomainNode::Problem.path(&self.home), text.as_bytes()) {
            tracing::warn!(%error, problem = text, "the manager was not told of a problem");
        }
    }
}

fn take(snapshot: &mut Snapshot, name: &str, value: &[u8]) -> Result<(), LayoutError> {
    match ManagerNode::of(name) {
        Some(ManagerNode::Reader(id)) => drop(snapshot.readers.insert(id, layout::decode(name, value)?)),
        Some(ManagerNode::Peer(id)) => drop(snapshot.peers.insert(id, layout::decode(name, value)?)),
        Some(ManagerNode::Link { link, peer }) => {
            drop(snapshot.links.insert((link, peer), layout::decode(name, value)?));
        }
        _ => return Err(wrong(name, "no node of this layout", value)),
    }
    Ok(())
}
