//! The clients of one worker: their sockets, and how far each one is.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use fido_core::memory::Memory;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::haggle::{Agreement, Haggle};
use super::session::Session;

/// More to be said than this, and a negotiating client has to listen first.
const MAX_UNSENT: usize = 64 << 10;

/// Names a client for ever: `epoch:32 | place:32`.
pub(super) type Key = u64;

/// A client.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) socket: OwnedFd,
    pub(super) talk: Talk,
    /// There may be something to read: an edge was seen and the socket has not been read empty since.
    pub(super) readable: bool,
    /// The socket takes more: no refusal since the last edge.
    pub(super) writable: bool,
    /// A short read does not mean "empty": the stream's end is there too.
    pub(super) to_the_end: bool,
    /// In the worker's list of those to read from.
    pub(super) in_reading: bool,
    /// In the worker's list of those to send to.
    pub(super) in_sending: bool,
}

/// How far a client is.
#[derive(Debug)]
pub(super) enum Talk {
    /// It negotiates.
    Haggling(Haggling),
    /// It is served.
    Serving(Box<Session>),
}

/// The state of a negotiation, with what is to be sent.
#[derive(Debug)]
pub(super) struct Haggling {
    pub(super) haggle: Haggle,
    out: Vec<u8>,
    sent: usize,
    pub(super) deadline: Instant,
    /// It has ended well, and the client is served when what has been said is sent.
    pub(super) agreed: Option<Agreement>,
    /// It has ended, for this reason.
    pub(super) over: Option<&'static str>,
}

impl Haggling {
    pub(super) fn new(deadline: Instant) -> Self {
        let mut out = Vec::new();
        let haggle = Haggle::new(&mut out);
        Self { haggle, out, sent: 0, deadline, agreed: None, over: None }
    }

    /// Where replies go.
    pub(super) fn parts(&mut self) -> (&mut Haggle, &mut Vec<u8>) {
        (&mut self.haggle, &mut self.out)
    }

    /// Whether everything has been said.
    pub(super) fn is_sent(&self) -> bool {
        self.out.is_empty()
    }

    /// Whether it may be read.
    pub(super) fn listens(&self) -> bool {
        self.agreed.is_none() && self.over.is_none() && self.out.len() - self.sent < MAX_UNSENT
    }

    /// Reads what the negotiation wants next; nothing if there is nothing now.
    ///
    /// # Errors
    /// The kernel's; `UnexpectedEof` at the stream's end.
    pub(super) fn receive(&self, socket: &OwnedFd, memory: &Memory) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = vec![0; self.haggle.wanted()];
        memory.stats().syscalls.add(1);
        match rustix::net::recv(socket, &mut bytes[..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok((count, _)) => {
                bytes.truncate(count);
                Ok(Some(bytes))
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Sends what is to be said. False if the socket takes no more now.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn send(&mut self, socket: &OwnedFd, memory: &Memory) -> io::Result<bool> {
        while self.sent < self.out.len() {
            memory.stats().syscalls.add(1);
            match rustix::net::send(socket, &self.out[self.sent..], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(count) => self.sent += count,
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        self.out.clear();
        self.sent = 0;
        Ok(true)
    }
}

impl Client {
    pub(super) fn new(socket: OwnedFd, deadline: Instant) -> Self {
        Self {
            socket,
            talk: Talk::Haggling(Haggling::new(deadline)),
            readable: false,
            writable: true,
            to_the_end: false,
            in_reading: false,
            in_sending: false,
        }
    }

    /// Whether there may be something to read or to parse.
    pub(super) fn has_input(&self) -> bool {
        match &self.talk {
            Talk::Serving(session) => self.readable || session.incoming.pending() > 0,
            Talk::Haggling(_) => self.readable,
        }
    }

    /// Whether there is something to send.
    pub(super) fn has_output(&self) -> bool {
        match &self.talk {
            Talk::Serving(session) => session.outgoing.len() > 0,
            Talk::Haggling(haggling) => !haggling.is_sent(),
        }
    }
}

/// Clients by [`Key`].
#[derive(Debug, Default)]
pub(super) struct Clients {
    places: Vec<(u32, Option<Client>)>,
    free: Vec<u32>,
}

impl Clients {
    pub(super) fn insert(&mut self, client: Client) -> Key {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push((0, None));
            self.places.len() as u32 - 1
        });
        let Some((epoch, place)) = self.places.get_mut(index as usize) else { return Key::MAX };
        *place = Some(client);
        u64::from(*epoch) << 32 | u64::from(index)
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut Client> {
        let (epoch, place) = self.places.get_mut(key as u32 as usize)?;
        place.as_mut().filter(|_| u64::from(*epoch) == key >> 32)
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<Client> {
        self.get_mut(key)?;
        let (epoch, place) = self.places.get_mut(key as u32 as usize)?;
        // The topmost bit is never set: those keys mean something else to the worker.
        *epoch = (*epoch + 1) & (u32::MAX >> 1);
        self.free.push(key as u32);
        place.take()
    }

    pub(super) fn keys(&self) -> Vec<Key> {
        let used = self.places.iter().enumerate().filter(|(_, (_, place))| place.is_some());
        used.map(|(index, (epoch, _))| u64::from(*epoch) << 32 | index as u64).collect()
    }
}
