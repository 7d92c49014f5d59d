//! The disk component with real processes under the real manager: payload of a write lies in a third domain's arena, data
//! that was read is forwarded to it, and nobody copies a byte. Then the image grows, and the disk dies.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::VecDeque;
use std::path::Path;
use std::time::{Duration, Instant};

use conn_mgr::manager::{Manager, Options, Status};
use conn_mgr::manifest::Manifest;
use fido_core::domain::{Domain, Notice};
use fido_core::lane::Lane;
use fido_core::memory::Memory;
use fido_core::message::Head;
use fido_core::payload::Payload;
use fido_core::platform::host::protocol::SOCKET_VARIABLE;
use fido_core::stats::Snapshot;
use fido_core::wait::Source;
use mmblk::link::device::LinkDevice;
use mmblk::link::front::LinkQueue;
use mmblk::queue::{BlockOp, BlockQueue};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;
/// Bytes of a piece, in segments of unequal length.
const PIECE: usize = 32 << 10;
/// Pieces that are on their way at a time.
const WINDOW: u64 = 8;
/// A piece to write, and a piece that was read.
const WRITE: u8 = 1;
const READ: u8 = 2;

/// Becomes a domain when the manager starts this program again.
#[test]
fn component() {
    if std::env::var_os(SOCKET_VARIABLE).is_some() {
        let domain = Domain::join().unwrap();
        match domain.name() {
            "source" => source(&domain),
            _ => user(&domain),
        }
        std::process::exit(0);
    }
}

/// What a piece is to be: other bytes each time.
fn pattern(number: u64) -> Vec<u8> {
    let byte = |at: u64| ((number * 31 + at).wrapping_mul(0x9E37_79B9) >> 11) as u8;
    (0..PIECE as u64).map(byte).collect()
}

fn payload(memory: &Memory, bytes: &[u8]) -> Payload {
    let mut all = Payload::new();
    let (one, other) = bytes.split_at(1000);
    for part in [one, other] {
        let mut buf = memory.alloc(part.len()).unwrap();
        buf.as_mut_slice().copy_from_slice(part);
        all.append(buf.into_payload());
    }
    all
}

fn head(kind: u8, number: u64) -> Head {
    Head { kind, flags: 0, args: [number as u32, 0, 0, 0] }
}

/// Runs `work` until the manager ends the domain; it returns whether there was anything to do.
fn run(domain: &Domain, mut sources: Vec<Box<dyn Part>>, mut work: impl FnMut(&mut [Box<dyn Part>]) -> bool) {
    let (mut notices, mut waiter) = (domain.notices().unwrap(), domain.waiter().unwrap());
    let deadline = Instant::now() + 2 * PATIENCE;
    while Instant::now() < deadline && notices.poll() != Some(Notice::Shutdown) {
        if work(&mut sources) {
            waiter.busy();
            continue;
        }
        let mut all: Vec<&mut dyn Source> = sources.iter_mut().map(|part| part.source()).collect();
        all.push(&mut notices);
        waiter.idle(&mut all, Some(PATIENCE)).unwrap();
    }
}

/// A lane or a queue.
trait Part {
    fn source(&mut self) -> &mut dyn Source;
    fn lane(&mut self) -> &mut Lane {
        panic!("no lane")
    }
    fn queue(&mut self) -> &mut LinkQueue {
        panic!("no queue")
    }
}

impl Part for Lane {
    fn source(&mut self) -> &mut dyn Source {
        self
    }
    fn lane(&mut self) -> &mut Lane {
        self
    }
}

impl Part for LinkQueue {
    fn source(&mut self) -> &mut dyn Source {
        self
    }
    fn queue(&mut self) -> &mut LinkQueue {
        self
    }
}

