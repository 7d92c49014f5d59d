//! A device that gets another size while it is in use: every front end hears of it, asleep or not.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::time::{Duration, Instant};

use common::{GEOMETRY, PATIENCE, completions};
use fido_core::assignment::WaitStrategy;
use fido_core::crew::{Crew, Limits as CrewLimits};
use fido_core::lane::Lane;
use fido_core::memory::Memory;
use fido_core::testing::mesh;
use fido_core::waiter::Waiter;
use mmblk::backend::file::{FileDevice, FileOptions};
use mmblk::backend::memory::MemoryDevice;
use mmblk::link::back::{BackEnd, Limits};
use mmblk::link::front::LinkQueue;
use mmblk::queue::{BlockError, BlockOp, BlockQueue, Geometry};

/// Sleeps until the queue says that the device has another size.
fn hears_of(queue: &mut impl BlockQueue) -> Geometry {
    let deadline = Instant::now() + PATIENCE;
    let mut waiter = Waiter::new(WaitStrategy::Sleep).unwrap();
    loop {
        assert!(queue.poll().is_none());
        if let Some(geometry) = queue.resized() {
            assert_eq!((queue.geometry(), queue.resized()), (geometry, None));
            return geometry;
        }
        assert!(Instant::now() < deadline, "no news came");
        queue.flush_submissions();
        waiter.idle(&mut [queue], Some(PATIENCE)).unwrap();
    }
}

fn read(queue: &mut impl BlockQueue, offset: u64) -> Result<u64, BlockError> {
    assert!(queue.submit(1, BlockOp::Read { offset, len: 512 }).is_ok());
    completions(queue, 1).pop().unwrap().result.map(|data| data.len())
}

/// What all must see while `resize` changes the size.
fn is_seen_by<Q: BlockQueue>(queues: &mut [Q], resize: impl Fn(u64)) {
    for bytes in [GEOMETRY.bytes * 2, GEOMETRY.bytes / 2, GEOMETRY.bytes] {
        resize(bytes);
        for queue in queues.iter_mut() {
            assert_eq!(hears_of(queue), Geometry { bytes, ..GEOMETRY });
            assert_eq!(read(queue, bytes - 512), Ok(512));
            assert_eq!(read(queue, bytes), Err(BlockError::OutOfRange { offset: bytes, len: 512 }));
        }
    }
}

/// Two front ends over lanes, served by a thread that sleeps most of the time.
fn over_links<Q: BlockQueue + Send + 'static>(queue: impl Fn(&Memory) -> Q) -> (Vec<LinkQueue>, Crew<BackEnd<Q>>) {
    let mut nodes = mesh(3, &[(0, 1), (0, 2)], 64, 16 << 20);
    let users: Vec<Lane> = nodes.drain(1..).flat_map(|node| node.lanes).collect();
    let server = nodes.pop().unwrap();
    let back = |lane: Lane| BackEnd::group(vec![(lane, queue(&server.memory))], Limits::NONE).unwrap();
    let backs = server.lanes.into_iter().flat_map(back).collect();
    let limits = CrewLimits { least: 1, most: 1, lull: Duration::from_secs(1) };
    let crew = Crew::start(limits, || Waiter::new(WaitStrategy::Sleep), backs).unwrap();
    (users.into_iter().map(|lane| LinkQueue::connect(lane, PATIENCE).unwrap()).collect(), crew)
}

fn file(dir: &tempfile::TempDir) -> (FileDevice, impl Fn(u64)) {
    let path = dir.path().join("image");
    let options = FileOptions {
        create_bytes: Some(GEOMETRY.bytes),
        block: GEOMETRY.block,
        depth: GEOMETRY.depth,
        ..FileOptions::new(&path)
    };
    let device = FileDevice::open(&options).unwrap();
    let resized = device.clone();
    let resize = move |bytes| {
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(bytes).unwrap();
        assert_eq!(resized.refresh().unwrap().bytes, bytes);
    };
    (device, resize)
}

#[test]
fn of_a_memory_device() {
    let device = MemoryDevice::new(GEOMETRY).unwrap();
    let memory = fido_core::testing::private_memory(2 << 20);
    let mut queues: Vec<_> = (0..2).map(|_| device.queue(memory.clone()).unwrap()).collect();
    is_seen_by(&mut queues, |bytes| device.resize(bytes).unwrap());
    assert!(device.resize(GEOMETRY.bytes + 1).is_err());
    assert_eq!(device.geometry(), GEOMETRY);
}

#[test]
fn of_an_image() {
    let dir = tempfile::tempdir().unwrap();
    let (device, resize) = file(&dir);
    let memory = fido_core::testing::private_memory(2 << 20);
    let mut queues: Vec<_> = (0..2).map(|_| device.queue(memory.clone()).unwrap()).collect();
    is_seen_by(&mut queues, resize);
}

#[test]
fn of_an_image_behind_links() {
    let dir = tempfile::tempdir().unwrap();
    let (device, resize) = file(&dir);
    let (mut queues, _crew) = over_links(|memory| device.queue(memory.clone()).unwrap());
    is_seen_by(&mut queues, resize);
}

#[test]
fn of_a_memory_device_behind_links() {
    let device = MemoryDevice::new(GEOMETRY).unwrap();
    let (mut queues, _crew) = over_links(|memory| device.queue(memory.clone()).unwrap());
    is_seen_by(&mut queues, |bytes| device.resize(bytes).unwrap());
}
