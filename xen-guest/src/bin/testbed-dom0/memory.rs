//! The scenario `memory`: an owner, two readers, every way in which memory and bells come and go between them.

use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use fido_core::addr::{DomainId, Generation, Slot};
use fido_core::platform::xen::store::Store;
use fido_core::platform::xen::window::{self, Owner};
use xen_guest::memory;
use xen_guest::report::Kind;

use crate::guest::Guest;
use crate::machine::{Machine, xl};
use crate::{Failure, Reporter};

const LIMIT: Duration = Duration::from_secs(90);
/// The arena's pages: more than a directory page lists, and more than gntalloc gives by default.
const PAGES: u64 = 1100;
const BYTES: u64 = PAGES * 4096;
/// 2048 grants, and 512 mappings.
const NARROW: &str = "max_grant_frames = 4\nmax_maptrack_frames = 2\n";

/// dom0's side of the conversation with the guests.
pub struct Play {
    store: Store,
    number: u32,
}

impl Play {
    /// Connects to xenstore.
    pub fn begin() -> Result<Self, Failure> {
        Ok(Self { store: Store::connect().map_err(|error| error.to_string())?, number: 0 })
    }

    /// Tells a guest to do something and waits for its answer.
    pub fn ask(&mut self, guest: &Guest, command: &str) -> Result<String, Failure> {
        let number = self.tell(guest, command)?;
        self.hear(guest, number).map_err(|failure| format!("{failure}, told to {command:?}"))
    }

    /// Tells a guest to do something. Returns the number by which to hear its answer.
    pub fn tell(&mut self, guest: &Guest, command: &str) -> Result<u32, Failure> {
        self.number += 1;
        let path = format!("/local/domain/{}/{}", guest.id, memory::COMMAND);
        let text = format!("{} {command}", self.number);
        self.store.now().write(&path, text.as_bytes()).map_err(|error| error.to_string())?;
        Ok(self.number)
    }

    /// Waits for an answer.
    pub fn hear(&self, guest: &Guest, number: u32) -> Result<String, Failure> {
        let path = format!("/local/domain/{}/{}", guest.id, memory::ANSWER);
        let began = Instant::now();
        loop {
            let answer = self.store.now().read_if_any(&path).map_err(|error| error.to_string())?;
            let answer = answer.map(|answer| String::from_utf8_lossy(&answer).into_owned()).unwrap_or_default();
            match answer.split_once(' ') {
                Some((latest, answer)) if latest == number.to_string() => return Ok(answer.to_owned()),
                _ if began.elapsed() > LIMIT => return Err(format!("{} does not answer", guest.name)),
                _ => sleep(Duration::from_millis(5)),
            }
        }
    }

    /// As `ask`; any other answer is a failure.
    pub fn expect(&mut self, guest: &Guest, command: &str, expected: &str) -> Result<(), Failure> {
        let answer = self.ask(guest, command)?;
        if answer == expected { Ok(()) } else { Err(format!("{}: {command} gives {answer:?}", guest.name)) }
    }

    /// As `ask`; the answer must be an error that says all of this.
    fn refused(&mut self, guest: &Guest, command: &str, words: &[&str]) -> Result<(), Failure> {
        let answer = self.ask(guest, command)?;
        let fits = answer.starts_with("error: ") && words.iter().all(|word| answer.contains(word));
        if fits { Ok(()) } else { Err(format!("{}: {command} gives {answer:?} and not {words:?}", guest.name)) }
    }

    /// Asks until the answer is that.
    pub fn until(&mut self, guest: &Guest, command: &str, expected: &str) -> Result<(), Failure> {
        let began = Instant::now();
        loop {
            let answer = self.ask(guest, command)?;
            if answer == expected {
                return Ok(());
            }
            if began.elapsed() > LIMIT {
                return Err(format!("{}: {command} stays at {answer:?}", guest.name));
            }
            sleep(Duration::from_millis(50));
        }
    }
}

/// Plays it.
pub fn run(machine: &mut Machine, reporter: &mut Reporter) -> Result<String, Failure> {
    let mut play = Play::begin()?;
    let mut create = |name, processor| machine.create(name, 192, processor, &["memory"]);
    let guests = [create("owner", 1)?, create("reader", 2)?, create("third", 3)?];
    let [owner, reader, third] = &guests;
    let mut note = |text: &str| reporter.send(Kind::Note, "memory", text.as_bytes());
    let maps = share(&mut play, owner, [reader, third])?;
    note("two readers see what the owner writes, a write through a window faults")?;
    refusals(&mut play, owner, reader, &maps)?;
    note("what is wrong with a root or a reference is said")?;
    foreign(&mut play, owner)?;
    note("dom0 reads the arena by its frames")?;
    bells(&mut play, owner, reader, third)?;
    note("bells ring both ways")?;
    pair(&mut play, reader, owner, third)?;
    note("stock gntalloc serves a pair and says why not a third")?;
    let narrow = machine.create_with("narrow", 192, 1, &["memory"], NARROW)?;
    exhaust(&mut play, owner, &narrow, [reader, third], &maps[0])?;
    note("full tables of grants and of mappings are said, with what to raise")?;
    leave(&mut play, owner, [reader, third], &maps)?;
    note("revoked pages stay until the reader lets go, and beyond the module")?;
    die(&mut play, machine, [owner, reader, third])?;
    Ok("memory and bells come and go between three guests, and nothing is left".to_owned())
}

