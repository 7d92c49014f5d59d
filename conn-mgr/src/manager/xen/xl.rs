//! Xen's toolstack, by its program `xl`: commands run beside the manager's thread, each within a time limit; what they
//! print is kept for the error.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, PidfdFlags, Signal};

use super::XenError;
use crate::manifest::program::is_executable;
use crate::xen::limits::{GrantLimits, XEN_DEFAULT};

/// How long one command may take. Creating a guest takes less than a second; a busy or emulated machine needs longer.
pub(super) const LIMIT: Duration = Duration::from_secs(120);
/// How long it may take when xenstored is gone: most commands wait for it, for ever.
pub(super) const LIMIT_ALONE: Duration = Duration::from_secs(10);
/// So much of what a command prints is kept.
const MAX_OUTPUT: u64 = 1 << 20;
/// So much of it is shown in an error.
const SHOWN: usize = 600;

/// The program.
#[derive(Debug, Clone)]
pub(super) struct Xl(pub(super) PathBuf);

impl Xl {
    /// The program, where systems have it.
    pub(super) fn find() -> Result<Self, XenError> {
        let folders = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::env::split_paths(&folders).chain(["/usr/sbin".into()]);
        let versions = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
        let versions = versions.filter(|entry| entry.file_name().to_string_lossy().starts_with("xen-"));
        let all = folders.chain(versions.map(|entry| entry.path().join("bin")));
        let found = all.map(|folder| folder.join("xl")).find(|path| is_executable(path));
        found.map(Self).ok_or(XenError::NoXl)
    }

    /// Starts a command with `input` as its standard input, which it finds as a file of that name: [`INPUT`].
    pub(super) fn begin(&self, arguments: &[&str], input: &str) -> Result<Running, String> {
        self.begin_within(arguments, input, LIMIT)
    }

    /// As [`Xl::begin`]; it is given up after `limit`.
    pub(super) fn begin_within(&self, arguments: &[&str], input: &str, limit: Duration) -> Result<Running, String> {
        let what = format!("xl {}", arguments.first().unwrap_or(&""));
        self.spawn(arguments, input)
            .map(|(child, pidfd, output)| Running {
                what: what.clone(),
                child,
                pidfd,
                output,
                limit,
                deadline: Instant::now() + limit,
                is_over: false,
            })
            .map_err(|error| format!("{what}: {} cannot be run: {error}", self.0.display()))
    }

    fn spawn(&self, arguments: &[&str], input: &str) -> io::Result<(Child, OwnedFd, File)> {
        let memory = |name: &str| rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC).map(File::from);
        let mut stdin = memory("xl-input")?;
        stdin.write_all(input.as_bytes())?;
        stdin.rewind()?;
        let output = memory("xl-output")?;
        let mut command = Command::new(&self.0);
        command.args(arguments).stdin(stdin).stdout(output.try_clone()?).stderr(output.try_clone()?).process_group(0);
        let mut child = command.spawn()?;
        match rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(pidfd) => Ok((child, pidfd, output)),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error.into())
            }
        }
    }

    /// Runs a command to its end and returns what it printed.
    pub(super) fn run(&self, arguments: &[&str]) -> Result<String, String> {
        let mut running = self.begin(arguments, "")?;
        loop {
            if let Some(result) = running.result(Instant::now()) {
                return result;
            }
            running.sleep(Duration::from_millis(200));
        }
    }

    /// What this Xen allows.
    pub(super) fn limits(&self) -> Result<GrantLimits, XenError> {
        self.run(&["info"]).map(|text| allowed(&text)).map_err(XenError::Xl)
    }
}

/// A command's standard input, as a file that the command can open by name.
pub(super) const INPUT: &str = "/proc/self/fd/0";

/// A command under way. Killed when dropped.
pub(super) struct Running {
    what: String,
    child: Child,
    pidfd: OwnedFd,
    output: File,
    limit: Duration,
    deadline: Instant,
    is_over: bool,
}

impl Running {
    /// Readable once it has ended.
    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// When it is given up.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// What it printed, or why it failed; `None` as long as it runs.
    pub(super) fn result(&mut self, now: Instant) -> Option<Result<String, String>> {
        let status = match self.child.try_wait() {
            Ok(Some(status)) => status,
            Ok(None) if now < self.deadline => return None,
            Ok(None) => {
                self.kill();
                return Some(Err(format!("{} did not end within {} s", self.what, self.limit.as_secs())));
            }
            Err(error) => return Some(Err(format!("{}: {error}", self.what))),
        };
        self.is_over = true;
        let mut text = Vec::new();
        let read = self.output.rewind().and_then(|()| (&self.output).take(MAX_OUTPUT).read_to_end(&mut text));
        let text = String::from_utf8_lossy(&text).into_owned();
        Some(match read {
            Ok(_) if status.success() => Ok(text),
            Ok(_) => Err(format!("{}: {status}: {}", self.what, shown(&text))),
            Err(error) => Err(format!("{}: {error}", self.what)),
        })
    }