/// Has pieces to store, and looks at what comes back.
fn source(domain: &Domain) {
    let lane = domain.take_lane("data", 0).unwrap();
    domain.ready(&[]).unwrap();
    let memory = domain.memory();
    let (mut sent, mut verified) = (0, 0u64);
    run(domain, vec![Box::new(lane)], |parts| {
        let lane = parts[0].lane();
        while lane.change().is_some() {}
        let mut busy = false;
        while let Some(message) = lane.recv() {
            let (head, data) = message.unwrap();
            let mut found = vec![0; data.len() as usize];
            memory.read_header(&data, 0, &mut found).unwrap();
            assert!(head.kind == READ && found == pattern(head.args[0].into()), "piece {}", head.args[0]);
            verified += 1;
            busy = true;
            if verified.is_multiple_of(16) {
                domain.ready(&[("verified", verified.to_string())]).unwrap();
            }
        }
        while lane.is_up() && sent < verified + WINDOW {
            lane.send(head(WRITE, sent), payload(&memory, &pattern(sent))).unwrap();
            sent += 1;
            busy = true;
        }
        lane.flush();
        busy
    });
}

/// Stores what it is sent and sends back what is stored, by address both ways, over one queue or another.
fn user(domain: &Domain) {
    let lane = domain.take_lane("data", 0).unwrap();
    let device = LinkDevice::connect(domain.take_lanes("disk").unwrap(), PATIENCE).unwrap();
    let queues: Vec<_> = std::iter::from_fn(|| device.queue()).collect();
    domain.ready(&[("bytes", device.geometry().bytes.to_string())]).unwrap();
    let offset = |number: u64| number % 256 * PIECE as u64;
    let mut back: VecDeque<(Head, Payload)> = VecDeque::new();
    let mut parts: Vec<Box<dyn Part>> = vec![Box::new(lane)];
    parts.extend(queues.into_iter().map(|queue| Box::new(queue) as Box<dyn Part>));
    run(domain, parts, |parts| {
        let (lane, queues) = parts.split_first_mut().unwrap();
        let lane = lane.lane();
        while lane.change().is_some() {}
        let mut busy = false;
        while let Some(message) = lane.recv() {
            let (head, data) = message.unwrap();
            let number = u64::from(head.args[0]);
            let write = BlockOp::Write { offset: offset(number), data, durable: false };
            let queue = number as usize % queues.len();
            queues[queue].queue().submit(number << 1, write).unwrap();
            busy = true;
        }
        for queue in queues {
            let queue = queue.queue();
            while let Some(completion) = queue.poll() {
                let (number, was_read) = (completion.id >> 1, completion.id & 1 == 1);
                let data = completion.result.unwrap();
                if was_read {
                    back.push_back((head(READ, number), data));
                } else {
                    let read = BlockOp::Read { offset: offset(number), len: PIECE as u32 };
                    queue.submit(number << 1 | 1, read).unwrap();
                }
                busy = true;
            }
            if let Some(geometry) = queue.resized() {
                domain.ready(&[("bytes", geometry.bytes.to_string())]).unwrap();
            }
            queue.flush_submissions();
        }
        while let Some((head, data)) = back.pop_front() {
            lane.send(head, data).unwrap();
        }
        lane.flush();
        busy
    });
}

fn manifest(image: &Path) -> String {
    let program = std::env::current_exe().unwrap();
    let component = format!(
        "program = {program:?}\nargs = [\"component\", \"--exact\", \"--nocapture\", \"--test-threads=1\"]\narena = \"16MiB\"\n"
    );
    format!(
        r#"
        appliance = "test"
        [domain.source]
        {component}
        windows = ["disk"]
        [domain.user]
        {component}
        [domain.disk]
        program = {disk:?}
        windows = ["source"]
        restart-delay = "1ms"
        [domain.disk.params]
        device = "trace(file:{image},create=32MiB)"
        threads = 2
        turn = 16
        front-ends.disk.requests = 12
        front-ends.disk.lent-bytes = "8MiB"
        [[link]]
        name = "data"
        between = ["source", "user"]
        [[link]]
        name = "disk"
        between = ["user", "disk"]
        lanes = 2
        "#,
        disk = env!("CARGO_BIN_EXE_mmblk-disk"),
        image = image.display(),
    )
}

fn note(status: &Status, domain: &str, name: &str) -> u64 {
    status.domain(domain).and_then(|domain| domain.notes.get(name)?.parse().ok()).unwrap_or(0)
}

