//! `mmblk-ublk`: a disk of this machine's own kernel, `/dev/ublkbN`.
//!
//! Started by the manager of an appliance, it serves the disk that its link `disk` leads to, with a queue for each lane
//! (settings `number`, `depth`). By hand it serves a disk of its own:
//!
//! ```text
//! mmblk-ublk DEVICE [queues=1] [depth=64] [number=N]
//! ```
//!
//! where DEVICE is a description such as `file:/srv/disk.img,create=1GiB` (see [`mmblk::device`]). It prints the disk's
//! name. The manager's word, SIGTERM or SIGINT end it: unmount first, what comes later fails. docs/ublk.md has more.

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use fido_core::assignment::WaitStrategy;
use fido_core::domain::{Domain, Notice};
use fido_core::memory::Memory;
use fido_core::waiter::Waiter;
use mmblk::device::BoxQueue;
use mmblk::export::ublk::Export;
use mmblk::link::front::LinkQueue;
use mmblk::signals::Signals;
use mmblk::{component, device};

/// How long the disk's domain may take to come up.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often the queues are looked at.
const GLANCE: Duration = Duration::from_millis(200);
/// The arena of a process that is no domain, for each queue.
const ARENA: u64 = 64 << 20;
const DEPTH: u32 = 64;
/// The most queues that are asked for by hand: so much memory is reserved.
const MAX_QUEUES: u64 = 16;
const USAGE: &str = "usage: mmblk-ublk DEVICE [queues=1] [depth=64] [number=N]";

fn main() -> ExitCode {
    component::main("mmblk-ublk", USAGE, |words| if words.is_empty() { serve_domain() } else { by_hand(words) })
}

/// A domain of an appliance: the disk is another's.
fn serve_domain() -> Result<(), Box<dyn Error>> {
    let domain = Domain::join().map_err(|error| format!("{error}\n{USAGE}"))?;
    let (number, depth) = (domain.param("number", None::<u32>)?, domain.param("depth", DEPTH)?);
    let mut queues: Vec<BoxQueue> = Vec::new();
    for lane in domain.take_lanes("disk")? {
        queues.push(Box::new(LinkQueue::connect(lane, PATIENCE)?));
    }
    let export = Export::start(number, queues, depth, &domain.memory())?;
    let mut notices = domain.notices()?;
    let mut waiter = domain.waiter()?;
    domain.ready(&[("disk", export.path())])?;
    loop {
        match notices.poll() {
            Some(Notice::Shutdown) => return Ok(()),
            Some(_) => {}
            None if export.has_failed() => return Err(format!("{} is not served any more", export.path()).into()),
            None => waiter.idle(&mut [&mut notices], Some(GLANCE))?,
        }
    }
}

/// No domain: the disk is this process's own.
fn by_hand(words: &[String]) -> Result<(), Box<dyn Error>> {
    // Before any thread is there: the signals are for one of them.
    let mut end = Signals::end()?;
    let [disk, settings @ ..] = words else { return Err(USAGE.into()) };
    let (mut count, mut depth, mut number) = (1_u64, DEPTH, None);
    for setting in settings {
        match setting.split_once('=') {
            Some(("queues", value)) => count = value.parse()?,
            Some(("depth", value)) => depth = value.parse()?,
            Some(("number", value)) => number = Some(value.parse()?),
            _ => return Err(format!("`{setting}`\n{USAGE}").into()),
        }
    }
    if !(1..=MAX_QUEUES).contains(&count) {
        return Err(format!("{count} queues; it must be 1 to {MAX_QUEUES}").into());
    }
    let device = device::open_text(disk)?;
    let memory = Memory::private(ARENA * count)?;
    let queues = (0..count).map(|_| device.queue(&memory)).collect::<Result<_, _>>()?;
    let export = Export::start(number, queues, depth, &memory)?;
    println!("{}", export.path());
    let mut waiter = Waiter::new(WaitStrategy::Sleep)?;
    while !end.take() {
        if export.has_failed() {
            return Err(format!("{} is not served any more", export.path()).into());
        }
        waiter.idle(&mut [&mut end], Some(GLANCE))?;
    }
    Ok(())
}
