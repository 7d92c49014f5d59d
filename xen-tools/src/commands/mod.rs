//! The subcommands of `fido`, a file each: a `Command` that parses its arguments, with a `run` that does it.

mod bench;
mod check;
mod topo;
mod xen;

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Subcommand;

/// Shown below every help text.
pub const EXIT_CODES: &str = "Exit codes:
  0  everything is right
  1  what was asked for is wrong, cannot be read, or failed
  2  wrong command line";

/// What `fido` can do.
#[derive(Subcommand)]
pub enum Command {
    /// Checks a manifest and shows what it describes.
    ///
    /// Nothing is started. What is wrong is shown with the line it is in.
    #[command(after_help = EXIT_CODES)]
    Check(check::Command),
    /// Measures Fido's data path on this machine.
    #[command(after_help = EXIT_CODES)]
    Bench(bench::Command),
    /// Shows the processors of this machine, and measures how near they are to each other.
    ///
    /// A hand-over is what it costs to pass one cache line from a processor that writes it to one that reads it: how
    /// long the writer waits for the line and then the reader. It is measured for each ordered pair. Other work on the
    /// machine disturbs it.
    #[command(after_help = EXIT_CODES)]
    Topo(topo::Command),
    /// Works with the hypervisor Xen.
    Xen(xen::Command),
}

impl Command {
    /// Does it.
    pub fn run(self) -> ExitCode {
        match self {
            Self::Check(command) => command.run(),
            Self::Bench(command) => command.run(),
            Self::Topo(command) => command.run(),
            Self::Xen(command) => command.run(),
        }
    }
}

/// Writes a line. A reader that has gone away changes nothing about the verdict, which is the exit code.
fn say(mut to: impl Write, what: &dyn fmt::Display) {
    let _ = writeln!(to, "{what}").and_then(|()| to.flush());
}

/// Ends a command: with success, or with what went wrong on standard error.
fn end<E: fmt::Display>(result: Result<(), E>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(io::stderr().lock(), &format_args!("error: {error}"));
            ExitCode::from(1)
        }
    }
}
