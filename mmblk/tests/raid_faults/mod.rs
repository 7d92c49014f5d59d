//! Members that fail, hang, or only want something: who is kicked, and who is not; rebuild and scrub; members in other domains and on servers.

use std::time::Duration;

use fido_core::memory::Memory;
use fido_core::testing::TestLanes;
use mmblk::backend::memory::MemoryDevice;
use mmblk::backend::raid::assemble::assemble;
use mmblk::backend::raid::create::{CreateOptions, create};
use mmblk::backend::raid::layout::Level;
use mmblk::backend::raid::superblock::Role;
use mmblk::backend::raid::{MemberQueue, RaidOptions, RaidQueue, ScrubReport};
use mmblk::device::open_text;
use mmblk::layer::Kind;
use mmblk::layer::delay::Spread;
use mmblk::layer::fault::{Effect, Fault, Faults, Rule};
use mmblk::link::back::BackEnd;
use mmblk::link::front::LinkQueue;
use mmblk::queue::{BlockError, BlockOp, BlockQueue, Geometry};

use crate::common::link::Served;
use crate::common::{GEOMETRY, PATIENCE, Rig, completions, pattern, payload};
use crate::program;
use crate::raid_rig::{Array, LEVELS, until};

const CHUNK: u64 = 4096;
/// Data bytes of a stripe of the RAID 5 of the tests.
const WIDTH: u64 = 4 * CHUNK;

/// An array whose members fail as they are told to.
struct Frail {
    rig: Rig<RaidQueue>,
    faults: Vec<Faults>,
    member: Geometry,
}

impl Frail {
    fn new(level: Level, options: RaidOptions) -> Self {
        let members = LEVELS.iter().find(|(l, _)| *l == level).unwrap().1;
        let faults: Vec<Faults> = (0..members as u64).map(|seed| Faults::new(seed, Vec::new())).collect();
        let mut member = GEOMETRY;
        let rig = Rig::local(true, |memory| {
            let array = Array::new(level, Geometry { bytes: 1 << 20, ..GEOMETRY }, memory);
            let queue = |(device, faults): (&MemoryDevice, &Faults)| {
                MemberQueue::new(Fault::new(device.queue(memory.clone()).unwrap(), faults.clone()).unwrap())
            };
            let members = array.devices.iter().zip(&faults).map(queue).collect();
            member = array.devices[0].geometry();
            (assemble(members, None, options, memory).unwrap(), Box::new(array))
        });
        Self { rig, faults, member }
    }

    /// What the next requests of some kinds to a member come to.
    fn next(&self, member: usize, kinds: &[Kind], error: &BlockError, times: Option<u64>) {
        let rule = Rule { times, ..Rule::always(kinds, Effect::Fail(error.clone())) };
        self.faults[member].set_rules(vec![rule]);
    }

    fn is_whole(&self) -> bool {
        self.rig.queue.status().roles.iter().all(|role| *role == Role::Active)
    }

    fn spare(&mut self) {
        let device = MemoryDevice::new(self.member).unwrap();
        let queue = device.queue(self.rig.memory.clone()).unwrap();
        self.rig.queue.add_spare(MemberQueue::new(queue)).unwrap();
    }

    /// Looks at all stripes, and finds so many wrong ones.
    fn scrubbed(&mut self, repair: bool, wrong: u64) -> ScrubReport {
        let queue = &mut self.rig.queue;
        queue.start_scrub(repair).unwrap();
        until(queue, "the scrub", |queue| queue.status().scrub.is_none());
        let report = queue.status().scrubbed.unwrap();
        assert_eq!((report.mismatches, report.skipped), (wrong, 0), "{report:?}");
        assert_eq!(report.stripes, queue.layout().stripes);
        report
    }

    fn has(&mut self, seed: u64, len: u64) {
        assert_eq!(self.rig.read(0, len as u32).unwrap(), pattern(seed, len as usize));
    }
}

fn options() -> RaidOptions {
    RaidOptions { depth: GEOMETRY.depth, ..Default::default() }
}

fn io(errno: i32) -> BlockError {
    BlockError::Io { errno }
}

/// Data, parity, log, superblocks: whatever is written, a want that passes is waited out, and bytes that a member cannot
/// reach are copied.
#[test]
fn a_want_of_ours_kicks_nobody() {
    for (error, times) in [
        (BlockError::NoBuffer, 3),
        (io(libc::ENOMEM), 3),
        (io(libc::EAGAIN), 3),
        (io(libc::EFAULT), 1),
        (BlockError::Address("a payload of somebody's".into()), 1),
    ] {
        for level in [Level::Raid1, Level::Raid5] {
            let mut frail = Frail::new(level, options());
            for (round, len) in [CHUNK, WIDTH, 512].into_iter().enumerate() {
                frail.next(1, &[Kind::Write], &error, Some(times));
                frail.rig.write(0, &pattern(round as u64, len as usize)).unwrap();
                frail.has(round as u64, len);
                assert!(frail.is_whole(), "{level:?}, {len} bytes, {error}");
            }
            assert!(frail.faults[1].injected() >= times, "{error} never came");
        }
    }
}

