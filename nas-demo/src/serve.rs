//! Serving one NAS until interrupted.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use conn_mgr::manager::Status;

use crate::appliance::{Mode, Nas, fixed_port};
use crate::cli::Cli;
use crate::demo::{scratch, url};
use crate::interrupt::Interrupt;
use crate::say::say;

/// How long the appliance may take to serve, and to end.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often the state of the domains is looked at.
const GLANCE: Duration = Duration::from_millis(200);

/// Starts the NAS, says where it serves, and reports restarts, until `SIGINT` or `SIGTERM`.
///
/// # Errors
/// Whatever stops it; the message says what to do.
pub fn run(cli: &Cli) -> Result<(), Box<dyn Error>> {
    let mode = match cli.mode.as_slice() {
        [] => Mode::Split,
        [mode] => *mode,
        _ => return Err("--serve takes one --mode".into()),
    };
    let interrupt = Interrupt::watch()?;
    // Keeps the directory, if there is one, until the appliance is down.
    let mut scratch_dir = None;
    let image = match (&cli.image, &cli.disk) {
        (Some(image), _) => std::path::absolute(image)?,
        (None, Some(_)) => PathBuf::new(),
        (None, None) => scratch_dir.insert(scratch(cli.dir.as_deref())?).path().join("nas.img"),
    };
    let (program, listen) = (std::env::current_exe()?, fixed_port(cli.listen)?);
    let nas = Nas { mode, program, image, size: cli.size, disk: cli.disk.clone(), listen };
    if cli.print_manifest {
        print!("{}", nas.manifest_text());
        return Ok(());
    }
    let manager = nas.start(PATIENCE, &|| interrupt.check())?;
    say(format_args!("{}", url(nas.listen)));
    say(format_args!(
        "{}, mode {}; try: nfs-ls '{}'; end with Ctrl-C",
        nas.disk.clone().unwrap_or_else(|| format!("image {}", nas.image.display())),
        mode.name(),
        url(nas.listen)
    ));
    let mut shown = BTreeMap::new();
    while !interrupt.wait(GLANCE) {
        show_changes(&manager.status(), &mut shown);
        if let Some(failed) = manager.status().failed().next() {
            let problem = failed.problem.clone().unwrap_or_default();
            return Err(format!("domain {} has failed for good: {problem}", failed.name).into());
        }
    }
    say(format_args!("shutting down"));
    manager.shutdown(PATIENCE)?;
    Ok(())
}

/// Prints a line for each domain that has another process than was last shown.
fn show_changes(status: &Status, shown: &mut BTreeMap<String, u32>) {
    for domain in &status.domains {
        let Some(pid) = domain.pid else { continue };
        if shown.insert(domain.name.clone(), pid) != Some(pid) {
            say(format_args!("domain {} pid {pid} generation {}", domain.name, domain.generation));
        }
    }
}
