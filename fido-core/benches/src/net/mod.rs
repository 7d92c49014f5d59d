//! `fido bench net`: what a network between two domains costs, by netperf's tests.
//!
//! Two processes play each test over every way to connect them, all ways in turn in every round: the kernel's loopback
//! and a veth pair, models of netfront and of XenLoop that copy, smoltcp over frames by address, and streams by address.
//! No side is bound to a core.

mod carriers;
mod frames;
mod kernel;
mod messages;
mod netperf;
mod programs;
mod spaces;
mod stack;
mod tables;
mod veth;
mod way;

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use clap::builder::PossibleValuesParser;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::machine::{Machine, process_time};
use crate::other_side::{Control, Part, Program};
use crate::pair::{FOLLOWER, Pair};
use crate::report::{Output, Report};
use netperf::{Side, TESTS, Test, Turn};
use way::{WAYS, Way};

/// How long anything may take that must come.
const PATIENCE: Duration = Duration::from_secs(20);
/// So long a side waits for a datagram before it asks whether it is over.
const SILENCE: Duration = Duration::from_millis(10);
/// The messages' sizes.
const SIZES: [usize; 6] = [64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10];
/// The longest datagram: what an IPv4 packet takes in a frame of the largest MTU.
const DATAGRAM_BYTES: usize = mmnet::frame::MAX_MTU - 28;

/// What is to be measured, and where the results go.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// How often every way gets its turn.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rounds: u32,
    /// Short turns: to see that it works, not what it costs.
    #[arg(long)]
    pub quick: bool,
    /// Plays only this test (may be given more than once).
    #[arg(long, value_name = "TEST", value_parser = PossibleValuesParser::new(names()))]
    pub only: Vec<String>,
    /// Where the results go.
    #[command(flatten)]
    pub output: Output,
}

/// The bare frames over a link, and the real programs over TAP devices.
const FRAMES: &str = "FRAMES";
const PROGRAMS: &str = "PROGRAMS";
/// The frames whose number counts: the least that Ethernet has.
const SMALL_FRAME: usize = 64;

/// The names of all tests.
fn names() -> impl Iterator<Item = &'static str> {
    TESTS.map(Test::name).into_iter().chain([FRAMES, PROGRAMS])
}

impl Options {
    fn asks_for(&self, test: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == test)
    }
}

/// What the two sides say to each other.
#[derive(Debug, Serialize, Deserialize)]
enum Say {
    /// From the leading side: be ready for tests by that way.
    Begin(Way),
    /// From the leading side: join a TAP device in that namespace to the lane.
    Wire { space: String },
    /// From the other side: this process is in a network namespace of its own.
    Apart { process: u32 },
    /// From the leading side: an end of a veth pair is there.
    Joined,
    /// Where sockets are.
    Addresses { tcp: Option<SocketAddr>, udp: SocketAddr },
    /// From the leading side: play this.
    Play(Turn),
    /// From the other side: so be it.
    Ready,
    /// From the leading side: no more datagrams.
    Over,
    /// From the other side: that is what it was.
    Played(Account),
    /// How much was used so far?
    Account,
    /// From the leading side: that was all.
    Done,
}

/// What a side has used and got.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Account {
    /// Processor time so far.
    cpu: Duration,
    /// Payload bytes copied so far, where they are counted.
    copied: Option<u64>,
    /// Payload bytes received in this turn.
    received: u64,
}

/// What one test with one size did by one way.
struct Measured {
    test: Test,
    bytes: usize,
    way: Way,
    times: Histogram<u64>,
    /// Bytes, or transactions, per second of each round.
    rates: Vec<f64>,
    /// Processor time of both sides of each round in nanoseconds: per byte, or per transaction.
    costs: Vec<f64>,
    /// Payload bytes copied for each that arrived, where they are counted.
    copies: Option<f64>,
}

/// Measures, prints the tables, and writes what the options ask for. `program` says how this program becomes the other
/// side.
///
/// # Errors
/// If a side fails or a file cannot be written.
pub fn run(options: &Options, program: &Program<'_>) -> Result<(), Failure> {
    let machine = Machine::here(None);
    let no_veth = spaces::absent();
    let mut measured = nothing_yet(options, no_veth.is_none())?;
    let time = Duration::from_millis(if options.quick { 5 } else { 200 });
    for round in 1..=options.rounds {
        eprintln!("round {round} of {} ...", options.rounds);
        for way in WAYS.into_iter().chain([Way::Frames]) {
            let mine: Vec<_> = measured.iter_mut().filter(|measured| measured.way == way).collect();
            if !mine.is_empty() {
                play(way, mine, time, program).map_err(|error| format!("{}: {error}", way.name()))?;
            }
        }
    }
    let (mut tables, mut targets) = tables::all(&measured, options.rounds, no_veth.as_deref());
    // They take seconds each, so a first look is without them unless it is for them.
    if options.only.iter().any(|only| only == PROGRAMS) || options.only.is_empty() && !options.quick {
        let (more, aims) = programs::measure(options, program)?;
        tables.extend(more);
        targets.extend(aims);
    }
    Report { machine, tables, targets }.publish(&options.output)
}

