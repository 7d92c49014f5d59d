//! Bodies of the fuzz targets over what a front end and a guest say. Property tests run them too, where there is no
//! fuzzer.

#![expect(clippy::expect_used, reason = "a fuzz target says by a panic that a promise is broken")]

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use fido_core::addr::Generation;
use fido_core::foreign::{Foreign, Region};
use fido_core::memory::Memory;
use fido_core::testing::private_memory;
use rustix::event::EventfdFlags;
use rustix::fs::{MemfdFlags, SealFlags};

use super::Device;
use super::inflight::{self, Inflight};
use super::message::{Head, InflightPlan, Request, RingAddresses};
use super::ring::Ring;
use super::serving::{Parts, Queue, Serving};
use super::session::Session;
use crate::backend::memory::MemoryDevice;
use crate::backend::null::NullQueue;
use crate::queue::Geometry;

const GEOMETRY: Geometry = Geometry { bytes: 64 << 10, block: 512, depth: 4 };
const PAGES: u64 = 4;
const PAGE: u64 = 4096;
const PLACES: u16 = 8;
/// More steps than a ring has places, so that positions wrap.
const STEPS: usize = 24;

fn guest_file() -> OwnedFd {
    let file = rustix::fs::memfd_create("fuzz", MemfdFlags::ALLOW_SEALING).expect("memory");
    rustix::fs::ftruncate(&file, PAGES * PAGE).expect("memory");
    rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK).expect("a seal");
    file
}

/// Messages of a front end, one after the other: a byte for the descriptors, two for the request and the length, a body.
/// Each is done or refused.
pub fn messages(mut data: &[u8]) {
    let memory = private_memory(1 << 20);
    let queues =
        (0..2).map(|_| Box::new(NullQueue::new(GEOMETRY, memory.clone()).expect("a queue")) as Queue).collect();
    let mut device = Device::new(memory, queues, "fuzz").expect("a device");
    let mut session = Session::new(&mut device);
    let mut files: Vec<OwnedFd> = Vec::new();
    for _ in 0..64 {
        let [kinds, request, len, rest @ ..] = data else { break };
        let (body, after) = rest.split_at(rest.len().min(usize::from(*len)));
        data = after;
        let mut head = [0; 12];
        head[..12.min(body.len())].copy_from_slice(&body[..12.min(body.len())]);
        let _ = Head::parse(&head);
        let fds = (0..kinds & 3).map(|n| match (kinds >> (2 + 2 * n)) & 3 {
            0 => guest_file(),
            1 => rustix::event::eventfd(0, EventfdFlags::empty()).expect("an eventfd"),
            2 => files.last().and_then(|file| file.try_clone().ok()).unwrap_or_else(guest_file),
            _ => std::fs::File::open("/dev/null").expect("a file").into(),
        });
        if let Ok(request) = Request::parse(u32::from(request % 40), body, fds.collect())
            && let Ok(reply) = session.handle(request)
        {
            let bytes = reply.bytes(1, true).expect("an acknowledgement, if nothing else");
            assert!(bytes.len() >= 12);
            files.extend(reply.fd().and_then(|fd| fd.try_clone().ok()));
        }
    }
}

/// A guest's memory with any content, changed at any time: its ring is served or broken, and never more than the memory
/// and the device is touched. The first byte says which features there are, then come writes to the memory: a place and
/// a word, each followed by a round of serving.
pub fn guest(data: &[u8]) {
    let [flags, rest @ ..] = data else { return };
    let memory = private_memory(1 << 20);
    let device = MemoryDevice::new(GEOMETRY).expect("a device");
    let queue: Queue = Box::new(device.queue(memory.clone()).expect("a queue"));
    let region = Region { guest: 0, user: 0, len: PAGES * PAGE, offset: 0, file: guest_file() };
    let guest = Arc::new(Foreign::map(Generation::FIRST, &[region]).expect("memory"));
    memory.windows().insert(guest.window().clone());
    let area = guest.guest(0, (PAGES * PAGE) as u32).expect("all of it");
    // The first part of the input is the memory's beginning, where the ring is; the rest are changes.
    let (content, changes) = rest.split_at(rest.len().min(512));
    area.write(0, content);
    let at = RingAddresses { descriptors: 0, available: 128, used: 192 };
    let Ok(ring) = Ring::new(&guest, at, PLACES.into(), u16::from(flags >> 4), flags & 1 != 0) else { return };
    let notes = (flags & 2 != 0).then(|| notes(content));
    let parts = Parts { ring, guest, notes, memory: memory.clone(), queue, write_through: flags & 4 != 0, id: [1; 20] };
    let mut serving = Serving::new(parts);
    let mut changes = changes.chunks_exact(6);
    for _ in 0..STEPS {
        if serving.take(true).is_err() {
            break;
        }
        serving.give_back(|| ());
        if let Some(&[low, high, a, b, c, d]) = changes.next() {
            let place = (usize::from(u16::from_le_bytes([low, high])) % area.len()) & !3;
            area.store_u32(place, u32::from_le_bytes([a, b, c, d]), Ordering::Release);
        }
    }
    settles(serving, &memory);
}

/// What was taken ends.
fn settles(mut serving: Serving, memory: &Memory) {
    for _ in 0..STEPS {
        serving.give_back(|| ());
    }
    assert!(!serving.has_flights(), "requests do not end");
    assert_eq!(memory.heap().used(), 0, "buffers are lost");
    let (mut queue, _) = serving.end();
    assert!(queue.poll().is_none());
}

/// Notes with any content.
fn notes(content: &[u8]) -> inflight::Notes {
    let plan = InflightPlan { bytes: 0, offset: 0, queues: 1, places: PLACES, body: 24 };
    let (plan, file) = inflight::create(plan, 1).expect("memory");
    rustix::io::pwrite(&file, &content[..content.len().min(plan.bytes as usize)], 0).expect("a write");
    Inflight::open(plan, file, 1).expect("what was just made").queue(0, PLACES).expect("its only queue")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    /// A descriptor that makes sense often enough to get beyond the first checks.
    fn descriptor() -> impl Strategy<Value = Vec<u8>> {
        let at = prop_oneof![0..20_000_u64, any::<u64>()];
        let len = prop_oneof![Just(16_u32), Just(512), Just(1), 0..2000_u32, any::<u32>()];
        (at, len, 0..8_u16, 0..10_u16).prop_map(|(at, len, flags, next)| {
            [&at.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat()
        })
    }

    /// Eight descriptors, then the available ring.
    fn memory() -> impl Strategy<Value = Vec<u8>> {
        let table = proptest::collection::vec(descriptor(), 8);
        let available = proptest::collection::vec(0..9_u16, 9);
        (any::<u8>(), table, 0..10_u16, available, proptest::collection::vec(any::<u8>(), 0..700)).prop_map(
            |(flags, table, index, available, rest)| {
                let mut bytes = vec![flags & 0x0f];
                bytes.extend(table.concat());
                bytes.extend_from_slice(&[0, 0]);
                bytes.extend_from_slice(&index.to_le_bytes());
                available.iter().for_each(|head| bytes.extend_from_slice(&head.to_le_bytes()));
                bytes.extend(rest);
                bytes
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn any_guest_is_served_or_refused(bytes in memory()) {
            super::guest(&bytes);
        }

        #[test]
        fn any_bytes_of_a_guest_are_served_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..1200)) {
            super::guest(&bytes);
        }

        #[test]
        fn any_messages_are_done_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..1200)) {
            super::messages(&bytes);
        }
    }
}
