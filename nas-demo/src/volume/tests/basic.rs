//! One thing at a time.

use std::mem::discriminant;

use super::disk::Disk;
use super::rig::*;
use crate::volume::ops::*;

const MIB: u64 = 1 << 20;
use Stability::{FileSync, Unstable};

#[test]
fn a_file_is_written_and_read_and_survives() {
    let mut rig = Rig::new(32 * MIB);
    let ino = rig.create(ROOT, "file").unwrap();
    let data = pattern(1, 300_000);
    rig.write(ino, 0, &data, Unstable).unwrap();
    assert_eq!(rig.content(ino), data);
    rig.write(ino, 5000, &pattern(2, 77), Unstable).unwrap();
    rig.commit(ino).unwrap();
    let mut rig = rig.reopen();
    let mut expected = data;
    expected[5000..5077].copy_from_slice(&pattern(2, 77));
    assert_eq!(rig.lookup(ROOT, "file").unwrap().ino, ino);
    assert_eq!(rig.content(ino), expected);
    let report = rig.check();
    assert_eq!(report.problems, Vec::<String>::new());
    assert_eq!((report.files, report.directories), (1, 1));
}

#[test]
fn closing_commits_what_was_written() {
    let mut rig = Rig::new(32 * MIB);
    let ino = rig.create(ROOT, "file").unwrap();
    rig.write(ino, 10, b"hello", Unstable).unwrap();
    let mut rig = rig.reopen();
    assert_eq!(rig.content(ino), b"\0\0\0\0\0\0\0\0\0\0hello");
}

#[test]
fn no_payload_byte_is_copied() {
    let mut rig = Rig::new(32 * MIB);
    let ino = rig.create(ROOT, "file").unwrap();
    let before = rig.memory.stats().snapshot();
    rig.write(ino, 0, &pattern(1, 100_000), Unstable).unwrap();
    rig.write(ino, 777, &pattern(2, 100_000), FileSync).unwrap();
    rig.content(ino);
    assert_eq!(rig.memory.stats().snapshot().since(&before).payload_bytes_copied, 0);
}

#[test]
fn a_payload_in_crumbs_is_written() {
    let mut rig = Rig::new(32 * MIB);
    let ino = rig.create(ROOT, "file").unwrap();
    let expected = pattern(3, 10_000);
    let mut data = fido_core::payload::Payload::new();
    for byte in expected.chunks(7) {
        let mut buf = rig.memory.alloc(byte.len()).unwrap();
        buf.as_mut_slice().copy_from_slice(byte);
        data.append(buf.into_payload());
    }
    let op = VolumeOp::Write { ino, offset: 100, data, stability: FileSync, caller: root() };
    rig.run(op).unwrap();
    assert_eq!(&rig.content(ino)[100..], expected);
}

#[test]
fn holes_and_cut_tails_read_as_zeros() {
    let mut rig = Rig::new(32 * MIB);
    let ino = rig.create(ROOT, "file").unwrap();
    rig.write(ino, 100_000, &[7; 10_000], Unstable).unwrap();
    let mut expected = vec![0; 100_000];
    expected.extend([7; 10_000]);
    assert_eq!(rig.content(ino), expected);
    assert!(rig.attr(ino).unwrap().used < 20_000);
    for size in [105_001, 120_000, 50_000, 50_001] {
        let attr = rig.truncate(ino, size).unwrap();
        assert_eq!(attr.size, size);
        expected.resize(size as usize, 0);
        assert_eq!(rig.content(ino), expected, "{size}");
    }
    assert_eq!(rig.attr(ino).unwrap().used, 0);
    assert_eq!(rig.check().problems, Vec::<String>::new());
}

#[test]
fn reads_end_at_the_end() {
    let mut rig = Rig::new(32 * MIB);
    let ino = rig.create(ROOT, "file").unwrap();
    assert_eq!(rig.read(ino, 0, 10).unwrap(), (vec![], true));
    rig.write(ino, 0, b"0123456789", Unstable).unwrap();
    assert_eq!(rig.read(ino, 0, 9).unwrap(), (b"012345678".to_vec(), false));
    assert_eq!(rig.read(ino, 3, 100).unwrap(), (b"3456789".to_vec(), true));
    assert_eq!(rig.read(ino, 10, 1).unwrap(), (vec![], true));
    assert_eq!(rig.read(ino, u64::MAX, 1).unwrap(), (vec![], true));
    assert_eq!(rig.read(ROOT, 0, 1), Err(VolumeError::IsDirectory));
    assert_eq!(rig.read(999, 0, 1), Err(VolumeError::Stale));
}

