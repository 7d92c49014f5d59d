//! The disk domain: owns the image file, or whatever device its manifest describes, and serves each lane of link `disk`
//! from a queue of its own, with as many threads as there is work and room for.

use std::error::Error;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fido_core::crew::{self, Crew, Failure, MAX_CREW};
use fido_core::domain::Domain;
use fido_core::platform::xen::XenPlatform;
use fido_core::wait::Source;
use mmblk::backend::file::{FileDevice, FileOptions};
use mmblk::device::description::Description;
use mmblk::device::{self, BoxQueue, Device};
use mmblk::link::back::{BackEnd, Limits};

use super::event_loop::{self, Component};

/// A thread beyond the first that has had no work for so long is let go.
const LULL: Duration = Duration::from_millis(500);

/// Opens the device, serves every lane, and says so.
pub fn run(domain: &Domain) -> Result<(), Box<dyn Error>> {
    let device = open(domain)?;
    let mut lanes = Vec::new();
    for lane in domain.take_lanes("disk")? {
        lanes.push((lane, device.queue(&domain.memory())?));
    }
    // fs is the only one that it serves, and so may have all of it.
    let lanes = BackEnd::group(lanes, Limits::NONE)?;
    let most = most_threads(domain, lanes.len())?;
    let crew = domain.crew(crew::Limits { least: 1, most, lull: LULL }, lanes)?;
    domain.ready(&[("bytes", device.geometry().bytes.to_string())])?;
    event_loop::run(domain, Disk { crew })
}

/// What the manifest describes as `device`, or else the image that it names.
pub fn open(domain: &Domain) -> Result<Arc<dyn Device>, Box<dyn Error>> {
    let Some(text) = domain.param::<Option<String>>("device", None)? else { return Ok(Arc::new(open_image(domain)?)) };
    let described = Description::parse(&text).map_err(|error| domain.bad_param("device", error.to_string()))?;
    Ok(device::open(&described)?)
}

/// The image or device that the manifest names; an image is created with the size that it gives. In a guest, writes go
/// through unless the manifest says otherwise: what is only in the page cache there dies with the guest.
fn open_image(domain: &Domain) -> Result<FileDevice, Box<dyn Error>> {
    let image: PathBuf = domain.required_param("image")?;
    let size: Option<u64> = domain.param("size", None)?;
    let write_through = domain.param("write-through", XenPlatform::is_here())?;
    Ok(FileDevice::open(&FileOptions { create_bytes: size, write_through, ..FileOptions::new(image) })?)
}

/// The setting `threads`, or what is left for this domain of the processors; never more than there are lanes, for a lane
/// is not divided.
fn most_threads(domain: &Domain, lanes: usize) -> Result<usize, Box<dyn Error>> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let share = processors / usize::from(domain.assignment().domains).max(1);
    let threads = domain.param("threads", share.max(1))?;
    if !(1..=MAX_CREW).contains(&threads) {
        return Err(domain.bad_param("threads", format!("{threads}; it must be 1 to {MAX_CREW}")).into());
    }
    Ok(threads.min(lanes).max(1))
}

/// The lanes are the crew's; what is left to this thread is to see when one fails.
struct Disk {
    crew: Crew<BackEnd<BoxQueue>>,
}

impl Component for Disk {
    fn poll(&mut self) -> bool {
        if let Some(Failure { what, message }) = self.crew.failures().first() {
            // The disk's users would wait for ever for a lane that nobody serves; a new incarnation serves it.
            panic!("{what}: {message}");
        }
        false
    }

    fn flush(&mut self) {}

    fn sources(&mut self) -> Vec<&mut dyn Source> {
        vec![self]
    }
}

impl Source for Disk {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.crew.failed()
    }

    fn edge_triggered(&self) -> bool {
        true
    }

    fn ready(&mut self) -> bool {
        self.crew.has_failed()
    }
}
