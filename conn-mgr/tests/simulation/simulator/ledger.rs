//! The ground truth: what is under way on each lane, what every buffer contains and who still reads it, which windows
//! are mapped. Everything that happens is entered here and compared; what cannot be is a violation.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fido_core::addr::DomainId;
use fido_core::heap::ArenaBuf;
use fido_core::payload::Payload;

/// One direction of a lane between two incarnations: from, to, link, lane.
pub type Way = (DomainId, DomainId, u32, u16);

/// A range of a buffer's content, which is known by its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    pub content: u64,
    pub start: u32,
    pub len: u32,
}

/// What the bytes of a payload must be.
#[derive(Debug, Clone, Default)]
pub struct Known {
    pub pieces: Vec<Piece>,
    /// A wild domain had a hand in it: nothing is known, and nobody vouches for the loan.
    pub tainted: bool,
    /// The bytes are the owner's own: nobody on the way has copied them.
    pub by_address: bool,
}

/// A message under way.
#[derive(Debug, Clone)]
pub struct Sent {
    pub serial: u32,
    pub known: Known,
}

#[derive(Default)]
struct Content {
    owner: Option<DomainId>,
    len: u32,
    /// How many survivors read it.
    readers: usize,
}

#[derive(Default)]
struct Truth {
    ways: BTreeMap<Way, VecDeque<Sent>>,
    serials: BTreeMap<Way, u32>,
    contents: BTreeMap<u64, Content>,
    next_content: u64,
    dead: BTreeSet<DomainId>,
    wild: BTreeSet<DomainId>,
    /// Reader and owner of each mapped window.
    windows: BTreeSet<(DomainId, DomainId)>,
    /// Reader and owner whose fence the reader was told of.
    fenced: BTreeSet<(DomainId, DomainId)>,
    violations: Vec<String>,
}

/// The shared ledger of a run.
#[derive(Clone, Default)]
pub struct Ledger(Arc<Mutex<Truth>>);

impl Ledger {
    fn truth(&self) -> MutexGuard<'_, Truth> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a promise is broken.
    pub fn violation(&self, what: String) {
        self.truth().violations.push(what);
    }

    /// The first promise that was broken.
    pub fn verdict(&self) -> Option<String> {
        self.truth().violations.first().cloned()
    }

    /// An incarnation begins. After the wrap of the generations an identity comes back.
    pub fn born(&self, id: DomainId, wild: bool) {
        let mut truth = self.truth();
        truth.dead.remove(&id);
        truth.wild.remove(&id);
        if wild {
            truth.wild.insert(id);
        }
        truth.fenced.retain(|(reader, owner)| *reader != id && *owner != id);
        truth.ways.retain(|(from, to, ..), _| *from != id && *to != id);
    }

    pub fn died(&self, id: DomainId) {
        let mut truth = self.truth();
        truth.dead.insert(id);
        truth.ways.retain(|(_, to, ..), _| *to != id);
    }

    pub fn is_dead(&self, id: DomainId) -> bool {
        self.truth().dead.contains(&id)
    }

    pub fn is_wild(&self, id: DomainId) -> bool {
        self.truth().wild.contains(&id)
    }

    /// The next message on a way has this number.
    pub fn serial(&self, way: Way) -> u32 {
        self.truth().serials.get(&way).copied().unwrap_or(0)
    }

    /// A message has been published.
    pub fn sent(&self, way: Way, serial: u32, known: Known) {
        let mut truth = self.truth();
        truth.serials.insert(way, serial + 1);
        if !truth.wild.contains(&way.1) && !truth.dead.contains(&way.1) {
            truth.ways.entry(way).or_default().push_back(Sent { serial, known });
        }
    }

    /// A message has been taken: it must be the oldest under way. `None` if that cannot be known.
    pub fn received(&self, way: Way, serial: u32) -> Option<Sent> {
        let mut truth = self.truth();
        if truth.wild.contains(&way.0) || truth.wild.contains(&way.1) {
            return None;
        }
        let oldest = truth.ways.get_mut(&way).and_then(VecDeque::pop_front);
        match oldest {
            Some(sent) if sent.serial == serial => Some(sent),
            other => {
                let expected = other.map(|sent| sent.serial);
                truth.violations.push(format!("message {serial} on {}, not {expected:?}", named(way)));
                None
            }
        }
    }

    /// A session is over for `me`: what was under way is dropped, and must have been given up for a reason.
    pub fn down(&self, me: DomainId, peer: DomainId, link: u32, lane: u16) {
        let mut truth = self.truth();
        truth.ways.remove(&(peer, me, link, lane));
        let excused = [me, peer].iter().any(|id| truth.dead.contains(id) || truth.wild.contains(id));
        if !excused {
            let what = format!("{me} has lost its session with {peer} on {link}/{lane}: both live by the rules");
            truth.violations.push(what);
        }
    }

    /// Messages that nobody has taken, between two that live.
    pub fn under_way(&self) -> Vec<String> {
        let truth = self.truth();
        let left = truth.ways.iter().filter(|(way, sent)| !sent.is_empty() && !truth.dead.contains(&way.0));
        left.map(|(way, sent)| format!("{} messages on {}", sent.len(), named(*way))).collect()
    }

