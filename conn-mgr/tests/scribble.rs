//! A domain that overwrites its whole arena, at any moment under traffic, harms its own links only: its peers get typed
//! errors and a broken session, live on, and go on with each other. Real processes under the real manager; the
//! simulator does the same step by step.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use conn_mgr::manager::{KillError, Manager, Options, Status};
use conn_mgr::manifest::Manifest;
use fido_core::arena::{LanePlace, OwnArena};
use fido_core::domain::{Domain, Notice};
use fido_core::lane::{Change, Lane, SendError};
use fido_core::memory::Memory;
use fido_core::message::Head;
use fido_core::payload::Payload;
use fido_core::platform::host::protocol::SOCKET_VARIABLE;
use fido_core::testing::{load, store};
use fido_core::wait::Source;
use support::{Bench, PATIENCE};

/// How often the rogue goes mad.
const LIVES: u16 = 8;
/// Messages that one side has out on a lane.
const WINDOW: usize = 6;
/// How often it overwrites its arena so that its lies are read, every other life, before it overwrites everything.
const PLAUSIBLE: u32 = 5;
const REQUEST: u8 = 1;
const REPLY: u8 = 2;

/// Becomes a domain when the manager starts this program again.
#[test]
fn component() {
    if std::env::var_os(SOCKET_VARIABLE).is_some() {
        std::process::exit(serve());
    }
}

/// A lane as its component sees it.
struct Port {
    lane: Lane,
    /// One of its two ends is.
    is_rogue: bool,
    out: usize,
    /// Replies that found no room yet.
    replies: VecDeque<(Head, Payload)>,
}

/// What a component counts, for the test to see.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
struct Counts {
    /// Replies of the honest peer that were what they had to be.
    replies: u64,
    /// Sessions with the rogue that began, and that ended.
    ups: u64,
    downs: u64,
    refusals: u64,
    /// How often the arena was overwritten.
    strikes: u64,
}

fn serve() -> i32 {
    let domain = Domain::join().unwrap();
    let mut waiter = domain.waiter().unwrap();
    let mut notices = domain.notices().unwrap();
    let is_rogue = domain.name() == "rogue";
    let mut ports = Vec::new();
    for link in domain.assignment().links.clone() {
        let lanes = domain.take_lanes(&link.name).unwrap();
        ports.extend(lanes.into_iter().map(|lane| Port {
            lane,
            is_rogue: is_rogue || link.peer == "rogue",
            out: 0,
            replies: VecDeque::new(),
        }));
    }
    let memory = domain.memory();
    let mut madness = Madness::of(memory.id().generation.number());
    let (mut counts, mut shown) = (Counts::default(), Counts::default());
    let mut has_met_all = false;
    domain.ready(&[]).unwrap();
    // Each life of the rogue has this time; the test waits twice for its patience in each.
    let (mut life, mut deadline) = (counts.ups, Instant::now() + 3 * PATIENCE);
    while Instant::now() < deadline {
        if counts.ups != life {
            (life, deadline) = (counts.ups, Instant::now() + 3 * PATIENCE);
        }
        if notices.poll() == Some(Notice::Shutdown) {
            return 0;
        }
        let mut progress = false;
        for port in &mut ports {
            progress |= port.serve(&memory, &mut counts);
        }
        // What is no arena before anybody knows it is refused by the manager: not what this is about.
        has_met_all |= ports.iter().all(|port| port.lane.is_up());
        if is_rogue && has_met_all {
            counts.strikes += u64::from(madness.strike(&memory));
        }
        if (Counts { replies: shown.replies, ..counts }) != shown || counts.replies > shown.replies + 200 {
            domain.ready(&counts.notes()).unwrap();
            shown = counts;
        }
        if progress {
            waiter.busy();
            continue;
        }
        let mut sources: Vec<&mut dyn Source> =
            ports.iter_mut().map(|port| &mut port.lane as &mut dyn Source).collect();
        sources.push(&mut notices);
        // The rogue may have scribbled over the word that says it must ring.
        waiter.idle(&mut sources, Some(Duration::from_millis(1))).unwrap();
    }
    1
}

