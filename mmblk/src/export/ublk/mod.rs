//! ublk: a disk of the machine's own kernel, `/dev/ublkbN`, served by this process.
//!
//! The kernel hands requests over by io_uring, one ring and one thread for each queue. The payload of a write is taken
//! from the kernel into the arena, and goes on from there by address; that of a read is given to the kernel from where
//! the device has lent it: no copy of ours, one of the kernel's. `docs/adr/0030-ublk.md` says why so.
//!
//! | | |
//! |---|---|
//! | [`command`] | what is said to the driver, and what it says |
//! | `control` | making and ending devices |
//! | `descriptors`, `serving` | what a queue is asked, and its thread |
//!
//! It needs Linux 6.5, the module `ublk_drv`, and root. When the process dies, requests under way fail and the disk is
//! gone; a number that a dead server has left is taken again by asking for it. A device that gets another size keeps its
//! old one here.

pub mod command;
mod control;
mod descriptors;
mod serving;

use std::fs::File;
use std::io;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fido_core::memory::Memory;

use crate::device::BoxQueue;
use crate::queue::BlockQueue;
use command::{Command, DEAD, Info, MAX_DEPTH, MAX_QUEUES};
use control::Control;
use serving::Serving;

/// How long the queue's file may take to appear, and a queue to be ready or to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why there is no disk.
#[derive(Debug, thiserror::Error)]
pub enum UblkError {
    /// No queue, or too many.
    #[error("{0} queues; it must be 1 to {MAX_QUEUES}")]
    Queues(usize),
    /// No requests at a time, or too many.
    #[error("{0} requests under way on each queue; it must be 1 to {MAX_DEPTH}")]
    Depth(u32),
    /// Linux has no such blocks.
    #[error("blocks of {0} bytes; Linux takes up to 4096")]
    Block(u32),
    /// The kernel has no ublk, or we must not use it.
    #[error("/dev/ublk-control: {0} (is the module ublk_drv loaded, and is this root?)")]
    NoDriver(io::Error),
    /// The kernel's ublk cannot do what is needed.
    #[error("the kernel's ublk lacks UBLK_F_USER_COPY: it must be Linux 6.5 or later")]
    OldDriver,
    /// The number is taken.
    #[error("/dev/ublkb{0} is served by another process")]
    Taken(u32),
    /// The kernel refused a step.
    #[error("cannot {step}: {error}")]
    System {
        /// What was being done.
        step: &'static str,
        /// The kernel's reason.
        error: io::Error,
    },
}

fn failed(step: &'static str) -> impl Fn(io::Error) -> UblkError {
    move |error| UblkError::System { step, error }
}

/// A device that is a disk of this machine. Ends when dropped: what is under way ends first, and users get errors then.
pub struct Export {
    control: Control,
    device: u32,
    threads: Vec<JoinHandle<()>>,
}

impl Export {
    /// Makes a disk with a queue for each of `queues`, of one device, whose buffers and windows are `memory`'s; as
    /// `/dev/ublkbN` for a given `N`, or the first that is free. `depth` requests may be under way on each.
    ///
    /// # Errors
    /// [`UblkError`].
    pub fn start(wanted: Option<u32>, queues: Vec<BoxQueue>, depth: u32, memory: &Memory) -> Result<Self, UblkError> {
        let first = queues.first().filter(|_| queues.len() <= MAX_QUEUES).ok_or(UblkError::Queues(queues.len()))?;
        let short = u16::try_from(depth).ok().filter(|depth| (1..=MAX_DEPTH).contains(&(*depth).into()));
        let depth = short.ok_or(UblkError::Depth(depth))?;
        let (geometry, features) = (first.geometry(), first.features());
        let shifts = command::shifts(geometry, features).ok_or(UblkError::Block(geometry.block))?;
        let mut control = Control::open()?;
        if let Some(number) = wanted {
            make_room(&mut control, number)?;
        }
        let info = Info { queues: queues.len() as u16, depth, state: 0, device: wanted.unwrap_or(u32::MAX) };
        let mut bytes = info.bytes();
        control.ask(Command::Add, info.device, &mut bytes, 0).map_err(failed("make a device"))?;
        let device = Info::parse(&bytes).device;
        // From here on it is removed again if something fails.
        let mut export = Self { control, device, threads: Vec::new() };
        let mut parameters = command::parameters(geometry, features, shifts);
        let described = export.control.ask(Command::Describe, device, &mut parameters, 0);
        described.map_err(failed("say what the device is like"))?;
        export.serve(queues, depth, memory)?;
        let process = u64::from(std::process::id());
        export.control.ask(Command::Start, device, &mut [], process).map_err(failed("start the device"))?;
        Ok(export)
    }

