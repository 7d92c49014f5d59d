//! `mmblk-nbd`: block devices for whoever speaks NBD.
//!
//! Started by the manager of an appliance, it serves the disks that its links lead to, each as an export with the link's
//! name, on as many queues as the link has lanes. By hand it serves a disk of its own:
//!
//! ```text
//! mmblk-nbd (HOST:PORT | unix:PATH)… DEVICE [queues=1] [read-only]
//! ```
//!
//! where DEVICE is a description such as `file:/srv/disk.img,create=1GiB` (see [`mmblk::device`]).
//!
//! It says where it listens, and runs until it is told to end. When a disk's domain dies, clients see a pause; when it
//! dies itself, they lose their connections, and the disks nothing. docs/nbd.md has a manifest and more.

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use fido_core::assignment::WaitStrategy;
use fido_core::crew::{self, Crew, MAX_CREW};
use fido_core::domain::{Domain, Notice};
use fido_core::memory::Memory;
use fido_core::waiter::Waiter;
use mmblk::export::nbd::{Export, Limits, Server, Worker};
use mmblk::link::device::LinkDevice;
use mmblk::link::front::LinkQueue;
use mmblk::nbd::place::Place;
use mmblk::queue::BlockQueue;
use mmblk::{component, device};

/// How long a disk's domain may take to come up.
const PATIENCE: Duration = Duration::from_secs(30);
/// A thread beyond the first that has had no work for so long is let go.
const LULL: Duration = Duration::from_millis(500);
/// How often the crew is looked at.
const GLANCE: Duration = Duration::from_millis(200);
/// The arena of a process that is no domain.
const ARENA: u64 = 512 << 20;
const USAGE: &str = "usage: mmblk-nbd (HOST:PORT | unix:PATH)... DEVICE [queues=1] [read-only]";

fn main() -> ExitCode {
    component::main("mmblk-nbd", USAGE, |words| if words.is_empty() { serve_domain() } else { by_hand(words) })
}

/// A domain of an appliance: the disks are others'.
fn serve_domain() -> Result<(), Box<dyn Error>> {
    let domain = Domain::join().map_err(|error| format!("{error}\n{USAGE}"))?;
    let places = places(&domain)?;
    let (exports, disks) = disks(&domain)?;
    let queues = queues(&disks);
    let most = threads(&domain, queues.len())?;
    let mut server = Server::bind(&places, exports, limits(&domain)?)?;
    let workers = workers(&mut server, &domain.memory(), queues)?;
    let crew = domain.crew(crew::Limits { least: 1, most, lull: LULL }, workers)?;
    let mut notices = domain.notices()?;
    let mut waiter = domain.waiter()?;
    domain.ready(&[("listen", listening(&server))])?;
    loop {
        match notices.poll() {
            Some(Notice::Shutdown) => return Ok(()),
            Some(Notice::Died(dead)) => server.rescue(dead),
            None => {
                fail_with(&crew)?;
                waiter.idle(&mut [&mut notices], Some(GLANCE))?;
            }
        }
    }
}

/// The setting `listen`: one place or several; by default a free port of the loopback.
fn places(domain: &Domain) -> Result<Vec<Place>, Box<dyn Error>> {
    let texts: Vec<String> = domain.param("listen", vec!["127.0.0.1:0".to_owned()])?;
    texts
        .iter()
        .map(|text| text.parse().map_err(|error| domain.bad_param("listen", format!("{error}")).into()))
        .collect()
}

/// The disks at the other ends of the links that the setting `links` names, and as what they are offered.
fn disks(domain: &Domain) -> Result<(Vec<Export>, Vec<LinkDevice>), Box<dyn Error>> {
    let links: Vec<String> = domain.param("links", vec!["disk".to_owned()])?;
    let read_only: Vec<String> = domain.param("read-only", Vec::new())?;
    let (mut exports, mut disks) = (Vec::new(), Vec::new());
    for link in links {
        disks.push(LinkDevice::connect(domain.take_lanes(&link)?, PATIENCE)?);
        let description = format!("the disk behind link {link}");
        exports.push(Export { read_only: read_only.contains(&link), name: link, description });
    }
    Ok((exports, disks))
}

