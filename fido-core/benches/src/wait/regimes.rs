//! The situations in which waiting is compared: who talks to whom, and how.
//!
//! Every turn of a regime is played by fresh threads over real windows, for a fixed time: a part to warm up (adaptive
//! waiting learns in it) and a part that counts. Nobody is pinned: where the kernel puts threads is part of waiting.

use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use fido_core::assignment::WaitStrategy;
use fido_core::lane::Lane;
use fido_core::memory::Memory;
use fido_core::message::Head;
use fido_core::payload::Payload;
use fido_core::stats::Snapshot;
use fido_core::testing::{Node, mesh};
use fido_core::wait::Source;
use fido_core::waiter::Waiter;
use hdrhistogram::Histogram;
use rustix::time::{ClockId, clock_gettime};

use crate::{Failure, machine};

/// What a regime does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Regime {
    /// Two threads, a core each: a client asks, a server answers after so many microseconds of work.
    Pair(u64),
    /// The same with so many questions under way.
    Deep(u64),
    /// Three domains in a row and a client at a socket, with so many questions under way.
    Appliance(usize),
    /// Bursts of questions with so many microseconds of silence between them.
    Bursts(u64),
    /// The server answers now and then only after a stall of so many microseconds, in which it does nothing.
    Stalled(u64),
}

/// All of them.
pub const REGIMES: [Regime; 8] = [
    Regime::Pair(0),
    Regime::Pair(20),
    Regime::Deep(32),
    Regime::Appliance(1),
    Regime::Appliance(16),
    Regime::Bursts(2000),
    Regime::Stalled(2000),
    Regime::Stalled(100_000),
];

/// The names of their tables.
pub const TABLES: [&str; REGIMES.len()] =
    ["regime-1", "regime-2", "regime-3", "regime-4", "regime-5", "regime-6", "regime-7", "regime-8"];

/// Questions of a burst, and between two stalls.
const BURST: u32 = 256;
/// The domains of an appliance, each linked to the next.
pub const DOMAINS: [&str; 3] = ["net", "fs", "disk"];
/// The processors that the domains are bound to, if they are.
pub type Places = [Option<usize>; DOMAINS.len()];
/// Work of the last domain for each question, in an appliance.
const WORK: Duration = Duration::from_micros(2);
/// The kind of a question.
pub const ASK: u8 = 1;
const STOP: u8 = 2;
/// Bytes of an arena.
pub const ARENA: u64 = 4 << 20;
/// Nobody waits longer without looking again, so that a lost wake-up would show as a wait of this length.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long an answer may take at all. Spinners on a crowded machine are slow.
const LIMIT: Duration = Duration::from_secs(60);

impl Regime {
    /// The name of its table.
    pub fn table(self) -> &'static str {
        REGIMES.iter().zip(TABLES).find(|(regime, _)| **regime == self).map_or("regime", |(_, table)| table)
    }

    /// What it is called.
    pub fn name(self) -> String {
        match self {
            Self::Pair(0) => "two cores, two threads".into(),
            Self::Pair(work) => format!("two cores, {work} us of work each"),
            Self::Deep(depth) => format!("two cores, {depth} under way"),
            Self::Appliance(depth) => format!("appliance of 3 and a client, {depth} under way"),
            Self::Bursts(gap) => format!("bursts of {BURST}, {gap} us apart"),
            Self::Stalled(stall) => format!("a stall of {stall} us every {BURST}"),
        }
    }
}

/// What one turn came to.
#[derive(Debug, Default, Clone, Copy)]
pub struct Turn {
    /// Answers that count.
    pub answers: u64,
    /// The whole time less the gaps between bursts.
    pub busy: Duration,
    /// The whole time that counts.
    pub elapsed: Duration,
    /// Processor time of all threads in it.
    pub cpu: Duration,
    /// What the domains counted in it.
    pub stats: Snapshot,
}

/// How long a turn lasts.
#[derive(Debug, Clone, Copy)]
pub struct Length {
    /// Until it counts.
    pub warm_up: Duration,
    /// While it counts.
    pub counted: Duration,
}

/// Plays one turn and enters the times of its answers, in nanoseconds.
///
/// # Errors
/// If the system has no threads or descriptors left, or a thread failed.
pub fn play(regime: Regime, wait: WaitStrategy, length: Length, times: &mut Histogram<u64>) -> Result<Turn, Failure> {
    match regime {
        Regime::Appliance(depth) => appliance(wait, depth, [None; DOMAINS.len()], length, times),
        Regime::Pair(_) | Regime::Deep(_) | Regime::Bursts(_) | Regime::Stalled(_) => pair(regime, wait, length, times),
    }
}

/// Runs other threads beside the measuring one, and ends when all have.
fn beside<T>(
    threads: Vec<Box<dyn FnOnce() -> Result<(), Failure> + Send + '_>>,
    lead: impl FnOnce() -> Result<T, Failure>,
) -> Result<T, Failure> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = threads.into_iter().map(|thread| scope.spawn(thread)).collect();
        let result = lead();
        for thread in threads {
            thread.join().map_err(|_| "a thread of the benchmark panicked")??;
        }
        result
    })
}

