//! A second implementation of the protocol, from `docs/protocol.md` alone; only the shared memory itself is the crate's.

use std::any::Any;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use fido_core::addr::DomainId;
use fido_core::arena::RawArena;
use fido_core::window::Window;

#[repr(C, align(4096))]
struct Page([AtomicU32; 1024]);

/// Memory for an arena, as atomic words.
#[derive(Clone)]
pub struct Arena(Arc<[Page]>);

impl Arena {
    pub fn new(bytes: usize) -> Self {
        Self((0..bytes / 4096).map(|_| Page(std::array::from_fn(|_| AtomicU32::new(0)))).collect())
    }

    fn word(&self, at: u64) -> &AtomicU32 {
        let at = usize::try_from(at / 4).unwrap();
        &self.0[at / 1024].0[at % 1024]
    }

    fn load(&self, at: u64) -> u32 {
        u32::from_le(self.word(at).load(Ordering::Relaxed))
    }

    fn load64(&self, at: u64) -> u64 {
        u64::from(self.load(at)) | u64::from(self.load(at + 4)) << 32
    }

    fn store(&self, at: u64, value: u32) {
        self.word(at).store(value.to_le(), Ordering::Relaxed);
    }

    fn store64(&self, at: u64, value: u64) {
        self.store(at, value as u32);
        self.store(at + 4, (value >> 32) as u32);
    }

    fn len(&self) -> u64 {
        self.0.len() as u64 * 4096
    }

    pub fn byte(&self, at: u64) -> u8 {
        (self.load(at & !3) >> (8 * (at % 4))) as u8
    }

    fn base(&self) -> NonNull<u8> {
        NonNull::from(&self.0[..]).cast()
    }

    /// The memory for the real owner, which keeps it.
    pub fn raw(&self) -> RawArena {
        RawArena { base: self.base(), len: self.len(), mapping: self.keep() }
    }

    fn keep(&self) -> Box<dyn Any + Send + Sync> {
        Box::new(self.0.clone())
    }

    /// The memory as a peer sees it.
    pub fn window(&self, id: DomainId) -> Window {
        // SAFETY: initialised memory of that length, aligned to a page, which the window keeps.
        unsafe { Window::new(id, self.base(), self.len(), self.keep()) }
    }
}

/// Where one half of a lane is.
#[derive(Clone, Copy)]
struct Half {
    control: u64,
    slots: u64,
    capacity: u32,
}

/// A domain with one lane.
pub struct Second {
    own: Arena,
    peer: Arena,
    me: (u64, u64),
    other: (u64, u64),
    version: u32,
    mine: Half,
    theirs: Half,
    sent: u32,
    credit: u32,
    taken: u32,
    armed: u32,
    rung: u32,
}

impl Second {
    /// Lays out an arena with one lane of `link`, and reads the peer's directory.
    pub fn new(me: (u64, u64), link: u32, capacity: u32, version: u32, peer: Arena, other: (u64, u64)) -> Self {
        let own = Arena::new(65_536);
        // Not where the real one puts it: readers go by the directory.
        let mine = Half { control: 20_480, slots: 24_576, capacity };
        own.store(1024, link);
        own.store(1028, 0);
        own.store64(1032, mine.control);
        own.store64(1040, mine.slots);
        own.store(1048, capacity);
        own.store(8, version);
        own.store(12, 1);
        own.store(16, me.0 as u32);
        own.store(20, me.1 as u32);
        own.store64(24, own.len());
        own.store64(0, u64::from_le_bytes(*b"FIDOARNA"));
        fence(Ordering::Release);
        let at = (0..peer.load(12)).map(|n| 1024 + 32 * u64::from(n));
        let at = at.into_iter().find(|at| peer.load(*at) == link && peer.load(at + 4) == 0).unwrap();
        let theirs = Half { control: peer.load64(at + 8), slots: peer.load64(at + 16), capacity: peer.load(at + 24) };
        Self { own, peer, me, other, version: 2, mine, theirs, sent: 0, credit: 0, taken: 0, armed: 0, rung: 0 }
    }

    pub fn arena(&self) -> &Arena {
        &self.own
    }

