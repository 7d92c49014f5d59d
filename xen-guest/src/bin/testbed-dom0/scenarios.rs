//! The scenarios, by name. Each returns one line about what it found, or what went wrong.

use std::time::Duration;

use xen_guest::report::Kind;

use crate::machine::Machine;
use crate::{Failure, Reporter};

/// How long a guest may take to boot and do something short.
const GUEST_LIMIT: Duration = Duration::from_secs(90);

/// Runs a scenario.
pub fn run(name: &str, machine: &mut Machine, reporter: &mut Reporter) -> Result<String, Failure> {
    match name {
        "boot" => boot(machine, reporter),
        "doctor" => crate::doctor::run(reporter),
        "costs" => crate::costs::run(machine, reporter),
        "memory" => crate::memory::run(machine, reporter),
        "conformance" => crate::appliance::conform(machine, reporter),
        "destroy" => crate::appliance::destroy(machine, reporter),
        "ring" => crate::appliance::ring(machine, reporter),
        "refusals" => crate::refusals::run(machine, reporter),
        "handshake" => crate::handshake::run(machine, reporter),
        "nas" => crate::nas::run(machine, reporter),
        "lost" => crate::lost::run(machine, reporter),
        _ => Err(format!("this image has no scenario `{name}`")),
    }
}

/// Two guests say who they are.
fn boot(machine: &mut Machine, reporter: &mut Reporter) -> Result<String, Failure> {
    let guests = [machine.create("one", 192, 1, &["hello"])?, machine.create("two", 192, 2, &["hello"])?];
    for guest in &guests {
        guest.wait_for_success(GUEST_LIMIT)?;
        let said = guest.wait_for_node("data/hello", GUEST_LIMIT)?;
        if said != guest.id.to_string() {
            return Err(format!("guest {} is domain {} but says that it is {said}", guest.name, guest.id));
        }
        let layer = guest.wait_for_node("data/layer", GUEST_LIMIT)?;
        reporter.send(Kind::Note, "boot", format!("guest {} is domain {said}, by {layer}", guest.name).as_bytes())?;
    }
    // Their consoles and their rings with xenstored. What the check for leaks rests on can see them, then.
    let grants = machine.grants()?;
    for guest in &guests {
        if !grants.iter().any(|table| table.domain == guest.id && table.active >= 2) {
            return Err(format!("the dump of grants does not show guest {}: {grants:?}", guest.name));
        }
    }
    Ok("two guests ran a program of ours and found themselves in xenstore".to_owned())
}
