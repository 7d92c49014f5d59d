//! The manifest: which domains an appliance has, what each is given, and who is linked with whom.
//!
//! It comes from a TOML text ([`Manifest::load`], [`Manifest::parse`]; the keys are described in `docs/manifest.md`) or
//! is put together in code from the plain structs here. The same [`Manifest::check`] judges both, and the manager
//! starts nothing that has not passed it. From a text, an error names file, line and column and shows the line.
//!
//! A manifest is static: slots and link numbers are the positions in it, so they mean the same for the whole life of
//! the appliance.

mod check;
mod cpus;
mod error;
pub mod guest;
pub mod program;
mod text;
mod units;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use fido_core::addr::{DomainId, Slot};
use fido_core::assignment::{Assignment, LinkAssignment, Transport, WaitStrategy};

pub use error::{Fault, ManifestError, Place, Wrong};
pub use guest::{Guest, GuestType, Platform};

/// The longest manifest text, in bytes.
pub const MAX_TEXT_BYTES: usize = 1 << 20;
/// The longest name of an appliance, a domain or a link, in bytes.
pub const MAX_NAME_BYTES: usize = 64;
/// The most domains of one appliance: every slot but the first.
pub const MAX_DOMAINS: usize = Slot::COUNT - 1;
/// The most lanes of one link: so many descriptors travel beside one message.
pub const MAX_LINK_LANES: u16 = fido_core::platform::host::protocol::MAX_FDS as u16;
/// The longest time span a manifest can name.
pub const MAX_DURATION: Duration = Duration::from_secs(24 * 3600);
/// Arenas come in whole pages of this size.
pub const ARENA_GRAIN: u64 = 4096;

/// A whole appliance.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// Its name.
    pub appliance: String,
    /// What it runs on.
    pub platform: Platform,
    /// How long survivors of a death may take.
    pub fence: FencePolicy,
    /// The domains; the first has slot 1.
    pub domains: Vec<Domain>,
    /// The links; the first has number 1.
    pub links: Vec<Link>,
}

/// What is asked of the survivors of a death.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FencePolicy {
    /// Who has not let go of a dead peer's memory by then is killed too.
    pub deadline: Duration,
}

impl Default for FencePolicy {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(10) }
    }
}

/// One component.
#[derive(Debug, Clone, PartialEq)]
pub struct Domain {
    /// Its name, unique in the appliance.
    pub name: String,
    /// The file that is executed. (In a text it may be a bare name: see [`program::locate`].)
    pub program: PathBuf,
    /// The arguments.
    pub args: Vec<String>,
    /// Bytes of its arena; a multiple of [`ARENA_GRAIN`].
    pub arena: u64,
    /// How its threads wait.
    pub wait: WaitStrategy,
    /// The processors its threads may run on.
    pub cpus: Cpus,
    /// Domains whose arenas it may read although no link leads there: their bytes reach it through a third.
    pub windows: Vec<String>,
    /// What happens when it ends.
    pub restart: RestartPolicy,
    /// Whether an incarnation is handed the arena of the one before it, to make good what that has promised.
    pub inherit: bool,
    /// Domains that must have been ready before this one is started for the first time.
    pub after: Vec<String>,
    /// What it is on platform `xen`; there it must not be missing.
    pub guest: Option<Guest>,
    /// Its own settings, handed to it as they are.
    pub params: BTreeMap<String, serde_json::Value>,
}

impl Domain {
    /// A domain with the defaults of the manifest.
    pub fn new(name: impl Into<String>, program: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            program: program.into(),
            args: Vec::new(),
            arena: 64 << 20,
            wait: WaitStrategy::default(),
            cpus: Cpus::All,
            windows: Vec::new(),
            restart: RestartPolicy::default(),
            inherit: false,
            after: Vec::new(),
            guest: None,
            params: BTreeMap::new(),
        }
    }
}

/// Where a domain's threads may run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Cpus {
    /// Wherever the manager may.
    #[default]
    All,
    /// On these.
    List(Vec<u32>),
    /// On so many of its own, which the manager chooses: see [`crate::placement`].
    Auto(u16),
}

/// When a domain that ended is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// However it ended.
    #[default]
    Always,
    /// Unless it ended with status 0 after it had been ready.
    OnFailure,
    /// Not at all.
    Never,
}

/// What happens when a domain ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestartPolicy {
    /// In which cases it is started again.
    pub when: Restart,
    /// So many restarts within `window`; one more and the domain has failed for good.
    pub limit: u32,
    /// The time over which restarts are counted.
    pub window: Duration,
    /// The wait before a restart; it doubles with each further one within `window`.
    pub delay: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self { when: Restart::default(), limit: 10, window: Duration::from_secs(60), delay: Duration::from_millis(10) }
    }
}

