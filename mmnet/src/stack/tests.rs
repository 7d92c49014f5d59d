use std::time::{Duration, Instant as Clock};

use fido_core::assignment::Transport;
use fido_core::testing::lane_pair;
use proptest::prelude::*;

use super::*;
use crate::frame::{Frame, FrameCounts, FrameError};
use crate::stream::testkit::{PATIENCE as LIMIT, Stop, bytes, pattern, payload, serve_echo, talk};

const SERVER: &str = "10.0.0.2:7";
const SERVER6: &str = "[fd00::2]:7";

fn config(number: u8) -> StackConfig {
    let addresses = vec![
        ([10, 0, 0, number].into(), 24),
        (std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number.into()).into(), 64),
    ];
    StackConfig { hardware: [2, 0, 0, 0, 0, number], addresses, buffer_bytes: 64 << 10, ..StackConfig::default() }
}

fn stacks(mtu: usize) -> (Stack, Stack) {
    let (a, b) = lane_pair(256, Transport::Pointer);
    let make = |lane, number| Stack::new(FrameLink::new(lane, mtu).unwrap(), config(number)).unwrap();
    (make(a, 1), make(b, 2))
}

/// Lets stacks turn, on this thread, until `done` says so of the events of one after the other.
fn pump<A: FramePort, B: FramePort>(
    a: &mut Stack<A>,
    b: &mut Stack<B>,
    mut done: impl FnMut(Option<StreamEvent>, Option<StreamEvent>) -> bool,
) {
    let deadline = Clock::now() + LIMIT;
    loop {
        let (of_a, of_b) = (a.poll(), b.poll());
        let quiet = of_a.is_none() && of_b.is_none();
        if done(of_a, of_b) {
            return;
        }
        if quiet {
            a.flush();
            b.flush();
            std::thread::sleep(Duration::from_micros(50));
        }
        assert!(Clock::now() < deadline, "out of patience");
    }
}

/// Sends `data` to an echo server from `client`, both waiting as components do, and takes it back.
fn echo(mut client: Stack, mut server: Stack, to: &str, data: &[u8]) {
    server.listen(7).unwrap();
    let stop = Stop::new();
    let heard = stop.clone();
    let serving = std::thread::spawn(move || serve_echo(server, heard));
    let id = client.connect(to.parse().unwrap()).unwrap();
    let memory = client.memory().clone();
    talk(client, &memory, id, data);
    stop.stop();
    let seen = serving.join().unwrap();
    // (It may not have heard the very last acknowledgement yet.)
    assert!(seen.bytes == data.len() as u64 && seen.opened == 1, "{seen:?}");
}

#[test]
fn a_component_cannot_tell_a_stack_from_sockets() {
    for (to, mtu) in [(SERVER, 1500), (SERVER6, 1500), (SERVER, 9000)] {
        let (client, server) = stacks(mtu);
        echo(client, server, to, &pattern(3, 3_000_000));
    }
}

#[test]
fn connections_come_and_go() {
    let (mut client, mut server) = stacks(1500);
    server.listen(7).unwrap();
    let (mut opened, mut left, mut closed) = (0, 2_000, 0);
    for _ in 0..8 {
        client.connect(SERVER.parse().unwrap()).unwrap();
        left -= 1;
    }
    pump(&mut client, &mut server, |of_client, of_server| {
        if let Some(StreamEvent::Opened { .. }) = of_server {
            opened += 1;
        }
        let _ = of_client;
        opened == 8
    });
    let mut ids: Vec<_> = client.live.clone();
    while closed < 2_000 {
        ids.drain(..).for_each(|id| client.finish(id));
        let mut ended = Vec::new();
        pump(&mut client, &mut server, |of_client, of_server| {
            if let Some(StreamEvent::Finished { id }) = of_server {
                ended.push(id);
            }
            if let Some(StreamEvent::Closed { .. }) = of_client {
                closed += 1;
                return true;
            }
            !ended.is_empty()
        });
        ended.into_iter().for_each(|id| server.finish(id));
        while left > 0 && client.connections() < 8 {
            ids.push(client.connect(SERVER.parse().unwrap()).unwrap());
            left -= 1;
        }
    }
    assert_eq!((client.connections(), client.locals.len()), (0, 0));
}

#[test]
fn a_half_open_connection_can_still_be_sent_to() {
    let (mut client, mut server) = stacks(1500);
    server.listen(7).unwrap();
    let id = client.connect(SERVER.parse().unwrap()).unwrap();
    client.finish(id);
    let memory = server.memory().clone();
    let mut there = None;
    pump(&mut client, &mut server, |_, event| {
        if let Some(StreamEvent::Finished { id }) = event {
            there = Some(id);
        }
        there.is_some()
    });
    let data = pattern(5, 300_000);
    server.send(there.unwrap(), payload(&memory, &data)).unwrap();
    server.finish(there.unwrap());
    let (mut got, memory) = (Vec::new(), client.memory().clone());
    let mut over = (false, false);
    pump(&mut client, &mut server, |of_client, of_server| {
        match of_client {
            Some(StreamEvent::Data { data, .. }) => got.extend(bytes(&memory, &data)),
            Some(StreamEvent::Closed { .. }) => over.0 = true,
            _ => {}
        }
        over.1 |= matches!(of_server, Some(StreamEvent::Closed { .. }));
        over == (true, true)
    });
    assert!(got == data);
}

