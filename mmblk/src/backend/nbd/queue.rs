//! One connection to a server as a block queue.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fido_core::memory::Memory;
use fido_core::payload::Payload;
use fido_core::wait::Source;
use rustix::event::epoll::EventFlags;

use super::attempt::Attempt;
use super::replies::{Nonsense, Replies};
use super::table::{Next, Table};
use super::wake::{Sign, Wake};
use super::{Connected, NbdError, Shared, look};
use crate::finished::Finished;
use crate::nbd::ExportFlags;
use crate::nbd::incoming::{Incoming, Received};
use crate::nbd::outgoing::Outgoing;
use crate::nbd::transmission::SIMPLE_BYTES;
use crate::queue::{BlockCompletion, BlockError, BlockOp, BlockQueue, Busy, Features, Geometry};

/// How often the connection may be lost without a single answer before requests fail.
const MAX_STRIKES: u32 = 8;
/// How long data waits for a buffer before the read that it belongs to fails.
const BUFFER_PATIENCE: Duration = Duration::from_secs(1);
/// How often a buffer is looked for.
const BUFFER_INTERVAL: Duration = Duration::from_millis(2);
/// Receives per turn.
const TURN: usize = 16;

/// A connection that is there.
#[derive(Debug)]
struct Line {
    socket: OwnedFd,
    incoming: Incoming,
    outgoing: Outgoing,
    replies: Replies,
    readable: bool,
    writable: bool,
    to_the_end: bool,
    /// Since when data has been waiting for a buffer.
    starving: Option<Instant>,
}

#[derive(Debug)]
enum Link {
    Up(Box<Line>),
    Connecting(Attempt),
    Down,
}

/// A queue of an [`NbdDevice`](super::NbdDevice).
#[derive(Debug)]
pub struct NbdQueue {
    shared: Arc<Shared>,
    memory: Memory,
    geometry: Geometry,
    resized: bool,
    wake: Wake,
    link: Link,
    table: Table,
    /// Places of requests that the server does not have, in order.
    unsent: VecDeque<u16>,
    finished: Finished,
    /// Connections lost since the last answer.
    strikes: u32,
}

impl NbdQueue {
    pub(super) fn new(shared: Arc<Shared>, connected: Connected, memory: Memory) -> io::Result<Self> {
        let mut queue = Self {
            geometry: shared.geometry,
            table: Table::new(shared.geometry.depth, shared.flags),
            shared,
            memory,
            resized: false,
            wake: Wake::new()?,
            link: Link::Down,
            unsent: VecDeque::new(),
            finished: Finished::default(),
            strikes: 0,
        };
        queue.plug_in(connected)?;
        Ok(queue)
    }

    /// Uses a connection from now on.
    fn plug_in(&mut self, connected: Connected) -> io::Result<()> {
        let Connected { socket, structured, allocation, .. } = connected;
        self.wake.watch(&socket)?;
        self.link = Link::Up(Box::new(Line {
            socket,
            incoming: Incoming::new(self.shared.options.buffers.max(8 << 20), SIMPLE_BYTES),
            outgoing: Outgoing::default(),
            replies: Replies::new(structured, allocation, self.geometry.block),
            readable: true,
            writable: true,
            to_the_end: false,
            starving: None,
        }));
        Ok(())
    }

    fn drive(&mut self) {
        for sign in self.wake.signs(self.memory.stats()) {
            if let (Sign::Socket(flags), Link::Up(line)) = (sign, &mut self.link) {
                use EventFlags as E;
                line.writable |= flags.intersects(E::OUT | E::HUP | E::ERR);
                line.readable |= flags.intersects(E::IN | E::RDHUP | E::HUP | E::ERR);
                line.to_the_end |= flags.intersects(E::RDHUP | E::HUP | E::ERR);
            }
        }
        match &mut self.link {
            Link::Up(_) => {
                if let Err(reason) = self.receive() {
                    return self.broken(&reason);
                }
                self.send();
                if self.table.len() == 0
                    && let Link::Up(line) = &mut self.link
                {
                    line.incoming.shrink();
                    line.replies.shrink();
                }
            }
            Link::Connecting(attempt) => {
                if let Some(result) = attempt.take() {
                    self.attempted(result);
                }
            }
            Link::Down => {
                if self.table.len() > 0 {
                    self.connect();
                }
            }
        }
    }

