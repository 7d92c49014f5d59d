//! vhost-user-blk against a front end and driver of our own, well-behaved or not. QEMU's front end and Linux's driver are
//! tried by `.ci/guests`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::pattern;
use fido_core::memory::Memory;
use fido_core::testing::private_memory;
use mmblk::backend::memory::MemoryDevice;
use mmblk::export::vhost_user::client::{self, Client, FEATURES, Plan, READ, WRITE};
use mmblk::export::vhost_user::serving::Queue;
use mmblk::export::vhost_user::{Device, Export};
use mmblk::queue::Geometry;

const PATIENCE: Duration = Duration::from_secs(20);
const GEOMETRY: Geometry = Geometry { bytes: 4 << 20, block: 512, depth: 8 };
const PLAN: Plan = Plan { rings: 2, depth: 5, buffer: 8192, features: FEATURES };
/// Longer than it takes to notice, as the absence of something cannot be waited for.
const MOMENT: Duration = Duration::from_millis(100);

struct Rig {
    folder: tempfile::TempDir,
    memory: Memory,
    _export: Export,
}

impl Rig {
    fn new() -> Self {
        let device = MemoryDevice::new(GEOMETRY).unwrap();
        Self::of(|memory| Box::new(device.queue(memory).unwrap()))
    }

    fn of(queue: impl Fn(Memory) -> Queue) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let memory = private_memory(16 << 20);
        let queues = (0..2).map(|_| queue(memory.clone())).collect();
        let device = Device::new(memory.clone(), queues, "a-serial-number-that-is-long").unwrap();
        let export = Export::start(&folder.path().join("socket"), device).unwrap();
        Self { folder, memory, _export: export }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    fn client(&self) -> Client {
        let mut client = Client::connect(&self.path(), &PLAN).unwrap();
        client.start().unwrap();
        client
    }
}

/// Does one request in slot 0, and returns its status.
fn one(client: &mut Client, ring: usize, kind: u32, sector: u64, len: u32) -> u8 {
    let ring = &mut client.rings[ring];
    let before = ring.position();
    ring.submit(0, kind, sector, len);
    ring.kick(before);
    assert!(ring.wait(PATIENCE).unwrap(), "request {kind} at {sector} has not ended");
    ring.poll().unwrap().1
}

fn write(client: &mut Client, ring: usize, sector: u64, bytes: &[u8]) -> u8 {
    client.rings[ring].buffer(0).write(0, bytes);
    one(client, ring, WRITE, sector, bytes.len() as u32)
}

fn read(client: &mut Client, ring: usize, sector: u64, len: usize) -> Vec<u8> {
    assert_eq!(one(client, ring, READ, sector, len as u32), 0);
    let mut bytes = vec![0; len];
    client.rings[ring].buffer(0).read(0, &mut bytes);
    bytes
}

/// Both rings serve, and have what was written by the other.
fn works(client: &mut Client) {
    let data = pattern(1, 4096);
    assert_eq!(write(client, 0, 8, &data), 0);
    assert_eq!(read(client, 1, 8, 4096), data);
}

