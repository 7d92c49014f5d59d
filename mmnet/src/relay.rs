//! Two ports as one wire: what arrives at the one is sent at the other, by address.
//!
//! A port that has no room is not fed: what is for it waits where it came from, which loses what does not fit there.

use fido_core::addr::DomainId;
use fido_core::wait::Source;

use crate::frame::FramePort;

/// Frames moved in one direction before the other has its turn.
const BATCH: usize = 64;

/// Moves frames between two ports.
#[derive(Debug)]
pub struct Relay<A, B> {
    a: A,
    b: B,
    unfit: u64,
}

impl<A: FramePort, B: FramePort> Relay<A, B> {
    /// Between these two.
    pub fn new(a: A, b: B) -> Self {
        Self { a, b, unfit: 0 }
    }

    /// The two ports.
    pub fn ports(&self) -> (&A, &B) {
        (&self.a, &self.b)
    }

    /// Frames that the other port may not carry: too long for its MTU, or with marks that it refuses.
    pub fn unfit(&self) -> u64 {
        self.unfit
    }

    /// Moves everything along, a bounded amount, and hands it on. Whether there was something to do; if not, wait for the
    /// [`Relay::sources`].
    pub fn turn(&mut self) -> bool {
        let there = pump(&mut self.a, &mut self.b, &mut self.unfit);
        let back = pump(&mut self.b, &mut self.a, &mut self.unfit);
        self.a.flush();
        self.b.flush();
        there | back
    }

    /// Enters what to wait for: a port whose frames have nowhere to go does not wake anybody, unless it has to be woken
    /// itself to get rid of what it has.
    pub fn sources<'a>(&'a mut self, all: &mut Vec<&'a mut dyn Source>) {
        let (a_waits, b_waits) = (self.a.has_room(), self.b.has_room());
        if b_waits || !a_waits {
            all.push(&mut self.a);
        }
        if a_waits || !b_waits {
            all.push(&mut self.b);
        }
    }

    /// `dead` is gone and its fence is to be passed: lets go of everything that lies in its arena.
    pub fn forget(&mut self, dead: DomainId) {
        self.a.forget(dead);
        self.b.forget(dead);
    }
}

fn pump(from: &mut impl FramePort, to: &mut impl FramePort, unfit: &mut u64) -> bool {
    let mut moved = false;
    for _ in 0..BATCH {
        if !to.has_room() {
            break;
        }
        let Some(frame) = from.recv() else { break };
        moved = true;
        *unfit += u64::from(to.send(frame).is_err());
    }
    moved
}
