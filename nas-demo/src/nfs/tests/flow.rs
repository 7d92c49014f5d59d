//! Limits, backpressure, broken connections and shutdown.

use std::sync::Arc;

use fido_core::payload::Payload;
use mmnet::stream::StreamId;
use nfs3_types::nfs3::{
    COMMIT3args, CREATE3args, CREATE3res, Nfs3Option, createhow3, diropargs3, filename3, nfs_fh3, stable_how,
};
use nfs3_types::nfs3::{NFS_PROGRAM as P, PROGRAM, READ3args, SETATTR3args, SETATTR3res, WRITE3args, sattr3};
use nfs3_types::xdr_codec::{Opaque, Void};

use crate::nfs::Limits;
use crate::nfs::testing::{Rig, call_bytes, root};

const OTHER: StreamId = StreamId(2);

fn null(xid: u32) -> Vec<u8> {
    call_bytes(xid, PROGRAM, P::NFSPROC3_NULL as u32, &Void)
}

fn get_attr(xid: u32) -> Vec<u8> {
    call_bytes(xid, PROGRAM, P::NFSPROC3_GETATTR as u32, &root())
}

fn read(xid: u32, file: &nfs_fh3, count: u32) -> Vec<u8> {
    call_bytes(xid, PROGRAM, P::NFSPROC3_READ as u32, &READ3args { file: file.clone(), offset: 0, count })
}

/// The xids of the replies in a stream of them.
fn xids(mut stream: &[u8]) -> Vec<u32> {
    let mut xids = Vec::new();
    while !stream.is_empty() {
        let word = |at: usize| u32::from_be_bytes(stream[at..at + 4].try_into().unwrap());
        xids.push(word(4));
        stream = &stream[4 + (word(0) & !(1 << 31)) as usize..];
    }
    xids
}

fn file_of(rig: &mut Rig, size: u64) -> nfs_fh3 {
    let where_ = diropargs3 { dir: root(), name: filename3::from(&b"file"[..]) };
    let args = CREATE3args { where_, how: createhow3::GUARDED(sattr3::default()) };
    let created: CREATE3res = rig.nfs(P::NFSPROC3_CREATE, &args);
    let file = created.unwrap().obj.unwrap();
    let new_attributes = sattr3 { size: Nfs3Option::Some(size), ..Default::default() };
    let args = SETATTR3args { object: file.clone(), new_attributes, guard: Nfs3Option::None };
    let set: SETATTR3res = rig.nfs(P::NFSPROC3_SETATTR, &args);
    set.unwrap();
    file
}

#[test]
fn what_is_no_call_resets_its_connection_only() {
    let mut rig = Rig::new();
    let mut reply = null(1);
    reply[11] = 1;
    let oversized = ((1u32 << 31) | ((1 << 20) + (64 << 10) + 1)).to_be_bytes().to_vec();
    let empty = (1u32 << 31).to_be_bytes().to_vec();
    for (i, bytes) in [reply, oversized, empty].into_iter().enumerate() {
        let id = StreamId(10 + i as u32);
        rig.server.port().open(id);
        rig.settle();
        assert!(rig.exchange(id, &bytes).is_empty());
        assert_eq!(rig.server.port().reset.pop(), Some(id));
    }
    assert_eq!(xids(&rig.exchange(Rig::ID, &null(4))), [4]);
    assert_eq!(rig.server.connections(), 1);
}

#[test]
fn a_connection_has_a_bounded_number_of_calls_under_way() {
    let mut rig = Rig::with(16 << 20, Limits { calls_per_connection: 3, ..Limits::default() });
    rig.server.volume().hold = true;
    let calls: Vec<u8> = (1..=4).flat_map(get_attr).collect();
    rig.exchange(Rig::ID, &calls);
    assert_eq!(rig.server.volume().submitted, 3);
    assert!(rig.server.timeout().is_some());
    rig.server.volume().hold = false;
    rig.settle();
    assert_eq!(xids(&rig.server.port().take_bytes(Rig::ID)), [1, 2, 3, 4]);
    assert!(rig.server.timeout().is_none() && rig.server.is_idle());
}

#[test]
fn all_connections_together_have_a_bounded_number_of_calls_under_way() {
    let mut rig = Rig::with(16 << 20, Limits { calls: 4, ..Limits::default() });
    rig.server.port().open(OTHER);
    rig.server.volume().hold = true;
    for id in [Rig::ID, OTHER] {
        let calls: Vec<u8> = (1..=3).flat_map(get_attr).collect();
        rig.server.port().receive(id, &calls);
    }
    rig.settle();
    assert_eq!(rig.server.volume().submitted, 4);
    rig.server.volume().hold = false;
    rig.settle();
    assert_eq!(xids(&rig.server.port().take_bytes(Rig::ID)), [1, 2, 3]);
    assert_eq!(xids(&rig.server.port().take_bytes(OTHER)), [1, 2, 3]);
}

