//! Addresses of network interfaces, set without a shell or other programs: over the kernel's routing socket.
//!
//! Source of the messages: `linux/netlink.h`, `linux/rtnetlink.h` and `linux/if_addr.h` of Linux's user-space interface.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use fido_core::platform::xen::store::Store;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// How long a network interface of the guest may take to appear.
const INTERFACE_LIMIT: Duration = Duration::from_secs(10);

const INTERFACES: &str = "/sys/class/net";
const ERROR: u16 = 2;
const NEW_LINK: u16 = 16;
const NEW_ADDRESS: u16 = 20;
/// Request, acknowledge.
const ASK: u16 = 1 | 4;
/// Replace, create.
const MAKE: u16 = 0x100 | 0x400;
const IPV4: u8 = 2;
const UP: u32 = 1;

/// An address with the length of its network's prefix, as in `10.0.0.2/24`; 24 if it does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub ip: Ipv4Addr,
    /// How many of its bits name the network.
    pub prefix: u8,
}

impl FromStr for Address {
    type Err = io::Error;

    fn from_str(text: &str) -> io::Result<Self> {
        let (ip, prefix) = text.split_once('/').unwrap_or((text, "24"));
        let address = ip.parse().ok().zip(prefix.parse().ok().filter(|prefix| *prefix <= 32));
        let address = address.map(|(ip, prefix)| Self { ip, prefix });
        let error = || io::Error::new(io::ErrorKind::InvalidInput, format!("{text:?} is no address like 10.0.0.2/24"));
        address.ok_or_else(error)
    }
}

/// Gives an interface an address and switches it on.
///
/// # Errors
/// The kernel's, with the interface.
pub fn set_up(interface: &str, address: Address) -> io::Result<()> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{interface}: {error}"));
    let index = fs::read_to_string(format!("{INTERFACES}/{interface}/ifindex")).map_err(named)?;
    let index: u32 = index.trim().parse().map_err(|_| named(io::ErrorKind::InvalidData.into()))?;
    let result = ask(NEW_ADDRESS, ASK | MAKE, &address_message(index, address));
    result.and_then(|()| ask(NEW_LINK, ASK, &up_message(index))).map_err(named)
}

fn address_message(index: u32, address: Address) -> Vec<u8> {
    let mut message = vec![IPV4, address.prefix, 0, 0];
    message.extend(index.to_ne_bytes());
    // The address of the interface, and of the other end, which is the same in a network of many.
    for attribute in [2u16, 1] {
        message.extend(8u16.to_ne_bytes());
        message.extend(attribute.to_ne_bytes());
        message.extend(address.ip.octets());
    }
    message
}

fn up_message(index: u32) -> Vec<u8> {
    [[0; 4], index.to_ne_bytes(), UP.to_ne_bytes(), UP.to_ne_bytes()].concat()
}

/// Sends a request and waits for the acknowledgement. The routing protocol is the default, number 0.
fn ask(kind: u16, flags: u16, message: &[u8]) -> io::Result<()> {
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    let mut request = (16 + message.len() as u32).to_ne_bytes().to_vec();
    request.extend(kind.to_ne_bytes());
    request.extend(flags.to_ne_bytes());
    // A number and a port, which nobody needs here: there is one request.
    request.extend([0; 8]);
    request.extend(message);
    rustix::net::sendto(&socket, &request, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut reply = [0; 1024];
    let (length, _) = rustix::net::recv(&socket, &mut reply, RecvFlags::empty())?;
    verdict(reply.get(..length).unwrap_or_default())
}

/// The error in an acknowledgement; 0 is none.
fn verdict(reply: &[u8]) -> io::Result<()> {
    let kind = reply.get(4..6).map(|bytes| u16::from_ne_bytes([bytes[0], bytes[1]]));
    let error = reply.get(16..20).map(|bytes| i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
    match (kind, error) {
        (Some(ERROR), Some(0)) => Ok(()),
        (Some(ERROR), Some(error)) => Err(io::Error::from_raw_os_error(error.saturating_neg())),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel answered something else")),
    }
}

/// Gives each network interface of this guest the address that its `vif` in the configuration names (`ip=10.0.0.2/24`),
/// if it names one.
///
/// # Errors
/// xenstore's, an address that is none, an interface that does not appear, or the kernel's.
pub fn set_up_guest() -> io::Result<()> {
    let store = Store::connect().map_err(io::Error::other)?;
    let read = |path: &str| -> io::Result<Option<String>> {
        let value = store.now().read_if_any(path).map_err(io::Error::other)?;
        Ok(value.map(|value| String::from_utf8_lossy(&value).trim().to_owned()).filter(|value| !value.is_empty()))
    };
    for device in store.now().children("device/vif").map_err(io::Error::other)? {
        let base = format!("device/vif/{device}");
        let Some(backend) = read(&format!("{base}/backend"))? else { continue };
        let Some(address) = read(&format!("{backend}/ip"))? else { continue };
        let hardware = read(&format!("{base}/mac"))?.unwrap_or_default();
        set_up(&find(&hardware)?, address.parse()?)?;
    }
    Ok(())
}

/// The interface with that hardware address.
fn find(hardware: &str) -> io::Result<String> {
    let began = Instant::now();
    loop {
        for entry in fs::read_dir(INTERFACES)?.flatten() {
            let address = fs::read_to_string(entry.path().join("address")).unwrap_or_default();
            if address.trim().eq_ignore_ascii_case(hardware) {
                return Ok(entry.file_name().to_string_lossy().into_owned());
            }
        }
        if began.elapsed() > INTERFACE_LIMIT {
            let what = format!("no network interface {hardware}; has the image the module xen-netfront?");
            return Err(io::Error::new(io::ErrorKind::NotFound, what));
        }
        sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_with_and_without_their_prefix() {
        let address = |text: &str| text.parse::<Address>().ok().map(|address| (address.ip.octets(), address.prefix));
        assert_eq!(address("10.0.0.2/30"), Some(([10, 0, 0, 2], 30)));
        assert_eq!(address("10.0.0.2"), Some(([10, 0, 0, 2], 24)));
        assert_eq!(address("0.0.0.0/32"), Some(([0, 0, 0, 0], 32)));
        for bad in ["", "10.0.0/24", "10.0.0.2/33", "10.0.0.2/", "10.0.0.2/-1", "host"] {
            assert_eq!(address(bad), None, "{bad}");
        }
    }

    #[test]
    fn messages_are_as_the_kernel_wants_them() {
        let message = address_message(7, "10.0.0.2/24".parse().unwrap());
        assert_eq!(message.len(), 24);
        assert_eq!(message[..8], [[2, 24, 0, 0], 7u32.to_ne_bytes()].concat());
        assert_eq!(message[8..16], [&8u16.to_ne_bytes()[..], &2u16.to_ne_bytes(), &[10, 0, 0, 2]].concat());
        assert_eq!(up_message(7).len(), 16);
    }

    #[test]
    fn the_kernel_answers() {
        let error = set_up("no-such-interface", "10.0.0.2".parse().unwrap()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        // An interface that does not exist, asked for by number: whether or not this may be asked, it is refused.
        assert!(ask(NEW_LINK, ASK, &up_message(u32::MAX >> 1)).unwrap_err().raw_os_error().is_some());
        assert!(verdict(&[0; 3]).is_err() && verdict(&[0; 36]).is_err());
    }
}
