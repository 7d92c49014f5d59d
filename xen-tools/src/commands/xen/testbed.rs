//! `fido xen testbed`: scenarios on a real Xen under emulation.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;

use clap::Args;
use xen_tools::testbed::{self, ExecError, Options, TestbedError, scenario};

/// Below the help text.
pub const EXIT_CODES: &str = "Exit codes:
  0    every scenario has passed
  1    a scenario has failed
  2    wrong command line
  3    the machine could not be built or booted, hung, or ended early
  130  interrupted";

#[derive(Args)]
pub struct Command {
    /// The scenario, several with commas between them, or `all`.
    #[arg(required_unless_present = "list")]
    scenario: Option<String>,
    /// Only says which scenarios there are.
    #[arg(long)]
    list: bool,
    /// PVH guests instead of PV guests.
    #[arg(long)]
    pvh: bool,
    /// Guests go by way of Xen's own libraries (feature `libxen`; what is built is under GPL-3). Not the NAS's.
    #[arg(long)]
    libxen: bool,
    /// Memory of the whole machine, in MiB.
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1024..=65536))]
    memory: u32,
    /// Processors of the machine. dom0 has the first for itself, each guest one of the others.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(2..=32))]
    processors: u32,
    /// The machine's processors go before everything else on the host: for measurements, if you are root.
    #[arg(long)]
    realtime: bool,
    /// The folder for all logs; files in it are removed first.
    #[arg(long, default_value = "target/xen-testbed")]
    logs: PathBuf,
    /// Where packages and what is made from them are kept [default: fido/xen in the user's cache folder].
    #[arg(long)]
    cache: Option<PathBuf>,
    /// Makes everything anew that the cache has.
    #[arg(long)]
    rebuild: bool,
    /// Keeps the folder with the machine's images.
    #[arg(long)]
    keep: bool,
}

impl Command {
    pub fn run(self) -> ExitCode {
        let say = |line: &str| super::super::say(io::stdout().lock(), &line);
        if self.list {
            for scenario in scenario::ALL {
                say(&format!("{:12} {}", scenario.name, scenario.about));
            }
            return ExitCode::SUCCESS;
        }
        let complain = |what: &str| super::super::say(io::stderr().lock(), &format_args!("error: {what}"));
        let wanted = self.scenario.as_deref().unwrap_or_default();
        let Some(scenarios) = scenario::names(wanted) else {
            complain(&format!("there is no scenario `{wanted}`; --list shows those that there are"));
            return ExitCode::from(2);
        };
        match self.testbed(scenarios, &say) {
            Ok(code) => code,
            Err(error) => {
                complain(&error.to_string());
                let interrupted = matches!(error, TestbedError::Exec(ExecError::Interrupted));
                ExitCode::from(if interrupted { 130 } else { 3 })
            }
        }
    }

    fn testbed(self, scenarios: Vec<String>, say: &dyn Fn(&str)) -> Result<ExitCode, TestbedError> {
        let here = std::env::current_dir().map_err(|error| TestbedError::File { path: ".".into(), error })?;
        let (sender, stop) = mpsc::channel();
        conn_mgr::signals::watch(sender).map_err(|error| TestbedError::File { path: "signals".into(), error })?;
        let options = Options {
            scenarios,
            pvh: self.pvh,
            libxen: self.libxen,
            memory: self.memory,
            processors: self.processors,
            realtime: self.realtime,
            logs: here.join(self.logs),
            cache: here.join(self.cache.unwrap_or_else(testbed::default_cache)),
            source: here,
            rebuild: self.rebuild,
            keep: self.keep,
        };
        let outcome = testbed::run(&options, stop, say)?;
        if let Some(folder) = &outcome.kept {
            say(&format!("kept: {}", folder.display()));
        }
        let failed = outcome.results.iter().filter(|(_, result)| result.is_err()).count();
        say(&format!("{} of {} scenarios passed", outcome.results.len() - failed, outcome.results.len()));
        Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }
}
