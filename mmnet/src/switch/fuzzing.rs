//! The body of the fuzz target over what a station may send, and ports for it and for the tests. `fuzz/` feeds it from a
//! fuzzer, a property test where there is none.

#![expect(clippy::expect_used, reason = "a fuzz target says by a panic that a promise is broken")]

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};

use fido_core::addr::DomainId;
use fido_core::bell::Bell;
use fido_core::memory::Memory;
use fido_core::testing::private_memory;
use fido_core::wait::Source;

use super::{Membership, PortSettings, Switch, SwitchSettings};
use crate::frame::{Frame, FrameCounts, FrameError, FramePort, Offload, VIRTIO_HEADER_BYTES, VirtioHeader, check};

/// A port whose other end is two queues.
#[derive(Debug)]
pub(super) struct Paper {
    memory: Memory,
    bell: Bell,
    pub(super) incoming: VecDeque<Frame>,
    pub(super) outgoing: Vec<Frame>,
    /// How many frames may be in `outgoing`.
    pub(super) room: usize,
    counts: FrameCounts,
}

impl Paper {
    pub(super) fn new(memory: &Memory) -> Self {
        let bell = Bell::new().expect("a bell");
        let (incoming, outgoing) = Default::default();
        Self { memory: memory.clone(), bell, incoming, outgoing, room: usize::MAX, counts: FrameCounts::default() }
    }
}

impl FramePort for Paper {
    fn memory(&self) -> &Memory {
        &self.memory
    }

    fn mtu(&self) -> usize {
        1500
    }

    fn counts(&self) -> FrameCounts {
        self.counts
    }

    fn has_room(&self) -> bool {
        self.outgoing.len() < self.room
    }

    fn send(&mut self, frame: Frame) -> Result<(), FrameError> {
        check(frame.payload.len(), &frame.offload, self.mtu())?;
        if self.has_room() {
            self.outgoing.push(frame);
        } else {
            self.counts.dropped_sending += 1;
        }
        Ok(())
    }

    fn recv(&mut self) -> Option<Frame> {
        self.incoming.pop_front()
    }

    fn flush(&mut self) {}

    fn forget(&mut self, dead: DomainId) {
        self.outgoing.retain(|frame| !crate::frame::lies_in(&frame.payload, dead));
    }
}

impl Source for Paper {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

/// The bytes of a frame, in private memory.
pub(super) fn bytes_of(memory: &Memory, frame: &Frame) -> Vec<u8> {
    let mut bytes = vec![0; frame.payload.len() as usize];
    memory.read_header(&frame.payload, 0, &mut bytes).expect("bytes that are there");
    bytes
}

/// The VLAN that a tag names, and the frame without it.
fn undressed(mut bytes: Vec<u8>) -> (Option<u16>, Vec<u8>) {
    if bytes.len() < 18 || bytes[12..14] != [0x81, 0] {
        return (None, bytes);
    }
    let vlan = u16::from_be_bytes([bytes[14] & 0x0F, bytes[15]]);
    bytes.drain(12..16);
    (Some(vlan), bytes)
}

/// The VLANs of the ports of the fuzzed switch: what they send without a tag belongs to the first, and they carry these.
fn memberships() -> [Membership; 4] {
    let trunk = |native| Membership::Trunk { vlans: vec![1, 2], native };
    [Membership::Access(1), Membership::Access(2), trunk(None), trunk(Some(2))]
}

/// Frames with any headers and marks: each has a byte for its port and length, twelve of marks, and what follows. Wherever
/// one comes out, its bytes are those that went in, but for the tag; it is of a VLAN of that port, does not go back, and
/// its marks fit it. The mirror gets all that are frames, as they came. No buffer is left.
///
/// # Panics
/// If a promise is broken: for fuzzing.
pub fn frames(mut data: &[u8]) {
    let memory = private_memory(1 << 20);
    let mirror = PortSettings { mirror: true, ..PortSettings::named("mirror") };
    let settings = memberships().map(|membership| PortSettings { membership, ..PortSettings::named("port") });
    let ports = settings.into_iter().chain([mirror]).map(|settings| (settings, Paper::new(&memory))).collect();
    let mut switch = Switch::new(SwitchSettings { stations: 4, age: 1 }, ports, memory.clone()).expect("sane settings");
    while let [first, rest @ ..] = data {
        let (marks, rest) = rest.split_at(rest.len().min(VIRTIO_HEADER_BYTES));
        let (given, rest) = rest.split_at(rest.len().min(usize::from(first >> 3) * 4));
        data = rest;
        let from = usize::from(first & 7) % 5;
        let Ok(mut buf) = memory.alloc(given.len().max(14)) else { return };
        buf.as_mut_slice().fill(0);
        buf.as_mut_slice()[..given.len()].copy_from_slice(given);
        let mut header = [0; VIRTIO_HEADER_BYTES];
        header[..marks.len()].copy_from_slice(marks);
        let offload = Offload::try_from(VirtioHeader::from_bytes(header)).unwrap_or_default();
        let fits = check(buf.len() as u64, &offload, 1500).is_ok();
        let frame = Frame { offload: if fits { offload } else { Offload::default() }, payload: buf.into_payload() };
        let sent = bytes_of(&memory, &frame);
        switch.ports[from].device.incoming.push_back(frame);
        assert!(switch.turn());
        judge(&mut switch, from, &sent);
    }
    drop(switch);
    assert_eq!(memory.heap().used(), 0);
}

fn judge(switch: &mut Switch<Paper>, from: usize, sent: &[u8]) {
    let (tag, body) = undressed(sent.to_vec());
    let memory = switch.memory.clone();
    for to in 0..switch.ports.len() {
        let settings = switch.ports[to].settings.clone();
        let outgoing = std::mem::take(&mut switch.ports[to].device.outgoing);
        assert!(outgoing.len() <= usize::from(to != from), "at most once, and not back");
        for frame in outgoing {
            let bytes = bytes_of(&memory, &frame);
            frame.offload.check(frame.payload.len(), 1500).expect("marks that fit");
            if settings.mirror {
                assert_eq!(bytes, sent);
                continue;
            }
            let vlan = switch.ports[from].settings.membership.of(tag).expect("a VLAN of the port it came from");
            assert!(settings.membership.carries(vlan));
            let (new_tag, new_body) = undressed(bytes);
            assert_eq!(new_body, body);
            assert_eq!(new_tag, settings.membership.tags(vlan).then_some(vlan));
        }
    }
}