#[test]
fn requests_of_all_kinds_are_done() {
    let rig = Rig::new();
    let mut client = rig.client();
    works(&mut client);
    assert_eq!(one(&mut client, 0, client::FLUSH, 0, 0), 0);
    assert_eq!(one(&mut client, 0, client::IDENTIFY, 0, 20), 0);
    let mut id = [0; 20];
    client.rings[0].buffer(0).read(0, &mut id);
    assert_eq!(&id, b"a-serial-number-that");
    let range = |sector: u64, sectors: u32, flags: u32| {
        [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
    };
    for (kind, flags) in [(client::DISCARD, 0), (client::ZEROES, 1)] {
        assert_eq!(write(&mut client, 0, 8, &pattern(2, 4096)), 0);
        client.rings[0].buffer(0).write(0, &range(8, 8, flags));
        assert_eq!(one(&mut client, 0, kind, 0, 16), 0);
        assert_eq!(read(&mut client, 0, 8, 4096), vec![0; 4096]);
    }
    client.rings[0].buffer(0).write(0, &range(8, 8, 2));
    assert_eq!(one(&mut client, 0, client::ZEROES, 0, 16), 2, "unknown flags");
    assert_eq!(rig.memory.stats().payload_bytes_copied.get(), 0);
}

#[test]
fn what_cannot_be_done_gets_a_status() {
    let rig = Rig::new();
    let mut client = rig.client();
    let sectors = GEOMETRY.bytes / 512;
    assert_eq!(one(&mut client, 0, READ, sectors - 1, 512), 0);
    for (kind, sector, len, status) in [
        (READ, sectors, 512, 1),
        (WRITE, sectors - 1, 1024, 1),
        (READ, u64::MAX, 512, 1),
        (READ, u64::MAX / 512, 512, 1),
        (READ, 0, 511, 1),
        (WRITE, 0, 0, 1),
        (99, 0, 512, 2),
        (client::DISCARD, 0, 15, 2),
        (client::DISCARD, 0, 32, 2),
    ] {
        assert_eq!(one(&mut client, 0, kind, sector, len), status, "{kind} at {sector}, {len} bytes");
    }
    works(&mut client);
}

#[test]
fn the_configuration_is_the_devices() {
    let rig = Rig::new();
    let mut client = rig.client();
    let config = client.config(60).unwrap();
    assert_eq!(config[..8], (GEOMETRY.bytes / 512).to_le_bytes());
    assert_eq!(config[20..24], 512_u32.to_le_bytes());
    assert_eq!(config[34..36], 2_u16.to_le_bytes());
    assert_eq!(client.config(256).unwrap().len(), 256);
}

#[test]
fn a_ring_can_be_stopped_and_go_on() {
    let rig = Rig::new();
    let mut client = rig.client();
    works(&mut client);
    assert_eq!(client.stop_ring(0).unwrap(), 1);
    let before = client.rings[0].position();
    client.rings[0].submit(0, READ, 8, 4096);
    client.rings[0].kick(before);
    client.rings[0].ring_device();
    assert!(!client.rings[0].wait(MOMENT).unwrap(), "a stopped ring serves");
    client.start_ring(0).unwrap();
    assert!(client.rings[0].wait(PATIENCE).unwrap());
    assert_eq!(client.rings[0].poll(), Some((0, 0)));
    // The memory is handed over again while rings are served.
    client.share_memory().unwrap();
    works(&mut client);
}

#[test]
fn a_file_that_is_no_socket_is_never_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("precious");
    std::fs::write(&path, "data").unwrap();
    let device = MemoryDevice::new(GEOMETRY).unwrap();
    let memory = private_memory(16 << 20);
    let device = Device::new(memory.clone(), vec![Box::new(device.queue(memory).unwrap())], "disk").unwrap();
    assert!(Export::start(&path, device).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"data");
}

#[test]
fn front_ends_follow_each_other_and_leave_no_window() {
    let rig = Rig::new();
    for _ in 0..3 {
        works(&mut rig.client());
    }
    let mut old = rig.client();
    works(&mut old);
    let socket = old.socket().try_clone().unwrap();
    socket.shutdown(std::net::Shutdown::Both).unwrap();
    works(&mut rig.client());
}

#[test]
fn without_event_index_or_flush_it_works_too() {
    let rig = Rig::new();
    let few = FEATURES & (1 << 30 | 1 << 32);
    let mut client = Client::connect(&rig.path(), &Plan { features: few, ..PLAN }).unwrap();
    client.start().unwrap();
    works(&mut client);
}

#[test]
fn a_new_size_is_announced() {
    let device = MemoryDevice::new(GEOMETRY).unwrap();
    let rig = Rig::of(|memory| Box::new(device.queue(memory).unwrap()));
    let mut client = rig.client();
    client.listen().unwrap();
    works(&mut client);
    device.resize(2 * GEOMETRY.bytes).unwrap();
    assert_eq!(client.announcement().unwrap(), 2);
    assert_eq!(client.config(8).unwrap(), (2 * GEOMETRY.bytes / 512).to_le_bytes());
    assert_eq!(one(&mut client, 0, READ, GEOMETRY.bytes / 512, 512), 0);
    drop(client);
    device.resize(GEOMETRY.bytes).unwrap();
    assert_eq!(rig.client().config(8).unwrap(), (GEOMETRY.bytes / 512).to_le_bytes());
}

/// A ring that a guest has broken is reported, its neighbour serves, and set up anew it serves again.
fn breaks(what: &str, harm: impl FnOnce(&mut Client)) {
    let rig = Rig::new();
    let mut client = rig.client();
    works(&mut client);
    harm(&mut client);
    client.rings[0].ring_device();
    let error = &client.rings[0].error;
    let poll = rustix::event::PollFd::new(error, rustix::event::PollFlags::IN);
    let limit = rustix::event::Timespec::try_from(PATIENCE).unwrap();
    assert_eq!(rustix::event::poll(&mut [poll], Some(&limit)), Ok(1), "{what}: not noticed");
    let data = pattern(3, 512);
    assert_eq!(write(&mut client, 1, 0, &data), 0, "{what}");
    assert_eq!(read(&mut client, 1, 0, 512), data, "{what}");
    drop(client);
    works(&mut rig.client());
}