fn pair(regime: Regime, wait: WaitStrategy, length: Length, times: &mut Histogram<u64>) -> Result<Turn, Failure> {
    let [client, server] = <[Node; 2]>::try_from(mesh(2, &[(0, 1)], 128, ARENA)).map_err(|_| "two domains")?;
    let memories = [client.memory.clone(), server.memory.clone()];
    let mut waiter = Waiter::new(wait)?.counting_in(&client.memory);
    let Ok([mut lane]) = <[Lane; 1]>::try_from(client.lanes) else { return Err("one lane".into()) };
    let serving = Box::new(move || {
        let waiter = Waiter::new(wait)?.counting_in(&server.memory);
        let mut asked = 0;
        relay(server.lanes, waiter, |_| {
            asked += 1;
            match regime {
                Regime::Pair(work) => work_for(Duration::from_micros(work)),
                Regime::Stalled(stall) if asked % BURST == 0 => std::thread::sleep(Duration::from_micros(stall)),
                _ => {}
            }
        })
    });
    let depth = if let Regime::Deep(depth) = regime { depth as usize } else { 1 };
    beside(vec![serving], move || {
        let mut meter = Meter::new(length, &memories);
        let (mut under_way, mut silent) = (std::collections::VecDeque::new(), 0);
        while !meter.is_over() || !under_way.is_empty() {
            let mut busy = false;
            while !meter.is_over() && under_way.len() < depth {
                if let Regime::Bursts(gap) = regime {
                    silent += 1;
                    if silent % BURST == 0 {
                        lane.flush();
                        meter.pause(Duration::from_micros(gap));
                    }
                }
                under_way.push_back(Instant::now());
                send(&mut lane, ASK)?;
                busy = true;
            }
            while let Some(message) = lane.recv() {
                message.map_err(|refusal| refusal.error)?;
                meter.answer(under_way.pop_front().ok_or("an answer without a question")?, times)?;
                busy = true;
            }
            settle(&mut waiter, &mut [&mut lane], busy)?;
        }
        send(&mut lane, STOP)?;
        lane.flush();
        Ok(meter.turn())
    })
}

/// Plays a turn of [`DOMAINS`] in these places, and a client that knows only a socket.
///
/// # Errors
/// As [`play`].
pub fn appliance(
    wait: WaitStrategy,
    depth: usize,
    places: Places,
    length: Length,
    times: &mut Histogram<u64>,
) -> Result<Turn, Failure> {
    let nodes = mesh(3, &[(0, 1), (1, 2)], 128, ARENA);
    let memories: Vec<Memory> = nodes.iter().map(|node| node.memory.clone()).collect();
    let [net, fs, disk] = <[Node; 3]>::try_from(nodes).map_err(|_| "three domains")?;
    let (mut client, socket) = UnixStream::pair()?;
    client.set_read_timeout(Some(LIMIT))?;
    socket.set_nonblocking(true)?;
    let waiter = move |place: Option<usize>, memory: &Memory| -> Result<Waiter, Failure> {
        let processors = machine::allowed_cores()?.len();
        machine::pin(place)?;
        Ok(Waiter::among(wait, processors)?.counting_in(memory))
    };
    let [at_net, at_fs, at_disk] = places;
    let threads: Vec<Box<dyn FnOnce() -> Result<(), Failure> + Send>> = vec![
        Box::new(move || gateway(net.lanes, socket, waiter(at_net, &net.memory)?)),
        Box::new(move || relay(fs.lanes, waiter(at_fs, &fs.memory)?, |_| {})),
        Box::new(move || relay(disk.lanes, waiter(at_disk, &disk.memory)?, |_| work_for(WORK))),
    ];
    beside(threads, move || {
        let mut meter = Meter::new(length, &memories);
        let mut under_way = std::collections::VecDeque::new();
        let mut answers = [0; 256];
        while !meter.is_over() || !under_way.is_empty() {
            let wanted = if meter.is_over() { 0 } else { depth - under_way.len() };
            if wanted > 0 {
                client.write_all(&vec![ASK; wanted])?;
                under_way.extend(std::iter::repeat_n(Instant::now(), wanted));
            }
            for _ in 0..client.read(&mut answers)? {
                meter.answer(under_way.pop_front().ok_or("an answer without a question")?, times)?;
            }
        }
        client.write_all(&[STOP])?;
        Ok(meter.turn())
    })
}

