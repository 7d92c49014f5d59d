//! Arrays against the conformance suite, a model with failures, and what their members say.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
#[path = "common/program.rs"]
mod program;
mod raid_faults;
mod raid_rig;

use common::{GEOMETRY, Rig, follows_the_model, pattern, steps};
use fido_core::memory::Memory;
use mmblk::backend::memory::MemoryDevice;
use mmblk::backend::raid::assemble::{AssembleError, assemble};
use mmblk::backend::raid::create::{CreateOptions, create};
use mmblk::backend::raid::layout::Level;
use mmblk::backend::raid::superblock::Role;
use mmblk::backend::raid::{MemberQueue, RaidError, RaidOptions, RaidQueue};
use mmblk::layer::Kind;
use mmblk::layer::fault::{Effect, Fault, Faults, Rule};
use mmblk::queue::{BlockError, BlockOp, BlockQueue, Geometry};
use proptest::prelude::*;
use raid_rig::{Array, LEVELS};

/// An array with the geometry of the conformance suite.
fn rig(level: Level) -> Rig<RaidQueue> {
    Rig::local(true, |memory| {
        let array = Array::new(level, GEOMETRY, memory);
        (array.assemble(RaidOptions { depth: GEOMETRY.depth, ..Default::default() }).unwrap(), Box::new(array))
    })
}

#[test]
fn arrays_conform() {
    for (level, _) in LEVELS {
        common::reads_what_was_written(&mut rig(level));
        common::gathers_unaligned_segments(&mut rig(level));
        common::keeps_its_limits(&mut rig(level));
        common::refuses_bad_ranges(&mut rig(level));
        common::refuses_wild_addresses(&mut rig(level));
        common::holds_its_depth(&mut rig(level));
        common::discards(&mut rig(level));
        common::returns_every_buffer(&mut rig(level));
    }
}

#[test]
fn payload_is_passed_on_by_address() {
    for (level, members) in LEVELS {
        let mut rig = rig(level);
        let data = rig.payload(&pattern(3, 64 << 10));
        rig.one(BlockOp::Write { offset: 8192, data, durable: true }).unwrap();
        rig.one(BlockOp::Read { offset: 0, len: 1 << 20 }).unwrap();
        rig.one(BlockOp::Read { offset: 8192, len: 64 << 10 }).unwrap();
        assert_eq!(rig.memory.stats().snapshot().payload_bytes_copied, 0, "level {level:?}");
        // Without a member as well.
        if level != Level::Raid0 {
            for member in 0..members {
                let mut rig = self::rig(level);
                rig.queue.fail_member(member);
                rig.write(12288, &pattern(4, 32 << 10)).unwrap();
                assert_eq!(rig.read(12288, 32 << 10).unwrap(), pattern(4, 32 << 10));
                assert_eq!(rig.memory.stats().snapshot().payload_bytes_copied, 0, "level {level:?}");
            }
        }
    }
}

/// What happens to an array between requests.
#[derive(Debug, Clone)]
enum Turn {
    Requests(Vec<common::Step>),
    Fail(usize),
    Spare,
    Reassemble,
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let turn = prop_oneof![
        4 => steps().prop_map(Turn::Requests),
        1 => (0usize..5).prop_map(Turn::Fail),
        1 => Just(Turn::Spare),
        1 => Just(Turn::Reassemble),
    ];
    prop::collection::vec(turn, 1..7)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn arrays_follow_the_model(steps in steps(), level in 0usize..3) {
        follows_the_model(&mut rig(LEVELS[level].0), &steps);
    }

    /// Members fail, spares come, the array is stopped and assembled again: what is read is what was written, and at the
    /// end the redundancy is right.
    #[test]
    fn nothing_is_lost_with_a_member(turns in turns(), level in 1usize..3, small_log in any::<bool>()) {
        raid_rig::with_failures(LEVELS[level].0, &turns_to_ops(&turns), small_log);
    }
}