#[test]
fn limits_of_a_file() {
    let mut rig = Rig::new(32 * MIB);
    let ino = rig.create(ROOT, "file").unwrap();
    rig.write(ino, MAX_FILE_BYTES - 1, b"x", Unstable).unwrap();
    assert_eq!(rig.write(ino, MAX_FILE_BYTES, b"x", Unstable), Err(VolumeError::TooBig));
    assert_eq!(rig.write(ino, u64::MAX, b"x", Unstable), Err(VolumeError::TooBig));
    assert_eq!(rig.truncate(ino, MAX_FILE_BYTES + 1), Err(VolumeError::TooBig));
    assert_eq!(rig.truncate(ino, MAX_FILE_BYTES).unwrap().size, MAX_FILE_BYTES);
    assert_eq!(rig.read(ino, MAX_FILE_BYTES - 2, 5).unwrap(), (b"\0x".to_vec(), true));
    let op = rig.write_op(ino, 0, &vec![1; MAX_IO_BYTES as usize + 1], Unstable);
    match rig.run(op).unwrap() {
        VolumeReply::Written { count, .. } => assert_eq!(count, MAX_IO_BYTES),
        other => panic!("{other:?}"),
    }
}

#[test]
fn names_have_limits() {
    let mut rig = Rig::new(32 * MIB);
    assert!(rig.create(ROOT, &"n".repeat(MAX_NAME_BYTES)).is_ok());
    assert_eq!(rig.create(ROOT, &"n".repeat(MAX_NAME_BYTES + 1)), Err(VolumeError::NameTooLong));
    for bad in ["", "a/b", "a\0"] {
        assert_eq!(rig.create(ROOT, bad), Err(VolumeError::Invalid));
    }
    assert_eq!(rig.mkdir(ROOT, ".."), Err(VolumeError::Exists));
    assert_eq!(rig.remove(ROOT, "."), Err(VolumeError::Invalid));
    let symlink = |len: usize| VolumeOp::Symlink {
        dir: ROOT,
        name: format!("l{len}").into(),
        target: vec![b't'; len],
        set: SetAttr::default(),
        caller: root(),
    };
    assert!(rig.run(symlink(MAX_SYMLINK_BYTES)).is_ok());
    assert_eq!(rig.run(symlink(MAX_SYMLINK_BYTES + 1)).unwrap_err(), VolumeError::NameTooLong);
    let ino = rig.lookup(ROOT, "l1024").unwrap().ino;
    match rig.run(VolumeOp::ReadLink { ino }).unwrap() {
        VolumeReply::Target { target, attr } => assert_eq!((target.len() as u64, 1024), (attr.size, target.len())),
        other => panic!("{other:?}"),
    }
    assert_eq!(rig.run(VolumeOp::ReadLink { ino: ROOT }).unwrap_err(), VolumeError::Invalid);
}

#[test]
fn a_removed_file_is_stale_and_its_space_comes_back() {
    let mut rig = Rig::new(32 * MIB);
    let free = rig.free();
    let ino = rig.create(ROOT, "file").unwrap();
    rig.write(ino, 0, &vec![1; 1 << 20], FileSync).unwrap();
    rig.write(ino, 1 << 20, &vec![1; 1 << 20], Unstable).unwrap();
    assert_eq!(rig.free(), free - (2 << 20));
    rig.remove(ROOT, "file").unwrap();
    assert_eq!(rig.attr(ino), Err(VolumeError::Stale));
    assert_eq!(rig.write(ino, 0, b"x", Unstable), Err(VolumeError::Stale));
    assert_eq!(rig.commit(ino), Err(VolumeError::Stale));
    assert_eq!(rig.free(), free);
    assert_eq!(rig.check().problems, Vec::<String>::new());
}

#[test]
fn rewriting_does_not_leak() {
    let mut rig = Rig::new(32 * MIB);
    let ino = rig.create(ROOT, "file").unwrap();
    rig.write(ino, 0, &vec![1; 1 << 20], FileSync).unwrap();
    let free = rig.free();
    for i in 0..100u64 {
        let stability = if i % 3 == 0 { FileSync } else { Unstable };
        rig.write(ino, (i * 37_123) % 900_000, &pattern(i, 50_000), stability).unwrap();
    }
    rig.commit(ino).unwrap();
    assert_eq!(rig.free(), free);
    assert_eq!(rig.attr(ino).unwrap().used, 1 << 20);
}

