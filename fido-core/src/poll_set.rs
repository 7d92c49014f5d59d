//! The descriptors that a thread sleeps on: an epoll set that is kept from sleep to sleep.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;

use crate::wait::{Source, WakeId};

/// Events taken with one sleep. Which ones does not matter, all sources are looked at; but what is left over ends the
/// next sleep at once.
const EVENTS: usize = 64;

/// One system call a sleep, whatever the number of sources; one more for each source that is new.
#[derive(Debug)]
pub(crate) struct PollSet {
    epoll: OwnedFd,
    watched: Vec<Watched>,
}

/// A source as it was when it was entered.
#[derive(Debug, PartialEq, Eq)]
struct Watched {
    fd: RawFd,
    edge: bool,
    id: Option<WakeId>,
}

impl Watched {
    fn new(source: &dyn Source) -> Self {
        Self { fd: source.wake_fd().as_raw_fd(), edge: source.edge_triggered(), id: source.wake_id() }
    }
}

impl PollSet {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(CreateFlags::CLOEXEC)?, watched: Vec::new() })
    }

    /// Makes the set that of `sources`. Sources that come behind those of last time cost a system call each, as do those
    /// that cannot be told from others ([`Source::wake_id`]); if any is gone or another, all do, for then the set is
    /// made anew: a descriptor may be closed or stand for something else by now.
    pub(crate) fn watch(&mut self, sources: &[&mut dyn Source]) -> io::Result<()> {
        if !self.is_still_of(sources)? {
            *self = Self::new()?;
        }
        for source in &sources[self.watched.len()..] {
            self.enter(&**source)?;
            self.watched.push(Watched::new(&**source));
        }
        Ok(())
    }

    /// Whether all that is in the set is what `sources` begin with.
    fn is_still_of(&self, sources: &[&mut dyn Source]) -> io::Result<bool> {
        if self.watched.len() > sources.len() {
            return Ok(false);
        }
        for (watched, source) in self.watched.iter().zip(sources) {
            // The kernel takes a closed descriptor out of the set by itself: what can be entered is another one.
            if *watched != Watched::new(&**source) || watched.id.is_none() && self.enter(&**source)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Enters a source's descriptor; whether it was not there yet. Two sources may share one.
    fn enter(&self, source: &dyn Source) -> io::Result<bool> {
        let flags = EventFlags::IN | if source.edge_triggered() { EventFlags::ET } else { EventFlags::empty() };
        match epoll::add(self.epoll.as_fd(), source.wake_fd(), EventData::new_u64(0), flags) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Makes every sleep fail: what is slept on is no set of the kernel's any more.
    #[cfg(test)]
    pub(crate) fn spoil(&mut self) {
        self.epoll = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).expect("a descriptor");
    }

    /// Sleeps until a descriptor is ready or `timeout` is over.
    pub(crate) fn sleep(&self, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = timeout.and_then(|limit| rustix::event::Timespec::try_from(limit).ok());
        let mut events = [const { std::mem::MaybeUninit::uninit() }; EVENTS];
        match epoll::wait(&self.epoll, &mut events[..], timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::bell::{Bell, Ringer};
    use std::os::fd::BorrowedFd;
    use std::time::Instant;

    /// Longer than anything here takes.
    const PATIENCE: Duration = Duration::from_secs(30);

    struct Port {
        bell: Bell,
        edge: bool,
        /// It says which descriptor it has.
        told: bool,
    }

    impl Source for Port {
        fn wake_fd(&self) -> BorrowedFd<'_> {
            self.bell.as_fd()
        }

        fn wake_id(&self) -> Option<WakeId> {
            self.told.then(|| self.bell.id())
        }

        fn edge_triggered(&self) -> bool {
            self.edge
        }
    }

    fn port(edge: bool, told: bool) -> Port {
        Port { bell: Bell::new().unwrap(), edge, told }
    }

    fn watch(set: &mut PollSet, ports: &mut [Port]) {
        let sources: Vec<_> = ports.iter_mut().map(|port| port as &mut dyn Source).collect();
        set.watch(&sources).unwrap();
    }

    /// Whether anything wakes a sleeper now.
    fn wakes(set: &PollSet) -> bool {
        let mut events = [const { std::mem::MaybeUninit::uninit() }; EVENTS];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        !epoll::wait(&set.epoll, &mut events[..], Some(&now)).unwrap().0.is_empty()
    }

    /// Each of `ports` alone wakes.
    fn all_wake(set: &PollSet, ports: &[Port]) {
        assert!(!wakes(set), "nothing has rung");
        for (number, port) in ports.iter().enumerate() {
            port.bell.ring();
            assert!(wakes(set), "number {number} of {}", ports.len());
            port.bell.reset();
        }
    }

    /// With both ways to trigger, of sources that say which descriptor they have and that do not.
    fn kinds() -> impl Iterator<Item = (bool, bool)> {
        [(false, false), (false, true), (true, false), (true, true)].into_iter()
    }

    #[test]
    fn it_follows_sources_that_come_and_go_and_change_places() {
        for (edge, told) in kinds() {
            let mut set = PollSet::new().unwrap();
            let mut ports: Vec<_> = (0..3).map(|_| port(edge, told)).collect();
            watch(&mut set, &mut ports);
            all_wake(&set, &ports);
            ports.extend((0..2).map(|_| port(edge, told)));
            watch(&mut set, &mut ports);
            all_wake(&set, &ports);
            let gone = ports.split_off(2);
            watch(&mut set, &mut ports);
            all_wake(&set, &ports);
            gone.iter().for_each(|port| port.bell.ring());
            assert!(!wakes(&set), "what is gone wakes nobody");
            ports.swap(0, 1);
            ports[1] = port(edge, told);
            watch(&mut set, &mut ports);
            all_wake(&set, &ports);
        }
    }

    #[test]
    fn a_descriptor_that_has_the_number_of_a_closed_one_is_another() {
        for (edge, told) in kinds() {
            let mut set = PollSet::new().unwrap();
            let mut ports = vec![port(edge, told)];
            watch(&mut set, &mut ports);
            for _ in 0..3 {
                // Other tests take numbers too: the new descriptor is put to the old one's, which closes that.
                let mut place = ports.remove(0).bell.into_fd();
                rustix::io::dup2(Bell::new().unwrap().as_fd(), &mut place).unwrap();
                ports.push(Port { bell: Bell::from_fd(place), edge, told });
                watch(&mut set, &mut ports);
                all_wake(&set, &ports);
            }
        }
    }

    #[test]
    fn what_is_ready_beyond_the_events_of_one_sleep_ends_the_next() {
        let mut set = PollSet::new().unwrap();
        let mut ports: Vec<_> = (0..EVENTS + 1).map(|_| port(true, true)).collect();
        watch(&mut set, &mut ports);
        ports.iter().for_each(|port| port.bell.ring());
        for _ in 0..2 {
            let before = Instant::now();
            set.sleep(Some(PATIENCE)).unwrap();
            assert!(before.elapsed() < PATIENCE, "it slept although a bell had rung");
        }
        assert!(!wakes(&set), "each edge once");
    }
}
