//! The same null device by NBD, with the same client: `nbdkit null` and our server, over the device itself and over a link
//! to another thread that has it, which is what an appliance does with domains.
//!
//! ```text
//! cargo run --release -p mmblk --example nbd_bench [-- SECONDS [ROUNDS]]
//! ```
//!
//! Needs Debian's fio and nbdkit. Per round every server gets its turn, so that what else the machine does hits all of
//! them; the table has medians over the rounds, and ratios to nbdkit of the same run. The last line is JSON.

use std::error::Error;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fido_core::assignment::{Transport, WaitStrategy};
use fido_core::memory::Memory;
use fido_core::testing::{lane_pair, private_memory};
use fido_core::wait::Source;
use fido_core::waiter::Waiter;
use mmblk::backend::null::NullQueue;
use mmblk::export::nbd::{Export, Limits, Server, Worker};
use mmblk::link::back::BackEnd;
use mmblk::link::front::LinkQueue;
use mmblk::nbd::place::Place;
use mmblk::queue::{BlockQueue, Geometry};

const GEOMETRY: Geometry = Geometry { bytes: 1 << 30, block: 512, depth: 128 };
const PATIENCE: Duration = Duration::from_secs(20);
const SERVERS: [&str; 3] = ["nbdkit", "direct", "link"];
const CASES: [(&str, u32); 4] = [("randread", 1), ("randwrite", 1), ("randread", 64), ("randwrite", 64)];

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let seconds: u32 = args.next().map_or(Ok(3), |text| text.parse())?;
    let rounds: usize = args.next().map_or(Ok(5), |text| text.parse())?;
    let folder = tempfile::tempdir()?;
    let socket = |name: &str| folder.path().join(name);
    let _nbdkit = Ended(
        Command::new("nbdkit")
            .args(["-f", "-U"])
            .arg(socket("nbdkit"))
            .args(["null", "1G"])
            .stdin(Stdio::null())
            .spawn()?,
    );
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let memory = private_memory(256 << 20);
        let queue = NullQueue::new(GEOMETRY, memory.clone())?;
        let (_direct, worker) = server(&socket("direct"), &memory, queue)?;
        let end = &end;
        scope.spawn(move || serve(worker, &memory, end));
        let (front, back) = lane_pair(1024, Transport::Pointer);
        let (near, far) = (front.memory().clone(), back.memory().clone());
        let disk = BackEnd::new(back, NullQueue::new(GEOMETRY, far.clone())?)?;
        scope.spawn(move || disk_domain(disk, far, end));
        let (_link, worker) = server(&socket("link"), &near, LinkQueue::connect(front, PATIENCE)?)?;
        scope.spawn(move || serve(worker, &near, end));
        let measured = measure(folder.path(), seconds, rounds);
        end.store(true, Ordering::Relaxed);
        measured
    })
}

/// A program that is ended with its value.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn server<Q: BlockQueue>(socket: &Path, memory: &Memory, queue: Q) -> Result<(Server, Worker<Q>), Box<dyn Error>> {
    let export = Export { name: "disk".into(), description: String::new(), read_only: false };
    let mut server = Server::bind(&[Place::Unix(socket.into())], vec![export], Limits::default())?;
    let worker = server.worker(memory.clone(), vec![queue])?;
    Ok((server, worker))
}

fn serve<Q: BlockQueue>(mut worker: Worker<Q>, memory: &Memory, end: &AtomicBool) {
    let Ok(waiter) = Waiter::new(WaitStrategy::Adaptive) else { return };
    let mut waiter = waiter.counting_in(memory);
    while !end.load(Ordering::Relaxed) {
        if worker.poll() {
            waiter.busy();
            continue;
        }
        worker.flush();
        if waiter.idle(&mut worker.sources(), Some(Duration::from_millis(50))).is_err() {
            return;
        }
    }
}