#[test]
fn an_error_of_a_member_kicks_it() {
    for error in [io(libc::EIO), BlockError::NoSpace, BlockError::Protocol("nonsense".into())] {
        let mut frail = Frail::new(Level::Raid5, options());
        frail.next(1, &[Kind::Write], &error, None);
        frail.rig.write(0, &pattern(1, WIDTH as usize)).unwrap();
        assert_eq!(frail.rig.queue.status().roles[1], Role::Missing, "{error}");
        frail.has(1, WIDTH);
    }
    // One that reaches nothing, not even a copy of ours, is no use either.
    let mut frail = Frail::new(Level::Raid5, options());
    frail.next(1, &[Kind::Write], &io(libc::EFAULT), None);
    frail.rig.write(0, &pattern(1, WIDTH as usize)).unwrap();
    assert_eq!(frail.rig.queue.status().roles[1], Role::Missing);
}

/// There is no room for the copy that the member needs: it is made when there is.
#[test]
fn no_room_for_a_copy_kicks_nobody() {
    let mut frail = Frail::new(Level::Raid1, options());
    // The intent is there from now on, and needs no buffer any more.
    frail.rig.write(0, &pattern(4, 4096)).unwrap();
    let data = frail.rig.payload(&pattern(5, 4096));
    let mut held = Vec::new();
    for size in [1 << 20, 64 << 10, 4096, 512, 64] {
        held.extend(std::iter::from_fn(|| frail.rig.memory.alloc(size).ok()));
    }
    frail.next(1, &[Kind::Write], &io(libc::EFAULT), Some(1));
    frail.rig.submit(9, BlockOp::Write { offset: 0, data, durable: false });
    until(&mut frail.rig.queue, "the write", |_| frail.faults[1].injected() == 1);
    for _ in 0..100 {
        assert!(frail.rig.queue.poll().is_none(), "one of the mirrors cannot have it");
    }
    assert!(frail.is_whole());
    drop(held);
    frail.rig.completions(1).remove(0).result.unwrap();
    assert!(frail.is_whole());
    frail.faults[0].kill();
    frail.has(5, 4096);
}

/// The user hears of a want at once, and may ask again.
#[test]
fn a_want_is_told_to_who_asked() {
    let mut frail = Frail::new(Level::Raid5, options());
    frail.rig.write(0, &pattern(1, WIDTH as usize)).unwrap();
    for (kind, op) in [(Kind::Flush, BlockOp::Flush), (Kind::Read, BlockOp::Read { offset: 0, len: 4096 })] {
        frail.next(0, &[kind], &io(libc::ENOMEM), Some(1));
        assert_eq!(frail.rig.one(op.clone()).unwrap_err(), io(libc::ENOMEM));
        frail.rig.one(op).unwrap();
    }
    assert!(frail.is_whole());
    assert_eq!(frail.rig.queue.status().read_errors, [0; 5]);
}

/// What a kicked spare has been asked for is not counted to the spare that comes after it.
#[test]
fn a_rebuild_counts_its_own_stripes_only() {
    let mut frail = Frail::new(Level::Raid5, options());
    let bytes = 1 << 20;
    frail.rig.write(0, &pattern(7, bytes)).unwrap();
    frail.rig.queue.fail_member(2);
    // The first stripes cannot be read, which is seen only after a while; the first spare dies meanwhile.
    frail.next(1, &[Kind::Read], &io(libc::EIO), Some(4));
    let slow = Effect::Stall(Spread::of(Duration::from_millis(30)));
    frail.faults[0].set_rules(vec![Rule { times: Some(4), ..Rule::always(&[Kind::Read], slow) }]);
    let sources = frail.faults[0].clone();
    frail.spare();
    until(&mut frail.rig.queue, "reads for the first spare", |_| sources.injected() > 0);
    frail.rig.queue.fail_member(2);
    frail.spare();
    until(&mut frail.rig.queue, "the second spare", |queue| queue.status().rebuilds == 1 && queue.is_idle());
    let status = frail.rig.queue.status();
    assert_eq!((status.kicked, status.rebuilds_failed), (2, 0), "{status:?}");
    assert!(frail.is_whole());
    frail.scrubbed(false, 0);
    // It has all that the first one would have had.
    frail.rig.queue.fail_member(0);
    frail.has(7, bytes as u64);
}

