//! The disk component: opens the device that its manifest describes, and serves it to every domain that it is linked with,
//! each within its limits, until the manager ends it. On SIGHUP it looks whether the device has another size by now.
//! Of an array the manager's notes tell how many `members` there are, how many of them are `whole`, how far a rebuild is
//! (`rebuilt`), and its `failure`.
//!
//! `docs/mmblk.md` has its settings and an example.

use std::error::Error;
use std::os::fd::BorrowedFd;
use std::process::ExitCode;
use std::time::Duration;

use fido_core::crew::Crew;
use fido_core::domain::{Domain, Notice};
use fido_core::wait::Source;
use mmblk::component::{self, Settings, serve};
use mmblk::device::{self, BoxQueue};
use mmblk::link::back::BackEnd;
use mmblk::signals::Signals;

/// How often a device that has something to tell is asked.
const GLANCE: Duration = Duration::from_millis(250);
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
    let notes = || {
        let mut notes = vec![("bytes", device.geometry().bytes.to_string())];
        notes.extend(device.notes());
        notes
    };
    let mut told = notes();
    domain.ready(&told)?;
    // Most devices have nothing to tell.
    let glance = (told.len() > 1).then_some(GLANCE);
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
        if glance.is_some() && notes() != told {
            told = notes();
            domain.ready(&told)?;
        }
        waiter.idle(&mut [&mut notices, &mut hangup, &mut lanes], glance)?;
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
