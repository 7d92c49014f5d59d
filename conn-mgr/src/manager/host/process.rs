//! One incarnation's process: started in its own process group, tied to the life of the manager, watched through a
//! pidfd.
//!
//! Must be used from one thread that outlives the processes: the kernel ties a child to the *thread* that started it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;

use fido_core::addr::DomainId;
use fido_core::platform::host::protocol::{DOMAIN_VARIABLE, SOCKET_VARIABLE};
use rustix::process::{Pid, PidfdFlags, Signal};

use super::super::output::{self, Output};
use crate::manifest::{Cpus, Domain};

/// A child process that has not been reaped. Killed and reaped when dropped.
pub(super) struct Process {
    child: Child,
    pid: Pid,
    pidfd: OwnedFd,
    reaped: bool,
}

impl Process {
    /// Starts a domain. The second value is the thread that passes on its output.
    pub(super) fn spawn(
        domain: &Domain,
        id: DomainId,
        socket: &Path,
        output: &Output,
    ) -> io::Result<(Self, Option<JoinHandle<()>>)> {
        let mut command = Command::new(&domain.program);
        command.args(&domain.args).env(SOCKET_VARIABLE, socket).env(DOMAIN_VARIABLE, &domain.name);
        command.stdin(Stdio::null()).process_group(0);
        let pump = if let Output::Inherited = output {
            None
        } else {
            let (reader, writer) = io::pipe()?;
            command.stdout(writer.try_clone()?).stderr(writer);
            Some(output::pump(reader, &domain.name, id.generation.number(), output.clone())?)
        };
        let parent = std::process::id();
        let cpus = match &domain.cpus {
            Cpus::List(cpus) => cpu_set(cpus),
            Cpus::All | Cpus::Auto(_) => None,
        };
        // SAFETY: the closure makes plain system calls on values it owns: it neither allocates nor locks.
        unsafe { command.pre_exec(move || prepare_child(parent, cpus.as_ref())) };
        let mut child = command.spawn()?;
        let adopted = i32::try_from(child.id())
            .ok()
            .and_then(Pid::from_raw)
            .ok_or(io::Error::from(io::ErrorKind::InvalidData))
            .and_then(|pid| Ok((pid, rustix::process::pidfd_open(pid, PidfdFlags::empty())?)));
        match adopted {
            Ok((pid, pidfd)) => Ok((Self { child, pid, pidfd, reaped: false }, pump)),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Readable once the process has ended.
    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Sends a signal. A process that has ended already is no error.
    pub(super) fn signal(&self, signal: Signal) {
        if let Err(error) = rustix::process::pidfd_send_signal(&self.pidfd, signal)
            && error != rustix::io::Errno::SRCH
        {
            tracing::error!(pid = self.pid(), ?signal, %error, "cannot signal a domain");
        }
    }

    /// Reaps the process, if it has ended. Whatever it started and left in its process group is killed first, while
    /// its process id still cannot be anybody else's.
    pub(super) fn reap(&mut self) -> Option<io::Result<ExitStatus>> {
        if !self.has_ended() {
            return None;
        }
        let _ = rustix::process::kill_process_group(self.pid, Signal::KILL);
        self.reaped = true;
        Some(self.child.wait())
    }

    fn has_ended(&self) -> bool {
        let mut fds = [rustix::event::PollFd::new(&self.pidfd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|n| n > 0)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.reaped {
            let _ = rustix::process::kill_process_group(self.pid, Signal::KILL);
            self.signal(Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

/// The processors as the kernel wants them; `None` for all.
fn cpu_set(cpus: &[u32]) -> Option<libc::cpu_set_t> {
    if cpus.is_empty() {
        return None;
    }
    // SAFETY: a set of bits, for which zero is valid.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for &cpu in cpus.iter().filter(|&&cpu| cpu < libc::CPU_SETSIZE as u32) {
        // SAFETY: the number is below the set's size.
        unsafe { libc::CPU_SET(cpu as usize, &mut set) };
    }
    Some(set)
}

/// Between fork and exec.
fn prepare_child(parent: u32, cpus: Option<&libc::cpu_set_t>) -> io::Result<()> {
    // SAFETY: plain system calls without pointers.
    unsafe {
        if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
            return Err(io::Error::last_os_error());
        }
        // The manager may have died before the line above.
        if libc::getppid() as u32 != parent {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        // Nothing but the standard streams gets through exec, whoever opened it. A kernel without this call leaves
        // the descriptors of others as they are; the manager's own are all marked.
        libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
    }
    // The manager's process may block signals in order to wait for them; a domain should not inherit that.
    // SAFETY: a set of bits, for which zero is valid; both calls only use `set`, which lives here.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        if libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    if let Some(cpus) = cpus {
        // SAFETY: the set is valid for its size.
        if unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), cpus) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
