//! The NBD client as a back end: against our own server, against servers that die, and against servers that lie.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
#[path = "common/nbd.rs"]
mod nbd;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use common::{GEOMETRY, Rig, conforms, follows_the_model, pattern, steps};
use fido_core::testing::private_memory;
use mmblk::backend::file::{FileDevice, FileOptions};
use mmblk::backend::memory::MemoryDevice;
use mmblk::backend::nbd::{NbdDevice, NbdError, NbdOptions, NbdQueue};
use mmblk::export::nbd::Limits;
use mmblk::nbd::haggling::{self, encode_export, option, put_reply, reply};
use mmblk::nbd::transmission::{Chunk, REQUEST_BYTES, Request, chunk, command, error, simple};
use mmblk::nbd::{ExportFlags, place::Uri};
use mmblk::queue::{BlockError, BlockOp, BlockQueue};
use nbd::{Running, export};
use proptest::prelude::*;

fn options() -> NbdOptions {
    NbdOptions { depth: GEOMETRY.depth, patience: Duration::from_secs(10), ..NbdOptions::default() }
}

fn unix(socket: &std::path::Path) -> Uri {
    format!("nbd+unix:///disk?socket={}", socket.display()).parse().unwrap()
}

/// A client of our own server, by Unix socket or TCP.
fn ours(tcp: bool) -> Rig<NbdQueue> {
    let device = MemoryDevice::new(GEOMETRY).unwrap();
    let memory = private_memory(64 << 20);
    let queues = vec![vec![device.queue(memory.clone()).unwrap()]];
    let running = Running::start(vec![export("disk")], Limits::default(), &memory, queues);
    let uri = if tcp { format!("nbd://{}/disk", running.tcp()).parse().unwrap() } else { unix(&running.socket) };
    // What is received takes whole buffers: a rig's usual memory is small for that.
    let (memory, peer) = (private_memory(64 << 20), private_memory(2 << 20));
    memory.windows().insert(peer.arena().window().clone());
    let queue = NbdDevice::connect(&uri, &options()).unwrap().queue(memory.clone()).unwrap();
    Rig { queue, device: memory.clone(), memory, peer, stores: true, copies: 0, keep: Box::new(running) }
}

#[test]
fn it_conforms() {
    conforms(|| ours(false));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn it_follows_the_model(steps in steps()) {
        follows_the_model(&mut ours(true), &steps);
    }
}

#[test]
fn a_server_that_dies_and_comes_back_is_a_pause() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("nbd");
    let options_of_file = FileOptions {
        create_bytes: Some(GEOMETRY.bytes),
        block: GEOMETRY.block,
        depth: GEOMETRY.depth,
        ..FileOptions::new(dir.path().join("image"))
    };
    let serve = || {
        let memory = private_memory(64 << 20);
        let queues = vec![vec![FileDevice::open(&options_of_file).unwrap().queue(memory.clone()).unwrap()]];
        let running = Running::start(vec![export("disk")], Limits::default(), &memory, queues);
        // A name that stays, whoever listens.
        let _ = std::fs::remove_file(&socket);
        std::os::unix::fs::symlink(&running.socket, &socket).unwrap();
        running
    };
    let mut running = Some(serve());
    let memory = private_memory(64 << 20);
    let mut queue = NbdDevice::connect(&unix(&socket), &options()).unwrap().queue(memory.clone()).unwrap();
    let mut expected: Vec<u8> = Vec::new();
    for round in 0..6u64 {
        for index in 0..8u64 {
            let bytes = pattern(round * 8 + index, 16384);
            let data = common::payload(&memory, &bytes);
            expected.extend(&bytes);
            let op = BlockOp::Write { offset: (round * 8 + index) * 16384, data, durable: index == 3 };
            assert!(queue.submit(index, op).is_ok());
        }
        queue.flush_submissions();
        // In the middle of it the server goes and another comes.
        drop(running.take());
        running = Some(serve());
        let mut ids: Vec<u64> = common::completions(&mut queue, 8)
            .into_iter()
            .map(|completion| {
                completion.result.unwrap();
                completion.id
            })
            .collect();
        ids.sort_unstable();
        assert_eq!(ids, (0..8).collect::<Vec<_>>());
    }
    let mut found: Vec<u8> = Vec::new();
    for index in 0..48u64 {
        assert!(queue.submit(index, BlockOp::Read { offset: index * 16384, len: 16384 }).is_ok());
        let data = common::completions(&mut queue, 1).pop().unwrap().result.unwrap();
        let mut bytes = vec![0; 16384];
        memory.read_header(&data, 0, &mut bytes).unwrap();
        found.extend(bytes);
    }
    assert!(found == expected);
    assert_eq!(memory.stats().payload_bytes_copied.get(), 0);
    drop(running);
}