impl Counts {
    fn notes(&self) -> [(&'static str, String); 5] {
        [
            ("replies", self.replies.to_string()),
            ("ups", self.ups.to_string()),
            ("downs", self.downs.to_string()),
            ("refusals", self.refusals.to_string()),
            ("strikes", self.strikes.to_string()),
        ]
    }
}

impl Port {
    /// One round: takes what is there, answers requests with their own payload, and asks again.
    fn serve(&mut self, memory: &Memory, counts: &mut Counts) -> bool {
        let mut progress = false;
        while let Some(change) = self.lane.change() {
            progress = true;
            self.out = 0;
            self.replies.clear();
            if self.is_rogue {
                counts.ups += u64::from(matches!(change, Change::Up(_)));
                counts.downs += u64::from(matches!(change, Change::Down(_)));
            }
        }
        while let Some(message) = self.lane.recv() {
            progress = true;
            match message {
                Ok((head, payload)) if head.kind == REQUEST => {
                    self.replies.push_back((Head { kind: REPLY, ..head }, payload));
                }
                Ok((head, payload)) => {
                    self.out = self.out.saturating_sub(1);
                    let mut bytes = vec![0; payload.len().min(1 << 16) as usize];
                    memory.read_header(&payload, 0, &mut bytes).unwrap();
                    if !self.is_rogue {
                        assert_eq!(bytes, content(head.args[0]), "an honest peer's reply");
                        counts.replies += 1;
                    }
                }
                Err(_refusal) => counts.refusals += 1,
            }
        }
        // Who asks more than it may gets no answer.
        self.replies.truncate(2 * WINDOW);
        while let Some((head, payload)) = self.replies.pop_front() {
            if let Err(SendError::Full(payload)) = self.lane.send(head, payload) {
                self.replies.push_front((head, payload));
                break;
            }
            progress = true;
        }
        while self.out < WINDOW && self.lane.is_up() {
            let seed = NEXT.fetch_add(1, Ordering::Relaxed) as u32;
            let Some(payload) = lend(memory, &content(seed)) else { break };
            if self.lane.send(Head { kind: REQUEST, flags: 0, args: [seed, 0, 0, 0] }, payload).is_err() {
                break;
            }
            self.out += 1;
            progress = true;
        }
        self.lane.flush();
        progress
    }
}

static NEXT: AtomicU64 = AtomicU64::new(1);

fn content(seed: u32) -> Vec<u8> {
    (0..1 + seed % 1500).map(|at| (seed ^ at.wrapping_mul(31)) as u8).collect()
}

/// The bytes in a few buffers of their own; `None` if the heap is full.
fn lend(memory: &Memory, bytes: &[u8]) -> Option<Payload> {
    let mut payload = Payload::new();
    for chunk in bytes.chunks(300) {
        let mut buf = memory.alloc(chunk.len()).ok()?;
        buf.as_mut_slice().copy_from_slice(chunk);
        payload.append(buf.into_payload());
    }
    Some(payload)
}

/// How a life of the rogue ends: after a while it overwrites its arena again and again.
struct Madness {
    random: u64,
    rounds_left: u64,
    /// How many times it still leaves the words alone that say with whom each session is, and stamps its lies, so that
    /// they are read at all. Then it overwrites everything.
    plausible: u32,
}

impl Madness {
    fn of(generation: u16) -> Self {
        let mut random = u64::from(generation);
        let rounds_left = 20 + xorshift(&mut random) % 1000;
        Self { random, rounds_left, plausible: if generation.is_multiple_of(2) { PLAUSIBLE } else { 0 } }
    }

    /// Whether it struck.
    fn strike(&mut self, memory: &Memory) -> bool {
        self.rounds_left = self.rounds_left.saturating_sub(1);
        if self.rounds_left > 0 {
            return false;
        }
        self.rounds_left = 1 + xorshift(&mut self.random) % 100;
        let arena = memory.arena();
        let is_plausible = self.plausible > 0;
        self.plausible = self.plausible.saturating_sub(1);
        let kept = |offset: u64| {
            let lanes = arena.lanes().iter();
            let is_kept = |start: u64, end: u64, step: u64| {
                (start..end).contains(&offset) && (offset - start).is_multiple_of(step)
            };
            is_plausible
                && lanes.into_iter().any(|place| {
                    let ring = place.ring + 60;
                    let end = place.ring + 64 * u64::from(place.plan.slots);
                    offset == place.control || is_kept(ring, end, 64)
                })
        };
        for offset in (0..arena.len()).step_by(4).filter(|offset| !kept(*offset)) {
            store(arena, offset, xorshift(&mut self.random) as u32);
        }
        for place in arena.lanes().iter().filter(|_| is_plausible) {
            self.lie(arena, place);
        }
        true
    }

