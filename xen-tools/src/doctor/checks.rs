//! What the doctor looks for, one function per subject.

use std::io::ErrorKind;

use conn_mgr::xen::limits::{GrantLimits, XEN_DEFAULT};

use super::machine::{Access, Machine};
use super::{Finding, Wants};

const PAGE: u64 = 4096;
/// Where a component's own pages for the lists of references come from, too.
const PAGES_PER_LIST: u64 = 1024;

/// A device, the module that makes it, what it is for, and how it is opened.
struct Device {
    path: &'static str,
    module: &'static str,
    purpose: &'static str,
    access: Access,
}

const GNTALLOC_LIMIT: &str = "/sys/module/xen_gntalloc/parameters/limit";

const OWN: Device = Device {
    path: "/dev/fido_arena",
    module: "fido_arena",
    purpose: "arenas with several readers",
    access: Access::Both,
};
const GNTALLOC: Device = Device {
    path: "/dev/xen/gntalloc",
    module: "xen-gntalloc",
    purpose: "arenas with one reader",
    access: Access::Both,
};
const PRIVCMD: Device =
    Device { path: "/dev/xen/privcmd", module: "xen-privcmd", purpose: "the toolstack", access: Access::Both };
const NEEDED: [Device; 3] = [
    Device { path: "/dev/xen/xenbus", module: "", purpose: "xenstore", access: Access::Both },
    Device { path: "/dev/xen/gntdev", module: "xen-gntdev", purpose: "windows", access: Access::Read },
    Device { path: "/dev/xen/evtchn", module: "xen-evtchn", purpose: "bells", access: Access::Both },
];

/// Everything, in an order in which it makes sense to mend it.
pub(super) fn all(machine: &dyn Machine, wants: &Wants) -> Vec<Finding> {
    let dom0 = machine.read("/proc/xen/capabilities").is_some_and(|text| text.contains("control_d"));
    let mut findings = vec![system(machine, dom0)];
    findings.extend(NEEDED.iter().map(|device| needed(machine, device)));
    findings.push(store(machine, dom0));
    findings.extend(arenas(machine, wants.arena));
    if dom0 {
        findings.push(needed(machine, &PRIVCMD));
        findings.extend(limits(machine, wants.limits));
    }
    findings.extend(emulation(machine));
    findings.extend(clock(machine));
    findings
}

fn system(machine: &dyn Machine, dom0: bool) -> Finding {
    let part = |name: &str| machine.read(&format!("/sys/hypervisor/version/{name}")).unwrap_or_default();
    let version = format!("{}.{}{}", part("major").trim(), part("minor").trim(), part("extra").trim());
    let kind = machine.read("/sys/hypervisor/guest_type").unwrap_or_default();
    let role = if dom0 { "dom0".to_owned() } else { format!("a {} guest", kind.trim()) };
    Finding::good(format!("this is {role} of Xen {version}"))
}

/// Whether a device can be opened.
fn usable(machine: &dyn Machine, device: &Device) -> Result<(), (String, String)> {
    let Device { path, module, purpose, access } = device;
    let error = match machine.open(path, *access) {
        Ok(()) => return Ok(()),
        Err(error) => error,
    };
    let fix = match error.kind() {
        ErrorKind::NotFound if module.is_empty() => {
            "mount devtmpfs on /dev; the kernel needs CONFIG_XEN_XENBUS_FRONTEND".to_owned()
        }
        ErrorKind::NotFound => format!("modprobe {module}"),
        ErrorKind::PermissionDenied => format!("run as root, or give the component's user access to {path}"),
        _ => format!("modprobe -r {module}; modprobe {module}; see the kernel's log"),
    };
    Err((format!("{path} ({purpose}): {error}"), fix))
}

fn needed(machine: &dyn Machine, device: &Device) -> Finding {
    match usable(machine, device) {
        Ok(()) => Finding::good(format!("{} ({})", device.path, device.purpose)),
        Err((what, fix)) => Finding::bad(what, fix),
    }
}

fn store(machine: &dyn Machine, dom0: bool) -> Finding {
    match machine.domain_number() {
        Ok(number) => Finding::good(format!("xenstored answers: this is domain {number}")),
        Err(error) if dom0 => Finding::bad(format!("xenstored: {error}"), "start xenstored and run xen-init-dom0"),
        Err(error) => Finding::bad(format!("xenstored: {error}"), "look after xenstored in dom0"),
    }
}

/// One of the two providers of arenas must be there, and large enough.
fn arenas(machine: &dyn Machine, arena: u64) -> Vec<Finding> {
    let own = usable(machine, &OWN);
    let stock = usable(machine, &GNTALLOC);
    let build = "build and load xen-tools/kmod (see docs/xen.md): modprobe fido_arena";
    let mut findings = Vec::new();
    match (&own, &stock) {
        (Ok(()), _) => findings.push(Finding::good(format!("{} ({})", OWN.path, OWN.purpose))),
        (Err((what, _)), Ok(())) => findings.push(Finding::note(format!("{what}: arenas have one reader"), build)),
        (Err((what, _)), Err((other, fix))) => {
            findings.push(Finding::bad(format!("no arenas: {what}; {other}"), format!("{build}, or {fix}")));
        }
    }
    if stock.is_ok() {
        findings.push(gntalloc_limit(machine, arena, own.is_ok()));
    }
    findings
}

