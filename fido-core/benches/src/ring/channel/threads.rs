//! Channels between two threads of one process: `rtrb`, which is for threads only, and Fido's ring in the same setting.

use fido_core::ring::{Consumer, Line, Producer, Slot, Words};

use super::{Channel, Duty, Via};
use crate::Failure;
use crate::machine;
use crate::ring::end::SLOTS;
use crate::ring::spin::spin;

/// A message as rtrb is given it: as long and as aligned as a slot of the others.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line64(Words);

/// Does `lead` here and `follow` in another thread, on that core.
pub fn with<L: Duty + Send, F: Duty + Send>(via: Via, core: Option<usize>, lead: L, follow: F) -> Result<(), Failure> {
    match via {
        Via::Rtrb => both(rtrb_pair(), core, lead, follow),
        Via::RtrbChunks => both(rtrb_pair().map(Chunks::new), core, lead, follow),
        Via::RingThreads => {
            let (there, back) = (Direction::default(), Direction::default());
            both([there.ends(&back), back.ends(&there)], core, lead, follow)
        }
        _ => Err(format!("{} is not between threads", via.name()).into()),
    }
}

fn both<C: Channel + Send, L: Duty + Send, F: Duty + Send>(
    [mut ours, mut theirs]: [C; 2],
    core: Option<usize>,
    lead: L,
    follow: F,
) -> Result<(), Failure> {
    std::thread::scope(|scope| {
        let other = scope.spawn(move || {
            machine::pin(core)?;
            follow.perform(&mut theirs)
        });
        let led = lead.perform(&mut ours);
        let followed = other.join().map_err(|_| "the other thread panicked")?;
        led.and(followed)
    })
}

/// Both directions of rtrb.
struct Rtrb {
    tx: rtrb::Producer<Line64>,
    rx: rtrb::Consumer<Line64>,
}

fn rtrb_pair() -> [Rtrb; 2] {
    let (there, here) = (rtrb::RingBuffer::new(SLOTS as usize), rtrb::RingBuffer::new(SLOTS as usize));
    [Rtrb { tx: there.0, rx: here.1 }, Rtrb { tx: here.0, rx: there.1 }]
}

impl Channel for Rtrb {
    #[inline]
    fn send(&mut self, message: &Words) -> Result<(), Failure> {
        spin("room", || self.tx.push(Line64(*message)).ok())
    }

    #[inline]
    fn receive(&mut self, message: &mut Words) -> Result<(), Failure> {
        *message = spin("message", || self.rx.pop().ok())?.0;
        Ok(())
    }
}

/// The same by chunks: a batch is published at once, and what is there is taken at once.
struct Chunks {
    ends: Rtrb,
    out: Vec<Line64>,
    taken: std::collections::VecDeque<Line64>,
}

impl Chunks {
    fn new(ends: Rtrb) -> Self {
        Self { ends, out: Vec::new(), taken: Default::default() }
    }
}

impl Channel for Chunks {
    #[inline]
    fn send(&mut self, message: &Words) -> Result<(), Failure> {
        self.out.push(Line64(*message));
        Ok(())
    }

    #[inline]
    fn flush(&mut self) -> Result<(), Failure> {
        let count = self.out.len();
        let (tx, out) = (&mut self.ends.tx, &mut self.out);
        spin("room", || Some(tx.write_chunk_uninit(count).ok()?.fill_from_iter(out.drain(..)))).map(drop)
    }

    #[inline]
    fn receive(&mut self, message: &mut Words) -> Result<(), Failure> {
        if self.taken.is_empty() {
            let count = spin("messages", || Some(self.ends.rx.slots()).filter(|count| *count > 0))?;
            self.taken.extend(self.ends.rx.read_chunk(count)?);
        }
        *message = self.taken.pop_front().ok_or("an empty chunk")?.0;
        Ok(())
    }
}

/// One direction of Fido's ring in memory of this process.
struct Direction {
    slots: Vec<Slot>,
    credit: Line,
}

impl Default for Direction {
    fn default() -> Self {
        Self { slots: (0..SLOTS).map(|_| Slot::default()).collect(), credit: Line::default() }
    }
}

impl Direction {
    /// The ends of who sends here and receives from `back`.
    fn ends<'a>(&'a self, back: &'a Self) -> Local<'a> {
        // SAFETY: the slots stay where they are while `self` is borrowed; the consumer made below is the only one.
        let tx = unsafe { Producer::new(self.slots.as_ptr(), SLOTS) };
        // SAFETY: as above; nothing is sent before both ends of both directions are made.
        let rx = unsafe { Consumer::new(back.slots.as_ptr(), SLOTS) };
        Local { tx, rx, their_credit: &self.credit, own_credit: &back.credit }
    }
}

/// Both directions of Fido's ring.
struct Local<'a> {
    tx: Producer,
    rx: Consumer,
    their_credit: &'a Line,
    own_credit: &'a Line,
}

impl Channel for Local<'_> {
    #[inline]
    fn send(&mut self, message: &Words) -> Result<(), Failure> {
        if self.tx.push(message) {
            return Ok(());
        }
        spin("room", || match self.tx.refresh(self.their_credit) {
            Ok(()) => self.tx.push(message).then_some(Ok(())),
            Err(error) => Some(Err(error.into())),
        })?
    }

    #[inline]
    fn receive(&mut self, message: &mut Words) -> Result<(), Failure> {
        spin("message", || {
            *message = self.rx.pop()?;
            Some(())
        })?;
        if self.rx.owes_credit() {
            self.rx.publish_credit(self.own_credit);
        }
        Ok(())
    }
}