#[test]
fn a_read_in_flight_keeps_its_blocks() {
    let mut rig = Rig::new(32 * MIB);
    let ino = rig.create(ROOT, "file").unwrap();
    let data = pattern(9, 64 << 10);
    rig.write(ino, 0, &data, FileSync).unwrap();
    rig.disk.faults(|faults| faults.hold_reads = true);
    let read = rig.submit(VolumeOp::Read { ino, offset: 0, count: 64 << 10, caller: root() });
    assert!(!rig.is_answered(read));
    let op = VolumeOp::Remove { dir: ROOT, name: b"file".to_vec(), caller: root() };
    // The store reads, too.
    let remove = rig.submit(op);
    rig.is_answered(remove);
    rig.disk.faults(|faults| faults.hold_reads = false);
    rig.wait(remove).unwrap();
    match rig.wait(read).unwrap() {
        VolumeReply::Data { data: got, .. } => assert_eq!(rig.bytes(&got), data),
        other => panic!("{other:?}"),
    }
}

#[test]
fn concurrent_small_writes_to_one_block_all_count() {
    let mut rig = Rig::new(32 * MIB);
    let ino = rig.create(ROOT, "file").unwrap();
    let expected = pattern(4, 40_000);
    let ops: Vec<VolumeOp> = expected
        .chunks(1000)
        .enumerate()
        .map(|(i, chunk)| rig.write_op(ino, i as u64 * 1000, chunk, if i % 5 == 0 { FileSync } else { Unstable }))
        .collect();
    let tickets: Vec<u64> = ops.into_iter().map(|op| rig.submit(op)).collect();
    for ticket in tickets {
        rig.wait(ticket).unwrap();
    }
    assert_eq!(rig.content(ino), expected);
    rig.commit(ino).unwrap();
    assert_eq!(rig.reopen().content(ino), expected);
}

#[test]
fn a_cut_waits_for_writes_and_the_other_way_round() {
    let mut rig = Rig::new(32 * MIB);
    let ino = rig.create(ROOT, "file").unwrap();
    let write = rig.write_op(ino, 0, &[1; 10_000], Unstable);
    let set = SetAttr { size: Some(5000), ..SetAttr::default() };
    let cut = VolumeOp::SetAttr { ino, set, guard: None, caller: root() };
    let after = rig.write_op(ino, 6000, &[2; 10], FileSync);
    let tickets = [rig.submit(write), rig.submit(cut), rig.submit(after)];
    for ticket in tickets {
        rig.wait(ticket).unwrap();
    }
    let mut expected = vec![1; 5000];
    expected.resize(6000, 0);
    expected.extend([2; 10]);
    assert_eq!(rig.content(ino), expected);
    assert_eq!(rig.check().problems, Vec::<String>::new());
}

#[test]
fn a_time_that_is_set_outlives_the_writes_before_it() {
    let mut rig = Rig::new(32 * MIB);
    let ino = rig.create(ROOT, "file").unwrap();
    let time = Time { seconds: 1_000_000, nanos: 5 };
    let write = rig.write_op(ino, 0, b"data", Unstable);
    rig.run(write).unwrap();
    let set = SetAttr { mtime: SetTime::At(time), ..SetAttr::default() };
    let set = rig.submit(VolumeOp::SetAttr { ino, set, guard: None, caller: root() });
    let commit = rig.submit(VolumeOp::Commit { ino });
    rig.wait(set).unwrap();
    rig.wait(commit).unwrap();
    let attr = rig.attr(ino).unwrap();
    assert_eq!((attr.mtime, attr.size), (time, 4));
    assert_eq!(rig.reopen().attr(ino).unwrap(), attr);
}

#[test]
fn a_guard_holds_only_for_the_last_ctime() {
    let mut rig = Rig::new(32 * MIB);
    let ino = rig.create(ROOT, "file").unwrap();
    let old = rig.attr(ino).unwrap().ctime;
    let set = |guard, mode| {
        let set = SetAttr { mode: Some(mode), ..SetAttr::default() };
        VolumeOp::SetAttr { ino, set, guard: Some(guard), caller: root() }
    };
    rig.run(set(old, 0o600)).unwrap();
    assert_eq!(rig.run(set(old, 0o644)).unwrap_err(), VolumeError::NotSync);
    rig.write(ino, 0, b"x", Unstable).unwrap();
    let new = rig.attr(ino).unwrap().ctime;
    rig.run(set(new, 0o640)).unwrap();
    assert_eq!(rig.attr(ino).unwrap().mode, 0o640);
}

