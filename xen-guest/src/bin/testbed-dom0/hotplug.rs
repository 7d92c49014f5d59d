//! What the toolstack runs when a network interface of a guest appears in dom0, in place of Xen's shell scripts: dom0's
//! end gets an address, and guest and dom0 are neighbours. It is this program under another name ([`PROGRAM`]).

use std::process::ExitCode;

use fido_core::platform::xen::store::Store;
use xen_guest::network;

use crate::Failure;

/// The name under which this program is that.
pub const PROGRAM: &str = "/bin/testbed-vif";

/// dom0's address.
pub const ADDRESS: &str = "10.0.0.1/24";

/// Whether this process is the toolstack's.
pub fn is_asked() -> bool {
    std::env::args().next().is_some_and(|name| name == PROGRAM)
}

/// Does what the toolstack asks for.
pub fn run() -> ExitCode {
    match answer() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{PROGRAM}: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn answer() -> Result<(), Failure> {
    // An interface that goes needs nothing.
    if std::env::args().nth(1).as_deref() != Some("online") {
        return Ok(());
    }
    let variable = |name: &str| std::env::var(name).map_err(|_| format!("the variable {name} is not set"));
    let (interface, nodes) = (variable("vif")?, variable("XENBUS_PATH")?);
    let address = ADDRESS.parse().map_err(|error| format!("{ADDRESS}: {error}"))?;
    network::set_up(&interface, address).map_err(|error| error.to_string())?;
    let store = Store::connect().map_err(|error| error.to_string())?;
    store.now().write(&format!("{nodes}/hotplug-status"), b"connected").map_err(|error| error.to_string())
}
