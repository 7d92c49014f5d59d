//! Which nodes of xenstore stand for what: names and values, both ways. `docs/xen.md` has the whole picture.
//!
//! Below `/local/domain/N/fido` the manager tells domain N ([`ManagerNode`]); below `/local/domain/N/data/fido` the
//! domain says ([`DomainNode`]). Each side writes only its own part. Names and values are decoded strictly: what does
//! not decode is a [`LayoutError`] that names the node.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::store::{StoreError, View};
use crate::addr::DomainId;
use crate::assignment::WireId;

/// Version of the layout, in both `version` nodes. Another one is refused.
pub const LAYOUT_VERSION: u32 = 1;
/// Where the manager tells a domain, relative to the domain's home.
pub const MANAGER_BASE: &str = "fido";
/// Where a domain says, relative to its home. The toolstack makes `data` the domain's own.
pub const DOMAIN_BASE: &str = "data/fido";
/// The longest value of one node, in bytes: well within xenstored's default quota for a guest's node (2048 bytes with
/// its name and permissions).
pub const MAX_VALUE_BYTES: usize = 1024;
/// The longest document, in bytes, as for a message on platform `host`.
pub const MAX_DOCUMENT_BYTES: usize = 64 * 1024;
/// The most lanes of one link: their ports fit into one value.
pub const MAX_LINK_LANES: usize = 64;
/// The first number that is no guest's (`DOMID_FIRST_RESERVED`).
pub const FIRST_RESERVED_DOMAIN: u16 = 0x7FF0;

/// What is wrong with a node.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// Its value does not decode.
    #[error("xenstore node {node}: {reason}, in {value:?}")]
    Value {
        /// The node, below its base.
        node: String,
        /// What the decoder says.
        reason: String,
        /// The beginning of the value.
        value: String,
    },
    /// The value to be written, or found, is too long.
    #[error("xenstore node {node}: {bytes} bytes; the limit is {limit}")]
    TooLong {
        /// The node, below its base.
        node: String,
        /// Its length.
        bytes: usize,
        /// What would do.
        limit: usize,
    },
    /// Another version of the layout.
    #[error(
        "the other side's nodes in xenstore are of layout version {found:?}, this is version {LAYOUT_VERSION}; build \
         manager and domains from the same release"
    )]
    Version {
        /// What is there.
        found: String,
    },
    /// xenstore failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A node that the manager writes for a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ManagerNode {
    /// [`LAYOUT_VERSION`]. Written last of what a domain needs to begin.
    Version,
    /// A document: the [`crate::assignment::Assignment`].
    Assignment,
    /// The number of the only Xen domain that will read this one's arena: what stock gntalloc needs to know first.
    Pair,
    /// A [`Reader`]: the domain that keeps the arena for a successor. It is to be granted to it before it is offered.
    Keeper,
    /// A [`Predecessor`]: what an earlier incarnation has left. Written before the domain begins.
    Predecessor,
    /// A [`Reader`]: the arena is to be granted to it. Removed when it is dead.
    Reader(DomainId),
    /// A [`Peer`]: an arena to be mapped. Says so when it is dead; removed when its fence is complete.
    Peer(DomainId),
    /// A [`Link`] with a peer. Removed when the peer is dead.
    Link {
        /// The link's number.
        link: u32,
        /// The incarnation at the other end.
        peer: DomainId,
    },
    /// Its being there asks the domain to finish.
    Stop,
}

/// A node that a domain writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DomainNode {
    /// [`LAYOUT_VERSION`].
    Version,
    /// An [`Arena`]: there is one, laid out.
    Arena,
    /// The frame number of a root page of frames, for foreign mapping by dom0. Missing where frames are not known.
    Frames,
    /// The grant reference of the root page for the keeper.
    Kept,
    /// The number of lanes of a link, ready to be connected.
    Bells(u32),
    /// The grant reference of the root page for a reader.
    Root(DomainId),
    /// The event-channel ports of a link for a peer, by lane: unbound, to be bound by it.
    Ports {
        /// The link's number.
        link: u32,
        /// The peer that may bind them.
        peer: DomainId,
    },
    /// Its window on that incarnation's arena is in place.
    Mapped(DomainId),
    /// A [`Passed`]: it holds nothing any more that came through that dead incarnation.
    Passed(DomainId),
    /// A document: its notes. It serves.
    Ready,
    /// Why it cannot do something, in words.
    Problem,
}

fn id_name(id: DomainId) -> String {
    format!("{}-{}", id.slot, id.generation)
}

fn parse_number<T: std::str::FromStr + ToString>(text: &str) -> Option<T> {
    // One spelling only: no sign, no leading zeros.
    text.parse::<T>().ok().filter(|number| number.to_string() == text)
}

