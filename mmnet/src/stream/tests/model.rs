//! Random schedules of a gateway and a link port over a short ring, with a port that the test plays, against what a
//! stream must be: bytes in order, none lost unless the connection was cut, nothing after the end, nothing left over.

use std::collections::{HashMap, VecDeque};
use std::os::fd::BorrowedFd;

use fido_core::wait::Source;
use proptest::prelude::*;

use super::*;

/// A port without an outside: the test says what happens.
struct PlayedPort {
    memory: Memory,
    next: u32,
    events: VecDeque<StreamEvent>,
    open: HashMap<StreamId, Played>,
    /// What became of each connection, by its number.
    sent: HashMap<u32, (Vec<u8>, bool)>,
}

#[derive(Default)]
struct Played {
    queue: VecDeque<Payload>,
    queued: u64,
    refused: bool,
    finished_here: bool,
    finished_there: bool,
}

/// So that the port's limit matters although payloads are small.
const PORT_QUEUE: u64 = 60;

impl PlayedPort {
    fn open(&mut self) -> StreamId {
        let id = StreamId(self.next);
        self.next += 1;
        self.open.insert(id, Played::default());
        self.sent.insert(id.0, Default::default());
        self.events.push_back(StreamEvent::Opened { id, remote: SocketAddr::from(([10, 0, 0, 1], id.0 as u16)) });
        id
    }

    fn data(&mut self, id: StreamId, bytes: &[u8]) -> bool {
        if self.open.get(&id).is_none_or(|played| played.finished_there) {
            return false;
        }
        self.events.push_back(StreamEvent::Data { id, data: payload(&self.memory, bytes) });
        true
    }

    fn finish_there(&mut self, id: StreamId) {
        if let Some(played) = self.open.get_mut(&id).filter(|played| !played.finished_there) {
            played.finished_there = true;
            self.events.push_back(StreamEvent::Finished { id });
            self.drain(id, 0);
        }
    }

    fn close(&mut self, id: StreamId) {
        if self.open.remove(&id).is_some() {
            self.events.push_back(StreamEvent::Closed { id });
        }
    }

    /// The client reads that many queued payloads.
    fn drain(&mut self, id: StreamId, count: usize) {
        let Some(played) = self.open.get_mut(&id) else { return };
        let record = self.sent.get_mut(&id.0).unwrap();
        for data in played.queue.drain(..count.min(played.queue.len())) {
            played.queued -= data.len();
            record.0.extend(bytes(&self.memory, &data));
        }
        if played.refused && played.queued <= PORT_QUEUE / 2 {
            played.refused = false;
            self.events.push_back(StreamEvent::Writable { id });
        }
        if played.queue.is_empty() && played.finished_here {
            record.1 = true;
            if played.finished_there {
                self.close(id);
            }
        }
    }
}

impl Source for PlayedPort {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        unreachable!("the test does not sleep")
    }
}

impl StreamPort for PlayedPort {
    fn poll(&mut self) -> Option<StreamEvent> {
        self.events.pop_front()
    }

    fn send(&mut self, id: StreamId, data: Payload) -> Result<(), SendError> {
        let Some(played) = self.open.get_mut(&id) else { return Err(SendError::Closed) };
        assert!(!played.finished_here, "sent after the end");
        if played.queued > 0 && played.queued + data.len() > PORT_QUEUE {
            played.refused = true;
            return Err(SendError::Full(data));
        }
        played.queued += data.len();
        played.queue.push_back(data);
        Ok(())
    }

    fn finish(&mut self, id: StreamId) {
        if let Some(played) = self.open.get_mut(&id) {
            played.finished_here = true;
            self.drain(id, 0);
        }
    }

    fn reset(&mut self, id: StreamId) {
        self.close(id);
    }

