//! `fido`: the command line for those who build and run appliances.
//!
//! It only reads: what a manifest would start, and whether it is right. Running an appliance is `fidod`'s part.

mod summary;
mod table;

use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use conn_mgr::Manifest;

const EXIT_CODES: &str = "Exit codes:
  0  everything is right
  1  a manifest is wrong or cannot be read
  2  wrong command line";

/// Builds and examines Fido appliances.
#[derive(Parser)]
#[command(name = "fido", version, after_help = EXIT_CODES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Checks a manifest and shows what it describes.
    ///
    /// Nothing is started. What is wrong is shown with the line it is in.
    #[command(after_help = EXIT_CODES)]
    Check {
        /// The manifest (TOML; see docs/manifest.md).
        manifest: PathBuf,
    },
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Check { manifest } => match Manifest::load(&manifest) {
            Ok(manifest) => {
                say(io::stdout().lock(), &summary::Summary(&manifest));
                ExitCode::SUCCESS
            }
            Err(error) => {
                say(io::stderr().lock(), &format_args!("error: {error}"));
                ExitCode::from(1)
            }
        },
    }
}

/// Writes a line. A reader that has gone away changes nothing about the verdict, which is the exit code.
fn say(mut to: impl Write, what: &dyn fmt::Display) {
    let _ = writeln!(to, "{what}").and_then(|()| to.flush());
}
