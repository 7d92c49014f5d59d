//! The NBD server against clients that do as the protocol says, and against clients that do not.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
#[path = "common/nbd.rs"]
mod nbd;

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use fido_core::testing::private_memory;
use mmblk::backend::memory::MemoryDevice;
use mmblk::export::nbd::{Limits, Server};
use mmblk::nbd::MAX_PAYLOAD;
use mmblk::nbd::haggling::{Info, encode_go, encode_option, info, option, reply};
use mmblk::nbd::transmission::{Chunk, CommandFlags, Reply, Request, chunk, command, error};
use mmblk::queue::{Geometry, MAX_REQUEST_BYTES};
use nbd::{Raw, Running, export};

const GEOMETRY: Geometry = Geometry { bytes: 8 << 20, block: 512, depth: 4 };
const PATIENCE: Duration = Duration::from_secs(20);

fn request(command: u16, cookie: u64, offset: u64, len: u32) -> Request {
    Request { flags: CommandFlags::empty(), command, cookie, offset, len }
}

fn start(workers: usize, limits: Limits) -> Running {
    let device = MemoryDevice::new(GEOMETRY).unwrap();
    let memory = private_memory(64 << 20);
    let queues = (0..workers).map(|_| vec![device.queue(memory.clone()).unwrap()]).collect();
    Running::start(vec![export("disk")], limits, &memory, queues)
}

fn ok(cookie: u64) -> Reply {
    Reply::Simple { error: 0, cookie }
}

fn failed(error: u32, cookie: u64) -> Reply {
    Reply::Simple { error, cookie }
}

/// A write and a read of it.
fn works(raw: &mut Raw, cookie: u64) {
    let bytes = common::pattern(cookie, 70_000 / 512 * 512);
    let offset = 512 * (cookie % 1000);
    raw.request(request(command::WRITE, cookie, offset, bytes.len() as u32), &bytes);
    assert_eq!(raw.reply(), ok(cookie));
    raw.request(request(command::READ, cookie + 1, offset, bytes.len() as u32), &[]);
    assert_eq!(raw.reply(), ok(cookie + 1));
    assert!(raw.bytes(bytes.len()) == bytes);
}

#[test]
fn reads_what_was_written_without_copying_it() {
    let device = MemoryDevice::new(GEOMETRY).unwrap();
    let memory = private_memory(64 << 20);
    let queues = vec![vec![device.queue(memory.clone()).unwrap()]];
    let running = Running::start(vec![export("disk")], Limits::default(), &memory, queues);
    let mut raw = Raw::enter(&running.socket, "", false);
    for cookie in 0..50 {
        works(&mut raw, cookie * 7);
    }
    let big = common::pattern(9, MAX_REQUEST_BYTES as usize);
    raw.request(request(command::WRITE, 1, 0, MAX_REQUEST_BYTES), &big);
    assert_eq!(raw.reply(), ok(1));
    raw.request(Request { flags: CommandFlags::FUA, ..request(command::WRITE_ZEROES, 2, 512, 4096) }, &[]);
    assert_eq!(raw.reply(), ok(2));
    raw.request(Request { flags: CommandFlags::FUA, ..request(command::TRIM, 3, 8192, 4096) }, &[]);
    assert_eq!(raw.reply(), ok(3));
    raw.request(request(command::FLUSH, 4, 0, 0), &[]);
    assert_eq!(raw.reply(), ok(4));
    raw.request(request(command::READ, 5, 0, MAX_REQUEST_BYTES), &[]);
    assert_eq!(raw.reply(), ok(5));
    let got = raw.bytes(big.len());
    assert!(got[..512] == big[..512] && got[512..4608] == [0; 4096] && got[4608..8192] == big[4608..8192]);
    assert!(got[12288..] == big[12288..]);
    raw.request(request(command::DISC, 6, 0, 0), &[]);
    assert!(raw.is_over());
    drop(running);
    assert_eq!(memory.stats().payload_bytes_copied.get(), 0);
    assert!(memory.stats().payload_bytes.get() > 0);
}