    /// Its file.
    pub fn path(&self) -> String {
        format!("/dev/ublkb{}", self.device)
    }

    /// Whether a queue is not served any more.
    pub fn has_failed(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Starts the threads, and waits until each has told the kernel.
    fn serve(&mut self, queues: Vec<BoxQueue>, depth: u16, memory: &Memory) -> Result<(), UblkError> {
        let file = Arc::new(open(&format!("/dev/ublkc{}", self.device)).map_err(failed("open the queues' file"))?);
        let (says, hear) = mpsc::channel::<io::Result<()>>();
        let count = queues.len();
        for (number, queue) in queues.into_iter().enumerate() {
            let (file, memory, says) = (file.clone(), memory.clone(), says.clone());
            let serve = move || match Serving::start(number as u16, depth, file, queue, memory) {
                Ok(serving) => {
                    let _ = says.send(Ok(()));
                    drop(says);
                    if let Err(error) = serving.run() {
                        tracing::error!(number, %error, "a queue is not served any more");
                    }
                }
                Err(error) => {
                    let _ = says.send(Err(error));
                }
            };
            let thread = std::thread::Builder::new().name(format!("ublk {number}")).spawn(serve);
            self.threads.push(thread.map_err(failed("start a thread"))?);
        }
        for _ in 0..count {
            let said = hear.recv_timeout(PATIENCE).map_err(|_| io::ErrorKind::TimedOut.into()).and_then(|said| said);
            said.map_err(failed("serve a queue"))?;
        }
        Ok(())
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        if let Err(error) = self.control.ask(Command::Stop, self.device, &mut [], 0) {
            tracing::error!(%error, "the disk cannot be stopped");
        }
        let deadline = Instant::now() + PATIENCE;
        for thread in self.threads.drain(..) {
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            if thread.is_finished() {
                let _ = thread.join();
            } else {
                // Removing the device would wait for it for ever.
                return tracing::error!("a queue does not end: the device stays");
            }
        }
        if let Err(error) = self.control.ask(Command::Delete, self.device, &mut [], 0) {
            tracing::error!(%error, "the device cannot be removed");
        }
    }
}

/// Removes what a server that has died has left under that number.
fn make_room(control: &mut Control, number: u32) -> Result<(), UblkError> {
    match control.info(number) {
        // There is none.
        Err(_) => Ok(()),
        Ok(Info { state: DEAD, .. }) => {
            control.ask(Command::Delete, number, &mut [], 0).map_err(failed("remove a dead device"))
        }
        Ok(_) => Err(UblkError::Taken(number)),
    }
}

/// Opens a file that may take a moment to appear.
fn open(path: &str) -> io::Result<File> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match File::options().read(true).write(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            opened => return opened,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::null::NullQueue;
    use crate::queue::Geometry;
    use fido_core::testing::private_memory;

    /// The first error, before anything is asked of a kernel.
    fn refused(count: usize, depth: u32, block: u32) -> String {
        let memory = private_memory(8 << 20);
        let geometry = Geometry { bytes: 1 << 20, block, depth: 4 };
        let queue = || Box::new(NullQueue::new(geometry, memory.clone()).unwrap()) as BoxQueue;
        let queues = (0..count).map(|_| queue()).collect();
        Export::start(None, queues, depth, &memory).err().map_or_else(String::new, |error| error.to_string())
    }

    #[test]
    fn what_no_kernel_could_take_is_refused_first() {
        assert!(refused(0, 1, 512).contains("0 queues"));
        assert!(refused(1, 0, 512).contains("0 requests") && refused(1, 4097, 512).contains("4097 requests"));
        assert!(refused(1, 1, 8192).contains("blocks of 8192"));
    }
}
