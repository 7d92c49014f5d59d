//! The NBD server against the programs that people use: nbdinfo, nbdcopy, qemu-img, qemu-io, fio.
//!
//! They are Debian's packages libnbd-bin, qemu-utils and fio: `.ci/blk` installs them and runs these tests.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
#[path = "common/nbd.rs"]
mod nbd;
#[path = "common/program.rs"]
mod program;

use std::path::Path;

use common::{GEOMETRY, Rig, conforms, pattern};
use fido_core::memory::Memory;
use fido_core::testing::private_memory;
use mmblk::backend::file::{FileDevice, FileOptions};
use mmblk::backend::nbd::{NbdDevice, NbdOptions, NbdQueue};
use mmblk::export::nbd::{Export, Limits};
use nbd::{Running, export};
use program::run;

const BYTES: u64 = 64 << 20;

/// Two exports of one image with blocks of `block` bytes, the second read-only, and two workers.
fn start(dir: &Path, block: u32) -> (Running, Memory) {
    let options = FileOptions { create_bytes: Some(BYTES), block, ..FileOptions::new(dir.join("image")) };
    let device = FileDevice::open(&options).unwrap();
    let memory = private_memory(256 << 20);
    let queue = || device.queue(memory.clone()).unwrap();
    let queues = (0..2).map(|_| vec![queue(), queue()]).collect();
    let exports = vec![export("disk"), Export { read_only: true, ..export("only") }];
    (Running::start(exports, Limits::default(), &memory, queues), memory)
}

/// An image with holes, in a file.
fn sparse(path: &Path) -> Vec<u8> {
    let mut bytes = vec![0; BYTES as usize];
    for (seed, at) in [(1, 0), (2, 5 << 20), (3, 17 << 20), (4, (64 << 20) - 12288)] {
        bytes[at..at + 12288].copy_from_slice(&pattern(seed, 12288));
    }
    bytes[30 << 20..40 << 20].copy_from_slice(&pattern(5, 10 << 20));
    let file = std::fs::File::create(path).unwrap();
    file.set_len(BYTES).unwrap();
    for (index, piece) in bytes.chunks(4096).enumerate().filter(|(_, piece)| piece.iter().any(|byte| *byte != 0)) {
        std::os::unix::fs::FileExt::write_all_at(&file, piece, index as u64 * 4096).unwrap();
    }
    bytes
}

#[test]
#[ignore = "needs Debian's programs: run by .ci/blk"]
fn nbdinfo_sees_what_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let (running, _memory) = start(dir.path(), 4096);
    let info = run("nbdinfo", &["--json", &running.uri("disk")]);
    for expected in [
        "\"protocol\": \"newstyle-fixed\"",
        "\"structured\": true",
        "\"TLS\": false",
        "\"export-name\": \"disk\"",
        "\"description\": \"for tests\"",
        "base:allocation",
        "\"export-size\": 67108864",
        "\"is_read_only\": false",
        "\"can_cache\": false",
        "\"can_df\": true",
        "\"can_fast_zero\": false",
        "\"can_flush\": true",
        "\"can_fua\": true",
        "\"can_multi_conn\": true",
        "\"can_trim\": true",
        "\"can_zero\": true",
        "\"block_size_minimum\": 4096",
        "\"block_size_maximum\": 4194304",
    ] {
        assert!(info.contains(expected), "{expected} is not in {info}");
    }
    let list = run("nbdinfo", &["--list", "--json", &format!("nbd://{}", running.tcp())]);
    assert!(list.contains("\"export-name\": \"disk\"") && list.contains("\"export-name\": \"only\""), "{list}");
    assert!(run("nbdinfo", &["--is", "read-only", &running.uri("only")]).is_empty());
    let said = program::fails("nbdinfo", &[&running.uri("nobody")]);
    assert!(said.contains("nobody") || said.contains("export"), "{said}");
}

