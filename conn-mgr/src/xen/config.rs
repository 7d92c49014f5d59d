//! The xl configurations of a manifest's guests. `xl create` takes them as they are, by the manager or by hand.

use std::fmt::Write;

use super::limits;
use crate::manifest::Manifest;

/// The name of a guest: appliance and domain.
#[must_use]
pub fn guest_name(appliance: &str, domain: &str) -> String {
    format!("{appliance}-{domain}")
}

/// The configuration of the domain at a position; `None` if there is no such domain, or the manifest does not say what
/// it is on Xen. The manifest must have been checked: its texts are written as they are.
#[must_use]
pub fn of_domain(manifest: &Manifest, index: usize) -> Option<String> {
    let domain = manifest.domains.get(index)?;
    let guest = domain.guest.as_ref()?;
    let limits = limits::of_domain(manifest, index)?;
    let mut text =
        format!("# Domain `{}` of the appliance `{}`, from its manifest.\n", domain.name, manifest.appliance);
    let mut line = |key: &str, value: String| {
        let _ = writeln!(text, "{key} = {value}");
    };
    line("name", quoted(&guest_name(&manifest.appliance, &domain.name)));
    line("type", quoted(guest.kind.name()));
    line("kernel", quoted(&guest.kernel.to_string_lossy()));
    line("ramdisk", quoted(&guest.image.to_string_lossy()));
    line("extra", quoted("console=hvc0 quiet panic=1"));
    line("memory", (guest.memory >> 20).to_string());
    line("vcpus", guest.vcpus.to_string());
    if !guest.cpus.is_empty() {
        line("cpus", list(guest.cpus.iter().map(u32::to_string)));
    }
    // Reading the clock without the hypervisor: a poller does so all the time.
    line("tsc_mode", quoted("native"));
    line("max_grant_frames", limits.grant_frames.to_string());
    line("max_maptrack_frames", limits.maptrack_frames.to_string());
    if let Some(mebibytes) = limits::paging_mebibytes(manifest, index) {
        line("shadow_memory", mebibytes.to_string());
    }
    for (key, devices) in [("vif", &guest.vif), ("disk", &guest.disk)] {
        if !devices.is_empty() {
            line(key, list(devices.iter().cloned()));
        }
    }
    // Whether it is started again is not for xl to decide.
    for event in ["on_poweroff", "on_reboot", "on_crash"] {
        line(event, quoted("destroy"));
    }
    Some(text)
}

fn quoted(text: &str) -> String {
    format!("\"{text}\"")
}

fn list(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.map(|item| quoted(&item)).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{Domain, Guest, GuestType, Link};

    #[test]
    fn a_guest_is_configured_as_the_manifest_says() {
        let mut manifest = Manifest::new("nas");
        let net = Guest {
            kind: GuestType::Pvh,
            memory: 512 << 20,
            vcpus: 2,
            cpus: vec![2, 3],
            vif: vec!["bridge=br0,mac=00:16:3e:00:00:01".to_owned()],
            ..Guest::new("/boot/vmlinux", "/images/net.cpio")
        };
        let domain = |name: &str, guest| Domain { arena: 256 << 20, guest, ..Domain::new(name, "/p") };
        manifest.domains =
            vec![domain("net", Some(net)), domain("fs", Some(Guest::new("/k", "/i"))), domain("x", None)];
        manifest.links = vec![Link::new("nfs", "net", "fs")];
        let wanted = "# Domain `net` of the appliance `nas`, from its manifest.\n\
            name = \"nas-net\"\n\
            type = \"pvh\"\n\
            kernel = \"/boot/vmlinux\"\n\
            ramdisk = \"/images/net.cpio\"\n\
            extra = \"console=hvc0 quiet panic=1\"\n\
            memory = 512\n\
            vcpus = 2\n\
            cpus = [\"2\", \"3\"]\n\
            tsc_mode = \"native\"\n\
            max_grant_frames = 265\n\
            max_maptrack_frames = 1024\n\
            shadow_memory = 11\n\
            vif = [\"bridge=br0,mac=00:16:3e:00:00:01\"]\n\
            on_poweroff = \"destroy\"\n\
            on_reboot = \"destroy\"\n\
            on_crash = \"destroy\"\n";
        assert_eq!(of_domain(&manifest, 0).unwrap(), wanted);
        let fs = of_domain(&manifest, 1).unwrap();
        assert!(fs.contains("type = \"pv\"\n") && !fs.contains("cpus = [") && !fs.contains("vif"), "{fs}");
        assert!(!fs.contains("shadow_memory"), "{fs}");
        assert_eq!(of_domain(&manifest, 2), None);
        assert_eq!(of_domain(&manifest, 3), None);
    }
}