/// What a client that asks now is told of the size.
fn told_size(running: &Running) -> u64 {
    let replies = Raw::connect(&running.socket).ask(option::INFO, &encode_go("disk", &[info::EXPORT]));
    let size = replies.iter().find_map(|(kind, data)| match Info::decode(data) {
        Some(Info::Export(bytes, _)) if *kind == reply::INFO => Some(bytes),
        _ => None,
    });
    size.unwrap_or_else(|| panic!("no size in {replies:?}"))
}

#[test]
fn a_new_size_is_told_to_new_clients_and_holds_for_old_ones() {
    let device = MemoryDevice::new(GEOMETRY).unwrap();
    let memory = private_memory(64 << 20);
    let queues = vec![vec![device.queue(memory.clone()).unwrap()]];
    let running = Running::start(vec![export("disk")], Limits::default(), &memory, queues);
    let mut old = Raw::enter(&running.socket, "disk", false);
    for (cookie, bytes) in (1..).zip([GEOMETRY.bytes * 2, GEOMETRY.bytes / 2]) {
        device.resize(bytes).unwrap();
        let deadline = Instant::now() + PATIENCE;
        while told_size(&running) != bytes {
            assert!(Instant::now() < deadline, "no news of {bytes}");
            std::thread::sleep(Duration::from_millis(5));
        }
        old.request(request(command::READ, cookie, bytes - 512, 512), &[]);
        assert_eq!(old.reply(), ok(cookie));
        assert!(old.bytes(512) == [0; 512]);
        old.request(request(command::READ, cookie, bytes, 512), &[]);
        assert_eq!(old.reply(), failed(error::EINVAL, cookie));
    }
}

#[test]
fn structured_replies_and_extents() {
    let running = start(1, Limits::default());
    let mut raw = Raw::enter(&running.socket, "disk", true);
    raw.request(Request { flags: CommandFlags::DF, ..request(command::READ, 7, 512, 1024) }, &[]);
    let head = Chunk { flags: chunk::DONE, kind: chunk::OFFSET_DATA, cookie: 7, len: 1032 };
    assert_eq!(raw.reply(), Reply::Chunk(head));
    assert_eq!(raw.take::<8>(), 512u64.to_be_bytes());
    assert!(raw.bytes(1024) == [0; 1024]);
    raw.request(request(command::READ, 8, GEOMETRY.bytes, 512), &[]);
    let head = Chunk { flags: chunk::DONE, kind: chunk::ERROR, cookie: 8, len: 6 };
    assert_eq!(raw.reply(), Reply::Chunk(head));
    assert_eq!(raw.take::<6>(), [0, 0, 0, error::EINVAL as u8, 0, 0]);
    raw.request(request(command::BLOCK_STATUS, 9, 0, GEOMETRY.bytes as u32), &[]);
    let head = Chunk { flags: chunk::DONE, kind: chunk::BLOCK_STATUS, cookie: 9, len: 12 };
    assert_eq!(raw.reply(), Reply::Chunk(head));
    assert_eq!(raw.take::<4>(), 1u32.to_be_bytes());
    assert_eq!(raw.take::<8>(), (GEOMETRY.bytes << 32).to_be_bytes(), "all of it is allocated");
    raw.request(request(command::WRITE, 10, 0, 512), &[1; 512]);
    assert_eq!(raw.reply(), ok(10), "what needs no chunks has none");
}

