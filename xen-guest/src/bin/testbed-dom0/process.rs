//! Programs of dom0: each with a limit of time, and with what it writes in a file.

use std::fs;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::Failure;

/// How often a program that runs is looked at.
const TICK: Duration = Duration::from_millis(5);
/// The lines of a program's output that a failure shows.
const LINES_SHOWN: usize = 15;

/// A program that has been started. Dropped, it is killed.
pub struct Process {
    what: String,
    child: Child,
    output: String,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts a program that writes to the file `output`, which begins anew.
    pub fn start(command: &mut Command, output: &str) -> Result<Self, Failure> {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let words: Vec<_> = words.map(|word| word.to_string_lossy().into_owned()).collect();
        let what = words.join(" ");
        let what = what.rsplit_once("bin/").map_or(what.as_str(), |(_, end)| end).to_owned();
        let failed = |error: std::io::Error| format!("{what}: {error}");
        let file = fs::File::create(output).map_err(failed)?;
        let other = file.try_clone().map_err(failed)?;
        let child = command.stdin(Stdio::null()).stdout(file).stderr(other).spawn().map_err(failed)?;
        Ok(Self { what, child, output: output.to_owned(), ended: None })
    }

    /// What it has written so far.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.output).unwrap_or_default()).into_owned()
    }

    /// How it has ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>, Failure> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().map_err(|error| format!("{}: {error}", self.what))?;
        }
        Ok(self.ended)
    }

    /// Waits for its end; it is killed when the limit is over.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus, Failure> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if began.elapsed() > limit {
                self.kill();
                return Err(self.failure(&format!("does not end within {} s", limit.as_secs())));
            }
            sleep(TICK);
        }
    }

    /// Waits for its end, which must be a success; what it has written.
    pub fn succeed(&mut self, limit: Duration) -> Result<String, Failure> {
        let status = self.wait(limit)?;
        if status.success() { Ok(self.said()) } else { Err(self.failure(&status.to_string())) }
    }

    /// Sends it a signal.
    pub fn signal(&mut self, signal: Signal) -> Result<(), Failure> {
        let sent = rustix::process::kill_process(Pid::from_child(&self.child), signal);
        sent.map_err(|error| format!("{}: cannot be sent a signal: {error}", self.what))
    }

    /// A failure of it, with the end of what it has written.
    pub fn failure(&self, how: &str) -> Failure {
        let said = self.said();
        let lines: Vec<_> = said.lines().collect();
        let shown = lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n");
        format!("{}: {how}: {}", self.what, shown.trim())
    }

    fn kill(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        self.ended = self.child.wait().ok();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended.is_none() {
            self.kill();
        }
    }
}