    // The way back.

    fn receive(&mut self) -> Result<(), Nonsense> {
        for _ in 0..TURN {
            self.parse()?;
            let Link::Up(line) = &mut self.link else { return Ok(()) };
            if !line.readable {
                return Ok(());
            }
            match line.incoming.receive(&line.socket, line.replies.expected(), &self.memory) {
                Received::Some => {
                    line.starving = None;
                    line.readable = line.incoming.has_more() || line.to_the_end;
                }
                Received::Nothing => line.readable = line.incoming.has_more(),
                Received::Blocked => {
                    if !self.receive_aside()? {
                        return Ok(());
                    }
                }
                Received::End => return Err("it has hung up".into()),
                Received::Failed(error) => return Err(error.to_string()),
            }
        }
        self.parse()
    }

    /// There is no buffer. What is small needs none; data waits for one, but not for ever. Returns whether to go on.
    fn receive_aside(&mut self) -> Result<bool, Nonsense> {
        let Link::Up(line) = &mut self.link else { return Ok(false) };
        let since = *line.starving.get_or_insert_with(Instant::now);
        let mut scratch = [0; 16 << 10];
        let expected = line.replies.expected();
        let (out, data) = match line.replies.aside() {
            Some(out) => (out, false),
            None if since.elapsed() >= BUFFER_PATIENCE => (&mut scratch[..expected.min(16 << 10)], true),
            None => {
                self.wake.ring_in(BUFFER_INTERVAL, self.memory.stats());
                return Ok(false);
            }
        };
        match line.incoming.receive_aside(&line.socket, out, &self.memory) {
            Ok(0) => Err("it has hung up".into()),
            Ok(count) if data => {
                line.replies.dropped(count, &mut self.table);
                Ok(true)
            }
            Ok(count) => {
                line.replies.filled(count);
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                line.readable = false;
                Ok(false)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(error) => Err(error.to_string()),
        }
    }

    fn parse(&mut self) -> Result<(), Nonsense> {
        loop {
            let Link::Up(line) = &mut self.link else { return Ok(()) };
            let next = line.replies.next(&mut line.incoming, &mut self.table, &self.memory)?;
            let Some(cookie) = next else { return Ok(()) };
            self.strikes = 0;
            match self.table.answered(cookie, &self.memory) {
                Some(Next::End(id, result, moved)) => {
                    self.finished.push_counted(id, result, moved, self.memory.stats());
                }
                Some(Next::Ask) => self.unsent.push_back(cookie as u16),
                None => {}
            }
        }
    }

    // The way there.

    fn send(&mut self) {
        let Link::Up(line) = &mut self.link else { return };
        while let Some(index) = self.unsent.pop_front() {
            let Some((request, data)) = self.table.ask(index) else { continue };
            if let Err(error) = line.outgoing.push(&request.encode(), Vec::new(), data, &self.memory)
                && let Some(pending) = self.table.remove(index)
            {
                self.finished.push(pending.id, Err(BlockError::Address(error.to_string())));
            }
        }
        while line.writable && line.outgoing.len() > 0 {
            match line.outgoing.send(&line.socket, &self.memory) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => line.writable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.broken(&error.to_string()),
            }
        }
    }

    // Loss and return.

    /// The connection is good for nothing any more.
    fn broken(&mut self, reason: &str) {
        self.strikes += 1;
        let uri = &self.shared.uri;
        tracing::warn!(%uri, reason, unfinished = self.table.len(), "the connection to the disk is lost");
        self.unsent = self.table.recall().into();
        self.link = Link::Down;
        if self.strikes > MAX_STRIKES {
            self.strikes = 0;
            return self.fail_all(&BlockError::Protocol(reason.to_owned()));
        }
        self.connect();
    }

