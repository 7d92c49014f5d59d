//! What happens to connections when a domain dies.

use fido_core::testing::{TestLink, test_domain};

use super::*;

#[test]
fn when_the_inside_dies_clients_are_reset_and_new_ones_wait() {
    for transport in BOTH {
        let (mut link, outer, inner) = TestLink::new(16, transport);
        let (mut gateway, mut port) = (gateway(outer, Limits::default()), LinkPort::new(inner));
        let addr = gateway.port().local_addr();
        let mut old = connect(addr);
        let (old_id, _) = opened_both(&mut gateway, &mut port);
        port.send(old_id, payload(&link.b().memory, b"never sent")).unwrap();
        drop(port);
        link.kill_b();
        while gateway.turn() {}
        assert_eq!(old.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        // These come while nobody is there. One does not wait.
        let mut patient = connect(addr);
        patient.write_all(b"are you there?").unwrap();
        let hasty = connect(addr);
        settle_outside(&mut gateway, |gateway| gateway.connections() == 2);
        abort(hasty);
        settle_outside(&mut gateway, |gateway| gateway.port().connections() == 1);
        link.fence_b();
        let mut port = LinkPort::new(link.restart_b());
        let memory = link.b().memory.clone();
        let (id, remote) = opened_both(&mut gateway, &mut port);
        assert_eq!(remote, patient.local_addr().unwrap());
        let mut asked = Payload::new();
        pump_both(&mut gateway, &mut port, |event| match event {
            StreamEvent::Data { id: from, data } => {
                assert_eq!(from, id);
                asked.append(data);
                asked.len() == 14
            }
            other => panic!("{other:?}"),
        });
        assert_eq!(bytes(&memory, &asked), b"are you there?");
        port.send(id, payload(&memory, b"yes")).unwrap();
        port.finish(id);
        settle(&mut gateway, &mut port, |gateway| {
            let _ = gateway;
            patient.set_nonblocking(true).unwrap();
            patient.peek(&mut [0; 3]).is_ok_and(|count| count == 3)
        });
        assert_eq!(gateway.connections(), 1);
    }
}

fn settle_outside(gateway: &mut Gateway<TcpPort>, mut done: impl FnMut(&Gateway<TcpPort>) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done(gateway) {
        gateway.turn();
        thread::yield_now();
        assert!(Instant::now() < deadline, "out of patience");
    }
}

#[test]
fn what_waits_for_the_inside_is_bounded() {
    let (link, outer, inner) = TestLink::new(16, Transport::Pointer);
    let mut gateway = gateway(outer, Limits { connections: 3, ..small() });
    drop(inner);
    link.kill_b();
    while gateway.turn() {}
    let addr = gateway.port().local_addr();
    let writers: Vec<_> = (0..5)
        .map(|_| {
            let mut client = connect(addr);
            client.set_nonblocking(true).unwrap();
            // As much as it takes.
            while client.write(&[0; 65536]).is_ok() {}
            client
        })
        .collect();
    settle_outside(&mut gateway, |gateway| gateway.connections() == 3);
    for _ in 0..1000 {
        gateway.turn();
    }
    assert_eq!(gateway.connections(), 3);
    assert!(link.a().memory.heap().used() <= 3 * ((64 << 10) + (16 << 10)));
    drop(writers);
}

#[test]
fn when_the_outside_dies_all_connections_close_and_names_are_not_used_again() {
    let (mut link, inner, outer) = TestLink::new(16, Transport::Pointer);
    let mut outside = gateway(outer, Limits::default());
    let mut port = LinkPort::new(inner);
    let _client = connect(outside.port().local_addr());
    let (old, _) = opened_both(&mut outside, &mut port);
    drop(outside);
    link.kill_b();
    assert!(matches!(port.poll(), Some(StreamEvent::Closed { id }) if id == old));
    assert!(matches!(port.send(old, payload(&link.a().memory, b"x")), Err(SendError::Closed)));
    link.fence_b();
    let mut outside = gateway(link.restart_b(), Limits::default());
    let mut client = connect(outside.port().local_addr());
    let (new, _) = opened_both(&mut outside, &mut port);
    assert_ne!(old, new, "a late answer to the old one would go to the new one");
    port.send(new, payload(&link.a().memory, b"welcome")).unwrap();
    port.finish(new);
    client.shutdown(Shutdown::Write).unwrap();
    pump_both(&mut outside, &mut port, |event| matches!(event, StreamEvent::Closed { .. }));
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap();
    assert_eq!(text, "welcome");
}

#[test]
fn a_third_domains_death_costs_no_client_and_holds_nobody_up() {
    // More than the kernel's buffers take, and less than the queue's limit with the second.
    let len = |seed| if seed == 1 { 6 << 20 } else { 1 << 20 };
    let (link, outer, inner) = TestLink::new(64, Transport::Pointer);
    let disk = test_domain(16 << 20);
    link.add_window(&disk);
    let (memory, inside) = (link.a().memory.clone(), link.b().memory.clone());
    let (mut gateway, mut port) = (gateway(outer, Limits::default()), LinkPort::new(inner));
    let mut client = connect(gateway.port().local_addr());
    rustix::net::sockopt::set_socket_recv_buffer_size(&client, 64 << 10).unwrap();
    let (id, _) = opened_both(&mut gateway, &mut port);
    // As a file system answers: an own head, the disk's data, own padding.
    let answer = |text: &[u8], seed| {
        let mut whole = payload(&inside, text);
        whole.append(payload(&disk.memory, &pattern(seed, len(seed))));
        whole.append(payload(&inside, text));
        whole
    };
    let expected = |text: &[u8], seed| [text, &pattern(seed, len(seed)), text].concat();
    port.send(id, answer(b"first", 1)).unwrap();
    for _ in 0..100 {
        gateway.turn();
        port.flush();
    }
    assert!(disk.memory.heap().used() > 0 && port.lane_loans() > 0, "the client has not read it all");
    // The second is on its way when the disk dies.
    port.send(id, answer(b"second", 2)).unwrap();
    port.flush();
    gateway.rescue(disk.id());
    let deadline = Instant::now() + PATIENCE;
    while disk.memory.heap().used() > 0 {
        gateway.turn();
        assert!(port.poll().is_none());
        port.flush();
        assert!(Instant::now() < deadline, "the disk's bytes are held until the client reads");
    }
    memory.windows().remove(disk.id());
    let all = [expected(b"first", 1), expected(b"second", 2)].concat();
    let reader = {
        let len = all.len();
        thread::spawn(move || {
            let mut got = vec![0; len];
            client.read_exact(&mut got).unwrap();
            got
        })
    };
    settle(&mut gateway, &mut port, |_| reader.is_finished());
    assert!(reader.join().unwrap() == all);
}