#[test]
fn a_deep_pipeline_does_not_keep_others_waiting() {
    let mut rig = Rig::with(16 << 20, Limits { calls: 2, ..Limits::default() });
    rig.server.port().open(OTHER);
    rig.server.volume().hold = true;
    let calls: Vec<u8> = (1..=50).flat_map(get_attr).collect();
    rig.server.port().receive(Rig::ID, &calls);
    rig.server.port().receive(OTHER, &get_attr(1));
    rig.settle();
    rig.server.volume().hold = false;
    assert!(rig.server.poll());
    assert_eq!(xids(&rig.server.port().take_bytes(OTHER)), [1]);
}

#[test]
fn a_refused_reply_waits_and_stops_its_connection() {
    let mut rig = Rig::new();
    rig.server.port().open(OTHER);
    rig.server.port().fill(Rig::ID);
    let calls: Vec<u8> = (1..=3).flat_map(null).collect();
    assert!(rig.exchange(Rig::ID, &calls).is_empty());
    assert!(!rig.server.is_idle());
    assert!(rig.exchange(Rig::ID, &get_attr(4)).is_empty());
    assert_eq!(rig.server.volume().submitted, 0, "nothing is taken from it");
    assert_eq!(xids(&rig.exchange(OTHER, &null(1))), [1]);
    rig.server.port().make_room(Rig::ID);
    rig.settle();
    assert_eq!(xids(&rig.server.port().take_bytes(Rig::ID)), [1, 2, 3, 4]);
    assert!(rig.server.is_idle());
}

#[test]
fn a_reply_waits_for_a_buffer() {
    let mut rig = Rig::with(2 << 20, Limits::default());
    rig.server.volume().hold = true;
    rig.exchange(Rig::ID, &get_attr(1));
    let mut hoard = Vec::new();
    for size in [256 << 10, 16 << 10, 1024, 64] {
        while let Ok(buf) = rig.memory.alloc(size) {
            hoard.push(buf);
        }
    }
    rig.server.volume().hold = false;
    rig.settle();
    assert!(rig.server.port().take_sent(Rig::ID).is_empty());
    assert!(rig.server.timeout().is_some() && !rig.server.is_idle());
    drop(hoard);
    rig.settle();
    assert_eq!(xids(&rig.server.port().take_bytes(Rig::ID)), [1]);
    assert!(rig.server.timeout().is_none());
}

#[test]
fn a_slow_reader_is_stopped_and_others_are_not() {
    let limits = Limits { bytes_per_connection: 1 << 20, bytes: 2 << 20, ..Limits::default() };
    let mut rig = Rig::with(64 << 20, limits);
    let file = file_of(&mut rig, 512 << 10);
    let before = rig.server.volume().submitted;
    let calls: Vec<u8> = (1..=20).flat_map(|xid| read(xid, &file, 512 << 10)).collect();
    rig.server.port().receive(Rig::ID, &calls);
    rig.settle();
    assert_eq!(rig.server.volume().submitted - before, 2, "more only when the port has let go of these");
    rig.server.port().open(OTHER);
    assert_eq!(xids(&rig.exchange(OTHER, &read(1, &file, 512 << 10))), [1]);
    let mut got = Vec::new();
    for _ in 0..20 {
        got.extend(xids(&rig.server.port().take_bytes(Rig::ID)));
        rig.settle();
    }
    assert_eq!(got, (1..=20).collect::<Vec<_>>());
}

#[test]
fn a_connection_without_anything_in_use_gets_one_call_whatever_others_use() {
    let limits = Limits { bytes_per_connection: 1 << 20, bytes: 1, ..Limits::default() };
    let mut rig = Rig::with(16 << 20, limits);
    rig.server.port().open(OTHER);
    rig.server.volume().hold = true;
    rig.server.port().receive(Rig::ID, &[get_attr(1), get_attr(2)].concat());
    rig.server.port().receive(OTHER, &[get_attr(1), get_attr(2)].concat());
    rig.settle();
    assert_eq!(rig.server.volume().submitted, 2);
}

