//! The body of the fuzz target over what a TAP device may say. `fuzz/` feeds it from a fuzzer, a property test where there
//! is none.

#![expect(clippy::expect_used, reason = "a fuzz target says by a panic that a promise is broken")]

use std::os::unix::net::UnixDatagram;

use fido_core::testing::private_memory;

use super::TapPort;
use crate::frame::{FramePort, check};

/// The longest packet that is tried.
const MAX_PACKET: usize = 1700;

/// Packets, each with a byte for its length before it. What the port takes is a frame that it may send as well, all else is
/// refused and counted, and no buffer is left.
///
/// # Panics
/// If a promise is broken: for fuzzing.
pub fn input(mut data: &[u8]) {
    let memory = private_memory(1 << 20);
    let (near, kernel) = UnixDatagram::pair().expect("sockets");
    near.set_nonblocking(true).expect("a socket");
    let mut port = TapPort::over(near.into(), "fuzz", 576, true, memory.clone());
    let mut given = 0;
    while let Some((len, rest)) = data.split_first() {
        let (packet, rest) = rest.split_at(rest.len().min(usize::from(*len) * MAX_PACKET / 255));
        data = rest;
        kernel.send(packet).expect("a packet");
        given += 1;
        if let Some(frame) = port.recv() {
            assert_eq!(frame.payload.len() as usize + super::VIRTIO_HEADER_BYTES, packet.len());
            check(frame.payload.len(), &frame.offload, port.mtu()).expect("a frame of this port");
            port.send(frame).expect("it may go as it came");
            kernel.recv(&mut [0; 1]).expect("it went");
        }
    }
    let counts = port.counts();
    assert_eq!((counts.received + counts.refused, counts.sent), (given, counts.received));
    drop(port);
    assert_eq!(memory.heap().used(), 0);
}