    fn connect(&mut self) {
        let (uri, options) = (self.shared.uri.clone(), &self.shared.options);
        let attempt = Attempt::start(uri, options.timeout, options.patience, self.wake.bell());
        match attempt {
            Ok(attempt) => self.link = Link::Connecting(attempt),
            Err(error) => self.fail_all(&BlockError::Io { errno: error.raw_os_error().unwrap_or(libc::EAGAIN) }),
        }
    }

    fn attempted(&mut self, result: Result<Connected, NbdError>) {
        self.link = Link::Down;
        let found = result.and_then(|connected| {
            let (geometry, features) = look(&connected, &self.shared.uri, &self.shared.options)?;
            Ok((connected, geometry, features))
        });
        let (connected, geometry, features) = match found {
            Ok(found) => found,
            Err(error) => {
                tracing::error!(%error, "the disk does not come back");
                let errno = match error {
                    NbdError::Io { error, .. } => error.raw_os_error().unwrap_or(libc::ETIMEDOUT),
                    _ => libc::EPROTO,
                };
                return self.fail_all(&BlockError::Io { errno });
            }
        };
        let same = Geometry { bytes: self.geometry.bytes, ..geometry } == self.geometry;
        if !same || features != self.shared.features || geometry.bytes < self.geometry.bytes {
            let what = format!("another device: {geometry:?} {features:?}, was {:?}", self.geometry);
            return self.fail_all(&BlockError::Protocol(what));
        }
        self.resized |= geometry.bytes > self.geometry.bytes;
        self.geometry = geometry;
        tracing::info!(uri = %self.shared.uri, unfinished = self.unsent.len(), "the disk is there again");
        match self.plug_in(connected) {
            Ok(()) => self.send(),
            Err(error) => self.fail_all(&BlockError::Io { errno: error.raw_os_error().unwrap_or(libc::EIO) }),
        }
    }

    fn fail_all(&mut self, error: &BlockError) {
        self.unsent.clear();
        for index in self.table.recall() {
            if let Some(pending) = self.table.remove(index) {
                self.finished.push(pending.id, Err(error.clone()));
            }
        }
    }
}

impl BlockQueue for NbdQueue {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn features(&self) -> Features {
        self.shared.features
    }

    fn resized(&mut self) -> Option<Geometry> {
        std::mem::take(&mut self.resized).then_some(self.geometry)
    }

    fn submit(&mut self, id: u64, op: BlockOp) -> Result<(), Busy> {
        if self.table.len() + self.finished.len() >= self.geometry.depth as usize {
            return Err(Busy(op));
        }
        let checked = self.shared.features.check(&op).and_then(|()| self.geometry.check(&op));
        let cannot = match (&self.link, &op) {
            (Link::Up(line), BlockOp::Extents { .. }) => !line.replies.tells_extents(),
            _ => false,
        };
        if let Err(error) = checked {
            self.finished.push(id, Err(error));
        } else if cannot {
            self.finished.push(id, Err(BlockError::Unsupported));
        } else if matches!(op, BlockOp::Flush) && !self.shared.flags.contains(ExportFlags::SEND_FLUSH) {
            self.finished.push(id, Ok(Payload::new()));
        } else {
            self.unsent.push_back(self.table.insert(id, op).map_err(Busy)?);
        }
        Ok(())
    }

    fn poll(&mut self) -> Option<BlockCompletion> {
        if self.finished.is_empty() {
            self.drive();
        }
        self.finished.pop()
    }

    fn flush_submissions(&mut self) {
        self.send();
    }
}

impl Source for NbdQueue {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    fn ready(&mut self) -> bool {
        let link = match &self.link {
            Link::Up(line) => {
                (line.readable && line.starving.is_none())
                    || (line.writable && (line.outgoing.len() > 0 || !self.unsent.is_empty()))
            }
            Link::Connecting(attempt) => attempt.is_over(),
            Link::Down => self.table.len() > 0,
        };
        link || self.resized || !self.finished.is_empty()
    }
}
