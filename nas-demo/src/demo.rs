//! The main job: one workload against every mode in turn, and one table.

use std::error::Error;
use std::fs;
use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tempfile::TempDir;

use crate::appliance::{Mode, Nas, fixed_port};
use crate::cli::Cli;
use crate::components::EXPORT;
use crate::interrupt::Interrupt;
use crate::probe::Probe;
use crate::report::{self, ModeResult};
use crate::say::say;
use crate::workload::client::Client;
use crate::workload::iozone::{self, Spec};

/// How long an appliance may take to serve, and a call to be answered.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the demo and prints its table.
///
/// # Errors
/// Whatever stops it; the message says what to do.
pub fn run(cli: &Cli) -> Result<(), Box<dyn Error>> {
    let modes = if cli.mode.is_empty() { Mode::ALL.to_vec() } else { cli.mode.clone() };
    let spec = if cli.quick { Spec::quick() } else { Spec::standard() };
    let interrupt = Interrupt::watch()?;
    let scratch = scratch(cli.dir.as_deref())?;
    say(format_args!(
        "Fido NAS demo: net, fs and disk domains, {} modes in turn, images in {}",
        modes.len(),
        scratch.path().display()
    ));
    say(format_args!(
        "workload: NFSv3 over TCP on loopback, one connection; sequential phases keep {} calls in flight, random phases 1;\n\
         writes are unstable and end with a commit; every record read is checked\n",
        spec.depth
    ));
    warm_up(scratch.path(), spec.written_bytes(), &interrupt)?;
    let mut results = Vec::new();
    for mode in modes {
        let nas = Nas {
            mode,
            program: std::env::current_exe()?,
            image: scratch.path().join(format!("{}.img", mode.name())),
            disk: None,
            size: cli.size,
            listen: fixed_port(cli.listen)?,
        };
        results.push(run_mode(&nas, &spec, &interrupt)?);
        // The next mode starts with the same free space and page cache.
        fs::remove_file(&nas.image)?;
    }
    say(format_args!("\n{}", report::table(&results)));
    say(format_args!("machine: {}", machine()));
    if let Some(file) = &cli.json {
        write_json(file, &results)?;
        say(format_args!("raw results: {}", file.display()));
    }
    Ok(())
}

/// Writes and removes a file as large as what a mode writes. Memory that a virtual machine has not used yet is slow the
/// first time, and the first mode would pay for it.
fn warm_up(directory: &Path, bytes: u64, interrupt: &Interrupt) -> Result<(), Box<dyn Error>> {
    let path = directory.join("warm-up");
    let failed = |error: std::io::Error| format!("cannot write {}: {error}; try --dir", path.display());
    let bar = progress_bar(bytes >> 20, "warming up");
    let chunk = vec![0; 1 << 20];
    let mut file = fs::File::create(&path).map_err(failed)?;
    for _ in 0..bytes >> 20 {
        interrupt.check()?;
        file.write_all(&chunk).map_err(failed)?;
        bar.inc(1);
    }
    fs::remove_file(&path).map_err(failed)?;
    bar.finish_and_clear();
    Ok(())
}

fn run_mode(nas: &Nas, spec: &Spec, interrupt: &Interrupt) -> Result<ModeResult, Box<dyn Error>> {
    let manager = nas.start(PATIENCE, &|| interrupt.check())?;
    let pids: Vec<String> = manager
        .status()
        .domains
        .iter()
        .map(|domain| format!("{} pid {}", domain.name, domain.pid.unwrap_or_default()))
        .collect();
    say(format_args!("{:<10} serves {}  ({})", nas.mode.name(), url(nas.listen), pids.join(", ")));
    if nas.mode == Mode::Split {
        say(format_args!("           try it while it runs: nfs-ls '{}'", url(nas.listen)));
    }
    let bar = progress_bar(spec.calls(), nas.mode.name());
    let mut client = Client::mount(nas.listen, "/", PATIENCE)?;
    let before = Probe::take(&manager);
    let (mut finished, mut last) = (0, 0);
    let outcomes = iozone::run(&mut client, spec, &mut |record, phase, done| {
        if done == 1 {
            finished += last;
            bar.set_message(format!("{} KiB {}", record >> 10, phase.name()));
        }
        last = done;
        bar.set_position(finished + done);
        interrupt.check()
    })?;
    let cost = Probe::take(&manager).since(&before);
    bar.finish_and_clear();
    drop(client);
    manager.shutdown(PATIENCE)?;
    Ok(ModeResult { mode: nas.mode, outcomes, cost })
}

/// The URL that libnfs's programs take.
pub fn url(address: SocketAddr) -> String {
    format!("nfs://{}{EXPORT}/?nfsport={port}&mountport={port}", address.ip(), port = address.port())
}

fn progress_bar(calls: u64, mode: &'static str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(calls).with_prefix(mode);
    match ProgressStyle::with_template("{prefix:<10} [{bar:40}] {percent:>3}% {msg}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// The processor and what may be compared with it.
fn machine() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':')).map_or("unknown", |m| m.1);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{} x {}, {}", cores, model.trim(), kernel())
}

fn kernel() -> String {
    let name = rustix::system::uname();
    format!("Linux {}", name.release().to_string_lossy())
}

fn write_json(file: &Path, results: &[ModeResult]) -> Result<(), Box<dyn Error>> {
    let modes: Vec<_> = results
        .iter()
        .map(|result| {
            let phases: Vec<_> = result
                .outcomes
                .iter()
                .map(|outcome| {
                    json!({
                        "record_bytes": outcome.record,
                        "phase": outcome.phase.name(),
                        "calls": outcome.calls,
                        "bytes": outcome.bytes,
                        "seconds": outcome.elapsed.as_secs_f64(),
                        "megabytes_per_second": outcome.megabytes_per_second(),
                        "p50_us": outcome.latency.value_at_quantile(0.5),
                        "p99_us": outcome.latency.value_at_quantile(0.99),
                        "p999_us": outcome.latency.value_at_quantile(0.999),
                    })
                })
                .collect();
            json!({
                "mode": result.mode.name(),
                "phases": phases,
                "counters": result.cost.stats,
                "context_switches": result.cost.switches,
                "cpu_seconds": result.cost.cpu.as_secs_f64(),
            })
        })
        .collect();
    let all = json!({ "machine": machine(), "version": env!("CARGO_PKG_VERSION"), "modes": modes });
    fs::write(file, serde_json::to_vec_pretty(&all)?)
        .map_err(|error| format!("cannot write {}: {error}", file.display()))?;
    Ok(())
}

/// A directory of our own, removed with all that is in it at the end.
pub fn scratch(parent: Option<&Path>) -> Result<TempDir, Box<dyn Error>> {
    let parent = parent.map_or_else(std::env::temp_dir, Path::to_path_buf);
    let made = tempfile::Builder::new().prefix("fido-nas-").tempdir_in(&parent);
    made.map_err(|error| format!("cannot make a directory in {}: {error}; try --dir", parent.display()).into())
}