    /// Stamps every slot for this lap or the next; half of the messages name a few segments under some loan, wherever
    /// they are, and return nothing.
    fn lie(&mut self, arena: &OwnArena, place: &LanePlace) {
        for slot in 0..u64::from(place.plan.slots) {
            let at = place.ring + slot * 64;
            let random = xorshift(&mut self.random) as u32;
            if random.is_multiple_of(2) {
                store(arena, at, u32::from(REQUEST) | (1 + random % 3) << 16);
                store(arena, at + 4, 1 + random % 100);
            }
            store(arena, at + 60, load(arena, at + 60).wrapping_add((random >> 8) % 2));
        }
    }
}

fn xorshift(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn note(status: &Status, domain: &str, name: &str) -> u64 {
    status.domain(domain).and_then(|domain| domain.notes.get(name)?.parse().ok()).unwrap_or(0)
}

#[test]
fn who_overwrites_all_of_its_arena_harms_its_own_links_only() {
    let mut bench = Bench::new();
    let keys = ["restart-delay = \"1ms\"", "restart-limit = 1000"];
    bench.domain("rogue", &[], &keys).domain("net", &[], &keys).domain("fs", &[], &keys);
    bench.link("left", "rogue", "net", 2).link("right", "rogue", "fs", 2).link("own", "net", "fs", 2);
    let manifest = Manifest::parse(bench.text(), "test").unwrap_or_else(|error| panic!("{error}"));
    let options = Options { runtime_dir: Some(bench.path("run")), ..Options::default() };
    let manager = Manager::start(manifest, options).unwrap();
    let honest = ["net", "fs"];
    let mut seen: BTreeMap<&str, u64> = BTreeMap::new();
    // The generation that was killed last. There may be more of them than lives: whoever scribbles over all that it has
    // may also die of it.
    let mut killed = 0;
    for life in 1..=LIVES {
        // Whoever was in session with it has seen that it is broken: by a refusal, an error, or the end of the session.
        let noticed = manager.wait_until(PATIENCE, |status| {
            let sessions = |name: &str| note(status, name, "ups") - note(status, name, "downs");
            let is_this_life = status.domain("rogue").is_some_and(|rogue| rogue.generation > killed);
            is_this_life
                && note(status, "rogue", "strikes") > 2 + u64::from(PLAUSIBLE)
                && honest.iter().all(|name| sessions(name) == 0)
        });
        assert!(noticed, "life {life}: {:#?}", manager.status());
        let status = manager.status();
        // And the two go on with each other, while it goes on.
        honest.iter().for_each(|name| _ = seen.insert(name, note(&status, name, "replies")));
        let goes_on = manager
            .wait_until(PATIENCE, |status| honest.iter().all(|name| note(status, name, "replies") >= seen[name] + 200));
        assert!(goes_on, "life {life}: {:#?}", manager.status());
        killed = manager.status().domain("rogue").unwrap().generation;
        // If it has just died by itself there is nobody to kill.
        match manager.kill("rogue") {
            Ok(()) | Err(KillError::NotRunning(_)) => {}
            Err(error) => panic!("life {life}: {error}"),
        }
    }
    let status = manager.wait_ready(PATIENCE).unwrap();
    for name in honest {
        let domain = status.domain(name).unwrap();
        assert_eq!((domain.generation, domain.restarts), (1, 0), "{name} has survived: {domain:#?}");
        assert!(note(&status, name, "downs") > 0, "{name} has ended sessions with the rogue: {domain:#?}");
    }
    manager.shutdown(PATIENCE).unwrap();
}