#[test]
fn a_hostile_guest_breaks_its_own_ring_only() {
    let table = Client::guest_address(0);
    let chain = |descriptors: &'static [(u64, u32, u16, u16)]| {
        move |client: &mut Client| {
            let ring = &mut client.rings[0];
            for (index, (at, len, flags, next)) in descriptors.iter().enumerate() {
                ring.describe(index as u16, *at, *len, *flags, *next);
            }
            ring.offer(0);
        }
    };
    let (near, far) = (1 << 30, 1 << 50);
    assert_eq!(near, table);
    breaks("an index far ahead", |client| client.rings[0].available.store_u16(2, 999, Ordering::Release));
    breaks("a head that does not exist", |client| client.rings[0].offer(16));
    breaks("a chain in a circle", chain(&[(1 << 30, 16, 1, 1), (1 << 30, 16, 1, 0)]));
    breaks("a next that does not exist", chain(&[(1 << 30, 16, 1, 16)]));
    breaks("memory that is not there", chain(&[(1 << 50, 16, 0, 0)]));
    breaks("memory that ends", chain(&[(1 << 30, u32::MAX, 0, 0)]));
    breaks("an address that wraps", chain(&[(u64::MAX - 3, 16, 0, 0)]));
    breaks("to read after to write", chain(&[(1 << 30, 16, 3, 1), (1 << 30, 16, 0, 0)]));
    breaks("a table that is not alone", chain(&[(1 << 30, 32, 5, 1), (1 << 30, 16, 0, 0)]));
    breaks("a table of half a descriptor", chain(&[(1 << 30, 24, 4, 0)]));
    breaks("an empty table", chain(&[(1 << 30, 0, 4, 0)]));
    breaks("a table with more entries than allowed", chain(&[(1 << 30, 16 * 1025, 4, 0)]));
    // The ring's own descriptors begin at that address, so the table has itself in it.
    breaks("a table in a table", chain(&[(1 << 30, 32, 4, 0)]));
    breaks("a table that is not there", chain(&[(1 << 50, 32, 4, 0)]));
    assert_ne!(near, far);
}

/// What the device does with a connection on which somebody says `bytes`.
fn says(rig: &Rig, bytes: &[u8]) -> bool {
    let client = Client::connect(&rig.path(), &PLAN).unwrap();
    let mut socket = client.socket();
    socket.write_all(bytes).unwrap();
    // Something that is always answered: what comes back is that, or the end.
    let _ = socket.write_all(&client::message(1, &[]));
    socket.read_exact(&mut [0; 20]).is_ok()
}

#[test]
fn a_front_end_that_breaks_the_rules_is_disconnected() {
    let rig = Rig::new();
    let number = |value: u64| value.to_le_bytes();
    let table = |count: u32| [&count.to_le_bytes()[..], &[0; 4], &[0; 32]].concat();
    assert!(says(&rig, &client::message(2, &number(1 << 32))), "a message that is right");
    for (what, bytes) in [
        ("unknown request", client::message(77, &[])),
        ("too short", client::message(2, &[0; 7])),
        ("too long", client::message(2, &[0; 9])),
        ("beyond all limits", [&client::message(2, &[])[..8], &u32::MAX.to_le_bytes()].concat()),
        ("another version", [2_u32, 2, 0].into_iter().flat_map(u32::to_le_bytes).collect()),
        ("an answer", [2_u32, 5, 0].into_iter().flat_map(u32::to_le_bytes).collect()),
        ("features that were not offered", client::message(2, &number(1 << 50))),
        ("memory without files", client::message(5, &table(1))),
        ("no memory", client::message(5, &table(0))),
        ("memory in too many regions", client::message(5, &table(9))),
        ("a ring that does not exist", client::message(8, &[[2, 0, 0, 0], [8, 0, 0, 0]].concat())),
        ("a ring of no places", client::message(8, &[0; 8])),
        ("a ring of three places", client::message(8, &[[0, 0, 0, 0], [3, 0, 0, 0]].concat())),
        ("a position beyond", client::message(10, &[[0, 0, 0, 0], [0, 0, 1, 0]].concat())),
        ("half enabled", client::message(18, &[[0, 0, 0, 0], [2, 0, 0, 0]].concat())),
        ("a kick without a file", client::message(12, &number(0))),
        ("a kick of a ring that does not exist", client::message(12, &number(1 << 8 | 2))),
        ("a dirty log", client::message(6, &[0; 16])),
        (
            "a configuration that is too long",
            client::message(24, &[&[0; 4][..], &300_u32.to_le_bytes(), &[0; 304]].concat()),
        ),
        ("a configuration to be changed", client::message(25, &[&[0; 4][..], &[1, 0, 0, 0], &[0; 5]].concat())),
        ("a note without a file", client::message(32, &[0; 20])),
    ] {
        assert!(!says(&rig, &bytes), "{what}");
    }
    works(&mut rig.client());
}
