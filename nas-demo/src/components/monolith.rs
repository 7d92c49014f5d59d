//! The monolithic twin: net, fs and disk in one process, with direct calls in place of links.

use std::error::Error;

use fido_core::domain::Domain;

use super::event_loop;
use super::{disk, fs, net};
use crate::nfs::{Limits, NfsServer};
use crate::volume::{NasVolume, Options};

/// Opens the image and the volume, listens, and says where.
pub fn run(domain: &Domain) -> Result<(), Box<dyn Error>> {
    let device = disk::open(domain)?;
    let (data, meta) = (device.queue(&domain.memory())?, device.queue(&domain.memory())?);
    let volume = NasVolume::open(domain.memory(), data, meta, Options::default(), fs::inherited(domain).as_ref())?;
    let port = net::listen(domain)?;
    let address = port.local_addr();
    let server = NfsServer::new(domain.memory(), port, volume, fs::EXPORT, Limits::default())?;
    domain.ready(&[("listen", address.to_string())])?;
    event_loop::run(domain, fs::Fs { server })
}
