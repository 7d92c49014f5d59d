//! The fs domain: an NFS server on a file system, between the streams of link `nfs` and the block device of link
//! `disk`. Lane 0 of `disk` carries file data, lane 1 the metadata store.

use std::error::Error;
use std::time::Duration;

use fido_core::domain::Domain;
use fido_core::heritage::Inherited;
use fido_core::wait::Source;
use mmblk::link::front::LinkQueue;
use mmblk::queue::BlockQueue;
use mmnet::stream::{LinkPort, StreamPort};

use super::event_loop::{self, Component};
use crate::nfs::{Limits, NfsServer};
use crate::volume::{NasVolume, Options};

/// How long to wait for the disk domain.
const PATIENCE: Duration = Duration::from_secs(20);
/// The export's name; `/` is the same.
pub const EXPORT: &str = "/export";

/// Opens the volume on the disk domain, serves the net domain's streams, and says so.
pub fn run(domain: &Domain) -> Result<(), Box<dyn Error>> {
    let data = LinkQueue::connect(domain.take_lane("disk", 0)?, PATIENCE)?;
    let meta = LinkQueue::connect(domain.take_lane("disk", 1)?, PATIENCE)?;
    let volume = NasVolume::open(domain.memory(), data, meta, Options::default(), inherited(domain).as_ref())?;
    let port = LinkPort::new(domain.take_lane("nfs", 0)?);
    let server = NfsServer::new(domain.memory(), port, volume, EXPORT, Limits::default())?;
    domain.ready(&[("export", EXPORT.to_owned())])?;
    event_loop::run(domain, Fs { server })
}

/// What the incarnation before this one has left; what is wrong with it is only logged.
pub fn inherited(domain: &Domain) -> Option<Inherited> {
    let window = domain.take_predecessor()?;
    let inherited = Inherited::of(&window);
    inherited.inspect_err(|error| tracing::warn!(%error, "what the predecessor has left cannot be read")).ok()?
}

/// The NFS server as a component, over whatever port and queue.
pub struct Fs<P, Q: BlockQueue> {
    /// The server, with its port and its volume.
    pub server: NfsServer<P, NasVolume<Q>>,
}

impl<P: StreamPort, Q: BlockQueue> Component for Fs<P, Q> {
    fn poll(&mut self) -> bool {
        self.server.poll()
    }

    fn flush(&mut self) {
        self.server.flush();
    }

    fn sources(&mut self) -> Vec<&mut dyn Source> {
        self.server.sources()
    }

    fn timeout(&self) -> Option<Duration> {
        self.server.timeout()
    }

    fn finish(&mut self) {
        self.server.drain();
    }

    fn is_finished(&self) -> bool {
        self.server.is_idle()
    }
}
