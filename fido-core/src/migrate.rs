//! Moving the calling thread to another processor, once: where it may run stays as it is.

use std::fs;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::presence::this_cpu;
use crate::topology::list;

/// Moves to a processor that this thread may use, that is not its present one and not among `taken`; one with the same
/// last-level cache if there is such, and which of several is the kernel's choice. `announce` is told before: the
/// number, or `None` if there are several. Returns whether it has moved.
///
/// The thread is bound to the others for a moment, and then to what it was bound to before: what somebody else has bound
/// it to in that moment (some 50 µs if the other processor idles) is lost.
pub(crate) fn away_from(taken: &[u16], announce: impl FnOnce(Option<u16>)) -> bool {
    let (Some(here), Ok(allowed)) = (this_cpu(), sched_getaffinity(None)) else { return false };
    let usable = |cpu: &usize| allowed.is_set(*cpu);
    let free = |cpu: &usize| *cpu != usize::from(here) && !taken.iter().any(|taken| usize::from(*taken) == *cpu);
    let mut candidates: Vec<usize> = (0..CpuSet::MAX_CPU).filter(usable).filter(free).collect();
    if candidates.len() > 1 {
        let near = near(here);
        if candidates.iter().any(|cpu| near.contains(cpu)) {
            candidates.retain(|cpu| near.contains(cpu));
        }
    }
    if candidates.is_empty() {
        return false;
    }
    announce(if let [cpu] = candidates[..] { u16::try_from(cpu).ok() } else { None });
    let mut others = CpuSet::new();
    candidates.iter().for_each(|cpu| others.set(*cpu));
    let went = sched_setaffinity(None, &others).is_ok();
    // Only if processors have been taken away since, and then the kernel has seen to it.
    let _ = sched_setaffinity(None, &allowed);
    went
}

/// The processors that share the last-level cache of `cpu`; none if the system does not say.
fn near(cpu: u16) -> Vec<usize> {
    let read = |index| {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/cache/index{index}/shared_cpu_list");
        list::parse(fs::read_to_string(path).ok()?.trim()).ok()
    };
    let cpus = (0..=4).rev().find_map(read).unwrap_or_default();
    cpus.into_iter().map(|cpu| cpu as usize).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs in a thread of its own, which may be bound.
    fn bound(cpus: &[u32], test: impl FnOnce() + Send + 'static) {
        let mut set = CpuSet::new();
        cpus.iter().for_each(|cpu| set.set(*cpu as usize));
        let thread = std::thread::spawn(move || {
            sched_setaffinity(None, &set).unwrap();
            test();
            assert_eq!(sched_getaffinity(None).unwrap(), set, "bound as before");
        });
        thread.join().unwrap();
    }

    #[test]
    fn a_thread_moves_and_stays_free_to_run_where_it_could() {
        let allowed = crate::topology::allowed().unwrap();
        let several = allowed.len() > 1;
        bound(&allowed, move || {
            let mut announced = None;
            assert_eq!(away_from(&[], |cpu| announced = Some(cpu)), several);
            assert_eq!(announced.is_some(), several);
        });
    }

    #[test]
    fn there_is_nowhere_to_go_from_the_only_processor_nor_when_the_others_are_taken() {
        let allowed = crate::topology::allowed().unwrap();
        let silent = |_| panic!("nothing to announce");
        bound(&allowed[..1], move || assert!(!away_from(&[], silent)));
        let taken: Vec<u16> = allowed.iter().map(|cpu| u16::try_from(*cpu).unwrap()).collect();
        bound(&allowed, move || assert!(!away_from(&taken, silent)));
    }
}
