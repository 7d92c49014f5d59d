mod famine;
mod rescue;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown};
use std::thread;
use std::time::Duration;

use fido_core::addr::{GlobalAddr, Segment};
use fido_core::testing::private_memory;

use super::*;
use crate::stream::MAX_QUEUED_BYTES;
use crate::stream::testkit::*;

const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

fn port(arena: u64, limits: Limits) -> (TcpPort, Memory) {
    let memory = private_memory(arena);
    (TcpPort::bind(memory.clone(), LOCAL, limits).unwrap(), memory)
}

fn small() -> Limits {
    Limits { buffer_bytes: 16 << 10, receive_bytes: 64 << 10, ..Limits::default() }
}

/// Runs an echo server while `clients` does its work; returns what the server saw.
fn with_echo(port: TcpPort, clients: impl FnOnce(SocketAddr, &Stop)) -> Seen {
    let addr = port.local_addr();
    let stop = Stop::new();
    let server = {
        let stop = stop.clone();
        thread::spawn(move || serve_echo(port, stop))
    };
    clients(addr, &stop);
    stop.stop();
    server.join().unwrap()
}

#[test]
fn bytes_come_back_and_are_not_copied() {
    let (port, memory) = port(8 << 20, Limits::default());
    let seen = with_echo(port, |addr, _| echo(addr, pattern(1, 3 << 20), 100_000));
    assert_eq!((seen.opened, seen.bytes), (1, 3 << 20));
    let counts = memory.stats().snapshot();
    assert_eq!((counts.payload_bytes_copied, counts.header_bytes_copied, counts.refusals), (0, 0, 0));
    assert!(counts.syscalls > 0);
}

#[test]
fn slow_readers_and_a_small_heap_do_not_deadlock() {
    // Room for two of the first buffers, for six clients that write much faster than they read.
    let (port, memory) = port(64 << 10, small());
    let seen = with_echo(port, |addr, _| {
        let echo = |seed| thread::spawn(move || echo(addr, pattern(seed, 2 << 20), 3000));
        let clients: Vec<_> = (0..6).map(echo).collect();
        clients.into_iter().for_each(|client| client.join().unwrap());
    });
    assert_eq!(seen.bytes, 6 * (2 << 20));
    assert_eq!(memory.heap().used(), 0, "all buffers are back");
}