fn parse_id(text: &str) -> Option<DomainId> {
    let (slot, generation) = text.split_once('-')?;
    WireId { slot: parse_number(slot)?, generation: parse_number(generation)? }.check()
}

fn parse_link(text: &str) -> Option<(u32, DomainId)> {
    let (link, id) = text.split_once('-')?;
    Some((parse_number(link)?, parse_id(id)?))
}

impl ManagerNode {
    /// Its path below [`MANAGER_BASE`].
    pub fn name(self) -> String {
        match self {
            Self::Version => "version".into(),
            Self::Assignment => "assignment".into(),
            Self::Pair => "pair".into(),
            Self::Keeper => "keeper".into(),
            Self::Predecessor => "predecessor".into(),
            Self::Reader(id) => format!("readers/{}", id_name(id)),
            Self::Peer(id) => format!("peers/{}", id_name(id)),
            Self::Link { link, peer } => format!("links/{link}-{}", id_name(peer)),
            Self::Stop => "stop".into(),
        }
    }

    /// The node with this path below [`MANAGER_BASE`].
    pub fn of(name: &str) -> Option<Self> {
        Some(match name.split_once('/') {
            None if name == "version" => Self::Version,
            None if name == "assignment" => Self::Assignment,
            None if name == "pair" => Self::Pair,
            None if name == "keeper" => Self::Keeper,
            None if name == "predecessor" => Self::Predecessor,
            None if name == "stop" => Self::Stop,
            Some(("assignment", _)) => Self::Assignment,
            Some(("readers", id)) => Self::Reader(parse_id(id)?),
            Some(("peers", id)) => Self::Peer(parse_id(id)?),
            Some(("links", name)) => {
                let (link, peer) = parse_link(name)?;
                Self::Link { link, peer }
            }
            _ => return None,
        })
    }

    /// Its path in a domain's home.
    pub fn path(self, home: &str) -> String {
        join(home, MANAGER_BASE, &self.name())
    }
}

impl DomainNode {
    /// Its path below [`DOMAIN_BASE`].
    pub fn name(self) -> String {
        match self {
            Self::Version => "version".into(),
            Self::Arena => "arena".into(),
            Self::Frames => "frames".into(),
            Self::Kept => "kept".into(),
            Self::Bells(link) => format!("bells/{link}"),
            Self::Root(id) => format!("roots/{}", id_name(id)),
            Self::Ports { link, peer } => format!("ports/{link}-{}", id_name(peer)),
            Self::Mapped(id) => format!("mapped/{}", id_name(id)),
            Self::Passed(id) => format!("passed/{}", id_name(id)),
            Self::Ready => "ready".into(),
            Self::Problem => "problem".into(),
        }
    }

    /// The node with this path below [`DOMAIN_BASE`].
    pub fn of(name: &str) -> Option<Self> {
        Some(match name.split_once('/') {
            None if name == "version" => Self::Version,
            None if name == "arena" => Self::Arena,
            None if name == "frames" => Self::Frames,
            None if name == "kept" => Self::Kept,
            None if name == "ready" => Self::Ready,
            None if name == "problem" => Self::Problem,
            Some(("ready", _)) => Self::Ready,
            Some(("bells", link)) => Self::Bells(parse_number(link)?),
            Some(("roots", id)) => Self::Root(parse_id(id)?),
            Some(("ports", name)) => {
                let (link, peer) = parse_link(name)?;
                Self::Ports { link, peer }
            }
            Some(("mapped", id)) => Self::Mapped(parse_id(id)?),
            Some(("passed", id)) => Self::Passed(parse_id(id)?),
            _ => return None,
        })
    }

    /// Its path in a domain's home.
    pub fn path(self, home: &str) -> String {
        join(home, DOMAIN_BASE, &self.name())
    }
}

/// A path in a domain's home; with an empty home, as the domain itself says it.
fn join(home: &str, base: &str, name: &str) -> String {
    if home.is_empty() { format!("{base}/{name}") } else { format!("{home}/{base}/{name}") }
}

/// Who is to be granted the arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reader {
    /// Its number on this Xen host.
    pub domain: u16,
}

/// What an earlier incarnation has left: an arena that has its heritage and nothing else, in the keeper's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Predecessor {
    /// Which incarnation.
    pub id: WireId,
    /// The keeper's number on this Xen host.
    pub domain: u16,
    /// The grant reference of the root page.
    pub root: u32,
    /// The arena's length in bytes.
    pub bytes: u64,
}

/// An arena to be mapped, or one whose owner is dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Peer {
    /// It lives.
    Alive {
        /// Its number on this Xen host.
        domain: u16,
        /// The grant reference of the root page for this reader.
        root: u32,
        /// Length of its arena in bytes.
        bytes: u64,
    },
    /// It is dead; its fence is open.
    Dead {},
}

