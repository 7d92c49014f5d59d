//! Who may meet whom: the manifest reduced to numbers.

use std::collections::BTreeSet;

use crate::manifest::Manifest;

/// The position of a domain in the manifest.
pub type Index = usize;

/// A connection between two domains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edge {
    /// The link's number.
    pub link: u32,
    /// Its two ends.
    pub ends: [Index; 2],
    /// Its lanes.
    pub lanes: u16,
}

impl Edge {
    /// The other end, if `index` is one end.
    pub fn other(&self, index: Index) -> Option<Index> {
        match self.ends {
            [a, b] if a == index => Some(b),
            [a, b] if b == index => Some(a),
            _ => None,
        }
    }
}

/// The links and windows of an appliance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topology {
    /// How many domains there are.
    pub domains: usize,
    /// The links.
    pub edges: Vec<Edge>,
    /// Pairs of reader and owner without a link between them.
    pub windows: BTreeSet<(Index, Index)>,
}

impl Topology {
    /// What the manifest allows.
    pub fn of(manifest: &Manifest) -> Self {
        let mut topology = Self { domains: manifest.domains.len(), ..Self::default() };
        for (link, plan) in (1u32..).zip(&manifest.links) {
            let [a, b] = &plan.between;
            if let (Some(a), Some(b)) = (manifest.position(a), manifest.position(b)) {
                topology.edges.push(Edge { link, ends: [a, b], lanes: plan.lanes });
            }
        }
        for (reader, domain) in manifest.domains.iter().enumerate() {
            let owners = domain.windows.iter().filter_map(|owner| manifest.position(owner));
            topology.windows.extend(owners.map(|owner| (reader, owner)));
        }
        topology
    }

    /// Whether `reader` may map the arena of `owner`.
    pub fn may_read(&self, reader: Index, owner: Index) -> bool {
        self.windows.contains(&(reader, owner)) || self.edges.iter().any(|edge| edge.other(reader) == Some(owner))
    }

    /// The link with this number, if `index` is one of its ends.
    pub fn edge(&self, index: Index, link: u32) -> Option<&Edge> {
        self.edges.iter().find(|edge| edge.link == link && edge.other(index).is_some())
    }

    /// The links of a domain.
    pub fn edges_of(&self, index: Index) -> impl Iterator<Item = &Edge> {
        self.edges.iter().filter(move |edge| edge.other(index).is_some())
    }
}