/// A place for the results of every test by every way that can play it.
fn nothing_yet(options: &Options, has_veth: bool) -> Result<Vec<Measured>, Failure> {
    let mut all = Vec::new();
    let mut add = |test, bytes, way| -> Result<(), Failure> {
        let (times, rates, costs) = (Histogram::new(3)?, Vec::new(), Vec::new());
        all.push(Measured { test, bytes, way, times, rates, costs, copies: None });
        Ok(())
    };
    for test in TESTS.into_iter().filter(|test| options.asks_for(test.name())) {
        for (bytes, way) in SIZES.into_iter().flat_map(|bytes| WAYS.map(|way| (bytes, way))) {
            if way.can_play(test) && (has_veth || way != Way::Veth) {
                add(test, bytes, way)?;
            }
        }
    }
    if options.asks_for(FRAMES) {
        add(Test::UdpStream, SMALL_FRAME, Way::Frames)?;
    }
    Ok(all)
}

/// One turn of each by the same way, with another side of its own.
fn play(way: Way, all: Vec<&mut Measured>, time: Duration, program: &Program<'_>) -> Result<(), Failure> {
    if way != Way::Veth {
        return play_here(way, all, time, program);
    }
    // On a thread that nobody needs any more when it has left this namespace.
    std::thread::scope(|scope| {
        let apart = scope.spawn(|| {
            spaces::leave()?;
            play_here(way, all, time, program)
        });
        apart.join().unwrap_or_else(|_| Err("the leading side panicked".into()))
    })
}

fn play_here(way: Way, all: Vec<&mut Measured>, time: Duration, program: &Program<'_>) -> Result<(), Failure> {
    let (partner, mut control, mut pair) = Pair::start(program, Part::Net, 1)?;
    control.say(&Say::Begin(way), &[])?;
    let mut side = way.lead(&mut pair, &mut control)?;
    for measured in all {
        let bytes = if measured.test.is_udp() { measured.bytes.min(DATAGRAM_BYTES) } else { measured.bytes };
        let turn = Turn { test: measured.test, bytes, time };
        measured
            .turn(&turn, &mut *side, &mut control)
            .map_err(|error| format!("{}, {bytes} bytes: {error}", measured.test.name()))?;
        partner.beat();
    }
    control.say(&Say::Done, &[])?;
    partner.finish()
}

impl Measured {
    fn turn(&mut self, turn: &Turn, side: &mut dyn Side, control: &mut Control) -> Result<(), Failure> {
        control.say(&Say::Account, &[])?;
        let (Say::Played(before), own) = (control.hear()?.0, account(side, 0)) else {
            return Err("the other side does not account for itself".into());
        };
        control.say(&Say::Play(*turn), &[])?;
        let Say::Ready = control.hear()?.0 else { return Err("the other side is not ready".into()) };
        let done = netperf::lead(side, turn)?;
        if turn.test.is_udp() {
            control.say(&Say::Over, &[])?;
        }
        let Say::Played(after) = control.hear()?.0 else { return Err("the other side did not play".into()) };
        let own_after = account(side, done.received);
        let cpu = (after.cpu - before.cpu) + (own_after.cpu - own.cpu);
        let arrived = after.received + done.received;
        let count = if turn.test.is_stream() { arrived } else { done.times.len() };
        if count == 0 {
            return Err("nothing arrived".into());
        }
        self.rates.push(count as f64 / done.elapsed.as_secs_f64());
        self.costs.push(cpu.as_nanos() as f64 / count as f64);
        self.times.add(&done.times)?;
        let copied = |after: Account, before: Account| Some(after.copied? - before.copied?);
        let copied = copied(after, before).zip(copied(own_after, own));
        self.copies = copied.map(|(theirs, ours)| (theirs + ours) as f64 / arrived as f64);
        Ok(())
    }
}

fn account(side: &dyn Side, received: u64) -> Account {
    Account { cpu: process_time(), copied: side.copied(), received }
}

/// Whether the leading side has said that no more datagrams come.
fn hears_over(control: &mut Control) -> Result<bool, Failure> {
    if !control.has_word()? {
        return Ok(false);
    }
    match control.hear()?.0 {
        Say::Over => Ok(true),
        other => Err(format!("the leading side said {other:?}").into()),
    }
}

/// The other side's part.
pub(crate) fn follow(control: &mut Control) -> Result<(), Failure> {
    let mut pair = Pair::meet(control, FOLLOWER, 1)?;
    let way = match control.hear()?.0 {
        Say::Begin(way) => way,
        Say::Wire { space } => return programs::follow(&mut pair, &space, control),
        other => return Err(format!("the leading side said {other:?}").into()),
    };
    let mut side = way.follow(&mut pair, control)?;
    loop {
        match control.hear()?.0 {
            Say::Account => control.say(&Say::Played(account(&*side, 0)), &[])?,
            Say::Play(turn) => {
                control.say(&Say::Ready, &[])?;
                let received = netperf::follow(&mut *side, &turn, &mut || hears_over(control))
                    .map_err(|error| format!("{}, {}: {error}", way.name(), turn.test.name()))?;
                control.say(&Say::Played(account(&*side, received)), &[])?;
            }
            Say::Done => return Ok(()),
            other => return Err(format!("the leading side said {other:?}").into()),
        }
    }
}
