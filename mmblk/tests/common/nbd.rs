//! An NBD server on a thread of the test, and a client that says whatever it is told to.

#![allow(dead_code, reason = "each test file uses its part")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use fido_core::assignment::WaitStrategy;
use fido_core::memory::Memory;
use fido_core::waiter::Waiter;
use mmblk::export::nbd::{Export, Limits, Server, Worker};
use mmblk::nbd::haggling::{self, ReplyHead, info, option, reply};
use mmblk::nbd::place::Place;
use mmblk::nbd::transmission::{CHUNK_BYTES, Reply, Request};
use mmblk::queue::BlockQueue;

/// A server with its workers on threads; ended with its value.
pub struct Running {
    pub server: Server,
    pub socket: PathBuf,
    end: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

pub fn export(name: &str) -> Export {
    Export { name: name.into(), description: "for tests".into(), read_only: false }
}

impl Running {
    /// Serves `exports` at a Unix socket and a TCP port; each entry of `queues` is a worker's.
    pub fn start<Q: BlockQueue + Send + 'static>(
        exports: Vec<Export>,
        limits: Limits,
        memory: &Memory,
        queues: Vec<Vec<Q>>,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("nbd");
        let places = [Place::Unix(socket.clone()), Place::Tcp("127.0.0.1".into(), 0)];
        let mut server = Server::bind(&places, exports, limits).unwrap();
        let end = Arc::new(AtomicBool::new(false));
        let workers: Vec<_> = queues.into_iter().map(|q| server.worker(memory.clone(), q).unwrap()).collect();
        let threads = workers
            .into_iter()
            .map(|worker| {
                let (end, memory) = (end.clone(), memory.clone());
                std::thread::spawn(move || run(worker, &end, &memory))
            })
            .collect();
        Self { server, socket, end, threads, _dir: dir }
    }

    /// `host:port` of the TCP port.
    pub fn tcp(&self) -> String {
        self.server.places()[1].to_string()
    }

    /// The URI of an export, by Unix socket.
    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            assert!(thread.join().is_ok() || std::thread::panicking(), "a worker has panicked");
        }
    }
}

fn run<Q: BlockQueue>(mut worker: Worker<Q>, end: &AtomicBool, memory: &Memory) {
    let mut waiter = Waiter::new(WaitStrategy::Adaptive).unwrap().counting_in(memory);
    while !end.load(Ordering::SeqCst) {
        if worker.poll() {
            waiter.busy();
        } else {
            worker.flush();
            waiter.idle(&mut worker.sources(), Some(Duration::from_millis(20))).unwrap();
        }
    }
}

/// A client made of bytes.
pub struct Raw(pub UnixStream);

impl Raw {
    /// One that has said hello.
    pub fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut raw = Self(stream);
        assert_eq!(raw.take::<18>(), haggling::greeting());
        raw.say(&3u32.to_be_bytes());
        raw
    }

    /// One that has entered `export`, with or without structured replies and what is allocated.
    pub fn enter(socket: &Path, export: &str, structured: bool) -> Self {
        let mut raw = Self::connect(socket);
        if structured {
            assert_eq!(raw.ask(option::STRUCTURED_REPLY, &[]), [(reply::ACK, vec![])]);
            let meta = haggling::encode_meta(export, &["base:allocation"]);
            assert_eq!(raw.ask(option::SET_META_CONTEXT, &meta).len(), 2);
        }
        let replies = raw.ask(option::GO, &haggling::encode_go(export, &[info::BLOCK_SIZE]));
        assert_eq!(replies.last().unwrap().0, reply::ACK, "{replies:?}");
        raw
    }

    pub fn say(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    pub fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// The replies to an option, up to the one that ends them.
    pub fn ask(&mut self, option: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        self.say(&haggling::encode_option(option, data));
        let mut all = Vec::new();
        loop {
            let head = ReplyHead::decode(self.take()).unwrap();
            assert_eq!(head.option, option);
            all.push((head.kind, self.bytes(head.len as usize)));
            if head.kind == reply::ACK || head.kind & reply::ERROR != 0 {
                return all;
            }
        }
    }

    pub fn request(&mut self, request: Request, payload: &[u8]) {
        self.say(&request.encode());
        self.say(payload);
    }

    /// The head of the next reply.
    pub fn reply(&mut self) -> Reply {
        let magic = self.take::<4>();
        let len = Reply::head_bytes(magic).unwrap();
        let mut head = [0; CHUNK_BYTES];
        head[..4].copy_from_slice(&magic);
        head[4..len].copy_from_slice(&self.bytes(len - 4));
        Reply::decode(&head[..len]).unwrap()
    }

    /// Whether the server has hung up, and has said nothing more.
    pub fn is_over(&mut self) -> bool {
        matches!(self.0.read(&mut [0]), Ok(0) | Err(_))
    }
}
