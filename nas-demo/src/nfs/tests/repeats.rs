//! Calls that are sent twice.

use mmnet::stream::StreamId;
use nfs3_types::nfs3::{MKDIR3args, NFS_PROGRAM as P, PROGRAM, REMOVE3args, diropargs3, filename3, sattr3};

use crate::nfs::testing::{Rig, call_bytes, root};
use crate::volume::ops::VolumeError;

const AGAIN: StreamId = StreamId(2);

fn make_dir(xid: u32) -> Vec<u8> {
    let where_ = diropargs3 { dir: root(), name: filename3::from(&b"dir"[..]) };
    call_bytes(xid, PROGRAM, P::NFSPROC3_MKDIR as u32, &MKDIR3args { where_, attributes: sattr3::default() })
}

#[test]
fn a_retransmission_after_a_reconnect_gets_the_same_reply() {
    let mut rig = Rig::new();
    let first = rig.exchange(Rig::ID, &make_dir(5));
    rig.server.port().close(Rig::ID);
    rig.server.port().open(AGAIN);
    assert_eq!(rig.exchange(AGAIN, &make_dir(5)), first);
    assert_eq!(rig.server.volume().submitted, 1);
    assert_ne!(rig.exchange(AGAIN, &make_dir(6)), first, "another call fails: the name is taken");
    assert_eq!(rig.server.volume().submitted, 2);
}

#[test]
fn the_same_xid_with_other_arguments_is_another_call() {
    let mut rig = Rig::new();
    let made = rig.exchange(Rig::ID, &make_dir(5));
    let object = diropargs3 { dir: root(), name: filename3::from(&b"none"[..]) };
    let other = call_bytes(5, PROGRAM, P::NFSPROC3_REMOVE as u32, &REMOVE3args { object });
    assert_ne!(rig.exchange(Rig::ID, &other), made);
    assert_eq!(rig.server.volume().submitted, 2);
}

#[test]
fn other_clients_calls_are_not_confused() {
    let mut rig = Rig::new();
    let made = rig.exchange(Rig::ID, &make_dir(5));
    rig.server.port().open_from(AGAIN, ([127, 0, 0, 2], 700).into());
    assert_ne!(rig.exchange(AGAIN, &make_dir(5)), made);
}

#[test]
fn a_repetition_of_a_call_under_way_is_dropped() {
    let mut rig = Rig::new();
    rig.server.volume().hold = true;
    assert!(rig.exchange(Rig::ID, &make_dir(5)).is_empty());
    assert!(rig.exchange(Rig::ID, &make_dir(5)).is_empty());
    rig.server.volume().hold = false;
    rig.settle();
    let reply = rig.server.port().take_bytes(Rig::ID);
    assert_eq!(u32::from_be_bytes(reply[..4].try_into().unwrap()), 1 << 31 | (reply.len() as u32 - 4), "one reply");
    assert_eq!(rig.server.volume().submitted, 1);
    assert!(rig.server.is_idle());
}

#[test]
fn a_call_under_way_is_answered_where_it_was_sent_again() {
    let mut rig = Rig::new();
    rig.server.volume().hold = true;
    assert!(rig.exchange(Rig::ID, &make_dir(5)).is_empty());
    rig.server.port().close(Rig::ID);
    rig.server.port().open(AGAIN);
    assert!(rig.exchange(AGAIN, &make_dir(5)).is_empty());
    rig.server.volume().hold = false;
    rig.settle();
    assert!(!rig.server.port().take_bytes(AGAIN).is_empty());
    assert_eq!(rig.server.volume().submitted, 1);
    assert!(rig.server.is_idle());
}

#[test]
fn a_busy_volume_is_asked_again() {
    let mut rig = Rig::new();
    rig.server.volume().fail = Some(VolumeError::Busy);
    let busy = rig.exchange(Rig::ID, &make_dir(5));
    assert_ne!(rig.exchange(Rig::ID, &make_dir(5)), busy);
}