/// A link to be connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// The peer's number on this Xen host.
    pub domain: u16,
    /// The peer's unbound ports, by lane, to be bound. Without them, the reader of this is to make unbound ports and
    /// to publish them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<u32>>,
}

/// How a domain's arena is granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProviderKind {
    /// The kernel module `fido_arena`: any number of readers.
    Module,
    /// Stock gntalloc: one reader.
    Gntalloc,
}

/// What a domain says of its arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arena {
    /// Length in bytes.
    pub bytes: u64,
    /// How it is granted.
    pub provider: ProviderKind,
}

/// What a domain says of a fence.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Passed {
    /// Other dead incarnations to which it had forwarded what came through this one; their fences are waited for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<WireId>,
}

/// Encodes a value.
///
/// # Errors
/// [`LayoutError::TooLong`] beyond [`MAX_VALUE_BYTES`].
pub fn encode<T: Serialize>(node: &str, value: &T) -> Result<Vec<u8>, LayoutError> {
    let bytes = serde_json::to_vec(value).map_err(|error| wrong(node, &error.to_string(), &[]))?;
    if bytes.len() > MAX_VALUE_BYTES {
        return Err(LayoutError::TooLong { node: node.to_owned(), bytes: bytes.len(), limit: MAX_VALUE_BYTES });
    }
    Ok(bytes)
}

/// Decodes a value. Never panics, whatever the bytes.
///
/// # Errors
/// [`LayoutError`].
pub fn decode<T: DeserializeOwned>(node: &str, value: &[u8]) -> Result<T, LayoutError> {
    if value.len() > MAX_VALUE_BYTES {
        return Err(LayoutError::TooLong { node: node.to_owned(), bytes: value.len(), limit: MAX_VALUE_BYTES });
    }
    serde_json::from_slice(value).map_err(|error| wrong(node, &error.to_string(), value))
}

/// Decodes the number of a Xen domain that can be a peer.
///
/// # Errors
/// [`LayoutError::Value`] for the numbers that Xen reserves.
pub fn check_domain(node: &str, domain: u16) -> Result<u16, LayoutError> {
    if domain < FIRST_RESERVED_DOMAIN {
        return Ok(domain);
    }
    Err(wrong(node, "no domain can have that number", domain.to_string().as_bytes()))
}

/// Whether a `version` node says [`LAYOUT_VERSION`].
///
/// # Errors
/// [`LayoutError::Version`].
pub fn check_version(value: &[u8]) -> Result<(), LayoutError> {
    let text = String::from_utf8_lossy(value);
    if text == LAYOUT_VERSION.to_string() {
        return Ok(());
    }
    Err(LayoutError::Version { found: text.chars().take(20).collect() })
}

pub(super) fn wrong(node: &str, reason: &str, value: &[u8]) -> LayoutError {
    let value = String::from_utf8_lossy(&value[..value.len().min(200)]).into_owned();
    LayoutError::Value { node: node.to_owned(), reason: reason.to_owned(), value }
}

/// Writes a document: a value that may be longer than a node holds, in the children `0`, `1`, … of `path`. In a
/// transaction, so that it is there at once.
///
/// # Errors
/// [`LayoutError::TooLong`] beyond [`MAX_DOCUMENT_BYTES`]; else as xenstore says.
pub fn write_document(view: &View<'_>, path: &str, bytes: &[u8]) -> Result<(), LayoutError> {
    if bytes.len() > MAX_DOCUMENT_BYTES {
        return Err(LayoutError::TooLong { node: path.to_owned(), bytes: bytes.len(), limit: MAX_DOCUMENT_BYTES });
    }
    view.remove(path)?;
    view.make_directory(path)?;
    for (number, part) in bytes.chunks(MAX_VALUE_BYTES).enumerate() {
        view.write(&format!("{path}/{number}"), part)?;
    }
    Ok(())
}

