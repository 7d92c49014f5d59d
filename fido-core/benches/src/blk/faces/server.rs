//! The servers: programs of others, and ours in a process of its own, over the device itself or over a link to a third
//! process that has it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fido_core::assignment::WaitStrategy;
use fido_core::crew::{Crew, Limits as CrewLimits};
use fido_core::memory::Memory;
use fido_core::waiter::Waiter;
use mmblk::device::{BoxQueue, open_text};
use mmblk::export::nbd::{Export as NbdExport, Limits, Server as NbdServer};
use mmblk::export::vhost_user::serving::Queue;
use mmblk::export::vhost_user::{Device, Export};
use mmblk::link::device::LinkDevice;
use mmblk::nbd::place::Place;
use serde::{Deserialize, Serialize};

use super::super::pair::{self, JOBS, Pair};
use crate::Failure;
use crate::machine::process_time;
use crate::other_side::{Control, Part, Partner, Program};

/// The size of the device.
pub const BYTES_THERE: u64 = 256 << 20;
/// What our NBD server calls it.
pub const EXPORT: &str = "disk";
/// How long a server may take to listen, or a disk's domain to be there.
const PATIENCE: Duration = Duration::from_secs(20);
/// A thread beyond the first that has had no work for so long is let go, as in `mmblk-nbd`.
const LULL: Duration = Duration::from_millis(500);

/// A server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// `nbdkit null`.
    Nbdkit,
    /// Our NBD server.
    Nbd,
    /// Our NBD server, with the device in another domain.
    NbdLink,
    /// The vhost-user-blk export of `qemu-storage-daemon`, with an I/O thread.
    Qemu,
    /// Our vhost-user-blk export.
    Vhost,
}

impl Kind {
    /// What tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nbdkit => "nbdkit",
            Self::Nbd => "mmblk-nbd",
            Self::NbdLink => "mmblk-nbd-link",
            Self::Qemu => "qemu-storage-daemon",
            Self::Vhost => "mmblk-vhost",
        }
    }

    /// Why it cannot be had on this machine.
    pub fn missing(self) -> Option<String> {
        match self {
            Self::Nbdkit => missing("nbdkit", "nbdkit"),
            Self::Qemu => missing("qemu-storage-daemon", "qemu-system-common"),
            Self::Nbd | Self::NbdLink | Self::Vhost => None,
        }
    }

    /// The program, if it is another's.
    fn program(self, socket: &Path) -> Option<Command> {
        let socket = socket.display();
        let (program, words) = match self {
            Self::Nbdkit => {
                ("nbdkit", vec!["-f".into(), "-U".into(), socket.to_string(), "null".into(), BYTES_THERE.to_string()])
            }
            Self::Qemu => {
                let device = format!("driver=null-co,node-name=null,size={BYTES_THERE},read-zeroes=on");
                let export = format!(
                    "vhost-user-blk,id=export,node-name=null,addr.type=unix,addr.path={socket},writable=on,\
                     num-queues={JOBS},iothread=thread"
                );
                let thread = "iothread,id=thread".to_owned();
                let words = ["--object".into(), thread, "--blockdev".into(), device, "--export".into(), export];
                ("qemu-storage-daemon", words.to_vec())
            }
            Self::Nbd | Self::NbdLink | Self::Vhost => return None,
        };
        let mut command = Command::new(program);
        command.args(words).stdin(Stdio::null());
        Some(command)
    }
}

/// Why a program cannot be run: it is in none of the folders for programs.
pub fn missing(program: &str, package: &str) -> Option<String> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let is_there = std::env::split_paths(&folders).any(|folder| folder.join(program).is_file());
    (!is_there).then(|| format!("{program} is not installed (Debian's package {package})"))
}

/// What the two sides say to each other.
#[derive(Debug, Serialize, Deserialize)]
enum Say {
    /// Serve that; the words make this program another side.
    Serve { kind: Kind, socket: PathBuf, program: Vec<String> },
    /// It listens.
    Serving,
    /// How much processor time was used so far?
    Cpu,
    /// So much.
    Used(Duration),
    /// That was all.
    Done,
}

/// A server that runs.
pub struct Server {
    kind: Kind,
    socket: PathBuf,
    process: Process,
}

enum Process {
    Ours(Partner, Control),
    Other(Ended),
}

