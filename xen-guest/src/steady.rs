//! The second part of the scenario `ring`: `ping` stays in one state after the other, for as long as dom0 needs to count
//! what Xen is called for meanwhile. In all of them both guests look without sleeping.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fido_core::bell::Ringer;
use fido_core::domain::{Domain, Notice, Notices};
use fido_core::lane::Lane;
use fido_core::platform::xen::channel::Channel;

use crate::pace;

/// What ping does, in turn: nothing but look for messages; ask and be answered; the same, and call Xen for each question.
/// The first is what the last two are compared with, the last shows that the counting counts.
pub const PHASES: [&str; 3] = ["quiet", "messages", "calls"];
/// After so many questions, or turns, of each phase ping rings an event channel that wakes nobody: the count of those
/// tells how many messages there were while Xen counted.
pub const MARKS: [u32; 3] = [1 << 20, 4096, 64];
/// The note of the phase that has begun: its number and its name.
pub const PHASE: &str = "phase";

const LASTS: Duration = Duration::from_secs(5);
/// What the kernel asks Xen for whenever it is read.
const VERSION: &str = "/sys/hypervisor/version/extra";

/// Goes through the phases until the shutdown. `notes` are told along.
///
/// # Errors
/// What the domain or its lane say.
pub fn run(domain: &Domain, lane: &mut Lane, notices: &mut Notices, mut notes: Vec<(&str, String)>) -> io::Result<()> {
    let channel = Arc::new(Channel::open().map_err(io::Error::other)?);
    // Nobody binds it: ringing it calls Xen and wakes nobody.
    let nobody = channel.offer(0).map_err(io::Error::other)?;
    let version = File::open(VERSION)?;
    let always = notes.len();
    for number in 0_usize.. {
        let phase = number % PHASES.len();
        notes.truncate(always);
        notes.push((PHASE, format!("{number} {}", PHASES[phase])));
        domain.ready(&notes).map_err(io::Error::other)?;
        let began = Instant::now();
        while began.elapsed() < LASTS {
            if notices.poll() == Some(Notice::Shutdown) {
                return Ok(());
            }
            nobody.ring();
            for turn in 0..MARKS[phase] {
                match phase {
                    0 => look(lane)?,
                    _ => pace::ask(lane, turn)?,
                }
                if phase == 2 {
                    version.read_at(&mut [0; 16], 0)?;
                }
            }
        }
    }
    Ok(())
}

fn look(lane: &mut Lane) -> io::Result<()> {
    std::hint::spin_loop();
    match lane.recv() {
        None => Ok(()),
        Some(message) => Err(io::Error::other(format!("{message:?}, although nothing was asked"))),
    }
}