#[test]
#[ignore = "needs Debian's programs: run by .ci/blk"]
fn nbdcopy_copies_in_and_out_with_the_holes() {
    let dir = tempfile::tempdir().unwrap();
    let (running, memory) = start(dir.path(), 512);
    let (original, copy) = (dir.path().join("original"), dir.path().join("copy"));
    let bytes = sparse(&original);
    let uri = running.uri("disk");
    run("nbdcopy", &["--flush", "--destination-is-zero", original.to_str().unwrap(), &uri]);
    // A hole of the original is one of the export; what was written is not.
    let map = run("nbdinfo", &["--map", &uri]);
    let holes: u64 = map.lines().filter(|line| line.contains("hole,zero")).filter_map(second).sum();
    let zeroes = bytes.chunks(4096).filter(|piece| piece.iter().all(|byte| *byte == 0)).count() as u64 * 4096;
    assert_eq!(holes, zeroes, "{map}");
    // By TCP and several connections the other way.
    run("nbdcopy", &["--connections=4", &format!("nbd://{}/only", running.tcp()), copy.to_str().unwrap()]);
    assert!(std::fs::read(&copy).unwrap() == bytes);
    assert_eq!(memory.stats().payload_bytes_copied.get(), 0);
}

/// The second number of a line.
fn second(line: &str) -> Option<u64> {
    line.split_whitespace().nth(1)?.parse().ok()
}

