//! What a manifest says of a domain as a guest of Xen: `[domain.NAME.xen]`.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::error::{Fault, Place};
use super::units::Size;
use super::{ARENA_GRAIN, Domain, Manifest};

/// The memory of a guest that does not say how much it wants.
pub const DEFAULT_MEMORY: u64 = 256 << 20;
/// What a guest needs beside its arena, at least: its kernel, its image, its program.
pub const KERNEL_MEMORY: u64 = 64 << 20;
/// The most memory of a guest.
pub const MAX_MEMORY: u64 = 16 << 40;
/// The most virtual processors of a guest: what Xen gives a PVH guest.
pub const MAX_VCPUS: u32 = 128;
/// The highest number of a processor of the machine.
const MAX_CPU: u32 = 4095;
/// The most entries of `vif` and of `disk`.
pub const MAX_DEVICES: usize = 16;
/// Memory comes in units of this size.
const MEMORY_GRAIN: u64 = 1 << 20;

/// On what an appliance runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Platform {
    /// Domains are processes of one Linux system.
    #[default]
    Host,
    /// Domains are guests of Xen.
    Xen,
}

/// How a guest is virtualised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuestType {
    /// Paravirtualised: needs nothing of the processor.
    #[default]
    Pv,
    /// In the processor's own virtualisation, without an emulated machine.
    Pvh,
}

impl GuestType {
    /// As `xl` calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pv => "pv",
            Self::Pvh => "pvh",
        }
    }
}

/// A domain as a guest of Xen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// Its kernel, as dom0 sees the file.
    pub kernel: PathBuf,
    /// Its image (an initial root file system with the program in it), as dom0 sees the file.
    pub image: PathBuf,
    /// How it is virtualised.
    pub kind: GuestType,
    /// Its memory in bytes; a multiple of 1 MiB.
    pub memory: u64,
    /// How many virtual processors it has.
    pub vcpus: u32,
    /// The processors of the machine that those may run on; empty for all.
    pub cpus: Vec<u32>,
    /// Its network interfaces, each as in xl.cfg's `vif`.
    pub vif: Vec<String>,
    /// Its disks, each as in xl.cfg's `disk`.
    pub disk: Vec<String>,
}

impl Guest {
    /// A guest with the defaults of the manifest.
    pub fn new(kernel: impl Into<PathBuf>, image: impl Into<PathBuf>) -> Self {
        Self {
            kernel: kernel.into(),
            image: image.into(),
            kind: GuestType::default(),
            memory: DEFAULT_MEMORY,
            vcpus: 1,
            cpus: Vec::new(),
            vif: Vec::new(),
            disk: Vec::new(),
        }
    }
}

/// The table as it stands in the text.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawGuest {
    kernel: Spanned<PathBuf>,
    image: Spanned<PathBuf>,
    #[serde(default, rename = "type")]
    kind: GuestType,
    memory: Option<Spanned<Size>>,
    vcpus: Option<Spanned<u32>>,
    #[serde(default)]
    cpus: Vec<Spanned<u32>>,
    #[serde(default)]
    vif: Vec<Spanned<String>>,
    #[serde(default)]
    disk: Vec<Spanned<String>>,
}

impl RawGuest {
    /// The guest. Files are relative to the manifest's folder.
    pub(super) fn read(&self, folder: &Path) -> Guest {
        let strings = |list: &[Spanned<String>]| list.iter().map(|item| item.get_ref().clone()).collect();
        let template = Guest::new(folder.join(self.kernel.get_ref()), folder.join(self.image.get_ref()));
        Guest {
            kind: self.kind,
            memory: self.memory.as_ref().map_or(template.memory, |size| size.get_ref().0),
            vcpus: self.vcpus.as_ref().map_or(template.vcpus, |count| *count.get_ref()),
            cpus: self.cpus.iter().map(|cpu| *cpu.get_ref()).collect(),
            vif: strings(&self.vif),
            disk: strings(&self.disk),
            ..template
        }
    }