    pub fn believe_in_version(&mut self, version: u32) {
        self.version = version;
    }

    /// What is wrong with the peer's header.
    pub fn accepts_peer(&self) -> Result<(), &'static str> {
        let expected = [(0, 0x4f44_4946, "magic"), (4, 0x414e_5241, "magic"), (8, self.version, "version")];
        let identity = [(16, self.other.0 as u32, "slot"), (20, self.other.1 as u32, "generation")];
        let wrong = expected.into_iter().chain(identity).find(|(at, value, _)| self.peer.load(*at) != *value);
        wrong.map_or(Ok(()), |(_, _, what)| Err(what))
    }

    pub fn own_lane(&self) -> (u64, u64, u32) {
        (self.mine.control, self.mine.slots, self.mine.capacity)
    }

    pub fn peers_lane(&self) -> (u64, u64, u32) {
        (self.theirs.control, self.theirs.slots, self.theirs.capacity)
    }

    /// Sets the own half of the session up.
    pub fn begin(&mut self) {
        let word = (self.other.0 * 4096 + self.other.1) as u32;
        self.own.word(self.mine.control).store(word.to_le(), Ordering::Release);
    }

    pub fn is_up(&self) -> bool {
        let word = u32::from_le(self.peer.word(self.theirs.control).load(Ordering::Acquire));
        u64::from(word) == self.me.0 * 4096 + self.me.1
    }

    /// The peer's next message.
    pub fn take(&mut self) -> Option<Message> {
        let slot = self.theirs.slots + 64 * u64::from(self.taken % self.theirs.capacity);
        let stamp = u32::from_le(self.peer.word(slot + 60).load(Ordering::Acquire));
        if stamp != self.taken / self.theirs.capacity + 1 {
            return None;
        }
        self.taken += 1;
        Some(Message(std::array::from_fn(|word| self.peer.load(slot + 4 * word as u64))))
    }

    pub fn publish_credit(&mut self) {
        self.publish_credit_of(self.taken);
    }

    pub fn publish_credit_of(&mut self, taken: u32) {
        self.own.word(self.mine.control + 64).store(taken.to_le(), Ordering::Release);
    }

    pub fn peers_credit(&self) -> u32 {
        u32::from_le(self.peer.word(self.theirs.control + 64).load(Ordering::Acquire))
    }

    pub fn peers_stamp(&self, slot: u64) -> u32 {
        self.peer.load(self.theirs.slots + 64 * slot + 60)
    }

    pub fn peers_byte(&self, at: u64) -> u8 {
        self.peer.byte(at)
    }

    /// A word of the own ring's first slot.
    pub fn own_word(&self, word: u64) -> u32 {
        self.own.load(self.mine.slots + 4 * word)
    }

    fn push(&mut self, words: [u32; 15]) -> bool {
        if self.sent - self.credit == self.mine.capacity {
            self.credit = self.peers_credit();
        }
        if self.sent - self.credit == self.mine.capacity {
            return false;
        }
        let slot = self.mine.slots + 64 * u64::from(self.sent % self.mine.capacity);
        (slot..).step_by(4).zip(words).for_each(|(at, word)| self.own.store(at, word));
        let lap = self.sent / self.mine.capacity + 1;
        self.own.word(slot + 60).store(lap.to_le(), Ordering::Release);
        self.sent += 1;
        true
    }

    /// A message with up to three segments; whether there was room.
    pub fn publish(&mut self, kind: u8, flags: u8, loan: u16, returned: u16, segments: &[(u64, u32)]) -> bool {
        let mut words = [0; 15];
        words[0] = u32::from(kind) | u32::from(flags) << 8 | (segments.len() as u32) << 16;
        words[1] = u32::from(loan) | u32::from(returned) << 16;
        for ((addr, len), words) in segments.iter().zip(words[6..].chunks_exact_mut(3)) {
            words.copy_from_slice(&[*addr as u32, (*addr >> 32) as u32, *len]);
        }
        self.push(words)
    }

    pub fn publish_returns(&mut self, tags: &[u16]) {
        let mut words = [0; 15];
        words[0] = 0xF0;
        for (n, tag) in tags.iter().enumerate() {
            words[2 + n / 2] |= u32::from(*tag) << (16 * (n % 2));
        }
        assert!(self.push(words));
    }

    /// Writes bytes into the own arena, 32 KiB on; their segment. What would leave the arena is only addressed.
    pub fn write(&mut self, at: u64, bytes: &[u8]) -> (u64, u32) {
        let at = if at < 32_768 { 32_768 + at } else { at };
        for (at, byte) in (at..self.own.len()).zip(bytes) {
            let (word, shift) = (at & !3, 8 * (at % 4));
            let kept = self.own.load(word) & !(0xFF << shift);
            self.own.store(word, kept | u32::from(*byte) << shift);
        }
        (self.me.0 << 52 | self.me.1 << 40 | at, bytes.len() as u32)
    }

    pub fn arm(&mut self, wants_room: bool) {
        self.armed = (self.armed & !3).wrapping_add(4) | 1 | if wants_room { 2 } else { 0 };
        self.own.store(self.mine.control + 128, self.armed);
        fence(Ordering::SeqCst);
    }

    pub fn disarm(&mut self) {
        self.armed &= !3;
        self.own.store(self.mine.control + 128, self.armed);
    }

    /// Whether the peer has to be rung for what was published.
    pub fn must_ring(&mut self, only_credit: bool) -> bool {
        fence(Ordering::SeqCst);
        let armed = self.peer.load(self.theirs.control + 128);
        let must = armed & (1 << u32::from(only_credit)) != 0 && armed != self.rung;
        if must {
            self.rung = armed;
        }
        must
    }

    /// The bytes of a message's payload.
    pub fn payload(&self, message: &Message) -> Vec<u8> {
        let inline = (0..3).map(|n| message.segment(n)).collect::<Vec<_>>();
        let count = usize::from(message.count());
        let segments = if count <= 3 { inline[..count].to_vec() } else { self.list(inline[0], count) };
        let byte = |(addr, len): (u64, u32)| {
            let at = self.offset(addr, len);
            (at..at + u64::from(len)).map(|at| self.peer.byte(at))
        };
        segments.into_iter().flat_map(byte).collect()
    }

    fn list(&self, (addr, len): (u64, u32), count: usize) -> Vec<(u64, u32)> {
        assert_eq!(len as usize, 16 * count);
        let at = self.offset(addr, len);
        (0..count as u64).map(|n| (self.peer.load64(at + 16 * n), self.peer.load(at + 16 * n + 8))).collect()
    }

    /// Translates a segment, which must be the peer's.
    fn offset(&self, addr: u64, len: u32) -> u64 {
        assert_eq!((addr >> 52, addr >> 40 & 0xFFF), self.other);
        let offset = addr & ((1 << 40) - 1);
        assert!(offset + u64::from(len) <= self.peer.len());
        offset
    }
}

/// The 15 words of a message.
pub struct Message([u32; 15]);

impl Message {
    pub fn kind(&self) -> u8 {
        self.0[0] as u8
    }

    pub fn flags(&self) -> u8 {
        (self.0[0] >> 8) as u8
    }

    pub fn count(&self) -> u16 {
        (self.0[0] >> 16) as u16
    }

    pub fn loan(&self) -> u16 {
        self.0[1] as u16
    }

    pub fn returned(&self) -> u16 {
        (self.0[1] >> 16) as u16
    }

    pub fn arguments(&self) -> [u32; 4] {
        [self.0[2], self.0[3], self.0[4], self.0[5]]
    }

    fn segment(&self, n: usize) -> (u64, u32) {
        let words = &self.0[6 + 3 * n..];
        (u64::from(words[0]) | u64::from(words[1]) << 32, words[2])
    }

    /// The tags of a message of returns.
    pub fn tags(&self) -> Vec<u16> {
        assert_eq!((self.kind(), self.count(), self.loan()), (0xF0, 0, 0));
        let halves = self.0[2..].iter().flat_map(|word| [*word as u16, (*word >> 16) as u16]);
        halves.take_while(|tag| *tag != 0).collect()
    }
}
