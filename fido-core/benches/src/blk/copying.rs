//! A model of blkfront and blkback, written for this benchmark only and compared with MMBlk under the same device.
//!
//! As with persistent grants, each request has pages that both sides keep mapped; the front end copies the payload of a
//! write into them, and that of a read out of what the back end shows. Requests and answers are messages of a ring, and
//! each is followed by a notification of its own: an event that wakes the other side, which sleeps when it has nothing to
//! do. The ring is ours, so the model is better than the original in that; Xen's price of a notification is not in it.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

use fido_core::heap::ArenaBuf;
use fido_core::lane::Lane;
use fido_core::memory::Memory;
use fido_core::message::Head;
use fido_core::payload::Payload;
use fido_core::wait::Source;
use mmblk::device::BoxQueue;
use mmblk::queue::{BlockCompletion, BlockError, BlockOp, BlockQueue, Busy, Features, Geometry};

use crate::Failure;
use crate::notified::{Events, Notified};

/// The unit of places in messages.
const SECTOR: u64 = 512;
const READ: u8 = 1;
const WRITE: u8 = 2;
const DONE: u8 = 3;
const FAILED: u8 = 4;

/// A request under way.
#[derive(Debug)]
struct Pending {
    id: u64,
    /// Where a read's bytes are wanted.
    read: Option<Vec<u8>>,
}

/// The front end.
#[derive(Debug)]
pub struct CopyingQueue {
    lane: Notified,
    geometry: Geometry,
    memory: Memory,
    /// By tag, which is the index.
    pending: Vec<Option<Pending>>,
    pages: Vec<Option<ArenaBuf>>,
    /// Memory that reads have been copied to, to be used again.
    spare: Vec<Vec<u8>>,
    free: Vec<u32>,
    /// What failed before it was sent.
    failed: VecDeque<BlockCompletion>,
}

impl CopyingQueue {
    /// A front end of a device that is like this, over `lane`.
    pub fn new(lane: Lane, events: Events, geometry: Geometry, memory: Memory) -> Self {
        let depth = geometry.depth;
        Self {
            lane: Notified::new(lane, events),
            geometry,
            memory,
            pending: (0..depth).map(|_| None).collect(),
            pages: (0..depth).map(|_| None).collect(),
            spare: Vec::new(),
            free: (0..depth).rev().collect(),
            failed: VecDeque::new(),
        }
    }

    /// Copies a write's payload into the pages of `tag`.
    fn fill(&mut self, tag: u32, data: &Payload) -> Result<Payload, BlockError> {
        let len = data.len() as usize;
        let page = self.pages.get_mut(tag as usize).ok_or(BlockError::NoBuffer)?;
        if page.as_ref().is_none_or(|page| page.len() != len) {
            *page = Some(self.memory.alloc(len).map_err(|_| BlockError::NoBuffer)?);
        }
        let page = page.as_mut().ok_or(BlockError::NoBuffer)?;
        let copied = self.memory.copy_to_slice(data, page.as_mut_slice());
        copied.map_err(|error| BlockError::Address(error.to_string()))?;
        let mut pages = Payload::new();
        pages.push(page.segment(), None);
        Ok(pages)
    }

    fn begin(&mut self, tag: u32, id: u64, op: BlockOp) -> Result<(), BlockError> {
        self.geometry.check(&op)?;
        let (kind, offset, len, payload, read) = match op {
            BlockOp::Read { offset, len } => {
                let mut wanted = self.spare.pop().unwrap_or_default();
                wanted.resize(len as usize, 0);
                (READ, offset, len, Payload::new(), Some(wanted))
            }
            BlockOp::Write { offset, data, .. } => (WRITE, offset, data.len() as u32, self.fill(tag, &data)?, None),
            _ => return Err(BlockError::Unsupported),
        };
        let head = Head { kind, flags: 0, args: [tag, (offset / SECTOR) as u32, len, 0] };
        self.lane.send_and_notify(head, payload).map_err(|error| BlockError::Protocol(error.to_string()))?;
        if let Some(place) = self.pending.get_mut(tag as usize) {
            *place = Some(Pending { id, read });
        }
        Ok(())
    }

    fn end(&mut self, head: Head, payload: &Payload) -> Option<BlockCompletion> {
        let tag = head.args[0];
        let Pending { id, read } = self.pending.get_mut(tag as usize)?.take()?;
        self.free.push(tag);
        let mut result = if head.kind == DONE { Ok(Payload::new()) } else { Err(BlockError::Io { errno: libc::EIO }) };
        if let Some(mut wanted) = read {
            match self.memory.copy_to_slice(payload, &mut wanted) {
                Ok(count) if count == wanted.len() => {}
                _ => result = Err(BlockError::Protocol("a read of another length".into())),
            }
            self.spare.push(wanted);
        }
        Some(BlockCompletion { id, result })
    }
}

impl BlockQueue for CopyingQueue {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn features(&self) -> Features {
        let preferred_block = self.geometry.block;
        Features { read_only: false, discard: false, write_zeroes: false, volatile_cache: true, preferred_block }
    }

    fn submit(&mut self, id: u64, op: BlockOp) -> Result<(), Busy> {
        let Some(tag) = self.free.pop() else { return Err(Busy(op)) };
        if let Err(error) = self.begin(tag, id, op) {
            self.free.push(tag);
            self.failed.push_back(BlockCompletion { id, result: Err(error) });
        }
        Ok(())
    }

    fn poll(&mut self) -> Option<BlockCompletion> {
        if let Some(failed) = self.failed.pop_front() {
            return Some(failed);
        }
        let (head, payload) = self.lane.recv()?;
        self.end(head, &payload)
    }

    fn flush_submissions(&mut self) {
        // Returns what reads have shown.
        self.lane.flush();
    }
}

impl Source for CopyingQueue {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.lane.wake_fd()
    }

    fn arm(&mut self) {
        self.lane.arm();
    }

    fn ready(&mut self) -> bool {
        !self.failed.is_empty() || self.lane.ready()
    }

    fn disarm(&mut self) {
        self.lane.disarm();
    }
}

/// The back end.
pub struct CopyingBack {
    lane: Notified,
    queue: BoxQueue,
}

impl CopyingBack {
    /// Serves `lane` from `queue`.
    pub fn new(lane: Lane, events: Events, queue: BoxQueue) -> Self {
        Self { lane: Notified::new(lane, events), queue }
    }

    /// Moves everything along; whether there was anything.
    ///
    /// # Errors
    /// If the front end asks for nonsense, or more at a time than the queue takes.
    pub fn poll(&mut self) -> Result<bool, Failure> {
        let mut any = false;
        while let Some((Head { kind, args: [tag, sector, len, _], .. }, data)) = self.lane.recv() {
            let offset = u64::from(sector) * SECTOR;
            let op = match kind {
                READ => BlockOp::Read { offset, len },
                WRITE => BlockOp::Write { offset, data, durable: false },
                _ => return Err(format!("a message of kind {kind}").into()),
            };
            self.queue.submit(tag.into(), op).map_err(|_| "more requests than the queue takes")?;
            any = true;
        }
        if any {
            self.queue.flush_submissions();
        }
        while let Some(BlockCompletion { id, result }) = self.queue.poll() {
            let (kind, data) = result.map_or((FAILED, Payload::new()), |data| (DONE, data));
            self.lane.send_and_notify(Head { kind, flags: 0, args: [id as u32, 0, 0, 0] }, data)?;
            any = true;
        }
        Ok(any)
    }

    /// What to wait for.
    pub fn sources(&mut self) -> [&mut dyn Source; 2] {
        [&mut self.lane, &mut self.queue]
    }
}