/// Serves its first lane: answers what comes there itself, or passes it on to its second lane and the answer back.
fn relay(lanes: Vec<Lane>, mut waiter: Waiter, mut work: impl FnMut(u8)) -> Result<(), Failure> {
    let mut lanes = lanes.into_iter();
    let (mut up, mut down) = (lanes.next().ok_or("a lane to serve")?, lanes.next());
    loop {
        let mut busy = false;
        while let Some(message) = up.recv() {
            let kind = message.map_err(|refusal| refusal.error)?.0.kind;
            busy = true;
            match &mut down {
                Some(down) => send(down, kind)?,
                None if kind == STOP => {}
                None => {
                    work(kind);
                    send(&mut up, kind)?;
                }
            }
            if kind == STOP {
                down.iter_mut().for_each(Lane::flush);
                return Ok(());
            }
        }
        while let Some(message) = down.as_mut().and_then(Lane::recv) {
            send(&mut up, message.map_err(|refusal| refusal.error)?.0.kind)?;
            busy = true;
        }
        match &mut down {
            Some(down) => settle(&mut waiter, &mut [&mut up, down], busy)?,
            None => settle(&mut waiter, &mut [&mut up], busy)?,
        }
    }
}

/// Between the socket and the first domain.
fn gateway(mut lanes: Vec<Lane>, socket: UnixStream, mut waiter: Waiter) -> Result<(), Failure> {
    let mut lane = lanes.pop().ok_or("a lane")?;
    let mut port = Port(socket);
    loop {
        let (mut busy, mut stop) = (false, false);
        let mut bytes = [0; 256];
        if let Ok(count) = port.0.read(&mut bytes) {
            busy = count > 0;
            for kind in &bytes[..count] {
                send(&mut lane, *kind)?;
                stop |= *kind == STOP;
            }
        }
        let mut answers = Vec::new();
        while let Some(message) = lane.recv() {
            answers.push(message.map_err(|refusal| refusal.error)?.0.kind);
        }
        if !answers.is_empty() {
            busy = true;
            port.0.write_all(&answers)?;
        }
        if stop {
            lane.flush();
            return Ok(());
        }
        settle(&mut waiter, &mut [&mut port, &mut lane], busy)?;
    }
}

/// A round is over.
fn settle(waiter: &mut Waiter, sources: &mut [&mut dyn Flushed], busy: bool) -> Result<(), Failure> {
    if busy {
        waiter.busy();
        return Ok(());
    }
    sources.iter_mut().for_each(|source| source.flush());
    let mut sources: Vec<&mut dyn Source> = sources.iter_mut().map(|source| source.source()).collect();
    waiter.idle(&mut sources, Some(PATIENCE))?;
    Ok(())
}

/// What is flushed before a wait.
trait Flushed {
    fn flush(&mut self) {}
    fn source(&mut self) -> &mut dyn Source;
}

impl Flushed for Lane {
    fn flush(&mut self) {
        Lane::flush(self);
    }

    fn source(&mut self) -> &mut dyn Source {
        self
    }
}

struct Port(UnixStream);

impl Source for Port {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Flushed for Port {
    fn source(&mut self) -> &mut dyn Source {
        self
    }
}

/// Sends a message without payload.
///
/// # Errors
/// The lane's.
pub fn send(lane: &mut Lane, kind: u8) -> Result<(), Failure> {
    Ok(lane.send(Head { kind, flags: 0, args: [0; 4] }, Payload::new())?)
}

/// Works for a while.
pub fn work_for(time: Duration) {
    let began = Instant::now();
    while !time.is_zero() && began.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// Counts what falls into the time that counts.
struct Meter<'a> {
    began: Instant,
    length: Length,
    memories: &'a [Memory],
    /// Since when it counts, and what was there before.
    counting: Option<(Instant, Duration, Snapshot)>,
    paused: Duration,
    answers: u64,
}

impl<'a> Meter<'a> {
    fn new(length: Length, memories: &'a [Memory]) -> Self {
        Self { began: Instant::now(), length, memories, counting: None, paused: Duration::ZERO, answers: 0 }
    }

    fn is_over(&self) -> bool {
        self.counting.is_some_and(|(since, ..)| since.elapsed() >= self.length.counted)
    }

    fn answer(&mut self, asked: Instant, times: &mut Histogram<u64>) -> Result<(), Failure> {
        let now = Instant::now();
        if self.counting.is_some() {
            times.record((now - asked).as_nanos() as u64)?;
            self.answers += 1;
        } else if now - self.began >= self.length.warm_up {
            self.counting = Some((now, cpu_time(), self.stats()));
        }
        Ok(())
    }

    fn pause(&mut self, time: Duration) {
        let began = Instant::now();
        std::thread::sleep(time);
        if self.counting.is_some() {
            self.paused += began.elapsed();
        }
    }

    fn stats(&self) -> Snapshot {
        self.memories.iter().fold(Snapshot::default(), |sum, memory| sum.plus(&memory.stats().snapshot()))
    }

    fn turn(&self) -> Turn {
        let Some((since, cpu, stats)) = self.counting else { return Turn::default() };
        let elapsed = since.elapsed();
        Turn {
            answers: self.answers,
            busy: elapsed.saturating_sub(self.paused),
            elapsed,
            cpu: cpu_time().saturating_sub(cpu),
            stats: self.stats().since(&stats),
        }
    }
}

/// Processor time of this process so far.
pub fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
