//! The scenario `refusals`: `fidod` where something is missing or wrong. Each time it must end by itself, say what it is
//! and what to do. That it leaves no guest is seen when the scenario is cleared up.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use rustix::mount::{MountFlags, UnmountFlags};
use xen_guest::report::Kind;

use crate::machine::Machine;
use crate::{Failure, Reporter, fidod};

/// How long `fidod` may take to find out.
const LIMIT: Duration = Duration::from_secs(60);
const APPLIANCE: &str = "refused";
/// A user who is not root.
const NOBODY: u32 = 65534;

/// A manifest of one domain.
fn manifest(image: &str, arena: &str, memory: &str) -> String {
    let guest = format!("kernel = \"/guest/vmlinux\"\nimage = \"{image}\"\nmemory = \"{memory}\"\n");
    let reader = "kernel = \"/guest/vmlinux\"\nimage = \"/guest/chain.cpio\"\n";
    format!(
        "appliance = \"{APPLIANCE}\"\nplatform = \"xen\"\n\
         [domain.a]\nprogram = \"a\"\narena = \"{arena}\"\n[domain.a.xen]\n{guest}\
         [domain.b]\nprogram = \"b\"\nafter = [\"a\"]\n[domain.b.xen]\n{reader}\
         [[link]]\nname = \"l\"\nbetween = [\"a\", \"b\"]\n"
    )
}

/// Plays it.
pub fn run(machine: &mut Machine, reporter: &mut Reporter) -> Result<String, Failure> {
    let good = manifest("/guest/chain.cpio", "1MiB", "128MiB");
    let mut count = 0;
    let mut done = |what: &str| {
        count += 1;
        reporter.send(Kind::Note, "refusals", format!("refused in words that help: {what}").as_bytes())
    };
    let as_it_is = |_: &mut Command| {};
    let no_image = manifest("/guest/none.cpio", "1MiB", "128MiB");
    refused("image", &no_image, as_it_is, 1, &["domain `a`, `xen.image`: /guest/none.cpio", "fido xen image"])?;
    done("no image")?;
    let large = manifest("/guest/chain.cpio", "1GiB", "2GiB");
    refused("limits", &large, as_it_is, 1, &["put on Xen's command line", "gnttab_max_frames="])?;
    done("Xen's limits are too small")?;
    let nobody = |command: &mut Command| _ = command.uid(NOBODY).gid(NOBODY);
    refused("nobody", &good, nobody, 1, &["/run/xenstored/socket cannot be opened", "run as root"])?;
    done("no privilege")?;
    {
        let _hidden = [hide("/dev/xen")?, hide("/proc/xen")?, hide("/run/xenstored")?];
        refused("store", &good, as_it_is, 1, &["there is no xenstore here", "start xenstored"])?;
    }
    done("no xenstored")?;
    {
        let _hidden = hide("/usr/lib/xen-4.17/bin")?;
        refused("xl", &good, as_it_is, 1, &["there is no `xl`", "xen-utils-common"])?;
    }
    done("no xl")?;
    let huge = manifest("/guest/chain.cpio", "1MiB", "64GiB");
    refused("memory", &huge, as_it_is, 4, &["failed for good", "xl create", "memory"])?;
    done("no memory for a guest")?;
    // It has the name that the appliance's own guest would have.
    let other = machine.create(&format!("{APPLIANCE}-a"), 192, 1, &["hello"])?;
    let words = [&format!("a guest named `{}` (number {})", other.name, other.id), "xl destroy"];
    refused("name", &good, as_it_is, 1, &words)?;
    if !machine.is_listed(other.id)? {
        return Err(format!("{} is not the manager's, and is gone", other.name));
    }
    done("a guest of somebody else has the name")?;
    Ok(format!("{count} times fidod has said what is wrong and what to do, and left nothing"))
}

/// Runs `fidod`, which has to end with that code and say all of that.
fn refused(
    label: &str,
    manifest: &str,
    change: impl FnOnce(&mut Command),
    code: i32,
    words: &[&str],
) -> Result<(), Failure> {
    let label = format!("refused-{label}");
    let mut command = fidod::command(&label, manifest)?;
    change(&mut command);
    let mut process = fidod::start(&mut command, &label)?;
    let status = process.wait(LIMIT)?;
    let said = process.said();
    if status.code() != Some(code) {
        return Err(process.failure(&format!("{label}: {status}, and not {code}")));
    }
    match words.iter().find(|word| !said.contains(**word)) {
        Some(missing) => Err(process.failure(&format!("{label}: it does not say {missing:?}"))),
        None => Ok(()),
    }
}

/// An empty folder over another one, until it is dropped.
struct Hidden(&'static str);

fn hide(folder: &'static str) -> Result<Hidden, Failure> {
    fs::metadata(folder).map_err(|error| format!("{folder}: {error}"))?;
    rustix::mount::mount("tmpfs", folder, "tmpfs", MountFlags::empty(), None)
        .map_err(|error| format!("{folder}: {error}"))?;
    Ok(Hidden(folder))
}

impl Drop for Hidden {
    fn drop(&mut self) {
        if let Err(error) = rustix::mount::unmount(self.0, UnmountFlags::DETACH) {
            println!("testbed-dom0: {}: {error}", self.0);
        }
    }
}
