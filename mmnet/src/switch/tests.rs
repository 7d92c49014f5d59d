use fido_core::addr::{Generation, GlobalAddr, Segment};
use fido_core::testing::{mesh, private_memory};
use proptest::prelude::*;

use super::fuzzing::{Paper, bytes_of};
use super::*;
use crate::frame::FrameLink;

const EVERYBODY: [u8; 6] = [0xFF; 6];

fn address(number: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, number]
}

fn frame(memory: &Memory, to: [u8; 6], from: [u8; 6]) -> Frame {
    let mut buf = memory.alloc(60).unwrap();
    buf.as_mut_slice().fill(7);
    buf.as_mut_slice()[..6].copy_from_slice(&to);
    buf.as_mut_slice()[6..12].copy_from_slice(&from);
    buf.into_payload().into()
}

fn switch_of(settings: Vec<PortSettings>) -> (Switch<Paper>, Memory) {
    let memory = private_memory(1 << 20);
    let ports = settings.into_iter().map(|settings| (settings, Paper::new(&memory))).collect();
    (Switch::new(SwitchSettings::default(), ports, memory.clone()).unwrap(), memory)
}

fn plain(ports: usize) -> (Switch<Paper>, Memory) {
    switch_of((0..ports).map(|port| PortSettings::named(&port.to_string())).collect())
}

/// Sends a frame and returns at how many ports it came out, by port.
fn pass(switch: &mut Switch<Paper>, from: usize, frame: Frame) -> Vec<usize> {
    switch.ports[from].device.incoming.push_back(frame);
    assert!(switch.turn() && !switch.turn());
    switch.ports.iter_mut().map(|port| std::mem::take(&mut port.device.outgoing).len()).collect()
}

#[test]
fn stations_are_learned_and_others_no_longer_disturbed() {
    let (mut switch, memory) = plain(4);
    let send = |switch: &mut _, from, to, by| pass(switch, from, frame(&memory, to, address(by)));
    assert_eq!(send(&mut switch, 0, address(2), 1), [0, 1, 1, 1]);
    assert_eq!(send(&mut switch, 2, address(1), 2), [1, 0, 0, 0]);
    assert_eq!(send(&mut switch, 0, address(2), 1), [0, 0, 1, 0]);
    assert_eq!(send(&mut switch, 0, EVERYBODY, 1), [0, 1, 1, 1]);
    assert_eq!(send(&mut switch, 3, address(2), 1), [0, 0, 1, 0], "station 1 has moved to port 3");
    assert_eq!(send(&mut switch, 2, address(1), 2), [0, 0, 0, 1]);
    assert_eq!(send(&mut switch, 3, address(1), 9), [0; 4], "a frame for its own port");
    assert_eq!(send(&mut switch, 3, [1, 0x80, 0xC2, 0, 0, 0xE], 9), [0; 4], "for neighbours only");
    assert_eq!(send(&mut switch, 3, address(1), 9), [0; 4]);
    assert_eq!(pass(&mut switch, 1, frame(&memory, address(1), EVERYBODY)), [0; 4], "from a group");
    let counts: Vec<_> = switch.ports().map(|(_, _, counts)| *counts).collect();
    assert_eq!((counts[0].flooded, counts[3].filtered, counts[3].reserved, counts[1].invalid), (2, 2, 1, 1));
    assert_eq!(switch.stations(), (3, 0));
    assert_eq!((memory.stats().payload_bytes_copied.get(), memory.heap().used()), (0, 0));
}

#[test]
fn a_storm_is_limited_where_it_comes_from_and_known_stations_are_not() {
    let limited = PortSettings { broadcast: Some(100), unknown: Some(50), ..PortSettings::named("limited") };
    let (mut switch, memory) = switch_of(vec![limited, PortSettings::named("free")]);
    pass(&mut switch, 1, frame(&memory, EVERYBODY, address(2)));
    // Within the tenth of a second that the buckets hold; a slow machine lets some more through.
    let mut count = |to| (0..1000).map(|_| pass(&mut switch, 0, frame(&memory, to, address(1)))[1]).sum::<usize>();
    let (broadcasts, unknown, known) = (count(EVERYBODY), count(address(9)), count(address(2)));
    assert!(
        (10..1000).contains(&broadcasts) && (5..1000).contains(&unknown) && known == 1000,
        "{broadcasts} {unknown}"
    );
    assert_eq!(switch.ports[0].counts.storm as usize, 2000 - broadcasts - unknown);
}

