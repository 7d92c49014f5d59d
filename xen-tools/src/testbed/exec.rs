//! Runs other programs: within a time limit, ended when the user says so, with what they wrote if they fail.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

/// How often a program that runs is looked at.
const TICK: Duration = Duration::from_millis(20);

/// The lines of output that an error shows.
const LINES_SHOWN: usize = 25;

/// Why a program did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// It cannot be started.
    #[error("cannot start `{what}`: {error}")]
    Start {
        /// The program.
        what: String,
        /// What the system said.
        error: io::Error,
    },
    /// It failed.
    #[error("`{what}` failed ({status}):\n{output}")]
    Failed {
        /// The program and its arguments.
        what: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it wrote.
        output: String,
    },
    /// It took too long and was ended.
    #[error("`{what}` did not end within {} s:\n{output}", .limit.as_secs())]
    Hangs {
        /// The program and its arguments.
        what: String,
        /// What it had.
        limit: Duration,
        /// The end of what it wrote.
        output: String,
    },
    /// The user has had enough.
    #[error("interrupted")]
    Interrupted,
    /// Its output cannot be kept.
    #[error("the output of `{what}`: {error}")]
    Output {
        /// The program and its arguments.
        what: String,
        /// What the system said.
        error: io::Error,
    },
}

/// Ends what runs when the user says so.
pub struct Supervisor {
    stop: Receiver<()>,
    stopped: Cell<bool>,
}

impl Supervisor {
    /// A message on `stop` ends the program that runs, and lets no other begin.
    #[must_use]
    pub fn new(stop: Receiver<()>) -> Self {
        Self { stop, stopped: Cell::new(false) }
    }

    /// # Errors
    /// [`ExecError::Interrupted`] once the user has said so.
    pub fn check(&self) -> Result<(), ExecError> {
        if self.stop.try_recv() != Err(TryRecvError::Empty) {
            self.stopped.set(true);
        }
        if self.stopped.get() { Err(ExecError::Interrupted) } else { Ok(()) }
    }

    /// Runs a program and returns what it wrote to its standard output. It has no standard input.
    ///
    /// # Errors
    /// A program that cannot be started, fails, or takes longer than `limit`; or the user's wish.
    pub fn run(&self, command: &mut Command, limit: Duration) -> Result<String, ExecError> {
        let pending = self.begin(command)?;
        self.finish(pending, limit)
    }

    /// Begins what [`Supervisor::run`] does, for [`Supervisor::finish`] to end.
    ///
    /// # Errors
    /// A program that cannot be started; the user's wish.
    pub fn begin(&self, command: &mut Command) -> Result<Pending, ExecError> {
        let what = describe(command);
        let keep = |error| ExecError::Output { what: what.clone(), error };
        let (out, err) = (tempfile::tempfile().map_err(keep)?, tempfile::tempfile().map_err(keep)?);
        command.stdin(Stdio::null());
        command.stdout(out.try_clone().map_err(keep)?).stderr(err.try_clone().map_err(keep)?);
        let running = self.start(command)?;
        Ok(Pending { running, what, out, err })
    }