#[test]
fn create_modes() {
    let mut rig = Rig::new(32 * MIB);
    let create = |mode| VolumeOp::Create { dir: ROOT, name: b"f".to_vec(), mode, caller: root() };
    let verifier = [1, 2, 3, 4, 5, 6, 7, 8];
    let first = rig.run(create(CreateMode::Exclusive(verifier))).unwrap();
    let VolumeReply::Created { attr, .. } = first else { panic!("{first:?}") };
    assert!(rig.run(create(CreateMode::Exclusive(verifier))).is_ok());
    assert_eq!(rig.run(create(CreateMode::Exclusive([0; 8]))).unwrap_err(), VolumeError::Exists);
    assert_eq!(rig.run(create(CreateMode::Guarded(SetAttr::default()))).unwrap_err(), VolumeError::Exists);
    rig.write(attr.ino, 0, &[1; 9000], Unstable).unwrap();
    let keep = rig.run(create(CreateMode::Unchecked(SetAttr::default()))).unwrap();
    let VolumeReply::Created { attr, .. } = keep else { panic!("{keep:?}") };
    assert_eq!(attr.size, 9000);
    let cut = SetAttr { size: Some(0), mode: Some(0o777), ..SetAttr::default() };
    let cut = rig.run(create(CreateMode::Unchecked(cut))).unwrap();
    let VolumeReply::Created { attr: cut, .. } = cut else { panic!("{cut:?}") };
    assert_eq!((cut.ino, cut.size, cut.mode), (attr.ino, 0, attr.mode));
    rig.mkdir(ROOT, "d").unwrap();
    let over = VolumeOp::Create {
        dir: ROOT,
        name: b"d".to_vec(),
        mode: CreateMode::Unchecked(SetAttr::default()),
        caller: root(),
    };
    assert_eq!(rig.run(over).unwrap_err(), VolumeError::Exists);
}

#[test]
fn rename_follows_the_rules() {
    let mut rig = Rig::new(32 * MIB);
    let (a, b) = (rig.mkdir(ROOT, "a").unwrap(), rig.mkdir(ROOT, "b").unwrap());
    let sub = rig.mkdir(a, "sub").unwrap();
    let (f, g) = (rig.create(ROOT, "f").unwrap(), rig.create(ROOT, "g").unwrap());
    assert_eq!(rig.rename(ROOT, "a", sub, "x"), Err(VolumeError::Invalid));
    assert_eq!(rig.rename(ROOT, "a", a, "x"), Err(VolumeError::Invalid));
    assert_eq!(rig.rename(ROOT, "none", a, "x"), Err(VolumeError::NotFound));
    assert_eq!(rig.rename(ROOT, "f", ROOT, "a"), Err(VolumeError::IsDirectory));
    assert_eq!(rig.rename(ROOT, "a", ROOT, "f"), Err(VolumeError::NotDirectory));
    assert_eq!(rig.rename(ROOT, "b", ROOT, "a"), Err(VolumeError::NotEmpty));
    rig.rename(ROOT, "f", ROOT, "g").unwrap();
    assert_eq!(rig.attr(g), Err(VolumeError::Stale));
    assert_eq!(rig.lookup(ROOT, "g").unwrap().ino, f);
    assert_eq!(rig.lookup(ROOT, "f"), Err(VolumeError::NotFound));
    // A directory moves: `..` and the link counts move with it.
    rig.rename(a, "sub", b, "moved").unwrap();
    assert_eq!(rig.lookup(sub, "..").unwrap().ino, b);
    assert_eq!((rig.attr(a).unwrap().nlink, rig.attr(b).unwrap().nlink), (2, 3));
    // Over an empty one.
    rig.rename(ROOT, "a", b, "moved").unwrap();
    assert_eq!(rig.attr(sub), Err(VolumeError::Stale));
    assert_eq!(rig.lookup(b, "moved").unwrap().ino, a);
    // Onto itself, and onto another name of itself, nothing happens.
    rig.rename(ROOT, "g", ROOT, "g").unwrap();
    rig.run(VolumeOp::Link { ino: f, dir: b, name: b"h".to_vec(), caller: root() }).unwrap();
    rig.rename(ROOT, "g", b, "h").unwrap();
    assert_eq!(rig.attr(f).unwrap().nlink, 2);
    assert_eq!(rig.lookup(ROOT, "g").unwrap().ino, f);
    assert_eq!(rig.check().problems, Vec::<String>::new());
}