#[test]
fn a_server_that_stays_away_fails_requests_and_may_come_later() {
    let rig = ours(false);
    let running = *rig.keep.downcast::<Running>().unwrap();
    let patient = NbdOptions { patience: Duration::from_millis(100), ..options() };
    let socket = running.socket.clone();
    let memory = private_memory(64 << 20);
    let mut queue = NbdDevice::connect(&unix(&socket), &patient).unwrap().queue(memory.clone()).unwrap();
    drop((rig.queue, running));
    for _ in 0..2 {
        assert!(queue.submit(1, BlockOp::Read { offset: 0, len: 512 }).is_ok());
        let error = common::completions(&mut queue, 1).pop().unwrap().result.unwrap_err();
        assert_eq!(error, BlockError::Io { errno: libc::ENOENT });
    }
}

/// A server of bytes: greets, and then does as `script` says with each connection.
fn fake(script: impl Fn(&mut UnixStream) + Send + 'static) -> (PathBuf, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("fake");
    let listener = UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            script(&mut stream);
        }
    });
    (socket, dir)
}

/// Greets, and answers options until the client has entered, with these flags.
fn greet(stream: &mut UnixStream, flags: ExportFlags, structured: bool) -> std::io::Result<()> {
    stream.write_all(&haggling::greeting())?;
    stream.read_exact(&mut [0; 4])?;
    loop {
        let mut head = [0; 16];
        stream.read_exact(&mut head)?;
        let (option, len) = haggling::decode_option(head).unwrap();
        stream.read_exact(&mut vec![0; len as usize])?;
        let mut out = Vec::new();
        match option {
            option::STRUCTURED_REPLY if structured => put_reply(&mut out, option, reply::ACK, &[]),
            option::GO => {
                put_reply(&mut out, option, reply::INFO, &encode_export(GEOMETRY.bytes, flags));
                put_reply(&mut out, option, reply::ACK, &[]);
            }
            _ => put_reply(&mut out, option, reply::ERR_UNSUP, &[]),
        }
        stream.write_all(&out)?;
        if option == option::GO {
            return Ok(());
        }
    }
}

fn request(stream: &mut UnixStream) -> std::io::Result<Request> {
    let mut head = [0; REQUEST_BYTES];
    stream.read_exact(&mut head)?;
    let request = Request::decode(&head).unwrap();
    let payload = if request.command == command::WRITE { request.len as usize } else { 0 };
    stream.read_exact(&mut vec![0; payload])?;
    Ok(request)
}

const ALL: ExportFlags = ExportFlags::HAS_FLAGS
    .union(ExportFlags::SEND_FLUSH)
    .union(ExportFlags::SEND_FUA)
    .union(ExportFlags::SEND_TRIM)
    .union(ExportFlags::CAN_MULTI_CONN);

/// What a read ends with whose answers are always these.
fn read_of(structured: bool, answer: impl Fn(&Request) -> Vec<u8> + Send + 'static) -> Result<Vec<u8>, BlockError> {
    let (socket, _dir) = fake(move |stream| {
        if greet(stream, ALL, structured).is_err() {
            return;
        }
        while let Ok(request) = request(stream) {
            if stream.write_all(&answer(&request)).is_err() {
                return;
            }
        }
    });
    let memory = private_memory(64 << 20);
    let mut queue = NbdDevice::connect(&unix(&socket), &options()).unwrap().queue(memory.clone()).unwrap();
    assert!(queue.submit(5, BlockOp::Read { offset: 4096, len: 8192 }).is_ok());
    let data = common::completions(&mut queue, 1).pop().unwrap().result?;
    let mut bytes = vec![0; 8192];
    assert_eq!(memory.read_header(&data, 0, &mut bytes).unwrap(), bytes.len());
    Ok(bytes)
}

