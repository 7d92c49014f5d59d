//! The client against the fake, and against servers that say what they like.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use proptest::prelude::*;

use super::fake::FakeStore;
use super::wire::{Access, Kind, Packet, Permission, WireError};
use super::*;

const SOON: Option<Duration> = Some(Duration::from_secs(20));

fn dom0() -> (FakeStore, Store) {
    let fake = FakeStore::default();
    let store = fake.connect(0);
    (fake, store)
}

#[test]
fn nodes_are_written_listed_and_removed() {
    let (_, store) = dom0();
    let now = store.now();
    now.write("/a/b/c", b"value\0\xff").unwrap();
    now.make_directory("/a/b/d").unwrap();
    assert_eq!(now.read("/a/b/c").unwrap(), b"value\0\xff");
    assert_eq!(now.read("/a/b").unwrap(), b"");
    assert_eq!(now.children("/a/b").unwrap(), ["c", "d"]);
    assert!(now.remove("/a/b").unwrap() && !now.remove("/a/b").unwrap());
    assert_eq!(now.read("/a/b/c").unwrap_err().code(), Some(&Code::NoEntry));
    assert_eq!(now.read_if_any("/a/b/c").unwrap(), None);
    assert!(now.children("/nothing").unwrap().is_empty());
    assert_eq!(store.domain_path(7).unwrap(), "/local/domain/7");
    assert!(matches!(now.read("/a b"), Err(StoreError::Wire(WireError::Path { .. }))));
}

#[test]
fn a_value_fills_a_packet_and_no_more() {
    let (_, store) = dom0();
    let most = wire::MAX_PAYLOAD_BYTES - "/v\0".len();
    store.now().write("/v", &vec![7; most]).unwrap();
    assert_eq!(store.now().read("/v").unwrap().len(), most);
    let error = store.now().write("/v", &vec![7; most + 1]).unwrap_err();
    assert!(matches!(error, StoreError::Wire(WireError::TooLong { bytes: 4097 })));
    assert!(store.now().read("/v").is_ok(), "the connection is as good as before");
}

#[test]
fn long_directories_come_in_parts() {
    let (_, store) = dom0();
    let names: Vec<_> = (0..1500).map(|n| format!("child-{n:05}")).collect();
    for name in &names {
        store.now().make_directory(&format!("/many/{name}")).unwrap();
    }
    assert_eq!(store.now().children("/many").unwrap(), names);
}

#[test]
fn permissions_keep_strangers_out() {
    let (fake, store) = dom0();
    fake.add_domain(5);
    fake.add_domain(6);
    let (five, six) = (fake.connect(5), fake.connect(6));
    five.now().write("data/x", b"1").unwrap();
    assert_eq!(store.now().read("/local/domain/5/data/x").unwrap(), b"1");
    let stranger = six.now().read("/local/domain/5/data/x").unwrap_err();
    assert_eq!(stranger.code(), Some(&Code::NotPermitted));
    assert!(five.now().write("y", b"1").is_err(), "its home is the toolstack's");
    let shared = [Permission { domain: 5, access: Access::None }, Permission { domain: 6, access: Access::Read }];
    five.now().set_permissions("data/x", &shared).unwrap();
    assert_eq!(six.now().permissions("/local/domain/5/data/x").unwrap(), shared);
    assert_eq!(six.now().read("/local/domain/5/data/x").unwrap(), b"1");
    assert!(six.now().write("/local/domain/5/data/x", b"2").is_err());
}

#[test]
fn watches_fire_at_once_on_changes_and_on_deaths() {
    let (fake, store) = dom0();
    fake.add_domain(5);
    let five = fake.connect(5);
    store.watch("/local/domain/5/data", "t").unwrap();
    assert_eq!(store.watch("/local/domain/5/data", "t").unwrap_err().code(), Some(&Code::Exists));
    let changed = |path: &str| Some(WatchEvent::Changed { path: format!("/local/domain/5/{path}"), token: "t".into() });
    assert_eq!(store.wait_event(SOON).unwrap(), changed("data"));
    assert_eq!(store.poll_event().unwrap(), None);
    five.now().write("data/state", b"up").unwrap();
    assert_eq!(store.wait_event(SOON).unwrap(), changed("data/state"));
    while store.poll_event().unwrap().is_some() {}
    fake.remove_domain(5);
    assert!(store.wait_event(SOON).unwrap().is_some(), "death");
    assert_eq!(store.now().read_if_any("/local/domain/5/data/state").unwrap(), None);
    store.unwatch("/local/domain/5/data", "t").unwrap();
    assert_eq!(store.unwatch("/local/domain/5/data", "t").unwrap_err().code(), Some(&Code::NoEntry));
}

