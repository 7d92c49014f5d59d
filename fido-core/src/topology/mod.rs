//! What the machine is made of, and what it costs to hand a cache line from one processor to another.
//!
//! * [`Topology`]: the processors with their cores, packages, caches and NUMA nodes, from sysfs (`sysfs.rs`); how near
//!   two of them are ([`Distance`]).
//! * [`Matrix`]: the cost of a hand-over for every ordered pair, measured here ([`measure`]) or kept from an earlier
//!   measurement on the same machine ([`store`]).
//!
//! A *processor* (CPU) is what the kernel schedules on: a hardware thread. A *core* has one or more of them, its
//! *siblings*. What the system does not say stays unknown: nothing is guessed from processor numbers. Files that
//! contradict themselves or each other are errors, never a panic.
//!
//! It does not decide where anything runs; the connection manager does, from this.

pub mod list;
mod matrix;
pub mod measure;
pub mod store;
mod sysfs;

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

pub use list::{ListError, MAX_CPU};
pub use matrix::{HandOver, Matrix, MatrixError, Origin};

/// What kind of cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CacheKind {
    /// For data only.
    Data,
    /// For instructions only: says nothing about hand-overs.
    Instruction,
    /// For both.
    Unified,
}

/// A cache as one processor sees it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Cache {
    /// 1 is the nearest to the processor.
    pub level: u8,
    /// What it holds.
    pub kind: CacheKind,
    /// Its size, where the system says it.
    pub bytes: Option<u64>,
    /// The online processors that share it, this one included.
    pub shared: Vec<u32>,
}

/// One processor that is online.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Cpu {
    /// Its number.
    pub number: u32,
    /// The online hardware threads of its core, this one included; only itself where the system does not say.
    pub siblings: Vec<u32>,
    /// Its package (socket).
    pub package: Option<u32>,
    /// Its NUMA node.
    pub node: Option<u32>,
    /// Its caches, the nearest first.
    pub caches: Vec<Cache>,
}

impl Cpu {
    /// What names its core: the lowest number among its siblings.
    pub fn core(&self) -> u32 {
        self.siblings.first().copied().unwrap_or(self.number)
    }

    /// The cache for data at a level.
    pub fn cache(&self, level: u8) -> Option<&Cache> {
        self.caches.iter().find(|cache| cache.level == level && cache.kind != CacheKind::Instruction)
    }
}

/// How near two processors are. The order is that of nearness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Distance {
    /// The same processor.
    Same,
    /// Hardware threads of one core.
    Core,
    /// Cores that share a cache of this level, and none nearer.
    Cache(u8),
    /// One NUMA node, and no cache.
    Node,
    /// One package, or the system says nothing that separates them.
    Package,
    /// Different packages.
    Machine,
}

impl Distance {
    /// A stand-in for the cost of a hand-over in nanoseconds, where nothing has been measured. Only the order and the
    /// rough ratios mean something; they are those that published core-to-core measurements of present servers share.
    pub fn nominal_ns(self) -> f64 {
        match self {
            Self::Same => 0.0,
            Self::Core => 20.0,
            Self::Cache(0..=2) => 40.0,
            Self::Cache(_) => 60.0,
            Self::Node => 130.0,
            Self::Package => 150.0,
            Self::Machine => 300.0,
        }
    }
}

impl fmt::Display for Distance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Same => f.write_str("same processor"),
            Self::Core => f.write_str("same core"),
            Self::Cache(level) => write!(f, "shared L{level}"),
            Self::Node => f.write_str("same node"),
            Self::Package => f.write_str("same package"),
            Self::Machine => f.write_str("other package"),
        }
    }
}

/// Why the machine could not be described.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// A file is there but cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A file is longer than any such file can be.
    #[error("{} has more than {limit} bytes", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// What is accepted.
        limit: u64,
    },
    /// A file with a list of processors or nodes that is none.
    #[error("{}: {source}", path.display())]
    List {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: ListError,
    },
    /// A file whose value makes no sense.
    #[error("{}: {what}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The kernel does not say where this process may run.
    #[error("cannot learn where this process may run: {0}")]
    Affinity(io::Error),
    /// There is not one processor to run on.
    #[error("no processor is allowed to this process")]
    Nowhere,
    /// A processor is allowed but not online.
    #[error("processor {0} is allowed to this process, but not online")]
    Offline(u32),
}

/// The machine's processors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Topology {
    /// The processor's model, as the system names it.
    pub model: Option<String>,
    /// Whether the system says that it runs under a hypervisor. What it shows of cores and caches may be invented then.
    pub hypervisor: bool,
    /// The processors that are online, by rising number.
    pub cpus: Vec<Cpu>,
    /// Those on which this process may run (its affinity, which the kernel keeps within its cgroup's cpuset).
    pub allowed: Vec<u32>,
    /// The distances of NUMA nodes as the firmware gives them (10: the node itself). Empty where it gives none.
    #[serde(skip)]
    pub node_distances: BTreeMap<(u32, u32), u32>,
}

