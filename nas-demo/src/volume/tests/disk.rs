//! A block device in memory that can crash: writes that were not flushed are then lost or kept block by block, at
//! random. It also fails and stalls on request.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};

use fido_core::memory::Memory;
use fido_core::payload::Payload;
use fido_core::wait::Source;
use mmblk::queue::{BlockCompletion, BlockError, BlockOp, BlockQueue, Busy, Features, Geometry};
use rustix::event::{EventfdFlags, eventfd};

pub const SECTOR: u64 = 512;

/// A small reproducible source of choices.
#[derive(Debug, Clone)]
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides.max(1)
    }
}

/// What goes wrong.
#[derive(Debug, Default)]
pub struct Faults {
    /// After so many more writes and flushes the device is dead.
    pub dies_after: Option<u64>,
    /// After so many more writes and flushes the device answers nothing any more, as if its user were gone.
    pub stalls_after: Option<u64>,
    /// Writes below the offset, and flushes, are answered no more.
    pub stalls_below: Option<u64>,
    /// Every write to the data region (at or beyond the offset) fails.
    pub fail_writes_from: Option<u64>,
    /// So many writes or flushes below the offset fail.
    pub fail_meta: Option<(u64, u64)>,
    /// After so many more flushes all of them fail.
    pub flushes_left: Option<u64>,
    /// Every nth read gets no buffer.
    pub no_buffer_every: Option<u64>,
    /// Reads are held back.
    pub hold_reads: bool,
}

#[derive(Debug)]
struct State {
    bytes: u64,
    block: u32,
    /// Sectors that are durable; those that are missing are zeros.
    durable: BTreeMap<u64, Vec<u8>>,
    /// Sectors written since the last flush, with every version a crash may leave.
    volatile: BTreeMap<u64, Vec<Vec<u8>>>,
    faults: Faults,
    dead: bool,
    stalled: bool,
    reads: u64,
}

/// The device. Clones are the same device.
#[derive(Debug, Clone)]
pub struct Disk(Arc<Mutex<State>>);

impl Disk {
    pub fn new(bytes: u64) -> Self {
        Self::with_block(bytes, 4096)
    }

