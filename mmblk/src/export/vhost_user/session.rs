//! What a front end has set up, and what follows from its requests.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use fido_core::addr::{DomainId, Generation};
use fido_core::foreign::{Foreign, ForeignError, Region};

use super::channel;
use super::config::{feature, protocol};
use super::inflight::{self, Inflight, InflightError};
use super::message::{self, Reply, Request, RingAddresses, TableEntry};
use super::ring::{MAX_PLACES, Ring, RingError};
use super::serving::{Parts, Serving};
use super::worker::{Call, Tools, Worker};
use super::{Device, config};

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// A ring that does not exist.
    #[error("ring {0} does not exist")]
    NoRing(u32),
    /// Features that were not offered.
    #[error("features {0:#x} were not offered")]
    Features(u64),
    /// A position that rings do not have.
    #[error("position {0} in a ring")]
    Base(u32),
    /// A descriptor that is no eventfd.
    #[error("not an eventfd: {0}")]
    NoEvent(String),
    /// A change of what cannot be changed.
    #[error("{0} bytes of configuration at {1} cannot be written")]
    Config(usize, usize),
    /// The memory table.
    #[error(transparent)]
    Memory(#[from] ForeignError),
    /// A ring.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The note of requests under way.
    #[error(transparent)]
    Inflight(#[from] InflightError),
    /// The system has nothing left to serve a ring with.
    #[error("cannot serve a ring: {0}")]
    System(#[from] io::Error),
    /// The device's queue was lost with a thread that panicked.
    #[error("the queue of ring {0} is lost")]
    Lost(usize),
}

/// One ring, as far as the front end has described it.
#[derive(Debug, Default)]
struct Vring {
    places: u32,
    addresses: Option<RingAddresses>,
    base: u16,
    kick: Option<OwnedFd>,
    call: Call,
    error: Call,
    enabled: bool,
    worker: Option<Worker>,
}

/// The channel to the front end, for what it has not asked for.
type Channel = Arc<Mutex<Option<UnixStream>>>;

/// One front end's session. Ends all rings when dropped.
pub struct Session<'a> {
    device: &'a mut Device,
    features: u64,
    protocol: u64,
    memory: Option<Arc<Foreign>>,
    inflight: Option<Inflight>,
    rings: Vec<Vring>,
    channel: Channel,
}

impl<'a> Session<'a> {
    /// A front end that has just come.
    pub fn new(device: &'a mut Device) -> Self {
        let rings = (0..device.queues.len()).map(|_| Vring::default()).collect();
        Self { device, features: 0, protocol: 0, memory: None, inflight: None, rings, channel: Channel::default() }
    }

    /// Whether acknowledgements have been agreed on.
    pub fn acknowledges(&self) -> bool {
        self.protocol & protocol::REPLY_ACK != 0
    }

    /// Does what is asked.
    ///
    /// # Errors
    /// [`SessionError`]. Nothing has changed then, or only what the request was about is undone.
    pub fn handle(&mut self, request: Request) -> Result<Reply, SessionError> {
        match request {
            Request::GetFeatures => return Ok(Reply::Number(self.offered())),
            Request::SetFeatures(bits) => self.set_features(bits)?,
            Request::SetOwner => {}
            Request::ResetOwner | Request::ResetDevice => self.reset(),
            Request::GetProtocolFeatures => return Ok(Reply::Number(protocol::ALL)),
            Request::SetProtocolFeatures(bits) if bits & !protocol::ALL != 0 => {
                return Err(SessionError::Features(bits & !protocol::ALL));
            }
            Request::SetProtocolFeatures(bits) => self.protocol = bits,
            Request::GetQueueNum => return Ok(Reply::Number(self.rings.len() as u64)),
            Request::SetMemTable(table) => self.set_memory(table)?,
            Request::SetVringNum { ring, places } => {
                if places == 0 || places > MAX_PLACES.into() || !places.is_power_of_two() {
                    return Err(RingError::Places(places).into());
                }
                self.stopped(ring)?.places = places;
            }
            Request::SetVringAddr { ring, addresses } => self.stopped(ring)?.addresses = Some(addresses),
            Request::SetVringBase { ring, base } => {
                let base = u16::try_from(base).map_err(|_| SessionError::Base(base))?;
                self.stopped(ring)?.base = base;
            }
            Request::GetVringBase { ring } => {
                let vring = self.stopped(ring)?;
                vring.kick = None;
                let base = vring.base;
                return Ok(Reply::Base { ring, base });
            }
            Request::SetVringEnable { ring, enable } => {
                self.stopped(ring)?.enabled = enable;
                self.start(ring as usize)?;
            }
            Request::SetVringKick { ring, fd } => {
                let fd = fd.map(event).transpose()?;
                self.stopped(ring)?.kick = fd;
                self.start(ring as usize)?;
            }
            Request::SetVringCall { ring, fd } => {
                let fd = fd.map(event).transpose()?;
                let vring = self.ring(ring)?;
                vring.call.set(fd);
                // What ended before there was anything to ring.
                vring.call.ring();
            }
            Request::SetVringErr { ring, fd } => {
                let fd = fd.map(event).transpose()?;
                self.ring(ring)?.error.set(fd);
            }
            Request::SetBackendReqFd(fd) => self.set_channel(fd)?,
            Request::GetConfig { offset, size, flags } => return Ok(self.config(offset, size, flags)),
            Request::SetConfig { offset, size } => return Err(SessionError::Config(size, offset)),
            Request::GetInflightFd(plan) => {
                let (plan, fd) = inflight::create(plan, self.rings.len())?;
                return Ok(Reply::Inflight(plan, fd));
            }
            Request::SetInflightFd(plan, fd) => {
                self.stop_all();
                self.inflight = Some(Inflight::open(plan, fd, self.rings.len())?);
            }
        }
        Ok(Reply::Done)
    }

    fn offered(&self) -> u64 {
        config::features(&self.device.features, self.rings.len())
    }

    fn set_features(&mut self, bits: u64) -> Result<(), SessionError> {
        match bits & !self.offered() {
            0 => self.features = bits,
            more => return Err(SessionError::Features(more)),
        }
        Ok(())
    }

    fn config(&mut self, offset: usize, size: usize, flags: u32) -> Reply {
        self.device.take_sizes();
        let space = config::space(&self.device.geometry(), &self.device.features, self.rings.len());
        let bytes = space.get(offset..offset + size).unwrap_or_default().to_vec();
        Reply::Config { offset, flags, bytes }
    }

    fn set_channel(&mut self, fd: OwnedFd) -> Result<(), SessionError> {
        let socket = UnixStream::from(fd);
        // A front end that does not read must not hold up the ring that has something to say.
        socket.set_nonblocking(true)?;
        *self.channel.lock().unwrap_or_else(PoisonError::into_inner) = Some(socket);
        Ok(())
    }

    fn set_memory(&mut self, table: Vec<(TableEntry, OwnedFd)>) -> Result<(), SessionError> {
        let region = |(entry, file): (TableEntry, OwnedFd)| {
            let TableEntry { guest, len, user, offset } = entry;
            Region { guest, user, len, offset, file }
        };
        let regions: Vec<Region> = table.into_iter().map(region).collect();
        let memory = Foreign::map(self.device.next_generation(), &regions)?;
        self.stop_all();
        self.forget_memory();
        self.device.memory.windows().insert(memory.window().clone());
        self.memory = Some(Arc::new(memory));
        (0..self.rings.len()).try_for_each(|ring| self.start(ring))
    }

    fn forget_memory(&mut self) {
        if let Some(memory) = self.memory.take() {
            self.device.memory.windows().remove(memory.window().id());
        }
    }

    fn ring(&mut self, ring: u32) -> Result<&mut Vring, SessionError> {
        self.rings.get_mut(ring as usize).ok_or(SessionError::NoRing(ring))
    }

    /// A ring that is not served (any more), so that it can be changed.
    fn stopped(&mut self, ring: u32) -> Result<&mut Vring, SessionError> {
        self.ring(ring)?;
        self.stop(ring as usize);
        self.ring(ring)
    }

    fn stop(&mut self, ring: usize) {
        let Some(vring) = self.rings.get_mut(ring) else { return };
        let Some(worker) = vring.worker.take() else { return };
        if let Some((queue, base)) = worker.stop() {
            vring.base = base;
            if let Some(place) = self.device.queues.get_mut(ring) {
                *place = Some(queue);
            }
        }
    }

    fn stop_all(&mut self) {
        (0..self.rings.len()).for_each(|ring| self.stop(ring));
    }

    fn reset(&mut self) {
        self.stop_all();
        self.rings.iter_mut().for_each(|ring| *ring = Vring::default());
        (self.features, self.inflight) = (0, None);
    }

    /// Serves a ring if everything is there for it.
    fn start(&mut self, index: usize) -> Result<(), SessionError> {
        self.device.take_sizes();
        let Some(vring) = self.rings.get_mut(index) else { return Ok(()) };
        let enabled = vring.enabled || self.features & feature::PROTOCOL == 0;
        let (Some(memory), Some(addresses), Some(kick), true) =
            (&self.memory, vring.addresses, &vring.kick, enabled && vring.worker.is_none())
        else {
            return Ok(());
        };
        let event_index = self.features & feature::EVENT_INDEX != 0;
        let ring = Ring::new(memory, addresses, vring.places, vring.base, event_index)?;
        let notes = self.inflight.as_ref().map(|inflight| inflight.queue(index, ring.places())).transpose()?;
        let kick = kick.try_clone()?;
        let queue = self.device.queues.get_mut(index).and_then(Option::take).ok_or(SessionError::Lost(index))?;
        let serving = Serving::new(Parts {
            ring,
            guest: memory.clone(),
            notes,
            memory: self.device.memory.clone(),
            queue,
            write_through: self.features & feature::FLUSH == 0,
            id: self.device.id,
        });
        let (call, error) = (vring.call.clone(), vring.error.clone());
        let (size, channel) = (self.device.size.clone(), self.channel.clone());
        let resized = Box::new(move |geometry: crate::queue::Geometry| {
            if size.swap(geometry.bytes, std::sync::atomic::Ordering::Relaxed) != geometry.bytes {
                announce(&channel);
            }
        });
        let tools = Tools { kick, call, error, memory: self.device.memory.clone(), resized };
        match Worker::start(index, serving, tools) {
            Ok(worker) => vring.worker = Some(worker),
            Err((error, queue)) => {
                self.device.queues[index] = Some(queue);
                return Err(error.into());
            }
        }
        Ok(())
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.stop_all();
        self.forget_memory();
    }
}

/// Tells the front end that the configuration has changed, if it has given us a channel.
fn announce(channel: &Channel) {
    let mut channel = channel.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(socket) = &*channel
        && let Err(error) = channel::send(socket, &message::config_changed(), None)
    {
        tracing::warn!(%error, "the front end does not hear that the disk has another size");
        *channel = None;
    }
}

/// An eventfd, made non-blocking: the front end's other descriptors are not for us to read or write.
fn event(fd: OwnedFd) -> Result<OwnedFd, SessionError> {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    if !link.as_os_str().to_string_lossy().starts_with("anon_inode:[eventfd") {
        return Err(SessionError::NoEvent(link.display().to_string()));
    }
    let flags = rustix::fs::fcntl_getfl(&fd).map_err(io::Error::from)?;
    rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK).map_err(io::Error::from)?;
    Ok(fd)
}

impl Device {
    /// A generation that no foreign memory in the table has.
    fn next_generation(&mut self) -> Generation {
        loop {
            self.generation = self.generation.next();
            let id = DomainId { slot: Foreign::SLOT, generation: self.generation };
            if self.memory.windows().get(id).is_none() {
                return self.generation;
            }
        }
    }
}
