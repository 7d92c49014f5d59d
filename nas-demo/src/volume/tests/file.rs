//! The volume over an image file, its event loop asleep whenever nothing is to be done.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use fido_core::assignment::WaitStrategy;
use fido_core::memory::Memory;
use fido_core::testing::private_memory;
use fido_core::waiter::Waiter;
use mmblk::backend::file::{FileDevice, FileOptions, FileQueue};

use super::rig::{pattern, root};
use crate::volume::check::check;
use crate::volume::nas::{NasVolume, Options};
use crate::volume::ops::*;

/// Far longer than anything takes, unless a wake-up is lost.
const DEADLINE: Duration = Duration::from_secs(30);
const CHUNK: u64 = 200_000;

struct Sleeper {
    volume: NasVolume<FileQueue>,
    memory: Memory,
    waiter: Waiter,
    answers: BTreeMap<u64, Result<VolumeReply, VolumeError>>,
}

impl Sleeper {
    fn open(device: &FileDevice) -> Self {
        let memory = private_memory(32 << 20);
        let queue = || device.queue(memory.clone()).unwrap();
        let options = Options { commit_interval: Duration::from_millis(50), ..Options::default() };
        let volume = NasVolume::open(memory.clone(), queue(), queue(), options, None).unwrap();
        Self { volume, memory, waiter: Waiter::new(WaitStrategy::Sleep).unwrap(), answers: BTreeMap::new() }
    }

    fn wait(&mut self, ticket: u64) -> VolumeReply {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(answer) = self.answers.remove(&ticket) {
                return answer.unwrap();
            }
            assert!(Instant::now() < deadline, "a wake-up was lost");
            match self.volume.poll() {
                Some((ticket, answer)) => {
                    self.waiter.busy();
                    self.answers.insert(ticket, answer);
                }
                None => {
                    self.volume.flush();
                    self.waiter.idle(&mut self.volume.sources(), Some(DEADLINE)).unwrap();
                }
            }
        }
    }

    fn run(&mut self, op: VolumeOp) -> VolumeReply {
        self.volume.submit(0, op);
        self.wait(0)
    }

    fn write(&mut self, ticket: u64, ino: Ino, offset: u64, data: &[u8]) {
        let mut buf = self.memory.alloc(data.len()).unwrap();
        buf.as_mut_slice().copy_from_slice(data);
        let stability = if ticket.is_multiple_of(4) { Stability::FileSync } else { Stability::Unstable };
        let data = buf.into_payload();
        self.volume.submit(ticket, VolumeOp::Write { ino, offset, data, stability, caller: root() });
    }

    fn read(&mut self, ino: Ino, offset: u64, count: u32) -> Vec<u8> {
        let reply = self.run(VolumeOp::Read { ino, offset, count, caller: root() });
        let VolumeReply::Data { data, .. } = reply else { panic!("{reply:?}") };
        let mut out = vec![0; data.len() as usize];
        self.memory.read_header(&data, 0, &mut out).unwrap();
        out
    }
}

#[test]
fn a_sleeping_loop_misses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let options = FileOptions { create_bytes: Some(64 << 20), ..FileOptions::new(dir.path().join("image")) };
    let device = FileDevice::open(&options).unwrap();
    let mut loop_ = Sleeper::open(&device);
    let mode = CreateMode::Guarded(SetAttr::default());
    let made = loop_.run(VolumeOp::Create { dir: ROOT, name: b"f".to_vec(), mode, caller: root() });
    let VolumeReply::Created { attr: Attr { ino, .. }, .. } = made else { panic!("{made:?}") };
    for round in 0..10 {
        for i in 1..=8 {
            loop_.write(i, ino, i * CHUNK, &pattern(round * 8 + i, CHUNK as usize));
        }
        for i in 1..=8 {
            loop_.wait(i);
        }
        loop_.run(VolumeOp::Commit { ino });
        for i in 1..=8 {
            assert_eq!(loop_.read(ino, i * CHUNK, CHUNK as u32), pattern(round * 8 + i, CHUNK as usize));
        }
    }
    // What was not committed is so by the timer, while the loop sleeps, or at the latest when it is closed.
    loop_.write(1, ino, 0, b"last");
    loop_.wait(1);
    drop(loop_);
    let mut loop_ = Sleeper::open(&device);
    assert_eq!(loop_.read(ino, 0, 4), b"last");
    drop(loop_);
    let memory = private_memory(16 << 20);
    let report = check(memory.clone(), device.queue(memory).unwrap()).unwrap();
    assert_eq!((report.problems, report.files), (vec![], 1));
}
