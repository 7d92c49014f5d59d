//! The other side of a benchmark: the same program in a second process, joined by a socket.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use clap::{Args, ValueEnum};
use fido_core::platform::host::protocol;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Failure;

/// How long one side waits for a word of the other before it takes it for stuck.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the leading side has to notice by itself that the other one has ended.
const GRACE: Duration = Duration::from_secs(2);

/// The arguments with which this program plays the other side; what [`OtherSide`] parses follows them.
#[derive(Debug, Clone, Copy)]
pub struct Program<'a>(pub &'a [&'a str]);

/// The benchmark that the other side takes part in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// [`crate::ring`].
    Ring,
    /// [`crate::blk`].
    Blk,
    /// [`crate::blk`], as a server of a standard face.
    Face,
    /// [`crate::net`].
    Net,
}

/// The command line of the other side.
#[derive(Debug, Args)]
pub struct OtherSide {
    /// The benchmark.
    part: Part,
    /// The number of the inherited socket to the leading side.
    socket: RawFd,
}

/// Plays the other side until the leading one says that it is over, or is gone.
///
/// # Errors
/// Whatever went wrong on this side.
pub fn play(other_side: &OtherSide) -> Result<(), Failure> {
    let part = other_side.part;
    // If the leading side is killed, nobody is left to tell this one.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // A number that is no descriptor is found out before it is owned.
    // SAFETY: only looked at; the leading side has it inherited for this process alone.
    let socket = unsafe { BorrowedFd::borrow_raw(other_side.socket.max(0)) };
    rustix::net::getsockname(socket).map_err(|error| format!("descriptor {}: {error}", other_side.socket))?;
    // SAFETY: an open descriptor, inherited for this purpose; nothing else here knows it.
    let mut control = Control::new(unsafe { OwnedFd::from_raw_fd(other_side.socket) })?;
    match part {
        Part::Ring => crate::ring::follow(&mut control),
        Part::Blk => crate::blk::follow(&mut control),
        Part::Face => crate::blk::serve_face(&mut control),
        Part::Net => crate::net::follow(&mut control),
    }
}

/// The other side as the leading one has it. Ended when dropped.
///
/// A thread watches it: a side that dies, or does nothing for a minute, ends the run even if the leading side waits in the
/// kernel for what will never come.
#[derive(Debug)]
pub struct Partner {
    child: Child,
    watch: Arc<Watch>,
}

/// What the watching thread goes by.
#[derive(Debug, Default)]
struct Watch {
    beats: AtomicU64,
    over: AtomicBool,
}

impl Partner {
    /// Starts the other side, and returns it with the conversation to it.
    ///
    /// # Errors
    /// If the program cannot be started again.
    pub fn start(program: &Program<'_>, part: Part) -> Result<(Self, Control), Failure> {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::empty(), None)?;
        rustix::io::fcntl_setfd(&ours, rustix::io::FdFlags::CLOEXEC)?;
        let value = part.to_possible_value().ok_or("a part without a name")?;
        let child = Command::new(std::env::current_exe()?)
            .args(program.0)
            .args([value.get_name(), &theirs.as_raw_fd().to_string()])
            .spawn()
            .map_err(|error| format!("cannot start the other side: {error}"))?;
        let watch = Arc::<Watch>::default();
        let partner = Self { child, watch: watch.clone() };
        let pid = Pid::from_child(&partner.child);
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        std::thread::spawn(move || watch.over(&pidfd));
        Ok((partner, Control::new(ours)?))
    }

    /// Says that all is well so far.
    pub fn beat(&self) {
        self.watch.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits for its end, when it has been told that the benchmark is over.
    ///
    /// # Errors
    /// If it ended in error.
    pub fn finish(mut self) -> Result<(), Failure> {
        self.watch.over.store(true, Ordering::Relaxed);
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { Err(format!("the other side ended with {status}").into()) }
    }
}

impl Drop for Partner {
    fn drop(&mut self) {
        self.watch.over.store(true, Ordering::Relaxed);
        // It may be waiting for this side. Nothing to do if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Watch {
    /// Watches until the other side has ended.
    fn over(&self, pidfd: &OwnedFd) {
        let patience = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
        let mut seen = self.beats.load(Ordering::Relaxed);
        loop {
            let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
            let ended = match rustix::event::poll(&mut fds, Some(&patience)) {
                Ok(ready) => ready > 0,
                Err(_) => continue,
            };
            if ended {
                // The leading side has usually noticed, and has better words for it.
                std::thread::sleep(GRACE);
            }
            let beats = self.beats.load(Ordering::Relaxed);
            if self.over.load(Ordering::Relaxed) {
                return;
            }
            if ended || beats == seen {
                let what = if ended { "has died" } else { "is stuck" };
                eprintln!("error: the other side {what}");
                let _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
                std::process::exit(1);
            }
            seen = beats;
        }
    }
}

/// The conversation of the two sides, beside what is measured.
#[derive(Debug)]
pub struct Control(OwnedFd);

impl Control {
    fn new(socket: OwnedFd) -> Result<Self, Failure> {
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE))?;
        Ok(Self(socket))
    }

    /// Says something, with descriptors beside it.
    ///
    /// # Errors
    /// If the other side is gone.
    pub fn say<T: Serialize>(&mut self, say: &T, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        protocol::send(self.0.as_fd(), say, fds).map_err(|error| format!("to the other side: {error}").into())
    }

    /// Whether the other side has said something.
    ///
    /// # Errors
    /// The kernel's.
    pub fn has_word(&self) -> Result<bool, Failure> {
        let nothing = Timespec { tv_sec: 0, tv_nsec: 0 };
        Ok(rustix::event::poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&nothing))? > 0)
    }

    /// Waits for what the other side says.
    ///
    /// # Errors
    /// If it is gone, says nothing for a minute, or what it says makes no sense.
    pub fn hear<T: DeserializeOwned>(&mut self) -> Result<(T, Vec<OwnedFd>), Failure> {
        protocol::receive(self.0.as_fd()).map_err(|error| format!("from the other side: {error}").into())
    }
}