fn stats(manager: &Manager) -> Snapshot {
    let all = ["source", "user", "disk"].map(|name| manager.stats(name).unwrap());
    all.iter().fold(Snapshot::default(), |sum, stats| sum.plus(stats))
}

#[test]
fn a_third_domains_bytes_go_to_the_disk_and_back_without_a_copy() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    let manifest = Manifest::parse(&manifest(&image), "test").unwrap_or_else(|error| panic!("{error}"));
    let options = Options { runtime_dir: Some(folder.path().into()), ..Options::default() };
    let manager = Manager::start(manifest, options).unwrap();
    manager.wait_ready(PATIENCE).unwrap_or_else(|error| panic!("{error}: {:#?}", manager.status()));
    let verified = |status: &Status| note(status, "source", "verified");
    let goes_on = |what: &str| {
        let wanted = verified(&manager.status()) + 64;
        let done = manager.wait_until(PATIENCE, |status| verified(status) >= wanted);
        assert!(done, "{what}: {:#?}", manager.status());
    };
    goes_on("at first");
    let (pieces, sum) = (verified(&manager.status()), stats(&manager));
    assert!(sum.payload_bytes >= 2 * pieces * PIECE as u64, "{sum:?}");
    assert_eq!((sum.payload_bytes_copied, sum.refusals), (0, 0), "{sum:?}");

    assert_eq!(note(&manager.status(), "user", "bytes"), 32 * MIB);
    std::fs::OpenOptions::new().write(true).open(&image).unwrap().set_len(48 * MIB).unwrap();
    let pid = manager.status().domain("disk").unwrap().pid.unwrap();
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    let told = manager.wait_until(PATIENCE, |status| note(status, "user", "bytes") == 48 * MIB);
    assert!(told, "{:#?}", manager.status());

    manager.kill("disk").unwrap();
    let again = manager.wait_until(PATIENCE, |status| status.domain("disk").is_some_and(|disk| disk.generation == 2));
    assert!(again, "{:#?}", manager.status());
    goes_on("after the disk's death");
    let status = manager.status();
    for name in ["source", "user"] {
        assert_eq!(status.domain(name).unwrap().generation, 1, "{name} has survived");
    }
    manager.shutdown(PATIENCE).unwrap();
}

#[test]
fn a_setting_that_makes_no_sense_is_named() {
    for (line, part) in [
        ("device = \"floppy:a\"", "floppy"),
        ("device = \"file\"", "params.device"),
        ("threads = 0", "params.threads"),
        ("turn = 0", "turn"),
        ("lent-bytes = \"1MiB\"", "4194304"),
        ("front-ends.disk.color = 1", "color"),
        ("front-ends.dusk.turn = 1", "dusk"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let device = if line.starts_with("device") { "" } else { "device = \"null:1MiB\"" };
        let says = folder.path().join("says");
        // What a domain says goes where the manager's own messages go; here, to a file.
        let run = format!("exec {} 2>{}", env!("CARGO_BIN_EXE_mmblk-disk"), says.display());
        let text = format!(
            "appliance = \"test\"\n[domain.disk]\nprogram = \"/bin/sh\"\nargs = [\"-c\", {run:?}]\n\
             [domain.disk.params]\n{device}\n{line}\n\
             [domain.user]\nprogram = \"/bin/sh\"\nafter = [\"disk\"]\n\
             [[link]]\nname = \"disk\"\nbetween = [\"user\", \"disk\"]\n",
        );
        let manifest = Manifest::parse(&text, "test").unwrap_or_else(|error| panic!("{line}: {error}"));
        let options = Options { runtime_dir: Some(folder.path().into()), ..Options::default() };
        let manager = Manager::start(manifest, options).unwrap();
        manager.wait_ready(PATIENCE).unwrap_err();
        let said = std::fs::read_to_string(says).unwrap();
        assert!(said.starts_with("mmblk-disk: ") && said.contains(part), "{line}: {said}");
        manager.shutdown(PATIENCE).unwrap();
    }
}
