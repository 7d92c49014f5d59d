//! `fido`: the command line for those who build and run appliances.
//!
//! It reads manifests and measures; running an appliance is `fidod`'s part.

mod commands;
mod summary;
mod table;
mod topology;

use std::process::ExitCode;

use clap::Parser;
use commands::{Command, EXIT_CODES};

/// Builds, examines and measures Fido appliances.
#[derive(Parser)]
#[command(name = "fido", version, after_help = EXIT_CODES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

fn main() -> ExitCode {
    Arguments::parse().command.run()
}