fn head(flags: u16, kind: u16, request: &Request, len: u32) -> Vec<u8> {
    Chunk { flags, kind, cookie: request.cookie, len }.encode().to_vec()
}

fn data(flags: u16, request: &Request, offset: u64, bytes: &[u8]) -> Vec<u8> {
    [&head(flags, chunk::OFFSET_DATA, request, bytes.len() as u32 + 8)[..], &offset.to_be_bytes(), bytes].concat()
}

fn hole(flags: u16, request: &Request, offset: u64, len: u32) -> Vec<u8> {
    [&head(flags, chunk::OFFSET_HOLE, request, 12)[..], &offset.to_be_bytes(), &len.to_be_bytes()].concat()
}

#[test]
fn answers_in_pieces_in_any_order_are_put_together() {
    let whole = read_of(true, |request| {
        let mut all = data(0, request, 4096 + 6000, &[3; 2192]);
        all.extend(hole(0, request, 4096 + 5000, 1000));
        all.extend(data(0, request, 4096, &[1; 5000]));
        all.extend(head(chunk::DONE, chunk::NONE, request, 0));
        all
    });
    let whole = whole.unwrap();
    assert!(whole[..5000] == [1; 5000] && whole[5000..6000] == [0; 1000] && whole[6000..] == [3; 2192]);
}

#[test]
fn a_thousand_crumbs_are_one_answer() {
    let whole = read_of(true, |request| {
        // Not in order, so that no two of them join.
        let crumbs = (0..1024u64).map(|index| (index * 5) % 1024);
        let mut all: Vec<u8> = crumbs.flat_map(|at| data(0, request, 4096 + at * 8, &[at as u8; 8])).collect();
        all.extend(head(chunk::DONE, chunk::NONE, request, 0));
        all
    });
    assert!(whole.unwrap().chunks(8).enumerate().all(|(at, crumb)| crumb == [at as u8; 8]));
}

#[test]
fn what_the_server_refuses_is_a_typed_error() {
    for (number, expected) in [
        (error::EIO, BlockError::Io { errno: libc::EIO }),
        (error::ENOSPC, BlockError::NoSpace),
        (error::EPERM, BlockError::ReadOnly),
        (error::ENOTSUP, BlockError::Unsupported),
        (u32::MAX, BlockError::Io { errno: libc::EIO }),
    ] {
        assert_eq!(read_of(false, move |request| simple(number, request.cookie).to_vec()), Err(expected.clone()));
        let chunks = read_of(true, move |request| {
            let mut all = data(0, request, 4096, &[1; 512]);
            all.extend(head(chunk::DONE, chunk::ERROR, request, 6));
            all.extend([&number.to_be_bytes()[..], &[0, 0]].concat());
            all
        });
        assert_eq!(chunks, Err(expected));
    }
}

#[test]
fn a_server_that_lies_fails_the_request_and_no_more() {
    type Lie = fn(&Request) -> Vec<u8>;
    let lies: [(bool, Lie); 13] = [
        (false, |_| vec![0x55; 16]),
        (false, |request| simple(0, request.cookie ^ 1 << 20).to_vec()),
        (false, |request| head(chunk::DONE, chunk::NONE, request, 0)),
        (true, |request| simple(0, request.cookie).to_vec()),
        (true, |request| head(chunk::DONE, chunk::NONE, request, 1)),
        (true, |request| head(2, chunk::OFFSET_DATA, request, 100)),
        (true, |request| head(chunk::DONE, chunk::OFFSET_DATA, request, 8)),
        (true, |request| head(chunk::DONE, chunk::OFFSET_DATA, request, u32::MAX)),
        (true, |request| data(chunk::DONE, request, 4095, &[1; 512])),
        (true, |request| data(chunk::DONE, request, u64::MAX, &[1; 512])),
        (true, |request| hole(chunk::DONE, request, 4096, 8193)),
        (true, |request| head(chunk::DONE, chunk::BLOCK_STATUS, request, 12)),
        (true, |request| head(chunk::DONE, 77, request, 0)),
    ];
    for (index, (structured, lie)) in lies.into_iter().enumerate() {
        let result = read_of(structured, lie);
        assert!(matches!(result, Err(BlockError::Protocol(_))), "lie {index}: {result:?}");
    }
    // These leave the conversation whole.
    let gap = read_of(true, |request| data(chunk::DONE, request, 4096, &[1; 512]));
    assert!(matches!(gap, Err(BlockError::Protocol(_))), "{gap:?}");
    let twice = read_of(true, |request| {
        [data(0, request, 4096, &[1; 8192]), data(chunk::DONE, request, 4096, &[2; 8192])].concat()
    });
    assert!(matches!(twice, Err(BlockError::Protocol(_))), "{twice:?}");
}

