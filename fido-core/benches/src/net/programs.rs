//! Real programs in two network namespaces: joined by a veth pair, by one process between two TAP devices, and by two
//! processes with a TAP device each and a lane between them.

use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fido_core::assignment::WaitStrategy;
use fido_core::memory::Memory;
use fido_core::wait::Source;
use fido_core::waiter::Waiter;
use mmnet::frame::{FrameLink, FramePort};
use mmnet::relay::Relay;
use mmnet::tap::{TapOptions, TapPort};

use super::spaces::{self, Space};
use super::{Options, PATIENCE, Say};
use crate::Failure;
use crate::other_side::{Control, Part, Program};
use crate::pair::Pair;
use crate::report::{Column, Limit, Raw, Row, Table, Target, median};

/// What of the single process's throughput two processes are to reach.
const OF_RELAY: f64 = 0.95;
/// How often a relay looks whether it is over.
const LOOK: Duration = Duration::from_millis(20);
const SERVER: &str = "10.79.0.2";

/// How the two namespaces are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Joint {
    Veth,
    Relay,
    MmNet,
}

const JOINTS: [Joint; 3] = [Joint::Veth, Joint::Relay, Joint::MmNet];

impl Joint {
    fn name(self) -> &'static str {
        match self {
            Self::Veth => "veth",
            Self::Relay => "one process",
            Self::MmNet => "MMNet",
        }
    }
}

/// A program, and what of its output is wanted.
struct Run {
    label: &'static str,
    program: &'static str,
    package: &'static str,
    server: &'static [&'static str],
    client: &'static [&'static str],
    unit: &'static str,
    read: fn(&str) -> Option<f64>,
}

const IPERF: Run = Run {
    label: "",
    program: "iperf3",
    package: "iperf3",
    server: &["-s", "-1"],
    client: &[],
    unit: "Gb/s",
    read: iperf_received,
};
const SOCKPERF: Run = Run {
    label: "",
    program: "sockperf",
    package: "sockperf",
    server: &["server", "-i", SERVER],
    client: &[],
    unit: "us",
    read: sockperf_median,
};

/// What is run, in the order of the rows; the time comes from the options.
const RUNS: [Run; 8] = [
    Run { label: "iperf3, TCP", ..IPERF },
    Run { label: "iperf3, TCP, 4 parallel", client: &["-P", "4"], ..IPERF },
    Run { label: "iperf3, TCP, both ways", client: &["--bidir"], ..IPERF },
    Run { label: "iperf3, UDP", client: &["-u", "-b", "0"], ..IPERF },
    Run {
        label: "NetPIPE, most",
        program: "NPtcp",
        package: "netpipe-tcp",
        server: &["-u", "131072", "-p", "0"],
        client: &["-h", SERVER, "-u", "131072", "-p", "0"],
        unit: "Gb/s",
        read: netpipe_most,
    },
    Run { label: "sockperf, UDP", client: &["ping-pong", "-i", SERVER], ..SOCKPERF },
    Run {
        label: "sockperf, TCP",
        server: &["server", "-i", SERVER, "--tcp"],
        client: &["ping-pong", "-i", SERVER, "--tcp"],
        ..SOCKPERF
    },
    Run {
        label: "NetPIPE, 1 byte",
        program: "NPtcp",
        package: "netpipe-tcp",
        server: &["-u", "4", "-p", "0"],
        client: &["-h", SERVER, "-u", "4", "-p", "0"],
        unit: "us",
        read: netpipe_first,
    },
];

/// Runs all programs by all joints, and returns their tables and targets.
///
/// # Errors
/// If a joint cannot be made or a program fails.
pub fn measure(options: &Options, program: &Program<'_>) -> Result<(Vec<Table>, Vec<Target>), Failure> {
    let (rounds, seconds) = if options.quick { (1, 1) } else { (options.rounds.min(3), 2) };
    let absent = spaces::absent();
    let mut results: Vec<Vec<Vec<f64>>> = RUNS.iter().map(|_| vec![Vec::new(); JOINTS.len()]).collect();
    for round in 1..=if absent.is_none() { rounds } else { 0 } {
        eprintln!("programs, round {round} of {rounds} ...");
        for (at, joint) in JOINTS.into_iter().enumerate() {
            joined(joint, program, |spaces| {
                for (run, by_joint) in RUNS.iter().zip(&mut results) {
                    if is_there(run.program) {
                        let value = run.play(spaces, seconds);
                        by_joint[at].push(value.map_err(|error| format!("{}, {}: {error}", joint.name(), run.label))?);
                    }
                }
                Ok(())
            })?;
        }
    }
    let rows = |unit| RUNS.iter().zip(&results).filter(move |(run, _)| run.unit == unit);
    let rate = table("programs", "programs between two namespaces", "Gb/s", rows("Gb/s"), absent.as_deref());
    let time = table("programs-latency", "half a round trip of programs", "us", rows("us"), absent.as_deref());
    let targets = rows("Gb/s").map(|(run, by_joint)| Target {
        what: format!("{}: MMNet TAP, of one process", run.label),
        limit: Limit::AtLeast(OF_RELAY),
        measured: Some(median(&by_joint[2]) / median(&by_joint[1])).filter(|ratio| ratio.is_finite()),
    });
    Ok((vec![rate, time], targets.collect()))
}

