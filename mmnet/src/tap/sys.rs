//! The kernel's interface to TAP devices: `/dev/net/tun` and its requests (`linux/if_tun.h`).

use std::ffi::{c_int, c_ulong};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use crate::frame::VIRTIO_HEADER_BYTES;

const CLONE_DEVICE: &str = "/dev/net/tun";

const TUNSETIFF: c_ulong = 0x4004_54CA;
const TUNSETOFFLOAD: c_ulong = 0x4004_54D0;
const TUNSETVNETHDRSZ: c_ulong = 0x4004_54D8;
const TUNSETVNETLE: c_ulong = 0x4004_54DC;

const OFFLOAD_CHECKSUM: c_ulong = 0x01;
const OFFLOAD_TCP4: c_ulong = 0x02;
const OFFLOAD_TCP6: c_ulong = 0x04;
const OFFLOAD_TCP_ECN: c_ulong = 0x08;
const OFFLOAD_UDP4: c_ulong = 0x20;
const OFFLOAD_UDP6: c_ulong = 0x40;
const OFFLOAD_TCP: c_ulong = OFFLOAD_CHECKSUM | OFFLOAD_TCP4 | OFFLOAD_TCP6 | OFFLOAD_TCP_ECN;
const OFFLOAD_UDP: c_ulong = OFFLOAD_UDP4 | OFFLOAD_UDP6;

/// The longest name of an interface, in bytes.
pub(super) const MAX_NAME: usize = libc::IFNAMSIZ - 1;

fn request(name: &str) -> libc::ifreq {
    // SAFETY: plain data for which zeros are an empty name and no value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name[..MAX_NAME].iter_mut().zip(name.bytes()) {
        *place = byte.cast_signed() as _;
    }
    request
}

fn call(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A descriptor that may become a queue of a device.
pub(super) fn open() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(CLONE_DEVICE, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?)
}

/// Makes it a queue of the TAP device `name`, which is made if it is not there. Returns the device's name.
pub(super) fn attach(fd: &OwnedFd, name: &str, many: bool) -> io::Result<String> {
    let mut request = request(name);
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | if many { libc::IFF_MULTI_QUEUE } else { 0 };
    request.ifr_ifru.ifru_flags = flags as _;
    // SAFETY: the request reads and writes the `ifreq` that we own, and nothing else.
    call(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETIFF as _, &raw mut request) })?;
    let bytes = request.ifr_name.iter().map(|byte| byte.cast_unsigned()).take_while(|byte| *byte != 0);
    Ok(String::from_utf8_lossy(&bytes.collect::<Vec<_>>()).into_owned())
}

/// Sets the form of the header before each frame.
pub(super) fn set_header(fd: &OwnedFd) -> io::Result<()> {
    let (size, little_endian) = (VIRTIO_HEADER_BYTES as c_int, 1 as c_int);
    // SAFETY: the request reads one `int` that outlives the call.
    call(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETVNETHDRSZ as _, &raw const size) })?;
    // SAFETY: as above.
    call(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETVNETLE as _, &raw const little_endian) })
}

/// Says that frames may come without checksum and large; whether that includes UDP, which older kernels do not have.
pub(super) fn set_offload(fd: &OwnedFd) -> io::Result<bool> {
    // SAFETY: the request takes its argument by value.
    let all = call(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETOFFLOAD as _, OFFLOAD_TCP | OFFLOAD_UDP) });
    if all.is_ok() {
        return Ok(true);
    }
    // SAFETY: as above.
    call(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETOFFLOAD as _, OFFLOAD_TCP) })?;
    Ok(false)
}

/// Says that every frame is to come as it goes over a wire.
pub(super) fn clear_offload(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: the request takes its argument by value.
    call(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETOFFLOAD as _, 0 as c_ulong) })
}

fn any_socket() -> io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType};
    Ok(rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?)
}

/// The MTU of an interface.
pub(super) fn mtu(name: &str) -> io::Result<usize> {
    let socket = any_socket()?;
    let mut request = request(name);
    // SAFETY: the request reads and writes the `ifreq` that we own, and nothing else.
    call(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU as _, &raw mut request) })?;
    // SAFETY: the kernel has just written this field.
    Ok(usize::try_from(unsafe { request.ifr_ifru.ifru_mtu }).unwrap_or(0))
}

/// Sets the MTU of an interface.
pub(super) fn set_mtu(name: &str, mtu: usize) -> io::Result<()> {
    let socket = any_socket()?;
    let mut request = request(name);
    request.ifr_ifru.ifru_mtu = c_int::try_from(mtu).unwrap_or(c_int::MAX);
    // SAFETY: the request reads the `ifreq` that we own, and nothing else.
    call(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFMTU as _, &raw const request) })
}