#[test]
fn what_the_server_cannot_do_is_done_otherwise_or_said() {
    use std::sync::mpsc::channel;
    let (sender, receiver) = channel();
    let flags = ExportFlags::HAS_FLAGS | ExportFlags::SEND_FLUSH;
    let (socket, _dir) = fake(move |stream| {
        if greet(stream, flags, false).is_err() {
            return;
        }
        while let Ok(request) = request(stream) {
            let _ = sender.send((request.command, request.flags.bits()));
            if stream.write_all(&simple(0, request.cookie)).is_err() {
                return;
            }
        }
    });
    let device = NbdDevice::connect(&unix(&socket), &options()).unwrap();
    let memory = private_memory(64 << 20);
    let mut queue = device.queue(memory.clone()).unwrap();
    assert!(matches!(device.queue(memory.clone()), Err(NbdError::OneQueue { .. })));
    let data = common::payload(&memory, &[1; 512]);
    assert!(queue.submit(1, BlockOp::Write { offset: 0, data, durable: true }).is_ok());
    common::completions(&mut queue, 1).pop().unwrap().result.unwrap();
    assert_eq!(receiver.try_iter().collect::<Vec<_>>(), [(command::WRITE, 0), (command::FLUSH, 0)]);
    for op in [BlockOp::Discard { offset: 0, len: 512 }, BlockOp::Extents { offset: 0, len: 512 }] {
        assert!(queue.submit(1, op).is_ok());
        let result = common::completions(&mut queue, 1).pop().unwrap().result;
        assert_eq!(result.unwrap_err(), BlockError::Unsupported);
    }
}

#[test]
fn who_is_no_server_is_refused_by_name() {
    let refused = |script: fn(&mut UnixStream)| {
        let (socket, _dir) = fake(script);
        let hasty = NbdOptions { timeout: Duration::from_millis(200), ..options() };
        NbdDevice::connect(&unix(&socket), &hasty).unwrap_err().to_string()
    };
    let silent = refused(|stream| drop(stream.read(&mut [0])));
    assert!(silent.contains("socket="), "{silent}");
    let other = refused(|stream| stream.write_all(b"HTTP/1.1 400 Bad Request\r\n").unwrap());
    assert!(other.contains("no NBD server"), "{other}");
    let old = refused(|stream| {
        let _ = stream.write_all(&[&b"NBDMAGIC"[..], &haggling::OLD_STYLE_MAGIC.to_be_bytes(), &[0; 200]].concat());
    });
    assert!(old.contains("old style"), "{old}");
    let huge = refused(|stream| {
        let _ = stream.write_all(&haggling::greeting());
        let mut reply = Vec::new();
        put_reply(&mut reply, option::STRUCTURED_REPLY, reply::ERR_UNSUP, &[]);
        reply[16..].copy_from_slice(&u32::MAX.to_be_bytes());
        let _ = stream.write_all(&reply);
        let _ = stream.read(&mut [0; 100]);
        std::thread::sleep(Duration::from_millis(50));
    });
    assert!(huge.contains("4294967295"), "{huge}");
    let nobody = "nbd+unix:///x?socket=/nobody/there".parse().unwrap();
    assert!(matches!(NbdDevice::connect(&nobody, &options()), Err(NbdError::Io { .. })));
}
