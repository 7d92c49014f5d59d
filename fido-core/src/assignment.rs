//! What the connection manager tells a domain about itself.
//!
//! Plain data, the same on every platform. A domain trusts its manager: it started the domain.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::addr::{DomainId, Generation, Slot};

/// A slot and generation as they travel in control messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WireId {
    /// The slot's number.
    pub slot: u16,
    /// The generation's number.
    pub generation: u16,
}

impl WireId {
    /// The identity, or `None` if a number is beyond its limit or the generation is "none".
    pub fn check(self) -> Option<DomainId> {
        let generation = Generation::new(self.generation).filter(|g| *g != Generation::NONE)?;
        Some(DomainId { slot: Slot::new(self.slot)?, generation })
    }
}

impl From<DomainId> for WireId {
    fn from(id: DomainId) -> Self {
        Self { slot: id.slot.number(), generation: id.generation.number() }
    }
}

/// How the payload of a link's messages travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// By address: the bytes stay where they are.
    #[default]
    Pointer,
    /// Copied into ring pages by the sender and out of them by the receiver, with a doorbell for every message: what
    /// netfront and blkfront do. For comparison.
    Copying,
}

/// How a domain's threads wait for work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WaitStrategy {
    /// Never sleep: for lanes whose threads have a core each.
    Spin,
    /// Spin briefly where there are processors enough and it has been paying off, then sleep.
    #[default]
    Adaptive,
    /// Sleep at once.
    Sleep,
}

/// One of the domain's links.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkAssignment {
    /// The link's number in the appliance; names its lanes in the arenas' directories.
    pub link: u32,
    /// The link's name in the manifest.
    pub name: String,
    /// The name of the domain at the other end.
    pub peer: String,
    /// The slot of the domain at the other end.
    pub peer_slot: u16,
    /// How many lanes it has.
    pub lanes: u16,
    /// Slots of each ring; a power of two.
    pub slots: u32,
    /// How payload travels.
    pub transport: Transport,
}

/// What a domain is to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Assignment {
    /// The appliance's name.
    pub appliance: String,
    /// The domain's name.
    pub domain: String,
    /// Its slot and this start's generation.
    pub id: WireId,
    /// Length of its arena in bytes.
    pub arena_bytes: u64,
    /// Its links, at most one to each peer and name.
    pub links: Vec<LinkAssignment>,
    /// How many domains the appliance has.
    pub domains: u16,
    /// How its threads wait.
    pub wait: WaitStrategy,
    /// The processors its threads may run on; empty for all.
    pub cpus: Vec<u32>,
    /// How many processors its peers may run on: a domain that is bound to one need not be alone there. 0 if nobody
    /// says.
    #[serde(default)]
    pub processors: u16,
    /// The domain's own settings from the manifest.
    pub params: BTreeMap<String, serde_json::Value>,
}
