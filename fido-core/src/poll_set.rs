//! The descriptors that a thread sleeps on: an epoll set that is kept from sleep to sleep.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;

use crate::wait::Source;

/// Events taken with one sleep. Which ones does not matter, all sources are looked at; but what is left over ends the
/// next sleep at once.
const EVENTS: usize = 64;

/// One system call a sleep, whatever the number of sources; one more for each source that is new.
#[derive(Debug)]
pub(crate) struct PollSet {
    epoll: OwnedFd,
    watched: Vec<(RawFd, bool)>,
}

impl PollSet {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(CreateFlags::CLOEXEC)?, watched: Vec::new() })
    }

    /// Makes the set that of `sources`. Sources that come behind those of last time cost a system call each; if any is
    /// gone or another, all do, for then the set is made anew: a descriptor may be closed or stand for something else
    /// by now.
    pub(crate) fn watch(&mut self, sources: &[&mut dyn Source]) -> io::Result<()> {
        let as_before = self.watched.len() <= sources.len()
            && self.watched.iter().zip(sources).all(|(watched, source)| *watched == what(&**source));
        if !as_before {
            *self = Self::new()?;
        }
        for source in &sources[self.watched.len()..] {
            let (fd, edge) = what(&**source);
            let flags = EventFlags::IN | if edge { EventFlags::ET } else { EventFlags::empty() };
            match epoll::add(self.epoll.as_fd(), source.wake_fd(), EventData::new_u64(0), flags) {
                // Two sources may share a descriptor.
                Ok(()) | Err(Errno::EXIST) => self.watched.push((fd, edge)),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
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

fn what(source: &dyn Source) -> (RawFd, bool) {
    (source.wake_fd().as_raw_fd(), source.edge_triggered())
}