/// The command with which each of two readers maps the owner's arena.
type Maps = [String; 2];

fn share(play: &mut Play, owner: &Guest, readers: [&Guest; 2]) -> Result<Maps, Failure> {
    play.expect(owner, &format!("create 1 {BYTES}"), "Module")?;
    let first = play.ask(owner, "scribble 1")?;
    let mut maps = Maps::default();
    for (reader, map) in readers.into_iter().zip(&mut maps) {
        let root = play.ask(owner, &format!("grant {}", reader.id))?;
        *map = format!("1 {} {BYTES} {root}", owner.id);
        let place = play.ask(reader, &format!("map {map}"))?;
        // Slot 1, generation 1: the fourth place of the pseudo-global address space.
        if place != format!("{:#x}", 0x1000_0000_0000_u64 + 3 * (8 << 30)) {
            return Err(format!("the window of {} lies at {place}", reader.name));
        }
        play.expect(reader, "digest", &first)?;
    }
    let second = play.ask(owner, "scribble 2")?;
    for (reader, map) in readers.into_iter().zip(&maps) {
        play.expect(reader, "digest", &second)?;
        let end = play.ask(reader, &format!("{} {map}", memory::TRESPASS))?;
        let faulted = end.contains("mprotect: Permission denied") && end.ends_with("signal 11");
        if !faulted {
            return Err(format!("a write through the window of {} ended with {end:?}", reader.name));
        }
        play.expect(reader, "digest", &second)?;
    }
    Ok(maps)
}

fn refusals(play: &mut Play, owner: &Guest, reader: &Guest, maps: &Maps) -> Result<(), Failure> {
    // A root that is the other reader's; one that nobody granted; the right one under another name or length.
    play.refused(reader, &format!("map {}", maps[1]), &["cannot be mapped", "not granted to this domain"])?;
    play.refused(reader, &format!("map 1 {} {BYTES} 30000", owner.id), &["reference 30000", "cannot be mapped"])?;
    play.refused(reader, &format!("map {}", maps[0].replacen('1', "2", 1)), &["its slot is 1, expected 2"])?;
    let longer = maps[0].replacen(&BYTES.to_string(), &(BYTES + 4096).to_string(), 1);
    play.refused(reader, &format!("map {longer}"), &["number of pages is 1100, expected 1101"])?;
    play.refused(reader, &format!("map 1 999 {BYTES} 9"), &["domain 999"])?;
    play.refused(owner, "grant 32752", &["that cannot be a domain"])?;
    play.refused(owner, "create 2 4294967296", &["at most 1032192"])?;
    play.refused(owner, "create 2 2147483648", &["max_arena_pages"])
}

fn foreign(play: &mut Play, owner: &Guest) -> Result<(), Failure> {
    let digest = play.ask(owner, "scribble 3")?;
    let frame: u32 = play.ask(owner, "frame")?.parse().map_err(|_| "the owner knows no frames")?;
    let slot = Slot::new(1).ok_or("no slot")?;
    let id = DomainId { slot, generation: Generation::FIRST };
    let of = Owner { id, domain: owner.id as u16, bytes: BYTES };
    let window = Arc::new(window::foreign(of, frame).map_err(|error| error.to_string())?);
    let seen = memory::digest_of(&window)?;
    if seen == digest { Ok(()) } else { Err(format!("dom0 reads {seen}, the owner wrote {digest}")) }
}

fn bells(play: &mut Play, owner: &Guest, reader: &Guest, third: &Guest) -> Result<(), Failure> {
    let port = play.ask(owner, &format!("offer {}", reader.id))?;
    play.refused(third, &format!("bind {} {port}", owner.id), &["cannot be bound"])?;
    play.expect(reader, &format!("bind {} {port}", owner.id), "done")?;
    // Binding rings.
    play.expect(reader, "listen", "rung")?;
    for _ in 0..3 {
        for (from, to) in [(owner, reader), (reader, owner)] {
            play.expect(from, "ring", "done")?;
            play.expect(to, "listen", "rung")?;
        }
    }
    Ok(())
}

