//! What an appliance uses when there is nothing to do: three domains in a row under the real manager.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use conn_mgr::manager::{Manager, Options};
use conn_mgr::manifest::{Domain as Described, Link, Manifest};
use fido_core::assignment::WaitStrategy;
use fido_core::domain::{Domain, Notice};
use fido_core::wait::Source;

use crate::Failure;
use crate::other_side::Program;

/// The domains, each linked to the next.
const NAMES: [&str; 3] = ["net", "fs", "disk"];
/// How long the appliance may take to start, and to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the idle appliance used.
pub struct Idle {
    /// Processor time of all domains per time.
    pub cores: f64,
    /// Sleeps a second, of all domains.
    pub sleeps: f64,
}

/// Starts the appliance, leaves it alone for `time`, and ends it.
///
/// # Errors
/// If it does not start or end.
pub fn measure(wait: WaitStrategy, time: Duration, domain: &Program<'_>) -> Result<Idle, Failure> {
    let program = std::env::current_exe()?;
    let mut manifest = Manifest::new("idle");
    for name in NAMES {
        let mut described = Described::new(name, &program);
        described.args = domain.0.iter().map(|word| (*word).to_owned()).collect();
        (described.arena, described.wait) = (1 << 20, wait);
        manifest.domains.push(described);
    }
    for pair in NAMES.windows(2) {
        manifest.links.push(Link::new(format!("{}-{}", pair[0], pair[1]), pair[0], pair[1]));
    }
    let manager = Manager::start(manifest, Options::default())?;
    let status = manager.wait_ready(PATIENCE)?;
    let pids: Vec<u32> = status.domains.iter().filter_map(|domain| domain.pid).collect();
    // What a start leaves behind is not idling.
    std::thread::sleep(time / 10);
    let sleeps = || NAMES.iter().filter_map(|name| manager.stats(name)).map(|stats| stats.sleeps).sum::<u64>();
    let (before, slept, began) = (cpu_time(&pids)?, sleeps(), Instant::now());
    std::thread::sleep(time);
    let elapsed = began.elapsed().as_secs_f64();
    let used = cpu_time(&pids)?.saturating_sub(before);
    let sleeps = (sleeps() - slept) as f64 / elapsed;
    manager.shutdown(PATIENCE)?;
    Ok(Idle { cores: used.as_secs_f64() / elapsed, sleeps })
}

/// One of its domains: takes its lanes and serves them until the end.
///
/// # Errors
/// If it cannot join the appliance.
pub fn domain() -> Result<(), Failure> {
    let domain = Domain::join()?;
    let mut lanes = Vec::new();
    for link in &domain.assignment().links {
        lanes.extend(domain.take_lanes(&link.name)?);
    }
    let (mut waiter, mut notices) = (domain.waiter()?, domain.notices()?);
    domain.ready(&[])?;
    loop {
        let mut busy = false;
        for lane in &mut lanes {
            busy |= lane.change().is_some();
            busy |= lane.recv().is_some();
        }
        match notices.poll() {
            Some(Notice::Shutdown) => return Ok(()),
            Some(Notice::Died(_)) => busy = true,
            None => {}
        }
        if busy {
            waiter.busy();
            continue;
        }
        lanes.iter_mut().for_each(|lane| lane.flush());
        let mut sources: Vec<&mut dyn Source> = lanes.iter_mut().map(|lane| lane as &mut dyn Source).collect();
        sources.push(&mut notices);
        waiter.idle(&mut sources, None)?;
    }
}

/// Processor time of all threads of some processes, as the scheduler has counted it.
fn cpu_time(pids: &[u32]) -> Result<Duration, Failure> {
    let mut nanoseconds = 0;
    for pid in pids {
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let path: PathBuf = task?.path().join("schedstat");
            let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            let ran = text.split_whitespace().next().and_then(|field| field.parse::<u64>().ok());
            nanoseconds += ran.ok_or_else(|| format!("{}: {text:?} is no schedstat", path.display()))?;
        }
    }
    Ok(Duration::from_nanos(nanoseconds))
}
