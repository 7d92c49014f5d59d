//! Reads the topology from `sys` and `proc`.
//!
//! A file that is missing means that the system does not say: old kernels, containers and virtual machines lack many.
//! A file that is there must make sense: it is an error if it is too long, no regular file, no text, no list, or if it
//! contradicts another one.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::{Cache, CacheKind, Cpu, Topology, TopologyError, list};

/// The longest file of sysfs: one page.
const MAX_FILE: u64 = 4096;
/// The longest `cpuinfo`: a thousand processors with 4 KiB each.
const MAX_CPUINFO: u64 = 4 << 20;
/// The highest cache level that is believed.
const MAX_LEVEL: u64 = 8;
/// The most caches of one processor.
const MAX_CACHES: usize = 16;

/// See [`Topology::read`].
pub(super) fn read(root: &Path, allowed: &[u32]) -> Result<Topology, TopologyError> {
    if allowed.is_empty() {
        return Err(TopologyError::Nowhere);
    }
    let mut allowed = allowed.to_vec();
    allowed.sort_unstable();
    allowed.dedup();
    let system = root.join("sys/devices/system");
    let online = match online(root)? {
        Some(online) => online,
        None => allowed.clone(),
    };
    if let Some(&cpu) = allowed.iter().find(|cpu| !online.contains(cpu)) {
        return Err(TopologyError::Offline(cpu));
    }
    let (nodes, node_distances) = read_nodes(&system.join("node"))?;
    let cpus = online
        .iter()
        .map(|&number| read_cpu(&system.join(format!("cpu/cpu{number}")), number, &online, nodes.get(&number).copied()))
        .collect::<Result<Vec<_>, _>>()?;
    check_siblings(&system, &cpus)?;
    let (model, hypervisor) = read_cpuinfo(&root.join("proc/cpuinfo"))?;
    Ok(Topology { model, hypervisor, cpus, allowed, node_distances })
}

/// The processors that are online, if the system says.
pub(super) fn online(root: &Path) -> Result<Option<Vec<u32>>, TopologyError> {
    read_list(&root.join("sys/devices/system/cpu/online"))
}

/// The text of a file; `None` if there is none.
fn read_text(path: &Path, limit: u64) -> Result<Option<String>, TopologyError> {
    let failed = |source| TopologyError::Read { path: path.to_owned(), source };
    // Looked at before it is opened: opening a pipe would wait for a writer.
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => return Err(failed(io::Error::other("not a regular file"))),
        Err(error) if is_absence(&error) => return Ok(None),
        Err(error) => return Err(failed(error)),
    }
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes)) {
        Ok(_) => {}
        // A processor may go offline between two looks.
        Err(error) if is_absence(&error) => return Ok(None),
        Err(error) => return Err(failed(error)),
    }
    if bytes.len() as u64 > limit {
        return Err(TopologyError::TooLong { path: path.to_owned(), limit });
    }
    String::from_utf8(bytes).map(Some).map_err(|_| failed(io::Error::other("not text")))
}

fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        || matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO))
}

fn wrong(path: &Path, what: impl Into<String>) -> TopologyError {
    TopologyError::Value { path: path.to_owned(), what: what.into() }
}

fn read_list(path: &Path) -> Result<Option<Vec<u32>>, TopologyError> {
    let Some(text) = read_text(path, MAX_FILE)? else { return Ok(None) };
    let listed = list::parse(&text).map_err(|source| TopologyError::List { path: path.to_owned(), source })?;
    Ok(Some(listed))
}

/// A list that must hold `number`; of the others only those that are online.
fn read_group(path: &Path, number: u32, online: &[u32]) -> Result<Option<Vec<u32>>, TopologyError> {
    let Some(mut group) = read_list(path)? else { return Ok(None) };
    if !group.contains(&number) {
        return Err(wrong(path, format!("processor {number} is not in its own group `{}`", list::format(&group))));
    }
    group.retain(|cpu| online.contains(cpu));
    Ok(Some(group))
}

fn read_number(path: &Path) -> Result<Option<i64>, TopologyError> {
    let Some(text) = read_text(path, MAX_FILE)? else { return Ok(None) };
    let text = text.trim();
    let shown: String = text.chars().take(40).flat_map(char::escape_debug).collect();
    text.parse().map(Some).map_err(|_| wrong(path, format!("`{shown}` is not a number")))
}

fn read_cpu(folder: &Path, number: u32, online: &[u32], node: Option<u32>) -> Result<Cpu, TopologyError> {
    // The second name is that of kernels before 5.3.
    let group = |name: &str| read_group(&folder.join("topology").join(name), number, online);
    let siblings = match group("core_cpus_list")? {
        Some(siblings) => siblings,
        None => group("thread_siblings_list")?.unwrap_or_else(|| vec![number]),
    };
    let path = folder.join("topology/physical_package_id");
    let package = match read_number(&path)? {
        // The kernel's way to say that it does not know.
        None | Some(-1) => None,
        Some(package) => Some(u32::try_from(package).map_err(|_| wrong(&path, format!("{package} is not a package")))?),
    };
    Ok(Cpu { number, siblings, package, node, caches: read_caches(&folder.join("cache"), number, online)? })
}

