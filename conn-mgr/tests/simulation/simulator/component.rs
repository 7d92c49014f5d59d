//! What the component of a simulated domain does with its lanes: it originates payloads of known content, takes what
//! comes, compares it with the ledger, holds it for a while, reads it again, and forwards some of it by address.

use fido_core::addr::DomainId;
use fido_core::assignment::Transport;
use fido_core::lane::{Refusal, SendError};
use fido_core::message::Head;
use fido_core::payload::Payload;

use super::ledger::{Known, Piece, Way};
use super::plan::Mutation;
use super::process::{Context, Held, Op, Process, port};

/// How much a component holds before it takes no more messages.
const MAX_HELD: usize = 10;

impl Process {
    /// Takes a message.
    pub fn receive(&mut self, at: usize, cx: &mut Context<'_>) {
        let full = self.held.len() >= MAX_HELD;
        self.wants_release |= full;
        let Some((view, lane)) = port(&mut self.ports, at) else { return };
        lane.hold_back(full);
        if full {
            return;
        }
        let (Some(message), Some(peer)) = (lane.recv(), *view.peer) else { return };
        let way = (peer, self.id, view.link, view.number);
        self.progress = true;
        cx.coverage.deliveries += 1;
        match message {
            Ok((head, payload)) => self.accept(at, way, head, payload, cx),
            Err(refusal) => refused(way, refusal, cx),
        }
        if !cx.random.one_in(4) {
            self.again(Op::Receive(at));
        }
    }

    fn accept(&mut self, at: usize, way: Way, head: Head, payload: Payload, cx: &mut Context<'_>) {
        let sent = cx.ledger.received(way, head.args[0]);
        let Some(sent) = sent else {
            // From or to the wild: nothing is known of it, but it can be read.
            let known = Known { tainted: true, ..Known::default() };
            let from = self.ports.get(at).map_or(0, |port| port.peer_index);
            return self.keep(at, payload, known, 1 << from, cx);
        };
        let copied = self.ports.get(at).is_some_and(|port| self.is_copying(port.link));
        let known = Known { by_address: sent.known.by_address && !copied, ..sent.known };
        self.keep(at, payload, known, head.args[1], cx);
    }

    fn is_copying(&self, link: u32) -> bool {
        let links = &self.domain.assignment().links;
        links.iter().any(|assigned| assigned.link == link && assigned.transport == Transport::Copying)
    }

    /// Whether the heap has to be left to what comes in. The copying transport takes a buffer at both ends: two
    /// neighbours whose heaps are full of what they send each other can take nothing, and the returns that would give
    /// something free are stuck behind it.
    fn spares_its_heap(&mut self) -> bool {
        let copies = self.ports.iter().any(|port| self.is_copying(port.link));
        let heap = self.memory.heap();
        let spares = copies && heap.used() > heap.capacity() / 8;
        self.wants_release |= spares;
        spares
    }

    fn keep(&mut self, at: usize, payload: Payload, known: Known, path: u32, cx: &mut Context<'_>) {
        cx.ledger.read_by_one_more(&known);
        let mut held = Held { payload, known, path: path | 1 << self.index, onward: None };
        self.verify(&held, cx);
        if cx.mutation == Some(Mutation::ReturnEarly) {
            held.payload = without_holds(&held.payload);
        }
        let from = self.ports.get(at).map_or(0, |port| port.peer_index);
        let ways: Vec<usize> = (0..self.ports.len())
            .filter(|&to| self.ports[to].peer_index != from && held.path & 1 << self.ports[to].peer_index == 0)
            .collect();
        if !cx.random.one_in(3) {
            held.onward = cx.random.among(&ways);
        }
        if held.onward.is_none() && cx.random.one_in(3) {
            self.let_go(held, cx);
        } else {
            self.held.push(held);
        }
    }

    /// Reads a payload and compares it.
    pub fn verify(&self, held: &Held, cx: &mut Context<'_>) {
        let payload = if cx.mutation == Some(Mutation::AnyGeneration) {
            self.in_newest_generation(&held.payload)
        } else {
            held.payload.clone()
        };
        let mut bytes = vec![0; payload.len().min(1 << 16) as usize];
        let read = self.memory.read_header(&payload, 0, &mut bytes);
        if held.known.tainted || self.rogue.is_some() {
            return;
        }
        match read {
            Ok(_) if bytes == cx.ledger.expected(&held.known) => {}
            Ok(_) => cx.ledger.violation(format!("{} reads other bytes than it was lent: {:?}", self.id, held.known)),
            Err(error) => cx.ledger.violation(format!("{} cannot read what it holds: {error}", self.id)),
        }
    }

    /// The mutation that translates addresses without looking at their generation.
    fn in_newest_generation(&self, payload: &Payload) -> Payload {
        let mut newest = Payload::new();
        for mut segment in payload.segments() {
            let DomainId { slot, generation } = segment.addr.domain();
            let next = DomainId { slot, generation: generation.next() };
            if self.memory.windows().get(next).is_some()
                && let Some(addr) = fido_core::addr::GlobalAddr::new(next, segment.addr.offset())
            {
                segment.addr = addr;
            }
            newest.push(segment, None);
        }
        newest
    }

    /// Ends the component's interest in a payload, after a last look.
    pub fn let_go(&mut self, held: Held, cx: &mut Context<'_>) {
        self.verify(&held, cx);
        cx.ledger.read_by_one_less(&held.known);
    }