fn pair(play: &mut Play, owner: &Guest, reader: &Guest, third: &Guest) -> Result<(), Failure> {
    play.ask(owner, &format!("create 5 {BYTES} {}", reader.id))?;
    let digest = play.ask(owner, "scribble 7")?;
    play.refused(owner, &format!("grant {}", third.id), &["one domain only", "fido_arena"])?;
    let root = play.ask(owner, &format!("grant {}", reader.id))?;
    play.ask(reader, &format!("map 5 {} {BYTES} {root}", owner.id))?;
    play.expect(reader, "digest", &digest)?;
    play.expect(reader, "unmap", "done")?;
    play.expect(owner, "drop", "done")
}

/// A guest whose tables have room for the arena once but not twice, and not for mapping one.
fn exhaust(play: &mut Play, owner: &Guest, narrow: &Guest, others: [&Guest; 2], mapped: &str) -> Result<(), Failure> {
    play.expect(narrow, &format!("create 6 {BYTES}"), "Module")?;
    let digest = play.ask(narrow, "scribble 9")?;
    let root = play.ask(narrow, &format!("grant {}", others[0].id))?;
    play.refused(narrow, &format!("grant {}", others[1].id), &["cannot be granted", "max_grant_frames"])?;
    // What it could grant is not touched by what it could not.
    let map = format!("map 6 {} {BYTES} {root}", narrow.id);
    play.expect(others[0], "unmap", "done")?;
    play.ask(others[0], &map)?;
    play.expect(others[0], "digest", &digest)?;
    let root = play.ask(owner, &format!("grant {}", narrow.id))?;
    play.refused(narrow, &format!("map 1 {} {BYTES} {root}", owner.id), &["max_maptrack_frames"])?;
    play.expect(owner, &format!("revoke {}", narrow.id), "done")?;
    // It ends in the middle of this: the reader has its pages as long as it wants.
    xl(&["destroy", &narrow.id.to_string()])?;
    play.expect(others[0], "digest", &digest)?;
    play.refused(others[1], &map, &["cannot be mapped"])?;
    play.expect(others[0], "unmap", "done")?;
    play.ask(others[0], &format!("map {mapped}")).map(drop)
}

fn leave(play: &mut Play, owner: &Guest, readers: [&Guest; 2], maps: &Maps) -> Result<(), Failure> {
    let digest = play.ask(owner, "scribble 4")?;
    let [reader, third] = readers;
    play.expect(owner, "parameter leaving_now", "0")?;
    play.expect(owner, &format!("revoke {}", third.id), "done")?;
    play.expect(third, "digest", &digest)?;
    play.expect(owner, "parameter leaving_now", &PAGES.to_string())?;
    play.expect(third, "unmap", "done")?;
    play.until(owner, "parameter leaving_now", "0")?;
    play.refused(third, &format!("map {}", maps[1]), &["cannot be mapped"])?;
    // The arena's file is closed while the reader maps it: the pages outlive it, and the module.
    play.expect(owner, "drop", "done")?;
    play.until(owner, "parameter pages_now", &PAGES.to_string())?;
    play.expect(owner, "remove-module", "done")?;
    play.expect(reader, "digest", &digest)?;
    play.expect(reader, "unmap", "done")
}

/// The death of an owner whose pages are mapped: they stay, frozen, as long as they are, and no longer.
fn die(play: &mut Play, machine: &Machine, guests: [&Guest; 3]) -> Result<(), Failure> {
    // The first one's module is gone; another one owns the arena.
    let [reader, owner, third] = guests;
    play.expect(owner, &format!("create 1 {BYTES}"), "Module")?;
    let digest = play.ask(owner, "scribble 5")?;
    for guest in [reader, third] {
        let root = play.ask(owner, &format!("grant {}", guest.id))?;
        play.ask(guest, &format!("map 1 {} {BYTES} {root}", owner.id))?;
    }
    let port = play.ask(owner, &format!("offer {}", third.id))?;
    play.expect(third, &format!("bind {} {port}", owner.id), "done")?;
    xl(&["destroy", &owner.id.to_string()])?;
    for guest in [reader, third] {
        play.expect(guest, "digest", &digest)?;
    }
    if !machine.is_listed(owner.id)? {
        return Err("the dead owner's pages are mapped, but it has left no trace".into());
    }
    // Ringing the dead is no error, binding to it is.
    play.expect(third, "ring", "done")?;
    play.refused(reader, &format!("bind {} {port}", owner.id), &["cannot be bound"])?;
    for guest in [reader, third] {
        play.expect(guest, "unmap", "done")?;
    }
    let began = Instant::now();
    while machine.is_listed(owner.id)? {
        if began.elapsed() > LIMIT {
            return Err("the dead owner stays although nobody maps its pages".into());
        }
        sleep(Duration::from_millis(50));
    }
    for guest in [reader, third] {
        play.expect(guest, "end", "done")?;
        guest.wait_for_success(LIMIT)?;
    }
    Ok(())
}
