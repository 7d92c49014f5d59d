//! A disk with a volatile cache that can lose power.
//!
//! Requests end in any order, when the seed says so. What was written and not flushed since is kept sector by sector with
//! all its versions: after a loss of power each sector has any of them, or what was durable before. What was in flight
//! has been written in any part.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};

use fido_core::memory::Memory;
use fido_core::payload::Payload;
use fido_core::wait::Source;
use mmblk::queue::{BlockCompletion, BlockError, BlockOp, BlockQueue, Busy, Features, Geometry};

pub const SECTOR: usize = 512;
type Sector = [u8; SECTOR];
const NEVER: u64 = u64::MAX;

/// Numbers from a seed.
#[derive(Clone)]
pub struct Random(Arc<Mutex<u64>>);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03)))
    }

    pub fn below(&self, n: u64) -> u64 {
        let mut state = self.0.lock().unwrap();
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % n.max(1)
    }

    pub fn chance(&self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// How many requests the disks still end before the power fails.
#[derive(Clone)]
pub struct Power(Arc<Mutex<u64>>);

impl Power {
    pub fn new(steps: u64) -> Self {
        Self(Arc::new(Mutex::new(steps)))
    }

    pub fn set(&self, steps: u64) {
        *self.0.lock().unwrap() = steps;
    }

    pub fn is_off(&self) -> bool {
        *self.0.lock().unwrap() == 0
    }

    fn step(&self) -> bool {
        let mut left = self.0.lock().unwrap();
        let on = *left > 0;
        *left = left.saturating_sub(1);
        on
    }
}

#[derive(Default)]
struct State {
    current: Vec<u8>,
    durable: Vec<u8>,
    /// Versions of sectors since the last flush, with the number of their write.
    versions: BTreeMap<usize, Vec<(u64, Sector)>>,
    writes: u64,
    /// It ends everything with an error.
    broken: bool,
    /// What was in flight when its queue was dropped.
    torn: Vec<(u64, Vec<u8>)>,
}

/// A disk; clones and queues share it.
#[derive(Clone)]
pub struct Disk {
    state: Arc<Mutex<State>>,
    random: Random,
    power: Power,
    bytes: u64,
}

impl Disk {
    pub fn new(bytes: u64, random: &Random, power: &Power) -> Self {
        let state = State { current: vec![0; bytes as usize], durable: vec![0; bytes as usize], ..State::default() };
        Self { state: Arc::new(Mutex::new(state)), random: random.clone(), power: power.clone(), bytes }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// From now on every request fails.
    pub fn fail(&self) {
        self.state().broken = true;
    }

    pub fn is_broken(&self) -> bool {
        self.state().broken
    }

    pub fn queue(&self, memory: &Memory) -> DiskQueue {
        let wake = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        DiskQueue { disk: self.clone(), memory: memory.clone(), pending: Vec::new(), wake }
    }

    /// What is there after the crash: with the power lost, or with the process only.
    pub fn crash(&self, power_lost: bool) {
        let mut state = self.state();
        for (offset, bytes) in std::mem::take(&mut state.torn) {
            if self.random.chance(40) {
                continue;
            }
            for (index, sector) in bytes.chunks(SECTOR).enumerate() {
                if self.random.chance(50) {
                    let at = offset as usize / SECTOR + index;
                    state.write_sector(at, sector.try_into().unwrap());
                }
            }
        }
        if power_lost {
            let forget = self.random.chance(30);
            for (at, versions) in std::mem::take(&mut state.versions) {
                let pick = self.random.below(versions.len() as u64 + 1) as usize;
                if pick < versions.len() && !forget {
                    state.durable[at * SECTOR..][..SECTOR].copy_from_slice(&versions[pick].1);
                }
            }
            state.current = state.durable.clone();
        }
    }
}

impl State {
    fn write_sector(&mut self, at: usize, sector: Sector) {
        self.writes += 1;
        let writes = self.writes;
        self.current[at * SECTOR..][..SECTOR].copy_from_slice(&sector);
        self.versions.entry(at).or_default().push((writes, sector));
    }

    /// Writes up to this number are durable.
    fn settle(&mut self, upto: u64) {
        for (at, versions) in &mut self.versions {
            let count = versions.iter().take_while(|(number, _)| *number <= upto).count();
            if let Some((_, last)) = versions.drain(..count).next_back() {
                self.durable[at * SECTOR..][..SECTOR].copy_from_slice(&last);
            }
        }
        self.versions.retain(|_, versions| !versions.is_empty());
    }
}

/// A queue of a [`Disk`].
pub struct DiskQueue {
    disk: Disk,
    memory: Memory,
    /// With the number of the last write that had ended when it was submitted.
    pending: Vec<(u64, BlockOp, u64)>,
    wake: OwnedFd,
}

impl DiskQueue {
    fn perform(&self, op: &BlockOp, upto: u64) -> Result<Payload, BlockError> {
        let mut state = self.disk.state();
        if state.broken {
            return Err(BlockError::Io { errno: 5 });
        }
        self.geometry().check(op)?;
        match op {
            BlockOp::Read { offset, len } => {
                let mut buf = self.memory.alloc(*len as usize).map_err(|_| BlockError::NoBuffer)?;
                buf.as_mut_slice().copy_from_slice(&state.current[*offset as usize..][..*len as usize]);
                Ok(buf.into_payload())
            }
            BlockOp::Write { offset, data, durable } => {
                let bytes = self.bytes(data);
                for (index, sector) in bytes.chunks(SECTOR).enumerate() {
                    let at = *offset as usize / SECTOR + index;
                    state.write_sector(at, sector.try_into().unwrap());
                    if *durable {
                        state.versions.remove(&at);
                        state.durable[at * SECTOR..][..SECTOR].copy_from_slice(sector);
                    }
                }
                Ok(Payload::new())
            }
            BlockOp::Flush => {
                state.settle(upto);
                Ok(Payload::new())
            }
            _ => Err(BlockError::Unsupported),
        }
    }

    /// It was in flight at the end.
    fn tear(&self, op: &BlockOp, upto: u64) {
        if let BlockOp::Write { offset, data, .. } = op
            && upto != NEVER
        {
            let torn = (*offset, self.bytes(data));
            self.disk.state().torn.push(torn);
        }
    }

    fn bytes(&self, data: &Payload) -> Vec<u8> {
        let mut bytes = vec![0; data.len() as usize];
        self.memory.read_header(data, 0, &mut bytes).unwrap();
        bytes
    }
}

impl BlockQueue for DiskQueue {
    fn geometry(&self) -> Geometry {
        Geometry { bytes: self.disk.bytes, block: SECTOR as u32, depth: 32 }
    }

    fn features(&self) -> Features {
        Features { read_only: false, discard: false, write_zeroes: false, volatile_cache: true, preferred_block: 512 }
    }

    fn submit(&mut self, id: u64, op: BlockOp) -> Result<(), Busy> {
        if self.pending.len() >= 32 {
            return Err(Busy(op));
        }
        // What is asked for after the power has failed has never been asked for.
        let upto = if self.disk.power.is_off() { NEVER } else { self.disk.state().writes };
        self.pending.push((id, op, upto));
        Ok(())
    }

    fn poll(&mut self) -> Option<BlockCompletion> {
        if self.pending.is_empty() {
            return None;
        }
        if self.disk.power.is_off() {
            let (id, op, upto) = self.pending.remove(0);
            self.tear(&op, upto);
            return Some(BlockCompletion { id, result: Err(BlockError::Io { errno: 5 }) });
        }
        if self.disk.random.chance(50) {
            return None;
        }
        if !self.disk.power.step() {
            return None;
        }
        let pick = self.disk.random.below(self.pending.len() as u64) as usize;
        let (id, op, upto) = self.pending.remove(pick);
        let result = self.perform(&op, upto);
        Some(BlockCompletion { id, result })
    }

    fn flush_submissions(&mut self) {}
}

impl Source for DiskQueue {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    fn ready(&mut self) -> bool {
        !self.pending.is_empty()
    }
}

impl Drop for DiskQueue {
    fn drop(&mut self) {
        for (_, op, upto) in std::mem::take(&mut self.pending) {
            self.tear(&op, upto);
        }
    }
}
