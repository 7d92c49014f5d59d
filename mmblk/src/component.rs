//! What the components are made of: how each begins and ends; the disk's settings, and the threads that serve its links.
//!
//! Each link of the domain is a front end, each of its lanes a queue. `mmblk-disk` is the program; a component of another
//! program may use the same parts.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use fido_core::crew::{self, Crew, CrewError, MAX_CREW};
use fido_core::domain::{Domain, DomainError};
use serde::Deserialize;
use tracing_subscriber::EnvFilter;

use crate::device::description::Description;
use crate::device::options::size;
use crate::device::{BoxQueue, Device, OpenError};
use crate::link::back::{BackEnd, Limits, LimitsError, ServeError};

/// A thread beyond the first that has had no work for so long is let go.
const LULL: Duration = Duration::from_millis(500);

/// The `main` of a component: what it logs goes to standard error, and so does what ends it, with its name. `usage` says
/// what may be said on its command line, to who asks with `--help`.
pub fn main(name: &str, usage: &str, run: impl FnOnce(&[String]) -> Result<(), Box<dyn Error>>) -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    let terminal = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(terminal).init();
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [word] = &*words
        && matches!(&**word, "--help" | "-h")
    {
        println!("{usage}");
        return ExitCode::SUCCESS;
    }
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Why the component cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ComponentError {
    /// The domain, its links or its settings.
    #[error(transparent)]
    Domain(#[from] DomainError),
    /// The device.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A front end.
    #[error("link {link:?}: {error}")]
    FrontEnd {
        /// Its link.
        link: String,
        /// What is wrong.
        error: ServeError,
    },
    /// The threads.
    #[error(transparent)]
    Crew(#[from] CrewError),
}

/// The component's settings, from `params` of its domain in the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `device`: what to open. Required.
    pub device: Description,
    /// What each front end may take, by its link: `requests`, `lent-bytes` and `turn` for all of them, or for one under
    /// `front-ends.LINK`. By default what is fair, see [`Limits::fair`].
    pub limits: BTreeMap<String, Limits>,
    /// `threads`: the most that serve. By default the domain's share of the processors.
    pub threads: usize,
}

/// Limits as they stand in the manifest.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Given {
    requests: Option<u32>,
    lent_bytes: Option<Bytes>,
    turn: Option<u32>,
}

/// Bytes as a number, or with a unit.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Bytes {
    Number(u64),
    Text(String),
}

impl Bytes {
    fn get(self) -> Result<u64, String> {
        match self {
            Self::Number(number) => Ok(number),
            Self::Text(text) => size(&text).map_err(|reason| format!("{text:?}: {reason}")),
        }
    }
}

impl Given {
    /// These limits, where they are given, and else those of `other`.
    fn or(self, other: Limits) -> Result<Limits, String> {
        let lent_bytes = self.lent_bytes.map_or(Ok(other.lent_bytes), Bytes::get)?;
        let (requests, turn) = (self.requests.unwrap_or(other.requests), self.turn.unwrap_or(other.turn));
        Limits { requests, lent_bytes, turn }.checked().map_err(|error| error.to_string())
    }
}

impl Settings {
    /// The settings of a domain.
    ///
    /// # Errors
    /// [`DomainError::Param`] that names the setting.
    pub fn of(domain: &Domain) -> Result<Self, DomainError> {
        let text: String = domain.required_param("device")?;
        let device = Description::parse(&text).map_err(|error| domain.bad_param("device", error.to_string()))?;
        Ok(Self { device, limits: limits(domain)?, threads: threads(domain)? })
    }
}

fn limits(domain: &Domain) -> Result<BTreeMap<String, Limits>, DomainError> {
    let links = &domain.assignment().links;
    let (requests, turn) = (domain.param("requests", None)?, domain.param("turn", None)?);
    let lent_bytes: Option<Bytes> = domain.param("lent-bytes", None)?;
    let mut given: BTreeMap<String, Given> = domain.param("front-ends", BTreeMap::new())?;
    if let Some(unknown) = given.keys().find(|name| links.iter().all(|link| link.name != **name)) {
        return Err(domain.bad_param("front-ends", format!("there is no link {unknown:?}")));
    }
    // What is fair is asked for only where it is not given: a heap may be too small for it.
    let fair = match (Limits::fair(&domain.memory(), links.len()), &lent_bytes) {
        (Ok(fair), _) => fair,
        (Err(LimitsError::Heap { .. }), Some(_)) => Limits::NONE,
        (Err(error), _) => return Err(domain.bad_param("lent-bytes", error.to_string())),
    };
    let all = Given { requests, lent_bytes, turn }.or(fair).map_err(|error| domain.bad_param("limits", error))?;
    let mut limits = BTreeMap::new();
    for link in links {
        let own = given.remove(&link.name).unwrap_or_default().or(all);
        let own = own.map_err(|error| domain.bad_param(&format!("front-ends.{}", link.name), error))?;
        limits.insert(link.name.clone(), own);
    }
    Ok(limits)
}

fn threads(domain: &Domain) -> Result<usize, DomainError> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let share = processors / usize::from(domain.assignment().domains).max(1);
    let threads = domain.param("threads", share.clamp(1, MAX_CREW))?;
    if !(1..=MAX_CREW).contains(&threads) {
        return Err(domain.bad_param("threads", format!("{threads}; it must be 1 to {MAX_CREW}")));
    }
    Ok(threads)
}

/// Serves every lane of every link from a queue of its own.
///
/// # Errors
/// [`ComponentError`] if a lane has been taken, or the system has no descriptor, memory or thread left.
pub fn serve(
    domain: &Domain,
    device: &dyn Device,
    settings: &Settings,
) -> Result<Crew<BackEnd<BoxQueue>>, ComponentError> {
    let mut all = Vec::new();
    for link in &domain.assignment().links {
        let mut lanes = Vec::new();
        for lane in domain.take_lanes(&link.name)? {
            lanes.push((lane, device.queue(&domain.memory())?));
        }
        let limits = settings.limits.get(&link.name).copied().unwrap_or(Limits::NONE);
        let served = BackEnd::group(lanes, limits);
        all.extend(served.map_err(|error| ComponentError::FrontEnd { link: link.name.clone(), error })?);
    }
    // A lane is not divided.
    let most = settings.threads.min(all.len()).max(1);
    Ok(domain.crew(crew::Limits { least: 1, most, lull: LULL }, all)?)
}
