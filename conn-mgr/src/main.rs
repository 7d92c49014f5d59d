//! `fidod`: runs the appliance that a manifest describes, in the foreground, until it is told to stop.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use clap::Parser;
use conn_mgr::manager::{DomainState, Manager, Options, ShutdownError, Status, WaitError};
use conn_mgr::manifest::Manifest;
use conn_mgr::placement::Place;
use conn_mgr::signals;
use tracing_subscriber::EnvFilter;

const EXIT_CODES: &str = "Exit codes:
  0  the appliance was shut down in order (or, with --check, the manifest is right)
  1  the manifest is wrong, or the manager could not start
  2  wrong command line
  3  shut down, but domains had to be killed
  4  a domain failed for good (only with --fail-fast)

SIGINT, SIGTERM and SIGHUP shut the appliance down; a second one kills what is left at once.
RUST_LOG sets what is logged, for example RUST_LOG=conn_mgr=debug.";

/// Runs the appliance that a manifest describes.
#[derive(Parser)]
#[command(name = "fidod", version, after_help = EXIT_CODES)]
struct Arguments {
    /// The manifest (TOML; see docs/manifest.md).
    manifest: PathBuf,
    /// Only check the manifest.
    #[arg(long)]
    check: bool,
    /// Print the status as one line of JSON when the appliance is ready.
    #[arg(long)]
    json: bool,
    /// Shut down when a domain fails for good, instead of keeping the others running.
    #[arg(long)]
    fail_fast: bool,
    /// How many seconds the domains have to finish at the shutdown.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=86_400))]
    shutdown_timeout: u32,
    /// How many seconds a domain has from its start until it must be ready.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    start_deadline: u32,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(terminal).init();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            // Nobody is left to be told that standard error is closed.
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::from(1)
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let manifest = Manifest::load(&arguments.manifest)?;
    if arguments.check {
        let (domains, links) = (manifest.domains.len(), manifest.links.len());
        say(&format!(
            "{}: appliance `{}`, {domains} domains, {links} links",
            arguments.manifest.display(),
            manifest.appliance
        ));
        return Ok(ExitCode::SUCCESS);
    }
    let (sender, stop) = mpsc::channel();
    // Before any thread is started: all of them inherit the mask, so only the waiting thread gets the signals.
    signals::watch(sender)?;
    let options =
        Options { start_deadline: Duration::from_secs(arguments.start_deadline.into()), ..Options::default() };
    let manager = Manager::start(manifest, options)?;
    let failed = serve(&manager, &stop, arguments);
    let code = shut_down(&manager, &stop, Duration::from_secs(arguments.shutdown_timeout.into()));
    Ok(if failed { ExitCode::from(4) } else { code })
}

/// How often the status is looked at for news. The manager itself reacts at once; this is for what is printed.
const LOOK: Duration = Duration::from_millis(50);

/// Prints when the appliance is ready; returns when it is to be shut down: whether because a domain failed.
fn serve(manager: &Manager, stop: &mpsc::Receiver<()>, arguments: &Arguments) -> bool {
    let mut announced = false;
    loop {
        if !announced {
            match manager.wait_ready(Duration::ZERO) {
                Ok(status) => {
                    announce(&status, arguments.json);
                    announced = true;
                }
                Err(WaitError::Stopped) => return true,
                Err(WaitError::Failed { .. } | WaitError::Timeout { .. }) => {}
            }
        }
        if arguments.fail_fast
            && let Some(failed) = manager.status().failed().next()
        {
            tracing::error!(domain = failed.name, problem = failed.problem, "a domain failed; shutting down");
            return true;
        }
        match stop.recv_timeout(LOOK) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return false,
        }
    }
}

fn announce(status: &Status, json: bool) {
    if json {
        match serde_json::to_string(status) {
            Ok(line) => say(&line),
            Err(error) => tracing::error!(%error, "cannot write the status"),
        }
        return;
    }
    let domains = status.domains.iter().map(|domain| {
        let notes: Vec<_> = domain.notes.iter().map(|(key, value)| format!("{key}={}", value.escape_debug())).collect();
        let ended = if domain.state == DomainState::Ended { ", ended" } else { "" };
        let notes = if notes.is_empty() { String::new() } else { format!(" {}", notes.join(" ")) };
        let cpus = if domain.place == Place::Anywhere { String::new() } else { format!(", cpus {}", domain.place) };
        let pid = domain.pid.map_or("-".into(), |pid| pid.to_string());
        format!("{} (pid {pid}{cpus}{ended}){notes}", domain.name)
    });
    say(&format!("appliance `{}` is ready: {}", status.appliance, domains.collect::<Vec<_>>().join("; ")));
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // A reader that has gone away is no reason to stop serving.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Shuts down; a further signal meanwhile takes all patience away.
fn shut_down(manager: &Manager, stop: &mpsc::Receiver<()>, timeout: Duration) -> ExitCode {
    let result = std::thread::scope(|scope| {
        let shutdown = scope.spawn(|| manager.shutdown(timeout));
        while !shutdown.is_finished() {
            if stop.recv_timeout(LOOK).is_ok() {
                let _ = manager.shutdown(Duration::ZERO);
            }
        }
        shutdown.join()
    });
    match result {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error @ ShutdownError::Forced { .. })) => {
            tracing::warn!(%error, "the appliance is down");
            ExitCode::from(3)
        }
        Ok(Err(error)) => {
            tracing::error!(%error, "the appliance is down");
            ExitCode::from(1)
        }
        Err(_) => ExitCode::from(1),
    }
}