    fn flush(&mut self) {}
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Open,
    Data(u8, u8),
    FinishThere(u8),
    CutThere(u8),
    ClientReads(u8, u8),
    Send(u8, u8),
    FinishHere(u8),
    CutHere(u8),
    Turn,
    Poll(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => Just(Step::Open),
        6 => any::<(u8, u8)>().prop_map(|(id, len)| Step::Data(id, len)),
        1 => any::<u8>().prop_map(Step::FinishThere),
        1 => any::<u8>().prop_map(Step::CutThere),
        4 => any::<(u8, u8)>().prop_map(|(id, count)| Step::ClientReads(id, count)),
        6 => any::<(u8, u8)>().prop_map(|(id, len)| Step::Send(id, len)),
        1 => any::<u8>().prop_map(Step::FinishHere),
        1 => any::<u8>().prop_map(Step::CutHere),
        6 => Just(Step::Turn),
        6 => any::<u8>().prop_map(Step::Poll),
    ];
    prop::collection::vec(step, 0..400)
}

/// One connection as the inside sees it.
#[derive(Default)]
struct Inside {
    id: Option<StreamId>,
    got: Vec<u8>,
    finished: bool,
    closed: bool,
    sent: Vec<u8>,
    sent_finish: bool,
    cut: bool,
}

struct World {
    gateway: Gateway<PlayedPort>,
    link: LinkPort,
    memory: Memory,
    /// What the outside gave the port, by connection number, and whether that was cut off.
    given: Vec<(Vec<u8>, bool, bool)>,
    inside: HashMap<u32, Inside>,
    numbers: HashMap<StreamId, u32>,
    counter: u8,
}

impl World {
    fn new(transport: Transport) -> Self {
        let (outer, inner) = lane_pair(4, transport);
        let port = PlayedPort {
            memory: outer.memory().clone(),
            next: 0,
            events: VecDeque::new(),
            open: HashMap::new(),
            sent: HashMap::new(),
        };
        let memory = inner.memory().clone();
        Self {
            gateway: Gateway::new(port, outer),
            link: LinkPort::new(inner),
            memory,
            given: Vec::new(),
            inside: HashMap::new(),
            numbers: HashMap::new(),
            counter: 0,
        }
    }

    fn some_bytes(&mut self, len: u8) -> Vec<u8> {
        (0..len % 40 + 1)
            .map(|_| {
                self.counter = self.counter.wrapping_add(1);
                self.counter
            })
            .collect()
    }

