//! A RAID 5 of image files in a disk domain that is killed in the middle of partial-stripe writes while a member fails,
//! over and over, with real processes under the real manager. The user of the disk goes on and finds every byte that was
//! acknowledged. Between the rounds the failed image is replaced by an empty one and rebuilt.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use conn_mgr::manager::{Manager, Options, Status};
use conn_mgr::manifest::Manifest;
use fido_core::domain::{Domain, Notice};
use fido_core::memory::Memory;
use fido_core::platform::host::protocol::SOCKET_VARIABLE;
use fido_core::testing::private_memory;
use fido_core::wait::Source;
use mmblk::backend::file::{FileDevice, FileOptions, FileQueue};
use mmblk::backend::raid::assemble::{AssembleError, assemble};
use mmblk::backend::raid::create::{CreateOptions, create};
use mmblk::backend::raid::layout::Level;
use mmblk::backend::raid::superblock::Role;
use mmblk::backend::raid::{MemberQueue, RaidError, RaidOptions, RaidQueue};
use mmblk::link::back::BackEnd;
use mmblk::link::front::LinkQueue;
use mmblk::queue::{BlockCompletion, BlockError, BlockOp, BlockQueue, Busy, Features, Geometry};

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
            "disk" => disk(domain),
            _ => user(&domain),
        }
        std::process::exit(0);
    }
}

fn image(folder: &Path, member: usize) -> PathBuf {
    folder.join(format!("member{member}"))
}

/// While there is such a file the member fails.
fn failing(folder: &Path, member: usize) -> PathBuf {
    folder.join(format!("failing{member}"))
}

fn open(folder: &Path, member: usize) -> FileDevice {
    let bytes = (1 << 20) + STRIPES * u64::from(CHUNK);
    let options = FileOptions { create_bytes: Some(bytes), block: 512, ..FileOptions::new(image(folder, member)) };
    FileDevice::open(&options).unwrap()
}

/// A member that fails as soon as it is told to.
struct Mortal {
    queue: FileQueue,
    failing: PathBuf,
    failed: Vec<u64>,
}

impl BlockQueue for Mortal {
    fn geometry(&self) -> Geometry {
        self.queue.geometry()
    }

    fn features(&self) -> Features {
        self.queue.features()
    }

    fn submit(&mut self, id: u64, op: BlockOp) -> Result<(), Busy> {
        if self.failing.exists() {
            self.failed.push(id);
            return Ok(());
        }
        self.queue.submit(id, op)
    }

    fn poll(&mut self) -> Option<BlockCompletion> {
        let failed = self.failed.pop().map(|id| BlockCompletion { id, result: Err(BlockError::Io { errno: 5 }) });
        failed.or_else(|| self.queue.poll())
    }

    fn flush_submissions(&mut self) {
        self.queue.flush_submissions();
    }
}

impl Source for Mortal {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.queue.wake_fd()
    }

    fn ready(&mut self) -> bool {
        !self.failed.is_empty() || self.queue.ready()
    }
}

/// An array that tells the manager how many of its members are whole.
struct Told {
    array: RaidQueue,
    domain: &'static Domain,
    whole: usize,
}

impl BlockQueue for Told {
    fn geometry(&self) -> Geometry {
        self.array.geometry()
    }

    fn features(&self) -> Features {
        self.array.features()
    }

    fn submit(&mut self, id: u64, op: BlockOp) -> Result<(), Busy> {
        self.array.submit(id, op)
    }

    fn poll(&mut self) -> Option<BlockCompletion> {
        let completion = self.array.poll();
        if completion.is_none() {
            let whole = self.array.status().roles.iter().filter(|role| **role == Role::Active).count();
            if whole != self.whole {
                self.whole = whole;
                self.domain.ready(&[("whole", whole.to_string())]).unwrap();
            }
        }
        completion
    }

    fn flush_submissions(&mut self) {
        self.array.flush_submissions();
    }
}

impl Source for Told {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.array.wake_fd()
    }

    fn arm(&mut self) {
        self.array.arm();
    }

    fn ready(&mut self) -> bool {
        self.array.ready()
    }

    fn disarm(&mut self) {
        self.array.disarm();
    }
}

