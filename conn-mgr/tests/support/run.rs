//! Runs programs with a limit, so that one that hangs fails its test and says what it had printed.
//! The tests of `xen-tools` include this file, too.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Longer than anything here takes on a busy machine, and shorter than the test runner's own limit of 120 s.
pub const LIMIT: Duration = Duration::from_secs(100);

/// A program and all that it has started; what is still there is killed when this is dropped.
pub struct Running {
    child: Child,
    /// What it prints. Files, not pipes: whoever inherited them cannot keep anybody waiting.
    out: File,
    err: File,
}

impl Running {
    /// Starts it, in a process group of its own.
    pub fn start(command: &mut Command) -> Self {
        let [out, err] = [(); 2].map(|()| tempfile::tempfile().unwrap());
        let [to_out, to_err] = [&out, &err].map(|file| Stdio::from(file.try_clone().unwrap()));
        let child = command.process_group(0).stdin(Stdio::null()).stdout(to_out).stderr(to_err).spawn();
        Self { child: child.unwrap_or_else(|error| panic!("{command:?}: {error}")), out, err }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&bytes(&self.out)).into_owned()
    }

    /// What it has said so far on standard error.
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&bytes(&self.err)).into_owned()
    }

    /// Waits for something that comes about while it runs; fails the test if it ends before, or after [`LIMIT`].
    pub fn wait_for<T>(&mut self, what: &str, mut look: impl FnMut(&Self) -> Option<T>) -> T {
        let deadline = Instant::now() + LIMIT;
        loop {
            let status = self.child.try_wait().unwrap();
            if let Some(found) = look(self) {
                return found;
            }
            let why = match status {
                Some(status) => format!("it has ended with {status}"),
                None if Instant::now() >= deadline => format!("{LIMIT:?} are over"),
                None => {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                }
            };
            panic!("in vain: {what}: {why}\n{}{}", self.out(), self.err());
        }
    }

    /// Waits for its end; fails the test after [`LIMIT`].
    pub fn end(mut self) -> Output {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Output { status, stdout: bytes(&self.out), stderr: bytes(&self.err) };
            }
            assert!(Instant::now() < deadline, "no end within {LIMIT:?}\n{}{}", self.out(), self.err());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(group) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            // Nobody may be left in it.
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

/// Reads by position: the program goes on writing where it was.
fn bytes(file: &File) -> Vec<u8> {
    let mut all = vec![0; file.metadata().unwrap().len() as usize];
    std::os::unix::fs::FileExt::read_exact_at(file, &mut all, 0).unwrap();
    all
}

/// Runs it to its end.
pub fn output(command: &mut Command) -> Output {
    Running::start(command).end()
}
