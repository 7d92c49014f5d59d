//! The back ends against the conformance suite.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{GEOMETRY, Rig, conforms, follows_the_model, steps};
use mmblk::backend::file::{FileDevice, FileOptions, FileQueue};
use mmblk::backend::memory::{MemoryDevice, MemoryQueue};
use mmblk::backend::null::NullQueue;
use proptest::prelude::*;

fn null() -> Rig<NullQueue> {
    Rig::local(false, |memory| (NullQueue::new(GEOMETRY, memory.clone()).unwrap(), Box::new(())))
}

fn memory() -> Rig<MemoryQueue> {
    let device = MemoryDevice::new(GEOMETRY).unwrap();
    Rig::local(true, |memory| (device.queue(memory.clone()).unwrap(), Box::new(())))
}

fn file() -> Rig<FileQueue> {
    let dir = tempfile::tempdir().unwrap();
    let options = FileOptions {
        create_bytes: Some(GEOMETRY.bytes),
        block: GEOMETRY.block,
        depth: GEOMETRY.depth,
        ..FileOptions::new(dir.path().join("image"))
    };
    let device = FileDevice::open(&options).unwrap();
    Rig::local(true, |memory| (device.queue(memory.clone()).unwrap(), Box::new(dir)))
}

#[test]
fn null_conforms() {
    conforms(null);
}

#[test]
fn memory_conforms() {
    conforms(memory);
}

#[test]
fn file_conforms() {
    conforms(file);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn memory_follows_the_model(steps in steps()) {
        follows_the_model(&mut memory(), &steps);
    }

    #[test]
    fn file_follows_the_model(steps in steps()) {
        follows_the_model(&mut file(), &steps);
    }
}
