//! Arrays over memory whose content can be looked at and damaged.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(missing_docs, reason = "a test's helpers")]

use fido_core::memory::Memory;
use fido_core::testing::private_memory;
use mmblk::backend::memory::MemoryDevice;
use mmblk::backend::raid::assemble::assemble;
use mmblk::backend::raid::create::{CreateOptions, create};
use mmblk::backend::raid::layout::Level;
use mmblk::backend::raid::superblock::Role;
use mmblk::backend::raid::{MemberQueue, RaidError, RaidOptions, RaidQueue};
use mmblk::queue::{BlockOp, BlockQueue, Geometry};

use crate::common::{Rig, completions, pattern};

/// The levels, and how many members each has here.
pub const LEVELS: [(Level, usize); 3] = [(Level::Raid0, 4), (Level::Raid1, 2), (Level::Raid5, 5)];
const CHUNK: u64 = 4096;
const LOG_BYTES: u64 = 256 << 10;

/// An array's members.
pub struct Array {
    pub devices: Vec<MemoryDevice>,
    memory: Memory,
    member: Geometry,
}

impl Array {
    /// A new array of exactly this geometry.
    pub fn new(level: Level, geometry: Geometry, memory: &Memory) -> Self {
        Self::with_log(level, geometry, memory, LOG_BYTES)
    }

    pub fn with_log(level: Level, geometry: Geometry, memory: &Memory, log_bytes: u64) -> Self {
        let members = LEVELS.iter().find(|(l, _)| *l == level).unwrap().1;
        let data = match level {
            Level::Raid0 => members as u64,
            Level::Raid1 => 1,
            Level::Raid5 => members as u64 - 1,
        };
        let stripes = geometry.bytes / (data * CHUNK);
        let bytes = ((128 << 10) + log_bytes).next_multiple_of(64 << 10) + stripes * CHUNK;
        let member = Geometry { bytes, block: geometry.block, depth: 16 };
        let devices: Vec<_> = (0..members).map(|_| MemoryDevice::new(member).unwrap()).collect();
        let array = Self { devices, memory: memory.clone(), member };
        let options = CreateOptions { level, chunk: CHUNK as u32, log_bytes, zeroed: true };
        create(array.queues(), &options, memory).unwrap();
        array
    }

    pub fn queues(&self) -> Vec<MemberQueue> {
        self.devices.iter().map(|device| self.queue(device)).collect()
    }

    fn queue(&self, device: &MemoryDevice) -> MemberQueue {
        MemberQueue::new(device.queue(self.memory.clone()).unwrap())
    }

    pub fn assemble(&self, options: RaidOptions) -> Result<RaidQueue, RaidError> {
        assemble(self.queues(), None, options, &self.memory)
    }

    /// A new device of the members' size.
    pub fn blank(&self) -> MemoryDevice {
        MemoryDevice::new(self.member).unwrap()
    }
}

/// What is done to an array.
#[derive(Debug, Clone)]
pub enum Change {
    Write { offset: u64, len: u64, seed: u64 },
    Read { offset: u64, len: u64 },
    Flush,
    Fail(usize),
    Spare,
    Reassemble,
}

