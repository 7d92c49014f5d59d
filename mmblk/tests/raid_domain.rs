//! `mmblk-disk` with a RAID 5 of image files, killed in the middle of partial-stripe writes while a member is lost, over and
//! over, with real processes under the real manager, and two front ends over two lanes each. One is greedy; the other goes
//! on and finds every byte that was acknowledged. Between the rounds the lost image is replaced by an empty one and
//! rebuilt.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use conn_mgr::manager::{Manager, Options, Status};
use conn_mgr::manifest::Manifest;
use fido_core::domain::{Domain, Notice};
use fido_core::memory::Memory;
use fido_core::payload::Payload;
use fido_core::platform::host::protocol::SOCKET_VARIABLE;
use fido_core::testing::private_memory;
use fido_core::wait::Source;
use mmblk::backend::file::{FileDevice, FileOptions};
use mmblk::backend::raid::assemble::assemble;
use mmblk::backend::raid::create::{CreateOptions, create};
use mmblk::backend::raid::layout::Level;
use mmblk::backend::raid::superblock::Role;
use mmblk::backend::raid::{MemberQueue, RaidOptions};
use mmblk::link::device::LinkDevice;
use mmblk::link::front::LinkQueue;
use mmblk::queue::{BlockCompletion, BlockOp, BlockQueue};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
const MEMBERS: usize = 4;
const CHUNK: u32 = 16 << 10;
const LOG_BYTES: u64 = 512 << 10;
const STRIPES: u64 = 64;
const SECTOR: usize = 512;
/// Kills with a failing member, if `RAID_ROUNDS` does not say another number.
const ROUNDS: u64 = 3;
/// Requests of the user in flight.
const WINDOW: usize = 8;
/// Writes between two looks at everything.
const BATCH: u64 = 150;

/// Becomes a domain when the manager starts this program again.
#[test]
fn component() {
    if std::env::var_os(SOCKET_VARIABLE).is_some() {
        let domain = Domain::join().unwrap();
        match domain.name() {
            "greedy" => greedy(&domain),
            _ => user(&domain),
        }
        std::process::exit(0);
    }
}

fn image(folder: &Path, member: usize) -> PathBuf {
    folder.join(format!("member{member}"))
}

fn bytes() -> u64 {
    (1 << 20) + STRIPES * u64::from(CHUNK)
}

fn open(folder: &Path, member: usize) -> FileDevice {
    let options = FileOptions { create_bytes: Some(bytes()), block: 512, ..FileOptions::new(image(folder, member)) };
    FileDevice::open(&options).unwrap()
}

/// What a write has put into a sector.
fn content(number: u64, sector: u64) -> [u8; SECTOR] {
    if number == 0 {
        return [0; SECTOR];
    }
    std::array::from_fn(|i| {
        ((number << 20 | sector).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(i as u32 % 61) >> 7) as u8
    })
}

/// The user of the disk, and what it knows to be on it.
struct User {
    queues: Vec<LinkQueue>,
    memory: Memory,
    known: Vec<u64>,
    flying: BTreeMap<u64, (u64, u64, bool)>,
    next: u64,
    random: u64,
}

impl User {
    fn random(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % below
    }

    /// Starts a write or a read of a part of the disk that nothing is in flight on.
    fn start(&mut self, at: u64, count: u64, is_write: bool) -> bool {
        let is_free = |(first, len, _): &(u64, u64, bool)| at + count <= *first || first + len <= at;
        if count == 0 || !self.flying.values().all(is_free) {
            return false;
        }
        self.next += 1;
        let (id, offset) = (self.next, at * SECTOR as u64);
        let op = if is_write {
            let mut buf = self.memory.alloc(count as usize * SECTOR).unwrap();
            for (sector, bytes) in (at..).zip(buf.as_mut_slice().chunks_mut(SECTOR)) {
                bytes.copy_from_slice(&content(id, sector));
            }
            BlockOp::Write { offset, data: buf.into_payload(), durable: id % 16 == 0 }
        } else {
            BlockOp::Read { offset, len: count as u32 * SECTOR as u32 }
        };
        let queue = id as usize % self.queues.len();
        self.queues[queue].submit(id, op).unwrap();
        self.flying.insert(id, (at, count, is_write));
        true
    }

    fn ended(&mut self, completion: BlockCompletion) {
        let (at, count, is_write) = self.flying.remove(&completion.id).unwrap();
        let data = completion.result.unwrap_or_else(|error| panic!("sectors {at}+{count}: {error}"));
        if is_write {
            self.known[at as usize..(at + count) as usize].fill(completion.id);
            return;
        }
        let mut bytes = vec![0; data.len() as usize];
        self.memory.read_header(&data, 0, &mut bytes).unwrap();
        for (sector, bytes) in (at..).zip(bytes.chunks(SECTOR)) {
            let known = self.known[sector as usize];
            assert!(content(known, sector) == bytes, "sector {sector} has lost write {known}");
        }
    }
}

