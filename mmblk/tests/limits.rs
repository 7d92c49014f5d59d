//! Requests at the limits and one past them, through a lane, on each back end, with blocks of 512 and of 4096 bytes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::link::{Served, connect};
use common::{completions, pattern};
use fido_core::assignment::Transport;
use fido_core::memory::Memory;
use fido_core::payload::{MAX_SEGMENTS, Payload};
use fido_core::testing::TestLink;
use mmblk::device::open_text;
use mmblk::link::back::BackEnd;
use mmblk::link::front::LinkQueue;
use mmblk::queue::{BlockError, BlockOp, BlockQueue, MAX_REQUEST_BYTES};

/// Devices of 5 MiB.
const BYTES: u64 = 5 << 20;

/// `total` bytes in so many segments, which do not touch each other; what they say is that of one buffer, repeated.
fn segments(memory: &Memory, count: usize, total: usize) -> (Payload, Vec<u8>) {
    let (each, mut all, mut bytes) = (total / count, Payload::new(), Vec::with_capacity(total));
    let mut buf = memory.alloc(2 * total.div_ceil(count) + 4096).unwrap();
    let content = pattern(9, buf.len());
    buf.as_mut_slice().copy_from_slice(&content);
    let whole = buf.into_payload();
    for index in 0..count {
        let len = if index + 1 == count { total - bytes.len() } else { each + index % 2 };
        // At odd places, and never behind the one before.
        let at = 1 + index % 7 * 3;
        all.append(whole.slice(at as u64, len as u64).unwrap());
        bytes.extend_from_slice(&content[at..at + len]);
    }
    assert_eq!((all.parts().len(), all.len()), (count, total as u64));
    (all, bytes)
}

fn one(queue: &mut LinkQueue, op: BlockOp) -> Result<Payload, BlockError> {
    assert!(queue.submit(1, op).is_ok());
    completions(queue, 1).pop().unwrap().result
}

/// Whether it is refused as too large.
fn is_too_large(result: Result<Payload, BlockError>) -> bool {
    matches!(result, Err(BlockError::Size { .. }))
}

fn holds_on(text: &str, block: u32, stores: bool) {
    let (_link, a, b) = TestLink::sized(64, Transport::Pointer, 32 << 20);
    let memory = a.memory().clone();
    let queue = open_text(text).unwrap().queue(b.memory()).unwrap();
    let _served = Served::new(BackEnd::new(b, queue).unwrap());
    let mut queue = connect(a);
    assert_eq!((queue.geometry().bytes, queue.geometry().block), (BYTES, block));
    assert!(queue.features().preferred_block >= block);

    // As many bytes in as many segments as there may be.
    let most = MAX_REQUEST_BYTES as usize;
    let (data, bytes) = segments(&memory, MAX_SEGMENTS, most);
    let offset = BYTES - u64::from(MAX_REQUEST_BYTES);
    one(&mut queue, BlockOp::Write { offset, data, durable: true }).unwrap();
    let data = one(&mut queue, BlockOp::Read { offset, len: MAX_REQUEST_BYTES }).unwrap();
    let mut found = vec![0; most];
    assert_eq!(memory.read_header(&data, 0, &mut found).unwrap(), most);
    assert!(!stores || found == bytes, "{text}");
    drop(data);

    // One block too many, one segment too many.
    let (data, _) = segments(&memory, MAX_SEGMENTS, most + block as usize);
    assert!(is_too_large(one(&mut queue, BlockOp::Write { offset: 0, data, durable: false })));
    assert!(is_too_large(one(&mut queue, BlockOp::Read { offset: 0, len: MAX_REQUEST_BYTES + block })));
    let (data, _) = segments(&memory, MAX_SEGMENTS + 1, 512 << 10);
    assert!(is_too_large(one(&mut queue, BlockOp::Write { offset: 0, data, durable: false })));

    // The last block, and the one behind it; a block less a byte, and half a block.
    let last = BYTES - u64::from(block);
    one(&mut queue, BlockOp::Read { offset: last, len: block }).unwrap();
    let outside = one(&mut queue, BlockOp::Read { offset: BYTES, len: block }).unwrap_err();
    assert_eq!(outside, BlockError::OutOfRange { offset: BYTES, len: block.into() });
    for (offset, len) in [(0, block - 1), (u64::from(block) / 2, block), (0, block / 2)] {
        let error = one(&mut queue, BlockOp::Read { offset, len }).unwrap_err();
        assert_eq!(error, BlockError::Misaligned { offset, len: len.into() });
    }

    // What has no such limit takes all at once.
    for unmap in [false, true] {
        one(&mut queue, BlockOp::WriteZeroes { offset: 0, len: BYTES, durable: true, unmap }).unwrap();
        let data = one(&mut queue, BlockOp::Read { offset, len: MAX_REQUEST_BYTES }).unwrap();
        memory.read_header(&data, 0, &mut found).unwrap();
        assert!(found.iter().all(|byte| *byte == 0), "{text}");
    }
    one(&mut queue, BlockOp::Discard { offset: 0, len: BYTES }).unwrap();
    assert_eq!(memory.stats().payload_bytes_copied.get(), 0);
}

#[test]
fn null() {
    for block in [512, 4096] {
        holds_on(&format!("null:{BYTES},block={block}"), block, false);
    }
}

#[test]
fn memory() {
    for block in [512, 4096] {
        holds_on(&format!("memory:{BYTES},block={block}"), block, true);
    }
}

#[test]
fn file() {
    let folder = tempfile::tempdir().unwrap();
    for block in [512, 4096] {
        let image = folder.path().join(block.to_string());
        holds_on(&format!("file:{},create={BYTES},block={block}", image.display()), block, true);
    }
}
