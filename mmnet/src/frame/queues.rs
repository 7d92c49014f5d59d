//! Several ports that belong together as one device.
//!
//! What is sent goes out by the queue of its flow ([`super::flow`]), so a flow stays in order. What arrives is taken
//! from one queue after the other, a bounded batch from each, so that a busy queue does not starve the others. The
//! queues may as well be served by a thread each: [`FrameQueues::into_ports`] gives them away, and who sends to several
//! chooses by [`super::flow_hash`].

use fido_core::addr::DomainId;
use fido_core::memory::Memory;
use fido_core::wait::Source;

use super::flow::flow_hash;
use super::port::{Frame, FrameCounts, FrameError, FramePort};

/// Frames taken from one queue before the next one has its turn.
pub const TURN: usize = 32;

/// A device of several queues.
#[derive(Debug)]
pub struct FrameQueues<P> {
    ports: Vec<P>,
    /// Whose turn it is, and how many frames of it are left.
    turn: usize,
    left: usize,
}

impl<P: FramePort> FrameQueues<P> {
    /// The device whose queues these are.
    ///
    /// # Errors
    /// [`FrameError::NoQueues`] if there are none.
    pub fn new(ports: Vec<P>) -> Result<Self, FrameError> {
        if ports.is_empty() {
            return Err(FrameError::NoQueues);
        }
        Ok(Self { ports, turn: 0, left: TURN })
    }

    /// The queues.
    pub fn ports(&self) -> &[P] {
        &self.ports
    }

    /// The queues, to be served by a thread each.
    pub fn into_ports(self) -> Vec<P> {
        self.ports
    }

    /// The memory of the domain that the device is in.
    pub fn memory(&self) -> &Memory {
        self.ports[0].memory()
    }

    /// The most bytes behind a header that all queues carry.
    pub fn mtu(&self) -> usize {
        self.ports.iter().map(P::mtu).min().unwrap_or(0)
    }

    /// What all queues together have carried and lost.
    pub fn counts(&self) -> FrameCounts {
        self.ports.iter().map(P::counts).fold(FrameCounts::default(), FrameCounts::plus)
    }

    /// Whether a frame of whatever flow that is sent now will not be dropped for want of room.
    pub fn has_room(&self) -> bool {
        self.ports.iter().all(P::has_room)
    }

    /// By which queue a frame goes; by the first if it cannot be read.
    pub fn queue_of(&self, frame: &Frame) -> usize {
        if self.ports.len() == 1 {
            return 0;
        }
        let hash = flow_hash(self.memory(), &frame.payload).unwrap_or(0);
        ((u64::from(hash) * self.ports.len() as u64) >> 32) as usize
    }

    /// Sends a frame by the queue of its flow.
    ///
    /// # Errors
    /// As [`FramePort::send`].
    pub fn send(&mut self, frame: Frame) -> Result<(), FrameError> {
        let queue = self.queue_of(&frame);
        self.ports[queue].send(frame)
    }

    /// The next frame that arrived, by turns of the queues. Never blocks.
    pub fn recv(&mut self) -> Option<Frame> {
        // Once around, and back to the one that has had its turn.
        for _ in 0..=self.ports.len() {
            if self.left > 0
                && let Some(frame) = self.ports[self.turn].recv()
            {
                self.left -= 1;
                return Some(frame);
            }
            self.turn = (self.turn + 1) % self.ports.len();
            self.left = TURN;
        }
        None
    }

    /// Hands on what waits in any queue and returns what was dropped.
    pub fn flush(&mut self) {
        self.ports.iter_mut().for_each(P::flush);
    }

    /// As [`FramePort::forget`], of all queues.
    pub fn forget(&mut self, dead: DomainId) {
        self.ports.iter_mut().for_each(|port| port.forget(dead));
    }

    /// What to wait for.
    pub fn sources(&mut self) -> impl Iterator<Item = &mut dyn Source> {
        self.ports.iter_mut().map(|port| port as &mut dyn Source)
    }
}

#[cfg(test)]
mod tests {
    use fido_core::lane::Lane;
    use fido_core::testing::TestLanes;

    use super::*;
    use crate::frame::{FrameLink, QUEUE};

    /// A device of so many queues, and the other side's. Each side has one arena.
    fn devices(queues: u16) -> (TestLanes, FrameQueues<FrameLink>, FrameQueues<FrameLink>) {
        let (link, a, b) = TestLanes::new(queues, 16, 4 << 20);
        let device = |lanes: Vec<Lane>| {
            let links = lanes.into_iter().map(|lane| FrameLink::new(lane, 1500).unwrap());
            FrameQueues::new(links.collect()).unwrap()
        };
        (link, device(a), device(b))
    }

    /// The `number`-th frame of a flow.
    fn frame(memory: &Memory, flow: u8, number: u32) -> Frame {
        let mut buf = memory.alloc(60).unwrap();
        buf.as_mut_slice().fill(0);
        buf.as_mut_slice()[5] = flow;
        buf.as_mut_slice()[14..18].copy_from_slice(&number.to_le_bytes());
        buf.into_payload().into()
    }

    #[test]
    fn no_queues_are_no_device() {
        assert!(matches!(FrameQueues::<FrameLink>::new(Vec::new()), Err(FrameError::NoQueues)));
    }

    #[test]
    fn a_busy_queue_does_not_starve_the_others() {
        let (_link, mut a, mut b) = devices(2);
        let memory = a.memory().clone();
        for number in 0..QUEUE {
            a.ports[0].send(memory.alloc(60).unwrap().into_payload().into()).unwrap();
            if number == 0 {
                a.ports[1].send(memory.alloc(61).unwrap().into_payload().into()).unwrap();
            }
            a.flush();
            b.flush();
        }
        let lens: Vec<_> = std::iter::from_fn(|| b.recv()).map(|frame| frame.payload.len()).collect();
        assert_eq!(lens.len(), QUEUE + 1);
        assert_eq!(lens.iter().position(|len| *len == 61), Some(TURN), "after one turn of the busy queue");
    }

    #[test]
    fn flows_keep_their_order_and_use_all_queues_and_every_loan_comes_back() {
        const FLOWS: u8 = 32;
        let (_link, mut a, mut b) = devices(4);
        let memory = a.memory().clone();
        let mut expected = [0; FLOWS as usize];
        for number in 0..50 {
            (0..FLOWS).for_each(|flow| a.send(frame(&memory, flow, number)).unwrap());
            a.flush();
            while let Some(frame) = b.recv() {
                let mut bytes = [0; 18];
                b.memory().read_header(&frame.payload, 0, &mut bytes).unwrap();
                let next = &mut expected[usize::from(bytes[5])];
                assert_eq!(bytes[14..18], u32::to_le_bytes(*next));
                *next += 1;
            }
            b.flush();
        }
        a.flush();
        assert_eq!(expected, [50; FLOWS as usize]);
        assert!(a.ports().iter().all(|port| port.counts().sent > 0));
        assert_eq!((a.counts().sent, a.counts().dropped_sending, b.counts().received), (1600, 0, 1600));
        let stats = memory.stats();
        assert!(stats.loans_given.get() >= 1600 / 3);
        assert_eq!(stats.loans_given.get(), stats.loans_returned.get());
        assert_eq!(memory.heap().used(), 0);
    }
}
