//! Fan-in: many domains, each with a link of its own into one, which serves them all with one thread.
//!
//! All the clients live in the other process and share its thread: with two cores there is no more to be had, and the
//! question is what the one that serves pays for each link. Each client has an arena of its own, and the server a
//! window on each.

use std::os::fd::AsFd;
use std::sync::Arc;

use fido_core::arena::{LanePlan, OwnArena};
use fido_core::bell::Bell;
use fido_core::lane::Lane;
use fido_core::memory::Memory;
use fido_core::message::Head;
use fido_core::payload::Payload;
use fido_core::platform::host::memory;
use serde::{Deserialize, Serialize};

use super::channel;
use super::end::{self, End, Side};
use super::spin::spin;
use crate::Failure;
use crate::other_side::Control;

/// The most links.
pub const LINKS: usize = 64;
/// Requests that a client has under way.
const DEPTH: u32 = 8;
/// Requests taken from a link before the next one has its turn.
const TURN: usize = 8;
const SLOTS: u32 = 64;
/// The slot of the server's domain; its clients' follow.
const SERVER: u16 = 100;
const SERVER_BYTES: u64 = 16 << 20;
const CLIENT_BYTES: u64 = 1 << 20;

/// One side of all links.
#[derive(Debug)]
pub struct Fan {
    lanes: Vec<Lane>,
    _memories: Vec<Memory>,
}

/// What the two sides exchange, the server once and then each client in turn.
#[derive(Debug, Serialize, Deserialize)]
enum Meeting {
    /// Descriptor: the server's arena.
    Server,
    /// Descriptors: the server's bell for that link.
    Bell,
    /// Descriptors: the client's arena and its bell.
    Client,
}

/// So many requests, each with its answer.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Requests {
    /// Links that the server looks at.
    pub links: usize,
    /// How many of them have requests.
    pub busy: usize,
    /// Requests over all links.
    pub count: u32,
}

impl Requests {
    fn each(self) -> u32 {
        self.count / self.busy as u32
    }

    /// Serves them all, link by link.
    pub fn serve(self, end: &mut End) -> Result<(), Failure> {
        let fan = end.fan.as_mut().ok_or("no fan")?;
        let answer = |_, lane: &mut Lane, head| channel::send(lane, head, Payload::new());
        let mut left = self.each() as usize * self.busy;
        while left > 0 {
            left -= spin("requests", || round(&mut fan.lanes[..self.links], answer).transpose())??;
        }
        Ok(())
    }

    /// Asks on all busy links, a few requests ahead of the answers.
    pub fn ask(self, end: &mut End) -> Result<(), Failure> {
        let fan = end.fan.as_mut().ok_or("no fan")?;
        let lanes = &mut fan.lanes[..self.busy];
        let mut unsent = vec![self.each(); self.busy];
        let mut ask = |index: usize, lane: &mut Lane, head| match unsent[index].checked_sub(1) {
            Some(less) => {
                unsent[index] = less;
                channel::send(lane, head, Payload::new())
            }
            None => Ok(()),
        };
        for (index, one) in lanes.iter_mut().enumerate() {
            (0..DEPTH).try_for_each(|number| ask(index, one, head(number)))?;
            one.flush();
        }
        let mut left = self.each() as usize * self.busy;
        while left > 0 {
            left -= spin("answers", || round(lanes, &mut ask).transpose())??;
        }
        Ok(())
    }
}

fn head(number: u32) -> Head {
    Head { kind: 1, flags: 0, args: [number, 0, 0, 0] }
}

/// One look at every link, and a few messages from each; how many, if any.
fn round(
    lanes: &mut [Lane],
    mut take: impl FnMut(usize, &mut Lane, Head) -> Result<(), Failure>,
) -> Result<Option<usize>, Failure> {
    let mut all = 0;
    for (index, one) in lanes.iter_mut().enumerate() {
        let mut count = 0;
        while count < TURN {
            match one.recv() {
                Some(Ok((head, _))) => take(index, one, head)?,
                Some(Err(refusal)) => return Err(refusal.error.into()),
                None => break,
            }
            count += 1;
        }
        if count > 0 {
            one.flush();
        }
        all += count;
    }
    Ok((all > 0).then_some(all))
}

impl Fan {
    /// Makes the domains of this side and connects them with the other side's.
    pub fn meet(control: &mut Control, side: Side) -> Result<Self, Failure> {
        if side == Side::Lead { Self::server(control) } else { Self::clients(control) }
    }

    fn server(control: &mut Control) -> Result<Self, Failure> {
        let id = end::domain(SERVER)?;
        let plans: Vec<_> = (0..LINKS).map(|link| plan(link as u32)).collect();
        let (file, raw) = memory::create("bench-server", id, SERVER_BYTES)?;
        // SAFETY: fresh memory from the platform, which nobody can write but through this arena.
        let memory = Memory::new(unsafe { OwnArena::format(raw, id, &plans)? }, Arc::default());
        control.say(&Meeting::Server, &[file.as_fd()])?;
        let mut lanes = Vec::new();
        for (index, place) in memory.arena().lanes().to_vec().into_iter().enumerate() {
            let bell = Arc::new(Bell::new()?);
            control.say(&Meeting::Bell, &[bell.as_fd()])?;
            let (Meeting::Client, fds) = control.hear()? else { return Err("no client was offered".into()) };
            let [file, ringer] = fds.try_into().map_err(|_| "a client without arena or bell")?;
            let peer = end::domain(SERVER + 1 + index as u16)?;
            memory.windows().insert(Arc::new(memory::open(file.as_fd(), peer, CLIENT_BYTES)?));
            lanes.push(end::begin(&memory, place, bell, peer, Bell::from_fd(ringer)));
        }
        lanes.iter_mut().try_for_each(|lane| spin("client", || lane.change()).map(drop))?;
        Ok(Self { lanes, _memories: vec![memory] })
    }

    fn clients(control: &mut Control) -> Result<Self, Failure> {
        let peer = end::domain(SERVER)?;
        let (Meeting::Server, fds) = control.hear()? else { return Err("no server was offered".into()) };
        let server = fds.into_iter().next().ok_or("a server without an arena")?;
        let window = Arc::new(memory::open(server.as_fd(), peer, SERVER_BYTES)?);
        let (mut lanes, mut memories) = (Vec::new(), Vec::new());
        for link in 0..LINKS {
            let id = end::domain(SERVER + 1 + link as u16)?;
            let (Meeting::Bell, fds) = control.hear()? else { return Err("no bell was offered".into()) };
            let ringer = fds.into_iter().next().ok_or("an offer without a bell")?;
            let (file, raw) = memory::create("bench-client", id, CLIENT_BYTES)?;
            // SAFETY: fresh memory from the platform, which nobody can write but through this arena.
            let arena = unsafe { OwnArena::format(raw, id, &[plan(link as u32)])? };
            let memory = Memory::new(arena, Arc::default());
            memory.windows().insert(window.clone());
            let bell = Arc::new(Bell::new()?);
            control.say(&Meeting::Client, &[file.as_fd(), bell.as_fd()])?;
            let place = *memory.arena().lanes().first().ok_or("an arena without a lane")?;
            lanes.push(end::begin(&memory, place, bell, peer, Bell::from_fd(ringer)));
            memories.push(memory);
        }
        lanes.iter_mut().try_for_each(|lane| spin("server", || lane.change()).map(drop))?;
        Ok(Self { lanes, _memories: memories })
    }
}

fn plan(link: u32) -> LanePlan {
    LanePlan { link: 10 + link, lane: 0, slots: SLOTS }
}
