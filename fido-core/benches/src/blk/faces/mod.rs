//! The standard faces over a null device, against what others have for the same: NBD against `nbdkit null`, with fio as
//! the client of both; vhost-user-blk against `qemu-storage-daemon`, with our own front end and driver.
//!
//! Every server is a process of its own. All take turns in every round. A program that this machine does not have makes
//! rows that say so, with the Debian package that has it.

mod fio;
mod guest;
mod server;

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Options;
use crate::Failure;
use crate::other_side::{Control, Program};
use crate::report::{Column, Limit, Raw, Row, Table, Target, median};
use server::{Kind, Server};

/// Bytes of each request.
const BYTES: u32 = 4096;

/// What is asked of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Load {
    write: bool,
    depth: u32,
    jobs: usize,
}

const fn load(write: bool, depth: u32, jobs: usize) -> Load {
    Load { write, depth, jobs }
}

const LOADS: [Load; 8] = [
    load(false, 1, 1),
    load(true, 1, 1),
    load(false, 1, 2),
    load(true, 1, 2),
    load(false, 64, 1),
    load(true, 64, 1),
    load(false, 64, 2),
    load(true, 64, 2),
];

/// What one turn has found.
#[derive(Debug, Clone, Copy)]
struct Turn {
    /// Operations per second, of all jobs.
    rate: f64,
    /// Median, p99 and p99.9 of an operation's time, in nanoseconds.
    times: [f64; 3],
    /// How many operations there were.
    operations: f64,
    /// Processor time of the server per operation, in nanoseconds.
    cost: f64,
}

/// Servers that offer the same face, and their client.
struct Contest {
    name: &'static str,
    /// What tables and files are called by.
    short: &'static str,
    /// Whom the others are compared with comes first.
    servers: &'static [Kind],
    drive: fn(&Path, Kind, Load, Duration) -> Result<Turn, Failure>,
    /// A program that the client needs, and the package that has it.
    client: Option<(&'static str, &'static str)>,
}

const CONTESTS: [Contest; 2] = [
    Contest {
        name: "NBD, fio's client",
        short: "nbd",
        servers: &[Kind::Nbdkit, Kind::Nbd, Kind::NbdLink],
        drive: fio::drive,
        client: Some(("fio", "fio")),
    },
    Contest {
        name: "vhost-user-blk, the same driver",
        short: "vhost",
        servers: &[Kind::Qemu, Kind::Vhost],
        drive: guest::drive,
        client: None,
    },
];

/// Measures all faces.
pub fn measure(options: &Options, program: &Program<'_>) -> Result<(Vec<Table>, Vec<Target>), Failure> {
    let (mut tables, mut targets) = (Vec::new(), Vec::new());
    for contest in &CONTESTS {
        eprintln!("{} ...", contest.name);
        let entrants = contest.run(options, program)?;
        for load in LOADS {
            let what = format!("null, {}, {}: of {}", contest.short, label(load), contest.servers[0].name());
            let measured = entrants.get(1).and_then(|ours| ours.against(entrants.first()?, load));
            targets.push(Target { what, limit: Limit::AtLeast(1.0), measured });
        }
        tables.push(contest.rates(&entrants, options.rounds));
        tables.push(contest.latencies(&entrants, options.rounds));
    }
    Ok((tables, targets))
}

/// Serves a face until it is told that it is over.
pub fn serve(control: &mut Control) -> Result<(), Failure> {
    server::serve(control)
}

/// One server's results.
struct Entrant {
    kind: Kind,
    /// Why there are none.
    missing: Option<String>,
    /// The turns of each of [`LOADS`].
    turns: [Vec<Turn>; LOADS.len()],
}

impl Entrant {
    fn turns(&self, load: Load) -> &[Turn] {
        LOADS.iter().position(|other| *other == load).map_or(&[], |at| &self.turns[at])
    }

    /// The median of what the rounds have found; `None` if there were none.
    fn middle(&self, load: Load, of: fn(&Turn) -> f64) -> Option<f64> {
        let values: Vec<f64> = self.turns(load).iter().map(of).collect();
        (!values.is_empty()).then(|| median(&values))
    }

    /// This server's rate as a share of another's: the median over rounds, in which both had their turns close to each
    /// other.
    fn against(&self, other: &Self, load: Load) -> Option<f64> {
        let pairs = self.turns(load).iter().zip(other.turns(load));
        let ratios: Vec<f64> = pairs.map(|(own, other)| own.rate / other.rate).collect();
        (!ratios.is_empty()).then(|| median(&ratios))
    }
}