/// The thread that plays the disk's domain.
fn disk_domain(mut disk: BackEnd<NullQueue>, memory: Memory, end: &AtomicBool) {
    let Ok(waiter) = Waiter::new(WaitStrategy::Adaptive) else { return };
    let mut waiter = waiter.counting_in(&memory);
    while !end.load(Ordering::Relaxed) {
        if disk.poll() {
            waiter.busy();
            continue;
        }
        disk.flush();
        let mut sources: Vec<&mut dyn Source> = disk.sources().into();
        if waiter.idle(&mut sources, Some(Duration::from_millis(50))).is_err() {
            return;
        }
    }
}

/// What one run of fio says.
#[derive(Debug, Clone, Copy)]
struct Run {
    iops: f64,
    p50: f64,
    p99: f64,
}

fn measure(folder: &Path, seconds: u32, rounds: usize) -> Result<(), Box<dyn Error>> {
    let deadline = Instant::now() + PATIENCE;
    while !folder.join("nbdkit").exists() {
        if Instant::now() > deadline {
            return Err("nbdkit does not open its socket".into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("fio, nbd engine, 4 KiB, {rounds} rounds of {seconds} s; medians; to nbdkit of the same run");
    println!(
        "{:<10} {:>5} {:<7} {:>10} {:>9} {:>9} {:>8}",
        "case", "depth", "server", "IOPS", "p50 us", "p99 us", "ratio"
    );
    let mut rows = Vec::new();
    for (pattern, depth) in CASES {
        let mut runs = SERVERS.map(|_| Vec::new());
        for _ in 0..rounds {
            for (server, runs) in SERVERS.iter().zip(&mut runs) {
                runs.push(fio(
                    &folder.join(server),
                    if *server == "nbdkit" { "" } else { "disk" },
                    pattern,
                    depth,
                    seconds,
                )?);
            }
        }
        let middle = runs.map(|runs| median(&runs));
        let floor = middle[0].iops;
        for (server, run) in SERVERS.iter().zip(middle) {
            let Run { iops, p50, p99 } = run;
            println!("{pattern:<10} {depth:>5} {server:<7} {iops:>10.0} {p50:>9.1} {p99:>9.1} {:>8.2}", iops / floor);
            rows.push(format!(
                r#"{{"case":"{pattern}","depth":{depth},"server":"{server}","iops":{iops:.0},"p50_us":{p50:.1},"p99_us":{p99:.1}}}"#
            ));
        }
    }
    println!("[{}]", rows.join(","));
    Ok(())
}

fn median(runs: &[Run]) -> Run {
    let middle = |value: fn(&Run) -> f64| {
        let mut all: Vec<f64> = runs.iter().map(value).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied().unwrap_or(0.0)
    };
    Run { iops: middle(|run| run.iops), p50: middle(|run| run.p50), p99: middle(|run| run.p99) }
}

/// Runs fio once. Its terse form (version 3) has IOPS and percentiles at fixed places.
fn fio(socket: &Path, export: &str, pattern: &str, depth: u32, seconds: u32) -> Result<Run, Box<dyn Error>> {
    let output = Command::new("timeout")
        .args(["120", "fio", "--name=null", "--ioengine=nbd", "--bs=4k", "--size=1g", "--time_based", "--minimal"])
        .args(["--terse-version=3", "--percentile_list=50:99"])
        .arg(format!("--uri=nbd+unix:///{export}?socket={}", socket.display()))
        .args([format!("--rw={pattern}"), format!("--iodepth={depth}"), format!("--runtime={seconds}")])
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let line = said
        .lines()
        .find(|line| line.starts_with("3;"))
        .ok_or_else(|| format!("fio says {said:?} {:?}", String::from_utf8_lossy(&output.stderr)))?;
    let fields: Vec<&str> = line.split(';').collect();
    // Reads begin at field 5, writes at 46: total, bandwidth, IOPS; percentiles are 12 fields behind the first.
    let first = if pattern.contains("read") { 5 } else { 46 };
    let number = |at: usize| fields.get(at).and_then(|text| text.parse().ok()).unwrap_or(0.0);
    let percentile = |index: usize| {
        fields
            .get(first + 12 + index)
            .and_then(|text| text.split_once('='))
            .and_then(|(_, us)| us.parse().ok())
            .unwrap_or(0.0)
    };
    Ok(Run { iops: number(first + 2), p50: percentile(0), p99: percentile(1) })
}
