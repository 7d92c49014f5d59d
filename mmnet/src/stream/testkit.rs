//! What the tests of all stream ports share: an echo server that also checks the order of events, clients, waiting.

use std::collections::{HashMap, VecDeque};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::time::{Duration, Instant};

use fido_core::memory::Memory;
use fido_core::payload::Payload;
use fido_core::wait::Source;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::{SendError, StreamEvent, StreamId, StreamPort};

/// Nothing here may take longer; a hang becomes a failure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Tells a server thread to end, also when it sleeps; and hears from it how often a send was refused.
#[derive(Clone)]
pub(crate) struct Stop(Arc<(AtomicBool, OwnedFd, AtomicUsize)>);

impl Stop {
    pub(crate) fn new() -> Self {
        Self(Arc::new((AtomicBool::new(false), eventfd(0, EventfdFlags::CLOEXEC).unwrap(), AtomicUsize::new(0))))
    }

    pub(crate) fn stop(&self) {
        self.0.0.store(true, Ordering::SeqCst);
        rustix::io::write(&self.0.1, &1u64.to_ne_bytes()).unwrap();
    }

    /// Waits until the server has been refused a send.
    pub(crate) fn wait_for_refusal(&self) {
        let deadline = Instant::now() + PATIENCE;
        while self.0.2.load(Ordering::SeqCst) == 0 {
            assert!(Instant::now() < deadline, "out of patience");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.0.0.load(Ordering::SeqCst)
    }
}

impl Source for Stop {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.0.1.as_fd()
    }
}

/// Sleeps until a source is ready, in the order that [`Source`] asks for. A lost wake-up costs so long here that the
/// test runs out of patience.
pub(crate) fn idle(sources: &mut [&mut dyn Source]) {
    sources.iter_mut().for_each(|source| source.arm());
    fence(Ordering::SeqCst);
    if !sources.iter_mut().any(|source| source.ready()) {
        let mut fds: Vec<_> =
            sources.iter().map(|source| PollFd::from_borrowed_fd(source.wake_fd(), PollFlags::IN)).collect();
        let _ = poll(&mut fds, Some(&Timespec { tv_sec: 20, tv_nsec: 0 }));
    }
    sources.iter_mut().for_each(|source| source.disarm());
}

/// Takes events from a port until `done` says so of one.
pub(crate) fn pump(port: &mut impl StreamPort, mut done: impl FnMut(StreamEvent) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match port.poll() {
            Some(event) => {
                if done(event) {
                    return;
                }
            }
            None => {
                port.flush();
                std::thread::yield_now();
            }
        }
        assert!(Instant::now() < deadline, "out of patience");
    }
}

/// Lets a port move without expecting an event that matters.
pub(crate) fn pump_until(port: &mut impl StreamPort, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        drop(port.poll());
        port.flush();
        std::thread::yield_now();
        assert!(Instant::now() < deadline, "out of patience");
    }
}

/// The next `Opened`.
pub(crate) fn opened(port: &mut impl StreamPort) -> StreamId {
    let mut opened = None;
    pump(port, |event| {
        if let StreamEvent::Opened { id, .. } = event {
            opened = Some(id);
        }
        opened.is_some()
    });
    opened.unwrap()
}

/// Collects `len` bytes of a connection, still on loan.
pub(crate) fn collect(port: &mut impl StreamPort, from: StreamId, len: u64) -> Payload {
    let mut all = Payload::new();
    if len > 0 {
        pump(port, |event| {
            if let StreamEvent::Data { id, data } = event {
                assert_eq!(id, from);
                all.append(data);
            }
            all.len() >= len
        });
    }
    all
}

/// The bytes of a payload.
pub(crate) fn bytes(memory: &Memory, payload: &Payload) -> Vec<u8> {
    let mut out = vec![0; payload.len() as usize];
    assert_eq!(memory.read_header(payload, 0, &mut out).unwrap(), out.len());
    out
}

/// A buffer of these bytes as payload.
pub(crate) fn payload(memory: &Memory, bytes: &[u8]) -> Payload {
    let mut buf = memory.alloc(bytes.len()).unwrap();
    buf.as_mut_slice().copy_from_slice(bytes);
    buf.into_payload()
}

/// `len` bytes that tell their place and their seed.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// A client that gives up instead of hanging.
pub(crate) fn connect(addr: SocketAddr) -> TcpStream {
    let client = TcpStream::connect_timeout(&addr, PATIENCE).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.set_write_timeout(Some(PATIENCE)).unwrap();
    client.set_nodelay(true).unwrap();
    client
}

/// Closes with a reset.
pub(crate) fn abort(client: TcpStream) {
    rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
}