    fn pick(&self, pick: u8) -> Option<u32> {
        (!self.given.is_empty()).then(|| u32::from(pick) % self.given.len() as u32)
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Open => {
                self.gateway.port.open();
                self.given.push(Default::default());
            }
            Step::Data(pick, len) => {
                let data = self.some_bytes(len);
                if let Some(number) = self.pick(pick)
                    && self.gateway.port.data(StreamId(number), &data)
                {
                    self.given[number as usize].0.extend(data);
                }
            }
            Step::FinishThere(pick) => {
                if let Some(number) = self.pick(pick) {
                    self.given[number as usize].1 |= self.gateway.port.open.contains_key(&StreamId(number));
                    self.gateway.port.finish_there(StreamId(number));
                }
            }
            Step::CutThere(pick) => {
                if let Some(number) = self.pick(pick) {
                    self.given[number as usize].2 = true;
                    self.gateway.port.close(StreamId(number));
                }
            }
            Step::ClientReads(pick, count) => {
                if let Some(number) = self.pick(pick) {
                    self.gateway.port.drain(StreamId(number), usize::from(count % 4) + 1);
                }
            }
            Step::Send(pick, len) => self.send(pick, len),
            Step::FinishHere(pick) => self.end(pick, false),
            Step::CutHere(pick) => self.end(pick, true),
            Step::Turn => drop(self.gateway.turn()),
            Step::Poll(count) => {
                for _ in 0..count % 8 {
                    let _ = self.poll();
                }
                self.link.flush();
            }
        }
    }

    fn send(&mut self, pick: u8, len: u8) {
        let data = self.some_bytes(len);
        let Some(inside) = self.pick(pick).and_then(|number| self.inside.get_mut(&number)) else { return };
        let Some(id) = inside.id else { return };
        // Every byte a segment of its own under one hold, now and then too many for the message's own room.
        let mut scattered = Payload::new();
        for byte in &data {
            scattered.append(payload(&self.memory, &[*byte]));
        }
        match self.link.send(id, scattered) {
            Ok(()) => inside.sent.extend(data),
            Err(SendError::Full(_)) => {}
            Err(SendError::Closed) => assert!(inside.closed || inside.sent_finish || inside.cut),
        }
    }

    fn end(&mut self, pick: u8, cut: bool) {
        let Some(inside) = self.pick(pick).and_then(|number| self.inside.get_mut(&number)) else { return };
        let Some(id) = inside.id else { return };
        if cut {
            inside.cut = true;
            self.link.reset(id);
        } else {
            inside.sent_finish = true;
            self.link.finish(id);
        }
    }

    fn poll(&mut self) -> bool {
        let Some(event) = self.link.poll() else { return false };
        if let StreamEvent::Opened { id, remote } = event {
            let number = u32::from(remote.port());
            assert!(self.numbers.insert(id, number).is_none(), "a name was used again");
            let inside = self.inside.entry(number).or_default();
            assert!(inside.id.replace(id).is_none());
            return true;
        }
        let (StreamEvent::Data { id, .. }
        | StreamEvent::Finished { id }
        | StreamEvent::Writable { id }
        | StreamEvent::Closed { id }) = event
        else {
            return true;
        };
        let inside = self.inside.get_mut(&self.numbers[&id]).unwrap();
        assert!(!inside.closed, "an event after the last");
        match event {
            StreamEvent::Data { data, .. } => {
                assert!(!inside.finished && !data.is_empty());
                inside.got.extend(bytes(&self.memory, &data));
            }
            StreamEvent::Finished { .. } => assert!(!std::mem::replace(&mut inside.finished, true)),
            StreamEvent::Closed { .. } => inside.closed = true,
            StreamEvent::Opened { .. } | StreamEvent::Writable { .. } => {}
        }
        true
    }

    /// Lets everything come to rest.
    fn rest(&mut self) {
        for _ in 0..10_000 {
            let mut moved = self.gateway.turn();
            for number in 0..self.given.len() as u32 {
                self.gateway.port.drain(StreamId(number), usize::MAX);
            }
            moved |= !self.gateway.port.events.is_empty();
            while self.poll() {
                moved = true;
            }
            self.link.flush();
            let mut sources: [&mut dyn Source; 2] = [&mut self.gateway.lane, &mut self.link];
            sources.iter_mut().for_each(|source| source.arm());
            moved |= sources.iter_mut().any(|source| source.ready());
            sources.iter_mut().for_each(|source| source.disarm());
            if !moved {
                return;
            }
        }
        panic!("it does not come to rest");
    }

    fn check(&mut self) {
        for (number, (given, given_end, cut_there)) in self.given.iter().enumerate() {
            let number = number as u32;
            let (reached, reached_end) = &self.gateway.port.sent[&number];
            let Some(inside) = self.inside.get(&number) else {
                assert!(cut_there, "connection {number} was never announced");
                continue;
            };
            assert!(given.starts_with(&inside.got), "connection {number}: not what arrived");
            assert!(inside.sent.starts_with(reached), "connection {number}: not what was sent");
            if !cut_there && !inside.cut {
                assert_eq!(inside.got.len(), given.len(), "connection {number}: bytes are missing inside");
                assert_eq!(reached.len(), inside.sent.len(), "connection {number}: bytes are missing outside");
                assert_eq!((inside.finished, *reached_end), (*given_end, inside.sent_finish));
            }
            let over = *cut_there || inside.cut || (*given_end && inside.sent_finish);
            assert_eq!(inside.closed, over, "connection {number}");
        }
    }

    fn end_all(&mut self) {
        for number in 0..self.given.len() as u32 {
            self.gateway.port.close(StreamId(number));
        }
        self.rest();
        assert_eq!((self.gateway.connections(), self.link.connections()), (0, 0));
        assert_eq!((self.gateway.lane.loans(), self.link.lane_loans()), (0, 0));
        self.gateway.reserve = None;
        assert_eq!((self.memory.heap().used(), self.gateway.port.memory.heap().used()), (0, 0));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_stream_is_a_stream(steps in steps(), copying: bool) {
        let mut world = World::new(if copying { Transport::Copying } else { Transport::Pointer });
        steps.into_iter().for_each(|step| world.step(step));
        world.rest();
        world.check();
        world.end_all();
    }
}