#[test]
fn links_are_counted() {
    let mut rig = Rig::new(32 * MIB);
    let ino = rig.create(ROOT, "f").unwrap();
    rig.write(ino, 0, b"shared", Unstable).unwrap();
    let link = |name: &str| VolumeOp::Link { ino, dir: ROOT, name: name.into(), caller: root() };
    let linked = rig.run(link("g")).unwrap();
    let VolumeReply::Linked { attr, .. } = linked else { panic!("{linked:?}") };
    assert_eq!((attr.nlink, attr.size), (2, 6));
    assert_eq!(rig.run(link("g")).unwrap_err(), VolumeError::Exists);
    rig.remove(ROOT, "f").unwrap();
    assert_eq!(rig.content(ino), b"shared");
    rig.remove(ROOT, "g").unwrap();
    assert_eq!(rig.attr(ino), Err(VolumeError::Stale));
    let dir = VolumeOp::Link { ino: ROOT, dir: ROOT, name: b"r".to_vec(), caller: root() };
    assert_eq!(rig.run(dir).unwrap_err(), VolumeError::NotPermitted);
    assert_eq!(rig.check().problems, Vec::<String>::new());
}

#[test]
fn directories_are_removed_only_when_empty() {
    let mut rig = Rig::new(32 * MIB);
    let dir = rig.mkdir(ROOT, "d").unwrap();
    rig.create(dir, "f").unwrap();
    let rmdir = |name: &str| VolumeOp::RemoveDir { dir: ROOT, name: name.into(), caller: root() };
    assert_eq!(rig.run(rmdir("d")).unwrap_err(), VolumeError::NotEmpty);
    assert_eq!(rig.remove(ROOT, "d"), Err(VolumeError::IsDirectory));
    rig.remove(dir, "f").unwrap();
    rig.create(ROOT, "f").unwrap();
    assert_eq!(rig.run(rmdir("f")).unwrap_err(), VolumeError::NotDirectory);
    rig.run(rmdir("d")).unwrap();
    assert_eq!(rig.create(dir, "late"), Err(VolumeError::Stale));
    assert_eq!(rig.attr(ROOT).unwrap().nlink, 2);
}

#[test]
fn cookies_stay_valid_while_the_directory_changes() {
    let mut rig = Rig::new(32 * MIB);
    for i in 0..10 {
        rig.create(ROOT, &format!("f{i}")).unwrap();
    }
    let all = rig.list(ROOT);
    assert_eq!(all.len(), 10);
    for name in ["f3", "f4", "f5"] {
        rig.remove(ROOT, name).unwrap();
    }
    rig.create(ROOT, "new").unwrap();
    let op = VolumeOp::ReadDir { dir: ROOT, cookie: all[3].cookie, count: 100, caller: root() };
    let VolumeReply::Entries { entries, eof, .. } = rig.run(op).unwrap() else { panic!() };
    let names: Vec<String> = entries.iter().map(|e| String::from_utf8_lossy(&e.name).into_owned()).collect();
    assert_eq!(names, ["f6", "f7", "f8", "f9", "new"]);
    assert!(eof);
    let none = VolumeOp::ReadDir { dir: ROOT, cookie: u64::MAX, count: 100, caller: root() };
    let VolumeReply::Entries { entries, eof, .. } = rig.run(none).unwrap() else { panic!() };
    assert!(entries.is_empty() && eof);
}

