//! The first process of a guest image: mounts the kernel's file systems, loads the image's modules, gives its network
//! interfaces their addresses, waits for its disks, runs its program and says in xenstore and on the console how that
//! ended. Then the guest is powered off.
//!
//! What comes after `--` on the kernel's command line goes to the program, after the arguments in the image.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, ExitStatus};

use fido_core::platform::xen::store::Store;
use rustix::system::RebootCommand;
use xen_guest::{boot, disks, network};

fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!("fido-init: this is the first process of a guest image and does nothing elsewhere");
        return ExitCode::from(2);
    }
    let ended = match run() {
        Ok(status) => describe(status),
        Err(error) => format!("error {error}"),
    };
    println!("fido-init: the program ended: {ended}");
    let said = Store::connect().and_then(|store| store.now().write(boot::EXIT_NODE, ended.as_bytes()));
    if let Err(error) = said {
        println!("fido-init: {error}");
    }
    // Without power management in the guest it returns; the kernel then complains that its first process ended.
    let result = rustix::system::reboot(RebootCommand::PowerOff);
    println!("fido-init: cannot power off: {result:?}");
    ExitCode::FAILURE
}

fn run() -> io::Result<ExitStatus> {
    for (kind, folder) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/run")] {
        boot::mount(kind, folder)?;
    }
    boot::load_modules()?;
    network::set_up_guest()?;
    disks::wait_for_guest()?;
    let own = match std::fs::read_to_string(boot::ARGUMENTS) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        own => own?,
    };
    let mut program = Command::new(boot::PROGRAM);
    program.args(own.lines()).args(std::env::args_os().skip(1));
    program.status().map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", boot::PROGRAM)))
}

/// `exit CODE` or `signal NUMBER`.
fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => format!("status {}", status.into_raw()),
    }
}
