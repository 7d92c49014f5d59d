//! `fido xen config`: the xl configurations of a manifest's guests.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use conn_mgr::Manifest;
use conn_mgr::xen::{config, limits};

#[derive(Args)]
pub struct Command {
    /// The manifest (TOML; see docs/manifest.md).
    manifest: PathBuf,
    /// Only this domain.
    domain: Option<String>,
    /// Writes a file `NAME.cfg` for each guest into this folder instead of printing.
    #[arg(long)]
    output: Option<PathBuf>,
}

impl Command {
    pub fn run(self) -> ExitCode {
        super::super::end(self.configure())
    }

    fn configure(self) -> Result<(), String> {
        let manifest = Manifest::load(&self.manifest).map_err(|error| error.to_string())?;
        let wanted: Vec<usize> = match &self.domain {
            None => (0..manifest.domains.len()).collect(),
            Some(name) => vec![manifest.position(name).ok_or_else(|| format!("there is no domain `{name}`"))?],
        };
        let line = limits::of_hypervisor(&manifest).command_line();
        let needs =
            if line.is_empty() { "Xen's default limits suffice.".to_owned() } else { format!("Xen needs: {line}") };
        super::super::say(io::stdout().lock(), &format_args!("# {needs}"));
        for index in wanted {
            let name = &manifest.domains[index].name;
            let text = config::of_domain(&manifest, index).ok_or_else(|| {
                format!("domain `{name}` has no table [domain.{name}.xen] in {}", self.manifest.display())
            })?;
            match &self.output {
                None => super::super::say(io::stdout().lock(), &format_args!("\n{}", text.trim_end())),
                Some(folder) => {
                    let file = folder.join(format!("{}.cfg", config::guest_name(&manifest.appliance, name)));
                    fs::write(&file, text).map_err(|error| format!("{}: {error}", file.display()))?;
                }
            }
        }
        Ok(())
    }
}
