//! A gateway and a link port with real sockets, over a lane with both transports.

mod crowds;
mod deaths;
mod dials;
mod model;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::thread;
use std::time::Instant;

use fido_core::addr::{DomainId, GlobalAddr, Segment};
use fido_core::assignment::Transport;
use fido_core::lane::Lane;
use fido_core::memory::Memory;
use fido_core::message::Head;
use fido_core::payload::Payload;
use fido_core::testing::lane_pair;

use super::codec::{Command, Name, Report};
use super::testkit::*;
use super::*;

const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const BOTH: [Transport; 2] = [Transport::Pointer, Transport::Copying];

fn gateway(lane: Lane, limits: Limits) -> Gateway<TcpPort> {
    let port = TcpPort::bind(lane.memory().clone(), LOCAL, limits).unwrap();
    Gateway::new(port, lane)
}

fn small() -> Limits {
    Limits { buffer_bytes: 16 << 10, receive_bytes: 64 << 10, ..Limits::default() }
}

/// The main loop of a domain that owns the sockets.
fn serve(gateway: &mut Gateway<TcpPort>, mut stop: Stop) {
    while !stop.is_stopped() {
        if !gateway.turn() {
            let [port, lane] = gateway.sources();
            idle(&mut [port, lane, &mut stop]);
        }
    }
}

/// What both domains of a test counted.
struct Outcome {
    seen: Seen,
    outside: Memory,
    inside: Memory,
}

/// An echo server behind a gateway, each in a thread of its own, while `clients` does its work.
fn with_echo(transport: Transport, slots: u32, limits: Limits, clients: impl FnOnce(SocketAddr, &Stop)) -> Outcome {
    let (outer, inner) = lane_pair(slots, transport);
    let (outside, inside) = (outer.memory().clone(), inner.memory().clone());
    let mut gateway = gateway(outer, limits);
    let addr = gateway.port().local_addr();
    let (stop, stop_gateway) = (Stop::new(), Stop::new());
    let serving = {
        let stop = stop_gateway.clone();
        thread::spawn(move || {
            serve(&mut gateway, stop);
            gateway
        })
    };
    let echoing = {
        let stop = stop.clone();
        thread::spawn(move || serve_echo(LinkPort::new(inner), stop))
    };
    clients(addr, &stop);
    stop.stop();
    let seen = echoing.join().unwrap();
    stop_gateway.stop();
    drop(serving.join().unwrap());
    Outcome { seen, outside, inside }
}

/// Both ends in one thread: polls the inside until `done` says so of an event.
fn pump_both(gateway: &mut Gateway<TcpPort>, link: &mut LinkPort, mut done: impl FnMut(StreamEvent) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let worked = gateway.turn();
        let event = link.poll();
        if event.is_none() && !worked {
            thread::yield_now();
        }
        if event.is_some_and(&mut done) {
            return;
        }
        link.flush();
        assert!(Instant::now() < deadline, "out of patience");
    }
}

/// Lets both ends move until `done`.
fn settle(gateway: &mut Gateway<TcpPort>, link: &mut LinkPort, mut done: impl FnMut(&Gateway<TcpPort>) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done(gateway) {
        gateway.turn();
        drop(link.poll());
        link.flush();
        thread::yield_now();
        assert!(Instant::now() < deadline, "out of patience");
    }
}

fn opened_both(gateway: &mut Gateway<TcpPort>, link: &mut LinkPort) -> (StreamId, SocketAddr) {
    let mut opened = None;
    pump_both(gateway, link, |event| {
        if let StreamEvent::Opened { id, remote } = event {
            opened = Some((id, remote));
        }
        opened.is_some()
    });
    opened.unwrap()
}

#[test]
fn bytes_come_back_through_another_domain() {
    for transport in BOTH {
        let outcome = with_echo(transport, 64, Limits::default(), |addr, _| {
            let clients: Vec<_> =
                (0..4).map(|seed| thread::spawn(move || echo(addr, pattern(seed, 2 << 20), 65_536))).collect();
            clients.into_iter().for_each(|client| client.join().unwrap());
        });
        assert_eq!((outcome.seen.opened, outcome.seen.bytes), (4, 8 << 20));
        let copied = |memory: &Memory| memory.stats().payload_bytes_copied.get();
        let copies = copied(&outcome.outside) + copied(&outcome.inside);
        match transport {
            Transport::Pointer => assert_eq!(copies, 0),
            // Into the ring's buffers and out of them, there and back.
            Transport::Copying => assert_eq!(copies, 4 * (8 << 20)),
        }
        assert_eq!(outcome.outside.stats().refusals.get() + outcome.inside.stats().refusals.get(), 0);
    }
}