/// Writes parts of stripes, and looks at everything now and then.
fn user(domain: &Domain) {
    let queues = connect(domain, "disk");
    let sectors = half(&queues) / SECTOR as u64;
    let known = vec![0; sectors as usize];
    let mut user = User { queues, memory: domain.memory(), known, flying: BTreeMap::new(), next: 0, random: 1 };
    domain.ready(&[]).unwrap();
    let (mut notices, mut waiter) = (domain.notices().unwrap(), domain.waiter().unwrap());
    let (mut writes, mut looked, mut sweeps) = (0, 0, 0u64);
    while notices.poll() != Some(Notice::Shutdown) {
        let mut busy = false;
        while user.flying.len() < WINDOW {
            let started = if writes < BATCH {
                let (at, count) = (user.random(sectors), 1 + user.random(64));
                let started = user.start(at, count.min(sectors - at), true);
                writes += u64::from(started);
                started
            } else if looked < sectors {
                let count = 512.min(sectors - looked);
                let started = user.start(looked, count, false);
                looked += if started { count } else { 0 };
                started
            } else {
                if !user.flying.is_empty() {
                    break;
                }
                sweeps += 1;
                (writes, looked) = (0, 0);
                domain.ready(&[("sweeps", sweeps.to_string())]).unwrap();
                continue;
            };
            busy |= started;
            if !started && writes == BATCH {
                // A write is in flight there.
                break;
            }
        }
        for index in 0..user.queues.len() {
            user.queues[index].flush_submissions();
            while let Some(completion) = user.queues[index].poll() {
                user.ended(completion);
                busy = true;
            }
        }
        if busy {
            waiter.busy();
        } else {
            let mut sources: Vec<&mut dyn Source> = vec![&mut notices];
            sources.extend(user.queues.iter_mut().map(|queue| queue as &mut dyn Source));
            waiter.idle(&mut sources, Some(PATIENCE)).unwrap();
        }
    }
}

/// A queue for each lane of a link.
fn connect(domain: &Domain, link: &str) -> Vec<LinkQueue> {
    let device = LinkDevice::connect(domain.take_lanes(link).unwrap(), PATIENCE).unwrap();
    std::iter::from_fn(|| device.queue()).collect()
}

/// What each of the two front ends has of the disk.
fn half(queues: &[LinkQueue]) -> u64 {
    queues[0].geometry().bytes / 2 / SECTOR as u64 * SECTOR as u64
}

/// Has as much under way in the other half of the disk as it can, always.
fn greedy(domain: &Domain) {
    let mut queues = connect(domain, "more");
    let (half, memory) = (half(&queues), domain.memory());
    domain.ready(&[]).unwrap();
    let (mut notices, mut waiter) = (domain.notices().unwrap(), domain.waiter().unwrap());
    let (mut number, mut ended) = (0u64, 0u64);
    while notices.poll() != Some(Notice::Shutdown) {
        let mut busy = false;
        for queue in &mut queues {
            loop {
                let offset = half + number * 7919 * SECTOR as u64 % (half - (16 << 10));
                let op = match number % 4 {
                    0 => BlockOp::Write { offset, data: payload(&memory, number), durable: false },
                    _ => BlockOp::Read { offset, len: 16 << 10 },
                };
                if queue.submit(number, op).is_err() {
                    break;
                }
                number += 1;
            }
            queue.flush_submissions();
            while let Some(completion) = queue.poll() {
                completion.result.unwrap_or_else(|error| panic!("request {}: {error}", completion.id));
                ended += 1;
                busy = true;
                if ended.is_multiple_of(256) {
                    domain.ready(&[("ended", ended.to_string())]).unwrap();
                }
            }
        }
        if busy {
            waiter.busy();
        } else {
            let mut sources: Vec<&mut dyn Source> = vec![&mut notices];
            sources.extend(queues.iter_mut().map(|queue| queue as &mut dyn Source));
            waiter.idle(&mut sources, Some(PATIENCE)).unwrap();
        }
    }
}

fn payload(memory: &Memory, number: u64) -> Payload {
    let mut buf = memory.alloc(2048).unwrap();
    buf.as_mut_slice().fill(number as u8);
    buf.into_payload()
}

