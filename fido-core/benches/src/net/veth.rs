//! A pair of veth devices between the two sides, each in a network namespace of its own.

use std::net::{IpAddr, Ipv4Addr};

use super::kernel::Sockets;
use super::{Say, spaces};
use crate::Failure;
use crate::other_side::Control;

/// The leading side, whose thread is in a namespace of its own already.
///
/// # Errors
/// What `ip` says, or if the other side is gone.
pub fn lead(control: &mut Control) -> Result<Sockets, Failure> {
    let Say::Apart { process } = control.hear()?.0 else { return Err("the other side has no namespace".into()) };
    spaces::ip(&format!("link add veth0 type veth peer name veth0 netns {process}"))?;
    control.say(&Say::Joined, &[])?;
    Sockets::lead(up(1)?, control)
}

/// The other side.
///
/// # Errors
/// As [`lead`].
pub fn follow(control: &mut Control) -> Result<Sockets, Failure> {
    spaces::leave()?;
    control.say(&Say::Apart { process: std::process::id() }, &[])?;
    let Say::Joined = control.hear()?.0 else { return Err("no end of a veth pair came".into()) };
    Sockets::follow(up(2)?, control)
}

/// Gives this side's end its address.
fn up(number: u8) -> Result<IpAddr, Failure> {
    let address = Ipv4Addr::new(10, 78, 0, number);
    spaces::ip(&format!("addr add {address}/24 dev veth0"))?;
    spaces::ip("link set veth0 up")?;
    Ok(address.into())
}
