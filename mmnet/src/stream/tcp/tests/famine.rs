//! Clients that keep receive buffers and give nothing for them.

use std::collections::HashMap;
use std::time::Instant;

use super::*;

#[test]
fn silent_clients_do_not_keep_the_heap_for_ever() {
    let (mut port, memory) = port(256 << 10, Limits { starve_patience: Duration::from_millis(100), ..small() });
    // What a reader of records holds of each connection that has sent a part of one.
    let mut held: HashMap<StreamId, Payload> = HashMap::new();
    // The slow one holds the most, but it is not the first to go, because it moves.
    let mut slow = connect(port.local_addr());
    let slow_id = opened(&mut port);
    slow.write_all(&[1; 6000]).unwrap();
    held.insert(slow_id, collect(&mut port, slow_id, 6000));
    let mut hogs = HashMap::new();
    while memory.alloc(4096).is_ok() {
        let mut hog = connect(port.local_addr());
        let id = opened(&mut port);
        hog.write_all(&[2; 100]).unwrap();
        held.insert(id, collect(&mut port, id, 100));
        hogs.insert(id, hog);
    }
    // A record that needs the buffers of several.
    const RECORD: u64 = 40 << 10;
    let mut honest = connect(port.local_addr());
    let honest_id = opened(&mut port);
    honest.write_all(&[3; RECORD as usize]).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while port.starving.is_empty() {
        assert!(port.poll().is_none() && Instant::now() < deadline);
    }
    slow.write_all(&[1; 10]).unwrap();
    let mut reset = 0;
    while held.get(&honest_id).is_none_or(|data| data.len() < RECORD) {
        match port.poll() {
            Some(StreamEvent::Data { id, data }) => held.entry(id).or_default().append(data),
            Some(StreamEvent::Closed { id }) => {
                if let Some(mut hog) = hogs.remove(&id) {
                    assert_eq!(hog.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
                } else {
                    // It may have become silent since.
                    assert!(id == slow_id && reset > 0, "{id:?} was reset");
                }
                held.remove(&id);
                reset += 1;
            }
            Some(other) => panic!("{other:?}"),
            None => idle(&mut [&mut port]),
        }
        assert!(Instant::now() < deadline, "out of patience");
    }
    assert!(reset > 1 && !hogs.is_empty(), "no more of them than necessary: {reset}");
    assert_eq!(memory.stats().refusals.get(), reset);
}

#[test]
fn those_who_wait_for_each_other_are_reset_one_by_one() {
    let (mut port, memory) = port(256 << 10, Limits { starve_patience: Duration::from_millis(50), ..small() });
    let mut held: HashMap<StreamId, Payload> = HashMap::new();
    // More than the heap, by clients all of which have more to say.
    let addr = port.local_addr();
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let mut client = connect(addr);
            thread::spawn(move || client.write_all(&[1; 60 << 10]).map(|()| client))
        })
        .collect();
    let (mut whole, mut reset) = (0, 0);
    let deadline = Instant::now() + PATIENCE;
    while whole + reset < clients.len() {
        match port.poll() {
            Some(StreamEvent::Data { id, data }) => {
                let record = held.entry(id).or_default();
                record.append(data);
                if record.len() == 60 << 10 {
                    held.remove(&id);
                    whole += 1;
                }
            }
            Some(StreamEvent::Closed { id }) => {
                held.remove(&id);
                reset += 1;
            }
            Some(_) => {}
            None => idle(&mut [&mut port]),
        }
        assert!(Instant::now() < deadline, "out of patience");
    }
    assert!(whole > 0, "{reset} were reset");
    assert_eq!(memory.stats().refusals.get(), reset as u64);
    clients.into_iter().for_each(|client| drop(client.join().unwrap()));
}