#[test]
fn what_is_wrong_is_answered_and_the_client_goes_on() {
    let running = start(1, Limits::default());
    let mut raw = Raw::enter(&running.socket, "disk", false);
    let big = vec![0; MAX_PAYLOAD as usize];
    let flagged = |flags, command| Request { flags, ..request(command, 1, 0, 512) };
    let end = GEOMETRY.bytes;
    let cases = [
        (request(command::READ, 1, end, 512), error::EINVAL),
        (request(command::READ, 1, u64::MAX - 511, 512), error::EINVAL),
        (request(command::READ, 1, 1, 512), error::EINVAL),
        (request(command::READ, 1, 0, 511), error::EINVAL),
        (request(command::READ, 1, 0, 0), error::EINVAL),
        (request(command::READ, 1, 0, MAX_REQUEST_BYTES + 512), error::EINVAL),
        (request(command::READ, 1, 0, u32::MAX), error::EINVAL),
        (request(command::WRITE, 1, end, 512), error::ENOSPC),
        (request(command::WRITE, 1, 512, 100), error::EINVAL),
        (request(command::WRITE, 1, 0, MAX_REQUEST_BYTES + 512), error::EINVAL),
        (request(command::WRITE, 1, 0, MAX_PAYLOAD), error::EINVAL),
        (request(command::WRITE_ZEROES, 1, end - 512, 1024), error::ENOSPC),
        (request(command::TRIM, 1, end, 512), error::EINVAL),
        (request(command::BLOCK_STATUS, 1, 0, 512), error::EINVAL),
        (request(99, 1, 0, 512), error::EINVAL),
        (request(5, 1, 0, 512), error::EINVAL),
        (flagged(CommandFlags::DF, command::READ), error::EINVAL),
        (flagged(CommandFlags::NO_HOLE, command::WRITE), error::EINVAL),
        (flagged(CommandFlags::from_bits_retain(1 << 4), command::WRITE_ZEROES), error::EINVAL),
    ];
    for (index, (wrong, expected)) in cases.into_iter().enumerate() {
        let wrong = Request { cookie: index as u64, ..wrong };
        let payload = if wrong.command == command::WRITE { wrong.len as usize } else { 0 };
        raw.request(wrong, &big[..payload]);
        assert_eq!(raw.reply(), failed(expected, wrong.cookie), "{wrong:?}");
        works(&mut raw, 500 + index as u64);
    }
}

#[test]
fn a_read_only_export_is_only_read() {
    let device = MemoryDevice::new(GEOMETRY).unwrap();
    let memory = private_memory(64 << 20);
    let only = mmblk::export::nbd::Export { read_only: true, ..export("only") };
    let queues = vec![vec![device.queue(memory.clone()).unwrap(), device.queue(memory.clone()).unwrap()]];
    let running = Running::start(vec![export("disk"), only], Limits::default(), &memory, queues);
    let (mut both, mut only) = (Raw::enter(&running.socket, "disk", false), Raw::enter(&running.socket, "only", false));
    works(&mut both, 0);
    for (cookie, command) in [command::WRITE, command::TRIM, command::WRITE_ZEROES].into_iter().enumerate() {
        let payload: &[u8] = if command == command::WRITE { &[9; 512] } else { &[] };
        only.request(request(command, cookie as u64, 0, 512), payload);
        assert_eq!(only.reply(), failed(error::EPERM, cookie as u64));
    }
    only.request(request(command::READ, 9, 0, 512), &[]);
    assert_eq!(only.reply(), ok(9));
    assert!(only.bytes(512) == common::pattern(0, 512), "what the other export has written");
}

#[test]
fn who_talks_nonsense_is_left_and_the_others_go_on() {
    let running = start(1, Limits::default());
    let mut good = Raw::enter(&running.socket, "disk", false);
    let mut no_request = Raw::enter(&running.socket, "disk", false);
    no_request.say(&[0x55; 28]);
    assert!(no_request.is_over());
    let mut beyond = Raw::enter(&running.socket, "disk", false);
    beyond.say(&request(command::WRITE, 1, 0, MAX_PAYLOAD + 1).encode());
    assert!(beyond.is_over());
    let mut no_option = Raw::connect(&running.socket);
    no_option.say(&[0x55; 16]);
    assert!(no_option.is_over());
    // Half a hello, half a request, half a payload, and gone.
    drop(std::os::unix::net::UnixStream::connect(&running.socket).unwrap());
    for count in [1, 27, 28, 28 + 511] {
        let mut half = Raw::enter(&running.socket, "disk", false);
        let whole = [&request(command::WRITE, 1, 0, 512).encode()[..], &[7; 512]].concat();
        half.say(&whole[..count]);
    }
    works(&mut good, 3);
    good.request(request(command::READ, 9, 0, 512), &[]);
    assert_eq!(good.reply(), ok(9));
    assert!(good.bytes(512) == [0; 512], "half a write is none");
    eventually(|| running.server.served() == 1);
}

