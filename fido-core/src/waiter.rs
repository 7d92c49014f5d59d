//! How a thread waits for many sources with one sleep.
//!
//! A wait has up to three parts: a few *glances*, which ask nothing but the sources; the *spin*, which looks at the
//! clock and at the peers' published states and offers the processor to others now and then; and the *sleep*. How far
//! it goes in the spin is [`crate::spin`]'s to say, which has the reasons; here is only what needs a clock and a kernel.
//!
//! What a sleep costs: one system call, whatever the number of sources. Before it each source is armed, looked at and
//! disarmed once, in user space (three calls a source, for a lane a handful of cached loads and two stores); at most
//! `PEERS` peers are looked at, in turns. A waker makes one system call per sleep and lane.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::arena::OwnArena;
use crate::assignment::WaitStrategy;
use crate::clock;
use crate::memory::Memory;
use crate::migrate;
use crate::poll_set::PollSet;
use crate::presence::{Presence, Seat, State, this_cpu};
use crate::spin::{Spin, Step, View};
use crate::wait::{PeerView, Source, arm_and_look};

/// Looks at the beginning of a wait that ask nothing but the sources, with one pause instruction each.
const GLANCES: u32 = 8;
/// Rounds of the pause instruction between two looks after that.
const PAUSES: u32 = 4;
/// Peers whose published state is looked at in one wait.
const PEERS: usize = 16;

/// Waits by a [`WaitStrategy`]. One per thread.
#[derive(Debug)]
pub struct Waiter {
    strategy: WaitStrategy,
    set: PollSet,
    spin: Spin,
    /// Looks of the present wait.
    looks: u32,
    /// The present wait has got beyond the glances.
    begun: bool,
    /// Where this thread says what it is doing.
    seat: Option<Seat>,
    /// The peers that were looked at last.
    turn: usize,
    /// Whose counters say how often it slept.
    arena: Option<Arc<OwnArena>>,
}

impl Waiter {
    /// A waiter for one thread.
    ///
    /// # Errors
    /// The kernel's, if there is no descriptor left.
    pub fn new(strategy: WaitStrategy) -> io::Result<Self> {
        Self::among(strategy, 0)
    }

