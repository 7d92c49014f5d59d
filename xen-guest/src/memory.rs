//! The guest's part in the scenarios `memory` and `costs`: does with fido-core's Xen platform what dom0 says, one command at a time.
//!
//! dom0 writes `NUMBER COMMAND…` into the node `fido/command` of the guest's home; the guest answers
//! `NUMBER WHAT-CAME-OF-IT` in `data/answer`.

use std::fmt::Display;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use std::os::unix::process::ExitStatusExt;

use fido_core::addr::{DomainId, Generation, Slot};
use fido_core::bell::{Bell, Ringer};
use fido_core::platform::xen::arena::{Provider, SharedArena};
use fido_core::platform::xen::channel::{Channel, Port};
use fido_core::platform::xen::store::Store;
use fido_core::platform::xen::window::{self, Owner};
use fido_core::window::{Span, Window};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::mm::MprotectFlags;

use crate::costs::{self, BELL_LIMIT, Ends};

/// Where commands come from, in the guest's home.
pub const COMMAND: &str = "fido/command";
/// Where answers go to, in the guest's home.
pub const ANSWER: &str = "data/answer";
/// The argument that asks for a write through a window.
pub const TRESPASS: &str = "trespass";

type Answer = Result<String, String>;

#[derive(Default)]
struct Agent {
    arena: Option<(SharedArena, fido_core::arena::RawArena)>,
    window: Option<Arc<Window>>,
    bell: Option<(Arc<Channel>, Bell)>,
    port: Option<Port>,
}

/// Obeys until it is told to end.
///
/// # Errors
/// What xenstore says, in words.
pub fn obey() -> Result<(), String> {
    let store = Store::connect().map_err(text)?;
    store.watch(COMMAND, "command").map_err(text)?;
    let (mut agent, mut done) = (Agent::default(), String::new());
    loop {
        store.wait_event(None).map_err(text)?;
        let Some(command) = store.now().read_if_any(COMMAND).map_err(text)? else { continue };
        let command = String::from_utf8_lossy(&command).into_owned();
        if command == done {
            continue;
        }
        let mut words = command.split(' ');
        let number = words.next().unwrap_or_default();
        let words: Vec<&str> = words.collect();
        println!("told to {words:?}");
        let answer = agent.carry_out(&words).unwrap_or_else(|error| format!("error: {error}"));
        println!("answers {answer}");
        store.now().write(ANSWER, format!("{number} {answer}").as_bytes()).map_err(text)?;
        if words == ["end"] {
            return Ok(());
        }
        done.clone_from(&command);
    }
}

fn text(error: impl Display) -> String {
    error.to_string()
}

fn number<T: std::str::FromStr>(word: &str) -> Result<T, String> {
    word.parse().map_err(|_| format!("{word} is no number"))
}

/// The incarnation in a slot that these scenarios speak of.
fn incarnation(slot: &str) -> Result<DomainId, String> {
    let slot = Slot::new(number(slot)?).ok_or("no such slot")?;
    Ok(DomainId { slot, generation: Generation::FIRST })
}

