//! A crew of serving threads under a load that comes and goes: how many threads serve, and what that brings.

use std::time::{Duration, Instant};

use fido_core::assignment::WaitStrategy;
use fido_core::crew::{Crew, Job, Limits};
use fido_core::lane::Lane;
use fido_core::testing::{Node, mesh};
use fido_core::wait::Source;
use fido_core::waiter::Waiter;

use super::regimes::{self, ARENA, ASK, send, work_for};
use crate::Failure;

/// Lanes that are served, and what is under way on each.
const LANES: usize = 4;
const DEPTH: usize = 16;
/// What the server does for each question.
const WORK: Duration = Duration::from_micros(5);
/// A thread that has had nothing to do for so long may go.
const LULL: Duration = Duration::from_millis(10);

/// What a phase came to.
#[derive(Debug, Clone)]
pub struct Phase {
    /// What went on.
    pub name: &'static str,
    /// Answers per second.
    pub rate: f64,
    /// Processor time per time.
    pub cores: f64,
    /// Serving threads at its end.
    pub threads: usize,
    /// Threads taken on and let go in it.
    pub changes: (u64, u64),
}

struct Echo(Lane);

impl Job for Echo {
    fn name(&self) -> String {
        self.0.name().into()
    }

    fn poll(&mut self) -> bool {
        let mut busy = self.0.change().is_some();
        // Bounded, or a client that asks as fast as it is answered would keep the thread from the other lanes.
        for _ in 0..DEPTH {
            let Some(Ok((head, _))) = self.0.recv() else { break };
            work_for(WORK);
            // A client that is gone needs no answer.
            let _ = send(&mut self.0, head.kind);
            busy = true;
        }
        busy
    }

    fn flush(&mut self) {
        self.0.flush();
    }

    fn sources<'a>(&'a mut self, all: &mut Vec<&'a mut dyn Source>) {
        all.push(&mut self.0);
    }
}

/// Floods a crew of one to `most` threads, lets it rest, and floods it again.
///
/// # Errors
/// If the system has no threads or descriptors left.
pub fn measure(most: usize, time: Duration) -> Result<Vec<Phase>, Failure> {
    let [server, client] = <[Node; 2]>::try_from(mesh(2, &[(0, 1); LANES], 64, ARENA)).map_err(|_| "two domains")?;
    let memory = server.memory.clone();
    let make_waiter = move || Ok(Waiter::new(WaitStrategy::Adaptive)?.counting_in(&memory));
    let jobs = server.lanes.into_iter().map(Echo).collect();
    let crew = Crew::start(Limits { least: 1, most, lull: LULL }, make_waiter, jobs)?;
    let mut waiter = Waiter::new(WaitStrategy::Adaptive)?.counting_in(&client.memory);
    let (mut lanes, mut under_way) = (client.lanes, [0; LANES]);
    let mut phases = Vec::new();
    for (name, flooded) in [("rest", 0), ("one lane", 1), ("all lanes", LANES), ("rest again", 0), ("all again", LANES)]
    {
        let (before, cpu, began) = (crew.counts(), regimes::cpu_time(), Instant::now());
        let mut answers = 0;
        // A phase ends when its time is over and everything is answered.
        while began.elapsed() < time || under_way.iter().any(|under_way| *under_way > 0) {
            if flooded == 0 {
                std::thread::sleep(time / 10);
            }
            let mut busy = false;
            for (lane, under_way) in lanes.iter_mut().zip(&mut under_way) {
                while let Some(Ok(_)) = lane.recv() {
                    (*under_way, answers, busy) = (*under_way - 1, answers + 1, true);
                }
            }
            for (lane, under_way) in lanes.iter_mut().zip(&mut under_way).take(flooded) {
                while *under_way < DEPTH && began.elapsed() < time {
                    send(lane, ASK)?;
                    (*under_way, busy) = (*under_way + 1, true);
                }
            }
            if busy {
                waiter.busy();
            } else if flooded > 0 {
                lanes.iter_mut().for_each(Lane::flush);
                let mut sources: Vec<_> = lanes.iter_mut().map(|lane| lane as &mut dyn Source).collect();
                waiter.idle(&mut sources, Some(Duration::from_secs(1)))?;
            }
        }
        let (after, elapsed) = (crew.counts(), began.elapsed().as_secs_f64());
        phases.push(Phase {
            name,
            rate: f64::from(answers) / elapsed,
            cores: (regimes::cpu_time() - cpu).as_secs_f64() / elapsed,
            threads: after.threads,
            changes: (after.taken_on - before.taken_on, after.let_go - before.let_go),
        });
    }
    if let Some(failure) = crew.failures().pop() {
        return Err(format!("{}: {}", failure.what, failure.message).into());
    }
    crew.stop();
    Ok(phases)
}
