//! The scenario `costs`: what mapping, copying and ringing take between two guests, in one boot. Under emulation the
//! figures mean something in relation to each other only. And that large windows show the right pages: at the most
//! references of one request to the kernel, and beyond.

use xen_guest::costs::Spread;
use xen_guest::report::Kind;

use crate::guest::Guest;
use crate::machine::{Machine, xl};
use crate::memory::Play;
use crate::{Failure, Reporter};

/// Pages that one request to the kernel can map.
const CHUNK: u64 = 65536;
/// Pages of the windows that are timed.
const WINDOWS: [u64; 3] = [16384, CHUNK, CHUNK + 1];
/// One more, if there is memory for it.
const LARGEST: u64 = 262_144;
/// The owner's memory in MiB: the module gives up to three quarters of it to arenas. Without and with the largest.
const OWNER: [u32; 2] = [448, 1500];
/// The reader's memory in MiB. It maps more than it has.
const READER: u32 = 256;
/// Xen's and the kernel's tables for the largest window; the last for PVH guests, PV ones have page tables of their own.
const TABLES: &str = "max_grant_frames = 1024\nmax_maptrack_frames = 4096\nshadow_memory = 16\n";
/// How often what is short is done.
const ROUNDS: u32 = 200;
/// How an event channel is waited for, and what that is called.
const WAYS: [(&str, &str); 3] = [
    ("look", "event channel there and back, both awake"),
    ("channel", "event channel there and back, both asleep"),
    ("bell", "bell there and back, both asleep"),
];

/// Plays it.
pub fn run(machine: &mut Machine, reporter: &mut Reporter) -> Result<String, Failure> {
    let mut play = Play::begin()?;
    let has_room = free_memory()? >= OWNER[1] + READER + 64;
    let owner = machine.create_with("owner", OWNER[usize::from(has_room)], 1, &["memory"], TABLES)?;
    let reader = machine.create_with("reader", READER, 2, &["memory"], TABLES)?;
    let mut rows = vec!["what,rounds,median_ns,p99_ns,max_ns,mean_ns".to_owned()];
    for pages in WINDOWS.into_iter().chain(has_room.then_some(LARGEST)) {
        window(&mut play, &owner, &reader, pages, &mut rows)?;
        let latest = rows.last().cloned().unwrap_or_default();
        reporter.send(Kind::Note, "costs", format!("{pages} pages; {latest}").as_bytes())?;
    }
    page(&mut play, &owner, &reader, &mut rows)?;
    bell(&mut play, &owner, &reader, &mut rows)?;
    for guest in [&owner, &reader] {
        play.expect(guest, "end", "done")?;
    }
    rows.push(String::new());
    reporter.send(Kind::File, "costs.csv", rows.join("\n").as_bytes())?;
    rows.retain(|row| row.contains("one page") || row.contains("there and back"));
    Ok(format!("large windows show the right pages; {}", rows.join("; ")))
}

/// Xen's free memory, in MiB.
fn free_memory() -> Result<u32, Failure> {
    let info = xl(&["info", "free_memory"])?;
    info.trim().parse().map_err(|_| format!("xl says {info:?} for free memory"))
}

fn figures(answer: &str) -> Result<Vec<u64>, Failure> {
    let figures: Option<Vec<u64>> = answer.split(' ').map(|word| word.parse().ok()).collect();
    figures.ok_or_else(|| answer.to_owned())
}

fn window(play: &mut Play, owner: &Guest, reader: &Guest, pages: u64, rows: &mut Vec<String>) -> Result<(), Failure> {
    let bytes = pages * 4096;
    play.expect(owner, &format!("create 1 {bytes}"), "Module")?;
    play.ask(owner, "mark 5")?;
    let root = play.ask(owner, &format!("grant {}", reader.id))?;
    let answer = play.ask(reader, &format!("time-window 1 {} {bytes} {root}", owner.id))?;
    let figures = figures(&answer)?;
    for (what, nanoseconds) in ["map", "touch", "unmap"].iter().zip(figures) {
        rows.push(format!("{what} a window of {pages} pages,1,{nanoseconds},,,"));
    }
    play.expect(owner, "drop", "done")?;
    play.until(owner, "parameter pages_now", "0")
}

fn page(play: &mut Play, owner: &Guest, reader: &Guest, rows: &mut Vec<String>) -> Result<(), Failure> {
    play.expect(owner, "create 1 4096", "Module")?;
    let root = play.ask(owner, &format!("grant {}", reader.id))?;
    let answer = play.ask(reader, &format!("time-page {} {root} {ROUNDS}", owner.id))?;
    let ways = ["map, touch and unmap one page", "GRANT_COPY of one page", "memcpy of one page"];
    for (what, spread) in ways.iter().zip(answer.split(',')) {
        rows.push(row(what, ROUNDS, &answer, Spread::parse(spread))?);
    }
    play.expect(owner, "drop", "done")
}

fn bell(play: &mut Play, owner: &Guest, reader: &Guest, rows: &mut Vec<String>) -> Result<(), Failure> {
    let port = play.ask(owner, &format!("offer {}", reader.id))?;
    play.expect(reader, &format!("bind {} {port}", owner.id), "done")?;
    play.expect(reader, "listen", "rung")?;
    for (way, what) in WAYS {
        let serving = play.tell(owner, &format!("serve-bell {way} {ROUNDS}"))?;
        let answer = play.ask(reader, &format!("play-bell {way} {ROUNDS}"))?;
        rows.push(row(what, ROUNDS, &answer, Spread::parse(&answer))?);
        match play.hear(owner, serving)?.as_str() {
            "done" => {}
            other => return Err(format!("the owner's bell: {other}")),
        }
    }
    Ok(())
}

fn row(what: &str, rounds: u32, answer: &str, spread: Option<Spread>) -> Result<String, Failure> {
    let Spread { median, p99, max, mean } = spread.ok_or_else(|| answer.to_owned())?;
    Ok(format!("\"{what}\",{rounds},{median},{p99},{max},{mean}"))
}
