//! What a run costs: the domains' own counters and the kernel's accounting of their processes.

use std::fs;
use std::time::Duration;

use conn_mgr::Manager;
use fido_core::stats::Snapshot;

/// Sums over all domains of an appliance since their start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Probe {
    /// The domains' counters.
    pub stats: Snapshot,
    /// Context switches, voluntary and not.
    pub switches: u64,
    /// Processor time, user and kernel.
    pub cpu: Duration,
}

impl Probe {
    /// The sums now. Processes that have died since are missing from the kernel's part.
    pub fn take(manager: &Manager) -> Self {
        let mut probe = Self::default();
        for domain in manager.status().domains {
            if let Some(stats) = manager.stats(&domain.name) {
                probe.stats = probe.stats.plus(&stats);
            }
            if let Some(pid) = domain.pid {
                probe.switches += switches(pid);
                probe.cpu += cpu(pid).unwrap_or_default();
            }
        }
        probe
    }

    /// What has come about since `before`.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            stats: self.stats.since(&before.stats),
            switches: self.switches.saturating_sub(before.switches),
            cpu: self.cpu.saturating_sub(before.cpu),
        }
    }
}

/// Context switches of all threads of a process (proc(5), `status`).
fn switches(pid: u32) -> u64 {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    let statuses = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
    statuses.map(|status| status.lines().filter_map(switches_line).sum::<u64>()).sum()
}

fn switches_line(line: &str) -> Option<u64> {
    let (name, value) = line.split_once(':')?;
    name.ends_with("ctxt_switches").then(|| value.trim().parse().ok())?
}

/// Processor time of a process (proc(5), `stat`, fields 14 and 15).
fn cpu(pid: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may itself hold spaces and parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let ticks: u64 = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_run() {
        let pid = std::process::id();
        std::thread::sleep(Duration::from_millis(1));
        assert!(switches(pid) > 0);
        assert!(cpu(pid).is_some());
        assert_eq!((switches(u32::MAX), cpu(u32::MAX)), (0, None));
    }
}
