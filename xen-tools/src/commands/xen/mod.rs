//! `fido xen`: what belongs to the platform Xen, a file for each subcommand.

mod config;
mod doctor;
mod image;
mod testbed;

use std::process::ExitCode;

use clap::{Args, Subcommand};

#[derive(Args)]
pub struct Command {
    #[command(subcommand)]
    command: Xen,
}

#[derive(Subcommand)]
enum Xen {
    /// Prints the xl configurations of a manifest's guests.
    ///
    /// What Xen's own command line must have for them comes first, as a comment.
    #[command(after_help = super::EXIT_CODES)]
    Config(config::Command),
    /// Checks whether this guest, or dom0, has what Fido needs, and says how to mend what is missing.
    #[command(after_help = doctor::EXIT_CODES)]
    Doctor(doctor::Command),
    /// Makes bootable images: for a program, or for each guest of a manifest.
    ///
    /// An image is an initial root file system with the statically linked program, the modules that it needs of the
    /// kernel, and a first process. The same files make the same bytes.
    #[command(after_help = super::EXIT_CODES)]
    Image(image::Command),
    /// Boots a real Xen under software emulation and runs a scenario in it.
    ///
    /// Debian's packages are fetched and unpacked into a cache. Nothing is installed but QEMU, by apt, if it is
    /// missing. See docs/xen-testbed.md.
    #[command(after_help = testbed::EXIT_CODES)]
    Testbed(testbed::Command),
}

impl Command {
    pub fn run(self) -> ExitCode {
        match self.command {
            Xen::Config(command) => command.run(),
            Xen::Doctor(command) => command.run(),
            Xen::Image(command) => command.run(),
            Xen::Testbed(command) => command.run(),
        }
    }
}
