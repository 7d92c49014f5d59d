//! `fido topo`: what this machine is made of, and what a hand-over between its processors costs.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use fido_bench::Failure;
use fido_bench::machine::Machine;
use fido_bench::plot;
use fido_core::topology::measure::{Effort, measure};
use fido_core::topology::{Matrix, Origin, Topology, store};
use serde::Serialize;

use crate::topology::{Absences, HandOvers, Kinds, Processors, heat_map};

#[derive(Args)]
pub struct Command {
    /// Measures for two seconds at most, with fewer rounds.
    #[arg(long)]
    quick: bool,
    /// How long to measure at most; pairs for which that is not enough are estimated, and marked.
    #[arg(long, value_name = "SECONDS", conflicts_with = "quick", value_parser = clap::value_parser!(u64).range(1..=3600))]
    budget: Option<u64>,
    /// Prints everything as one line of JSON instead of tables.
    #[arg(long)]
    json: bool,
    /// Draws the matrix as a heat map.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Keeps the matrix, for `cpus = "auto"` in manifests, in the user's cache directory; an error if nothing was measured.
    #[arg(long)]
    save: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    machine: &'a Machine,
    topology: &'a Topology,
    /// What is not to be seen here.
    absences: Vec<String>,
    /// `None` if there is only one processor.
    matrix: Option<&'a Matrix>,
}

impl Command {
    pub fn run(self) -> ExitCode {
        super::end(self.look())
    }

    fn look(&self) -> Result<(), Failure> {
        let machine = Machine::here(None);
        let topology = Topology::discover()?;
        let matrix = match topology.allowed.len() {
            0 | 1 => None,
            _ => Some(measure(&topology, self.effort(), |_, _| {})?),
        };
        if self.json {
            let absences = topology.absences();
            let report = Report { machine: &machine, topology: &topology, absences, matrix: matrix.as_ref() };
            super::say(io::stdout().lock(), &serde_json::to_string(&report)?);
        } else {
            print(&machine, &topology, matrix.as_ref());
        }
        let alone = "only one processor is allowed to this process: there are no hand-overs";
        if let Some(file) = &self.svg {
            plot::write(file, &heat_map(matrix.as_ref().ok_or(alone)?, &topology, &machine).svg()?)?;
        }
        if self.save {
            let matrix = matrix.as_ref().ok_or(alone)?;
            if matrix.count(Origin::Measured) == 0 {
                return Err(
                    "nothing is kept: no hand-over could be measured in the time, the processors were busy".into()
                );
            }
            let file = store::save(&store::directory()?, &topology, matrix)?;
            super::say(io::stderr().lock(), &format_args!("kept in {}", file.display()));
        }
        Ok(())
    }

    fn effort(&self) -> Effort {
        match self.budget {
            _ if self.quick => Effort::QUICK,
            None => Effort::FULL,
            Some(seconds) => Effort { budget: Duration::from_secs(seconds), ..Effort::FULL },
        }
    }
}

fn print(machine: &Machine, topology: &Topology, matrix: Option<&Matrix>) {
    let out = || io::stdout().lock();
    super::say(out(), &format_args!("{machine}\n\n{}", Processors(topology)));
    super::say(out(), &format_args!("{}", Absences(topology)));
    match matrix {
        None => super::say(out(), &"Only one processor is allowed to this process: there are no hand-overs."),
        Some(matrix) => super::say(out(), &format_args!("{}\n\n{}", HandOvers(matrix), Kinds(matrix, topology))),
    }
}
