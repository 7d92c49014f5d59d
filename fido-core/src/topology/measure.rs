//! Measures what it costs to hand a cache line from one processor to another, for each direction.
//!
//! A round trip is the same from either end, so it cannot tell the directions apart, and clocks of different
//! processors cannot be compared well enough to time one way. Instead each half of a hand-over is timed by the one
//! who waits for it, with its own clock. For the pair *from → to*, `from` owns a set of lines (it touched them first,
//! so their memory is on its node) and the two take turns:
//! 1. `from` *writes* each line while `to` holds a copy of it: it waits until the line is its own (read-modify-write);
//! 2. `to` *reads* each line while it is modified in the cache of `from`: it waits until the line has come.
//!
//! Each line holds the index of the next one, in a random order, and is read before the next can be touched: nothing
//! overlaps and no prefetcher helps. The sum of the halves is what a slot of a single-writer ring costs; where writer
//! and reader do other things meanwhile (batches, several slots in flight), it costs less.
//!
//! The figures are medians over rounds, so that rounds in which somebody was interrupted do not count. The time is
//! bounded: pairs for which it does not suffice get the median of those at the same distance, and say so.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::{Distance, HandOver, Matrix, Origin, Topology};

/// Lines of one pair: 16 KiB with their distance, so they stay in the first-level caches of both.
const LINES: usize = 128;
/// Rounds before those that count.
const WARM_UP: usize = 3;
/// With fewer rounds a pair counts as not measured.
const LEAST_ROUNDS: usize = 8;
/// What is reserved for a processor's lines, so that the allocator takes fresh pages, which are then on its node.
const RESERVED: usize = 2048;
/// In the word of a line: the index of the next one; above it a count of the writes.
const INDEX: u32 = 0xffff;

/// How much to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effort {
    /// When it is spent, no further pair is begun, except the first one of each kind of distance.
    pub budget: Duration,
    /// Rounds of one pair.
    pub rounds: u32,
    /// No pair takes longer.
    pub pair_limit: Duration,
}