    /// Waits for its end, at most so long.
    pub(super) fn sleep(&self, time: Duration) {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let time = Timespec { tv_sec: 0, tv_nsec: i64::from(time.min(Duration::from_millis(999)).subsec_nanos()) };
        // Woken early, it is looked at early.
        let _ = rustix::event::poll(&mut fds, Some(&time));
    }

    fn kill(&mut self) {
        let _ = rustix::process::kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.is_over = true;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.is_over {
            self.kill();
        }
    }
}

/// The end of what a command printed, on one line: the reason is said last.
fn shown(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let joined: String = lines.join("; ").chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let skipped = joined.chars().count().saturating_sub(SHOWN);
    joined.chars().skip(skipped).collect()
}

/// How a guest is, as `xl list` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Condition {
    /// It runs, waits or is paused.
    Alive,
    /// It has shut itself down.
    ShutDown,
    /// Its kernel has crashed.
    Crashed,
    /// It is being taken apart; others may still have pages of it.
    Dying,
}

/// The guests in the output of `xl list`, by number.
pub(super) fn conditions(text: &str) -> Vec<(u16, Condition)> {
    let line = |line: &str| {
        // Names are what people choose: count from the end. Name, number, memory, processors, state, time.
        let mut words = line.split_whitespace().rev().skip(1);
        let state = words.next().filter(|state| state.len() == 6)?;
        let number = words.nth(2)?.parse().ok()?;
        let condition = match state {
            state if state.contains('d') => Condition::Dying,
            state if state.contains('c') => Condition::Crashed,
            state if state.contains('s') => Condition::ShutDown,
            _ => Condition::Alive,
        };
        Some((number, condition))
    };
    text.lines().filter_map(line).collect()
}

/// What Xen's command line allows, from the output of `xl info`.
fn allowed(text: &str) -> GrantLimits {
    let line = text.lines().find_map(|line| line.strip_prefix("xen_commandline")).unwrap_or_default();
    let value = |key: &str| {
        let mut words = line.split_whitespace().filter_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        // The last one counts.
        words.next_back().and_then(|number| match number.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16).ok(),
            None => number.parse().ok(),
        })
    };
    GrantLimits {
        grant_frames: value("gnttab_max_frames").unwrap_or(XEN_DEFAULT.grant_frames),
        maptrack_frames: value("gnttab_max_maptrack_frames").unwrap_or(XEN_DEFAULT.maptrack_frames),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "Name                                        ID   Mem VCPUs\tState\tTime(s)\n\
        Domain-0                                     0   512     1     r-----      13.4\n\
        nas-net                                      1   192     1     -b----       0.7\n\
        two words                                   12   192     1     ---s--       0.7\n\
        nas-fs                                       7   192     1     ----c-       0.7\n\
        (null)                                       9     1     1     --ps-d       0.7\n";

    #[test]
    fn the_list_is_read_from_its_end() {
        let expected = [
            (0, Condition::Alive),
            (1, Condition::Alive),
            (12, Condition::ShutDown),
            (7, Condition::Crashed),
            (9, Condition::Dying),
        ];
        assert_eq!(conditions(LIST), expected);
        assert_eq!(conditions("xl: no\n\n1 2 3\n"), []);
    }

    #[test]
    fn what_xen_allows_is_on_its_command_line() {
        let limits = |line: &str| allowed(&format!("host : x\nxen_commandline        : {line}\nxen_version : 4.17\n"));
        assert_eq!(limits("placeholder"), XEN_DEFAULT);
        assert_eq!(allowed(""), XEN_DEFAULT);
        let many = limits("dom0_mem=512M gnttab_max_frames=8 gnttab_max_frames=1024 gnttab_max_maptrack_frames=0x1000");
        assert_eq!(many, GrantLimits { grant_frames: 1024, maptrack_frames: 4096 });
        assert_eq!(limits("gnttab_max_frames=x gnttab_max_framesx=9"), XEN_DEFAULT);
    }

    #[test]
    fn commands_are_run_and_their_words_are_kept() {
        let sh = Xl("/bin/sh".into());
        assert_eq!(sh.run(&["-c", "echo one; echo two >&2"]), Ok("one\ntwo\n".into()));
        let error = sh.run(&["-c", "echo 'libxl: error: no memory'; exit 3"]).unwrap_err();
        assert!(error.contains("exit status: 3") && error.contains("no memory"), "{error}");
        assert!(Xl("/no/such/xl".into()).run(&["list"]).unwrap_err().contains("cannot be run"));
        let mut running = sh.begin(&["-c", &format!("cat {INPUT}")], "input").unwrap();
        let result = loop {
            match running.result(Instant::now()) {
                Some(result) => break result,
                None => running.sleep(Duration::from_millis(100)),
            }
        };
        assert_eq!(result, Ok("input".into()));
        assert!(shown(&"x\n".repeat(5000)).chars().count() <= SHOWN);
    }

    #[test]
    fn what_takes_too_long_is_ended() {
        let mut running = Xl("/bin/sh".into()).begin(&["-c", "sleep 1000"], "").unwrap();
        assert!(running.result(Instant::now()).is_none());
        let error = running.result(running.deadline()).unwrap().unwrap_err();
        assert!(error.contains("did not end within"), "{error}");
    }
}