impl Agent {
    fn carry_out(&mut self, words: &[&str]) -> Answer {
        match *words {
            ["create", slot, bytes] => self.create(None, slot, bytes),
            ["create", slot, bytes, pair] => self.create(Some(number(pair)?), slot, bytes),
            ["scribble", seed] => self.scribble(number(seed)?),
            ["mark", seed] => self.mark(number(seed)?),
            ["grant", domain] => self.arena()?.grant(number(domain)?).map(|root| root.to_string()).map_err(text),
            ["revoke", domain] => self.arena()?.revoke(number(domain)?).map(|()| "done".into()).map_err(text),
            ["frame"] => Ok(format!("{:?}", self.arena()?.root_frame().map_err(text)?.unwrap_or_default())),
            ["drop"] => {
                self.arena = None;
                Ok("done".into())
            }
            ["map", slot, domain, bytes, root] => self.map(slot, domain, bytes, root),
            ["digest"] => self.digest(),
            ["unmap"] => {
                self.window = None;
                Ok("done".into())
            }
            ["time-window", slot, domain, bytes, root] => {
                self.window = None;
                let owner = Owner { id: incarnation(slot)?, domain: number(domain)?, bytes: number(bytes)? };
                costs::window(owner, own_number()?, number(root)?).map(|took| took.map(|one| one.to_string()).join(" "))
            }
            ["time-page", domain, root, rounds] => {
                let took = costs::page(number(domain)?, number(root)?, number(rounds)?)?;
                Ok(took.map(|one| one.to_string()).join(","))
            }
            ["play-bell", way, rounds] => Ok(self.ends()?.play(way, number(rounds)?)?.to_string()),
            ["serve-bell", way, rounds] => self.ends()?.serve(way, number(rounds)?).map(|()| "done".into()),
            ["trespass", ..] => trespass_elsewhere(words),
            ["offer", domain] => {
                let port = self.channel()?.offer(number(domain)?).map_err(text)?;
                Ok(self.port.insert(port).number().to_string())
            }
            ["bind", domain, port] => {
                let port = self.channel()?.bind(number(domain)?, number(port)?).map_err(text)?;
                self.port = Some(port);
                Ok("done".into())
            }
            ["ring"] => {
                self.port.as_ref().ok_or("no port")?.ring();
                Ok("done".into())
            }
            ["listen"] => self.listen(BELL_LIMIT),
            ["parameter", name] => std::fs::read_to_string(format!("/sys/module/fido_arena/parameters/{name}"))
                .map(|value| value.trim().to_owned())
                .map_err(text),
            ["remove-module"] => rustix::system::delete_module(c"fido_arena", 0).map(|()| "done".into()).map_err(text),
            ["end"] => Ok("done".into()),
            _ => Err(format!("no command is called {words:?}")),
        }
    }

    fn arena(&mut self) -> Result<&mut SharedArena, String> {
        self.arena.as_mut().map(|(arena, _)| arena).ok_or_else(|| "no arena".into())
    }

    fn create(&mut self, pair: Option<u16>, slot: &str, bytes: &str) -> Answer {
        let provider = match pair {
            Some(pair) => Provider::Gntalloc { pair },
            None => Provider::find(|| Ok(None)).map_err(text)?,
        };
        let created = SharedArena::create(provider, incarnation(slot)?, number(bytes)?).map_err(text)?;
        self.arena = Some(created);
        Ok(format!("{provider:?}"))
    }

    /// Fills the arena with words that depend on `seed` and the place.
    fn scribble(&mut self, seed: u64) -> Answer {
        let (_, raw) = self.arena.as_ref().ok_or("no arena")?;
        let words = raw.len / 8;
        for at in 0..words {
            let value = (at + 1).wrapping_mul(seed.wrapping_mul(2) + 1);
            // SAFETY: within the own arena, which is mapped writable and of which no references exist; peers only read.
            unsafe { raw.base.cast::<u64>().add(at as usize).write_volatile(value) };
        }
        Ok(digest((0..words).map(|at| (at + 1).wrapping_mul(seed.wrapping_mul(2) + 1))))
    }

    /// As `scribble`, but only the first word of each page.
    fn mark(&mut self, seed: u64) -> Answer {
        let (_, raw) = self.arena.as_ref().ok_or("no arena")?;
        for at in (0..raw.len / 8).step_by(512) {
            let value = (at + 1).wrapping_mul(seed.wrapping_mul(2) + 1);
            // SAFETY: within the own arena, which is mapped writable and of which no references exist; peers only read.
            unsafe { raw.base.cast::<u64>().add(at as usize).write_volatile(value) };
        }
        Ok("done".into())
    }

    fn map(&mut self, slot: &str, domain: &str, bytes: &str, root: &str) -> Answer {
        let owner = Owner { id: incarnation(slot)?, domain: number(domain)?, bytes: number(bytes)? };
        let window = window::granted(owner, own_number()?, number(root)?).map_err(text)?;
        let place = window.base();
        self.window = Some(Arc::new(window));
        Ok(format!("{place:p}"))
    }