#[test]
#[ignore = "needs Debian's programs: run by .ci/blk"]
fn qemu_img_converts_compares_and_maps() {
    let dir = tempfile::tempdir().unwrap();
    let (running, _memory) = start(dir.path(), 4096);
    let (original, back) = (dir.path().join("original"), dir.path().join("back"));
    let bytes = sparse(&original);
    let (original, back) = (original.to_str().unwrap(), back.to_str().unwrap());
    let uri = running.uri("disk");
    run("qemu-img", &["convert", "-n", "-W", "-f", "raw", "-O", "raw", original, &uri]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", original, &uri]);
    let map = run("qemu-img", &["map", "--output=json", "-f", "raw", &uri]);
    assert!(map.contains("\"zero\": true, \"data\": false"), "{map}");
    run("qemu-img", &["convert", "-f", "raw", "-O", "raw", &running.uri("only"), back]);
    assert!(std::fs::read(back).unwrap() == bytes);
}

#[test]
#[ignore = "needs Debian's programs: run by .ci/blk"]
fn qemu_io_writes_zeroes_discards_and_flushes() {
    let dir = tempfile::tempdir().unwrap();
    let (running, _memory) = start(dir.path(), 512);
    let steps = [
        "write -P 0x11 0 1M",
        "write -P 0x22 -f 1M 64k",
        "write -z 128k 128k",
        "write -z -u 512k 128k",
        "write -z -u -f 768k 4k",
        "discard 896k 64k",
        "flush",
        "read -P 0x11 0 128k",
        "read -P 0 128k 128k",
        "read -P 0x11 256k 256k",
        "read -P 0 512k 128k",
        "read -P 0 768k 4k",
        "read -P 0x11 772k 124k",
        "read -P 0x22 1M 64k",
        "read -P 0 1088k 64k",
        "aio_write -P 0x33 4M 3M",
        "aio_write -P 0x44 8M 3M",
        "aio_flush",
        "read -P 0x33 4M 3M",
        "read -P 0x44 8M 3M",
    ];
    let uri = running.uri("disk");
    let mut args = vec!["-f", "raw", "-t", "none"];
    steps.iter().for_each(|step| args.extend(["-c", step]));
    args.push(&uri);
    let said = run("qemu-io", &args);
    assert!(!said.contains("failed") && !said.contains("error"), "{said}");
    let only = running.uri("only");
    let said = program::fails("qemu-io", &["-f", "raw", "-c", "write 0 4k", &only]);
    assert!(said.contains("ermission denied") || said.contains("read-only"), "{said}");
}

#[test]
#[ignore = "needs Debian's programs: run by .ci/blk"]
fn fio_verifies_with_several_connections() {
    let dir = tempfile::tempdir().unwrap();
    let (running, memory) = start(dir.path(), 4096);
    let uri = format!("--uri={}", running.uri("disk"));
    let said = run(
        "fio",
        &[
            "--name=verify",
            "--ioengine=nbd",
            &uri,
            "--rw=randwrite",
            "--bsrange=4k-64k",
            "--iodepth=16",
            "--numjobs=4",
            "--size=12m",
            "--offset_increment=16m",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--do_verify=1",
            "--fsync=32",
            "--group_reporting",
            "--minimal",
        ],
    );
    assert!(!said.contains("verify:"), "{said}");
    assert_eq!(memory.stats().payload_bytes_copied.get(), 0);
}

/// A client of a server that is a program, which `make` starts at a socket in a directory with an empty image.
fn client_of(make: impl Fn(&str, &str) -> program::Running) -> Rig<NbdQueue> {
    let dir = tempfile::tempdir().unwrap();
    let (socket, image) = (dir.path().join("socket"), dir.path().join("image"));
    std::fs::File::create(&image).unwrap().set_len(GEOMETRY.bytes).unwrap();
    let server = make(socket.to_str().unwrap(), image.to_str().unwrap());
    server.wait_for(&socket);
    let uri = format!("nbd+unix:///?socket={}", socket.display()).parse().unwrap();
    let options = NbdOptions { depth: GEOMETRY.depth, ..NbdOptions::default() };
    let device = NbdDevice::connect(&uri, &options).unwrap();
    let (memory, peer) = (private_memory(64 << 20), private_memory(2 << 20));
    memory.windows().insert(peer.arena().window().clone());
    let queue = device.queue(memory.clone()).unwrap();
    Rig { queue, device: memory.clone(), memory, peer, stores: true, copies: 0, keep: Box::new((server, dir)) }
}

#[test]
#[ignore = "needs Debian's programs: run by .ci/blk"]
fn the_client_conforms_on_nbdkit() {
    conforms(|| client_of(|socket, image| program::start("nbdkit", &["-f", "-U", socket, "file", image])));
}

#[test]
#[ignore = "needs Debian's programs: run by .ci/blk"]
fn the_client_conforms_on_qemu_nbd() {
    let args = ["--persistent", "--shared=4", "--format=raw", "--discard=unmap", "--detect-zeroes=unmap"];
    conforms(|| client_of(|socket, image| program::start("qemu-nbd", &[&args[..], &["-k", socket, image]].concat())));
}

#[test]
#[ignore = "needs Debian's programs: run by .ci/blk"]
fn a_disk_behind_two_servers_is_the_same_disk() {
    // qemu-io, our server, our client, nbdkit.
    let rig = client_of(|socket, image| program::start("nbdkit", &["-f", "-U", socket, "file", image]));
    let (memory, keep) = (rig.memory, rig.keep);
    let running = Running::start(vec![export("disk")], Limits::default(), &memory, vec![vec![rig.queue]]);
    let uri = running.uri("disk");
    let said =
        run("qemu-io", &["-f", "raw", "-c", "write -P 7 1M 1M", "-c", "write -z 1536k 64k", "-c", "flush", &uri]);
    assert!(!said.contains("failed"), "{said}");
    let said = run("qemu-io", &["-f", "raw", "-c", "read -P 7 1M 512k", "-c", "read -P 0 1536k 64k", &uri]);
    assert!(!said.contains("failed"), "{said}");
    let map = run("nbdinfo", &["--map", &uri]);
    assert!(map.contains("hole,zero") && map.contains("data"), "{map}");
    assert_eq!(memory.stats().payload_bytes_copied.get(), 0);
    drop((running, keep));
}
