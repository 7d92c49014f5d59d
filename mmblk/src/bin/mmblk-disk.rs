//! The disk component: opens the device that its manifest describes, and serves it to every domain that it is linked with,
//! each within its limits, until the manager ends it. On SIGHUP it looks whether the device has another size by now.
//!
//! `docs/mmblk.md` has its settings and an example.

use std::error::Error;
use std::os::fd::BorrowedFd;
use std::process::ExitCode;

use fido_core::crew::Crew;
use fido_core::domain::{Domain, Notice};
use fido_core::wait::Source;
use mmblk::component::{self, Settings, serve};
use mmblk::device::{self, BoxQueue};
use mmblk::link::back::BackEnd;
use mmblk::signals::Signals;

const USAGE: &str = "mmblk-disk takes no words: the manager starts it, with settings from the manifest (docs/mmblk.md)";

fn main() -> ExitCode {
    component::main("mmblk-disk", USAGE, |_| run())
}

fn run() -> Result<(), Box<dyn Error>> {
    // Before any thread is there: the signal is for one of them.
    let mut hangup = Signals::hangup()?;
    let domain = Domain::join()?;
    let settings = Settings::of(&domain)?;
    let device = device::open(&settings.device)?;
    let mut lanes = Lanes(serve(&domain, &*device, &settings)?);
    domain.ready(&[("bytes", device.geometry().bytes.to_string())])?;
    let mut notices = domain.notices()?;
    let mut waiter = domain.waiter()?;
    loop {
        if notices.poll() == Some(Notice::Shutdown) {
            return Ok(());
        }
        if hangup.take()
            && let Err(error) = device.refresh()
        {
            tracing::error!(%error, "the size stays as it was");
        }
        if let Some(failure) = lanes.0.failures().first() {
            // The users of that lane would wait for ever; a new incarnation serves it.
            return Err(format!("{}: {}", failure.what, failure.message).into());
        }
        waiter.idle(&mut [&mut notices, &mut hangup, &mut lanes], None)?;
    }
}

/// The lanes, which a crew serves; it wakes this thread only if one has failed.
struct Lanes(Crew<BackEnd<BoxQueue>>);

impl Source for Lanes {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.0.failed()
    }

    fn edge_triggered(&self) -> bool {
        true
    }

    fn ready(&mut self) -> bool {
        self.0.has_failed()
    }
}
