//! `fido xen doctor`: whether this guest, or dom0, has what Fido needs.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use conn_mgr::Manifest;
use conn_mgr::xen::limits::{self, XEN_DEFAULT};
use xen_tools::doctor::machine::System;
use xen_tools::doctor::{self, Diagnosis, Verdict, Wants};

/// The arena of a domain whose manifest says nothing else.
const DEFAULT_ARENA: u64 = 64 << 20;

/// Below the help text.
pub const EXIT_CODES: &str = "Exit codes:
  0  everything is right, or only worth a note
  1  something has to be mended; or the manifest is wrong
  2  wrong command line
  3  this is not a Xen guest";

#[derive(Args)]
pub struct Command {
    /// A manifest: what its arenas and links need is looked for, too.
    manifest: Option<PathBuf>,
}

impl Command {
    pub fn run(self) -> ExitCode {
        let mut wants = Wants { arena: DEFAULT_ARENA, limits: XEN_DEFAULT };
        if let Some(path) = &self.manifest {
            match Manifest::load(path) {
                Ok(manifest) => {
                    let largest = manifest.domains.iter().map(|domain| domain.arena).max();
                    wants = Wants { arena: largest.unwrap_or_default(), limits: limits::of_hypervisor(&manifest) };
                }
                Err(error) => return super::super::end(Err(error)),
            }
        }
        let say = |line: &str| super::super::say(io::stdout().lock(), &line);
        match doctor::examine(&System::new(Path::new("/")), &wants) {
            Diagnosis::NotXen(why) => {
                say(&why);
                ExitCode::from(3)
            }
            Diagnosis::Findings(findings) => {
                findings.iter().for_each(|finding| say(&finding.to_string()));
                let bad = findings.iter().any(|finding| finding.verdict == Verdict::Bad);
                ExitCode::from(u8::from(bad))
            }
        }
    }
}
