//! `cargo bench -p fido-bench --bench ring`: what `fido bench ring` does, for those who work on this crate alone.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use fido_bench::other_side::{self, OtherSide, Program};
use fido_bench::ring;

#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    other_side: Option<Command>,
    #[command(flatten)]
    options: ring::Options,
    /// What cargo passes to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Command {
    #[command(hide = true)]
    OtherSide(OtherSide),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.other_side {
        Some(Command::OtherSide(other_side)) => other_side::play(&other_side),
        None => ring::run(&arguments.options, &Program(&["other-side"])),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
