//! What a ring and a lane cost between two processes, against the bare cache-line exchange below which nothing can
//! go, and against what the kernel offers instead.
//!
//! ```text
//! cargo bench -p fido-core --bench ring [-- --rounds N] [--json FILE]
//! ```
//! The program starts itself again as the other side; each side has a sealed arena and a read-only window on the
//! other's, as under the connection manager. Both are pinned to a core of their own if there are two. All subjects are
//! measured in turn in every round, so that a disturbance of the machine hits all of them. Round trips are timed one by
//! one (the clock itself is a subject: its cost is in every other), rates over a whole round.

mod report;
mod setup;
mod subjects;

use std::error::Error;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Child, Command, ExitCode};
use std::time::Instant;

use hdrhistogram::Histogram;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use setup::{Control, End, Say, Side};
use subjects::{RATES, Rate, TRIPS, Trip};

/// An error of the benchmark itself.
pub type Failure = Box<dyn Error>;

/// How often every subject gets its turn.
const ROUNDS: u32 = 20;

/// The command line.
struct Arguments {
    rounds: u32,
    json: Option<String>,
    /// Set in the other side: the inherited socket.
    other_side: Option<i32>,
}

impl Arguments {
    fn parse() -> Result<Self, Failure> {
        let mut parsed = Self { rounds: ROUNDS, json: None, other_side: None };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
            match argument.as_str() {
                "--rounds" => parsed.rounds = value()?.parse().map_err(|error| format!("--rounds: {error}"))?,
                "--json" => parsed.json = Some(value()?),
                "--other-side" => parsed.other_side = Some(value()?.parse()?),
                // What cargo passes to every benchmark.
                "--bench" => {}
                other => return Err(format!("unknown argument {other:?}; try --rounds N or --json FILE").into()),
            }
        }
        if parsed.rounds == 0 {
            return Err("--rounds 0: nothing to measure".into());
        }
        Ok(parsed)
    }
}

/// What was measured.
pub struct Measured {
    /// Round trips in nanoseconds, one histogram for each of [`TRIPS`].
    pub trips: Vec<(Trip, Histogram<u64>)>,
    /// Messages per second in each round, for each of [`RATES`].
    pub rates: Vec<(Rate, Vec<f64>)>,
}

fn main() -> ExitCode {
    let run = || {
        let arguments = Arguments::parse()?;
        match arguments.other_side {
            Some(socket) => follow(socket),
            None => lead(&arguments),
        }
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn lead(arguments: &Arguments) -> Result<(), Failure> {
    let machine = report::Machine::here();
    let cores = setup::cores()?;
    setup::pin(cores.map(|(lead, _)| lead))?;
    let (socket, mut other) = start_other_side()?;
    let mut control = Control::new(socket);
    let measured = End::meet(&mut control, Side::Lead, cores.map(|(_, follow)| follow))
        .and_then(|mut end| measure(&mut control, &mut end, arguments.rounds));
    if measured.is_err() {
        // It may be waiting for us.
        let _ = other.kill();
    }
    drop(control);
    other.wait()?;
    let measured = measured?;
    report::print(&machine, cores, arguments.rounds, &measured);
    if let Some(path) = &arguments.json {
        report::write_json(path, &machine, cores, arguments.rounds, &measured)?;
        println!("\nraw results: {path}");
    }
    Ok(())
}

/// Starts this program again; the socket to it is the one descriptor it inherits.
fn start_other_side() -> Result<(OwnedFd, Child), Failure> {
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::empty(), None)?;
    rustix::io::fcntl_setfd(&ours, rustix::io::FdFlags::CLOEXEC)?;
    let number = theirs.as_raw_fd().to_string();
    let child = Command::new(std::env::current_exe()?).args(["--other-side", &number]).spawn()?;
    Ok((ours, child))
}

fn measure(control: &mut Control, end: &mut End, rounds: u32) -> Result<Measured, Failure> {
    let empty = || Histogram::<u64>::new(3);
    let mut trips = Vec::new();
    for trip in TRIPS {
        trips.push((trip, empty()?));
    }
    let mut rates: Vec<_> = RATES.iter().map(|rate| (*rate, Vec::new())).collect();
    // Round 0 warms everything up and does not count.
    for round in 0..=rounds {
        for (index, (trip, histogram)) in trips.iter_mut().enumerate() {
            order(control, Say::Trip { index })?;
            let mut warm_up = empty()?;
            trip.lead(end, if round == 0 { &mut warm_up } else { histogram })?;
        }
        for (index, (rate, results)) in rates.iter_mut().enumerate() {
            order(control, Say::Rate { index })?;
            let began = Instant::now();
            rate.lead(end)?;
            if round > 0 {
                results.push(f64::from(rate.count()) / began.elapsed().as_secs_f64());
            }
        }
    }
    control.say(&Say::Done, &[])?;
    Ok(Measured { trips, rates })
}

/// Has the other side play its part, and waits until it is about to.
fn order(control: &mut Control, say: Say) -> Result<(), Failure> {
    control.say(&say, &[])?;
    match control.hear()? {
        (Say::Ready, _) => Ok(()),
        (other, _) => Err(format!("the other side said {other:?}").into()),
    }
}

fn follow(socket: i32) -> Result<(), Failure> {
    // SAFETY: the leading side has this descriptor inherited for this purpose; nothing else here knows it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let mut control = Control::new(socket);
    let mut end = End::meet(&mut control, Side::Follow, None)?;
    loop {
        let (say, _) = control.hear()?;
        let known = |index| format!("no subject {index}");
        match say {
            Say::Trip { index } => {
                let trip = TRIPS.get(index).ok_or_else(|| known(index))?;
                control.say(&Say::Ready, &[])?;
                trip.follow(&mut end)?;
            }
            Say::Rate { index } => {
                let rate = RATES.get(index).ok_or_else(|| known(index))?;
                control.say(&Say::Ready, &[])?;
                rate.follow(&mut end)?;
            }
            Say::Done => return Ok(()),
            other => return Err(format!("the leading side said {other:?}").into()),
        }
    }
}