    /// Where a key, or an item of its list, stands.
    pub(super) fn place(&self, key: &str, at: Option<usize>) -> Option<std::ops::Range<usize>> {
        let at = at.unwrap_or(0);
        match key {
            "xen.kernel" => Some(self.kernel.span()),
            "xen.image" => Some(self.image.span()),
            "xen.memory" => self.memory.as_ref().map(Spanned::span),
            "xen.vcpus" => self.vcpus.as_ref().map(Spanned::span),
            "xen.cpus" => self.cpus.get(at).map(Spanned::span),
            "xen.vif" => self.vif.get(at).map(Spanned::span),
            "xen.disk" => self.disk.get(at).map(Spanned::span),
            _ => None,
        }
    }
}

/// Whether `xl` can be told of a guest, and whether its arena fits in. The files need not exist: a manifest is also
/// what an image is made from.
pub(super) fn check(manifest: &Manifest, index: usize, domain: &Domain) -> Result<(), Fault> {
    let place = |key, item| Place::DomainKey(index, key, item);
    let fault = |place, what: String, expected: String| Err(Fault { place, what, expected });
    let Some(guest) = &domain.guest else {
        if manifest.platform == Platform::Host {
            return Ok(());
        }
        let what = format!("domain `{}` without its kernel and image for platform `xen`", domain.name);
        return fault(Place::Domain(index), what, format!("a table [domain.{}.xen]", domain.name));
    };
    for (key, path) in [("xen.kernel", &guest.kernel), ("xen.image", &guest.image)] {
        if path.as_os_str().is_empty() || !path.to_str().is_some_and(plain) {
            return fault(place(key, None), format!("the path {path:?}"), PLAIN.to_owned());
        }
    }
    let least = (domain.arena.next_multiple_of(ARENA_GRAIN) + KERNEL_MEMORY).next_multiple_of(MEMORY_GRAIN);
    if !guest.memory.is_multiple_of(MEMORY_GRAIN) || !(least..=MAX_MEMORY).contains(&guest.memory) {
        let what = format!("{} bytes of memory for domain `{}`", guest.memory, domain.name);
        let expected = format!("a multiple of 1 MiB from {} MiB (its arena and 64 MiB) to 16 TiB", least >> 20);
        return fault(place("xen.memory", None), what, expected);
    }
    if !(1..=MAX_VCPUS).contains(&guest.vcpus) {
        let what = format!("{} virtual processors", guest.vcpus);
        return fault(place("xen.vcpus", None), what, format!("1 to {MAX_VCPUS}"));
    }
    for (at, cpu) in guest.cpus.iter().enumerate() {
        if *cpu > MAX_CPU || guest.cpus[..at].contains(cpu) {
            let expected = format!("different numbers up to {MAX_CPU}");
            return fault(place("xen.cpus", Some(at)), format!("processor {cpu}"), expected);
        }
    }
    for (key, list) in [("xen.vif", &guest.vif), ("xen.disk", &guest.disk)] {
        if list.len() > MAX_DEVICES {
            return fault(
                place(key, Some(MAX_DEVICES)),
                "too many devices".to_owned(),
                format!("at most {MAX_DEVICES}"),
            );
        }
        if let Some(at) = list.iter().position(|device| !plain(device)) {
            return fault(place(key, Some(at)), format!("the device {:?}", list[at]), PLAIN.to_owned());
        }
    }
    Ok(())
}

const PLAIN: &str = "text without quotation marks and control characters, which an xl configuration cannot hold";

