//! The other side: a front end and a virtio-blk driver in one, for tests and measurements of any vhost-user-blk device.
//!
//! Plain on purpose: fixed slots of three descriptors (head, data, status), one buffer for each slot, one range for each
//! request. Its memory can be written at will, so it can also play a hostile guest.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use fido_core::addr::Generation;
use fido_core::foreign::{Area, Foreign, Region};
use rustix::event::{EventfdFlags, PollFd, PollFlags};

use super::channel;
use super::config::{feature, protocol};
use super::message::HEAD_BYTES;
use super::wire::Reader;

/// A read.
pub const READ: u32 = 0;
/// A write.
pub const WRITE: u32 = 1;
/// A flush.
pub const FLUSH: u32 = 4;
/// Ask for the identification.
pub const IDENTIFY: u32 = 8;
/// A discard.
pub const DISCARD: u32 = 11;
/// Write zeroes.
pub const ZEROES: u32 = 13;

/// Where the guest's memory begins in both of its address spaces: not at zero, so that they are not mixed up.
const GUEST: u64 = 1 << 30;
const USER: u64 = 1 << 40;
const PAGE: u64 = 4096;

/// What a client wants.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Rings.
    pub rings: usize,
    /// Requests under way on each.
    pub depth: u16,
    /// The largest request, in bytes.
    pub buffer: u32,
    /// Virtio features to accept, of those that are offered.
    pub features: u64,
}

/// All features that this driver can make use of.
pub const FEATURES: u64 = feature::VERSION_1
    | feature::EVENT_INDEX
    | feature::FLUSH
    | feature::MULTI_QUEUE
    | feature::DISCARD
    | feature::WRITE_ZEROES
    | feature::PROTOCOL;

/// A connection to a device.
#[derive(Debug)]
pub struct Client {
    socket: UnixStream,
    file: OwnedFd,
    memory: Foreign,
    features: u64,
    /// The rings.
    pub rings: Vec<ClientRing>,
    /// The device's channel to us.
    events: Option<UnixStream>,
}

/// One ring of a client.
#[derive(Debug)]
pub struct ClientRing {
    places: u16,
    depth: u16,
    buffer: u32,
    /// Where its part of the memory begins.
    at: u64,
    /// Descriptors.
    pub descriptors: Area,
    /// The available ring.
    pub available: Area,
    /// The used ring.
    pub used: Area,
    heads: Area,
    buffers: Area,
    next_available: u16,
    next_used: u16,
    event_index: bool,
    kick: OwnedFd,
    call: OwnedFd,
    /// Written by the device when it finds the ring broken.
    pub error: OwnedFd,
}

/// Offsets of a ring's parts in its piece of memory.
struct Layout {
    places: u16,
    available: u64,
    used: u64,
    heads: u64,
    buffers: u64,
    end: u64,
}

impl Layout {
    fn of(plan: &Plan) -> Self {
        let places = (3 * plan.depth).next_power_of_two();
        let count = u64::from(places);
        let available = 16 * count;
        let used = (available + 6 + 2 * count).next_multiple_of(PAGE);
        let heads = (used + 6 + 8 * count).next_multiple_of(PAGE);
        let buffers = (heads + 64 * u64::from(plan.depth)).next_multiple_of(PAGE);
        let end = (buffers + u64::from(plan.depth) * u64::from(plan.buffer)).next_multiple_of(PAGE);
        Self { places, available, used, heads, buffers, end }
    }
}