#[test]
fn who_waits_for_events_is_not_starved_by_requests() {
    let (_, store) = dom0();
    store.watch("/w", "t").unwrap();
    let waiter = store.clone();
    let seen = std::thread::spawn(move || {
        let mut seen = 0;
        while seen <= 100 {
            seen += usize::from(waiter.wait_event(SOON).unwrap().is_some());
        }
    });
    for n in 0..100 {
        // Each event comes in between a request and its reply, to the thread that does not wait for it.
        store.now().write("/w/x", &[n]).unwrap();
    }
    seen.join().unwrap();
}

#[test]
fn transactions_are_all_or_nothing_and_retried() {
    let (fake, store) = dom0();
    let other = fake.connect(0);
    store.now().write("/n", b"1").unwrap();
    let mut attempts = 0;
    let sum = store.transaction(|tx| {
        attempts += 1;
        let value = tx.read("/n")?[0];
        if attempts < 3 {
            other.now().write("/n", &[value + 1])?;
        }
        tx.write("/n", &[value + 10])?;
        Ok(value)
    });
    assert_eq!((sum.unwrap(), attempts), (b'3', 3));
    assert_eq!(other.now().read("/n").unwrap(), [b'3' + 10]);
    let failed: Result<(), _> = store.transaction(|tx| {
        tx.write("/n", b"lost")?;
        tx.read("/missing").map(drop)
    });
    assert_eq!(failed.unwrap_err().code(), Some(&Code::NoEntry));
    assert_eq!(other.now().read("/n").unwrap(), [b'3' + 10]);
}

#[test]
fn a_transaction_that_never_succeeds_is_given_up() {
    let (fake, store) = dom0();
    let other = fake.connect(0);
    let error = store.transaction(|tx| {
        other.now().write("/n", b"x")?;
        tx.write("/n", b"y")
    });
    assert!(matches!(error, Err(StoreError::Contended { attempts: MAX_ATTEMPTS })));
}

#[test]
fn the_end_of_xenstored_is_an_error_for_all() {
    let (fake, store) = dom0();
    let waiter = store.clone();
    let waiting = std::thread::spawn(move || waiter.wait_event(SOON));
    std::thread::sleep(Duration::from_millis(20));
    fake.die();
    assert!(matches!(waiting.join().unwrap(), Err(StoreError::Gone)));
    assert!(matches!(store.now().read("/"), Err(StoreError::Broken | StoreError::Gone)));
}

/// A store whose server answers the first request with these packets, whatever it was.
fn scripted(replies: Vec<Packet>) -> Store {
    let bytes = replies.iter().flat_map(|packet| packet.encode().unwrap()).collect();
    raw(bytes, Duration::from_millis(300))
}

fn raw(bytes: Vec<u8>, patience: Duration) -> Store {
    let (client, mut server) = UnixStream::pair().unwrap();
    std::thread::spawn(move || {
        let _ = server.read(&mut [0; 64]);
        let _ = server.write_all(&bytes);
        // Silent, but there, until the client has gone.
        while server.read(&mut [0; 64]).is_ok_and(|count| count > 0) {}
    });
    Store::over(client.into(), patience).unwrap()
}

fn reply(kind: Kind, request: u32, content: &[u8]) -> Packet {
    Packet { kind, request, transaction: 0, content: content.to_vec() }
}

#[test]
fn replies_out_of_order_break_the_connection() {
    for bad in [reply(Kind::Read, 2, b"x"), reply(Kind::Write, 1, b"OK\0")] {
        let store = scripted(vec![bad]);
        assert!(matches!(store.now().read("/"), Err(StoreError::WrongReply { .. })));
        assert!(matches!(store.now().read("/"), Err(StoreError::Broken)));
        assert!(matches!(store.poll_event(), Err(StoreError::Broken)));
    }
}

#[test]
fn events_before_the_reply_are_kept() {
    let event = reply(Kind::WatchEvent, 0, b"/a\0t\0");
    let store =
        scripted(vec![event.clone(), event, reply(Kind::Read, 1, b"x"), reply(Kind::WatchEvent, 0, b"/b\0t\0")]);
    assert_eq!(store.now().read("/").unwrap(), b"x");
    for path in ["/a", "/a", "/b"] {
        let event = store.wait_event(SOON).unwrap();
        assert_eq!(event, Some(WatchEvent::Changed { path: path.into(), token: "t".into() }));
    }
}

/// All of it comes with one read, so that nothing is left in the socket to wake who waits for it.
#[test]
fn events_right_behind_the_reply_wake_who_waits_for_them() {
    let store = scripted(vec![reply(Kind::Read, 1, b"x"), reply(Kind::WatchEvent, 0, b"/b\0t\0")]);
    store.now().read("/").unwrap();
    let mut fds = store.event_fds().map(|fd| rustix::event::PollFd::from_borrowed_fd(fd, rustix::event::PollFlags::IN));
    let patience = rustix::event::Timespec { tv_sec: 20, tv_nsec: 0 };
    assert!(rustix::event::poll(&mut fds, Some(&patience)).unwrap() > 0);
    assert!(matches!(store.poll_event().unwrap(), Some(WatchEvent::Changed { .. })));
}