    /// A waiter for one thread, which may be bound to fewer processors than the `processors` on which those run that
    /// it waits for. Spinning can help as long as there is one that it does not take away from them.
    ///
    /// # Errors
    /// The kernel's, if there is no descriptor left.
    pub fn among(strategy: WaitStrategy, processors: usize) -> io::Result<Self> {
        let own = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            strategy,
            set: PollSet::new()?,
            spin: Spin::new(own.max(processors)),
            looks: 0,
            begun: false,
            seat: None,
            turn: 0,
            arena: None,
        })
    }

    /// Belongs to a domain from now on: counts its sleeps in the domain's counters, and says in the domain's arena what
    /// this thread is doing (if that still has a line for it).
    pub fn counting_in(self, memory: &Memory) -> Self {
        Self { arena: Some(memory.arena().clone()), seat: Seat::take(memory.arena()), ..self }
    }

    /// The last round found work.
    pub fn busy(&mut self) {
        if self.looks == 0 {
            return;
        }
        if self.begun {
            self.spin.found(clock::now());
            self.say(State::Running);
        } else if self.strategy == WaitStrategy::Adaptive {
            self.spin.glimpsed(clock::now);
        }
        (self.looks, self.begun) = (0, false);
    }

    /// The last round found nothing: spins for a moment, or sleeps until a source is ready or `timeout` is over.
    /// Poll all sources after it returns, and try again what found no room, for whatever reason it does.
    ///
    /// # Errors
    /// The kernel's, if a source's descriptor cannot be waited for.
    pub fn idle(&mut self, sources: &mut [&mut dyn Source], timeout: Option<Duration>) -> io::Result<()> {
        self.looks = self.looks.saturating_add(1);
        match self.strategy {
            WaitStrategy::Spin => {
                std::hint::spin_loop();
                return Ok(());
            }
            WaitStrategy::Adaptive if self.looks <= GLANCES && self.spin.glances() => {
                std::hint::spin_loop();
                return Ok(());
            }
            WaitStrategy::Adaptive => match self.step(sources) {
                Step::Look => {
                    (0..PAUSES).for_each(|_| std::hint::spin_loop());
                    return Ok(());
                }
                Step::Yield => {
                    let before = clock::now();
                    std::thread::yield_now();
                    self.spin.yielded(before, clock::now() - before);
                    return Ok(());
                }
                Step::Move => {
                    self.part(sources);
                    return Ok(());
                }
                Step::Sleep => {}
            },
            WaitStrategy::Sleep => {}
        }
        self.doze(sources, timeout)
    }

    /// The next step of a wait that has got beyond the glances.
    fn step(&mut self, sources: &mut [&mut dyn Source]) -> Step {
        let now = clock::now();
        if !self.begun {
            self.begun = true;
            let view = self.survey(sources);
            self.spin.begin(now, view);
            let step = self.spin.next(now);
            if step != Step::Sleep {
                self.say(State::Spinning);
            }
            return step;
        }
        self.spin.next(now)
    }

    /// Goes to a processor of which no peer that is awake says that it is there.
    fn part(&mut self, sources: &mut [&mut dyn Source]) {
        let before = clock::now();
        let mut taken = Vec::with_capacity(PEERS);
        self.meet(sources, |peer| {
            let Presence { state, cpu } = peer.presence;
            taken.extend(cpu.filter(|_| matches!(state, State::Running | State::Spinning)));
        });
        let went = migrate::away_from(&taken, |cpu| {
            // Said before it is done: who is left behind sees it, and stays.
            if let Some(seat) = &mut self.seat {
                seat.say(Presence { state: State::Running, cpu });
            }
        });
        self.say(State::Spinning);
        if let Some(arena) = &self.arena {
            arena.stats().moves.add(went.into());
            arena.stats().syscalls.add(if went { 3 } else { 1 });
        }
        self.spin.moved(before, clock::now() - before, went);
    }

    /// Arms every source, looks once more, and sleeps.
    fn doze(&mut self, sources: &mut [&mut dyn Source], timeout: Option<Duration>) -> io::Result<()> {
        self.set.watch(sources)?;
        // What is ready at this look may turn out to be nothing: the spin before it was this wait's only one.
        let slept = if arm_and_look(sources) {
            Ok(())
        } else {
            (self.looks, self.begun) = (0, false);
            self.sleep(sources, timeout)
        };
        sources.iter_mut().for_each(|source| source.disarm());
        slept
    }

    fn sleep(&mut self, sources: &mut [&mut dyn Source], timeout: Option<Duration>) -> io::Result<()> {
        if let Some(arena) = &self.arena {
            arena.stats().sleeps.add(1);
            arena.stats().syscalls.add(1);
        }
        self.say(State::Asleep);
        let before = clock::now();
        let slept = self.set.sleep(timeout);
        let now = clock::now();
        self.say(State::Running);
        if self.strategy == WaitStrategy::Adaptive {
            let mut woken = None;
            self.meet(sources, |peer| woken = woken.max(clock::age(peer.rung, now, now - before)));
            self.spin.slept(now, woken);
        }
        slept
    }

    /// What the peers say, or some of them if there are many: others in the next wait.
    fn survey(&mut self, sources: &mut [&mut dyn Source]) -> View {
        let here = this_cpu();
        let (mut peers, mut idle, mut together, mut crowded) = (0, 0, false, false);
        self.meet(sources, |peer| {
            peers += 1;
            let PeerView { presence: Presence { state, cpu }, .. } = peer;
            idle += usize::from(matches!(state, State::Spinning | State::Asleep));
            let is_here = cpu.is_some() && cpu == here;
            together |= is_here;
            crowded |= is_here && matches!(state, State::Running | State::Spinning);
        });
        View { together, crowded, quiet: peers > 0 && idle == peers }
    }

    /// Meets at most [`PEERS`] sources.
    fn meet(&mut self, sources: &mut [&mut dyn Source], mut look: impl FnMut(PeerView)) {
        let seat = self.seat.as_ref().map(Seat::number);
        let count = sources.len().min(PEERS);
        for turn in 0..count {
            let index = (self.turn + turn) % sources.len();
            sources[index].meet(seat).map(&mut look);
        }
        self.turn = self.turn.wrapping_add(count);
    }

    /// Says in the domain's arena what this thread is doing.
    fn say(&mut self, state: State) {
        if let Some(seat) = &mut self.seat {
            seat.say(Presence { state, cpu: this_cpu() });
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    /// Something to do that turns out to be nothing, ever again.
    struct Restless(crate::bell::Bell);

    impl Source for Restless {
        fn wake_fd(&self) -> std::os::fd::BorrowedFd<'_> {
            std::os::fd::AsFd::as_fd(&self.0)
        }

        fn ready(&mut self) -> bool {
            true
        }
    }

    /// A waiter and the memory that counts its sleeps.
    fn counted(strategy: WaitStrategy) -> (Waiter, Memory) {
        let memory = crate::testing::private_memory(1 << 20);
        (Waiter::new(strategy).unwrap().counting_in(&memory), memory)
    }

    #[test]
    fn spinners_never_sleep() {
        let (mut waiter, memory) = counted(WaitStrategy::Spin);
        for _ in 0..10 {
            waiter.idle(&mut [], Some(Duration::ZERO)).unwrap();
        }
        assert_eq!(memory.stats().sleeps.get(), 0);
    }

    #[test]
    fn a_thread_that_is_bound_still_spins_for_peers_that_run_elsewhere() {
        let bound = std::thread::spawn(|| {
            let mut one = rustix::thread::CpuSet::new();
            one.set(crate::topology::allowed().unwrap()[0] as usize);
            rustix::thread::sched_setaffinity(None, &one).unwrap();
            [2, 1, 0].map(|processors| Waiter::among(WaitStrategy::Adaptive, processors).unwrap().spin.may_spin())
        });
        assert_eq!(bound.join().unwrap(), [true, false, false]);
    }

    /// A lane whose other side says where it runs.
    struct Peer(crate::bell::Bell, Presence);

    impl Source for Peer {
        fn wake_fd(&self) -> std::os::fd::BorrowedFd<'_> {
            std::os::fd::AsFd::as_fd(&self.0)
        }

        fn meet(&mut self, _seat: Option<u32>) -> Option<PeerView> {
            Some(PeerView { presence: self.1, rung: 0 })
        }
    }

    #[test]
    fn a_thread_goes_only_where_no_peer_is_awake() {
        let cpus = crate::topology::allowed().unwrap();
        for (state, goes) in [(State::Running, false), (State::Spinning, false), (State::Asleep, cpus.len() > 1)] {
            let (mut waiter, memory) = counted(WaitStrategy::Adaptive);
            let peer = |cpu: &u32| {
                let presence = Presence { state, cpu: Some(u16::try_from(*cpu).unwrap()) };
                Peer(crate::bell::Bell::new().unwrap(), presence)
            };
            let mut peers: Vec<_> = cpus.iter().map(peer).collect();
            let mut sources: Vec<_> = peers.iter_mut().map(|peer| peer as &mut dyn Source).collect();
            waiter.part(&mut sources);
            assert_eq!(memory.stats().moves.get(), u64::from(goes), "{state:?}");
            let seat = waiter.seat.as_ref().unwrap().number();
            let said = crate::arena::presence_of(memory.arena().window(), seat).unwrap();
            assert!(said.state == State::Spinning && said.cpu.is_some(), "{said:?}");
        }
    }

    #[test]
    fn a_wait_lasts_until_a_sleep_or_work() {
        let (mut waiter, memory) = counted(WaitStrategy::Sleep);
        let sleeps = || memory.stats().sleeps.get();
        let mut source = Restless(crate::bell::Bell::new().unwrap());
        waiter.idle(&mut [&mut source], None).unwrap();
        assert!(sleeps() == 0 && waiter.looks == 1);
        waiter.busy();
        assert!(waiter.looks == 0);
        waiter.idle(&mut [], Some(Duration::ZERO)).unwrap();
        assert!(sleeps() == 1 && waiter.looks == 0);
    }

    #[test]
    fn a_sleep_that_fails_leaves_nothing_armed() {
        struct Armed(crate::bell::Bell, bool);

        impl Source for Armed {
            fn wake_fd(&self) -> std::os::fd::BorrowedFd<'_> {
                std::os::fd::AsFd::as_fd(&self.0)
            }

            fn wake_id(&self) -> Option<crate::wait::WakeId> {
                Some(self.0.id())
            }

            fn arm(&mut self) {
                self.1 = true;
            }

            fn disarm(&mut self) {
                self.1 = false;
            }
        }

        let (mut waiter, _memory) = counted(WaitStrategy::Sleep);
        let mut source = Armed(crate::bell::Bell::new().unwrap(), false);
        waiter.idle(&mut [&mut source], Some(Duration::ZERO)).unwrap();
        waiter.set.spoil();
        waiter.idle(&mut [&mut source], Some(Duration::ZERO)).unwrap_err();
        assert!(!source.1 && waiter.looks == 0);
    }
}