fn event() -> io::Result<OwnedFd> {
    Ok(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

fn odd(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

impl Client {
    /// Connects, makes memory and rings, and agrees on features. The rings are not started yet.
    ///
    /// # Errors
    /// The socket's, or what the device does not offer.
    pub fn connect(path: &Path, plan: &Plan) -> io::Result<Self> {
        let layout = Layout::of(plan);
        let bytes = layout.end * plan.rings as u64;
        let file = rustix::fs::memfd_create("fido-guest", rustix::fs::MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&file, bytes)?;
        rustix::fs::fcntl_add_seals(&file, rustix::fs::SealFlags::SHRINK)?;
        let region = Region { guest: GUEST, user: USER, len: bytes, offset: 0, file: file.try_clone()? };
        let memory = Foreign::map(Generation::FIRST, &[region]).map_err(|error| odd(&error.to_string()))?;
        let socket = UnixStream::connect(path)?;
        socket.set_read_timeout(Some(Duration::from_secs(20)))?;
        let mut client = Self { socket, file, memory, features: 0, rings: Vec::new(), events: None };
        client.agree(plan)?;
        let event_index = client.features & feature::EVENT_INDEX != 0;
        for ring in 0..plan.rings as u64 {
            let at = ring * layout.end;
            let area = |from: u64, to: u64| {
                client.memory.guest(GUEST + at + from, (to - from) as u32).ok_or_else(|| odd("no memory"))
            };
            client.rings.push(ClientRing {
                places: layout.places,
                depth: plan.depth,
                buffer: plan.buffer,
                at,
                descriptors: area(0, layout.available)?,
                available: area(layout.available, layout.used)?,
                used: area(layout.used, layout.heads)?,
                heads: area(layout.heads, layout.buffers)?,
                buffers: area(layout.buffers, layout.end)?,
                next_available: 0,
                next_used: 0,
                event_index,
                kick: event()?,
                call: event()?,
                error: event()?,
            });
        }
        Ok(client)
    }

    fn agree(&mut self, plan: &Plan) -> io::Result<()> {
        let offered = self.ask(1, &[])?;
        self.features = offered & plan.features;
        let protocols = self.ask(15, &[])? & (protocol::CONFIG | protocol::MULTI_QUEUE | protocol::REPLY_ACK);
        self.tell(16, &protocols.to_le_bytes(), &[])?;
        self.tell(3, &[], &[])?;
        self.tell(2, &self.features.to_le_bytes(), &[])
    }

    /// Hands memory and rings over. From here on requests are served.
    ///
    /// # Errors
    /// The socket's, or what the device refuses.
    pub fn start(&mut self) -> io::Result<()> {
        self.share_memory()?;
        (0..self.rings.len()).try_for_each(|ring| self.start_ring(ring))
    }

    /// Hands the memory over.
    ///
    /// # Errors
    /// As for [`Client::start`].
    pub fn share_memory(&mut self) -> io::Result<()> {
        let mut table = [1_u32.to_le_bytes(), [0; 4]].concat();
        for number in [GUEST, self.memory.window().len(), USER, 0] {
            table.extend_from_slice(&number.to_le_bytes());
        }
        self.tell(5, &table, &[&self.file])
    }

    /// Starts a ring from where the driver stands.
    ///
    /// # Errors
    /// As for [`Client::start`].
    pub fn start_ring(&mut self, index: usize) -> io::Result<()> {
        let ring = &self.rings[index];
        let number = index as u32;
        let pair = |value: u32| [number.to_le_bytes(), value.to_le_bytes()].concat();
        let mut addresses = pair(0);
        let layout = Layout::of(&Plan { rings: 1, depth: ring.depth, buffer: ring.buffer, features: 0 });
        for offset in [0, layout.used, layout.available] {
            addresses.extend_from_slice(&(USER + ring.at + offset).to_le_bytes());
        }
        addresses.extend_from_slice(&[0; 8]);
        self.tell(8, &pair(ring.places.into()), &[])?;
        self.tell(10, &pair(ring.next_used.into()), &[])?;
        self.tell(9, &addresses, &[])?;
        let fd = u64::from(number).to_le_bytes();
        self.tell(14, &fd, &[&ring.error])?;
        self.tell(13, &fd, &[&ring.call])?;
        self.tell(12, &fd, &[&ring.kick])?;
        self.tell(18, &pair(1), &[])
    }

    /// Stops a ring, and returns the position of its next chain.
    ///
    /// # Errors
    /// The socket's.
    pub fn stop_ring(&mut self, index: usize) -> io::Result<u16> {
        let body = self.request(11, &[(index as u32).to_le_bytes(), [0; 4]].concat(), &[])?;
        let mut reader = Reader::new(&body);
        let (_, base) = (reader.u32(), reader.u32());
        Ok(base as u16)
    }

    /// The first bytes of the configuration space.
    ///
    /// # Errors
    /// The socket's.
    pub fn config(&mut self, bytes: usize) -> io::Result<Vec<u8>> {
        let mut body: Vec<u8> = [0, bytes as u32, 0].into_iter().flat_map(u32::to_le_bytes).collect();
        body.resize(12 + bytes, 0);
        Ok(self.request(24, &body, &[])?.split_off(12))
    }

    /// The features that were agreed on.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The guest's memory.
    #[must_use]
    pub fn memory(&self) -> &Foreign {
        &self.memory
    }

    /// The guest's address of a place in the memory.
    #[must_use]
    pub fn guest_address(offset: u64) -> u64 {
        GUEST + offset
    }

    /// The socket, for messages that no well-behaved front end sends.
    #[must_use]
    pub fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Asks for a number.
    fn ask(&mut self, request: u32, body: &[u8]) -> io::Result<u64> {
        Ok(Reader::new(&self.request(request, body, &[])?).u64())
    }

    /// Sends what has no answer.
    fn tell(&self, request: u32, body: &[u8], fds: &[&OwnedFd]) -> io::Result<()> {
        channel::send(&self.socket, &message(request, body), fds.first().copied())
    }

    /// Sends, and waits for the answer's body.
    fn request(&mut self, request: u32, body: &[u8], fds: &[&OwnedFd]) -> io::Result<Vec<u8>> {
        self.tell(request, body, fds)?;
        let mut head = [0; HEAD_BYTES];
        io::Read::read_exact(&mut self.socket, &mut head)?;
        let mut reader = Reader::new(&head);
        let (found, _flags, size) = (reader.u32(), reader.u32(), reader.u32());
        if found != request || size > 1024 {
            return Err(odd("an answer to something else"));
        }
        let mut body = vec![0; size as usize];
        io::Read::read_exact(&mut self.socket, &mut body)?;
        Ok(body)
    }

    /// Gives the device a channel for its announcements.
    ///
    /// # Errors
    /// The socket's.
    pub fn listen(&mut self) -> io::Result<()> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(Duration::from_secs(20)))?;
        let all = protocol::CONFIG | protocol::MULTI_QUEUE | protocol::REPLY_ACK | protocol::BACKEND_REQUEST;
        self.tell(16, &all.to_le_bytes(), &[])?;
        self.events = Some(ours);
        self.tell(21, &[], &[&theirs.into()])
    }

    /// Waits for an announcement, and returns which.
    ///
    /// # Errors
    /// The socket's, or that there is no channel.
    pub fn announcement(&mut self) -> io::Result<u32> {
        let mut head = [0; HEAD_BYTES];
        let events = self.events.as_mut().ok_or_else(|| odd("no channel"))?;
        io::Read::read_exact(events, &mut head)?;
        Ok(Reader::new(&head).u32())
    }
}

/// A message of a front end.
#[must_use]
pub fn message(request: u32, body: &[u8]) -> Vec<u8> {
    let head = [request, 1, body.len() as u32];
    head.into_iter().flat_map(u32::to_le_bytes).chain(body.iter().copied()).collect()
}

impl ClientRing {
    /// The buffer of a slot.
    ///
    /// # Panics
    /// If there is no such slot.
    #[must_use]
    pub fn buffer(&self, slot: u16) -> Area {
        self.buffers.slice(u32::from(slot) * self.buffer, self.buffer).unwrap_or_else(|| panic!("no slot {slot}"))
    }

    /// Begins a request in a slot that is free: `len` bytes of its buffer, from `sector` on. For a discard or
    /// write-zeroes, the buffer has to have the range.
    pub fn submit(&mut self, slot: u16, kind: u32, sector: u64, len: u32) {
        let head = 64 * usize::from(slot);
        self.heads.store_u32(head, kind, Ordering::Relaxed);
        self.heads.store_u32(head + 4, 0, Ordering::Relaxed);
        self.heads.store_u64(head + 8, sector, Ordering::Relaxed);
        self.heads.store_u8(head + 16, 0xff, Ordering::Relaxed);
        let layout = Layout::of(&Plan { rings: 1, depth: self.depth, buffer: self.buffer, features: 0 });
        let heads = GUEST + self.at + layout.heads + head as u64;
        let buffer = GUEST + self.at + layout.buffers + u64::from(slot) * u64::from(self.buffer);
        let writes = if matches!(kind, READ | IDENTIFY) { 2 } else { 0 };
        let first = 3 * slot;
        let next = if len == 0 { first + 2 } else { first + 1 };
        self.describe(first, heads, 16, 1, next);
        self.describe(first + 1, buffer, len, 1 | writes, first + 2);
        self.describe(first + 2, heads + 16, 1, 2, 0);
        self.offer(first);
    }

    /// Writes a descriptor.
    pub fn describe(&self, index: u16, at: u64, len: u32, flags: u16, next: u16) {
        let place = 16 * usize::from(index);
        self.descriptors.store_u64(place, at, Ordering::Relaxed);
        self.descriptors.store_u32(place + 8, len, Ordering::Relaxed);
        self.descriptors.store_u16(place + 12, flags, Ordering::Relaxed);
        self.descriptors.store_u16(place + 14, next, Ordering::Relaxed);
    }

    /// Makes the chain that begins at a descriptor available.
    pub fn offer(&mut self, head: u16) {
        let place = usize::from(self.next_available & (self.places - 1));
        self.available.store_u16(4 + 2 * place, head, Ordering::Relaxed);
        self.next_available = self.next_available.wrapping_add(1);
        // SYNC: pairs with the device's acquire load of the index.
        self.available.store_u16(2, self.next_available, Ordering::Release);
    }

    /// Rings the device if it wants that since `before`, the position before what was offered.
    pub fn kick(&self, before: u16) {
        fence(Ordering::SeqCst);
        let wanted = if self.event_index {
            let from = self.used.load_u16(4 + 8 * usize::from(self.places), Ordering::Relaxed);
            self.next_available.wrapping_sub(from).wrapping_sub(1) < self.next_available.wrapping_sub(before)
        } else {
            self.used.load_u16(0, Ordering::Relaxed) & 1 == 0
        };
        if wanted {
            self.ring_device();
        }
    }

    /// Rings the device.
    pub fn ring_device(&self) {
        let _ = rustix::io::write(&self.kick, &1_u64.to_ne_bytes());
    }

    /// The position of the next chain to be offered.
    #[must_use]
    pub fn position(&self) -> u16 {
        self.next_available
    }

    /// The next request that has ended: its slot and status.
    pub fn poll(&mut self) -> Option<(u16, u8)> {
        // SYNC: pairs with the device's release store of the index.
        if self.used.load_u16(2, Ordering::Acquire) == self.next_used {
            return None;
        }
        let place = 4 + 8 * usize::from(self.next_used & (self.places - 1));
        let slot = (self.used.load_u32(place, Ordering::Relaxed) / 3) as u16;
        self.next_used = self.next_used.wrapping_add(1);
        Some((slot, self.heads.load_u8(64 * usize::from(slot) + 16, Ordering::Relaxed)))
    }

    /// Sleeps until the device calls, unless something has ended. Whether something has, within `patience`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wait(&mut self, patience: Duration) -> io::Result<bool> {
        let began = Instant::now();
        loop {
            if self.event_index {
                self.available.store_u16(4 + 2 * usize::from(self.places), self.next_used, Ordering::Relaxed);
            }
            fence(Ordering::SeqCst);
            if self.used.load_u16(2, Ordering::Acquire) != self.next_used {
                return Ok(true);
            }
            let left = patience.saturating_sub(began.elapsed());
            if left.is_zero() {
                return Ok(false);
            }
            let timeout = rustix::event::Timespec::try_from(left).map_err(|_| odd("a wait"))?;
            rustix::event::poll(&mut [PollFd::from_borrowed_fd(self.call.as_fd(), PollFlags::IN)], Some(&timeout))?;
            let _ = rustix::io::read(&self.call, &mut [0; 8]);
        }
    }
}
