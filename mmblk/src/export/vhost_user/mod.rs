//! vhost-user-blk: a disk for virtual machines, whose rings and data lie in the guest's memory.
//!
//! The front end (QEMU, or another that speaks the protocol) connects to a socket, hands over the guest's memory and rings,
//! and is out of the way from then on: each ring is served by a thread of its own from a queue of the device. Where the
//! device is in this process, payload goes between the guest's memory and the disk without a copy of ours; see
//! `docs/vhost-user.md`, and `docs/adr/0026-guest-memory-is-foreign.md`.
//!
//! | | |
//! |---|---|
//! | [`message`], [`channel`] | what the front end says, and the socket |
//! | [`session`] | what it has set up |
//! | [`ring`], [`chain`], [`request`] | what the guest says: positions, descriptors, requests |
//! | [`serving`], [`worker`] | one ring and one queue, and their thread |
//! | [`inflight`] | what a successor needs to know |
//! | [`config`] | features and configuration space |
//! | [`client`] | the other side, for tests and measurements |
//!
//! A front end or guest that does not keep to the rules breaks its own ring or connection. What is under way when it
//! goes ends first; then the next front end is served.

pub mod chain;
pub mod channel;
pub mod client;
pub mod config;
pub mod fuzzing;
pub mod inflight;
pub mod message;
pub mod request;
pub mod ring;
pub mod serving;
pub mod session;
mod wire;
pub mod worker;

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

use fido_core::addr::Generation;
use fido_core::memory::Memory;

use crate::queue::{Features, Geometry};
use channel::ChannelError;
use request::ID_BYTES;
use serving::Queue;
use session::Session;

/// The most rings of one device.
pub const MAX_RINGS: usize = 256;

/// Before another front end is accepted when that has failed.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

/// A device to be exported.
pub struct Device {
    memory: Memory,
    /// One for each ring; `None` while a worker has it.
    queues: Vec<Option<Queue>>,
    geometry: Geometry,
    /// The present size in bytes, which workers learn of.
    size: Arc<AtomicU64>,
    features: Features,
    id: [u8; ID_BYTES],
    generation: Generation,
}

/// Why a device cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// No queue, or more than [`MAX_RINGS`].
    #[error("{0} queues; it must be 1 to {MAX_RINGS}")]
    Queues(usize),
    /// The socket.
    #[error("{path}: {error}")]
    Socket {
        /// Where it should be.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

impl Device {
    /// A device with a ring for each queue. They are queues of one device, whose buffers and windows are `memory`'s.
    /// `id` is what guests see as its serial number: its first 20 bytes.
    ///
    /// # Errors
    /// [`ExportError::Queues`].
    pub fn new(memory: Memory, queues: Vec<Queue>, id: &str) -> Result<Self, ExportError> {
        let (Some(first), true) = (queues.first(), queues.len() <= MAX_RINGS) else {
            return Err(ExportError::Queues(queues.len()));
        };
        let (geometry, features) = (first.geometry(), first.features());
        let size = Arc::new(AtomicU64::new(geometry.bytes));
        let mut bytes = [0; ID_BYTES];
        let count = id.len().min(ID_BYTES);
        bytes[..count].copy_from_slice(&id.as_bytes()[..count]);
        let queues = queues.into_iter().map(Some).collect();
        Ok(Self { memory, queues, geometry, size, features, id: bytes, generation: Generation::NONE })
    }

    fn geometry(&self) -> Geometry {
        Geometry { bytes: self.size.load(Ordering::Relaxed), ..self.geometry }
    }

    /// Learns of a new size from queues that no worker has.
    fn take_sizes(&mut self) {
        for queue in self.queues.iter_mut().flatten() {
            let _ = queue.resized();
            self.size.store(queue.geometry().bytes, Ordering::Relaxed);
        }
    }

    /// Serves one front end until its connection ends.
    ///
    /// # Errors
    /// What it did that ends the connection.
    pub fn serve(&mut self, socket: &UnixStream) -> Result<(), ChannelError> {
        let mut session = Session::new(self);
        while let Some((head, body, fds)) = channel::receive(socket)? {
            let request = message::Request::parse(head.request, &body, fds);
            let acknowledge = head.need_reply && session.acknowledges();
            let error: Box<dyn std::error::Error> = match request.map(|request| session.handle(request)) {
                Ok(Ok(reply)) => {
                    if let Some(bytes) = reply.bytes(head.request, acknowledge) {
                        channel::send(socket, &bytes, reply.fd())?;
                    }
                    continue;
                }
                Ok(Err(error)) => error.into(),
                Err(error) => error.into(),
            };
            tracing::warn!(request = head.request, %error, "refused a front end's request");
            if !acknowledge {
                return Err(io::Error::new(io::ErrorKind::InvalidData, error.to_string()).into());
            }
            channel::send(socket, &message::refusal(head.request), None)?;
        }
        Ok(())
    }
}

/// A device that is exported at a socket: one front end after the other. Ends when dropped.
#[derive(Debug)]
pub struct Export {
    path: PathBuf,
    listener: UnixListener,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    front_end: Mutex<Option<UnixStream>>,
}

impl Export {
    /// Exports a device at `path`. A socket that is there already and that nobody serves is replaced.
    ///
    /// # Errors
    /// [`ExportError::Socket`].
    pub fn start(path: &Path, mut device: Device) -> Result<Self, ExportError> {
        let failed = |error| ExportError::Socket { path: path.to_path_buf(), error };
        let listener = super::bind_unix(path).map_err(failed)?;
        let accepting = listener.try_clone().map_err(failed)?;
        let shared = Arc::new(Shared::default());
        let served = shared.clone();
        let thread = std::thread::Builder::new()
            .name("vhost-user".into())
            .spawn(move || {
                while !served.stop.load(Ordering::Acquire) {
                    // Whoever cannot be had now, for want of a descriptor perhaps, may come again.
                    let accepted = accepting.accept().and_then(|(socket, _)| Ok((socket.try_clone()?, socket)));
                    let (handle, socket) = match accepted {
                        Ok(sockets) => sockets,
                        Err(error) => {
                            if !served.stop.load(Ordering::Acquire) {
                                tracing::warn!(%error, "a front end cannot be served");
                                std::thread::sleep(PAUSE);
                            }
                            continue;
                        }
                    };
                    *served.front_end.lock().unwrap_or_else(PoisonError::into_inner) = Some(handle);
                    if served.stop.load(Ordering::Acquire) {
                        return;
                    }
                    match device.serve(&socket) {
                        Ok(()) => tracing::info!("a front end has gone"),
                        Err(error) => tracing::warn!(%error, "a front end's connection has ended"),
                    }
                    // The other handle of the socket would keep the connection open.
                    *served.front_end.lock().unwrap_or_else(PoisonError::into_inner) = None;
                }
            })
            .map_err(failed)?;
        Ok(Self { path: path.to_path_buf(), listener, shared, thread: Some(thread) })
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        // Ends the wait for a front end, or for its next message.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        if let Some(socket) = &*self.shared.front_end.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}
