//! Payload in foreign memory: a virtual machine's, which the device reads and writes without a copy of ours.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::time::Duration;

use common::{GEOMETRY, Rig, pattern};
use fido_core::addr::Generation;
use fido_core::foreign::{Foreign, Landing, Region};
use fido_core::memory::Memory;
use fido_core::payload::Payload;
use mmblk::backend::file::{FileDevice, FileOptions};
use mmblk::backend::memory::{MemoryDevice, MemoryQueue};
use mmblk::backend::null::NullQueue;
use mmblk::layer::Kind;
use mmblk::layer::delay::Spread;
use mmblk::layer::fault::{Effect, Fault, Faults, Rule};
use mmblk::queue::{BlockError, BlockOp, BlockQueue};

const BLOCK: u32 = GEOMETRY.block;

fn guest() -> Foreign {
    let file = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&file, 1 << 20).unwrap();
    rustix::fs::fcntl_add_seals(&file, rustix::fs::SealFlags::SHRINK).unwrap();
    let region = Region { guest: 0, user: 0, len: 1 << 20, offset: 0, file };
    Foreign::map(Generation::FIRST, &[region]).unwrap()
}

fn landing(guest: &Foreign, pieces: &[(u64, u32)]) -> Landing {
    let mut landing = Landing::default();
    pieces.iter().for_each(|(at, len)| landing.push(guest.guest(*at, *len).unwrap()));
    landing
}

fn bytes(guest: &Foreign, at: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    assert_eq!(guest.guest(at, len as u32).unwrap().read(0, &mut out), len);
    out
}

fn reaches<Q: BlockQueue>(rig: &mut Rig<Q>, stores: bool) {
    assert!(rig.queue.reaches_foreign());
    let guest = guest();
    rig.memory.windows().insert(guest.window().clone());
    let len = 3 * BLOCK as usize;
    let data = pattern(7, len);
    // Both ways in pieces without any alignment.
    let (cut, rest) = data.split_at(5);
    guest.guest(1, 5).unwrap().write(0, cut);
    guest.guest(1001, rest.len() as u32).unwrap().write(0, rest);
    let mut payload = Payload::new();
    payload.push(guest.guest(1, 5).unwrap().segment(), None);
    payload.push(guest.guest(1001, rest.len() as u32).unwrap().segment(), None);
    rig.one(BlockOp::Write { offset: BLOCK.into(), data: payload, durable: false }).unwrap();

    let pieces = [(0x8003, 1), (0x9001, len as u32 - 1)];
    rig.queue.read_into(1, BLOCK.into(), landing(&guest, &pieces)).unwrap();
    rig.queue.flush_submissions();
    let done = rig.completions(1).remove(0);
    assert!(done.result.unwrap().is_empty());
    let expected = if stores { data } else { vec![0; len] };
    assert_eq!([bytes(&guest, 0x8003, 1), bytes(&guest, 0x9001, len - 1)].concat(), expected);
    assert_eq!((bytes(&guest, 0x8002, 1), bytes(&guest, 0x8004, 1)), (vec![0], vec![0]), "and no byte beside");
    assert_eq!(rig.memory.stats().payload_bytes_copied.get(), 0);
    assert_eq!(rig.memory.stats().payload_bytes.get(), 2 * len as u64);

    for (offset, len, expected) in [(GEOMETRY.bytes, BLOCK, "beyond"), (0, BLOCK - 1, "multiple"), (0, 0, "limits")] {
        rig.queue.read_into(2, offset, landing(&guest, &[(0, len)])).unwrap();
        let error = rig.completions(1).remove(0).result.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    let many: Vec<_> = (0..257).map(|n| (n * 8192 % (1 << 20), BLOCK)).collect();
    rig.queue.read_into(3, 0, landing(&guest, &many)).unwrap();
    assert!(matches!(rig.completions(1).remove(0).result, Err(BlockError::Size { segments: 257, .. })));

    let full =
        (0..=GEOMETRY.depth).map_while(|n| rig.queue.read_into(n.into(), 0, landing(&guest, &[(0, BLOCK)])).ok());
    assert_eq!(full.count(), GEOMETRY.depth as usize);
    rig.queue.flush_submissions();
    rig.completions(GEOMETRY.depth as usize);
}

#[test]
fn null_reaches_it() {
    reaches(&mut Rig::local(false, |memory| (NullQueue::new(GEOMETRY, memory.clone()).unwrap(), Box::new(()))), false);
}

#[test]
fn memory_reaches_it() {
    let device = MemoryDevice::new(GEOMETRY).unwrap();
    reaches(&mut Rig::local(true, |memory| (device.queue(memory.clone()).unwrap(), Box::new(()))), true);
}

#[test]
fn a_file_reaches_it() {
    let dir = tempfile::tempdir().unwrap();
    let options = FileOptions {
        create_bytes: Some(GEOMETRY.bytes),
        block: BLOCK,
        depth: GEOMETRY.depth,
        ..FileOptions::new(dir.path().join("image"))
    };
    let device = FileDevice::open(&options).unwrap();
    reaches(&mut Rig::local(true, |memory| (device.queue(memory.clone()).unwrap(), Box::new(dir))), true);
}

/// Memory to which things happen.
fn faulty(rules: Vec<Rule>) -> (Rig<Fault<MemoryQueue>>, Faults) {
    let faults = Faults::new(1, rules);
    let device = MemoryDevice::new(GEOMETRY).unwrap();
    let queue = |memory: &Memory| Fault::new(device.queue(memory.clone()).unwrap(), faults.clone()).unwrap();
    (Rig::local(true, |memory: &Memory| (queue(memory), Box::new(()))), faults)
}

#[test]
fn a_device_to_which_nothing_happens_or_that_stalls() {
    reaches(&mut faulty(Vec::new()).0, true);
    let short = Spread::of(Duration::from_micros(300));
    reaches(&mut faulty(vec![Rule::always(&Kind::ALL, Effect::Stall(short))]).0, true);
}

#[test]
fn reads_into_foreign_memory_fail_as_others_do() {
    const BAD: BlockError = BlockError::Io { errno: libc::ENODATA };
    let once = Rule { times: Some(1), ..Rule::always(&[Kind::Read], Effect::Fail(BAD)) };
    let die = Rule { after: 1, ..Rule::always(&[Kind::Read], Effect::Die) };
    let (mut rig, faults) = faulty(vec![once, die]);
    let guest = guest();
    let mut read = || {
        rig.queue.read_into(1, 0, landing(&guest, &[(0, BLOCK)])).unwrap();
        rig.queue.flush_submissions();
        rig.completions(1).remove(0).result.map(|data| data.len())
    };
    assert_eq!([read(), read()], [Err(BAD), Ok(0)]);
    const DEAD: BlockError = BlockError::Io { errno: libc::EIO };
    assert_eq!((read(), faults.is_dead(), faults.injected()), (Err(DEAD), true, 2));
    assert_eq!(read(), Err(DEAD), "dead as it is");
}