fn eventually(what: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !what() {
        assert!(Instant::now() < deadline, "it does not happen");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn requests_are_answered_however_they_fall_into_pieces() {
    let running = start(1, Limits::default());
    let mut raw = Raw::enter(&running.socket, "disk", false);
    let mut stream = Vec::new();
    for cookie in 0..20u64 {
        stream.extend(request(command::WRITE, cookie, 512 * cookie, 512).encode());
        stream.extend([cookie as u8; 512]);
    }
    for piece in stream.chunks(37) {
        raw.say(piece);
        std::thread::yield_now();
    }
    let mut cookies: Vec<u64> = (0..20)
        .map(|_| match raw.reply() {
            Reply::Simple { error: 0, cookie } => cookie,
            other => panic!("{other:?}"),
        })
        .collect();
    cookies.sort_unstable();
    assert_eq!(cookies, (0..20).collect::<Vec<_>>());
    raw.request(request(command::READ, 99, 0, 512 * 20), &[]);
    assert_eq!(raw.reply(), ok(99));
    let all = raw.bytes(512 * 20);
    assert!(all.chunks(512).enumerate().all(|(index, block)| block == [index as u8; 512]));
}

#[test]
fn clients_beyond_the_limit_are_told_so_and_may_come_later() {
    let limits = Limits { clients: 2, ..Limits::default() };
    let running = start(2, limits);
    let (mut a, b) = (Raw::enter(&running.socket, "", false), Raw::enter(&running.socket, "", false));
    let mut c = Raw::connect(&running.socket);
    let go = encode_go("disk", &[]);
    let replies = c.ask(option::GO, &go);
    assert_eq!(replies[0].0, reply::ERR_POLICY);
    assert!(String::from_utf8_lossy(&replies[0].1).contains("2 clients"), "{replies:?}");
    drop(b);
    eventually(|| running.server.served() == 1);
    assert_eq!(c.ask(option::GO, &go).last().unwrap().0, reply::ACK);
    works(&mut a, 1);
    works(&mut c, 2);
}

#[test]
fn who_vanishes_while_it_waits_to_enter_takes_no_place_with_it() {
    let (queue, hand) = common::held::Held::new(GEOMETRY);
    let limits = Limits { clients: 1, ..Limits::default() };
    let running = Running::start(vec![export("disk")], limits, &private_memory(32 << 20), vec![vec![queue]]);
    let mut first = Raw::enter(&running.socket, "disk", false);
    first.request(request(command::READ, 1, 0, 512), &[]);
    eventually(|| hand.len() == 1);
    drop(first);
    eventually(|| running.server.served() == 0);
    // This one agrees, and waits for the end of the first one's request; then its connection is reset.
    let mut second = std::net::TcpStream::connect(running.tcp()).unwrap();
    let hello = [&3u32.to_be_bytes()[..], &encode_option(option::GO, &encode_go("disk", &[]))].concat();
    std::io::Write::write_all(&mut second, &hello).unwrap();
    eventually(|| running.server.served() == 1);
    rustix::net::sockopt::set_socket_linger(&second, Some(Duration::ZERO)).unwrap();
    drop(second);
    eventually(|| running.server.served() == 0);
    hand.release(1);
    drop(Raw::enter(&running.socket, "disk", false));
}

#[test]
fn many_clients_that_come_at_once_are_all_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nbd");
    let places = [mmblk::nbd::place::Place::Unix(path.clone())];
    let mut server = Server::bind(&places, vec![export("disk")], Limits::default()).unwrap();
    let (device, memory) = (MemoryDevice::new(GEOMETRY).unwrap(), private_memory(8 << 20));
    let mut worker = || server.worker(memory.clone(), vec![device.queue(memory.clone()).unwrap()]).unwrap();
    let mut workers = [worker(), worker()];
    let clients: Vec<_> = (0..40).map(|_| UnixStream::connect(&path).unwrap()).collect();
    for _ in 0..10 {
        for worker in &mut workers {
            worker.poll();
        }
    }
    for mut client in clients {
        client.set_nonblocking(true).unwrap();
        let mut hello = [0; 18];
        assert_eq!(std::io::Read::read(&mut client, &mut hello).unwrap(), hello.len());
    }
}

#[test]
fn who_does_not_read_its_answers_holds_up_nobody() {
    let running = start(1, Limits::default());
    let mut stuck = Raw::enter(&running.socket, "disk", false);
    // Far more than the server keeps for it; it never takes an answer.
    stuck.0.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut said = 0;
    for cookie in 0..100_000 {
        use std::io::Write;
        if stuck.0.write_all(&request(command::READ, cookie, 0, MAX_REQUEST_BYTES).encode()).is_err() {
            break;
        }
        said += 1;
    }
    assert!(said < 100_000, "the server takes requests without end");
    let mut good = Raw::enter(&running.socket, "disk", false);
    for cookie in 0..20 {
        works(&mut good, cookie);
    }
}

#[test]
fn who_does_not_end_its_negotiation_is_left() {
    let running = start(1, Limits { patience: Duration::from_millis(50), ..Limits::default() });
    let mut slow = Raw::connect(&running.socket);
    slow.say(b"IHAVEOPT");
    assert!(slow.is_over());
    works(&mut Raw::enter(&running.socket, "disk", false), 1);
}

#[test]
fn many_clients_share_few_queues() {
    let running = start(2, Limits::default());
    let socket = running.socket.clone();
    let threads: Vec<_> = (0..16u64)
        .map(|index| {
            let socket = socket.clone();
            std::thread::spawn(move || {
                let mut raw = Raw::enter(&socket, "disk", false);
                // Ranges of their own, all at once: more requests than the queues have places.
                let offset = index * (256 << 10);
                for round in 0..4u64 {
                    let mut expected = Vec::new();
                    for cookie in 0..16u64 {
                        let bytes = common::pattern(index * 1000 + round * 16 + cookie, 8192);
                        raw.request(request(command::WRITE, cookie, offset + cookie * 8192, 8192), &bytes);
                        expected.extend(bytes);
                    }
                    for _ in 0..16 {
                        assert!(matches!(raw.reply(), Reply::Simple { error: 0, .. }));
                    }
                    raw.request(request(command::READ, 1, offset, 16 * 8192), &[]);
                    assert_eq!(raw.reply(), ok(1));
                    assert!(raw.bytes(16 * 8192) == expected);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn limits_are_checked() {
    let bind = |limits| mmblk::export::nbd::Server::bind(&[], vec![export("disk")], limits);
    let fine = Limits::default();
    assert!(bind(fine).is_ok());
    for wrong in [
        Limits { clients: 0, ..fine },
        Limits { clients: 4097, ..fine },
        Limits { requests: 0, ..fine },
        Limits { requests: 4097, ..fine },
        Limits { client_bytes: (8 << 20) - 1, ..fine },
        Limits { client_bytes: (1 << 30) + 1, ..fine },
        Limits { patience: Duration::ZERO, ..fine },
        Limits { patience: Duration::from_secs(3601), ..fine },
    ] {
        assert!(bind(wrong).is_err(), "{wrong:?}");
    }
    for names in [vec![], vec!["a", "a"]] {
        let exports = names.into_iter().map(export).collect();
        assert!(mmblk::export::nbd::Server::bind(&[], exports, fine).is_err());
    }
}