/// A connection between two domains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its name, unique in the appliance.
    pub name: String,
    /// The two domains.
    pub between: [String; 2],
    /// How many lanes it has, `1..=`[`MAX_LINK_LANES`].
    pub lanes: u16,
    /// Slots of each ring; a power of two.
    pub slots: u32,
    /// How payload travels.
    pub transport: Transport,
}

impl Link {
    /// A link with the defaults of the manifest.
    pub fn new(name: impl Into<String>, a: impl Into<String>, b: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            between: [a.into(), b.into()],
            lanes: 1,
            slots: 1024,
            transport: Transport::default(),
        }
    }
}

impl Manifest {
    /// An appliance without domains.
    pub fn new(appliance: impl Into<String>) -> Self {
        Self {
            appliance: appliance.into(),
            platform: Platform::default(),
            fence: FencePolicy::default(),
            domains: Vec::new(),
            links: Vec::new(),
        }
    }

    /// Reads a manifest from a file and checks it.
    ///
    /// # Errors
    /// [`ManifestError`], with the place in the text where something is wrong.
    pub fn load(path: &Path) -> Result<Self, ManifestError> {
        let name = path.display().to_string();
        let read = |source| ManifestError::Read { file: name.clone(), source };
        let bytes = std::fs::metadata(path).map_err(read)?.len();
        if bytes > MAX_TEXT_BYTES as u64 {
            return Err(ManifestError::TooLong { file: name, bytes });
        }
        let text = std::fs::read_to_string(path).map_err(read)?;
        Self::parse(&text, &name)
    }

    /// Reads a manifest from a text and checks it. `name` stands for the file in errors, and programs are looked up
    /// relative to its folder.
    ///
    /// # Errors
    /// [`ManifestError`], with the place in the text where something is wrong.
    pub fn parse(text: &str, name: &str) -> Result<Self, ManifestError> {
        text::parse(text, name)
    }

    /// Judges a manifest: names, numbers, programs, processors, what refers to what.
    ///
    /// # Errors
    /// The first [`Fault`].
    pub fn check(&self) -> Result<(), Fault> {
        check::check(self)
    }

    /// The position of a domain.
    pub fn position(&self, domain: &str) -> Option<usize> {
        self.domains.iter().position(|d| d.name == domain)
    }

    /// The positions of the domains whose arenas the domain at a position reads: those that it is linked with, and those
    /// of its `windows`. In order, each once; empty if there is no such domain.
    pub fn reads(&self, index: usize) -> Vec<usize> {
        let Some(domain) = self.domains.get(index) else { return Vec::new() };
        let linked = self.links.iter().filter(|link| link.between.contains(&domain.name));
        let names = linked.flat_map(|link| &link.between).chain(&domain.windows);
        let others: BTreeSet<_> =
            names.filter_map(|name| self.position(name)).filter(|other| *other != index).collect();
        others.into_iter().collect()
    }

    /// The slot of the domain at a position; `None` beyond [`MAX_DOMAINS`].
    pub fn slot(index: usize) -> Option<Slot> {
        Slot::new(u16::try_from(index.checked_add(1)?).ok()?)
    }

    /// The domains' positions in the order of their starts: who comes `after` others stands behind them, otherwise
    /// they keep their order. Domains in a cycle are missing.
    pub fn start_order(&self) -> Vec<usize> {
        let mut order = Vec::with_capacity(self.domains.len());
        let mut placed = BTreeSet::new();
        while let Some(next) = (0..self.domains.len()).find(|&index| {
            !placed.contains(&index)
                && self.domains[index].after.iter().all(|a| self.position(a).is_none_or(|p| placed.contains(&p)))
        }) {
            placed.insert(next);
            order.push(next);
        }
        order
    }

    /// What the domain at a position is told in incarnation `id`; `None` if there is no such domain.
    pub fn assignment(&self, index: usize, id: DomainId) -> Option<Assignment> {
        let domain = self.domains.get(index)?;
        let mut links = Vec::new();
        for (number, link) in (1u32..).zip(&self.links) {
            let [a, b] = &link.between;
            let peer = match &domain.name {
                name if name == a => b,
                name if name == b => a,
                _ => continue,
            };
            links.push(LinkAssignment {
                link: number,
                name: link.name.clone(),
                peer: peer.clone(),
                peer_slot: Self::slot(self.position(peer)?)?.number(),
                lanes: link.lanes,
                slots: link.slots,
                transport: link.transport,
            });
        }
        Some(Assignment {
            appliance: self.appliance.clone(),
            domain: domain.name.clone(),
            id: id.into(),
            arena_bytes: domain.arena,
            links,
            wait: domain.wait,
            domains: self.domains.len() as u16,
            cpus: match &domain.cpus {
                Cpus::List(cpus) => cpus.clone(),
                Cpus::All | Cpus::Auto(_) => Vec::new(),
            },
            processors: std::thread::available_parallelism().map_or(1, |n| u16::try_from(n.get()).unwrap_or(u16::MAX)),
            params: domain.params.clone(),
        })
    }
}
