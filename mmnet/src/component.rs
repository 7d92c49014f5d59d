//! What the components are made of: how each begins, works and ends.

use std::error::Error;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use fido_core::addr::DomainId;
use fido_core::domain::{Domain, Notice};
use fido_core::wait::Source;
use tracing_subscriber::EnvFilter;

/// What has been counted is told the manager this often, while it changes.
const REPORT: Duration = Duration::from_secs(1);

/// What a component does.
pub trait Service {
    /// Moves everything along, a bounded amount, and hands it on. Whether there was anything to do. Never blocks.
    fn turn(&mut self) -> bool;

    /// Enters what to wait for.
    fn sources<'a>(&'a mut self, all: &mut Vec<&'a mut dyn Source>);

    /// `dead` is gone and its fence is to be passed: lets go of everything that lies in its arena.
    fn forget(&mut self, dead: DomainId);

    /// What it tells of itself: names and values.
    fn notes(&self) -> Vec<(String, String)>;

    /// Why it cannot go on.
    fn failure(&self) -> Option<String> {
        None
    }
}

/// The `main` of a component that takes no words: what it logs goes to standard error, and so does what ends it, with its
/// name.
pub fn main(name: &str, run: impl FnOnce() -> Result<(), Box<dyn Error>>) -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    let terminal = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(terminal).init();
    if std::env::args().nth(1).is_some_and(|word| matches!(&*word, "--help" | "-h")) {
        println!("{name} takes no words: the manager starts it, with settings from the manifest (docs/mmnet.md)");
        return ExitCode::SUCCESS;
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Says that the component is ready, and does its work until the manager ends it.
///
/// # Errors
/// What the service cannot go on for, or the system's when it has nothing to wait with.
pub fn run(domain: &Domain, mut service: impl Service) -> Result<(), Box<dyn Error>> {
    let (mut notices, mut waiter) = (domain.notices()?, domain.waiter()?);
    let mut told = service.notes();
    tell(domain, &told)?;
    let mut due = Instant::now() + REPORT;
    let mut unsaid = false;
    loop {
        while let Some(notice) = notices.poll() {
            match notice {
                Notice::Died(dead) => service.forget(dead),
                Notice::Shutdown => return Ok(()),
            }
        }
        if let Some(failure) = service.failure() {
            return Err(failure.into());
        }
        let worked = service.turn();
        if worked {
            waiter.busy();
            unsaid = true;
        } else {
            let mut all: Vec<&mut dyn Source> = vec![&mut notices];
            service.sources(&mut all);
            waiter.idle(&mut all, unsaid.then_some(REPORT))?;
        }
        if unsaid && Instant::now() >= due {
            let notes = service.notes();
            unsaid = notes != told;
            if unsaid {
                tell(domain, &notes)?;
                (told, unsaid) = (notes, false);
            }
            due = Instant::now() + REPORT;
        }
    }
}

fn tell(domain: &Domain, notes: &[(String, String)]) -> Result<(), Box<dyn Error>> {
    let notes: Vec<_> = notes.iter().map(|(name, value)| (&**name, value.clone())).collect();
    Ok(domain.ready(&notes)?)
}
