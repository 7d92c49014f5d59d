//! `mmblk-vhost`: a disk for a virtual machine, at a vhost-user socket.
//!
//! Started by the manager of an appliance, it serves the disk that its link `disk` leads to, one ring for each lane, at
//! the socket that its setting `socket` names (settings `serial`). By hand it serves a disk of its own:
//!
//! ```text
//! mmblk-vhost SOCKET DEVICE [rings=1] [serial=NAME]
//! ```
//!
//! where DEVICE is a description such as `file:/srv/disk.img,create=1GiB` (see [`mmblk::device`]). On SIGHUP it looks
//! whether the device has another size by now.
//!
//! It runs until it is told to end (the manager's word, SIGTERM), and can be killed at any time: the front end keeps a
//! note of what was under way, and a successor does it again.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use fido_core::assignment::WaitStrategy;
use fido_core::domain::{Domain, Notice};
use fido_core::memory::Memory;
use fido_core::waiter::Waiter;
use mmblk::export::vhost_user::serving::Queue;
use mmblk::export::vhost_user::{Device, Export, MAX_RINGS};
use mmblk::link::front::LinkQueue;
use mmblk::signals::Signals;
use mmblk::{component, device};

/// How long the disk's domain may take to come up.
const PATIENCE: Duration = Duration::from_secs(30);
/// The arena of a process that is no domain, for each ring. Reads and writes of a plain device need no buffer in it;
/// layers and RAID do.
const ARENA: u64 = 32 << 20;
const USAGE: &str = "usage: mmblk-vhost SOCKET DEVICE [rings=1] [serial=NAME]";

fn main() -> ExitCode {
    component::main("mmblk-vhost", USAGE, |words| if words.is_empty() { serve_domain() } else { by_hand(words) })
}

/// A domain of an appliance: the disk is another's.
fn serve_domain() -> Result<(), Box<dyn Error>> {
    let domain = Domain::join().map_err(|error| format!("{error}\n{USAGE}"))?;
    let socket: PathBuf = domain.required_param("socket")?;
    let serial: String = domain.param("serial", domain.name().to_owned())?;
    let mut queues: Vec<Queue> = Vec::new();
    for lane in domain.take_lanes("disk")? {
        queues.push(Box::new(LinkQueue::connect(lane, PATIENCE)?));
    }
    let _export = Export::start(&socket, Device::new(domain.memory(), queues, &serial)?)?;
    let mut notices = domain.notices()?;
    let mut waiter = domain.waiter()?;
    domain.ready(&[("socket", socket.display().to_string())])?;
    loop {
        match notices.poll() {
            Some(Notice::Shutdown) => return Ok(()),
            Some(_) => {}
            None => waiter.idle(&mut [&mut notices], None)?,
        }
    }
}

/// No domain: the disk is this process's own.
fn by_hand(words: &[String]) -> Result<(), Box<dyn Error>> {
    // Before any thread is there: the signal is for one of them.
    let mut hangup = Signals::hangup()?;
    let [socket, disk, settings @ ..] = words else { return Err(USAGE.into()) };
    let (mut rings, mut serial) = (1, "fido");
    for setting in settings {
        match setting.split_once('=') {
            Some(("rings", value)) => rings = value.parse()?,
            Some(("serial", value)) => serial = value,
            _ => return Err(format!("`{setting}`\n{USAGE}").into()),
        }
    }
    if !(1..=MAX_RINGS).contains(&rings) {
        return Err(format!("{rings} rings; it must be 1 to {MAX_RINGS}").into());
    }
    let device = device::open_text(disk)?;
    let memory = Memory::private(ARENA * rings as u64)?;
    let queues = (0..rings).map(|_| device.queue(&memory)).collect::<Result<Vec<Queue>, _>>()?;
    let _export = Export::start(Path::new(socket), Device::new(memory, queues, serial)?)?;
    println!("serving {socket}");
    let mut waiter = Waiter::new(WaitStrategy::Sleep)?;
    loop {
        if hangup.take()
            && let Err(error) = device.refresh()
        {
            tracing::error!(%error, "the size stays as it was");
        }
        waiter.idle(&mut [&mut hangup], None)?;
    }
}