#[test]
fn a_port_that_takes_nothing_holds_up_nobody() {
    let (mut switch, memory) = plain(3);
    switch.ports[2].device.room = 0;
    for _ in 0..3 * BATCH {
        switch.ports[0].device.incoming.push_back(frame(&memory, EVERYBODY, address(1)));
        switch.ports[2].device.incoming.push_back(frame(&memory, EVERYBODY, address(3)));
    }
    assert!(switch.turn());
    assert_eq!(switch.ports.each_incoming(), [2 * BATCH, 0, 2 * BATCH], "each has had its turn");
    while switch.turn() {}
    assert_eq!((switch.ports[1].device.outgoing.len(), switch.ports[0].device.outgoing.len()), (6 * BATCH, 3 * BATCH));
    assert_eq!(switch.ports[2].device.counts().dropped_sending, 3 * BATCH as u64);
}

trait EachIncoming {
    fn each_incoming(&self) -> Vec<usize>;
}

impl EachIncoming for Vec<Port<Paper>> {
    fn each_incoming(&self) -> Vec<usize> {
        self.iter().map(|port| port.device.incoming.len()).collect()
    }
}

#[test]
fn vlans_are_apart_and_a_trunk_carries_them_with_tags() {
    let access = |vlan| PortSettings { membership: Membership::Access(vlan), ..PortSettings::named("access") };
    let trunk = Membership::Trunk { vlans: vec![10, 20], native: None };
    let trunk = PortSettings { membership: trunk, ..PortSettings::named("trunk") };
    let mirror = PortSettings { mirror: true, ..PortSettings::named("mirror") };
    let (mut switch, memory) = switch_of(vec![access(10), access(20), access(10), trunk, mirror]);
    switch.ports[0].device.incoming.push_back(frame(&memory, EVERYBODY, address(1)));
    switch.turn();
    let out = |switch: &mut Switch<Paper>, port: usize| std::mem::take(&mut switch.ports[port].device.outgoing);
    assert_eq!([1, 2, 4].map(|port| out(&mut switch, port).len()), [0, 1, 1]);
    let tagged = out(&mut switch, 3).pop().unwrap();
    assert_eq!(bytes_of(&memory, &tagged)[12..18], [0x81, 0, 0, 10, 7, 7]);
    assert_eq!(pass(&mut switch, 3, tagged.clone()), [1, 0, 1, 0, 1], "and back without");
    assert_eq!(pass(&mut switch, 0, tagged), [0, 0, 0, 0, 1], "nobody behind an access port sends tags");
    assert_eq!(pass(&mut switch, 4, frame(&memory, EVERYBODY, address(8))), [0; 5], "a mirror only listens");
    assert_eq!((switch.ports[0].counts.vlan, switch.ports[4].counts.filtered), (1, 1));
}

#[test]
fn what_lies_in_a_dead_domain_is_let_go_now_and_later() {
    let (mut switch, memory) = plain(2);
    let own = memory.id();
    let other = DomainId { generation: Generation::new(own.generation.number() + 1).unwrap(), ..own };
    switch.ports[0].device.incoming.push_back(frame(&memory, EVERYBODY, address(1)));
    switch.turn();
    switch.forget(other);
    assert_eq!(switch.ports[1].device.outgoing.len(), 1);
    switch.forget(own);
    assert_eq!(switch.ports[1].device.outgoing.len(), 0);
    assert_eq!(pass(&mut switch, 0, frame(&memory, EVERYBODY, address(1))), [0, 0]);
    let mut wild = fido_core::payload::Payload::new();
    wild.push(Segment::new(GlobalAddr::from_bits(u64::MAX), 60), None);
    assert_eq!(pass(&mut switch, 0, wild.into()), [0, 0], "no window");
    assert_eq!((switch.ports[0].counts.invalid, memory.heap().used()), (2, 0));
}

