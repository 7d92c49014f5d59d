//! Connections that one domain opens to another without sockets.

use fido_core::assignment::Transport;
use fido_core::payload::Payload;
use fido_core::testing::{TestLink, lane_pair};

use crate::stream::codec::{Command, Name, Report};
use crate::stream::testkit::{Stop, bytes, collect, opened, pattern, payload, pump, pump_until, serve_echo, talk};
use crate::stream::{DialError, DialPort, LinkPort, MAX_QUEUED_BYTES, SendError, StreamEvent, StreamId, StreamPort};

fn ends() -> (DialPort, LinkPort) {
    let (a, b) = lane_pair(64, Transport::Pointer);
    let mut listener = LinkPort::new(b);
    listener.listen(7);
    (DialPort::new(a), listener)
}

#[test]
fn a_component_cannot_tell_it_from_sockets() {
    for transport in [Transport::Pointer, Transport::Copying] {
        let (a, b) = lane_pair(64, transport);
        let (memory, mut listener) = (a.memory().clone(), LinkPort::new(b));
        listener.listen(7);
        let stop = Stop::new();
        let heard = stop.clone();
        let serving = std::thread::spawn(move || serve_echo(listener, heard));
        let mut client = DialPort::new(a);
        let id = client.connect(7).unwrap();
        talk(client, &memory, id, &pattern(3, 3_000_000));
        stop.stop();
        let seen = serving.join().unwrap();
        assert_eq!((seen.opened, seen.bytes), (1, 3_000_000));
    }
}

/// Opens a connection; its names at both ends.
fn connect(client: &mut DialPort, server: &mut LinkPort) -> (StreamId, StreamId) {
    let here = client.connect(7).unwrap();
    client.flush();
    let there = opened(server);
    server.flush();
    assert_eq!(opened(client), here);
    (here, there)
}

#[test]
fn connections_come_and_go() {
    let (mut client, mut server) = ends();
    for round in 0..10_000u32 {
        let (here, there) = connect(&mut client, &mut server);
        assert_eq!(server.called_port(there), Some(7));
        // Every other one is reset, by either side.
        match round % 4 {
            0 => client.reset(here),
            2 => server.reset(there),
            _ => {
                client.finish(here);
                server.finish(there);
            }
        }
        let (mut closed_here, mut closed_there) = (false, false);
        while !(closed_here && closed_there) {
            client.flush();
            while let Some(event) = server.poll() {
                closed_there |= matches!(event, StreamEvent::Closed { id } if id == there);
            }
            server.flush();
            while let Some(event) = client.poll() {
                closed_here |= matches!(event, StreamEvent::Closed { id } if id == here);
            }
        }
    }
    assert_eq!((client.connections(), server.connections()), (0, 0));
}

#[test]
fn nobody_listens_at_other_ports() {
    let (mut client, mut server) = ends();
    let refused = client.connect(8).unwrap();
    client.flush();
    pump_until(&mut server, || {
        client.flush();
        matches!(client.poll(), Some(StreamEvent::Closed { id }) if id == refused)
    });
    assert_eq!(server.connections(), 0);
}

#[test]
fn bytes_stay_where_they_are_and_come_back() {
    let (mut client, mut server) = ends();
    let (here, there) = connect(&mut client, &mut server);
    let (at_client, at_server) = (client.lane_memory().clone(), server.lane_memory().clone());
    let data = pattern(4, 200_000);
    client.send(here, payload(&at_client, &data)).unwrap();
    client.finish(here);
    client.flush();
    let got = collect(&mut server, there, 200_000);
    assert!(got.segments().all(|segment| segment.addr.domain() == at_client.id()) && bytes(&at_server, &got) == data);
    // Half-open: sent back by address after the end.
    server.send(there, got).unwrap();
    server.finish(there);
    server.flush();
    let back = collect(&mut client, here, 200_000);
    assert!(bytes(&at_client, &back) == data);
    drop(back);
    pump(&mut client, |event| matches!(event, StreamEvent::Closed { .. }));
    for _ in 0..4 {
        client.flush();
        assert!(!matches!(server.poll(), Some(StreamEvent::Data { .. })));
        server.flush();
    }
    assert_eq!((at_client.heap().used(), at_server.heap().used()), (0, 0), "all loans are back");
    assert_eq!(at_client.stats().payload_bytes_copied.get() + at_server.stats().payload_bytes_copied.get(), 0);
}