/// Whether a text can stand in an xl configuration, which knows no escapes.
fn plain(text: &str) -> bool {
    !text.chars().any(|c| c == '"' || c == '\'' || c.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::ManifestError;

    const GOOD: &str = r#"appliance = "nas"
platform = "xen"
[domain.net]
program = "net-in-the-image"
arena = "128MiB"
cpus = [1000]
[domain.net.xen]
kernel = "/boot/vmlinux"
image = "images/net.cpio"
type = "pvh"
memory = "512MiB"
vcpus = 2
cpus = [2, 3]
vif = ["bridge=br0"]
disk = ["phy:/dev/vg/net,xvda,w"]
[domain.fs]
program = "/bin/sh"
xen = { kernel = "k", image = "i" }
"#;

    #[test]
    fn a_guest_is_read_with_its_defaults() {
        let manifest = Manifest::parse(GOOD, "some/where/nas.toml").unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(manifest.platform, Platform::Xen);
        let net = Guest {
            kind: GuestType::Pvh,
            memory: 512 << 20,
            vcpus: 2,
            cpus: vec![2, 3],
            vif: vec!["bridge=br0".to_owned()],
            disk: vec!["phy:/dev/vg/net,xvda,w".to_owned()],
            ..Guest::new("/boot/vmlinux", "some/where/images/net.cpio")
        };
        assert_eq!(manifest.domains[0].guest, Some(net));
        assert_eq!(manifest.domains[0].program, Path::new("some/where/net-in-the-image"));
        assert_eq!(manifest.domains[1].guest, Some(Guest::new("some/where/k", "some/where/i")));
    }

    /// Replaces `from` and expects an error on the line that begins with `line`, which has `part` in it.
    fn wrong(from: &str, to: &str, line: &str, part: &str) {
        assert!(GOOD.contains(from), "{from}");
        let text = GOOD.replacen(from, to, 1);
        let error = match Manifest::parse(&text, "bad.toml") {
            Err(ManifestError::Wrong(error)) => error,
            other => panic!("{to}: {other:?}"),
        };
        let found = text.lines().nth(error.line - 1).unwrap();
        assert!(found.starts_with(line), "{to}: points at {found}\n{error}");
        assert!(error.to_string().contains(part), "{to}: {part:?} is not in\n{error}");
    }

    #[test]
    fn what_xl_could_not_take_is_refused_where_it_stands() {
        wrong("\"xen\"", "\"zen\"", "platform", "unknown variant `zen`");
        wrong("\"xen\"", "\"host\"", "program", "program `net-in-the-image` not found");
        wrong("xen = { kernel = \"k\", image = \"i\" }", "", "[domain.fs]", "a table [domain.fs.xen]");
        wrong("type = \"pvh\"", "type = \"hvm\"", "type", "unknown variant `hvm`");
        wrong("vcpus", "vcpu", "vcpu", "unknown field `vcpu`");
        wrong("image = \"images/net.cpio\"\n", "", "[domain.net.xen]", "missing field `image`");
        wrong("\"/boot/vmlinux\"", "\"/boot/vm'linux\"", "kernel", "without quotation marks");
        wrong("\"images/net.cpio\"", "\"a\\nb\"", "image", "control characters");
        wrong("\"512MiB\"", "\"191MiB\"", "memory", "from 192 MiB");
        wrong("\"512MiB\"", "536870913", "memory", "a multiple of 1 MiB");
        wrong("\"512MiB\"", "\"16385GiB\"", "memory", "to 16 TiB");
        wrong("vcpus = 2", "vcpus = 0", "vcpus", "1 to 128");
        wrong("vcpus = 2", "vcpus = 129", "vcpus", "1 to 128");
        wrong("[2, 3]", "[2, 2]", "cpus = [2, 2]", "different numbers");
        wrong("[2, 3]", "[4096]", "cpus = [4096]", "up to 4095");
        wrong("bridge=br0", "bridge=\\\"br0\\\"", "vif", "without quotation marks");
        let many = format!("[{}]", "\"d\", ".repeat(17));
        wrong("[\"phy:/dev/vg/net,xvda,w\"]", &many, "disk", "at most 16");
    }

    #[test]
    fn limits_are_inclusive() {
        for (from, to) in [
            ("\"512MiB\"", "\"192MiB\""),
            ("\"512MiB\"", "\"16384GiB\""),
            ("vcpus = 2", "vcpus = 128"),
            ("[2, 3]", "[4095]"),
        ] {
            let text = GOOD.replacen(from, to, 1);
            Manifest::parse(&text, "good.toml").unwrap_or_else(|error| panic!("{error}"));
        }
        let many = format!("[{}]", "\"d\", ".repeat(16));
        Manifest::parse(&GOOD.replacen("[\"phy:/dev/vg/net,xvda,w\"]", &many, 1), "good.toml").unwrap();
    }

    #[test]
    fn on_the_host_the_table_may_be_there_and_is_judged() {
        let host = GOOD.replacen("\"xen\"", "\"host\"", 1).replacen("net-in-the-image", "/bin/sh", 1);
        let host = host.replacen("cpus = [1000]\n", "", 1);
        assert_eq!(Manifest::parse(&host, "m").unwrap_or_else(|error| panic!("{error}")).platform, Platform::Host);
        assert!(Manifest::parse(&host.replacen("vcpus = 2", "vcpus = 0", 1), "m").is_err());
    }
}