#[test]
fn settings_are_checked_at_their_limits() {
    let with = |settings: SwitchSettings, port: PortSettings| {
        let memory = private_memory(1 << 20);
        Switch::new(settings, vec![(port, Paper::new(&memory))], memory).err()
    };
    let (port, sane) = (PortSettings::named("a"), SwitchSettings::default());
    assert_eq!(with(sane, port.clone()), None);
    for (stations, fits) in [(0, false), (1, true), (MAX_STATIONS, true), (MAX_STATIONS + 1, false)] {
        assert_eq!(with(SwitchSettings { stations, ..sane }, port.clone()).is_none(), fits, "{stations}");
    }
    assert_eq!(with(SwitchSettings { age: 0, ..sane }, port.clone()), Some(SettingsError::Age));
    for (vlan, fits) in [(0, false), (1, true), (4094, true), (4095, false)] {
        for membership in [Membership::Access(vlan), Membership::Trunk { vlans: vec![1, vlan], native: None }] {
            assert_eq!(with(sane, PortSettings { membership, ..port.clone() }).is_none(), fits, "{vlan}");
        }
    }
    assert!(with(sane, PortSettings { broadcast: Some(0), ..port }).is_some());
    let memory = private_memory(1 << 20);
    let ports = |count| (0..count).map(|_| (PortSettings::named("a"), Paper::new(&memory))).collect();
    assert!(Switch::new(sane, ports(MAX_PORTS), memory.clone()).is_ok());
    assert!(Switch::new(sane, ports(MAX_PORTS + 1), memory.clone()).is_err());
}

#[test]
fn over_lanes_a_frame_goes_through_by_address_and_its_loan_returns() {
    let mut nodes = mesh(3, &[(0, 1), (0, 2), (1, 2)], 64, 4 << 20);
    let mut end = |node: usize| FrameLink::new(nodes[node].lanes.remove(0), 1500).unwrap();
    let (to_a, to_b, mut a, mut b) = (end(0), end(0), end(1), end(2));
    let memory = nodes[0].memory.clone();
    let ports = vec![(PortSettings::named("a"), to_a), (PortSettings::named("b"), to_b)];
    let mut switch = Switch::new(SwitchSettings::default(), ports, memory).unwrap();
    for round in 0..100 {
        a.send(frame(a.memory(), address(2), address(1))).unwrap();
        b.send(frame(b.memory(), address(1), address(2))).unwrap();
        a.flush();
        b.flush();
        switch.turn();
        let (at_b, at_a) = (b.recv().unwrap(), a.recv().unwrap());
        assert!(lies_in(&at_b.payload, a.memory().id()) && lies_in(&at_a.payload, b.memory().id()), "{round}");
    }
    for _ in 0..4 {
        a.flush();
        b.flush();
        switch.turn();
    }
    assert_eq!((a.memory().heap().used(), b.memory().heap().used()), (0, 0));
    assert_eq!(switch.memory.stats().payload_bytes_copied.get(), 0);
}

proptest! {
    #[test]
    fn frames_come_out_as_they_went_in_and_only_where_they_may(data in prop::collection::vec(any::<u8>(), 0..2000)) {
        fuzzing::frames(&data);
    }

    /// The same with frames that belong somewhere: a few addresses, a few tags.
    #[test]
    fn frames_of_a_few_stations_do_so_too(frames in prop::collection::vec((0u8..5, 1u8..5, 1u8..5, 0u16..4, any::<bool>()), 0..60)) {
        let mut data = Vec::new();
        for (port, to, from, vlan, tagged) in frames {
            data.push(port | 15 << 3);
            data.extend([0; 12]);
            let mut bytes = [&address(to)[..], &address(from)[..]].concat();
            if tagged {
                bytes.extend([0x81, 0, 0, vlan as u8]);
            }
            bytes.resize(60, to);
            data.extend(bytes);
        }
        fuzzing::frames(&data);
    }
}