#[test]
fn slow_readers_and_a_short_ring_do_not_deadlock() {
    for transport in BOTH {
        let outcome = with_echo(transport, 4, small(), |addr, _| {
            let clients: Vec<_> =
                (0..6).map(|seed| thread::spawn(move || echo(addr, pattern(seed, 1 << 20), 3000))).collect();
            clients.into_iter().for_each(|client| client.join().unwrap());
        });
        assert_eq!(outcome.seen.bytes, 6 << 20);
        assert_eq!(outcome.outside.heap().used() + outcome.inside.heap().used(), 0, "all buffers are back");
    }
}

#[test]
fn a_client_that_does_not_read_is_refused_more_and_others_go_on() {
    let limits = Limits { receive_bytes: 12 << 20, ..Limits::default() };
    with_echo(Transport::Pointer, 64, limits, |addr, stop| {
        let data = pattern(5, 56 << 20);
        let mut greedy = connect(addr);
        let mut writer = greedy.try_clone().unwrap();
        let sent = data.clone();
        let writing = thread::spawn(move || {
            writer.write_all(&sent).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        stop.wait_for_refusal();
        for seed in 0..10 {
            echo(addr, pattern(seed, 10_000), 4096);
        }
        let mut back = Vec::new();
        greedy.read_to_end(&mut back).unwrap();
        assert!(back == data);
        writing.join().unwrap();
    });
}

#[test]
fn each_direction_ends_on_its_own() {
    for transport in BOTH {
        let (outer, inner) = lane_pair(16, transport);
        let memory = inner.memory().clone();
        let (mut gateway, mut link) = (gateway(outer, Limits::default()), LinkPort::new(inner));
        let mut client = connect(gateway.port().local_addr());
        let (id, remote) = opened_both(&mut gateway, &mut link);
        assert_eq!(remote, client.local_addr().unwrap());
        client.write_all(b"question").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut asked = Payload::new();
        pump_both(&mut gateway, &mut link, |event| match event {
            StreamEvent::Data { data, .. } => {
                asked.append(data);
                false
            }
            StreamEvent::Finished { .. } => true,
            other => panic!("{other:?}"),
        });
        assert_eq!(bytes(&memory, &asked), b"question");
        link.send(id, payload(&memory, b"answer")).unwrap();
        link.finish(id);
        assert!(matches!(link.send(id, payload(&memory, b"late")), Err(SendError::Closed)));
        pump_both(&mut gateway, &mut link, |event| matches!(event, StreamEvent::Closed { id: closed } if closed == id));
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "answer");
        assert!(gateway.connections() == 0 && link.connections() == 0);
    }
}

#[test]
fn resets_pass_through_both_ways() {
    let (outer, inner) = lane_pair(16, Transport::Pointer);
    let (mut gateway, mut link) = (gateway(outer, Limits::default()), LinkPort::new(inner));
    let mut client = connect(gateway.port().local_addr());
    let (id, _) = opened_both(&mut gateway, &mut link);
    link.reset(id);
    link.reset(id);
    link.finish(id);
    assert!(matches!(link.send(id, Payload::new()), Err(SendError::Closed)));
    pump_both(&mut gateway, &mut link, |event| matches!(event, StreamEvent::Closed { id: closed } if closed == id));
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);

    let client = connect(gateway.port().local_addr());
    let (other, _) = opened_both(&mut gateway, &mut link);
    assert_ne!(other, id);
    abort(client);
    pump_both(&mut gateway, &mut link, |event| matches!(event, StreamEvent::Closed { id: closed } if closed == other));
    assert!(gateway.connections() == 0 && link.connections() == 0);
}

#[test]
fn clients_of_ipv6_have_their_whole_address() {
    for transport in BOTH {
        let (outer, inner) = lane_pair(16, transport);
        let Ok(port) = TcpPort::bind(outer.memory().clone(), "[::1]:0".parse().unwrap(), Limits::default()) else {
            return; // This machine has no IPv6.
        };
        let (mut gateway, mut link) = (Gateway::new(port, outer), LinkPort::new(inner));
        let client = connect(gateway.port().local_addr());
        let (_, remote) = opened_both(&mut gateway, &mut link);
        assert_eq!(remote, client.local_addr().unwrap());
    }
}

#[test]
fn thousands_of_connections_at_a_time() {
    let files = raise_file_limit(8192);
    let count = 2500.min((files as usize - 200) / 2);
    let outcome = with_echo(Transport::Pointer, 256, Limits::default(), |addr, _| {
        let mut clients: Vec<_> = (0..count).map(|_| connect(addr)).collect();
        for round in 0..2u8 {
            for (index, client) in clients.iter_mut().enumerate() {
                client.write_all(&[index as u8, round]).unwrap();
            }
            for (index, client) in clients.iter_mut().enumerate() {
                let mut back = [0; 2];
                client.read_exact(&mut back).unwrap();
                assert_eq!(back, [index as u8, round]);
            }
        }
    });
    assert_eq!(outcome.seen.most_open, count);
}