    /// Lends new bytes, a few messages at a time.
    pub fn originate(&mut self, at: usize, cx: &mut Context<'_>) {
        let known_peer = self.ports.get(at).and_then(|port| port.peer);
        let Some(peer) = known_peer.filter(|_| self.quota > 0) else { return };
        if self.spares_its_heap() {
            return;
        }
        let mut payload = Payload::new();
        let mut known = Known { by_address: true, tainted: self.rogue.is_some(), ..Known::default() };
        let buffers = if cx.random.one_in(4) { cx.random.below(7) } else { 1 };
        for _ in 0..buffers {
            let Ok(buf) = self.memory.alloc(1 + cx.random.below(600)) else { return };
            let (part, piece) = cx.ledger.lend(self.id, buf);
            payload.append(part);
            known.pieces.push(piece);
        }
        if cx.random.one_in(8) {
            (payload, known) = cut(payload, known, cx);
        }
        let path = 1 << self.index;
        if self.send(at, peer, payload, &known, path, cx).is_ok() {
            self.quota -= 1;
            if !cx.random.one_in(3) {
                self.again(Op::Originate(at));
            }
        }
    }

    /// Sends, and enters it in the ledger. The payload comes back if there was no room.
    fn send(
        &mut self,
        at: usize,
        peer: DomainId,
        payload: Payload,
        known: &Known,
        path: u32,
        cx: &mut Context<'_>,
    ) -> Result<(), SendError> {
        let Some((view, lane)) = port(&mut self.ports, at) else { return Err(SendError::Down(payload)) };
        let way = (self.id, peer, view.link, view.number);
        let serial = cx.ledger.serial(way);
        lane.send(Head { kind: 1, flags: 0, args: [serial, path, 0, 0] }, payload)?;
        cx.ledger.sent(way, serial, known.clone());
        cx.coverage.sent += 1;
        self.progress = true;
        Ok(())
    }

    /// Sends what is to go on, as far as there is room.
    pub fn forward(&mut self, cx: &mut Context<'_>) {
        let full = self.held.len() >= MAX_HELD;
        for mut held in std::mem::take(&mut self.held) {
            let Some(at) = held.onward else {
                self.held.push(held);
                continue;
            };
            let Some(peer) = self.ports.get(at).and_then(|port| port.peer) else {
                held.onward = None;
                self.held.push(held);
                continue;
            };
            if self.spares_its_heap() {
                held.onward = None;
                self.held.push(held);
                continue;
            }
            let known = held.known.clone();
            match self.send(at, peer, held.payload.clone(), &known, held.path, cx) {
                Ok(()) => {
                    cx.coverage.forwards += 1;
                    held.onward = None;
                    if cx.random.one_in(4) {
                        self.held.push(held);
                    } else {
                        self.let_go(held, cx);
                    }
                }
                Err(SendError::Full(_)) => {
                    // Two neighbours that are full of what they want to give each other would wait for ever.
                    if full && cx.random.one_in(4) {
                        held.onward = None;
                    }
                    self.held.push(held);
                }
                Err(SendError::Down(_)) => {
                    held.onward = None;
                    self.held.push(held);
                }
                Err(error) => {
                    // What the wild lends may have gone meanwhile; the copying transport notices.
                    if !held.known.tainted {
                        cx.ledger.violation(format!("{} cannot forward: {error}", self.id));
                    }
                    self.let_go(held, cx);
                }
            }
        }
    }

    /// Another thread of the component lets go of something. Whether there was anything.
    pub fn release(&mut self, cx: &mut Context<'_>) -> bool {
        let idle: Vec<usize> = (0..self.held.len()).filter(|&at| self.held[at].onward.is_none()).collect();
        let Some(at) = cx.random.among(&idle) else { return false };
        let held = self.held.swap_remove(at);
        if !cx.calm && cx.random.one_in(3) {
            self.verify(&held, cx);
            self.held.push(held);
            return true;
        }
        self.let_go(held, cx);
        // A component that waits for this does so beside its lanes.
        if std::mem::take(&mut self.wants_release) {
            self.notice();
        }
        self.wake_if_rung();
        true
    }
}

/// A part of a payload: its holds are those of the whole.
fn cut(mut payload: Payload, mut known: Known, cx: &mut Context<'_>) -> (Payload, Known) {
    let at = cx.random.below(payload.len() as usize + 1) as u64;
    drop(payload.split_to(at));
    let mut skip = at as u32;
    let mut pieces = Vec::new();
    for piece in known.pieces {
        let cut = skip.min(piece.len);
        skip -= cut;
        if piece.len > cut {
            pieces.push(Piece { start: piece.start + cut, len: piece.len - cut, ..piece });
        }
    }
    known.pieces = pieces;
    (payload, known)
}

/// The mutation that returns a loan whose bytes are still read.
fn without_holds(payload: &Payload) -> Payload {
    let mut bare = Payload::new();
    payload.segments().for_each(|segment| bare.push(segment, None));
    bare
}

fn refused(way: Way, refusal: Refusal, cx: &mut Context<'_>) {
    cx.coverage.refusals += 1;
    let Some(sent) = cx.ledger.received(way, refusal.head.args[0]) else { return };
    if !cx.ledger.may_refuse(&sent.known) {
        cx.ledger.violation(format!("{} refuses what {} lends by the rules: {}", way.1, way.0, refusal.error));
    }
}
