//! A domain with unstable writes dies, and its successor has them: under the same write verifier, so that no client
//! need send them again.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::time::{Duration, Instant};

use conn_mgr::manager::{Manager, Options};
use nas_demo::appliance::{Mode, Nas, fixed_port};
use nas_demo::workload::client::Client;
use nfs3_types::nfs3::{nfs_fh3, stable_how};

const PATIENCE: Duration = Duration::from_secs(60);
const CHUNK: usize = 100_000;

struct Server {
    manager: Manager,
    nas: Nas,
    _folder: tempfile::TempDir,
}

impl Server {
    fn start(mode: Mode) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let nas = Nas {
            mode,
            program: env!("CARGO_BIN_EXE_nas-demo").into(),
            image: folder.path().join("nas.img"),
            size: 64 << 20,
            disk: None,
            listen: fixed_port(([127, 0, 0, 1], 0).into()).unwrap(),
        };
        let options =
            Options { runtime_dir: Some(folder.path().into()), start_deadline: PATIENCE, ..Options::default() };
        let manager = Manager::start(nas.manifest().unwrap(), options).unwrap();
        manager.wait_ready(PATIENCE).unwrap();
        Self { manager, nas, _folder: folder }
    }

    fn kill(&self, domain: &str) {
        self.manager.kill(domain).unwrap();
        self.manager.wait_ready(PATIENCE).unwrap();
    }

    /// Connects, as often as it takes: what stands between domains may not be up again yet.
    fn mount(&self) -> Client {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Client::mount(self.nas.listen, "/export", PATIENCE) {
                Ok(client) => return client,
                Err(error) => assert!(Instant::now() < deadline, "cannot mount: {error}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn bytes(number: usize) -> Vec<u8> {
    (0..CHUNK).map(|at| (at / 7 + at * number + number) as u8).collect()
}

fn check(client: &mut Client, file: &nfs_fh3, chunks: usize) {
    for number in 0..chunks {
        let found = client.read(file, (number * CHUNK) as u64, CHUNK as u32).unwrap();
        assert!(found == bytes(number), "chunk {number}");
    }
}

fn unstable_writes_survive_the_death_of(domain: &str, mode: Mode) {
    let server = Server::start(mode);
    let mut client = server.mount();
    let root = client.root();
    let file = client.create(&root, "file").unwrap();
    let mut verifiers = std::collections::BTreeSet::new();
    let mut chunks = 0;
    for _ in 0..3 {
        for _ in 0..10 {
            let written = client.write(&file, (chunks * CHUNK) as u64, &bytes(chunks), stable_how::UNSTABLE).unwrap();
            assert_eq!(written.count as usize, CHUNK);
            verifiers.insert(written.verifier);
            chunks += 1;
        }
        server.kill(domain);
        client = server.mount();
        check(&mut client, &file, chunks);
        // Once more, with nothing written in between: what was inherited is inherited again.
        server.kill(domain);
        client = server.mount();
        verifiers.insert(client.commit(&file).unwrap().verifier);
        check(&mut client, &file, chunks);
        assert_eq!(client.getattr(&file).unwrap().size, (chunks * CHUNK) as u64);
    }
    assert_eq!(verifiers.len(), 1, "{verifiers:?}");
    server.manager.shutdown(PATIENCE).unwrap();
}

#[test]
fn split_fs() {
    unstable_writes_survive_the_death_of("fs", Mode::Split);
}

#[test]
fn copying_fs() {
    unstable_writes_survive_the_death_of("fs", Mode::Copying);
}

#[test]
fn monolith() {
    unstable_writes_survive_the_death_of("monolith", Mode::Monolithic);
}
