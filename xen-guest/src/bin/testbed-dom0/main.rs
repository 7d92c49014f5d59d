//! The first process of the testbed's dom0: brings up the toolstack, runs the scenarios that the kernel's command line
//! names after `--`, and reports on the second serial port. Ends by powering the machine off.

mod appliance;
mod costs;
mod doctor;
mod fidod;
mod guest;
mod handshake;
mod hotplug;
mod hypercalls;
mod lost;
mod machine;
mod memory;
mod nas;
mod process;
mod refusals;
mod scenarios;

use std::fs::{File, OpenOptions};
use std::process::ExitCode;
use std::time::Instant;

use rustix::system::RebootCommand;
use rustix::termios::OptionalActions;
use xen_guest::report::{self, Kind};

use machine::Machine;

/// What goes wrong in a scenario, as a sentence: it is only ever read by people.
pub type Failure = String;

fn main() -> ExitCode {
    if hotplug::is_asked() {
        return hotplug::run();
    }
    if std::process::id() != 1 {
        eprintln!("testbed-dom0: this is the first process of the testbed's dom0 and does nothing elsewhere");
        return ExitCode::from(2);
    }
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let Err(failure) = run(&words) {
        println!("testbed-dom0: {failure}");
    }
    let result = rustix::system::reboot(RebootCommand::PowerOff);
    println!("testbed-dom0: cannot power off: {result:?}");
    ExitCode::FAILURE
}

fn run(words: &[String]) -> Result<(), Failure> {
    let pvh = words.iter().any(|word| word == "pvh");
    machine::mount_all()?;
    machine::log_to_file()?;
    let mut reporter = Reporter::open()?;
    let mut machine = match Machine::start(pvh) {
        Ok(machine) => machine,
        Err(failure) => {
            reporter.send(Kind::Failed, "start", failure.as_bytes())?;
            machine::send_logs(&mut reporter, "")?;
            return reporter.send(Kind::End, "-", b"");
        }
    };
    reporter.send(Kind::Note, "start", format!("dom0 is up after {:.1} s", machine.uptime()).as_bytes())?;
    for name in words.iter().filter(|word| *word != "pvh") {
        let began = Instant::now();
        reporter.send(Kind::Note, name, b"begins")?;
        let result = scenarios::run(name, &mut machine, &mut reporter);
        let after = machine.clean_up();
        let seconds = began.elapsed().as_secs_f64();
        match result.and_then(|found| after.map(|()| found)) {
            Ok(found) => reporter.send(Kind::Passed, name, format!("{found} ({seconds:.1} s)").as_bytes())?,
            Err(failure) => reporter.send(Kind::Failed, name, failure.as_bytes())?,
        }
        machine::send_logs(&mut reporter, name)?;
    }
    reporter.send(Kind::End, "-", b"")
}

/// The way out of the machine.
pub struct Reporter {
    port: File,
}

impl Reporter {
    fn open() -> Result<Self, Failure> {
        const PORT: &str = "/dev/ttyS1";
        let port = OpenOptions::new().read(true).write(true).open(PORT);
        let port = port.map_err(|error| format!("{PORT}: {error}"))?;
        let mut settings = rustix::termios::tcgetattr(&port).map_err(|error| format!("{PORT}: {error}"))?;
        settings.make_raw();
        rustix::termios::tcsetattr(&port, OptionalActions::Now, &settings).map_err(|e| format!("{PORT}: {e}"))?;
        Ok(Self { port })
    }

    /// Sends a frame.
    pub fn send(&mut self, kind: Kind, name: &str, body: &[u8]) -> Result<(), Failure> {
        report::write(&mut self.port, kind, name, body).map_err(|error| format!("cannot report: {error}"))
    }
}