fn turns_to_ops(turns: &[Turn]) -> Vec<raid_rig::Change> {
    let ops = turns.iter().flat_map(|turn| match turn {
        Turn::Requests(steps) => steps
            .iter()
            .map(|step| match step {
                common::Step::Flush => raid_rig::Change::Flush,
                common::Step::Read { block, blocks } => {
                    raid_rig::Change::Read { offset: block * 512, len: blocks * 512 }
                }
                common::Step::Write { block, blocks, seed, .. } => {
                    raid_rig::Change::Write { offset: block * 512, len: blocks * 512, seed: *seed }
                }
            })
            .collect::<Vec<_>>(),
        Turn::Fail(member) => vec![raid_rig::Change::Fail(*member)],
        Turn::Spare => vec![raid_rig::Change::Spare],
        Turn::Reassemble => vec![raid_rig::Change::Reassemble],
    });
    ops.collect()
}

fn devices(memory: &Memory, count: usize) -> (Vec<MemoryDevice>, impl Fn(&[MemoryDevice]) -> Vec<MemberQueue>) {
    let geometry = Geometry { bytes: 4 << 20, block: 512, depth: 16 };
    let devices = (0..count).map(|_| MemoryDevice::new(geometry).unwrap()).collect();
    let memory = memory.clone();
    let queues =
        move |of: &[MemoryDevice]| of.iter().map(|d| MemberQueue::new(d.queue(memory.clone()).unwrap())).collect();
    (devices, queues)
}

fn small() -> CreateOptions {
    CreateOptions { chunk: 4096, log_bytes: 256 << 10, ..CreateOptions::new(Level::Raid5) }
}

#[test]
fn foreign_stale_and_doubled_members_are_refused() {
    let memory = fido_core::testing::private_memory(16 << 20);
    let (devices, queues) = devices(&memory, 7);
    let (a, b, blank) = (&devices[..3], &devices[3..6], &devices[6]);
    let (id, _) = create(queues(a), &small(), &memory).unwrap();
    let (other, _) = create(queues(b), &small(), &memory).unwrap();
    let open = |of: &[&MemoryDevice], allow_degraded| {
        let of: Vec<MemoryDevice> = of.iter().map(|d| (*d).clone()).collect();
        assemble(queues(&of), Some(id), RaidOptions { allow_degraded, ..Default::default() }, &memory)
    };
    let error = |result: Result<RaidQueue, RaidError>| match result.map(drop) {
        Err(RaidError::Assemble(error)) => error,
        result => panic!("{result:?}"),
    };
    assert_eq!(
        error(open(&[&a[0], &b[1], &a[2]], true)),
        AssembleError::Foreign { member: 1, found: other, expected: id }
    );
    assert!(matches!(error(open(&[&a[0], &a[1], blank], true)), AssembleError::NoSuperblock { member: 2, .. }));
    assert_eq!(error(open(&[&a[0], &a[1], &a[1]], true)), AssembleError::Duplicate { first: 1, second: 2, index: 1 });
    assert_eq!(error(open(&[&a[0], &a[2]], false)), AssembleError::Degraded { index: 1 });
    assert_eq!(error(open(&[&a[0]], true)), AssembleError::TooFew { found: 1, members: 3 });
    // In another order they are the same array.
    open(&[&a[2], &a[0], &a[1]], false).unwrap();
    // One is left out, and the others go on: it is stale from then on, and the others do without it.
    let two = open(&[&a[0], &a[2]], true).unwrap();
    assert_eq!(two.status().roles, [Role::Active, Role::Missing, Role::Active]);
    drop(two);
    assert!(matches!(error(open(&[&a[0], &a[1], &a[2]], true)), AssembleError::Stale { member: 1, .. }));
    open(&[&a[0], &a[2]], false).unwrap();
}

