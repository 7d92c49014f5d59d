//! An appliance of two domains, disk and NBD server, under the real manager and used by real programs, while the disk is
//! killed again and again.
//!
//! They need Debian's packages: `.ci/blk` installs them and runs these tests.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
#[path = "common/program.rs"]
mod program;

use std::path::Path;
use std::time::Duration;

use conn_mgr::manager::{Manager, Options};
use conn_mgr::manifest::Manifest;
use fido_core::stats::Snapshot;

const PATIENCE: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;
const MOST_DEATHS: usize = 4;

struct Appliance {
    manager: Manager,
    folder: tempfile::TempDir,
}

impl Appliance {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            r#"
            appliance = "test"
            [domain.disk]
            program = {disk:?}
            arena = "96MiB"
            restart-delay = "1ms"
            restart-limit = 1000
            [domain.disk.params]
            device = "file:{folder}/image,create=64MiB"
            [domain.nbd]
            program = {nbd:?}
            arena = "96MiB"
            after = ["disk"]
            [domain.nbd.params]
            listen = ["unix:{folder}/nbd", "127.0.0.1:0"]
            [[link]]
            name = "disk"
            between = ["nbd", "disk"]
            lanes = 2
            "#,
            disk = env!("CARGO_BIN_EXE_mmblk-disk"),
            nbd = env!("CARGO_BIN_EXE_mmblk-nbd"),
            folder = folder.path().display(),
        );
        let manifest = Manifest::parse(&text, "test").unwrap_or_else(|error| panic!("{error}"));
        let options = Options { runtime_dir: Some(folder.path().into()), ..Options::default() };
        let manager = Manager::start(manifest, options).unwrap();
        manager.wait_ready(PATIENCE).unwrap_or_else(|error| panic!("{error}: {:#?}", manager.status()));
        Self { manager, folder }
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///disk?socket={}/nbd", self.folder.path().display())
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn stats(&self) -> Snapshot {
        self.manager.stats("nbd").unwrap().plus(&self.manager.stats("disk").unwrap())
    }

    fn generation(&self, domain: &str) -> u64 {
        u64::from(self.manager.status().domain(domain).unwrap().generation)
    }

    /// Runs a program while the disk is killed a few times, each time when its successor serves. Returns how often.
    fn run_among_deaths(&self, program: &str, args: &[&str]) -> usize {
        std::thread::scope(|scope| {
            let running = scope.spawn(|| program::run(program, args));
            let mut deaths = 0;
            while !running.is_finished() && deaths < MOST_DEATHS {
                std::thread::sleep(Duration::from_millis(150));
                let before = self.generation("disk");
                if running.is_finished() || self.manager.kill("disk").is_err() {
                    continue;
                }
                deaths += 1;
                let serves = self.manager.wait_until(PATIENCE, |status| {
                    status
                        .domain("disk")
                        .is_some_and(|disk| u64::from(disk.generation) > before && disk.notes.contains_key("bytes"))
                });
                assert!(serves, "{:#?}", self.manager.status());
            }
            running.join().unwrap();
            deaths
        })
    }
}

fn original(path: &Path) -> Vec<u8> {
    let bytes = common::pattern(77, (64 * MIB) as usize);
    std::fs::write(path, &bytes).unwrap();
    bytes
}

#[test]
#[ignore = "needs Debian's programs: run by .ci/blk"]
fn copies_among_deaths_of_the_disk_are_whole() {
    let appliance = Appliance::start();
    let (from, to) = (appliance.path("original"), appliance.path("copy"));
    let bytes = original(Path::new(&from));
    program::run("nbdcopy", &["--flush", &from, &appliance.uri()]);
    let stats = appliance.stats();
    assert!(stats.payload_bytes >= 64 * MIB && stats.payload_bytes_copied == 0, "{stats:?}");
    // Slowly, so that some deaths fall into it; the last byte is checked.
    let slow = ["--requests=4", "--request-size=32768", "--flush"];
    let uri = appliance.uri();
    let there = appliance.run_among_deaths("nbdcopy", &[&slow[..], &[&from, &uri]].concat());
    let back = appliance.run_among_deaths("nbdcopy", &[&slow[..], &[&uri, &to]].concat());
    println!("{there} deaths on the way there, {back} on the way back");
    assert!(std::fs::read(&to).unwrap() == bytes);
    assert!(there + back > 0, "nobody died");
    assert_eq!(appliance.generation("nbd"), 1);
    appliance.manager.shutdown(PATIENCE).unwrap();
}

#[test]
#[ignore = "needs Debian's programs: run by .ci/blk"]
fn fio_verifies_among_deaths_of_the_disk() {
    let appliance = Appliance::start();
    let uri = format!("--uri={}", appliance.uri());
    let args = [
        "--name=verify",
        "--ioengine=nbd",
        &uri,
        "--rw=randwrite",
        "--bsrange=4k-64k",
        "--iodepth=16",
        "--numjobs=3",
        "--size=16m",
        "--offset_increment=20m",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--fsync=16",
        "--rate=24m",
        "--group_reporting",
        "--minimal",
    ];
    let deaths = appliance.run_among_deaths("fio", &args);
    println!("{deaths} deaths");
    assert!(deaths >= 2, "{deaths} deaths");
    assert_eq!(appliance.generation("nbd"), 1, "{:#?}", appliance.manager.status());
    appliance.manager.shutdown(PATIENCE).unwrap();
}

#[test]
#[ignore = "needs Debian's programs: run by .ci/blk"]
fn the_servers_death_costs_connections_and_no_data() {
    let appliance = Appliance::start();
    let from = appliance.path("original");
    original(Path::new(&from));
    program::run("nbdcopy", &["--flush", &from, &appliance.uri()]);
    appliance.manager.kill("nbd").unwrap();
    let again = appliance.manager.wait_until(PATIENCE, |status| {
        status.domain("nbd").is_some_and(|nbd| nbd.generation == 2 && nbd.notes.contains_key("listen"))
    });
    assert!(again, "{:#?}", appliance.manager.status());
    program::run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &from, &appliance.uri()]);
    appliance.manager.shutdown(PATIENCE).unwrap();
}