/// A queue on every disk for each worker: as many as every disk has lanes for.
fn queues(disks: &[LinkDevice]) -> Vec<Vec<LinkQueue>> {
    let row = || disks.iter().map(LinkDevice::queue).collect::<Option<Vec<_>>>();
    std::iter::from_fn(|| row().filter(|row| !row.is_empty())).collect()
}

fn limits(domain: &Domain) -> Result<Limits, Box<dyn Error>> {
    let usual = Limits::default();
    Ok(Limits {
        clients: domain.param("clients", usual.clients)?,
        requests: domain.param("requests", usual.requests)?,
        client_bytes: domain.param("client-bytes", usual.client_bytes)?,
        ..usual
    })
}

/// The setting `threads`, or what is left for this domain of the processors; never more than there are workers.
fn threads(domain: &Domain, workers: usize) -> Result<usize, Box<dyn Error>> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let share = (processors / usize::from(domain.assignment().domains).max(1)).max(1);
    let threads = domain.param("threads", share)?;
    if !(1..=MAX_CREW).contains(&threads) {
        return Err(domain.bad_param("threads", format!("{threads}; it must be 1 to {MAX_CREW}")).into());
    }
    Ok(threads.min(workers).max(1))
}

fn workers<Q: BlockQueue>(
    server: &mut Server,
    memory: &Memory,
    queues: Vec<Vec<Q>>,
) -> Result<Vec<Worker<Q>>, Box<dyn Error>> {
    queues.into_iter().map(|row| Ok(server.worker(memory.clone(), row)?)).collect()
}

fn listening(server: &Server) -> String {
    server.places().iter().map(Place::to_string).collect::<Vec<_>>().join(" ")
}

/// A worker that has failed would leave clients waiting for ever.
fn fail_with<J: crew::Job + 'static>(crew: &Crew<J>) -> Result<(), Box<dyn Error>> {
    match crew.failures().first() {
        Some(failure) => Err(format!("{}: {}", failure.what, failure.message).into()),
        None => Ok(()),
    }
}

/// No domain: the disk is this process's own.
fn by_hand(words: &[String]) -> Result<(), Box<dyn Error>> {
    let is_setting = |word: &&String| *word == "read-only" || word.starts_with("queues=");
    let settings = words.iter().rev().take_while(is_setting).count();
    let (words, settings) = words.split_at(words.len() - settings);
    let [listen @ .., disk] = words else { return Err(USAGE.into()) };
    let places = listen.iter().map(|text| text.parse()).collect::<Result<Vec<Place>, _>>()?;
    let (mut count, mut read_only) = (1_usize, false);
    for setting in settings {
        match setting.split_once('=') {
            Some((_, value)) => count = value.parse()?,
            None => read_only = true,
        }
    }
    if !(1..=MAX_CREW).contains(&count) {
        return Err(format!("{count} queues; it must be 1 to {MAX_CREW}").into());
    }
    let device = device::open_text(disk)?;
    let export = Export { name: "disk".into(), description: disk.clone(), read_only };
    let mut server = Server::bind(&places, vec![export], Limits::default())?;
    let memory = Memory::private(ARENA)?;
    let queues = (0..count).map(|_| Ok(vec![device.queue(&memory)?])).collect::<Result<Vec<_>, Box<dyn Error>>>()?;
    let workers = workers(&mut server, &memory, queues)?;
    let waiter = move || Ok(Waiter::new(WaitStrategy::Adaptive)?.counting_in(&memory));
    let crew = Crew::start(crew::Limits { least: 1, most: count, lull: LULL }, waiter, workers)?;
    println!("listening at {}", listening(&server));
    loop {
        fail_with(&crew)?;
        std::thread::sleep(GLANCE);
    }
}
