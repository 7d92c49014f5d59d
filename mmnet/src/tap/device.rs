//! Opening the queues of a TAP device, and what can be in the way.

use std::io;
use std::os::fd::OwnedFd;

use super::sys;
use crate::frame::{FrameError, MAX_MTU, MIN_MTU};

/// The most queues that the kernel gives one device.
pub const MAX_QUEUES: usize = 256;

/// Which device, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TapOptions {
    /// The interface's name. One that is not there is made, and goes with its last queue; `tap%d` lets the kernel number it.
    pub name: String,
    /// The MTU that the interface is to have; `None`: the one that it has.
    pub mtu: Option<usize>,
    /// Whether the kernel may leave checksums and segmentation to who takes the frames off the appliance.
    pub offload: bool,
}

impl TapOptions {
    /// The device with that name, with the MTU it has, and everything left to the edge.
    pub fn named(name: &str) -> Self {
        Self { name: name.into(), mtu: None, offload: true }
    }
}

/// Why a TAP device cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// No interface can have that name.
    #[error(
        "{0:?} is no name of a network interface: it must have 1 to {max} bytes, without spaces, slashes and colons",
        max = sys::MAX_NAME
    )]
    Name(String),
    /// So many queues are out of range.
    #[error("{0} queues; a TAP device has 1 to {MAX_QUEUES}")]
    Queues(usize),
    /// The MTU is out of range.
    #[error(transparent)]
    Mtu(FrameError),
    /// This process may not.
    #[error(
        "no permission for the TAP device {name} (CAP_NET_ADMIN is missing). Its administrator can make one that this \
         user may open, and with it no capability is needed: \
         `ip tuntap add dev {name} mode tap{many} vnet_hdr user USER && ip link set {name} up`",
        many = if *.queues > 1 { " multi_queue" } else { "" }
    )]
    Denied {
        /// The device.
        name: String,
        /// How many queues were asked for.
        queues: usize,
    },
    /// This process may use the device, but not set its MTU.
    #[error(
        "the interface {name} has an MTU of {mtu}, and no permission to set {wanted} (CAP_NET_ADMIN is missing): \
         `ip link set {name} mtu {wanted}`"
    )]
    MtuDenied {
        /// The device.
        name: String,
        /// What it has.
        mtu: usize,
        /// What was asked for.
        wanted: usize,
    },
    /// The system has no TAP devices.
    #[error("there is no /dev/net/tun: `modprobe tun`, and in a container the device must be given to it")]
    NoDriver,
    /// Somebody else has the device.
    #[error("the TAP device {0} is in use by another process")]
    Busy(String),
    /// The interface is there, but is not such a device.
    #[error("the interface {name} is no TAP device with {many}", many = if *.queues > 1 { "many queues (`multi_queue`)" } else { "one queue" })]
    OtherKind {
        /// The device.
        name: String,
        /// How many queues were asked for.
        queues: usize,
    },
    /// The kernel refuses something else.
    #[error("TAP device {name}: {what}: {source}")]
    System {
        /// The device.
        name: String,
        /// What was to be done.
        what: &'static str,
        /// What it says.
        source: io::Error,
    },
}

/// The queues of a device, and what it is.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) name: String,
    pub(super) mtu: usize,
    pub(super) udp: bool,
    pub(super) queues: Vec<OwnedFd>,
}

pub(super) fn open(options: &TapOptions, queues: usize) -> Result<Opened, TapError> {
    check_name(&options.name)?;
    if !(1..=MAX_QUEUES).contains(&queues) {
        return Err(TapError::Queues(queues));
    }
    if let Some(mtu) = options.mtu.filter(|mtu| !(MIN_MTU..=MAX_MTU).contains(mtu)) {
        return Err(TapError::Mtu(FrameError::Mtu(mtu)));
    }
    let (first, name, many) = first_queue(&options.name, queues)?;
    let mut all = vec![first];
    while all.len() < queues {
        let fd = open_driver(&name, queues)?;
        sys::attach(&fd, &name, many).map_err(|error| refused(&name, queues, "attaching a queue", error))?;
        all.push(fd);
    }
    let system = |what| {
        let name = name.clone();
        move |source| TapError::System { name, what, source }
    };
    let mut udp = false;
    for fd in &all {
        sys::set_header(fd).map_err(system("setting the header's form"))?;
        if options.offload {
            udp = sys::set_offload(fd).map_err(system("setting the offloads"))?;
        } else {
            sys::clear_offload(fd).map_err(system("setting the offloads"))?;
        }
    }
    let mtu = settle_mtu(&name, options.mtu)?;
    Ok(Opened { name, mtu, udp, queues: all })
}

fn check_name(name: &str) -> Result<(), TapError> {
    let fits = (1..=sys::MAX_NAME).contains(&name.len()) && name != "." && name != "..";
    if fits && name.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':')) {
        return Ok(());
    }
    Err(TapError::Name(name.into()))
}

fn open_driver(name: &str, queues: usize) -> Result<OwnedFd, TapError> {
    sys::open().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => TapError::NoDriver,
        _ => refused(name, queues, "opening /dev/net/tun", error),
    })
}

/// The first queue, the device's name, and whether it is one that can have many. Of a device that was made beforehand it
/// is not known which it is; one queue may be had of either.
fn first_queue(name: &str, queues: usize) -> Result<(OwnedFd, String, bool), TapError> {
    let mut many = queues > 1;
    loop {
        let fd = open_driver(name, queues)?;
        match sys::attach(&fd, name, many) {
            Ok(name) => return Ok((fd, name, many)),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && !many => many = true,
            Err(error) => return Err(refused(name, queues, "attaching to it", error)),
        }
    }
}

fn refused(name: &str, queues: usize, what: &'static str, source: io::Error) -> TapError {
    let name = name.to_owned();
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => TapError::Denied { name, queues },
        Some(libc::EBUSY) => TapError::Busy(name),
        Some(libc::EINVAL) => TapError::OtherKind { name, queues },
        _ => TapError::System { name, what, source },
    }
}

fn settle_mtu(name: &str, wanted: Option<usize>) -> Result<usize, TapError> {
    let system = |what| move |source| TapError::System { name: name.into(), what, source };
    let mtu = sys::mtu(name).map_err(system("asking for its MTU"))?;
    let Some(wanted) = wanted.filter(|wanted| *wanted != mtu) else {
        return if (MIN_MTU..=MAX_MTU).contains(&mtu) { Ok(mtu) } else { Err(TapError::Mtu(FrameError::Mtu(mtu))) };
    };
    match sys::set_mtu(name, wanted) {
        Ok(()) => Ok(wanted),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            Err(TapError::MtuDenied { name: name.into(), mtu, wanted })
        }
        Err(error) => Err(system("setting its MTU")(error)),
    }
}
