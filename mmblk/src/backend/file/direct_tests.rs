//! Direct requests to a real file. They need a file system that can do it: TMPDIR must not be one in memory on kernels
//! whose `tmpfs` cannot (before Linux 6.6).

use fido_core::memory::Memory;
use fido_core::payload::Payload;
use fido_core::testing::private_memory;
use tempfile::TempDir;

use super::tests::{BYTES, filled, options, poll_until, submit};
use super::{FileDevice, FileError, FileOptions, FileQueue, WaysTaken};
use crate::queue::BlockOp;

fn open() -> (TempDir, Memory, FileQueue) {
    let dir = tempfile::tempdir().unwrap();
    let device = match FileDevice::open(&FileOptions { direct: true, ..options(&dir) }) {
        Err(error @ FileError::NoDirect { .. }) => panic!("{error}: set TMPDIR to a folder on a disk for this test"),
        other => other.unwrap(),
    };
    let memory = private_memory(16 << 20);
    let queue = device.queue(memory.clone()).unwrap();
    (dir, memory, queue)
}

fn write(queue: &mut FileQueue, offset: u64, data: Payload) {
    submit(queue, 1, BlockOp::Write { offset, data, durable: false });
    poll_until(queue).result.unwrap();
}

fn read(queue: &mut FileQueue, memory: &Memory, offset: u64, len: u32) -> Vec<u8> {
    submit(queue, 2, BlockOp::Read { offset, len });
    let data = poll_until(queue).result.unwrap();
    let mut found = vec![0; len as usize];
    assert_eq!(memory.read_header(&data, 0, &mut found), Ok(len as usize));
    found
}

/// Payload that begins one byte behind a page.
fn unaligned(memory: &Memory, byte: u8, len: usize) -> Payload {
    filled(memory, byte, len + 4096).slice(1, len as u64).unwrap()
}

#[test]
fn aligned_payload_of_the_own_arena_goes_directly_and_registered() {
    let (dir, memory, mut queue) = open();
    write(&mut queue, 8192, filled(&memory, 7, 128 << 10));
    assert_eq!(queue.ways_taken(), WaysTaken { cached: 0, direct: 1, registered: 1 });
    assert_eq!(read(&mut queue, &memory, 4096, 8192), [vec![0; 4096], vec![7; 4096]].concat());
    assert_eq!(queue.ways_taken(), WaysTaken { cached: 0, direct: 2, registered: 2 });
    let image = std::fs::read(dir.path().join("image")).unwrap();
    assert!(image[8192..8192 + (128 << 10)].iter().all(|byte| *byte == 7));
    assert_eq!(memory.stats().snapshot().payload_bytes_copied, 0);
}

#[test]
fn a_peers_payload_goes_directly_from_its_window() {
    let (_dir, memory, mut queue) = open();
    let peer = private_memory(4 << 20);
    // Both are domain 1 of their own tests; the peer's arena stands in for this one's window of it.
    let own = queue.memory().clone();
    own.windows().insert(peer.arena().window().clone());
    let mut data = filled(&peer, 8, 4096);
    data.append(filled(&peer, 9, 8192));
    write(&mut queue, 0, data);
    let taken = queue.ways_taken();
    assert_eq!((taken.cached, taken.direct, taken.registered), (0, 1, 0));
    own.windows().insert(memory.arena().window().clone());
    assert_eq!(read(&mut queue, &memory, 0, 12288), [vec![8; 4096], vec![9; 8192]].concat());
}

#[test]
fn unaligned_payload_goes_through_the_page_cache_and_both_ways_see_the_same() {
    let (_dir, memory, mut queue) = open();
    write(&mut queue, 0, filled(&memory, 1, 4096));
    write(&mut queue, 0, unaligned(&memory, 2, 4096));
    assert_eq!(queue.ways_taken().cached, 1);
    assert_eq!(read(&mut queue, &memory, 0, 4096), [2; 4096], "directly, after the page cache");
    write(&mut queue, 0, filled(&memory, 3, 4096));
    write(&mut queue, 4096, unaligned(&memory, 4, 4096));
    assert_eq!(read(&mut queue, &memory, 0, 8192), [vec![3; 4096], vec![4; 4096]].concat());
    assert_eq!((queue.ways_taken().cached, queue.ways_taken().direct), (2, 4));
}

#[test]
fn a_device_in_blocks_below_those_of_direct_requests_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let options = FileOptions { direct: true, block: 256, ..options(&dir) };
    match FileDevice::open(&options) {
        Err(FileError::NoDirect { path, reason }) => {
            assert_eq!(path, options.path);
            assert!(reason.contains("256"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    assert!(FileDevice::open(&FileOptions { direct: false, ..options }).is_ok());
    assert_eq!(BYTES % 256, 0);
}