#[test]
fn clients_come_and_go_and_vanish() {
    for transport in BOTH {
        let limits = Limits { connections: 8, ..small() };
        let outcome = with_echo(transport, 8, limits, |addr, _| {
            let churn = move |seed: u64| {
                for round in 0..100 {
                    let data = pattern(seed * 1000 + round, (round as usize * 37) % 5000 + 1);
                    if round % 3 == 0 {
                        echo(addr, data, 512);
                        continue;
                    }
                    let mut client = connect(addr);
                    client.write_all(&data).unwrap();
                    if round % 3 == 1 {
                        abort(client);
                    }
                }
            };
            let clients: Vec<_> = (0..4).map(|seed| thread::spawn(move || churn(seed))).collect();
            clients.into_iter().for_each(|client| client.join().unwrap());
            echo(addr, pattern(77, 1000), 1000);
        });
        assert!(outcome.seen.opened > 4 * 33 && outcome.seen.most_open <= 8 + 8);
        assert_eq!(outcome.outside.heap().used() + outcome.inside.heap().used(), 0);
    }
}

#[test]
fn a_wild_address_costs_only_its_connection() {
    for transport in BOTH {
        let (outer, inner) = lane_pair(16, transport);
        let memory = inner.memory().clone();
        let (mut gateway, mut link) = (gateway(outer, Limits::default()), LinkPort::new(inner));
        let mut other = connect(gateway.port().local_addr());
        let (other_id, _) = opened_both(&mut gateway, &mut link);
        let own = memory.id();
        let wild = [
            Segment::new(GlobalAddr::from_bits(u64::MAX), 1),
            Segment::new(GlobalAddr::new(own, memory.arena().len() - 10).unwrap(), 11),
            Segment::new(GlobalAddr::new(DomainId { generation: own.generation.next(), ..own }, 0).unwrap(), 1),
        ];
        for segment in wild {
            let mut client = connect(gateway.port().local_addr());
            let (id, _) = opened_both(&mut gateway, &mut link);
            let mut data = payload(&memory, b"good");
            data.push(segment, None);
            link.send(id, data).unwrap();
            link.send(other_id, payload(&memory, b"fine")).unwrap();
            let closed = |event| matches!(event, StreamEvent::Closed { id: closed } if closed == id);
            pump_both(&mut gateway, &mut link, closed);
            assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
            let mut fine = [0; 4];
            other.read_exact(&mut fine).unwrap();
            assert_eq!(&fine, b"fine");
        }
        let refusals = gateway.port().connections();
        assert_eq!(refusals, 1, "only the other one is left");
    }
}

/// A gateway with one client, and the bare lane at its inside's end, after `Opened` was taken from it.
fn with_bare_inside() -> (Gateway<TcpPort>, Lane, std::net::TcpStream, Name) {
    let (outer, mut bare) = lane_pair(64, Transport::Pointer);
    let mut gateway = gateway(outer, Limits::default());
    let client = connect(gateway.port().local_addr());
    let deadline = Instant::now() + PATIENCE;
    loop {
        gateway.turn();
        if let Some(message) = bare.recv() {
            let (head, _) = message.unwrap();
            let (name, report) = Report::decode(&head, 0, &[]).unwrap();
            assert_eq!(report, Report::Opened(client.local_addr().unwrap()));
            return (gateway, bare, client, name);
        }
        assert!(Instant::now() < deadline, "out of patience");
    }
}

#[test]
fn an_old_name_does_not_reach_a_new_connection() {
    let (mut gateway, mut bare, mut client, name) = with_bare_inside();
    let memory = bare.memory().clone();
    let refusals = memory.stats().refusals.get();
    let stale = [
        Name { serial: name.serial.wrapping_sub(1), ..name },
        Name { serial: name.serial + 1, ..name },
        Name { id: StreamId(name.id.0 ^ 1 << 16), ..name },
        Name { id: StreamId(name.id.0 ^ 1), ..name },
    ];
    for old in stale {
        bare.send(Command::Send.encode(old), payload(&memory, b"not for you")).unwrap();
        bare.send(Command::Finish.encode(old), Payload::new()).unwrap();
        bare.send(Command::Reset.encode(old), Payload::new()).unwrap();
    }
    bare.send(Command::Send.encode(name), payload(&memory, b"hello")).unwrap();
    bare.flush();
    while gateway.turn() {}
    let mut got = [0; 5];
    client.read_exact(&mut got).unwrap();
    assert_eq!((&got, memory.stats().refusals.get()), (b"hello", refusals));
    while bare.recv().is_some() {}
    assert_eq!(bare.loans(), 0, "what was for nobody has come back");
}

