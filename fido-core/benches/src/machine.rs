//! What results depend on: processor, kernel, cores, load, commit.

use std::fmt;
use std::fs;
use std::process::Command;
use std::time::Duration;

use rustix::thread::CpuSet;
use serde::Serialize;

use crate::Failure;

/// The machine that a benchmark runs on, and what runs there.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// What the processor calls itself.
    pub cpu: String,
    /// The cores of the leading and of the other side; `None` if nobody was pinned to one.
    pub cores: Option<(usize, usize)>,
    /// How many cores the process may use.
    pub processors: usize,
    /// The kernel's release.
    pub kernel: String,
    /// The load averages of 1, 5 and 15 minutes before the run.
    pub load: String,
    /// The commit in the working directory, with `-dirty` if something there differs from it.
    pub commit: String,
}

impl Machine {
    /// This machine, with the two sides of a benchmark on these cores.
    pub fn here(cores: Option<(usize, usize)>) -> Self {
        let file = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let info = file("/proc/cpuinfo");
        let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let load = file("/proc/loadavg");
        Self {
            cpu: model.map_or_else(|| "unknown".into(), |(_, name)| name.trim().to_owned()),
            cores,
            processors: allowed_cores().map_or(0, |cores| cores.len()),
            kernel: file("/proc/sys/kernel/osrelease").trim().to_owned(),
            load: load.split(' ').take(3).collect::<Vec<_>>().join(" "),
            commit: commit().unwrap_or_else(|| "unknown".into()),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cores = self.cores.map_or("not pinned".into(), |(a, b)| format!("{a} and {b}"));
        writeln!(f, "CPU     {}", self.cpu)?;
        writeln!(f, "cores   {cores} of {}; load before the run {}", self.processors, self.load)?;
        writeln!(f, "kernel  {}", self.kernel)?;
        write!(f, "commit  {}", self.commit)
    }
}

fn commit() -> Option<String> {
    let output = Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=12"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}

/// Processor time that this process has used, in all its threads.
pub fn process_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// The cores that this process may use, in ascending order.
///
/// # Errors
/// The kernel's.
pub fn allowed_cores() -> Result<Vec<usize>, Failure> {
    let set = rustix::thread::sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect())
}

/// The first and the last core that this process may use, if these are two.
///
/// # Errors
/// The kernel's.
pub fn two_cores() -> Result<Option<(usize, usize)>, Failure> {
    let cores = allowed_cores()?;
    Ok(cores.first().copied().zip(cores.last().copied()).filter(|(first, last)| first != last))
}

/// Keeps the calling thread, and the threads that it starts, on a core; `None` changes nothing.
///
/// # Errors
/// The kernel's, if this process may not use that core.
pub fn pin(core: Option<usize>) -> Result<(), Failure> {
    let Some(core) = core else { return Ok(()) };
    keep_on(&[core]).map_err(|error| format!("core {core}: {error}").into())
}

/// Keeps the calling thread, and the threads that it starts, on these cores.
///
/// # Errors
/// The kernel's, if this process may use none of them.
pub fn keep_on(cores: &[usize]) -> Result<(), Failure> {
    let mut set = CpuSet::new();
    for core in cores {
        if *core >= CpuSet::MAX_CPU {
            return Err(format!("there are at most {}", CpuSet::MAX_CPU).into());
        }
        set.set(*core);
    }
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}