fn read_caches(folder: &Path, number: u32, online: &[u32]) -> Result<Vec<Cache>, TopologyError> {
    let mut caches: Vec<Cache> = Vec::new();
    for index in 0..MAX_CACHES {
        let folder = folder.join(format!("index{index}"));
        let path = folder.join("level");
        let Some(level) = read_number(&path)? else { break };
        let level = u8::try_from(level).ok().filter(|level| (1..=MAX_LEVEL).contains(&u64::from(*level)));
        let level = level.ok_or_else(|| wrong(&path, format!("a cache level that is not 1 to {MAX_LEVEL}")))?;
        let path = folder.join("type");
        let kind = match read_text(&path, MAX_FILE)?.as_deref().map(str::trim) {
            None | Some("Unified") => CacheKind::Unified,
            Some("Data") => CacheKind::Data,
            Some("Instruction") => CacheKind::Instruction,
            Some(_) => return Err(wrong(&path, "neither Data, Instruction nor Unified")),
        };
        // A cache without the list of who shares it says nothing.
        let Some(shared) = read_group(&folder.join("shared_cpu_list"), number, online)? else { continue };
        let bytes = read_size(&folder.join("size"))?;
        caches.push(Cache { level, kind, bytes, shared });
    }
    caches.sort_by_key(|cache| (cache.level, cache.kind));
    Ok(caches)
}

/// `32K`, `2M` or plain bytes.
fn read_size(path: &Path) -> Result<Option<u64>, TopologyError> {
    let Some(text) = read_text(path, MAX_FILE)? else { return Ok(None) };
    let text = text.trim();
    let digits = text.trim_end_matches(['K', 'M', 'G']);
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => return Err(wrong(path, "not a size")),
    };
    let bytes = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    bytes.map(Some).ok_or_else(|| wrong(path, "not a size"))
}

type Nodes = (BTreeMap<u32, u32>, BTreeMap<(u32, u32), u32>);

/// Which node each processor belongs to, and how far the nodes are from each other.
fn read_nodes(folder: &Path) -> Result<Nodes, TopologyError> {
    let (mut of, mut distances) = Nodes::default();
    let online = read_list(&folder.join("online"))?.unwrap_or_default();
    for &node in &online {
        let folder = folder.join(format!("node{node}"));
        let path = folder.join("cpulist");
        for cpu in read_list(&path)?.unwrap_or_default() {
            if let Some(other) = of.insert(cpu, node) {
                return Err(wrong(&path, format!("processor {cpu} belongs to node {other} as well")));
            }
        }
        let path = folder.join("distance");
        let Some(text) = read_text(&path, MAX_FILE)? else { continue };
        let row: Option<Vec<u32>> = text.split_whitespace().map(|number| number.parse().ok()).collect();
        let row = row.filter(|row| row.len() == online.len());
        let row = row.ok_or_else(|| wrong(&path, format!("not {} distances", online.len())))?;
        distances.extend(online.iter().zip(row).map(|(&to, distance)| ((node, to), distance)));
    }
    Ok((of, distances))
}

/// Whoever is in a core says the same of it.
fn check_siblings(system: &Path, cpus: &[Cpu]) -> Result<(), TopologyError> {
    let by_number: BTreeMap<u32, &Cpu> = cpus.iter().map(|cpu| (cpu.number, cpu)).collect();
    for cpu in cpus {
        let differs = |other: &&u32| by_number.get(other).is_some_and(|other| other.siblings != cpu.siblings);
        if let Some(other) = cpu.siblings.iter().find(differs) {
            let path: PathBuf = system.join(format!("cpu/cpu{other}/topology"));
            let what = format!("processor {other} says something else of its core than its sibling {}", cpu.number);
            return Err(wrong(&path, what));
        }
    }
    Ok(())
}

/// The model, and whether there is a hypervisor.
fn read_cpuinfo(path: &Path) -> Result<(Option<String>, bool), TopologyError> {
    let Some(text) = read_text(path, MAX_CPUINFO)? else { return Ok((None, false)) };
    let value = |key: &str| {
        let lines = text.lines().filter_map(|line| line.split_once(':'));
        lines
            .map(|(found, value)| (found.trim(), value.trim()))
            .find(|(found, _)| *found == key)
            .map(|(_, value)| value)
    };
    let printable = |name: &str| name.chars().filter(|c| !c.is_control()).take(100).collect::<String>();
    let model = value("model name").map(printable).filter(|name| !name.is_empty());
    Ok((model, value("flags").is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "hypervisor"))))
}