#[test]
fn a_closed_connection_lets_go_of_everything() {
    let mut rig = Rig::new();
    let file = file_of(&mut rig, 0);
    rig.server.volume().hold = true;
    let data = vec![5; 4000];
    let args = WRITE3args {
        file,
        offset: 0,
        count: data.len() as u32,
        stable: stable_how::FILE_SYNC,
        data: Opaque::borrowed(&data),
    };
    let mut call = call_bytes(9, PROGRAM, P::NFSPROC3_WRITE as u32, &args);
    call.extend(&null(10)[..20]);
    let mut buf = rig.memory.alloc(call.len()).unwrap();
    buf.as_mut_slice().copy_from_slice(&call);
    let hold = Arc::new(buf);
    let segment = hold.segment();
    rig.server.port().receive_payload(Rig::ID, Payload::held(segment, hold.clone()));
    rig.settle();
    rig.server.port().close(Rig::ID);
    rig.settle();
    assert_eq!(rig.server.connections(), 0);
    rig.server.volume().hold = false;
    rig.settle();
    assert_eq!(Arc::strong_count(&hold), 1);
    assert!(rig.server.is_idle());
    assert_eq!(rig.server.volume().content(2), data, "the write is done nevertheless");
    rig.server.port().open(Rig::ID);
    assert_eq!(xids(&rig.exchange(Rig::ID, &null(1))), [1], "the name serves again");
}

#[test]
fn a_restart_of_the_volume_shows_in_every_pair_of_write_and_commit() {
    let mut rig = Rig::new();
    let file = file_of(&mut rig, 0);
    let stable = stable_how::UNSTABLE;
    let args = WRITE3args { file: file.clone(), offset: 0, count: 1, stable, data: Opaque::borrowed(b"a") };
    let write = call_bytes(1, PROGRAM, P::NFSPROC3_WRITE as u32, &args);
    let commit = call_bytes(2, PROGRAM, P::NFSPROC3_COMMIT as u32, &COMMIT3args { file, offset: 0, count: 0 });
    rig.server.volume().hold = true;
    rig.exchange(Rig::ID, &[write, commit].concat());
    rig.server.volume().verifier = *b"restart!";
    rig.server.volume().hold = false;
    rig.settle();
    let replies = rig.server.port().take_bytes(Rig::ID);
    let first = 4 + (u32::from_be_bytes(replies[..4].try_into().unwrap()) & !(1 << 31)) as usize;
    assert!(replies[..first].ends_with(b"verifier") && replies.ends_with(b"restart!"));
}

#[test]
fn a_half_closed_connection_is_answered_and_then_finished() {
    let mut rig = Rig::new();
    rig.server.volume().hold = true;
    rig.server.port().receive(Rig::ID, &[get_attr(1), get_attr(2), get_attr(3)[..9].to_vec()].concat());
    rig.server.port().finish_remote(Rig::ID);
    rig.settle();
    assert!(rig.server.port().finished.is_empty());
    rig.server.volume().hold = false;
    rig.settle();
    assert_eq!(xids(&rig.server.port().take_bytes(Rig::ID)), [1, 2]);
    assert_eq!(rig.server.port().finished, [Rig::ID]);
}

#[test]
fn one_connection_too_many_is_reset() {
    let mut rig = Rig::with(16 << 20, Limits { connections: 2, ..Limits::default() });
    rig.server.port().open(OTHER);
    rig.settle();
    assert!(rig.server.port().reset.is_empty());
    rig.server.port().open(StreamId(3));
    rig.settle();
    assert_eq!(rig.server.port().reset, [StreamId(3)]);
    assert_eq!(rig.server.connections(), 2);
}

#[test]
fn draining_answers_what_is_under_way_and_takes_nothing_more() {
    let mut rig = Rig::new();
    rig.server.volume().hold = true;
    rig.exchange(Rig::ID, &get_attr(1));
    rig.server.drain();
    rig.server.port().receive(Rig::ID, &get_attr(2));
    rig.server.port().open(OTHER);
    rig.settle();
    assert!(!rig.server.is_idle() && rig.server.port().finished.is_empty());
    rig.server.volume().hold = false;
    rig.settle();
    assert!(rig.server.is_idle());
    assert_eq!(xids(&rig.server.port().take_bytes(Rig::ID)), [1]);
    assert_eq!(rig.server.port().finished, [Rig::ID]);
    assert_eq!(rig.server.port().reset, [OTHER]);
}

#[test]
fn a_call_without_data_beyond_the_limit_is_garbage() {
    let mut rig = Rig::new();
    for (extra, refused) in [(0, false), (4, true)] {
        let mut call = null(1);
        call.resize(4 + (64 << 10) + extra, 0);
        let mark = (call.len() as u32 - 4) | 1 << 31;
        call[..4].copy_from_slice(&mark.to_be_bytes());
        let reply = rig.exchange(Rig::ID, &call);
        assert_eq!(reply[27], if refused { 4 } else { 0 });
    }
}