#[test]
fn mirrors_that_went_separate_ways_are_refused() {
    let memory = fido_core::testing::private_memory(16 << 20);
    let (devices, queues) = devices(&memory, 2);
    let options = CreateOptions { level: Level::Raid1, ..small() };
    create(queues(&devices), &options, &memory).unwrap();
    let degraded = RaidOptions { allow_degraded: true, ..Default::default() };
    assemble(queues(&devices[..1]), None, degraded, &memory).unwrap();
    assemble(queues(&devices[1..]), None, degraded, &memory).unwrap();
    // Also when one of them has been started more often since.
    for _ in 0..3 {
        let error = assemble(queues(&devices), None, degraded, &memory).map(drop);
        assert!(matches!(error, Err(RaidError::Assemble(AssembleError::Separated { .. }))), "{error:?}");
        let alone = assemble(queues(&devices[1..]), None, degraded, &memory).unwrap();
        assert_eq!(alone.status().roles, [Role::Missing, Role::Active]);
    }
}

#[test]
fn limits_of_an_array() {
    let memory = fido_core::testing::private_memory(16 << 20);
    let (devices, queues) = devices(&memory, 3);
    let make = |options: &CreateOptions| create(queues(&devices), options, &memory).map(drop);
    let least = mmblk::backend::raid::create::least_log_bytes(4096, 512);
    assert!(make(&CreateOptions { log_bytes: least, ..small() }).is_ok());
    assert!(matches!(make(&CreateOptions { log_bytes: least - 512, ..small() }), Err(RaidError::Log { .. })));
    assert!(matches!(make(&CreateOptions { chunk: 2048, ..small() }), Err(RaidError::Layout(_))));
    assert!(matches!(make(&CreateOptions { log_bytes: 4 << 20, ..small() }), Err(RaidError::Layout(_))));
    let two = create(queues(&devices[..2]), &small(), &memory).map(drop);
    assert!(matches!(two, Err(RaidError::Layout(_))));
}

/// A mirror misses a flush, and the other fails while it is to write down that the first is out: at the next assembly the
/// superblocks still count on both, so nothing may have been acknowledged that only one of them has.
#[test]
fn nothing_is_acknowledged_by_an_array_that_cannot_say_who_is_out() {
    let faults: Vec<Faults> = (0..2).map(|seed| Faults::new(seed, Vec::new())).collect();
    let mut rig = Rig::local(true, |memory| {
        let array = Array::new(Level::Raid1, GEOMETRY, memory);
        let member = |(device, faults): (&MemoryDevice, &Faults)| {
            MemberQueue::new(Fault::new(device.queue(memory.clone()).unwrap(), faults.clone()).unwrap())
        };
        let members = array.devices.iter().zip(&faults).map(member).collect();
        let options = RaidOptions { depth: GEOMETRY.depth, ..Default::default() };
        (assemble(members, None, options, memory).unwrap(), Box::new(array))
    });
    rig.write(0, &pattern(1, 4096)).unwrap();
    let fails = |kind| vec![Rule::always(&[kind], Effect::Fail(BlockError::Io { errno: libc::EIO }))];
    faults[1].set_rules(fails(Kind::Flush));
    faults[0].set_rules(fails(Kind::Write));
    assert!(rig.one(BlockOp::Flush).is_err());
    assert_eq!(rig.queue.status().failure.unwrap().member, 0);
    assert_eq!(rig.read(0, 4096).unwrap(), pattern(1, 4096));
}

#[test]
fn a_failed_array_fails_its_writes_and_no_other_array() {
    let mut one = rig(Level::Raid5);
    let mut other = rig(Level::Raid5);
    one.write(0, &pattern(1, 4096)).unwrap();
    one.queue.fail_member(0);
    one.write(0, &pattern(2, 4096)).unwrap();
    one.queue.fail_member(1);
    assert!(one.write(0, &pattern(3, 4096)).is_err());
    assert!(one.one(BlockOp::Flush).is_err());
    let status = one.queue.status();
    assert_eq!(status.failure.unwrap().member, 1);
    other.write(0, &pattern(4, 4096)).unwrap();
    assert_eq!(other.read(0, 4096).unwrap(), pattern(4, 4096));
    assert!(other.queue.geometry() == GEOMETRY);
}
