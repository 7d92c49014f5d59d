//! One connection with xenstored: a request at a time, its reply, and the watch events in between.
//!
//! A request and its reply are awaited under one lock. Watch events that come meanwhile are queued, and an eventfd
//! tells whoever waits for them that they are there. After a missed deadline or a packet that makes no sense nobody can
//! know what the next bytes belong to: the connection is then broken for good.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::error::{Code, StoreError};
use super::wire::{self, Decoder, Kind, Packet};
use crate::bell::{Bell, Ringer};
#[cfg(feature = "libxen")]
use crate::platform::xen::libxen::plain::Plain;

/// Watch events that wait to be taken. Beyond it, the oldest is dropped and [`WatchEvent::Lost`] stands for it.
pub const MAX_QUEUED_EVENTS: usize = 4096;

/// What a watch reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchEvent {
    /// A node under a watch may have changed, or the watch is new.
    Changed {
        /// The node.
        path: String,
        /// The token of the watch.
        token: String,
    },
    /// More has changed than was remembered: look at everything.
    Lost,
}

/// A connection. Shared by all threads.
#[derive(Debug)]
pub(super) struct Connection {
    fd: OwnedFd,
    patience: Duration,
    state: Mutex<State>,
    /// Rung when an event has been queued.
    events: Bell,
    /// Another connection, for what can be asked by way of it.
    #[cfg(feature = "libxen")]
    pub(super) plain: Option<Plain>,
}

#[derive(Debug, Default)]
struct State {
    decoder: Decoder,
    /// A packet that is no event, and has not been asked for yet.
    held: Option<Packet>,
    queue: VecDeque<WatchEvent>,
    /// The number of the latest request.
    request: u32,
    is_broken: bool,
}