impl Contest {
    fn run(&self, options: &Options, program: &Program<'_>) -> Result<Vec<Entrant>, Failure> {
        let time = Duration::from_millis(if options.quick { 50 } else { 1000 });
        let folder = Folder::make(&options.folder(), self.short)?;
        let without = self.client.and_then(|(name, package)| server::missing(name, package));
        let enter = |kind: Kind| {
            let missing = without.clone().or_else(|| kind.missing());
            if let Some(missing) = &missing {
                eprintln!("{}: not measured: {missing}", kind.name());
            }
            Entrant { kind, missing, turns: LOADS.map(|_| Vec::new()) }
        };
        let mut entrants: Vec<Entrant> = self.servers.iter().copied().map(enter).collect();
        for _ in 0..options.rounds {
            let mut servers: Vec<Option<Server>> = Vec::new();
            for entrant in &entrants {
                let start = || Server::start(entrant.kind, &folder.0.join(entrant.kind.name()), program);
                servers.push(entrant.missing.is_none().then(start).transpose()?);
            }
            for (at, load) in LOADS.into_iter().enumerate() {
                for (entrant, server) in entrants.iter_mut().zip(&mut servers) {
                    let Some(server) = server else { continue };
                    let turn = self.turn(server, load, time);
                    entrant.turns[at]
                        .push(turn.map_err(|error| format!("{}, {load:?}: {error}", entrant.kind.name()))?);
                }
            }
            servers.into_iter().flatten().try_for_each(Server::finish)?;
        }
        Ok(entrants)
    }

    fn turn(&self, server: &mut Server, load: Load, time: Duration) -> Result<Turn, Failure> {
        let before = server.cpu_time()?;
        let turn = (self.drive)(server.socket(), server.kind(), load, time)?;
        let used = server.cpu_time()?.saturating_sub(before);
        Ok(Turn { cost: used.as_nanos() as f64 / turn.operations.max(1.0), ..turn })
    }

    fn rates(&self, entrants: &[Entrant], rounds: u32) -> Table {
        let mut columns: Vec<_> = entrants.iter().map(|one| Column::new(one.kind.name(), "1/s", 0)).collect();
        let first = self.servers[0].name();
        let ratio = |one: &Entrant| Column::new(&format!("{} / {first}", one.kind.name()), "", 2);
        columns.extend(entrants.iter().skip(1).map(ratio));
        columns.extend(entrants.iter().map(|one| Column::new(&format!("CPU, {}", one.kind.name()), "us", 2)));
        let title = format!("{}: operations of {BYTES} bytes a second on the null device ({rounds} rounds)", self.name);
        let mut table = Table::new(&format!("{}-rates", self.short), title, columns);
        let missing: Vec<&str> = entrants.iter().filter_map(|one| one.missing.as_deref()).collect();
        for load in LOADS {
            let rate = |one: &Entrant| one.middle(load, |turn| turn.rate);
            let mut cells: Vec<_> = entrants.iter().map(rate).collect();
            cells.extend(entrants.iter().skip(1).map(|one| one.against(&entrants[0], load)));
            cells.extend(entrants.iter().map(|one| one.middle(load, |turn| turn.cost / 1000.0)));
            let rounds = entrants.iter().flat_map(|one| one.turns(load)).map(|turn| turn.rate);
            let mut row = Row { raw: Raw::Rounds(rounds.collect()), ..Row::new(label(load), cells) };
            row.remark = missing.first().map(|why| format!("missing: {why}"));
            table.rows.push(row);
        }
        table.notes.push("CPU: processor time of the server, and of its disk's domain, for each operation".into());
        table.notes.push("ratios: the median over rounds; rounds in the raw data, server after server".into());
        table
    }

    fn latencies(&self, entrants: &[Entrant], rounds: u32) -> Table {
        let columns = ["median", "p99", "p99.9"].map(|name| Column::new(name, "us", 1)).to_vec();
        let title = format!("{}: one request at a time on the null device ({rounds} rounds)", self.name);
        let mut table = Table::new(&format!("{}-latency", self.short), title, columns);
        for load in LOADS.into_iter().filter(|load| load.depth == 1) {
            for one in entrants {
                let label = format!("{}, {}", label(load), one.kind.name());
                table.rows.push(match &one.missing {
                    Some(why) => Row::absent(label, format!("missing: {why}")),
                    None => Row::new(
                        label,
                        vec![
                            one.middle(load, |turn| turn.times[0] / 1000.0),
                            one.middle(load, |turn| turn.times[1] / 1000.0),
                            one.middle(load, |turn| turn.times[2] / 1000.0),
                        ],
                    ),
                });
            }
        }
        table
    }
}

fn label(load: Load) -> String {
    format!("{}, {} x {}", if load.write { "write" } else { "read" }, load.depth, load.jobs)
}

/// A folder for sockets, removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn make(parent: &Path, name: &str) -> Result<Self, Failure> {
        let folder = Self(parent.join(format!("fido-bench-{}-{name}", std::process::id())));
        std::fs::create_dir(&folder.0).map_err(|error| format!("{}: {error}", folder.0.display()))?;
        Ok(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