impl Effort {
    /// For figures to keep.
    pub const FULL: Self =
        Self { budget: Duration::from_secs(20), rounds: 301, pair_limit: Duration::from_millis(500) };
    /// For a first look.
    pub const QUICK: Self = Self { budget: Duration::from_secs(2), rounds: 41, pair_limit: Duration::from_millis(100) };
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// A thread could not be bound to a processor.
    #[error("cannot bind a thread to processor {cpu}: {source}")]
    Pin {
        /// The processor.
        cpu: u32,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// A thread ended unexpectedly.
    #[error("a measuring thread ended unexpectedly")]
    Lost,
    /// What was measured makes no matrix.
    #[error("the figures make no sense: {0}")]
    Matrix(#[from] super::MatrixError),
}

/// What separates two processors, for the sampling: with the firmware's distance of their nodes.
pub(super) type Class = (Distance, Option<u32>);

fn class(topology: &Topology, from: u32, to: u32) -> Class {
    let node = |cpu| topology.cpu(cpu).and_then(|cpu| cpu.node);
    let nodes = node(from).zip(node(to)).and_then(|nodes| topology.node_distances.get(&nodes));
    (topology.distance(from, to), nodes.copied())
}

/// The order in which pairs are measured: in turns one of each class, and within a class spread over the processors,
/// so that whatever time is given, every class gets its share. The same for the same machine.
pub(super) fn plan(topology: &Topology) -> Vec<(u32, u32)> {
    let cpus = &topology.allowed;
    let mut classes: BTreeMap<Class, Vec<(u32, u32)>> = BTreeMap::new();
    for &from in cpus {
        for &to in cpus.iter().filter(|&&to| to != from) {
            classes.entry(class(topology, from, to)).or_default().push((from, to));
        }
    }
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut queues: Vec<_> = classes.into_values().collect();
    queues.iter_mut().for_each(|queue| random.shuffle(queue));
    let longest = queues.iter().map(Vec::len).max().unwrap_or(0);
    (0..longest).flat_map(|turn| queues.iter().filter_map(move |queue| queue.get(turn).copied())).collect()
}

/// Measures the processors that are allowed to this process. `progress` is told how many pairs of how many are done.
///
/// # Errors
/// [`MeasureError`] if threads cannot be started and bound. Pairs that cannot be measured in time are no error.
pub fn measure(
    topology: &Topology,
    effort: Effort,
    mut progress: impl FnMut(usize, usize),
) -> Result<Matrix, MeasureError> {
    let start = Instant::now();
    let plan = plan(topology);
    let mut homes: BTreeMap<u32, Lines> = BTreeMap::new();
    let mut tried: BTreeMap<Class, usize> = BTreeMap::new();
    let mut measured: BTreeMap<(u32, u32), HandOver> = BTreeMap::new();
    for (done, &(from, to)) in plan.iter().enumerate() {
        let tried = tried.entry(class(topology, from, to)).or_default();
        if *tried > 0 && start.elapsed() >= effort.budget {
            continue;
        }
        *tried += 1;
        let home = match homes.entry(from) {
            std::collections::btree_map::Entry::Occupied(home) => home.into_mut(),
            std::collections::btree_map::Entry::Vacant(home) => home.insert(Lines::on(from)?),
        };
        if let Some(hand_over) = measure_pair(home, from, to, effort)? {
            measured.insert((from, to), hand_over);
        }
        progress(done + 1, plan.len());
    }
    let all = fill(topology, &plan, measured);
    Ok(Matrix::new(topology.allowed.clone(), all)?)
}

/// Gives pairs that were not measured the median of their class.
pub(super) fn fill(
    topology: &Topology,
    plan: &[(u32, u32)],
    measured: BTreeMap<(u32, u32), HandOver>,
) -> BTreeMap<(u32, u32), HandOver> {
    let mut classes: BTreeMap<Class, Vec<f64>> = BTreeMap::new();
    for (&(from, to), hand_over) in &measured {
        classes.entry(class(topology, from, to)).or_default().push(hand_over.ns);
    }
    classes.values_mut().for_each(|values| values.sort_by(f64::total_cmp));
    let mut all = measured;
    for &(from, to) in plan {
        let class = class(topology, from, to);
        all.entry((from, to)).or_insert_with(|| match classes.get(&class) {
            Some(values) => HandOver::stand_in(values[values.len() / 2], Origin::Estimated),
            None => HandOver::stand_in(class.0.nominal_ns(), Origin::Nominal),
        });
    }
    all
}

/// A word with a cache line of its own, and the next line too, which some processors fetch along with it.
#[repr(align(128))]
struct Line(AtomicU32);

/// The lines that one processor owns.
struct Lines(Vec<Line>);

impl Lines {
    /// Lines that are first touched by a thread on `cpu`.
    fn on(cpu: u32) -> Result<Self, MeasureError> {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name(format!("home {cpu}")).spawn_scoped(scope, || {
                pin(cpu)?;
                let mut order: Vec<usize> = (0..LINES).collect();
                Random(u64::from(cpu) + 1).shuffle(&mut order);
                let mut next = [0; LINES];
                for (at, &line) in order.iter().enumerate() {
                    next[line] = order[(at + 1) % LINES] as u32;
                }
                let mut lines = Vec::with_capacity(RESERVED);
                lines.extend(next.map(|next| Line(AtomicU32::new(next))));
                Ok(Self(lines))
            });
            thread.map_err(MeasureError::Thread)?.join().unwrap_or(Err(MeasureError::Lost))
        })
    }

    /// Goes through all lines in their order; the nanoseconds per line.
    fn walk(&self, visit: impl Fn(&AtomicU32) -> u32) -> f64 {
        let start = Instant::now();
        let mut at = 0;
        for _ in 0..self.0.len() {
            at = visit(&self.0[at as usize].0) & INDEX;
        }
        std::hint::black_box(at);
        start.elapsed().as_nanos() as f64 / self.0.len() as f64
    }
}