impl Connection {
    /// Over a connected socket or an open device.
    pub(super) fn new(fd: OwnedFd, patience: Duration) -> Result<Self, StoreError> {
        let flags = rustix::fs::fcntl_getfl(&fd).map_err(StoreError::system("examine the connection"))?;
        rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)
            .map_err(StoreError::system("set up the connection"))?;
        let events = Bell::new().map_err(|source| StoreError::System { step: "make an eventfd", source })?;
        Ok(Self {
            fd,
            patience,
            state: Mutex::default(),
            events,
            #[cfg(feature = "libxen")]
            plain: None,
        })
    }

    /// Sends a request and waits for the content of its reply.
    pub(super) fn request(&self, kind: Kind, transaction: u32, content: Vec<u8>) -> Result<Vec<u8>, StoreError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.is_broken {
            return Err(StoreError::Broken);
        }
        state.request = state.request.wrapping_add(1);
        let packet = Packet { kind, request: state.request, transaction, content };
        let bytes = packet.encode()?;
        let result = self.exchange(&mut state, &packet, &bytes);
        state.is_broken |= result.as_ref().is_err_and(|error| !error.leaves_connection_usable());
        // Events that came together with the reply, a refusal too, would otherwise lie in the decoder, and nothing would
        // tell of them.
        if !state.is_broken
            && let Err(error) = self.queue_events(&mut state)
        {
            state.is_broken = true;
            self.events.ring();
            return Err(error);
        }
        if state.is_broken {
            // Whoever waits for events waits in vain.
            self.events.ring();
        }
        result
    }

    fn exchange(&self, state: &mut State, request: &Packet, bytes: &[u8]) -> Result<Vec<u8>, StoreError> {
        let deadline = Instant::now() + self.patience;
        self.send(bytes, request.kind, deadline)?;
        let packet = self.receive(state, deadline)?.ok_or(StoreError::Timeout { waited: self.patience })?;
        // The kernel's device answers watch requests itself, in some versions without their number.
        let is_kernels = packet.request == 0 && matches!(packet.kind, Kind::Watch | Kind::Unwatch);
        if packet.request != request.request && !is_kernels {
            return Err(StoreError::WrongReply { sent: request.kind, received: packet.kind });
        }
        match packet.kind {
            Kind::Error => Err(StoreError::refused(request, Code::of(wire::string(&packet.content)?))),
            kind if kind == request.kind => Ok(packet.content),
            kind => Err(StoreError::WrongReply { sent: request.kind, received: kind }),
        }
    }

    fn send(&self, mut bytes: &[u8], kind: Kind, deadline: Instant) -> Result<(), StoreError> {
        let is_whole = |left: &[u8], all: usize| left.len() == all;
        let all = bytes.len();
        while !bytes.is_empty() {
            match rustix::io::write(&self.fd, bytes) {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    if !self.wait(PollFlags::OUT, Some(deadline))? {
                        return Err(StoreError::Timeout { waited: self.patience });
                    }
                }
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(StoreError::Gone),
                // The kernel's device refuses a watch by failing the write: the rest of the connection is sound.
                Err(errno) if matches!(kind, Kind::Watch | Kind::Unwatch) && is_whole(bytes, all) => {
                    return Err(StoreError::Refused {
                        operation: kind,
                        path: String::new(),
                        code: Code::of_errno(errno),
                    });
                }
                Err(errno) => return Err(StoreError::system("write to the connection")(errno)),
            }
        }
        Ok(())
    }

    /// The next packet that is no watch event; those are queued. `None` at the deadline.
    fn receive(&self, state: &mut State, deadline: Instant) -> Result<Option<Packet>, StoreError> {
        loop {
            self.queue_events(state)?;
            if let Some(packet) = state.held.take() {
                return Ok(Some(packet));
            }
            if !self.read(state)? && !self.wait(PollFlags::IN, Some(deadline))? {
                return Ok(None);
            }
        }
    }

    /// Reads what is there; whether there was something.
    fn read(&self, state: &mut State) -> Result<bool, StoreError> {
        let mut bytes = [0; wire::HEADER_BYTES + wire::MAX_PAYLOAD_BYTES];
        match rustix::io::read(&self.fd, &mut bytes) {
            Ok(0) => Err(StoreError::Gone),
            Ok(count) => {
                state.decoder.push(bytes.get(..count).unwrap_or_default());
                Ok(true)
            }
            Err(Errno::AGAIN) => Ok(false),
            Err(Errno::INTR) => Ok(true),
            Err(Errno::PIPE | Errno::CONNRESET) => Err(StoreError::Gone),
            Err(errno) => Err(StoreError::system("read from the connection")(errno)),
        }
    }

    fn queue(&self, state: &mut State, packet: &Packet) -> Result<(), StoreError> {
        let (path, token) = wire::watch_event(&packet.content)?;
        if state.queue.len() >= MAX_QUEUED_EVENTS {
            state.queue.clear();
            state.queue.push_back(WatchEvent::Lost);
        }
        state.queue.push_back(WatchEvent::Changed { path: path.to_owned(), token: token.to_owned() });
        self.events.ring();
        Ok(())
    }

    /// Waits for an event; `None` when the time is over.
    pub(super) fn wait_event(&self, deadline: Option<Instant>) -> Result<Option<WatchEvent>, StoreError> {
        loop {
            if let Some(event) = self.poll_event()? {
                return Ok(Some(event));
            }
            if !self.wait(PollFlags::IN, deadline)? {
                return Ok(None);
            }
        }
    }

    /// The next event, if there is one now.
    pub(super) fn poll_event(&self) -> Result<Option<WatchEvent>, StoreError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // Reset before the look: what is queued after it rings again.
        self.events.reset();
        if state.queue.is_empty() && !state.is_broken {
            let result = self.take_events(&mut state);
            if let Err(error) = result {
                state.is_broken = true;
                return Err(error);
            }
        }
        match state.queue.pop_front() {
            None if state.is_broken => Err(StoreError::Broken),
            event => {
                if !state.queue.is_empty() {
                    self.events.ring();
                }
                Ok(event)
            }
        }
    }

    /// Queues what has come. No request is under way, so there can be nothing but events.
    fn take_events(&self, state: &mut State) -> Result<(), StoreError> {
        loop {
            self.queue_events(state)?;
            if let Some(packet) = &state.held {
                return Err(StoreError::Unasked { received: packet.kind });
            }
            if !state.queue.is_empty() || !self.read(state)? {
                return Ok(());
            }
        }
    }

    /// Queues the events that have been read, up to a packet that is none.
    fn queue_events(&self, state: &mut State) -> Result<(), StoreError> {
        while state.held.is_none()
            && let Some(packet) = state.decoder.take()?
        {
            match packet.kind {
                Kind::WatchEvent => self.queue(state, &packet)?,
                _ => state.held = Some(packet),
            }
        }
        Ok(())
    }

    /// Descriptors that are readable when there may be an event.
    pub(super) fn event_fds(&self) -> [std::os::fd::BorrowedFd<'_>; 2] {
        [self.fd.as_fd(), self.events.as_fd()]
    }

    /// Waits for the connection (and, if to read, for queued events); false when the time is over.
    fn wait(&self, interest: PollFlags, deadline: Option<Instant>) -> Result<bool, StoreError> {
        let timeout = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
            Some(Duration::ZERO) => return Ok(false),
            Some(left) => Timespec::try_from(left).ok(),
            None => None,
        };
        let mut fds = [PollFd::new(&self.fd, interest), PollFd::new(&self.events, PollFlags::IN)];
        let count = if interest == PollFlags::IN { 2 } else { 1 };
        match rustix::event::poll(fds.get_mut(..count).unwrap_or_default(), timeout.as_ref()) {
            Ok(0) => Ok(false),
            Ok(_) | Err(Errno::INTR) => Ok(true),
            Err(errno) => Err(StoreError::system("wait for the connection")(errno)),
        }
    }
}