#[test]
fn permissions_are_checked() {
    let mut rig = Rig::new(32 * MIB);
    let set = SetAttr { mode: Some(0o755), ..SetAttr::default() };
    rig.run(VolumeOp::SetAttr { ino: ROOT, set, guard: None, caller: root() }).unwrap();
    let create = |caller: Caller, name: &str| VolumeOp::Create {
        dir: ROOT,
        name: name.into(),
        mode: CreateMode::Guarded(SetAttr { mode: Some(0o400), ..SetAttr::default() }),
        caller,
    };
    assert_eq!(rig.run(create(user(5), "f")).unwrap_err(), VolumeError::Access);
    let set = SetAttr { uid: Some(5), gid: Some(5), ..SetAttr::default() };
    assert_eq!(
        rig.run(VolumeOp::SetAttr { ino: ROOT, set, guard: None, caller: user(5) }).unwrap_err(),
        VolumeError::NotPermitted
    );
    rig.run(VolumeOp::SetAttr { ino: ROOT, set, guard: None, caller: root() }).unwrap();
    let made = rig.run(create(user(5), "f")).unwrap();
    let VolumeReply::Created { attr, .. } = made else { panic!("{made:?}") };
    assert_eq!((attr.uid, attr.gid, attr.mode), (5, 5, 0o400));
    let read = |caller| VolumeOp::Read { ino: attr.ino, offset: 0, count: 1, caller };
    let write = |rig: &Rig, caller| VolumeOp::Write {
        ino: attr.ino,
        offset: 0,
        data: rig.payload(b"x"),
        stability: Unstable,
        caller,
    };
    let by_owner = write(&rig, user(5));
    rig.run(by_owner).unwrap();
    assert_eq!(rig.run(read(user(6))).unwrap_err(), VolumeError::Access);
    let by_other = write(&rig, user(6));
    assert_eq!(rig.run(by_other).unwrap_err(), VolumeError::Access);
    assert!(rig.run(read(root())).is_ok());
    let remove = VolumeOp::Remove { dir: ROOT, name: b"f".to_vec(), caller: user(6) };
    assert_eq!(rig.run(remove).unwrap_err(), VolumeError::Access);
}

#[test]
fn the_verifier_changes_and_the_fsid_stays() {
    let rig = Rig::new(32 * MIB);
    let (verifier, fsid) = (crate::volume::ops::Volume::write_verifier(&rig.volume), rig.volume.fsid());
    let rig = rig.reopen();
    assert_ne!(rig.volume.write_verifier(), verifier);
    assert_eq!(rig.volume.fsid(), fsid);
}

#[test]
fn hot_operations_need_no_store() {
    let mut rig = Rig::new(32 * MIB);
    let dir = rig.mkdir(ROOT, "d").unwrap();
    let ino = rig.create(dir, "f").unwrap();
    rig.write(ino, 0, b"data", FileSync).unwrap();
    rig.attr(ROOT).unwrap();
    let ops = [
        VolumeOp::GetAttr { ino },
        VolumeOp::Lookup { dir, name: b"f".to_vec(), caller: root() },
        VolumeOp::Lookup { dir, name: b"..".to_vec(), caller: root() },
        VolumeOp::Read { ino, offset: 0, count: 4, caller: root() },
        VolumeOp::Commit { ino },
        rig.write_op(ino, 4, b"more", Unstable),
    ];
    for op in ops {
        let kind = discriminant(&op);
        let ticket = rig.submit(op);
        // One poll, before the store thread could have had a word.
        let (answered, answer) = rig.volume.poll().unwrap_or_else(|| panic!("{kind:?} was not answered at once"));
        assert_eq!(answered, ticket);
        answer.unwrap();
    }
}

#[test]
fn caches_are_bounded_and_forget_nothing() {
    let small = crate::volume::nas::Options { cached_inodes: 4, cached_names: 4, cached_extents: 4, ..options() };
    let mut rig = Rig::open(&Disk::new(32 * MIB), small).unwrap();
    let inos: Vec<Ino> = (0..40).map(|i| rig.create(ROOT, &format!("f{i}")).unwrap()).collect();
    for (i, ino) in inos.iter().enumerate() {
        rig.write(*ino, i as u64, &pattern(i as u64, 5000), Unstable).unwrap();
    }
    for (i, ino) in inos.iter().enumerate() {
        rig.commit(*ino).unwrap();
        assert_eq!(rig.content(*ino)[i..], pattern(i as u64, 5000));
        assert_eq!(rig.lookup(ROOT, &format!("f{i}")).unwrap().ino, *ino);
    }
    rig.volume.flush();
    assert!(rig.volume.nodes.len() <= 6, "{}", rig.volume.nodes.len());
    assert!(rig.volume.names.len() <= 4);
}

#[test]
fn one_operation_too_many_is_told_to_come_again() {
    let few = crate::volume::nas::Options { max_operations: 3, ..options() };
    let mut rig = Rig::open(&Disk::new(32 * MIB), few).unwrap();
    let tickets: Vec<u64> = (0..4).map(|_| rig.submit(VolumeOp::Stat)).collect();
    let answers: Vec<bool> = tickets.into_iter().map(|ticket| rig.wait(ticket).is_ok()).collect();
    assert_eq!(answers, [true, true, true, false]);
    assert_eq!(rig.run(VolumeOp::Stat).map(drop), Ok(()));
    assert_eq!(rig.volume.operations(), 0);
}
