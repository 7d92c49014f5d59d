//! `mmblk-vhost`: a disk for a virtual machine, at a vhost-user socket.
//!
//! Started by the manager of an appliance, it serves the disk that its link `disk` leads to, one ring for each lane, at
//! the socket that its setting `socket` names (settings `serial`). By hand it serves a disk of its own:
//!
//! ```text
//! mmblk-vhost SOCKET (file:PATH | memory:BYTES | null:BYTES) [rings=1] [block=512] [serial=NAME]
//! ```
//!
//! It runs until it is told to end (the manager's word, SIGTERM), and can be killed at any time: the front end keeps a
//! note of what was under way, and a successor does it again.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use fido_core::domain::{Domain, Notice};
use fido_core::testing::private_memory;
use mmblk::backend::file::{FileDevice, FileOptions};
use mmblk::backend::memory::MemoryDevice;
use mmblk::backend::null::NullQueue;
use mmblk::export::vhost_user::serving::Queue;
use mmblk::export::vhost_user::{Device, Export};
use mmblk::link::front::LinkQueue;
use mmblk::queue::Geometry;
use tracing_subscriber::EnvFilter;

/// How long the disk's domain may take to come up.
const PATIENCE: Duration = Duration::from_secs(30);
/// Buffers of a disk of its own: reads and writes need none, but the null device has its zeros here.
const ARENA: u64 = 8 << 20;
const DEPTH: u32 = 128;
const USAGE: &str =
    "usage: mmblk-vhost SOCKET (file:PATH | memory:BYTES | null:BYTES) [rings=1] [block=512] [serial=NAME]";

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let words: Vec<String> = std::env::args().skip(1).collect();
    let ended = if words.is_empty() { component() } else { by_hand(&words) };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mmblk-vhost: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A domain of an appliance: the disk is another's.
fn component() -> Result<(), Box<dyn Error>> {
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
    let [socket, disk, settings @ ..] = words else { return Err(USAGE.into()) };
    let (mut rings, mut block, mut serial) = (1_usize, 512, "fido");
    for setting in settings {
        match setting.split_once('=') {
            Some(("rings", value)) => rings = value.parse()?,
            Some(("block", value)) => block = value.parse()?,
            Some(("serial", value)) => serial = value,
            _ => return Err(format!("`{setting}`\n{USAGE}").into()),
        }
    }
    let queues = queues(disk, rings, block)?;
    let (memory, queues) = queues;
    let _export = Export::start(Path::new(socket), Device::new(memory, queues, serial)?)?;
    println!("serving {socket}");
    loop {
        std::thread::park();
    }
}

fn queues(disk: &str, rings: usize, block: u32) -> Result<(fido_core::memory::Memory, Vec<Queue>), Box<dyn Error>> {
    let (kind, what) = disk.split_once(':').ok_or(USAGE)?;
    let geometry = |bytes: &str| -> Result<Geometry, Box<dyn Error>> {
        Ok(Geometry { bytes: bytes.parse()?, block, depth: DEPTH })
    };
    let memory = private_memory(ARENA * rings as u64);
    let mut queues: Vec<Queue> = Vec::new();
    match kind {
        "file" => {
            let device = FileDevice::open(&FileOptions { block, depth: DEPTH, ..FileOptions::new(what) })?;
            for _ in 0..rings {
                queues.push(Box::new(device.queue(memory.clone())?));
            }
        }
        "memory" => {
            let device = MemoryDevice::new(geometry(what)?)?;
            for _ in 0..rings {
                queues.push(Box::new(device.queue(memory.clone())?));
            }
        }
        "null" => {
            for _ in 0..rings {
                queues.push(Box::new(NullQueue::new(geometry(what)?, memory.clone())?));
            }
        }
        _ => return Err(USAGE.into()),
    }
    Ok((memory, queues))
}