/// A program that is ended with its value.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // Nothing to do if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Server {
    /// Starts a server, and waits until it listens at `socket`.
    pub fn start(kind: Kind, socket: &Path, program: &Program<'_>) -> Result<Self, Failure> {
        let process = match kind.program(socket) {
            Some(mut command) => Process::Other(Ended(command.spawn().map_err(|error| format!("{kind:?}: {error}"))?)),
            None => {
                let (partner, mut control) = Partner::start(program, Part::Face)?;
                let program = program.0.iter().map(|word| (*word).to_owned()).collect();
                control.say(&Say::Serve { kind, socket: socket.into(), program }, &[])?;
                let Say::Serving = control.hear()?.0 else { return Err("the server does not serve".into()) };
                Process::Ours(partner, control)
            }
        };
        let deadline = Instant::now() + PATIENCE;
        while !socket.exists() {
            if Instant::now() > deadline {
                return Err(format!("{} does not open its socket", kind.name()).into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Self { kind, socket: socket.into(), process })
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Processor time that it has used so far, with that of its disk's domain.
    pub fn cpu_time(&mut self) -> Result<Duration, Failure> {
        match &mut self.process {
            Process::Other(Ended(child)) => time_of(child.id()),
            Process::Ours(partner, control) => {
                partner.beat();
                ask_time(control)
            }
        }
    }

    /// Ends it.
    pub fn finish(self) -> Result<(), Failure> {
        match self.process {
            Process::Other(ended) => drop(ended),
            Process::Ours(partner, mut control) => {
                control.say(&Say::Done, &[])?;
                partner.finish()?;
            }
        }
        // What listens there in the next round makes it anew.
        let _ = std::fs::remove_file(&self.socket);
        Ok(())
    }
}

fn ask_time(control: &mut Control) -> Result<Duration, Failure> {
    control.say(&Say::Cpu, &[])?;
    match control.hear()?.0 {
        Say::Used(time) => Ok(time),
        other => Err(format!("the server said {other:?}").into()),
    }
}

/// Processor time of another process, by proc(5): in clock ticks.
fn time_of(process: u32) -> Result<Duration, Failure> {
    let path = format!("/proc/{process}/stat");
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    // The second field is a name in parentheses, which may have anything in it. `utime` and `stime` are 14 and 15.
    let (_, rest) = text.rsplit_once(')').ok_or_else(|| format!("{path}: no name"))?;
    let ticks = rest.split_whitespace().skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

/// The serving side.
pub fn serve(control: &mut Control) -> Result<(), Failure> {
    let (Say::Serve { kind, socket, program }, _) = control.hear()? else { return Err("nothing to serve".into()) };
    let device = format!("null:{BYTES_THERE},block=512,depth=256");
    if kind == Kind::NbdLink {
        let words: Vec<&str> = program.iter().map(String::as_str).collect();
        return serve_link(control, &socket, device, &Program(&words));
    }
    let device = open_text(&device)?;
    let memory = pair::memory()?;
    let queues = (0..JOBS).map(|_| device.queue(&memory)).collect::<Result<Vec<_>, _>>()?;
    if kind == Kind::Vhost {
        let queues: Vec<Queue> = queues.into_iter().map(|queue| Box::new(queue) as Queue).collect();
        let _export = Export::start(&socket, Device::new(memory, queues, "bench")?)?;
        return talk(control, || Ok(process_time()));
    }
    let _serving = nbd(&socket, &memory, queues)?;
    talk(control, || Ok(process_time()))
}

/// The device is in another process.
fn serve_link(control: &mut Control, socket: &Path, device: String, program: &Program<'_>) -> Result<(), Failure> {
    let (partner, mut disk, mut pair) = Pair::start(program, Part::Blk, JOBS)?;
    disk.say(&pair::Say::Serve { device, copying: false }, &[])?;
    let pair::Say::Serving(_) = disk.hear()?.0 else { return Err("the disk's domain does not serve".into()) };
    let link = LinkDevice::connect(pair.take().0, PATIENCE)?;
    let queues = std::iter::from_fn(|| Some(Box::new(link.queue()?) as BoxQueue)).collect();
    let serving = nbd(socket, &pair.memory, queues)?;
    talk(control, || {
        partner.beat();
        disk.say(&pair::Say::Cpu, &[])?;
        match disk.hear()?.0 {
            pair::Say::Used(time) => Ok(process_time() + time),
            other => Err(format!("the disk's domain said {other:?}").into()),
        }
    })?;
    drop(serving);
    disk.say(&pair::Say::Done, &[])?;
    partner.finish()
}

/// Serves NBD as `mmblk-nbd` does: a worker for each queue, and threads as they are needed.
fn nbd(socket: &Path, memory: &Memory, queues: Vec<BoxQueue>) -> Result<impl Sized + use<>, Failure> {
    let export = NbdExport { name: EXPORT.into(), description: String::new(), read_only: false };
    let mut server = NbdServer::bind(&[Place::Unix(socket.into())], vec![export], Limits::default())?;
    let count = queues.len();
    let worker = |queue| server.worker(memory.clone(), vec![queue]);
    let workers = queues.into_iter().map(worker).collect::<Result<Vec<_>, _>>()?;
    let counting = memory.clone();
    let waiter = move || Ok(Waiter::new(WaitStrategy::Adaptive)?.counting_in(&counting));
    let crew = Crew::start(CrewLimits { least: 1, most: count, lull: LULL }, waiter, workers)?;
    Ok((crew, server))
}

/// Answers the leading side until it is done.
fn talk(control: &mut Control, mut used: impl FnMut() -> Result<Duration, Failure>) -> Result<(), Failure> {
    control.say(&Say::Serving, &[])?;
    loop {
        match control.hear()?.0 {
            Say::Cpu => control.say(&Say::Used(used()?), &[])?,
            Say::Done => return Ok(()),
            other => return Err(format!("the leading side said {other:?}").into()),
        }
    }
}