fn manifest(folder: &Path) -> String {
    let program = std::env::current_exe().unwrap();
    let component = format!(
        "program = {program:?}\nargs = [\"component\", \"--exact\", \"--nocapture\", \"--test-threads=1\"]\narena = \"32MiB\"\n"
    );
    let members: Vec<String> =
        (0..MEMBERS).map(|member| format!("file:{},block=512", image(folder, member).display())).collect();
    format!(
        r#"
        appliance = "test"
        [domain.user]
        {component}
        [domain.greedy]
        {component}
        [domain.disk]
        program = {disk:?}
        arena = "32MiB"
        restart-delay = "1ms"
        restart-limit = 100
        [domain.disk.params]
        device = "raid5(degraded=yes,replace=yes,depth=32; {members})"
        threads = 2
        [[link]]
        name = "disk"
        between = ["user", "disk"]
        lanes = 2
        [[link]]
        name = "more"
        between = ["greedy", "disk"]
        lanes = 2
        "#,
        disk = env!("CARGO_BIN_EXE_mmblk-disk"),
        members = members.join("; "),
    )
}

fn note(status: &Status, domain: &str, name: &str) -> u64 {
    status.domain(domain).and_then(|domain| domain.notes.get(name)?.parse().ok()).unwrap_or(0)
}

#[test]
fn a_killed_disk_and_a_failed_member_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path());
    let manifest = Manifest::parse(&manifest(folder.path()), "test").unwrap_or_else(|error| panic!("{error}"));
    let options = Options { runtime_dir: Some(folder.path().into()), ..Options::default() };
    let manager = Manager::start(manifest, options).unwrap();
    manager.wait_ready(PATIENCE).unwrap_or_else(|error| panic!("{error}: {:#?}", manager.status()));
    let until = |what: &str, done: &dyn Fn(&Status) -> bool| {
        let is_lost = |status: &Status| {
            ["user", "greedy"].iter().any(|name| status.domain(name).is_none_or(|user| user.generation != 1))
        };
        let came = manager.wait_until(PATIENCE, |status| is_lost(status) || done(status));
        let status = manager.status();
        assert!(came && !is_lost(&status), "{what}: {status:#?}");
    };
    let swept = |what: &str| {
        // The one that is under way does not count: it may have begun before.
        let wanted = note(&manager.status(), "user", "sweeps") + 2;
        until(what, &|status| note(status, "user", "sweeps") >= wanted);
    };
    let mut random = 7_u64;
    let rounds = std::env::var("RAID_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().unwrap());
    for _ in 0..rounds {
        swept("before the kill");
        until("a whole array", &|status| note(status, "disk", "whole") == MEMBERS as u64);
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(Duration::from_millis(random >> 58));
        let member = (random >> 33) as usize % MEMBERS;
        let generation = manager.status().domain("disk").unwrap().generation;
        // What it has still open goes with it: the member is lost with the crash.
        std::fs::remove_file(image(folder.path(), member)).unwrap();
        manager.kill("disk").unwrap();
        until("a new disk", &|status| status.domain("disk").is_some_and(|disk| disk.generation > generation));
        swept("without the failed member");
        // A new image in its place; the disk takes it up when it starts the next time.
        assert_eq!(note(&manager.status(), "disk", "whole"), MEMBERS as u64 - 1);
        drop(open(folder.path(), member));
        let generation = manager.status().domain("disk").unwrap().generation;
        manager.kill("disk").unwrap();
        until("a disk with a spare", &|status| status.domain("disk").is_some_and(|disk| disk.generation > generation));
    }
    until("a whole array", &|status| note(status, "disk", "whole") == MEMBERS as u64);
    swept("at the end");
    assert!(note(&manager.status(), "greedy", "ended") > 0, "the other one was served as well");
    manager.shutdown(PATIENCE).unwrap();
    scrub(folder.path());
}

fn make(folder: &Path) {
    let memory = private_memory(16 << 20);
    let devices: Vec<FileDevice> = (0..MEMBERS).map(|member| open(folder, member)).collect();
    let queues = devices.iter().map(|device| MemberQueue::new(device.queue(memory.clone()).unwrap())).collect();
    let options =
        CreateOptions { chunk: CHUNK, log_bytes: LOG_BYTES, zeroed: true, ..CreateOptions::new(Level::Raid5) };
    create(queues, &options, &memory).unwrap();
}

/// What the disk has left is redundant everywhere.
fn scrub(folder: &Path) {
    let memory = private_memory(16 << 20);
    let devices: Vec<FileDevice> = (0..MEMBERS).map(|member| open(folder, member)).collect();
    let queues = devices.iter().map(|device| MemberQueue::new(device.queue(memory.clone()).unwrap())).collect();
    let mut array = assemble(queues, None, RaidOptions::default(), &memory).unwrap();
    assert_eq!(array.status().roles, [Role::Active; MEMBERS]);
    array.start_scrub(false).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while array.status().scrubbed.is_none() {
        assert!(array.poll().is_none() && Instant::now() < deadline);
    }
    let report = array.status().scrubbed.unwrap();
    assert_eq!((report.stripes >= STRIPES, report.mismatches, report.unreadable), (true, 0, 0), "{report:?}");
}