/// Reads a document. In a transaction, so that all parts are of one.
///
/// # Errors
/// [`LayoutError`] if a part is missing or too long; else as xenstore says.
pub fn read_document(view: &View<'_>, path: &str) -> Result<Vec<u8>, LayoutError> {
    let parts = view.children(path)?.len();
    if parts > MAX_DOCUMENT_BYTES.div_ceil(MAX_VALUE_BYTES) {
        let bytes = parts.saturating_mul(MAX_VALUE_BYTES);
        return Err(LayoutError::TooLong { node: path.to_owned(), bytes, limit: MAX_DOCUMENT_BYTES });
    }
    let mut document = Vec::new();
    for number in 0..parts {
        let part = view.read(&format!("{path}/{number}"))?;
        if part.len() > MAX_VALUE_BYTES {
            let (bytes, limit) = (part.len(), MAX_VALUE_BYTES);
            return Err(LayoutError::TooLong { node: format!("{path}/{number}"), bytes, limit });
        }
        document.extend(part);
    }
    Ok(document)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{Generation, Slot};
    use crate::platform::xen::store::fake::FakeStore;
    use proptest::prelude::*;

    fn id(slot: u16, generation: u16) -> DomainId {
        DomainId { slot: Slot::new(slot).unwrap(), generation: Generation::new(generation).unwrap() }
    }

    #[test]
    fn every_node_is_its_name() {
        let (a, b) = (id(4095, 4095), id(1, 1));
        let link = ManagerNode::Link { link: 7, peer: a };
        for node in [ManagerNode::Version, ManagerNode::Assignment, ManagerNode::Pair, ManagerNode::Stop, link]
            .into_iter()
            .chain([ManagerNode::Reader(a), ManagerNode::Peer(b)])
        {
            assert_eq!(ManagerNode::of(&node.name()), Some(node));
        }
        let ports = DomainNode::Ports { link: u32::MAX, peer: b };
        for node in [DomainNode::Version, DomainNode::Arena, DomainNode::Frames, DomainNode::Ready, DomainNode::Problem]
            .into_iter()
            .chain([DomainNode::Bells(3), DomainNode::Root(a), ports, DomainNode::Mapped(a), DomainNode::Passed(b)])
        {
            assert_eq!(DomainNode::of(&node.name()), Some(node));
        }
        for bad in ["", "x", "peers/1", "peers/1-0", "peers/01-1", "peers/+1-1", "peers/4096-1", "links/1-1", "peers/"]
        {
            assert_eq!(ManagerNode::of(bad), None, "{bad}");
        }
        assert_eq!(DomainNode::Mapped(b).path("/local/domain/5"), "/local/domain/5/data/fido/mapped/1-1");
        assert_eq!(ManagerNode::Stop.path(""), "fido/stop");
    }

    #[test]
    fn values_have_one_form() {
        let peer = Peer::Alive { domain: 7, root: 8, bytes: 4096 };
        assert_eq!(decode::<Peer>("p", &encode("p", &peer).unwrap()).unwrap(), peer);
        assert_eq!(decode::<Peer>("p", br#"{"state":"dead"}"#).unwrap(), Peer::Dead {});
        for bad in [&br#"{"state":"alive"}"#[..], br#"{"domain":-1}"#, b"\xff", b"", br#"{"state":"dead","x":1}"#] {
            assert!(matches!(decode::<Peer>("p", bad), Err(LayoutError::Value { .. })));
        }
        let ports = Link { domain: 1, ports: Some(vec![u32::MAX; MAX_LINK_LANES]) };
        assert!(encode("l", &ports).is_ok(), "the ports of the most lanes fit");
        assert!(matches!(decode::<Peer>("p", &[b' '; 1025]), Err(LayoutError::TooLong { bytes: 1025, .. })));
        assert!(check_domain("d", 0x7FEF).is_ok() && check_domain("d", 0x7FF0).is_err());
        assert!(check_version(b"1").is_ok() && check_version(b"2").is_err() && check_version(b"").is_err());
    }

    #[test]
    fn documents_up_to_their_limit() {
        let store = FakeStore::default().connect(0);
        for len in [0, 1, MAX_VALUE_BYTES, MAX_VALUE_BYTES + 1, MAX_DOCUMENT_BYTES] {
            let text: Vec<u8> = (0..len).map(|n| n as u8).collect();
            write_document(&store.now(), "/d", &text).unwrap();
            assert_eq!(read_document(&store.now(), "/d").unwrap(), text);
        }
        let long = vec![0; MAX_DOCUMENT_BYTES + 1];
        assert!(matches!(write_document(&store.now(), "/d", &long), Err(LayoutError::TooLong { .. })));
        store.now().write("/d/64", b"").unwrap();
        assert!(matches!(read_document(&store.now(), "/d"), Err(LayoutError::TooLong { .. })));
        store.now().remove("/d/64").unwrap();
        store.now().remove("/d/5").unwrap();
        assert!(read_document(&store.now(), "/d").is_err(), "a part is missing");
    }

    proptest! {
        #[test]
        fn any_bytes_and_names(value: Vec<u8>, name in "[a-z]{0,8}/?[0-9-]{0,12}") {
            let _ = decode::<Peer>("n", &value);
            let _ = decode::<Link>("n", &value);
            if let Some(node) = DomainNode::of(&name) && !name.starts_with("ready/") {
                prop_assert_eq!(node.name(), name.as_str());
            }
            if let Some(node) = ManagerNode::of(&name) && !name.starts_with("assignment/") {
                prop_assert_eq!(node.name(), name);
            }
        }
    }
}
