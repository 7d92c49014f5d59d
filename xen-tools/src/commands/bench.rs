//! `fido bench`: what the data path costs on this machine.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use fido_bench::other_side::{self, OtherSide, Program};
use fido_bench::{blk, net, ring, wait};

/// How a benchmark starts this program again as its other side.
const OTHER_SIDE: Program<'_> = Program(&["bench", "other-side"]);
/// How it becomes a domain of the appliance that idles.
const IDLE_DOMAIN: Program<'_> = Program(&["bench", "idle-domain"]);

#[derive(Args)]
pub struct Command {
    #[command(subcommand)]
    benchmark: Benchmark,
}

#[derive(Subcommand)]
enum Benchmark {
    /// Rings and lanes between two processes, against the bare exchange of cache lines and against the kernel's means.
    #[command(after_help = super::EXIT_CODES)]
    Ring(ring::Options),
    /// Ways to wait: spinning, sleeping and adaptive, in the situations in which they differ.
    #[command(after_help = super::EXIT_CODES)]
    Wait(wait::Options),
    /// A block device in another domain: direct, copying and MMBlk, over null, memory and file devices; NBD and vhost-user servers;
    /// RAID 5.
    #[command(after_help = super::EXIT_CODES)]
    Blk(blk::Options),
    /// A network between domains: netperf's tests over loopback, models of netfront and XenLoop, and MMNet.
    #[command(after_help = super::EXIT_CODES)]
    Net(net::Options),
    #[command(hide = true)]
    OtherSide(OtherSide),
    #[command(hide = true)]
    IdleDomain,
}

impl Command {
    pub fn run(self) -> ExitCode {
        super::end(match self.benchmark {
            Benchmark::Ring(options) => ring::run(&options, &OTHER_SIDE),
            Benchmark::Wait(options) => wait::run(&options, &IDLE_DOMAIN),
            Benchmark::Blk(options) => blk::run(&options, &OTHER_SIDE),
            Benchmark::Net(options) => net::run(&options, &OTHER_SIDE),
            Benchmark::OtherSide(other_side) => other_side::play(&other_side),
            Benchmark::IdleDomain => wait::idle::domain(),
        })
    }
}