#[test]
fn events_that_come_with_a_reply_are_told_of() {
    for answer in [reply(Kind::Read, 1, b"x"), reply(Kind::Error, 1, b"ENOENT\0")] {
        let store = scripted(vec![answer, reply(Kind::WatchEvent, 0, b"/b\0t\0")]);
        let _ = store.now().read("/");
        let [_, events] = store.event_fds();
        let mut fds = [rustix::event::PollFd::from_borrowed_fd(events, rustix::event::PollFlags::IN)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        assert_eq!(rustix::event::poll(&mut fds, Some(&now)).unwrap(), 1, "nothing else will wake who waits");
        assert!(store.poll_event().unwrap().is_some());
    }
}

#[test]
fn too_many_events_are_dropped_with_a_word() {
    let event = reply(Kind::WatchEvent, 0, b"/a\0t\0");
    let mut replies = vec![event; MAX_QUEUED_EVENTS + 1];
    replies.push(reply(Kind::Read, 1, b"x"));
    let store = raw(replies.iter().flat_map(|packet| packet.encode().unwrap()).collect(), Duration::from_secs(20));
    store.now().read("/").unwrap();
    assert_eq!(store.poll_event().unwrap(), Some(WatchEvent::Lost));
    assert!(matches!(store.poll_event().unwrap(), Some(WatchEvent::Changed { .. })));
    assert_eq!(store.poll_event().unwrap(), None);
}

#[test]
fn silence_is_a_timeout_and_half_a_packet_too() {
    let silent = scripted(vec![]);
    let waiting = std::thread::spawn({
        let silent = silent.clone();
        move || silent.wait_event(SOON)
    });
    assert!(matches!(silent.now().read("/"), Err(StoreError::Timeout { .. })));
    assert!(matches!(waiting.join().unwrap(), Err(StoreError::Broken)), "who waits for events hears of it");
    let whole = reply(Kind::Read, 1, b"value").encode().unwrap();
    let store = raw(whole[..18].to_vec(), Duration::from_millis(100));
    assert!(matches!(store.now().read("/"), Err(StoreError::Timeout { .. })));
}

#[test]
fn what_nobody_asked_for_ends_the_connection() {
    let store = scripted(vec![reply(Kind::Read, 1, b"x"), reply(Kind::Write, 9, b"OK\0")]);
    store.now().read("/").unwrap();
    assert!(matches!(store.wait_event(SOON), Err(StoreError::Unasked { received: Kind::Write })));
}

#[test]
fn a_directory_that_changes_meanwhile_is_listed_again() {
    let parts: [&[u8]; 4] = [b"1\0a\0b\0", b"2\0c\0", b"2\0x\0", b"2\0y\0\0"];
    let mut replies = vec![reply(Kind::Error, 1, b"E2BIG\0")];
    replies.extend((2..).zip(parts).map(|(number, content)| reply(Kind::DirectoryPart, number, content)));
    assert_eq!(scripted(replies).now().children("/d").unwrap(), ["x", "y"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever a xenstored sends, every call ends with a value or an error.
    #[test]
    fn any_bytes_from_the_server(bytes: Vec<u8>, kind in 0u32..24, request in 0u32..3, content: Vec<u8>) {
        let mut all: Vec<u8> = [kind, request, 0, content.len() as u32].iter().flat_map(|w| w.to_ne_bytes()).collect();
        all.extend(content);
        all.extend(bytes);
        let store = raw(all, Duration::from_millis(5));
        let _ = store.now().children("/d");
        let _ = store.now().permissions("/d");
        let _ = store.poll_event();
        let _ = store.domain_path(1);
    }
}

#[test]
fn a_socket_that_nobody_serves_any_more_says_that_xenstored_is_gone() {
    let folder = std::env::temp_dir().join(format!("fido-store-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let socket = folder.join("socket");
    let path = socket.to_str().unwrap();
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    assert!(Store::connect_by(&["/no/such/socket", path], &[]).is_ok());
    drop(listener);
    // The device would be there, too, and never answer.
    let gone = Store::connect_by(&[path], &["/dev/null"]).unwrap_err();
    assert!(matches!(gone, StoreError::Gone), "{gone}");
    std::fs::remove_dir_all(&folder).unwrap();
    let absent = Store::connect_by(&[path], &["/no/such/device"]).unwrap_err();
    let text = absent.to_string();
    assert!(matches!(absent, StoreError::Absent { .. }) && text.contains("start xenstored"), "{text}");
}