fn table<'a>(
    name: &str,
    title: &str,
    unit: &str,
    rows: impl Iterator<Item = (&'a Run, &'a Vec<Vec<f64>>)>,
    absent: Option<&str>,
) -> Table {
    let mut columns: Vec<_> = JOINTS.map(|joint| Column::new(joint.name(), unit, 2)).to_vec();
    columns.push(Column::new("MMNet / one process", "", 2));
    let mut table = Table::new(name, title, columns);
    for (run, by_joint) in rows {
        if let Some(why) = absent {
            table.rows.push(Row::absent(run.label, why));
            continue;
        }
        if !is_there(run.program) {
            let why = format!("{} is not installed (Debian's package {})", run.program, run.package);
            table.rows.push(Row::absent(run.label, why));
            continue;
        }
        let medians: Vec<f64> = by_joint.iter().map(|values| median(values)).collect();
        let mut cells: Vec<_> = medians.iter().copied().map(Some).collect();
        cells.push(Some(medians[2] / medians[1]));
        let raw = Raw::Rounds(by_joint.iter().flatten().copied().collect());
        table.rows.push(Row { raw, ..Row::new(run.label, cells) });
    }
    table
        .notes
        .push("one process: a relay between two TAP devices; MMNet: two processes with a lane between them".into());
    table
}

fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// Joins two namespaces, and does something with them.
fn joined(
    joint: Joint,
    program: &Program<'_>,
    work: impl FnOnce(&[Space; 2]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let spaces = [Space::new("a")?, Space::new("b")?];
    if joint == Joint::Veth {
        spaces[0].ip(&format!("link add tap0 type veth peer name tap0 netns {}", spaces[1].name))?;
    } else {
        for space in &spaces {
            space.ip("tuntap add dev tap0 mode tap vnet_hdr")?;
        }
    }
    for (number, space) in spaces.iter().enumerate() {
        space.ip(&format!("addr add 10.79.0.{}/24 dev tap0", number + 1))?;
        space.ip("link set tap0 up")?;
    }
    if joint == Joint::Veth {
        return work(&spaces);
    }
    let over = AtomicBool::new(false);
    let names = [&*spaces[0].name, &*spaces[1].name];
    std::thread::scope(|scope| {
        let relay =
            scope.spawn(|| if joint == Joint::Relay { alone(names, &over) } else { lead(names, program, &over) });
        let worked = work(&spaces);
        over.store(true, Ordering::Relaxed);
        let relayed = relay.join().unwrap_or_else(|_| Err("the relay panicked".into()));
        worked.and(relayed)
    })
}

fn tap(space: &str, memory: Memory) -> Result<TapPort, Failure> {
    spaces::enter(space)?;
    Ok(TapPort::open(&TapOptions::named("tap0"), memory)?)
}

/// One process between two devices.
fn alone([a, b]: [&str; 2], over: &AtomicBool) -> Result<(), Failure> {
    let memory = crate::pair::memory()?;
    let relay = Relay::new(tap(a, memory.clone())?, tap(b, memory.clone())?);
    serve(relay, &memory, || Ok(over.load(Ordering::Relaxed)))
}

/// The leading one of two processes.
fn lead([a, b]: [&str; 2], program: &Program<'_>, over: &AtomicBool) -> Result<(), Failure> {
    let (partner, mut control, mut pair) = Pair::start(program, Part::Net, 1)?;
    control.say(&Say::Wire { space: b.into() }, &[])?;
    let Say::Ready = control.hear()?.0 else { return Err("the other side has no device".into()) };
    wire(&mut pair, a, || {
        partner.beat();
        Ok(over.load(Ordering::Relaxed))
    })?;
    control.say(&Say::Done, &[])?;
    partner.finish()
}

/// The other one.
pub(super) fn follow(pair: &mut Pair, space: &str, control: &mut Control) -> Result<(), Failure> {
    control.say(&Say::Ready, &[])?;
    wire(pair, space, || control.has_word())
}

fn wire(pair: &mut Pair, space: &str, over: impl FnMut() -> Result<bool, Failure>) -> Result<(), Failure> {
    let tap = tap(space, pair.memory.clone())?;
    let link = FrameLink::new(pair.take().0.pop().ok_or("no lane")?, tap.mtu())?;
    serve(Relay::new(link, tap), &pair.memory, over)
}

fn serve<A: FramePort, B: FramePort>(
    mut relay: Relay<A, B>,
    memory: &Memory,
    mut over: impl FnMut() -> Result<bool, Failure>,
) -> Result<(), Failure> {
    let mut waiter = Waiter::new(WaitStrategy::Adaptive)?.counting_in(memory);
    let mut looked = Instant::now();
    loop {
        if looked.elapsed() > LOOK {
            if over()? {
                return Ok(());
            }
            looked = Instant::now();
        }
        if relay.turn() {
            waiter.busy();
        } else {
            let mut all: Vec<&mut dyn Source> = Vec::new();
            relay.sources(&mut all);
            waiter.idle(&mut all, Some(LOOK))?;
        }
    }
}

/// A program that is ended when dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Run {
    fn play(&self, [a, b]: &[Space; 2], seconds: u32) -> Result<f64, Failure> {
        let mut server = b.command(self.program);
        server.args(self.server).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let _server = Server(server.spawn()?);
        let began = Instant::now();
        loop {
            let mut client = a.command("timeout");
            client.args([&(seconds + 30).to_string(), self.program]).args(self.client);
            let seconds = seconds.to_string();
            match self.program {
                "iperf3" => client.args(["-c", SERVER, "-J", "-t", &seconds]),
                "sockperf" => client.args(["-t", &seconds]),
                _ => client.args(["-o", "/dev/null"]),
            };
            let output = finished(&mut client)?;
            let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            if let Some(value) = (self.read)(&text).filter(|value| output.status.success() && *value > 0.0) {
                return Ok(value);
            }
            // The server may not listen yet.
            if began.elapsed() > PATIENCE {
                return Err(format!("{client:?} ended with {}: {text}", output.status).into());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

fn finished(client: &mut Command) -> Result<Output, Failure> {
    Ok(client.stdin(Stdio::null()).output()?)
}

/// What arrived, both ways together, in gigabits a second.
fn iperf_received(text: &str) -> Option<f64> {
    let report: serde_json::Value = serde_json::from_str(text).ok()?;
    let end = report.get("end")?;
    let rate = |sum: &str| end.get(sum)?.get("bits_per_second")?.as_f64();
    if let Some(lost) = end.get("sum").and_then(|sum| sum.get("lost_percent")?.as_f64()) {
        return Some(rate("sum")? * (1.0 - lost / 100.0) / 1e9);
    }
    Some((rate("sum_received")? + rate("sum_received_bidir_reverse").unwrap_or(0.0)) / 1e9)
}

/// Half a round trip, in microseconds.
fn sockperf_median(text: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.contains("percentile 50.000"))?;
    line.rsplit('=').next()?.trim().parse().ok()
}

/// The rate and the time in each line of NetPIPE's, such as `0: 1 bytes 3142 times --> 1.35 Mbps in 5.67 usec`.
fn netpipe(text: &str) -> impl Iterator<Item = (f64, f64)> {
    text.lines().filter_map(|line| {
        let mut words = line.split("-->").nth(1)?.split_whitespace();
        let rate = words.next()?.parse().ok()?;
        Some((rate, words.nth(2)?.trim_end_matches("usec").parse().ok()?))
    })
}

fn netpipe_most(text: &str) -> Option<f64> {
    netpipe(text).map(|(rate, _)| rate / 1e3).max_by(f64::total_cmp)
}

fn netpipe_first(text: &str) -> Option<f64> {
    netpipe(text).next().map(|(_, time)| time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_programs_say_is_understood() {
        let tcp = r#"{"end":{"sum_sent":{"bits_per_second":9e9},"sum_received":{"bits_per_second":8e9}}}"#;
        assert_eq!(iperf_received(tcp), Some(8.0));
        let both =
            r#"{"end":{"sum_received":{"bits_per_second":8e9},"sum_received_bidir_reverse":{"bits_per_second":1e9}}}"#;
        assert_eq!(iperf_received(both), Some(9.0));
        let udp = r#"{"end":{"sum":{"bits_per_second":4e9,"lost_percent":25}}}"#;
        assert_eq!(iperf_received(udp), Some(3.0));
        assert_eq!(iperf_received(r#"{"error":"unable to connect"}"#), None);
        assert_eq!(sockperf_median("sockperf: ---> percentile 50.000 =   12.345\n"), Some(12.345));
        let pipe = "Now starting the main loop\n  0:       1 bytes   3142 times -->      1.35 Mbps in       5.67 usec\n  \
                    1:       2 bytes   4 times -->   2500.00 Mbps in       5.70 usec\n";
        assert_eq!((netpipe_first(pipe), netpipe_most(pipe)), (Some(5.67), Some(2.5)));
    }
}