    fn ends(&self) -> Result<Ends<'_>, String> {
        let (channel, bell) = self.bell.as_ref().ok_or("no bell")?;
        Ok(Ends { channel, bell, port: self.port.as_ref().ok_or("no port")? })
    }

    fn digest(&self) -> Answer {
        digest_of(self.window.as_ref().ok_or("no window")?)
    }

    fn channel(&mut self) -> Result<&Arc<Channel>, String> {
        if self.bell.is_none() {
            let channel = Arc::new(Channel::open().map_err(text)?);
            let bell = Bell::with_wire(channel.clone()).map_err(text)?;
            self.bell = Some((channel, bell));
        }
        self.bell.as_ref().map(|(channel, _)| channel).ok_or_else(|| "no channel".into())
    }

    fn listen(&self, limit: Timespec) -> Answer {
        let (_, bell) = self.bell.as_ref().ok_or("no bell")?;
        let ready = rustix::event::poll(&mut [PollFd::new(bell, PollFlags::IN)], Some(&limit)).map_err(text)?;
        bell.reset();
        Ok(if ready > 0 { "rung" } else { "silent" }.into())
    }
}

fn own_number() -> Result<u16, String> {
    let value = Store::connect().and_then(|store| store.now().read("domid")).map_err(text)?;
    number(&String::from_utf8_lossy(&value))
}

fn digest(words: impl Iterator<Item = u64>) -> String {
    let mixed = words.fold(0xCBF2_9CE4_8422_2325_u64, |sum, word| (sum ^ word).wrapping_mul(0x0000_0100_0000_01B3));
    format!("{mixed:016x}")
}

/// A digest of all that a window shows.
///
/// # Errors
/// A window with a length that is not in whole pages.
pub fn digest_of(window: &Arc<Window>) -> Result<String, String> {
    let mut words = Vec::with_capacity((window.len() / 8) as usize);
    let mut page = [0; 4096];
    for offset in (0..window.len()).step_by(page.len()) {
        let span = Span::of(window, offset, page.len() as u32).ok_or("the window ends within a page")?;
        span.read(0, &mut page);
        words.extend(page.as_chunks::<8>().0.iter().map(|word| u64::from_ne_bytes(*word)));
    }
    Ok(digest(words.into_iter()))
}

/// Lets another process try to write through a window, and tells how it ended.
fn trespass_elsewhere(words: &[&str]) -> Answer {
    let mut program = Command::new("/proc/self/exe");
    let output = program.args(words).output().map_err(text)?;
    let said = String::from_utf8_lossy(&output.stdout).trim().replace('\n', ", ");
    match (output.status.signal(), output.status.code()) {
        (Some(signal), _) => Ok(format!("{said}, signal {signal}")),
        (None, code) => Ok(format!("{said}, code {code:?}")),
    }
}

/// Maps a window and writes to it, first having asked the kernel to let it.
///
/// # Errors
/// Whatever happens: nobody comes here and lives.
pub fn trespass(slot: &str, domain: &str, bytes: &str, root: &str) -> Result<(), String> {
    let owner = Owner { id: incarnation(slot)?, domain: number(domain)?, bytes: number(bytes)? };
    let window = window::granted(owner, own_number()?, number(root)?).map_err(text)?;
    let (base, writable) = (window.base(), MprotectFlags::READ | MprotectFlags::WRITE);
    // SAFETY: asks for more rights on a mapping that `window` keeps; nothing refers to it.
    let asked = unsafe { rustix::mm::mprotect(base.as_ptr().cast(), window.len() as usize, writable) };
    println!("mprotect: {}", asked.map_or_else(|errno| errno.to_string(), |()| "done".to_owned()));
    std::thread::sleep(Duration::from_millis(10));
    // SAFETY: not a sound thing to do, and that is what is tried: the range is mapped without the right to write, so the
    // kernel ends this process, which exists for nothing else, before a byte changes.
    unsafe { base.write_volatile(42) };
    println!("written");
    Err("a write through a window succeeded".into())
}