/// One pair; `None` if there were too few rounds in its time.
fn measure_pair(lines: &Lines, from: u32, to: u32, effort: Effort) -> Result<Option<HandOver>, MeasureError> {
    let deadline = Instant::now() + effort.pair_limit;
    let rounds = effort.rounds.max(LEAST_ROUNDS as u32) + WARM_UP as u32;
    let turn = Turn::default();
    // The count of writes is above the index and wraps out of the word.
    let write = |word: &AtomicU32| word.fetch_add(INDEX + 1, Ordering::Relaxed);
    let read = |word: &AtomicU32| word.load(Ordering::Relaxed);
    let (writes, reads) = std::thread::scope(|scope| {
        let (turn, name) = (&turn, |what| std::thread::Builder::new().name(format!("{what} {from}-{to}")));
        let writer = name("write").spawn_scoped(scope, move || {
            turn.bind(from)?;
            Ok(turn.take_turns(0, rounds, deadline, || lines.walk(write)))
        });
        let reader = name("read").spawn_scoped(scope, move || {
            turn.bind(to)?;
            Ok(turn.take_turns(1, rounds, deadline, || lines.walk(read)))
        });
        let join = |thread: io::Result<std::thread::ScopedJoinHandle<'_, Result<Vec<f64>, MeasureError>>>| {
            thread.map_err(MeasureError::Thread)?.join().unwrap_or(Err(MeasureError::Lost))
        };
        let (writes, reads) = (join(writer), join(reader));
        Ok::<_, MeasureError>((writes?, reads?))
    })?;
    Ok(summarize(&writes, &reads))
}

fn summarize(writes: &[f64], reads: &[f64]) -> Option<HandOver> {
    let halves: Vec<(f64, f64)> = writes.iter().copied().zip(reads.iter().copied()).skip(WARM_UP).collect();
    if halves.len() < LEAST_ROUNDS {
        return None;
    }
    let sorted = |value: fn(&(f64, f64)) -> f64| {
        let mut values: Vec<f64> = halves.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let (sums, writes, reads) = (sorted(|half| half.0 + half.1), sorted(|half| half.0), sorted(|half| half.1));
    let (last, middle) = (halves.len() - 1, halves.len() / 2);
    Some(HandOver {
        ns: sums[middle],
        low_ns: sums[last / 10],
        high_ns: sums[last - last / 10],
        write_ns: writes[middle],
        read_ns: reads[middle],
        rounds: halves.len() as u32,
        origin: Origin::Measured,
    })
}

/// Whose turn it is: even for the writer, odd for the reader.
#[derive(Default)]
#[repr(align(128))]
struct Turn {
    of: AtomicU32,
    /// One of the two could not begin: the other need not wait.
    is_off: AtomicBool,
}

impl Turn {
    /// Binds the calling thread to a processor, or calls everything off.
    fn bind(&self, cpu: u32) -> Result<(), MeasureError> {
        // Nothing else is handed over with it.
        pin(cpu).inspect_err(|_| self.is_off.store(true, Ordering::Relaxed))
    }

    /// Does one's part in each round; what each took. Ends early when the time is up.
    fn take_turns(&self, parity: u32, rounds: u32, deadline: Instant, part: impl Fn() -> f64) -> Vec<f64> {
        let mut took = Vec::with_capacity(rounds as usize);
        for round in 0..rounds {
            if !self.wait(2 * round + parity, deadline) {
                break;
            }
            took.push(part());
            // SYNC: with the load in `wait` of the other: it sees all that was done in this turn.
            self.of.store(2 * round + parity + 1, Ordering::Release);
        }
        took
    }

    fn wait(&self, mine: u32, deadline: Instant) -> bool {
        let mut looks = 0u32;
        // SYNC: with the store in `take_turns` of the other.
        while self.of.load(Ordering::Acquire) != mine {
            looks += 1;
            std::hint::spin_loop();
            if looks.is_multiple_of(1 << 12) {
                // Somebody else may need this processor, the other one of the pair included.
                std::thread::yield_now();
                if self.is_off.load(Ordering::Relaxed) || Instant::now() > deadline {
                    return false;
                }
            }
        }
        Instant::now() <= deadline
    }
}

/// Binds the calling thread to a processor.
fn pin(cpu: u32) -> Result<(), MeasureError> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu as usize);
    rustix::thread::sched_setaffinity(None, &set).map_err(|errno| MeasureError::Pin { cpu, source: errno.into() })
}

/// A small generator for orders that must be the same each time (xorshift64*; Vigna, "An experimental exploration of
/// Marsaglia's xorshift generators, scrambled", 2016).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, (self.next() % (at as u64 + 1)) as usize);
        }
    }
}