#[test]
fn a_client_that_does_not_read_fills_the_queue_and_nothing_else() {
    let limits = Limits { receive_bytes: 32 << 20, ..Limits::default() };
    let (port, _) = port(64 << 20, limits);
    // More than all buffers between the client and the queue's limit can take.
    let data = pattern(5, 56 << 20);
    with_echo(port, |addr, stop| {
        let mut greedy = connect(addr);
        let mut writer = greedy.try_clone().unwrap();
        let sent = data.clone();
        let writing = thread::spawn(move || {
            writer.write_all(&sent).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        for seed in 0..20 {
            echo(addr, pattern(seed, 10_000), 4096);
        }
        stop.wait_for_refusal();
        let mut back = Vec::new();
        greedy.read_to_end(&mut back).unwrap();
        assert!(back == data);
        writing.join().unwrap();
    });
}

#[test]
fn a_connection_is_not_read_beyond_its_limit() {
    let (mut port, _) = port(4 << 20, small());
    let mut client = connect(port.local_addr());
    let id = opened(&mut port);
    let writer = thread::spawn(move || {
        client.write_all(&pattern(1, 1 << 20)).unwrap();
        client
    });
    let mut held = collect(&mut port, id, 64 << 10);
    for _ in 0..200 {
        assert!(port.poll().is_none(), "read although too much is on loan");
        assert!(!port.ready(), "its thread would not sleep");
    }
    assert!(held.len() < (64 + 16) << 10);
    // Give it back on other threads, asleep meanwhile: the port has to be woken.
    let mut total = held.len();
    while total < 1 << 20 {
        let loan = std::mem::take(&mut held);
        let dropper = thread::spawn(move || drop(loan));
        while held.is_empty() {
            match port.poll() {
                Some(StreamEvent::Data { data, .. }) => held.append(data),
                Some(other) => panic!("{other:?}"),
                None => idle(&mut [&mut port]),
            }
        }
        total += held.len();
        dropper.join().unwrap();
    }
    drop(writer.join().unwrap());
}

#[test]
fn neighbouring_pieces_are_one_segment() {
    let (mut port, memory) = port(1 << 20, Limits::default());
    let mut client = connect(port.local_addr());
    let id = opened(&mut port);
    let mut all = Payload::new();
    for piece in 0..10u8 {
        client.write_all(&[piece; 100]).unwrap();
        all.append(collect(&mut port, id, 100));
    }
    assert_eq!((all.len(), all.parts().len()), (1000, 1));
    let expected: Vec<u8> = (0..10u8).flat_map(|piece| [piece; 100]).collect();
    assert_eq!(bytes(&memory, &all), expected);
}

#[test]
fn idle_connections_give_their_buffers_up() {
    let (mut port, memory) = port(16 << 20, Limits::default());
    let mut clients = Vec::new();
    for _ in 0..KEEPERS + 20 {
        let mut client = connect(port.local_addr());
        let id = opened(&mut port);
        client.write_all(b"x").unwrap();
        drop(collect(&mut port, id, 1));
        clients.push(client);
    }
    assert!(port.poll().is_none());
    assert_eq!(memory.heap().used(), (KEEPERS * (16 << 10)) as u64);
    // And if one needs them, all.
    let rest = memory.heap().capacity() - memory.heap().used();
    let hoard: Vec<_> = std::iter::from_fn(|| memory.alloc(4096).ok()).collect();
    assert_eq!(hoard.len() as u64, rest / 4096);
    let mut late = connect(port.local_addr());
    let id = opened(&mut port);
    late.write_all(&[7; 5000]).unwrap();
    assert_eq!(collect(&mut port, id, 5000).len(), 5000);
}

#[test]
fn buffers_that_others_free_end_a_famine() {
    let (mut port, memory) = port(64 << 10, small());
    let hoard: Vec<_> = std::iter::from_fn(|| memory.alloc(4096).ok()).collect();
    let mut client = connect(port.local_addr());
    let id = opened(&mut port);
    client.write_all(&[1; 100]).unwrap();
    for _ in 0..100 {
        assert!(port.poll().is_none());
        assert!(!port.ready(), "its thread would not sleep");
    }
    drop(hoard);
    loop {
        match port.poll() {
            Some(StreamEvent::Data { id: from, data }) => break assert_eq!((from, data.len()), (id, 100)),
            Some(other) => panic!("{other:?}"),
            None => idle(&mut [&mut port]),
        }
    }
}

#[test]
fn each_direction_ends_on_its_own() {
    let (mut port, memory) = port(1 << 20, Limits::default());
    // The client first.
    let mut client = connect(port.local_addr());
    let id = opened(&mut port);
    client.shutdown(Shutdown::Write).unwrap();
    pump(&mut port, |event| matches!(event, StreamEvent::Finished { .. }));
    port.send(id, payload(&memory, b"still here")).unwrap();
    port.finish(id);
    assert!(matches!(port.send(id, payload(&memory, b"late")), Err(SendError::Closed)));
    pump(&mut port, |event| matches!(event, StreamEvent::Closed { .. }));
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap();
    assert_eq!(text, "still here");
    // We first.
    let mut client = connect(port.local_addr());
    let id = opened(&mut port);
    port.send(id, payload(&memory, b"bye")).unwrap();
    port.finish(id);
    port.flush();
    text.clear();
    client.read_to_string(&mut text).unwrap();
    assert_eq!(text, "bye");
    client.write_all(b"a word more").unwrap();
    assert_eq!(bytes(&memory, &collect(&mut port, id, 11)), b"a word more");
    drop(client);
    pump(&mut port, |event| matches!(event, StreamEvent::Closed { .. }));
    assert_eq!(port.connections(), 0);
}

#[test]
fn resets_reach_the_other_side() {
    let (mut port, memory) = port(1 << 20, Limits::default());
    let mut client = connect(port.local_addr());
    let id = opened(&mut port);
    port.send(id, payload(&memory, b"never sent")).unwrap();
    port.reset(id);
    assert!(matches!(port.send(id, Payload::new()), Err(SendError::Closed)));
    port.reset(id);
    port.finish(id);
    assert_eq!(client.read(&mut [0; 10]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    pump(&mut port, |event| matches!(event, StreamEvent::Closed { id: closed } if closed == id));
    assert!(memory.heap().used() == 0 && port.connections() == 0);

    let client = connect(port.local_addr());
    let id = opened(&mut port);
    abort(client);
    pump(&mut port, |event| matches!(event, StreamEvent::Closed { id: closed } if closed == id));
    assert_eq!(port.connections(), 0);
}

#[test]
fn a_reset_reaches_a_connection_that_is_not_read() {
    let (mut port, _) = port(4 << 20, small());
    let mut client = connect(port.local_addr());
    let id = opened(&mut port);
    client.write_all(&pattern(1, 80 << 10)).unwrap();
    let held = collect(&mut port, id, 64 << 10);
    abort(client);
    pump(&mut port, |event| matches!(event, StreamEvent::Closed { .. }));
    drop(held);
    assert!(port.poll().is_none());
}

#[test]
fn urgent_data_does_not_stall_a_connection() {
    let (mut port, _) = port(1 << 20, Limits::default());
    let mut client = connect(port.local_addr());
    let id = opened(&mut port);
    client.write_all(&[1; 100]).unwrap();
    rustix::net::send(&client, b"!", rustix::net::SendFlags::OOB).unwrap();
    client.write_all(&[2; 100]).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut total = 0;
    pump(&mut port, |event| {
        if let StreamEvent::Data { data, .. } = &event {
            total += data.len();
        }
        matches!(event, StreamEvent::Finished { .. })
    });
    assert_eq!(total, 200, "all but the urgent byte");
    port.reset(id);
}

#[test]
fn a_wild_address_costs_only_its_connection() {
    let (mut port, memory) = port(1 << 20, Limits::default());
    let mut victim = connect(port.local_addr());
    let victim_id = opened(&mut port);
    let mut other = connect(port.local_addr());
    let other_id = opened(&mut port);
    let own = memory.id();
    let beyond = GlobalAddr::new(own, memory.arena().len() - 10).unwrap();
    let stale = DomainId { generation: own.generation.next(), ..own };
    let wild = [
        Segment::new(GlobalAddr::from_bits(u64::MAX), 1),
        Segment::new(beyond, 11),
        Segment::new(GlobalAddr::new(stale, 0).unwrap(), 1),
    ];
    for (count, segment) in wild.into_iter().enumerate() {
        let (mut client, id) = if count == 0 {
            (victim.try_clone().unwrap(), victim_id)
        } else {
            let client = connect(port.local_addr());
            (client, opened(&mut port))
        };
        let mut data = payload(&memory, b"good");
        data.push(segment, None);
        port.send(id, data).unwrap();
        port.send(other_id, payload(&memory, b"fine")).unwrap();
        port.flush();
        pump(&mut port, |event| matches!(event, StreamEvent::Closed { id: closed } if closed == id));
        assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        let mut fine = [0; 4];
        other.read_exact(&mut fine).unwrap();
        assert_eq!((&fine, memory.stats().refusals.get()), (b"fine", count as u64 + 1));
    }
    assert!(victim.write_all(b"x").is_err());
}

#[test]
fn the_send_queue_has_an_exact_limit() {
    let (mut port, memory) = port(32 << 20, Limits::default());
    let mut client = connect(port.local_addr());
    let id = opened(&mut port);
    // Nothing is flushed, so nothing leaves the queue.
    port.send(id, memory.alloc(MAX_QUEUED_BYTES as usize - 1).unwrap().into_payload()).unwrap();
    let Err(SendError::Full(back)) = port.send(id, payload(&memory, b"ab")) else { panic!("taken") };
    assert_eq!(back.len(), 2);
    drop(back);
    port.send(id, payload(&memory, b"z")).unwrap();
    let reader = thread::spawn(move || {
        let mut all = vec![0; MAX_QUEUED_BYTES as usize];
        client.read_exact(&mut all).unwrap();
        all.last().copied()
    });
    pump(&mut port, |event| matches!(event, StreamEvent::Writable { id: room } if room == id));
    pump_until(&mut port, || reader.is_finished());
    assert_eq!(reader.join().unwrap(), Some(b'z'));
    // One that is larger than the limit is taken by an empty queue, and only by that.
    pump_until(&mut port, || memory.heap().used() == 0);
    let large = memory.alloc(MAX_QUEUED_BYTES as usize + 1).unwrap().into_payload();
    port.send(id, large).unwrap();
    assert!(matches!(port.send(id, payload(&memory, b"a")), Err(SendError::Full(_))));
}

#[test]
fn long_lists_go_out_in_order() {
    let (mut port, memory) = port(1 << 20, Limits::default());
    let mut client = connect(port.local_addr());
    let id = opened(&mut port);
    let source = payload(&memory, &pattern(9, 10_000));
    let mut scattered = Payload::new();
    let mut expected = Vec::new();
    // Every second byte, so that no neighbours join: 5000 segments, several calls' worth.
    for at in (0..10_000).step_by(2) {
        scattered.append(source.slice(at, 1).unwrap());
        expected.push(pattern(9, 10_000)[at as usize]);
    }
    assert_eq!(scattered.parts().len(), 5000);
    port.send(id, scattered).unwrap();
    port.finish(id);
    while port.sending.front().is_some() {
        port.flush();
    }
    let mut all = Vec::new();
    client.read_to_end(&mut all).unwrap();
    assert!(all == expected);
}

#[test]
fn thousands_of_connections_at_a_time() {
    let files = raise_file_limit(8192);
    let count = 3000.min((files as usize - 200) / 2);
    let (port, memory) = port(16 << 20, Limits::default());
    let seen = with_echo(port, |addr, _| {
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
    assert_eq!(seen.most_open, count);
    assert_eq!(memory.stats().refusals.get(), 0);
}

#[test]
fn beyond_the_limit_connections_wait() {
    let (mut port, memory) = port(1 << 20, Limits { connections: 2, ..Limits::default() });
    let _first = connect(port.local_addr());
    let second = connect(port.local_addr());
    let mut third = connect(port.local_addr());
    third.write_all(b"patient").unwrap();
    let (_, _) = (opened(&mut port), opened(&mut port));
    for _ in 0..100 {
        assert!(port.poll().is_none());
    }
    abort(second);
    let id = opened(&mut port);
    assert_eq!(bytes(&memory, &collect(&mut port, id, 7)), b"patient");
}

#[test]
fn clients_come_and_go_and_vanish() {
    let (port, memory) = port(4 << 20, Limits { connections: 8, ..small() });
    let rounds = 250;
    let seen = with_echo(port, |addr, _| {
        let clients: Vec<_> = (0..4u64)
            .map(|seed| {
                thread::spawn(move || {
                    for round in 0..rounds {
                        let data = pattern(seed * 1000 + round, (round as usize * 37) % 5000 + 1);
                        match round % 3 {
                            0 => echo(addr, data, 512),
                            1 => {
                                let mut client = connect(addr);
                                client.write_all(&data).unwrap();
                                abort(client);
                            }
                            _ => {
                                let mut client = connect(addr);
                                client.write_all(&data).unwrap();
                                drop(client);
                            }
                        }
                    }
                })
            })
            .collect();
        clients.into_iter().for_each(|client| client.join().unwrap());
        echo(addr, pattern(77, 1000), 1000);
    });
    assert!(seen.opened > 4 * rounds as usize / 3 && seen.most_open <= 8);
    assert_eq!(memory.heap().used(), 0);
}

#[test]
fn bind_errors_say_what_to_do() {
    let (first, memory) = port(1 << 20, Limits::default());
    let bind = |addr, limits| TcpPort::bind(memory.clone(), addr, limits).unwrap_err();
    let taken = bind(first.local_addr(), Limits::default());
    assert!(matches!(&taken, BindError::InUse { addr } if *addr == first.local_addr()));
    assert!(taken.to_string().contains(&first.local_addr().to_string()), "{taken}");
    let elsewhere = "192.0.2.1:0".parse().unwrap();
    assert!(matches!(bind(elsewhere, Limits::default()), BindError::NoSuchAddress { .. }));
    let patient = |starve_patience| Limits { starve_patience, ..Limits::default() };
    let cases = [
        (Limits { connections: 0, ..Limits::default() }, Limits { connections: 1, ..Limits::default() }),
        (Limits { connections: 65537, ..Limits::default() }, Limits { connections: 65536, ..Limits::default() }),
        (Limits { buffer_bytes: 4095, ..Limits::default() }, Limits { buffer_bytes: 4096, ..Limits::default() }),
        (
            Limits { receive_bytes: (512 << 10) - 1, ..Limits::default() },
            Limits { receive_bytes: 512 << 10, ..Limits::default() },
        ),
        (Limits { backlog: 0, ..Limits::default() }, Limits { backlog: 1, ..Limits::default() }),
        (patient(Duration::from_micros(9_999)), patient(Duration::from_millis(10))),
        (patient(Duration::from_millis(3_600_001)), patient(Duration::from_secs(3600))),
    ];
    for (wrong, right) in cases {
        assert!(matches!(bind(LOCAL, wrong), BindError::Limit { .. }), "{wrong:?}");
        assert!(TcpPort::bind(memory.clone(), LOCAL, right).is_ok(), "{right:?}");
    }
    assert!(matches!(BindError::from_errno(LOCAL, Errno::ACCESS), BindError::Permission { .. }));
}

#[test]
fn connections_inherit_the_listeners_options() {
    let (mut port, _) = port(1 << 20, Limits::default());
    let _client = connect(port.local_addr());
    let id = opened(&mut port);
    let fd = port.connections.get(id).and_then(|connection| connection.socket.as_ref()).unwrap();
    assert!(rustix::net::sockopt::tcp_nodelay(fd).unwrap());
    assert!(rustix::net::sockopt::socket_keepalive(fd).unwrap());
}