#[test]
fn rubbish_from_the_inside_is_counted_and_costs_nothing() {
    let (mut gateway, mut bare, mut client, name) = with_bare_inside();
    let (memory, outside) = (bare.memory().clone(), gateway.lane.memory().clone());
    for kind in [0, 1, 2, 0x10, 0x14, 0xef] {
        bare.send(Head { kind, flags: 9, args: [name.id.0, name.serial, 7, 7] }, Payload::new()).unwrap();
    }
    bare.send(Command::Send.encode(name), Payload::new()).unwrap();
    bare.send(Command::Finish.encode(name), payload(&memory, b"x")).unwrap();
    bare.send(Command::Send.encode(name), payload(&memory, b"hello")).unwrap();
    bare.flush();
    while gateway.turn() {}
    assert_eq!(outside.stats().refusals.get(), 8);
    let mut got = [0; 5];
    client.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hello");
    // What comes after the end is for nobody: that connection goes.
    bare.send(Command::Finish.encode(name), Payload::new()).unwrap();
    bare.send(Command::Send.encode(name), payload(&memory, b"more")).unwrap();
    bare.flush();
    while gateway.turn() {}
    assert_eq!(outside.stats().refusals.get(), 9);
    assert!(gateway.port().connections() == 0);
}

#[test]
fn an_inside_that_ignores_its_window_loses_the_connection() {
    let (mut gateway, mut bare, _client, name) = with_bare_inside();
    let memory = bare.memory().clone();
    let data = payload(&memory, &vec![7; 1 << 20]);
    let mut sent = 0;
    let deadline = Instant::now() + PATIENCE;
    while gateway.port().connections() > 0 {
        if bare.send(Command::Send.encode(name), data.clone()).is_ok() {
            sent += 1;
        }
        bare.flush();
        gateway.turn();
        while bare.recv().is_some() {}
        assert!(Instant::now() < deadline, "it takes {sent} MiB and more");
    }
    assert!(sent > 4096);
    assert_eq!(gateway.lane.memory().stats().refusals.get(), 1);
}

#[test]
fn rubbish_from_the_outside_is_refused() {
    let (mut bare, inner) = lane_pair(64, Transport::Pointer);
    let mut link = LinkPort::new(inner);
    let name = Name { id: StreamId(5), serial: 9 };
    let remote = "10.0.0.1:77".parse().unwrap();
    bare.send(Report::Opened(remote).encode(name).0, Payload::new()).unwrap();
    bare.send(Report::Opened(remote).encode(Name { serial: 10, ..name }).0, Payload::new()).unwrap();
    bare.send(Head { kind: 0x11, ..Head::default() }, Payload::new()).unwrap();
    bare.send(Head { kind: 1, flags: 6, args: [1, 2, 3, 4] }, Payload::new()).unwrap();
    bare.send(Report::Data.encode(name).0, Payload::new()).unwrap();
    bare.send(Report::Sent(u32::MAX).encode(name).0, Payload::new()).unwrap();
    bare.send(Report::Finished.encode(Name { serial: 8, ..name }).0, Payload::new()).unwrap();
    bare.flush();
    let Some(StreamEvent::Opened { id, remote: from }) = link.poll() else { panic!("not opened") };
    assert_eq!(from, remote);
    assert!(link.poll().is_none());
    link.flush();
    assert_eq!(link.lane_memory().stats().refusals.get(), 4);
    let (head, _) = bare.recv().unwrap().unwrap();
    assert_eq!(Command::decode(&head, 0), Ok((Name { serial: 10, ..name }, Command::Reset)));
    // Bytes that cannot be read are lost, so their connection is.
    let mut wild = Payload::new();
    wild.push(Segment::new(GlobalAddr::from_bits(u64::MAX), 5), Some(std::sync::Arc::new(())));
    bare.send(Report::Data.encode(name).0, wild).unwrap();
    bare.flush();
    assert!(link.poll().is_none());
    link.flush();
    let (head, _) = bare.recv().unwrap().unwrap();
    assert_eq!(Command::decode(&head, 0), Ok((name, Command::Reset)));
    bare.send(Report::Closed.encode(name).0, Payload::new()).unwrap();
    bare.flush();
    assert!(matches!(link.poll(), Some(StreamEvent::Closed { id: closed }) if closed == id));
}