    /// Whether a message may be refused: it is of the wild, or names memory of a dead incarnation, which the receiver
    /// may never have been given.
    pub fn may_refuse(&self, known: &Known) -> bool {
        let truth = self.truth();
        let is_dead = |owner: &DomainId| truth.dead.contains(owner);
        let dead = |piece: &Piece| {
            truth.contents.get(&piece.content).and_then(|content| content.owner.as_ref()).is_some_and(is_dead)
        };
        known.tainted || known.pieces.iter().any(dead)
    }

    /// A survivor begins to read, or has ended.
    pub fn read_by_one_more(&self, known: &Known) {
        self.count(known, |readers| readers + 1);
    }

    /// See [`Ledger::read_by_one_more`].
    pub fn read_by_one_less(&self, known: &Known) {
        self.count(known, |readers| readers.saturating_sub(1));
    }

    fn count(&self, known: &Known, change: impl Fn(usize) -> usize) {
        if known.tainted || !known.by_address {
            return;
        }
        let mut truth = self.truth();
        for piece in &known.pieces {
            if let Some(content) = truth.contents.get_mut(&piece.content) {
                content.readers = change(content.readers);
            }
        }
    }

    /// What the bytes of a payload must be.
    pub fn expected(&self, known: &Known) -> Vec<u8> {
        let truth = self.truth();
        let mut bytes = Vec::new();
        for piece in &known.pieces {
            let len = truth.contents.get(&piece.content).map_or(0, |content| content.len);
            let whole = pattern(piece.content, len as usize);
            let range = piece.start as usize..(piece.start + piece.len) as usize;
            bytes.extend_from_slice(whole.get(range).unwrap_or_default());
        }
        bytes
    }

    /// Fills a buffer and makes a payload of it that notes its end.
    pub fn lend(&self, owner: DomainId, mut buf: ArenaBuf) -> (Payload, Piece) {
        let len = buf.len() as u32;
        let content = {
            let mut truth = self.truth();
            truth.next_content += 1;
            let number = truth.next_content;
            truth.contents.insert(number, Content { owner: Some(owner), len, readers: 0 });
            number
        };
        buf.as_mut_slice().copy_from_slice(&pattern(content, len as usize));
        let segment = buf.segment();
        let tracked = Tracked { buf, owner, content, ledger: self.clone() };
        (Payload::held(segment, Arc::new(tracked)), Piece { content, start: 0, len })
    }

    /// The owner may use the buffer again.
    fn freed(&self, owner: DomainId, content: u64) -> bool {
        let mut truth = self.truth();
        let readers = truth.contents.get(&content).map_or(0, |content| content.readers);
        if truth.dead.contains(&owner) {
            return false;
        }
        if readers > 0 && !truth.wild.contains(&owner) {
            truth.violations.push(format!("{owner} may use buffer {content} again, but {readers} still read it"));
        }
        true
    }

    /// A window is being mapped; the token is dropped when it is unmapped.
    pub fn mapped(&self, reader: DomainId, owner: DomainId) -> Unmapped {
        self.truth().windows.insert((reader, owner));
        Unmapped { reader, owner, ledger: self.clone() }
    }

    /// A reader is told that the fence of an owner is complete.
    pub fn fenced(&self, reader: DomainId, owner: DomainId) {
        self.truth().fenced.insert((reader, owner));
    }

    /// Windows of fenced incarnations that are still mapped by the living.
    pub fn stale_windows(&self) -> Vec<String> {
        let truth = self.truth();
        let stale = truth.windows.iter().filter(|window| truth.fenced.contains(window));
        stale.map(|(reader, owner)| format!("{reader} still maps {owner}, whose fence is complete")).collect()
    }
}

fn named((from, to, link, lane): Way) -> String {
    format!("{from} -> {to} ({link}/{lane})")
}

/// A lent buffer. Used again at once when it is given free: so whoever reads on is found out.
struct Tracked {
    buf: ArenaBuf,
    owner: DomainId,
    content: u64,
    ledger: Ledger,
}

impl Drop for Tracked {
    fn drop(&mut self) {
        if self.ledger.freed(self.owner, self.content) {
            self.buf.as_mut_slice().fill(0xDD);
        }
    }
}

/// Notes that a window is no longer mapped.
pub struct Unmapped {
    reader: DomainId,
    owner: DomainId,
    ledger: Ledger,
}

impl Drop for Unmapped {
    fn drop(&mut self) {
        let (reader, owner) = (self.reader, self.owner);
        let mut truth = self.ledger.truth();
        truth.windows.remove(&(reader, owner));
        if !truth.dead.contains(&reader) && !truth.fenced.contains(&(reader, owner)) {
            truth.violations.push(format!("{reader} has unmapped {owner} before its fence was complete"));
        }
    }
}

/// The bytes of a content.
fn pattern(content: u64, len: usize) -> Vec<u8> {
    let words = (0..len as u64).step_by(8);
    let word =
        |at: u64| (content.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ at.wrapping_mul(0x0101_0101_0101)).to_le_bytes();
    let mut bytes: Vec<u8> = words.flat_map(word).collect();
    bytes.truncate(len);
    bytes
}