impl Topology {
    /// This machine, with the processors that are allowed to the calling thread.
    ///
    /// # Errors
    /// [`TopologyError`] if what the system shows makes no sense. That it shows little is no error.
    pub fn discover() -> Result<Self, TopologyError> {
        Self::read(Path::new("/"), &allowed()?)
    }

    /// The machine whose `sys` and `proc` lie under `root`, with these processors allowed.
    ///
    /// # Errors
    /// As [`Topology::discover`].
    pub fn read(root: &Path, allowed: &[u32]) -> Result<Self, TopologyError> {
        sysfs::read(root, allowed)
    }

    /// A machine of which nothing is known but its processors.
    pub fn flat(cpus: &[u32]) -> Self {
        let cpu = |&number: &u32| Cpu { number, siblings: vec![number], package: None, node: None, caches: Vec::new() };
        Self {
            model: None,
            hypervisor: false,
            cpus: cpus.iter().map(cpu).collect(),
            allowed: cpus.to_vec(),
            node_distances: BTreeMap::new(),
        }
    }

    /// The processor with this number, if it is online.
    pub fn cpu(&self, number: u32) -> Option<&Cpu> {
        self.cpus.iter().find(|cpu| cpu.number == number)
    }

    /// How near two processors are; as far as can be if one of them is not online.
    pub fn distance(&self, a: u32, b: u32) -> Distance {
        let (Some(a), Some(b)) = (self.cpu(a), self.cpu(b)) else { return Distance::Machine };
        if a.number == b.number {
            return Distance::Same;
        }
        if a.siblings.contains(&b.number) {
            return Distance::Core;
        }
        let shares = |cache: &&Cache| {
            cache.kind != CacheKind::Instruction
                && cache.shared.contains(&b.number)
                && b.cache(cache.level).is_some_and(|other| other.shared.contains(&a.number))
        };
        if let Some(level) = a.caches.iter().filter(shares).map(|cache| cache.level).min() {
            return Distance::Cache(level);
        }
        match (a.package == b.package, a.node == b.node) {
            (false, _) => Distance::Machine,
            (true, true) if a.node.is_some() => Distance::Node,
            (true, _) => Distance::Package,
        }
    }

    /// The highest level of a data cache that anybody has.
    pub fn last_level(&self) -> Option<u8> {
        let levels = self.cpus.iter().flat_map(|cpu| &cpu.caches);
        levels.filter(|cache| cache.kind != CacheKind::Instruction).map(|cache| cache.level).max()
    }

    /// How many different values a property has over the processors that are online; unknown ones do not count.
    pub fn count<T: Ord>(&self, property: impl Fn(&Cpu) -> Option<T>) -> usize {
        self.cpus.iter().filter_map(property).collect::<std::collections::BTreeSet<_>>().len()
    }

    /// What a reader may expect to find here and does not: one sentence each.
    pub fn absences(&self) -> Vec<String> {
        let mut absences = Vec::new();
        if self.hypervisor {
            absences.push(
                "this is a virtual machine: its processors are the hypervisor's threads, which may move, and what it \
                 shows of cores and caches need not be the hardware's"
                    .into(),
            );
        }
        if self.cpus.iter().all(|cpu| cpu.siblings.len() <= 1) {
            absences.push("no core shows more than one hardware thread (SMT)".into());
        }
        match self.count(|cpu| cpu.node) {
            0 => absences.push("the system says nothing of NUMA nodes".into()),
            1 => absences.push("there is one NUMA node: all memory is equally near".into()),
            _ => {}
        }
        if self.last_level().is_none() {
            absences.push("the system says nothing of caches".into());
        }
        if self.cpus.len() > self.allowed.len() {
            let (allowed, online) = (self.allowed.len(), self.cpus.len());
            absences.push(format!("only {allowed} of the {online} processors online are allowed to this process"));
        }
        absences
    }
}

/// The processors that are online; those of [`allowed`] where the system does not say.
///
/// # Errors
/// [`TopologyError`] if what the system says makes no sense.
pub fn online() -> Result<Vec<u32>, TopologyError> {
    sysfs::online(Path::new("/"))?.map_or_else(allowed, Ok)
}

/// The processors on which the calling thread may run, by rising number.
///
/// # Errors
/// [`TopologyError::Affinity`], also on a machine with more processors than [`MAX_CPU`].
pub fn allowed() -> Result<Vec<u32>, TopologyError> {
    let set = rustix::thread::sched_getaffinity(None).map_err(|errno| TopologyError::Affinity(errno.into()))?;
    let limit = rustix::thread::CpuSet::MAX_CPU.min(MAX_CPU as usize + 1);
    Ok((0..limit).filter(|&cpu| set.is_set(cpu)).map(|cpu| cpu as u32).collect())
}