#[test]
fn who_keeps_what_it_receives_makes_the_other_wait() {
    let (mut client, mut server) = ends();
    let (here, there) = connect(&mut client, &mut server);
    let memory = client.lane_memory().clone();
    let piece = payload(&memory, &pattern(1, 1 << 20));
    let mut sent = 0;
    while client.send(here, piece.clone()).is_ok() {
        sent += 1 << 20;
    }
    assert_eq!(sent, MAX_QUEUED_BYTES);
    client.flush();
    let kept = collect(&mut server, there, sent);
    server.flush();
    client.flush();
    assert!(matches!(client.send(here, piece.clone()), Err(SendError::Full(_))));
    drop(kept);
    server.flush();
    pump(&mut client, |event| matches!(event, StreamEvent::Writable { id } if id == here));
    client.send(here, piece).unwrap();
}

#[test]
fn a_listening_domain_that_speaks_out_of_turn_loses_its_connection() {
    for commands in [&[Command::Finish][..], &[Command::Accept, Command::Accept]] {
        let (a, mut bare) = lane_pair(64, Transport::Pointer);
        let mut client = DialPort::new(a);
        let id = client.connect(7).unwrap();
        client.flush();
        let head = bare.recv().unwrap().unwrap().0;
        assert_eq!(Report::decode(&head, 0, &[]).unwrap().1, Report::Called(7));
        for command in commands {
            bare.send(command.encode(Name::of(&head)), Payload::new()).unwrap();
        }
        // What belongs to no connection at all changes nothing.
        bare.send(Command::Finish.encode(Name { serial: 99, ..Name::of(&head) }), Payload::new()).unwrap();
        bare.flush();
        pump(&mut client, |event| matches!(event, StreamEvent::Closed { id: of } if of == id));
        assert_eq!((client.connections(), client.lane_memory().stats().refusals.get()), (0, 1));
    }
}

#[test]
fn when_the_other_domain_dies_all_connections_close() {
    let (mut link, a, b) = TestLink::new(64, Transport::Pointer);
    let (mut client, mut server) = (DialPort::new(a), LinkPort::new(b));
    server.listen(7);
    let (here, _) = connect(&mut client, &mut server);
    drop(server);
    link.kill_b();
    pump(&mut client, |event| matches!(event, StreamEvent::Closed { id } if id == here));
    assert!(matches!(client.connect(7), Err(DialError::Down)));
    link.fence_b();
    let mut server = LinkPort::new(link.restart_b());
    server.listen(7);
    while client.connect(7).is_err() {
        assert!(server.poll().is_none());
        server.flush();
    }
    client.flush();
    opened(&mut server);
}

#[test]
fn nothing_arrives_behind_bytes_that_are_lost() {
    let (a, b) = lane_pair(4, Transport::Pointer);
    let (mut client, mut server) = (DialPort::new(a), LinkPort::new(b));
    server.listen(7);
    let (here, there) = connect(&mut client, &mut server);
    let memory = client.lane_memory().clone();
    for seed in 0..16 {
        client.send(here, payload(&memory, &pattern(seed, 64))).unwrap();
    }
    client.finish(here);
    // What waits lies in the arena of somebody who is gone, and there is no room for copies.
    let mut full = Vec::new();
    for len in [1 << 20, 1 << 12, 64] {
        full.extend(std::iter::from_fn(|| memory.alloc(len).ok()));
    }
    client.rescue(memory.id());
    drop(full);
    let mut arrived = 0;
    let deadline = std::time::Instant::now() + crate::stream::testkit::PATIENCE;
    loop {
        drop(client.poll());
        client.flush();
        match server.poll() {
            Some(StreamEvent::Data { data, .. }) => arrived += data.len(),
            Some(StreamEvent::Closed { id }) if id == there => break,
            Some(event) => panic!("{event:?}"),
            None => server.flush(),
        }
        assert!(std::time::Instant::now() < deadline, "out of patience");
    }
    assert!(arrived <= 4 * 64, "{arrived}");
}

#[test]
fn calls_that_nobody_takes_are_bounded() {
    let (a, _b) = lane_pair(4, Transport::Pointer);
    let mut client = DialPort::new(a);
    let error = (0..100_000).find_map(|_| client.connect(7).map(|id| client.reset(id)).err());
    assert_eq!(error, Some(DialError::Crowded));
}
