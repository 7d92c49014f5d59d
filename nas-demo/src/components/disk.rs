//! The disk domain: owns the image file and serves each lane of link `disk` from a queue of its own.

use std::error::Error;
use std::path::PathBuf;

use fido_core::domain::Domain;
use fido_core::wait::Source;
use mmblk::backend::file::{FileDevice, FileOptions, FileQueue};
use mmblk::link::back::BackEnd;

use super::event_loop::{self, Component};

/// Opens the image, serves every lane, and says so.
pub fn run(domain: &Domain) -> Result<(), Box<dyn Error>> {
    let device = open_image(domain)?;
    let mut queues = Vec::new();
    for lane in domain.take_lanes("disk")? {
        queues.push(BackEnd::new(lane, device.queue(domain.memory())?));
    }
    domain.ready(&[("bytes", device.geometry().bytes.to_string())])?;
    event_loop::run(domain, Disk { queues })
}

/// The image that the manifest names, created with the size that it gives.
pub fn open_image(domain: &Domain) -> Result<FileDevice, Box<dyn Error>> {
    let image: PathBuf = domain.required_param("image")?;
    let size: Option<u64> = domain.param("size", None)?;
    Ok(FileDevice::open(&FileOptions { create_bytes: size, ..FileOptions::new(image) })?)
}

struct Disk {
    queues: Vec<BackEnd<FileQueue>>,
}

impl Component for Disk {
    fn poll(&mut self) -> bool {
        self.queues.iter_mut().fold(false, |busy, queue| queue.poll() | busy)
    }

    fn flush(&mut self) {
        self.queues.iter_mut().for_each(BackEnd::flush);
    }

    fn sources(&mut self) -> Vec<&mut dyn Source> {
        self.queues.iter_mut().flat_map(BackEnd::sources).collect()
    }
}