fn gntalloc_limit(machine: &dyn Machine, arena: u64, own: bool) -> Finding {
    let pages = arena.div_ceil(PAGE);
    let needed = pages + pages.div_ceil(PAGES_PER_LIST) + 1;
    let text = machine.read(GNTALLOC_LIMIT).unwrap_or_default();
    let fix = format!("echo {needed} > {GNTALLOC_LIMIT}");
    match text.trim().parse::<u64>() {
        Ok(limit) if limit >= needed => Finding::good(format!("gntalloc's limit of {limit} pages")),
        Ok(limit) => {
            let what = format!("gntalloc's limit of {limit} pages: an arena of {arena} bytes needs {needed}");
            // With the module nobody asks gntalloc.
            if own { Finding::note(what, fix) } else { Finding::bad(what, fix) }
        }
        Err(_) => Finding::note(format!("gntalloc's limit is not known: {GNTALLOC_LIMIT} says {text:?}"), ""),
    }
}

/// The limits that Xen was booted with, which bound those of all guests.
fn limits(machine: &dyn Machine, wanted: GrantLimits) -> Vec<Finding> {
    let info = match machine.hypervisor_info() {
        Ok(info) => info,
        Err(error) => return vec![Finding::note(format!("Xen's limits are not known: {error}"), "")],
    };
    let Some(line) = command_line(&info) else {
        return vec![Finding::note("Xen's limits are not known: xl info does not show its command line", "")];
    };
    let found = GrantLimits {
        grant_frames: option(line, "gnttab_max_frames").unwrap_or(XEN_DEFAULT.grant_frames),
        maptrack_frames: option(line, "gnttab_max_maptrack_frames").unwrap_or(XEN_DEFAULT.maptrack_frames),
    };
    let tables = [
        ("grant", "gnttab_max_frames", found.grant_frames, wanted.grant_frames),
        ("maptrack", "gnttab_max_maptrack_frames", found.maptrack_frames, wanted.maptrack_frames),
    ];
    let judge = |(table, option, found, wanted): (&str, &str, u32, u32)| {
        if found >= wanted {
            return Finding::good(format!("Xen's limit of {found} frames for {table} tables"));
        }
        let what = format!("Xen's limit of {found} frames for {table} tables: {wanted} are needed");
        Finding::bad(what, format!("put {option}={wanted} on Xen's command line and boot"))
    };
    tables.into_iter().map(judge).collect()
}

fn command_line(info: &str) -> Option<&str> {
    let line = info.lines().find(|line| line.starts_with("xen_commandline"))?;
    line.split_once(':').map(|(_, value)| value.trim())
}

/// The value of an option of Xen's command line; the last counts.
fn option(line: &str, name: &str) -> Option<u32> {
    let mut values = line.split_whitespace().filter_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    let value = values.next_back()?;
    match value.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => value.parse().ok(),
    }
}

/// QEMU's emulated processor offers what Xen or its guests then stumble over.
fn emulation(machine: &dyn Machine) -> Vec<Finding> {
    let cpuinfo = machine.read("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name));
        line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim()).unwrap_or_default()
    };
    if !field("model name").contains("QEMU TCG") {
        return Vec::new();
    }
    let shown: Vec<&str> = field("flags").split(' ').collect();
    let visible =
        |names: &[&'static str]| names.iter().copied().filter(|name| shown.contains(name)).collect::<Vec<_>>();
    let off = |names: &[&str]| names.iter().map(|name| format!(",-{name}")).collect::<String>();
    let mut findings = vec![Finding::note("the processor is emulated: times mean little", "")];
    let crash = visible(&["smap", "smep"]);
    if !crash.is_empty() {
        let what = format!("the emulated processor shows {}: dom0 crashes", crash.join(" and "));
        findings.push(Finding::bad(what, format!("start QEMU with -cpu max{}", off(&crash))));
    }
    let pvh = machine.read("/sys/hypervisor/guest_type").is_some_and(|kind| kind.trim() == "PVH");
    let wide = visible(&["avx", "avx2", "fma", "f16c"]);
    if pvh && !wide.is_empty() {
        let what = format!("the emulated processor shows {}: PVH guests crash", wide.join(", "));
        findings.push(Finding::bad(what, format!("start QEMU with -cpu max{}", off(&wide))));
    }
    findings
}

fn clock(machine: &dyn Machine) -> Option<Finding> {
    let source = machine.read("/sys/devices/system/clocksource/clocksource0/current_clocksource")?;
    Some(match source.trim() {
        "tsc" | "xen" => Finding::good(format!("clock source {}", source.trim())),
        other => Finding::note(
            format!("clock source {other}: reading the time is slow, and those who poll do it often"),
            "tsc_mode = \"native\" in the guest's xl configuration",
        ),
    })
}