/// Sends `data` and reads it back from an echo server, reading in steps of `step` bytes, then checks the end.
pub(crate) fn echo(addr: SocketAddr, data: Vec<u8>, step: usize) {
    let client = connect(addr);
    let mut writer = client.try_clone().unwrap();
    let sent = data.clone();
    let writing = std::thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut reader = client;
    let mut at = 0;
    let mut buf = vec![0; step];
    loop {
        let count = reader.read(&mut buf).unwrap();
        if count == 0 {
            break;
        }
        assert!(buf[..count] == data[at..at + count], "bytes differ after {at}");
        at += count;
        std::thread::yield_now();
    }
    assert_eq!(at, data.len());
    writing.join().unwrap();
}

/// Sends `data` over the connection `id` to an echo server and takes it back, waiting as components do; ends with the
/// connection. What all stream ports that open connections must be able to do.
pub(crate) fn talk(mut client: impl StreamPort, memory: &Memory, id: StreamId, data: &[u8]) {
    let mut out = data.chunks(100_000);
    let (mut next, mut got, mut opened, mut ended, mut finished) = (out.next(), Vec::new(), false, false, false);
    let deadline = Instant::now() + PATIENCE;
    loop {
        while let Some(chunk) = next {
            match client.send(id, payload(memory, chunk)) {
                Ok(()) => next = out.next(),
                Err(SendError::Full(_)) => break,
                Err(SendError::Closed) => panic!("closed after {} bytes", got.len()),
            }
        }
        if next.is_none() && !std::mem::replace(&mut finished, true) {
            client.finish(id);
        }
        match client.poll() {
            Some(StreamEvent::Opened { id: of, .. }) => assert!(of == id && !std::mem::replace(&mut opened, true)),
            Some(StreamEvent::Data { id: of, data }) => {
                assert!(of == id && opened && !ended);
                got.extend(bytes(memory, &data));
            }
            Some(StreamEvent::Finished { .. }) => ended = true,
            Some(StreamEvent::Writable { .. }) => {}
            Some(StreamEvent::Closed { .. }) => break,
            None => {
                client.flush();
                idle(&mut [&mut client]);
            }
        }
        assert!(Instant::now() < deadline, "out of patience");
    }
    assert!(ended && got == data, "{} of {} bytes", got.len(), data.len());
}

/// What an echo server has seen.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) opened: usize,
    pub(crate) closed: usize,
    pub(crate) bytes: u64,
    pub(crate) most_open: usize,
}

#[derive(Default)]
struct Echoed {
    /// Refused by the port, to be sent when there is room.
    waiting: VecDeque<Payload>,
    finished: bool,
}

/// Sends everything back where it came from, by address, and checks that events make sense. It keeps what the port
/// does not take: the only bound on that is the receive limit, which is the point.
pub(crate) fn serve_echo(mut port: impl StreamPort, mut stop: Stop) -> Seen {
    let mut seen = Seen::default();
    let mut open: HashMap<StreamId, Echoed> = HashMap::new();
    while !stop.is_stopped() {
        let Some(event) = port.poll() else {
            port.flush();
            idle(&mut [&mut port, &mut stop]);
            continue;
        };
        match event {
            StreamEvent::Opened { id, .. } => {
                assert!(open.insert(id, Echoed::default()).is_none(), "{id:?} opened twice");
                seen.opened += 1;
                seen.most_open = seen.most_open.max(open.len());
            }
            StreamEvent::Data { id, data } => {
                let echoed = open.get_mut(&id).expect("data of a connection that is not open");
                assert!(!echoed.finished && !data.is_empty());
                seen.bytes += data.len();
                echoed.waiting.push_back(data);
                answer(&mut port, id, echoed, &stop);
            }
            StreamEvent::Finished { id } => {
                let echoed = open.get_mut(&id).expect("end of a connection that is not open");
                assert!(!std::mem::replace(&mut echoed.finished, true), "{id:?} finished twice");
                answer(&mut port, id, echoed, &stop);
            }
            StreamEvent::Writable { id } => {
                let echoed = open.get_mut(&id).expect("room on a connection that is not open");
                answer(&mut port, id, echoed, &stop);
            }
            StreamEvent::Closed { id } => {
                assert!(open.remove(&id).is_some(), "{id:?} closed but not open");
                seen.closed += 1;
            }
        }
    }
    seen
}

fn answer(port: &mut impl StreamPort, id: StreamId, echoed: &mut Echoed, stop: &Stop) {
    while let Some(data) = echoed.waiting.pop_front() {
        match port.send(id, data) {
            Ok(()) => {}
            Err(SendError::Full(data)) => {
                echoed.waiting.push_front(data);
                stop.0.2.fetch_add(1, Ordering::SeqCst);
                return;
            }
            Err(SendError::Closed) => return,
        }
    }
    if echoed.finished {
        port.finish(id);
    }
}