    /// Waits for the end of a program, `limit` from now, and returns what it wrote to its standard output.
    ///
    /// # Errors
    /// As for [`Supervisor::run`].
    pub fn finish(&self, pending: Pending, limit: Duration) -> Result<String, ExecError> {
        let Pending { mut running, what, mut out, mut err } = pending;
        let keep = |error| ExecError::Output { what: what.clone(), error };
        let status = running.wait(self, limit, || Ok(false));
        let text = |file: &mut File| -> Result<String, ExecError> {
            let mut bytes = Vec::new();
            file.rewind().and_then(|()| file.read_to_end(&mut bytes)).map_err(keep)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let (wrote, complained) = (text(&mut out)?, text(&mut err)?);
        let output = || last_lines(&format!("{wrote}{complained}"));
        match status? {
            Some(status) if status.success() => Ok(wrote),
            Some(status) => Err(ExecError::Failed { what, status, output: output() }),
            None => Err(ExecError::Hangs { what, limit, output: output() }),
        }
    }

    /// Starts a program in a process group of its own.
    ///
    /// # Errors
    /// The system's, or the user's wish to start nothing any more.
    pub fn start(&self, command: &mut Command) -> Result<Running, ExecError> {
        self.check()?;
        let what = describe(command);
        match command.process_group(0).spawn() {
            Ok(child) => Ok(Running { child, ended: None }),
            Err(error) => Err(ExecError::Start { what, error }),
        }
    }
}

/// A program that runs and whose output is kept. Dropped, it is killed.
pub struct Pending {
    running: Running,
    what: String,
    out: File,
    err: File,
}

/// A program that runs. Dropped, it is killed, with all that it started in its process group.
pub struct Running {
    child: Child,
    ended: Option<ExitStatus>,
}

impl Running {
    /// Its process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the program ends (then its status comes), `enough` says so, or the limit is over (then `None`).
    ///
    /// # Errors
    /// Those of `enough`, or [`ExecError::Interrupted`].
    pub fn wait(
        &mut self,
        supervisor: &Supervisor,
        limit: Duration,
        mut enough: impl FnMut() -> Result<bool, ExecError>,
    ) -> Result<Option<ExitStatus>, ExecError> {
        let began = Instant::now();
        loop {
            let ended = self.child.try_wait();
            self.ended = ended.map_err(|error| ExecError::Output { what: "wait".to_owned(), error })?;
            if enough()? || self.ended.is_some() || began.elapsed() > limit {
                return Ok(self.ended);
            }
            supervisor.check()?;
            std::thread::sleep(TICK);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended.is_some() {
            return;
        }
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    if line.len() > 200 { line.chars().take(200).chain("…".chars()).collect() } else { line }
}

/// The end of a text, for an error.
#[must_use]
pub fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n")
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Sender};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn supervisor() -> (Supervisor, Sender<()>) {
        let (sender, receiver) = mpsc::channel();
        (Supervisor::new(receiver), sender)
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn the_output_comes_back_and_a_failure_shows_its_end() {
        let (supervisor, _sender) = supervisor();
        assert_eq!(supervisor.run(&mut shell("echo good; echo bad >&2"), LONG).unwrap(), "good\n");
        let error = supervisor.run(&mut shell("seq 100; echo bad >&2; exit 3"), LONG).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("exit status: 3") && text.ends_with("99\n100\nbad") && !text.contains("\n50\n"),
            "{text}"
        );
        let error = supervisor.run(&mut Command::new("/does/not/exist"), LONG).unwrap_err();
        assert!(matches!(error, ExecError::Start { .. }), "{error}");
    }

    /// The process that the script left behind must be gone, too.
    #[test]
    fn a_program_that_hangs_is_ended_with_its_children() {
        let (supervisor, _sender) = supervisor();
        let error = supervisor.run(&mut shell("sleep 1000 & echo $!; wait"), Duration::from_millis(300)).unwrap_err();
        let ExecError::Hangs { output, .. } = error else { panic!("{error}") };
        let alive =
            || std::fs::read_to_string(format!("/proc/{}/stat", output.trim())).is_ok_and(|s| !s.contains(") Z"));
        let began = Instant::now();
        while alive() {
            assert!(began.elapsed() < LONG, "process {output} survives");
            std::thread::sleep(TICK);
        }
    }

    #[test]
    fn the_user_ends_what_runs_and_what_would_come() {
        let (supervisor, sender) = supervisor();
        sender.send(()).unwrap();
        assert!(matches!(supervisor.run(&mut shell("sleep 1000"), LONG), Err(ExecError::Interrupted)));
        assert!(matches!(supervisor.run(&mut shell("true"), LONG), Err(ExecError::Interrupted)));
    }
}