/// A source that finds no buffer for a while holds the rebuild up, and does not end it.
#[test]
fn a_rebuild_survives_a_want_of_buffers() {
    let mut frail = Frail::new(Level::Raid5, options());
    frail.rig.write(0, &pattern(7, 1 << 20)).unwrap();
    frail.rig.queue.fail_member(4);
    frail.next(0, &[Kind::Read], &BlockError::NoBuffer, Some(20));
    frail.spare();
    until(&mut frail.rig.queue, "the rebuild", |queue| queue.status().rebuilds == 1 && queue.is_idle());
    assert_eq!((frail.rig.queue.status().rebuilds_failed, frail.faults[0].injected()), (0, 20));
    frail.scrubbed(false, 0);
}

#[test]
fn a_member_that_hangs_is_kicked_if_it_may_be_missing() {
    let hangs = || vec![Rule::always(&[Kind::Write], Effect::Stall(Spread::of(Duration::from_secs(3600))))];
    let limited = RaidOptions { stall_limit: Some(Duration::from_millis(20)), ..options() };
    let mut frail = Frail::new(Level::Raid5, limited);
    frail.faults[3].set_rules(hangs());
    frail.rig.write(0, &pattern(1, WIDTH as usize)).unwrap();
    assert_eq!(frail.rig.queue.status().roles[3], Role::Missing);
    frail.has(1, WIDTH);
    // The next one that hangs for a moment is waited for: without it there is nothing.
    let slow = Effect::Stall(Spread::of(Duration::from_millis(100)));
    frail.faults[1].set_rules(vec![Rule { times: Some(1), ..Rule::always(&[Kind::Write], slow) }]);
    frail.rig.write(0, &pattern(2, WIDTH as usize)).unwrap();
    assert_eq!(frail.rig.queue.status().kicked, 1);
    frail.has(2, WIDTH);
}

#[test]
fn a_rebuild_goes_no_faster_than_its_rate() {
    let mut frail = Frail::new(Level::Raid5, RaidOptions { rate: Some(1), ..options() });
    frail.rig.queue.fail_member(1);
    frail.spare();
    let done = |queue: &RaidQueue| queue.status().rebuild.map_or(0, |rebuild| rebuild.done);
    until(&mut frail.rig.queue, "the first stripe", |queue| done(queue) == 1);
    for _ in 0..2000 {
        assert!(frail.rig.queue.poll().is_none());
    }
    // A byte in a second: the next one is due in more than an hour.
    assert_eq!(done(&frail.rig.queue), 1);
    // Who uses the array is not held up by it.
    frail.rig.write(0, &pattern(3, WIDTH as usize)).unwrap();
    frail.rig.queue.set_rate(None);
    until(&mut frail.rig.queue, "the rest", |queue| queue.status().rebuilds == 1);
    frail.scrubbed(false, 0);
}

/// What a disk has silently lost is found, and put right if told to; what it cannot read is written anew.
#[test]
fn a_scrub_finds_and_repairs() {
    for level in [Level::Raid1, Level::Raid5] {
        let mut frail = Frail::new(level, options());
        let lost = Rule { range: (1 << 18)..u64::MAX, ..Rule::always(&[Kind::Write], Effect::Lose) };
        frail.faults[1].set_rules(vec![lost]);
        frail.rig.write(0, &pattern(1, WIDTH as usize)).unwrap();
        frail.faults[1].set_rules(Vec::new());
        let wrong = if level == Level::Raid1 { 4 } else { 1 };
        frail.scrubbed(false, wrong);
        frail.scrubbed(true, wrong);
        frail.scrubbed(false, 0);
        // A chunk that cannot be read is not a mismatch, and comes back from the others.
        frail.rig.write(0, &pattern(2, WIDTH as usize)).unwrap();
        frail.next(0, &[Kind::Read], &io(libc::EIO), Some(1));
        let report = frail.scrubbed(true, 0);
        assert_eq!((report.unreadable, report.repaired), (1, 1), "{level:?}");
        frail.scrubbed(false, 0);
        frail.has(2, WIDTH);
    }
}

