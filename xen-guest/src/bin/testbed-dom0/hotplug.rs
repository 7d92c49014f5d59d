//! What the toolstack runs when a network interface or a disk of a guest appears in dom0, in place of Xen's shell scripts.
//! dom0's end of an interface gets an address: guest and dom0 are neighbours. A disk's back end is told which device it
//! is. It is this program under other names ([`NETWORK`], [`DISK`]).

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::process::ExitCode;

use fido_core::platform::xen::store::Store;
use xen_guest::network;

use crate::Failure;

/// The name under which this program is that for network interfaces; configurations name it.
const NETWORK: &str = "/bin/testbed-vif";
/// And for disks: the toolstack's default.
const DISK: &str = "/etc/xen/scripts/block";

/// dom0's address.
pub const ADDRESS: &str = "10.0.0.1/24";

/// Whether this process is the toolstack's.
pub fn is_asked() -> bool {
    std::env::args().next().is_some_and(|name| name == NETWORK || name == DISK)
}

/// Does what the toolstack asks for.
pub fn run() -> ExitCode {
    match answer() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{}: {failure}", std::env::args().next().unwrap_or_default());
            ExitCode::FAILURE
        }
    }
}

fn answer() -> Result<(), Failure> {
    let action = std::env::args().nth(1).unwrap_or_default();
    // What goes needs nothing.
    if !["online", "add"].contains(&action.as_str()) {
        return Ok(());
    }
    let variable = |name: &str| std::env::var(name).map_err(|_| format!("the variable {name} is not set"));
    let nodes = variable("XENBUS_PATH")?;
    let store = Store::connect().map_err(|error| error.to_string())?;
    let write = |node: &str, value: &str| {
        store.now().write(&format!("{nodes}/{node}"), value.as_bytes()).map_err(|error| error.to_string())
    };
    if action == "online" {
        let address = ADDRESS.parse().map_err(|error| format!("{ADDRESS}: {error}"))?;
        network::set_up(&variable("vif")?, address).map_err(|error| error.to_string())?;
    } else {
        let target = store.now().read(&format!("{nodes}/params")).map_err(|error| error.to_string())?;
        write("physical-device", &numbers(&String::from_utf8_lossy(&target))?)?;
    }
    write("hotplug-status", "connected")
}

/// A block device's numbers, as the back end wants them.
fn numbers(device: &str) -> Result<String, Failure> {
    let metadata = fs::metadata(device).map_err(|error| format!("{device}: {error}"))?;
    if !metadata.file_type().is_block_device() {
        return Err(format!("{device}: not a block device"));
    }
    let number = metadata.rdev();
    Ok(format!("{:x}:{:x}", rustix::fs::major(number), rustix::fs::minor(number)))
}
