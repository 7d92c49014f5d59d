//! The connection manager as its users run it: the program `fidod` with a manifest in a file.
//!
//! What becomes of its domains is seen where anybody in dom0 can see it: in xenstore.

use std::fs;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use fido_core::platform::xen::store::Store;
use rustix::process::Signal;

use crate::Failure;
use crate::appliance::SHUTDOWN_LIMIT;
use crate::machine;
use crate::process::Process;

/// The program.
const PROGRAM: &str = "/usr/sbin/fidod";
/// How often a look is taken.
const TICK: Duration = Duration::from_millis(50);

/// `fidod`, running an appliance. Dropped, it is told to shut down.
pub struct Fidod {
    process: Process,
    appliance: String,
}

/// `fidod` with a manifest, ready to be started. The manifest is the file `/run/LABEL.toml`.
pub fn command(label: &str, manifest: &str) -> Result<Command, Failure> {
    let path = format!("/run/{label}.toml");
    fs::write(&path, manifest).map_err(|error| format!("{path}: {error}"))?;
    let mut command = Command::new(PROGRAM);
    // Guests boot under emulation, on a machine that may be busy: more than 110 s have been seen.
    command.args(["--fail-fast", "--start-deadline", "240", "--shutdown-timeout"]);
    command.arg(SHUTDOWN_LIMIT.as_secs().to_string()).arg(path);
    Ok(command)
}

/// Starts `fidod`; its log is among those of the scenario.
pub fn start(command: &mut Command, label: &str) -> Result<Process, Failure> {
    Process::start(command, &format!("/var/log/xen/fidod-{label}.log"))
}

impl Fidod {
    /// Starts an appliance.
    pub fn start(label: &str, appliance: &str, manifest: &str) -> Result<Self, Failure> {
        let process = start(&mut command(label, manifest)?, label)?;
        Ok(Self { process, appliance: appliance.to_owned() })
    }

    /// Waits until it says that all domains serve.
    pub fn wait_ready(&mut self, limit: Duration) -> Result<(), Failure> {
        let said = format!("appliance `{}` is ready", self.appliance);
        self.until(limit, "the appliance is not ready", |fidod| Ok(fidod.process.said().contains(&said).then_some(())))
    }

    /// The number of a domain's guest, once it serves; with `not`, of another one than that.
    pub fn wait_serving(&mut self, domain: &str, not: Option<u32>, limit: Duration) -> Result<u32, Failure> {
        let name = format!("{}-{domain}", self.appliance);
        self.until(limit, &format!("{domain} does not serve"), |_| {
            let guest = serving(&name).map_err(|error| error.to_string())?;
            Ok(guest.filter(|guest| Some(*guest) != not))
        })
    }

    /// Ends it by `SIGKILL`: the guests go on.
    pub fn kill(mut self) -> Result<(), Failure> {
        self.process.signal(Signal::KILL)?;
        self.process.wait(SHUTDOWN_LIMIT).map(drop)
    }

    /// Has it shut the appliance down, which must be in order.
    pub fn stop(mut self) -> Result<(), Failure> {
        self.process.signal(Signal::TERM)?;
        self.process.succeed(SHUTDOWN_LIMIT * 2).map(drop)
    }

    /// Waits until it has said that.
    pub fn wait_said(&mut self, words: &str, limit: Duration) -> Result<(), Failure> {
        self.until(limit, &format!("it does not say {words:?}"), |fidod| {
            Ok(fidod.process.said().contains(words).then_some(()))
        })
    }

    /// Has it shut the appliance down, which it must end with that code and those words.
    pub fn end(mut self, limit: Duration, code: i32, words: &str) -> Result<(), Failure> {
        self.process.signal(Signal::TERM)?;
        let status = self.process.wait(limit)?;
        if status.code() == Some(code) && self.process.said().contains(words) {
            return Ok(());
        }
        Err(self.process.failure(&format!("{status}, and not {code} with {words:?}")))
    }

    /// Waits for something; not longer than the program runs.
    fn until<T>(
        &mut self,
        limit: Duration,
        otherwise: &str,
        look: impl Fn(&Self) -> Result<Option<T>, Failure>,
    ) -> Result<T, Failure> {
        let began = Instant::now();
        loop {
            if let Some(found) = look(self)? {
                return Ok(found);
            }
            if let Some(status) = self.process.ended()? {
                return Err(self.process.failure(&status.to_string()));
            }
            if began.elapsed() > limit {
                machine::note_state();
                return Err(self.process.failure(&format!("{otherwise} within {} s", limit.as_secs())));
            }
            sleep(TICK);
        }
    }
}

impl Drop for Fidod {
    fn drop(&mut self) {
        // A scenario has failed: no guest should be left to the next one.
        if matches!(self.process.ended(), Ok(None)) && self.process.signal(Signal::TERM).is_ok() {
            let _ = self.process.wait(SHUTDOWN_LIMIT * 2);
        }
    }
}

/// The number of the guest with that name, if its component says that it serves.
fn serving(name: &str) -> Result<Option<u32>, fido_core::platform::xen::store::StoreError> {
    let store = Store::connect()?;
    let view = store.now();
    for number in view.children("/local/domain")? {
        let home = format!("/local/domain/{number}");
        let is_it = view.read_if_any(&format!("{home}/name"))?.is_some_and(|found| found == name.as_bytes());
        if is_it && view.read_if_any(&format!("{home}/data/fido/ready"))?.is_some() {
            return Ok(number.parse().ok());
        }
    }
    Ok(None)
}