#[test]
fn resets_reach_the_other_side_and_nobody_listens_at_other_ports() {
    let (mut client, mut server) = stacks(1500);
    server.listen(7).unwrap();
    let id = client.connect(SERVER.parse().unwrap()).unwrap();
    let mut there = None;
    pump(&mut client, &mut server, |_, event| {
        if let Some(StreamEvent::Opened { id, .. }) = event {
            there = Some(id);
        }
        there.is_some()
    });
    server.reset(there.unwrap());
    let mut closed = (false, false);
    pump(&mut client, &mut server, |of_client, of_server| {
        closed.0 |= matches!(of_client, Some(StreamEvent::Closed { id: of }) if of == id);
        closed.1 |= matches!(of_server, Some(StreamEvent::Closed { .. }));
        closed == (true, true)
    });
    let refused = client.connect("10.0.0.2:8".parse().unwrap()).unwrap();
    pump(&mut client, &mut server, |event, _| match event {
        Some(StreamEvent::Closed { id }) => id == refused,
        Some(other) => panic!("{other:?}"),
        None => false,
    });
    assert!(matches!(client.send(refused, Payload::new()), Err(SendError::Closed)));
}

/// A device that loses and swaps frames by a plan.
struct Lossy {
    link: FrameLink,
    state: u64,
    held: Option<Frame>,
}

impl Lossy {
    fn dice(&mut self) -> u64 {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.state >> 33
    }
}

impl Source for Lossy {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.link.wake_fd()
    }
}

impl FramePort for Lossy {
    fn memory(&self) -> &Memory {
        self.link.memory()
    }

    fn mtu(&self) -> usize {
        self.link.mtu()
    }

    fn counts(&self) -> FrameCounts {
        self.link.counts()
    }

    fn has_room(&self) -> bool {
        self.link.has_room()
    }

    fn send(&mut self, frame: Frame) -> Result<(), FrameError> {
        match self.dice() % 100 {
            0..2 => return Ok(()),
            2..4 if self.held.is_none() => {
                self.held = Some(frame);
                return Ok(());
            }
            _ => self.link.send(frame)?,
        }
        self.held.take().map_or(Ok(()), |held| self.link.send(held))
    }

    fn recv(&mut self) -> Option<Frame> {
        self.link.recv()
    }

    fn flush(&mut self) {
        self.link.flush();
    }

    fn forget(&mut self, dead: DomainId) {
        self.link.forget(dead);
    }
}

#[test]
fn what_cannot_be_sent_is_not_due_at_once() {
    let (a, _b) = lane_pair(8, Transport::Pointer);
    let mut stack = Stack::new(FrameLink::new(a, 1500).unwrap(), config(1)).unwrap();
    // Nobody takes the requests for addresses that each of them sends, until there is no room for more.
    while stack.phy.port().has_room() {
        stack.connect("10.0.0.9:7".parse().unwrap()).unwrap();
        stack.poll();
        let frame = stack.memory().alloc(60).unwrap().into_payload();
        stack.phy.port_mut().send(frame.into()).unwrap();
    }
    assert!(stack.delay().is_some_and(|delay| delay >= STARVED));
}

#[test]
fn bytes_arrive_in_spite_of_loss_and_disorder() {
    let (a, b) = lane_pair(256, Transport::Pointer);
    let lossy = |lane, number: u8| {
        let link = FrameLink::new(lane, 1500).unwrap();
        Stack::new(Lossy { link, state: number.into(), held: None }, config(number)).unwrap()
    };
    let (mut client, mut server) = (lossy(a, 1), lossy(b, 2));
    server.listen(7).unwrap();
    let id = client.connect(SERVER.parse().unwrap()).unwrap();
    let data = pattern(9, 2_000_000);
    let memory = client.memory().clone();
    client.send(id, payload(&memory, &data)).unwrap();
    let (memory, mut got) = (server.memory().clone(), Vec::new());
    pump(&mut client, &mut server, |_, event| {
        if let Some(StreamEvent::Data { data, .. }) = event {
            got.extend(bytes(&memory, &data));
        }
        got.len() >= data.len()
    });
    assert!(got == data);
}

#[test]
fn limits_are_exact() {
    let link = || FrameLink::new(lane_pair(8, Transport::Pointer).0, 1500).unwrap();
    let with = |edit: fn(&mut StackConfig)| {
        let mut config = config(1);
        edit(&mut config);
        Stack::new(link(), config).is_ok()
    };
    type Edit = fn(&mut StackConfig);
    let fits: [(Edit, bool); 10] = [
        (|_| (), true),
        (|config| config.addresses.clear(), false),
        (|config| config.addresses = vec![([10, 0, 0, 1].into(), 24); MAX_ADDRESSES], true),
        (|config| config.addresses = vec![([10, 0, 0, 1].into(), 24); MAX_ADDRESSES + 1], false),
        (|config| config.addresses[0].1 = 33, false),
        (|config| config.addresses[0].0 = [224, 0, 0, 1].into(), false),
        (|config| config.hardware[0] = 1, false),
        (|config| config.backlog = MAX_BACKLOG + 1, false),
        (|config| config.buffer_bytes = (16 << 20) + 1, false),
        (|config| config.connections = 0, false),
    ];
    for (at, (edit, fits)) in fits.into_iter().enumerate() {
        assert_eq!(with(edit), fits, "case {at}");
    }
    let mut stack = Stack::new(link(), StackConfig { connections: 1, ..config(1) }).unwrap();
    assert!(matches!(stack.listen(0), Err(StackError::Port(0))));
    stack.listen(7).unwrap();
    assert!(matches!(stack.listen(7), Err(StackError::Port(7))));
    stack.connect(SERVER.parse().unwrap()).unwrap();
    assert!(matches!(stack.connect(SERVER.parse().unwrap()), Err(StackError::Connections(1))));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]
    #[test]
    fn any_frames(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        fuzz(&bytes);
    }
}