/// Serves the array of the images that do not fail. Those without a superblock are spares.
fn disk(domain: Domain) {
    let domain: &'static Domain = Box::leak(Box::new(domain));
    let folder: PathBuf = domain.required_param("folder").unwrap();
    let memory = domain.memory();
    let devices: Vec<(usize, FileDevice)> = (0..MEMBERS)
        .filter(|member| !failing(&folder, *member).exists())
        .map(|member| (member, open(&folder, member)))
        .collect();
    let queue = |at: usize| {
        let (member, device) = &devices[at];
        let queue = device.queue(memory.clone()).unwrap();
        MemberQueue::new(Mortal { queue, failing: failing(&folder, *member), failed: Vec::new() })
    };
    let array = put_together(devices.len(), queue, &memory);
    let lane = domain.take_lane("disk", 0).unwrap();
    let mut back = BackEnd::new(lane, Told { array, domain, whole: 0 }).unwrap();
    domain.ready(&[]).unwrap();
    let (mut notices, mut waiter) = (domain.notices().unwrap(), domain.waiter().unwrap());
    while notices.poll() != Some(Notice::Shutdown) {
        if back.poll() {
            waiter.busy();
            continue;
        }
        back.flush();
        let mut sources: Vec<&mut dyn Source> = vec![&mut notices];
        sources.extend(back.sources());
        waiter.idle(&mut sources, None).unwrap();
    }
}

fn put_together(count: usize, queue: impl Fn(usize) -> MemberQueue, memory: &Memory) -> RaidQueue {
    let mut members: Vec<usize> = (0..count).collect();
    let mut spares = Vec::new();
    let options = RaidOptions { allow_degraded: true, ..RaidOptions::default() };
    loop {
        match assemble(members.iter().map(|at| queue(*at)).collect(), None, options, memory) {
            Ok(mut array) => {
                spares.iter().for_each(|at| array.add_spare(queue(*at)).unwrap());
                return array;
            }
            // One that is new, and one that has missed something: both are to be filled again.
            Err(RaidError::Assemble(
                AssembleError::NoSuperblock { member, .. } | AssembleError::Stale { member, .. },
            )) => spares.push(members.remove(member)),
            Err(error) => panic!("{error}"),
        }
    }
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
    queue: LinkQueue,
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
        self.queue.submit(id, op).unwrap();
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
    let queue = LinkQueue::connect(domain.take_lane("disk", 0).unwrap(), PATIENCE).unwrap();
    let sectors = queue.geometry().bytes / SECTOR as u64;
    let known = vec![0; sectors as usize];
    let mut user = User { queue, memory: domain.memory(), known, flying: BTreeMap::new(), next: 0, random: 1 };
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
        user.queue.flush_submissions();
        while let Some(completion) = user.queue.poll() {
            user.ended(completion);
            busy = true;
        }
        if busy {
            waiter.busy();
        } else {
            waiter.idle(&mut [&mut notices, &mut user.queue], Some(PATIENCE)).unwrap();
        }
    }
}

fn manifest(folder: &Path) -> String {
    let program = std::env::current_exe().unwrap();
    let component = format!(
        "program = {program:?}\nargs = [\"component\", \"--exact\", \"--nocapture\", \"--test-threads=1\"]\narena = \"32MiB\"\n"
    );
    format!(
        r#"
        appliance = "test"
        [domain.user]
        {component}
        [domain.disk]
        {component}
        restart-delay = "1ms"
        restart-limit = 100
        [domain.disk.params]
        folder = {folder:?}
        [[link]]
        name = "disk"
        between = ["user", "disk"]
        "#
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
        let is_lost = |status: &Status| status.domain("user").is_none_or(|user| user.generation != 1);
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
    for round in 0..rounds {
        swept("before the kill");
        until("a whole array", &|status| note(status, "disk", "whole") == MEMBERS as u64);
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(Duration::from_millis(random >> 58));
        let member = (random >> 33) as usize % MEMBERS;
        let generation = manager.status().domain("disk").unwrap().generation;
        std::fs::write(failing(folder.path(), member), "").unwrap();
        if round % 2 == 1 {
            // It has noticed the failure in some rounds, and dies of it being at it.
            std::thread::sleep(Duration::from_millis(random >> 60));
        }
        manager.kill("disk").unwrap();
        until("a new disk", &|status| status.domain("disk").is_some_and(|disk| disk.generation > generation));
        swept("without the failed member");
        // A new image in its place; the disk takes it up when it starts the next time.
        std::fs::remove_file(image(folder.path(), member)).unwrap();
        std::fs::remove_file(failing(folder.path(), member)).unwrap();
        let generation = manager.status().domain("disk").unwrap().generation;
        manager.kill("disk").unwrap();
        until("a disk with a spare", &|status| status.domain("disk").is_some_and(|disk| disk.generation > generation));
    }
    until("a whole array", &|status| note(status, "disk", "whole") == MEMBERS as u64);
    swept("at the end");
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
    let queue = |at: usize| MemberQueue::new(devices[at].queue(memory.clone()).unwrap());
    let mut array = put_together(MEMBERS, queue, &memory);
    array.start_scrub(false).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while array.status().scrubbed.is_none() {
        assert!(array.poll().is_none() && Instant::now() < deadline);
    }
    let report = array.status().scrubbed.unwrap();
    assert_eq!((report.stripes >= STRIPES, report.mismatches, report.unreadable), (true, 0, 0), "{report:?}");
}
