//! What happens when one end takes nothing: nothing grows without bound, and nothing stops for good.

use std::collections::HashMap;

use fido_core::testing::TestLink;

use super::*;
use crate::stream::link::OUTBOUND;

/// While the inside is away, clients at `addr` fill the heap to the last page. When it is back, all gets through.
fn fill_the_heap_and_go_on(addr: &str) {
    const CLIENTS: usize = 6;
    const BYTES: usize = 400_000;
    let (mut link, outer, inner) = TestLink::sized(16, Transport::Pointer, 1 << 20);
    let heap = link.a().memory.clone();
    let limits = Limits { starve_patience: PATIENCE, ..Limits::default() };
    let Ok(port) = TcpPort::bind(outer.memory().clone(), addr.parse().unwrap(), limits) else {
        return; // This machine has no IPv6.
    };
    let mut gateway = Gateway::new(port, outer);
    drop(inner);
    link.kill_b();
    while gateway.turn() {}
    let addr = gateway.port().local_addr();
    let write = |seed| {
        let mut client = connect(addr);
        thread::spawn(move || {
            client.write_all(&pattern(seed, BYTES)).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            client
        })
    };
    let clients: Vec<_> = (0..CLIENTS as u64).map(write).collect();
    let deadline = Instant::now() + PATIENCE;
    while heap.alloc(4096).is_ok() || gateway.connections() < CLIENTS {
        gateway.turn();
        thread::yield_now();
        assert!(Instant::now() < deadline, "the heap is never full");
    }
    // And the last crumbs are somebody else's.
    let _hoard: Vec<_> = std::iter::from_fn(|| heap.alloc(1).ok()).collect();
    link.fence_b();
    let mut port = LinkPort::new(link.restart_b());
    let memory = link.b().memory.clone();
    let (mut got, mut finished) = (HashMap::<_, Vec<u8>>::new(), 0);
    pump_both(&mut gateway, &mut port, |event| {
        match event {
            StreamEvent::Data { id, data } => got.entry(id).or_default().extend(bytes(&memory, &data)),
            StreamEvent::Finished { .. } => finished += 1,
            StreamEvent::Opened { .. } => {}
            other => panic!("{other:?}"),
        }
        finished == CLIENTS
    });
    for seed in 0..CLIENTS as u64 {
        assert!(got.values().any(|bytes| *bytes == pattern(seed, BYTES)), "client {seed}");
    }
    clients.into_iter().for_each(|client| drop(client.join().unwrap()));
}

#[test]
fn a_heap_full_of_what_waited_for_the_inside_gets_through() {
    fill_the_heap_and_go_on("127.0.0.1:0");
    // Here the announcements need buffers too.
    fill_the_heap_and_go_on("[::1]:0");
}

#[test]
fn replies_that_fill_the_heap_get_through() {
    let (_link, outer, inner) = TestLink::sized(16, Transport::Pointer, 1 << 20);
    let (memory, mut link) = (inner.memory().clone(), LinkPort::new(inner));
    let mut gateway = gateway(outer, Limits::default());
    let mut client = connect(gateway.port().local_addr());
    let (id, _) = opened_both(&mut gateway, &mut link);
    // Pages with gaps between, so that none join.
    let mut reply = Payload::new();
    while let Ok(page) = memory.alloc(4096) {
        reply.append(page.into_payload().split_to(4000));
    }
    let len = reply.len() as usize;
    assert!(reply.parts().len() > 100);
    link.send(id, reply).unwrap();
    link.finish(id);
    let reader = thread::spawn(move || {
        let mut all = Vec::new();
        client.read_to_end(&mut all).unwrap();
        all.len()
    });
    settle(&mut gateway, &mut link, |_| reader.is_finished());
    assert_eq!(reader.join().unwrap(), len);
}

#[test]
fn what_arrived_for_nobody_is_dropped() {
    let (link, outer, inner) = TestLink::new(16, Transport::Pointer);
    let mut gateway = gateway(outer, Limits::default());
    drop(inner);
    link.kill_b();
    while gateway.turn() {}
    let heap = link.a().memory.heap();
    let before = heap.used();
    let mut client = connect(gateway.port().local_addr());
    client.write_all(&pattern(1, 10_000)).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while heap.used() == before {
        gateway.turn();
        assert!(Instant::now() < deadline, "nothing arrives");
    }
    abort(client);
    while gateway.port().connections() > 0 {
        gateway.turn();
        assert!(Instant::now() < deadline, "it is never closed");
    }
    assert_eq!(heap.used(), before);
}

#[test]
fn an_outside_that_provokes_answers_and_takes_none_is_not_heard() {
    let (mut bare, inner) = lane_pair(64, Transport::Pointer);
    let mut link = LinkPort::new(inner);
    let name = Name { id: StreamId(5), serial: 9 };
    let opened = |name| Report::Opened("10.0.0.1:77".parse().unwrap()).encode(name).0;
    bare.send(opened(name), Payload::new()).unwrap();
    bare.flush();
    let Some(StreamEvent::Opened { id, .. }) = link.poll() else { panic!("not opened") };
    let mut provoke = |link: &mut LinkPort, head: Head, count: usize| {
        for _ in 0..count {
            let _ = bare.send(head, Payload::new());
            bare.flush();
            assert!(link.poll().is_none());
            link.flush();
        }
    };
    // The same name again is answered by a reset.
    let again = opened(Name { serial: 10, ..name });
    provoke(&mut link, again, OUTBOUND + 200);
    let data = payload(link.lane_memory(), b"hello");
    let Err(SendError::Full(data)) = link.send(id, data) else { panic!("taken") };
    provoke(&mut link, Report::Sent(1).encode(name).0, 300);
    assert_eq!(link.waiting().1, 1, "it waits once, however often it is told");
    provoke(&mut link, again, 2 * OUTBOUND);
    assert_eq!(link.waiting().0, 2 * OUTBOUND);
    // When answers are taken again, all goes on.
    let deadline = Instant::now() + PATIENCE;
    loop {
        while bare.recv().is_some() {}
        bare.flush();
        match link.poll() {
            Some(StreamEvent::Writable { id: room }) => break assert_eq!(room, id),
            Some(other) => panic!("{other:?}"),
            None => link.flush(),
        }
        assert!(Instant::now() < deadline, "out of patience");
    }
    link.send(id, data).unwrap();
    assert_eq!(link.waiting().1, 0);
}