/// Does all of it, and compares with a model.
pub fn with_failures(level: Level, changes: &[Change], small_log: bool) {
    let geometry = Geometry { bytes: 512 << 10, block: 512, depth: 8 };
    let memory = private_memory(16 << 20);
    let log = if small_log { mmblk::backend::raid::create::least_log_bytes(CHUNK as u32, 512) } else { LOG_BYTES };
    let mut array = Array::with_log(level, geometry, &memory, log);
    let options = RaidOptions { depth: 8, ..Default::default() };
    let queue = array.assemble(options).unwrap();
    let mut rig = Rig {
        queue,
        peer: memory.clone(),
        device: memory.clone(),
        memory,
        stores: true,
        copies: 0,
        keep: Box::new(()),
    };
    let mut model = vec![0; geometry.bytes as usize];
    let mut flying: Vec<(u64, u64)> = Vec::new();
    for change in changes {
        match change {
            Change::Write { offset, len, seed } => {
                let range = *offset as usize..(offset + len) as usize;
                if flying.len() == 8 || flying.iter().any(|(start, end)| *offset < *end && *start < offset + len) {
                    settle(&mut rig, &mut flying);
                }
                let bytes = pattern(*seed, range.len());
                model[range].copy_from_slice(&bytes);
                let data = rig.payload(&bytes);
                rig.submit(1, BlockOp::Write { offset: *offset, data, durable: seed % 3 == 0 });
                flying.push((*offset, offset + len));
            }
            Change::Read { offset, len } => {
                settle(&mut rig, &mut flying);
                let found = rig.read(*offset, *len as u32).unwrap();
                assert!(found == model[*offset as usize..(offset + len) as usize], "wrong bytes read at {offset}");
            }
            Change::Flush => {
                settle(&mut rig, &mut flying);
                rig.one(BlockOp::Flush).unwrap();
            }
            Change::Fail(member) => {
                // In the middle of what is under way. Never one too many.
                let status = rig.queue.status();
                if *member < status.roles.len() && status.roles.iter().all(|role| *role == Role::Active) {
                    rig.queue.fail_member(*member);
                }
            }
            Change::Spare => {
                if rig.queue.status().spares == 0 {
                    let device = array.blank();
                    let missing = rig.queue.status().roles.iter().position(|role| *role == Role::Missing);
                    rig.queue.add_spare(array.queue(&device)).unwrap();
                    if let Some(missing) = missing {
                        // It goes on with whatever comes next.
                        array.devices[missing] = device;
                    } else {
                        // It may be used at the next failure; which place it takes is then to be seen.
                        settle(&mut rig, &mut flying);
                        reassemble(&mut rig, &array, options);
                    }
                }
            }
            Change::Reassemble => {
                settle(&mut rig, &mut flying);
                reassemble(&mut rig, &array, options);
            }
        }
    }
    settle(&mut rig, &mut flying);
    let found = rig.read(0, geometry.bytes as u32).unwrap();
    assert!(found == model, "the first wrong byte is {:?}", found.iter().zip(&model).position(|(a, b)| a != b));
    drop(rig.one(BlockOp::Flush).unwrap());
    scrub(&mut rig);
    let used = rig.memory.heap().used();
    drop(rig);
    assert!(used <= 64 << 10, "{used} bytes of buffers are left");
}

fn settle(rig: &mut Rig<RaidQueue>, flying: &mut Vec<(u64, u64)>) {
    for completion in completions(&mut rig.queue, flying.len()) {
        completion.result.unwrap();
    }
    flying.clear();
}

/// Polls without requests until `done`.
pub fn until(queue: &mut RaidQueue, what: &str, done: impl Fn(&RaidQueue) -> bool) {
    let deadline = std::time::Instant::now() + crate::common::PATIENCE;
    while !done(queue) {
        assert!(queue.poll().is_none());
        assert!(std::time::Instant::now() < deadline, "{what} did not come: {:?}", queue.status());
    }
}

/// Only those that are members.
fn reassemble(rig: &mut Rig<RaidQueue>, array: &Array, options: RaidOptions) {
    until(&mut rig.queue, "rest", RaidQueue::is_idle);
    let roles = rig.queue.status().roles;
    let queues = array.devices.iter().zip(roles).filter(|(_, role)| *role != Role::Missing);
    let queues = queues.map(|(device, _)| array.queue(device)).collect();
    rig.queue = assemble(queues, None, options, &rig.memory).unwrap();
}

fn scrub(rig: &mut Rig<RaidQueue>) {
    until(&mut rig.queue, "the rebuild", |queue| {
        queue.status().rebuild.is_none() && queue.status().spares == 0 && queue.is_idle()
    });
    if rig.queue.start_scrub(false).is_ok() {
        until(&mut rig.queue, "the scrub", |queue| queue.status().scrubbed.is_some());
        let report = rig.queue.status().scrubbed.unwrap();
        assert_eq!((report.mismatches, report.unreadable, report.skipped), (0, 0, 0), "{report:?}");
    }
}