    pub fn with_block(bytes: u64, block: u32) -> Self {
        let (durable, volatile) = (BTreeMap::new(), BTreeMap::new());
        let faults = Faults::default();
        Self(Arc::new(Mutex::new(State {
            bytes,
            block,
            durable,
            volatile,
            faults,
            dead: false,
            stalled: false,
            reads: 0,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub fn faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.state().faults);
    }

    pub fn is_dead(&self) -> bool {
        self.state().dead
    }

    pub fn is_stalled(&self) -> bool {
        self.state().stalled
    }

    /// What the death of the process leaves: all that was done. For the process itself the device is dead from now on,
    /// so that it ends.
    pub fn survivor(&self) -> Self {
        let mut state = self.state();
        let mut durable = state.durable.clone();
        for (sector, versions) in &state.volatile {
            durable.extend(versions.last().map(|version| (*sector, version.clone())));
        }
        (state.dead, state.stalled) = (true, false);
        state.faults.stalls_below = None;
        let disk = Self::with_block(state.bytes, state.block);
        disk.state().durable = durable;
        disk
    }

    pub fn resize(&self, bytes: u64) {
        self.state().bytes = bytes;
    }

    pub fn poke(&self, offset: u64, data: &[u8]) {
        self.state().store(offset, data, true);
    }

    pub fn peek(&self, offset: u64, len: usize) -> Vec<u8> {
        self.state().load(offset, len)
    }

    /// What a power failure leaves of what was not flushed: every sector in any of its versions, as the dice fall; or
    /// only what lies before or behind some place; or all but a few sectors; or nothing.
    pub fn crash(&self, dice: &mut Dice) -> Self {
        let state = self.state();
        let mut durable = state.durable.clone();
        let places: Vec<u64> = state.volatile.keys().copied().collect();
        let place = places.get(dice.roll(places.len() as u64) as usize).copied().unwrap_or(0);
        let mode = dice.roll(5);
        for (sector, versions) in &state.volatile {
            let any = dice.roll(versions.len() as u64 + 1) as usize;
            let newest = versions.len();
            let pick = match mode {
                0 => any,
                1 if *sector < place => newest,
                2 if *sector >= place => newest,
                3 if dice.roll(30) > 0 => newest,
                _ => 0,
            };
            if let Some(version) = pick.checked_sub(1).and_then(|at| versions.get(at)) {
                durable.insert(*sector, version.clone());
            }
        }
        let disk = Self::with_block(state.bytes, state.block);
        disk.state().durable = durable;
        disk
    }

    pub fn queue(&self, memory: Memory, depth: u32) -> DiskQueue {
        let wake = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap();
        DiskQueue { disk: self.clone(), memory, depth, done: VecDeque::new(), held: Vec::new(), wake }
    }
}

impl State {
    fn load(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(len);
        let mut sector = offset / SECTOR;
        while out.len() < len {
            let newest = self.volatile.get(&sector).and_then(|versions| versions.last());
            match newest.or_else(|| self.durable.get(&sector)) {
                Some(data) => out.extend_from_slice(data),
                None => out.resize(out.len() + SECTOR as usize, 0),
            }
            sector += 1;
        }
        out.truncate(len);
        out
    }

    fn store(&mut self, offset: u64, data: &[u8], durable: bool) {
        for (sector, chunk) in (offset / SECTOR..).zip(data.chunks(SECTOR as usize)) {
            let mut whole = self.load(sector * SECTOR, SECTOR as usize);
            whole[..chunk.len()].copy_from_slice(chunk);
            if durable {
                self.volatile.remove(&sector);
                self.durable.insert(sector, whole);
            } else {
                self.volatile.entry(sector).or_default().push(whole);
            }
        }
    }

    fn flush(&mut self) {
        for (sector, mut versions) in std::mem::take(&mut self.volatile) {
            if let Some(last) = versions.pop() {
                self.durable.insert(sector, last);
            }
        }
    }

    /// Whether a request is never answered.
    fn stalls(&mut self, op: &BlockOp) -> bool {
        if matches!(op, BlockOp::Write { .. } | BlockOp::Flush)
            && let Some(left) = &mut self.faults.stalls_after
        {
            match left.checked_sub(1) {
                Some(less) => *left = less,
                None => self.stalled = !self.dead,
            }
        }
        let below = self.faults.stalls_below.unwrap_or(0);
        let held = match op {
            BlockOp::Write { offset, .. } => *offset < below,
            BlockOp::Flush => below > 0,
            _ => false,
        };
        self.stalled || held
    }

    /// Whether a write or flush at `offset` fails now.
    fn fault(&mut self, offset: u64) -> bool {
        if let Some(left) = &mut self.faults.dies_after {
            match left.checked_sub(1) {
                Some(less) => *left = less,
                None => self.dead = true,
            }
        }
        if let Some((below, left)) = &mut self.faults.fail_meta
            && offset < *below
            && *left > 0
        {
            *left -= 1;
            return true;
        }
        self.dead || self.faults.fail_writes_from.is_some_and(|from| offset >= from)
    }

    fn run(&mut self, memory: &Memory, op: &BlockOp) -> Result<Payload, BlockError> {
        const FAILED: BlockError = BlockError::Io { errno: 5 };
        let geometry = Geometry { bytes: self.bytes, block: self.block, depth: 1 };
        geometry.check(op)?;
        if self.dead {
            return Err(FAILED);
        }
        match op {
            BlockOp::Read { offset, len } => {
                self.reads += 1;
                if self.faults.no_buffer_every.is_some_and(|n| self.reads.is_multiple_of(n)) {
                    return Err(BlockError::NoBuffer);
                }
                let data = self.load(*offset, *len as usize);
                let mut buf = memory.alloc(data.len()).map_err(|_| BlockError::NoBuffer)?;
                buf.as_mut_slice().copy_from_slice(&data);
                Ok(buf.into_payload())
            }
            BlockOp::Write { offset, data, durable } => {
                if self.fault(*offset) {
                    return Err(FAILED);
                }
                let mut bytes = vec![0; data.len() as usize];
                memory.read_header(data, 0, &mut bytes).map_err(|e| BlockError::Address(e.to_string()))?;
                self.store(*offset, &bytes, *durable);
                Ok(Payload::new())
            }
            BlockOp::Flush => {
                if self.fault(0) || self.faults.flushes_left == Some(0) {
                    return Err(FAILED);
                }
                if let Some(left) = &mut self.faults.flushes_left {
                    *left -= 1;
                }
                self.flush();
                Ok(Payload::new())
            }
            BlockOp::Discard { .. } => Ok(Payload::new()),
            BlockOp::WriteZeroes { .. } | BlockOp::Extents { .. } => Err(BlockError::Unsupported),
        }
    }
}

/// A queue to a [`Disk`]. Requests are done at once; completions come out of order.
#[derive(Debug)]
pub struct DiskQueue {
    disk: Disk,
    memory: Memory,
    depth: u32,
    done: VecDeque<BlockCompletion>,
    held: Vec<(u64, BlockOp)>,
    wake: OwnedFd,
}

impl Source for DiskQueue {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    fn ready(&mut self) -> bool {
        !self.done.is_empty()
    }
}

impl BlockQueue for DiskQueue {
    fn geometry(&self) -> Geometry {
        let state = self.disk.state();
        Geometry { bytes: state.bytes, block: state.block, depth: self.depth }
    }

    fn features(&self) -> Features {
        let preferred_block = self.geometry().block;
        Features { read_only: false, discard: true, write_zeroes: false, volatile_cache: true, preferred_block }
    }

    fn submit(&mut self, id: u64, op: BlockOp) -> Result<(), Busy> {
        if self.done.len() + self.held.len() >= self.depth as usize {
            return Err(Busy(op));
        }
        let mut state = self.disk.state();
        if state.stalls(&op) || state.faults.hold_reads && matches!(op, BlockOp::Read { .. }) {
            self.held.push((id, op));
            return Ok(());
        }
        let result = state.run(&self.memory, &op);
        let completion = BlockCompletion { id, result };
        if id.is_multiple_of(3) {
            self.done.push_front(completion)
        } else {
            self.done.push_back(completion)
        }
        Ok(())
    }

    fn poll(&mut self) -> Option<BlockCompletion> {
        let mut state = self.disk.state();
        if !state.faults.hold_reads && !state.stalled && state.faults.stalls_below.is_none() {
            for (id, op) in self.held.drain(..) {
                self.done.push_back(BlockCompletion { id, result: state.run(&self.memory, &op) });
            }
        }
        self.done.pop_front()
    }

    fn flush_submissions(&mut self) {}
}
