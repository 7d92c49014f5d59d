//! The capture component: writes every frame that comes over its only link to a file, and sends none. Linked to the mirror
//! port of a switch, it is where the traffic can be seen; a slow disk holds up no frame, since a mirror drops what is not
//! taken; but up to 256 frames wait at either end and as many messages in the lane, in the arenas of those who sent them.
//!
//! `docs/mmnet.md` has its settings and an example.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use fido_core::addr::DomainId;
use fido_core::domain::Domain;
use fido_core::wait::Source;
use mmnet::capture::Capture;
use mmnet::component::{self, Service};
use mmnet::frame::{FrameLink, FramePort, MAX_MTU};

/// Frames written in one turn.
const BATCH: usize = 64;
/// The most bytes of the file, unless the manifest says so.
const LIMIT: u64 = 1 << 30;

fn main() -> ExitCode {
    component::main("mmnet-capture", run)
}

fn run() -> Result<(), Box<dyn Error>> {
    let domain = Domain::join()?;
    let path: PathBuf = domain.required_param("file")?;
    let path = Capture::place(&path, domain.memory().id().generation.number());
    let [link] = &*domain.assignment().links else {
        return Err(format!("{} links; a capture is of one", domain.assignment().links.len()).into());
    };
    let link = FrameLink::new(domain.take_lane(&link.name, 0)?, MAX_MTU)?;
    let capture = Capture::create(&path, domain.param("snap", u32::MAX)?, domain.param("limit", LIMIT)?);
    let capture = capture.map_err(|error| domain.bad_param("file", format!("{}: {error}", path.display())))?;
    component::run(&domain, Tape { link, capture, path, failure: None })
}

/// A link and where its frames go.
struct Tape {
    link: FrameLink,
    capture: Capture,
    path: PathBuf,
    failure: Option<String>,
}

impl Service for Tape {
    fn turn(&mut self) -> bool {
        let mut worked = false;
        for _ in 0..BATCH {
            let Some(frame) = self.link.recv() else { break };
            worked = true;
            if let Err(error) = self.capture.record(&frame, self.link.memory()) {
                self.failure = Some(format!("{}: {error}", self.path.display()));
                // Nothing behind a record that may be half there.
                break;
            }
        }
        self.link.flush();
        worked
    }

    fn sources<'a>(&'a mut self, all: &mut Vec<&'a mut dyn Source>) {
        all.push(&mut self.link);
    }

    fn forget(&mut self, dead: DomainId) {
        self.link.forget(dead);
    }

    fn notes(&self) -> Vec<(String, String)> {
        let (frames, bytes, beyond) = self.capture.counts();
        let lost = self.link.counts().dropped_receiving;
        let numbers = [("frames", frames), ("bytes", bytes), ("beyond", beyond), ("lost", lost)];
        let numbers = numbers.into_iter().map(|(name, value)| (name.to_owned(), value.to_string()));
        std::iter::once(("file".to_owned(), self.path.display().to_string())).chain(numbers).collect()
    }

    fn failure(&self) -> Option<String> {
        self.failure.clone()
    }
}