/// Stripes that follow each other go to a member as one request, and one that fails there is found out by itself.
#[test]
fn neighbours_go_together_and_fail_alone() {
    let mut frail = Frail::new(Level::Raid5, options());
    // The intent is there from now on.
    frail.rig.write(0, &pattern(0, WIDTH as usize)).unwrap();
    let count = |frail: &Frail| frail.faults[2].injected();
    let seen = Rule::always(&[Kind::Write], Effect::Stall(Spread::of(Duration::ZERO)));
    frail.faults[2].set_rules(vec![seen]);
    let before = count(&frail);
    frail.rig.write(0, &pattern(1, 16 * WIDTH as usize)).unwrap();
    assert_eq!(count(&frail) - before, 1, "sixteen chunks, a request");
    // Two requests of the user's, on both sides of what fails once.
    let error = Rule { times: Some(1), ..Rule::always(&[Kind::Write], Effect::Fail(io(libc::EFAULT))) };
    frail.faults[2].set_rules(vec![error]);
    for half in 0..2 {
        let data = frail.rig.payload(&pattern(2 + half, 8 * WIDTH as usize));
        frail.rig.submit(half, BlockOp::Write { offset: half * 8 * WIDTH, data, durable: false });
    }
    frail.rig.completions(2).into_iter().for_each(|completion| drop(completion.result.unwrap()));
    assert!(frail.is_whole());
    frail.faults[0].kill();
    frail.has(2, 8 * WIDTH);
    // And for good: it is kicked, and the others have all of it.
    let mut frail = Frail::new(Level::Raid5, options());
    frail.next(2, &[Kind::Write], &io(libc::EIO), None);
    frail.rig.write(0, &pattern(3, 16 * WIDTH as usize)).unwrap();
    assert_eq!(frail.rig.queue.status().kicked, 1);
    frail.has(3, 16 * WIDTH);
}

/// An array of three in memory, but for the last, which is somewhere else.
fn with_one_far(far: MemberQueue, memory: &Memory) -> RaidQueue {
    let geometry = far.geometry();
    let near = || MemberQueue::new(MemoryDevice::new(geometry).unwrap().queue(memory.clone()).unwrap());
    let make = CreateOptions { chunk: 4096, log_bytes: 256 << 10, zeroed: true, ..CreateOptions::new(Level::Raid5) };
    let (_, members) = create(vec![near(), near(), far], &make, memory).unwrap();
    let limited = RaidOptions { stall_limit: Some(Duration::from_millis(200)), ..options() };
    assemble(members, None, limited, memory).unwrap()
}

/// Writes, and in the middle of it something happens to the last member: nobody notices but the array.
fn survives_the_loss_of_the_last(queue: &mut RaidQueue, memory: &Memory, lose: impl FnOnce()) {
    let mut lose = Some(lose);
    for round in 0..12u64 {
        for part in 0..4 {
            let data = payload(memory, &pattern(round, 6000 / 512 * 512));
            queue.submit(part, BlockOp::Write { offset: part << 14, data, durable: part == 0 }).unwrap();
        }
        queue.flush_submissions();
        if round == 6 {
            assert_eq!(queue.status().roles, [Role::Active; 3]);
            lose.take().unwrap()();
        }
        completions(queue, 4).into_iter().for_each(|completion| drop(completion.result.unwrap()));
    }
    assert_eq!(queue.status().roles, [Role::Active, Role::Active, Role::Missing]);
    for part in 0..4 {
        queue.submit(0, BlockOp::Read { offset: part << 14, len: 5632 }).unwrap();
        let data = completions(queue, 1).remove(0).result.unwrap();
        let mut found = vec![0; 5632];
        memory.read_header(&data, 0, &mut found).unwrap();
        assert!(found == pattern(11, 5632), "part {part}");
    }
}

/// A lane waits for a successor of the domain at its other end for as long as it takes; an array does not.
#[test]
fn the_domain_of_a_member_may_die() {
    let (link, mut server, mut user) = TestLanes::new(1, 256, 32 << 20);
    let device = MemoryDevice::new(Geometry { bytes: 2 << 20, ..GEOMETRY }).unwrap();
    let back = BackEnd::new(server.remove(0), device.queue(link.server.memory.clone()).unwrap()).unwrap();
    let served = Served::new(back);
    let far = MemberQueue::new(LinkQueue::connect(user.remove(0), PATIENCE).unwrap());
    let mut queue = with_one_far(far, &link.user.memory);
    survives_the_loss_of_the_last(&mut queue, &link.user.memory, || drop(served));
}

#[test]
fn the_nbd_server_of_a_member_may_be_killed() {
    let memory = fido_core::testing::private_memory(16 << 20);
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("nbd");
    let place = format!("unix:{}", socket.display());
    let server = program::start(env!("CARGO_BIN_EXE_mmblk-nbd"), &[&place, "memory:2MiB,block=512"]);
    server.wait_for(&socket);
    let far = open_text(&format!("nbd:{place},patience=50ms")).unwrap().queue(&memory).unwrap();
    let mut queue = with_one_far(MemberQueue::new(far), &memory);
    survives_the_loss_of_the_last(&mut queue, &memory, || drop(server));
}
