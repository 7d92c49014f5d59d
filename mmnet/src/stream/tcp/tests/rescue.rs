//! What is queued for sending when the domain dies whose arena it lies in.

use std::net::TcpStream;
use std::sync::Weak;

use fido_core::payload::Hold;
use fido_core::testing::private_arena;

use super::*;

/// A port with a queued payload that lies in another domain's arena and whose client does not read yet.
fn with_foreign_queue(arena: u64) -> (TcpPort, Memory, TcpStream, Memory, Weak<dyn std::any::Any + Send + Sync>) {
    let (mut port, memory) = port(arena, Limits::default());
    let foreign = private_arena(32 << 20, &[]);
    let disk = Memory::new(foreign, Arc::default());
    memory.windows().insert(disk.arena().window().clone());
    let client = connect(port.local_addr());
    rustix::net::sockopt::set_socket_recv_buffer_size(&client, 256 << 10).unwrap();
    let id = opened(&mut port);
    let hold: Hold = Arc::new(());
    let weak = Arc::downgrade(&hold);
    let buf = payload(&disk, &pattern(3, 8 << 20));
    let mut data = Payload::new();
    for (index, segment) in buf.segments().enumerate() {
        assert_eq!(index, 0);
        for piece in 0..8 {
            data.push(segment.slice(piece << 20, 1 << 20).unwrap(), Some(Arc::new((hold.clone(), buf.clone()))));
        }
    }
    port.send(id, data).unwrap();
    for _ in 0..50 {
        port.flush();
    }
    (port, memory, client, disk, weak)
}

#[test]
fn what_is_queued_survives_the_death_of_its_domain() {
    let (mut port, memory, mut client, disk, hold) = with_foreign_queue(16 << 20);
    assert!(hold.upgrade().is_some(), "not all is sent yet");
    port.rescue(disk.id());
    assert!(hold.upgrade().is_none(), "the fence can pass");
    memory.windows().remove(disk.id());
    let reader = thread::spawn(move || {
        let mut all = vec![0; 8 << 20];
        client.read_exact(&mut all).unwrap();
        all
    });
    pump_until(&mut port, || reader.is_finished());
    assert!(reader.join().unwrap() == pattern(3, 8 << 20));
    assert!(memory.stats().payload_bytes_copied.get() > 0, "a rescue copies, and says so");
    assert_eq!(memory.heap().used(), 0);
}

#[test]
fn without_room_for_a_rescue_the_connection_is_reset() {
    let (mut port, _, mut client, disk, hold) = with_foreign_queue(128 << 10);
    port.rescue(disk.id());
    assert!(hold.upgrade().is_none(), "the fence can pass");
    pump(&mut port, |event| matches!(event, StreamEvent::Closed { .. }));
    assert_eq!(client.read_to_end(&mut Vec::new()).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

/// A file system's answer is one loan: its own head and padding around the disk's data.
#[test]
fn a_loan_ends_although_only_its_rest_is_queued() {
    let (mut port, memory) = port(32 << 20, Limits::default());
    let foreign = private_arena(1 << 20, &[]);
    let disk = Memory::new(foreign, Arc::default());
    memory.windows().insert(disk.arena().window().clone());
    let mut client = connect(port.local_addr());
    rustix::net::sockopt::set_socket_recv_buffer_size(&client, 256 << 10).unwrap();
    let id = opened(&mut port);
    let hold: Hold = Arc::new(());
    let weak = Arc::downgrade(&hold);
    let (head, tail) = (payload(&disk, b"from the disk"), payload(&memory, &pattern(4, 7 << 20)));
    let mut answer = Payload::new();
    for segment in head.segments().chain(tail.segments()) {
        answer.push(segment, Some(hold.clone()));
    }
    drop(hold);
    port.send(id, answer).unwrap();
    for _ in 0..50 {
        port.flush();
    }
    assert!(weak.upgrade().is_some(), "the rest is queued");
    let other = DomainId { generation: disk.id().generation.next(), ..disk.id() };
    port.rescue(other);
    assert!(weak.upgrade().is_some(), "that one had nothing to do with it");
    port.rescue(disk.id());
    assert!(weak.upgrade().is_none(), "the fence can pass");
    memory.windows().remove(disk.id());
    drop(tail);
    let reader = thread::spawn(move || {
        let mut all = vec![0; 13 + (7 << 20)];
        client.read_exact(&mut all).unwrap();
        all
    });
    pump_until(&mut port, || reader.is_finished());
    assert!(reader.join().unwrap() == [&b"from the disk"[..], &pattern(4, 7 << 20)].concat());
}
