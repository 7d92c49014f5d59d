//! The server on a TCP port, with a client that somebody else wrote.

use std::future::Future;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fido_core::assignment::WaitStrategy;
use fido_core::memory::Memory;
use fido_core::testing::private_memory;
use fido_core::waiter::Waiter;
use mmnet::stream::TcpPort;
use nfs3_client::io::{AsyncRead, AsyncWrite};
use nfs3_client::net::Connector;
use nfs3_client::{Nfs3Connection, Nfs3ConnectionBuilder};
use nfs3_types::nfs3::*;
use nfs3_types::rpc::{auth_unix, opaque_auth};
use nfs3_types::xdr_codec::{Opaque, Void};

use crate::nfs::testing::{ModelVolume, call_bytes};
use crate::nfs::{Limits, NfsServer};

/// Nothing here may take longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server on its own thread, until it is dropped.
struct Running {
    addr: SocketAddr,
    memory: Memory,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn start() -> Self {
        let memory = private_memory(64 << 20);
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let port = TcpPort::bind(memory.clone(), any, Default::default()).unwrap();
        let addr = port.local_addr();
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (memory, stop) = (memory.clone(), stop.clone());
            move || serve(memory, port, &stop)
        });
        Self { addr, memory, stop, thread: Some(thread) }
    }

    fn connect(&self) -> TcpStream {
        connect(self.addr).unwrap()
    }

    /// A client that has mounted the export.
    fn mount(&self) -> Nfs3Connection<Blocking> {
        let port = self.addr.port();
        let builder = Nfs3ConnectionBuilder::new(BlockingConnector, "127.0.0.1", "/export")
            .connect_from_privileged_port(false)
            .mount_port(port)
            .nfs3_port(port)
            .credential(opaque_auth::auth_unix(&auth_unix::default()));
        now(builder.mount()).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(std::thread::panicking() || ended.is_ok());
        }
    }
}

fn serve(memory: Memory, port: TcpPort, stop: &AtomicBool) {
    let volume = ModelVolume::new(memory.clone());
    let mut server = NfsServer::new(memory, port, volume, "/export", Limits::default()).unwrap();
    let mut waiter = Waiter::new(WaitStrategy::Adaptive).unwrap();
    let end = Instant::now() + 2 * PATIENCE;
    while !stop.load(Ordering::Relaxed) {
        assert!(Instant::now() < end);
        if server.poll() {
            waiter.busy();
            continue;
        }
        server.flush();
        let timeout = server.timeout().unwrap_or(Duration::from_millis(20));
        waiter.idle(&mut server.sources(), Some(timeout)).unwrap();
    }
}

fn connect(addr: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&addr, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A blocking socket where the client wants an asynchronous one: its futures are ready when they return.
struct Blocking(TcpStream);

struct BlockingConnector;

impl AsyncRead for Blocking {
    async fn async_read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buf)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            count => Ok(count),
        }
    }
}

impl AsyncWrite for Blocking {
    async fn async_write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.write(buf)
    }

    async fn async_write_all(&mut self, buf: &[u8]) -> io::Result<()> {
        self.0.write_all(buf)
    }
}

impl Connector for BlockingConnector {
    type Connection = Blocking;

    async fn connect(&self, addr: SocketAddr) -> io::Result<Blocking> {
        connect(addr).map(Blocking)
    }

    async fn connect_with_port(&self, addr: SocketAddr, _local_port: u16) -> io::Result<Blocking> {
        connect(addr).map(Blocking)
    }
}

/// The value of a future that never waits.
fn now<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("a blocking socket made a future wait"),
    }
}

fn at<'a>(dir: &nfs_fh3, name: &'a [u8]) -> diropargs3<'a> {
    diropargs3 { dir: dir.clone(), name: filename3::from(name) }
}

fn pattern(len: u32, seed: u32) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 24) as u8).collect()
}

#[test]
fn another_client_uses_a_file() {
    let running = Running::start();
    let mut client = running.mount();
    let root = client.root_nfs_fh3();
    let info = now(client.fsinfo(&FSINFO3args { fsroot: root.clone() })).unwrap().unwrap();
    let dir = MKDIR3args { where_: at(&root, b"dir"), attributes: sattr3::default() };
    let dir = now(client.mkdir(&dir)).unwrap().unwrap().obj.unwrap();
    let create = CREATE3args { where_: at(&dir, b"file"), how: createhow3::UNCHECKED(sattr3::default()) };
    let file = now(client.create(&create)).unwrap().unwrap().obj.unwrap();
    let mut written = 0u64;
    for seed in 0..5 {
        let data = pattern(info.wtmax - seed, seed);
        let write = WRITE3args {
            file: file.clone(),
            offset: written,
            count: data.len() as u32,
            stable: stable_how::UNSTABLE,
            data: Opaque::borrowed(&data),
        };
        assert_eq!(now(client.write(&write)).unwrap().unwrap().count as usize, data.len());
        let read = READ3args { file: file.clone(), offset: written, count: data.len() as u32 };
        assert_eq!(&now(client.read(&read)).unwrap().unwrap().data[..], data);
        written += data.len() as u64;
    }
    let copied = running.memory.stats().snapshot().payload_bytes_copied;
    assert_eq!(copied, written, "each byte once: by the model volume, to keep it");
    let commit = COMMIT3args { file: file.clone(), offset: 0, count: 0 };
    assert_eq!(now(client.commit(&commit)).unwrap().unwrap().verf.0, ModelVolume::VERIFIER);
    let rename = RENAME3args { from: at(&dir, b"file"), to: at(&root, b"moved") };
    now(client.rename(&rename)).unwrap().unwrap();
    let list = READDIRPLUS3args {
        dir: root.clone(),
        cookie: 0,
        cookieverf: cookieverf3::default(),
        dircount: 8192,
        maxcount: 32768,
    };
    let listed = now(client.readdirplus(&list)).unwrap().unwrap().reply;
    let names: Vec<_> = listed.entries.0.iter().map(|entry| entry.name.0.to_vec()).collect();
    assert_eq!(names, [&b"."[..], b"..", b"dir", b"moved"]);
    now(client.remove(&REMOVE3args { object: at(&root, b"moved") })).unwrap().unwrap();
    now(client.rmdir(&RMDIR3args { object: at(&root, b"dir") })).unwrap().unwrap();
    now(client.unmount()).unwrap();
}

#[test]
fn many_clients_write_and_read_at_once() {
    let running = Running::start();
    std::thread::scope(|scope| {
        for seed in 0..6u32 {
            let mut client = running.mount();
            scope.spawn(move || {
                let root = client.root_nfs_fh3();
                let name = format!("file-{seed}");
                let how = createhow3::GUARDED(sattr3::default());
                let create = CREATE3args { where_: at(&root, name.as_bytes()), how };
                let file = now(client.create(&create)).unwrap().unwrap().obj.unwrap();
                for i in 0..20u32 {
                    let data = pattern(10_000 * (i + 1), seed * 100 + i);
                    let write = WRITE3args {
                        file: file.clone(),
                        offset: u64::from(i),
                        count: data.len() as u32,
                        stable: stable_how::FILE_SYNC,
                        data: Opaque::borrowed(&data),
                    };
                    now(client.write(&write)).unwrap().unwrap();
                    let read = READ3args { file: file.clone(), offset: u64::from(i), count: data.len() as u32 };
                    assert_eq!(&now(client.read(&read)).unwrap().unwrap().data[..], data);
                }
            });
        }
    });
}

#[test]
fn fragments_and_dribbling_bytes_over_tcp() {
    let running = Running::start();
    let mut client = running.mount();
    let root = client.root_nfs_fh3();
    let create = CREATE3args { where_: at(&root, b"file"), how: createhow3::UNCHECKED(sattr3::default()) };
    let file = now(client.create(&create)).unwrap().unwrap().obj.unwrap();
    let data = pattern(5000, 1);
    let write = WRITE3args {
        file: file.clone(),
        offset: 0,
        count: 5000,
        stable: stable_how::FILE_SYNC,
        data: Opaque::borrowed(&data),
    };
    let call = call_bytes(77, PROGRAM, NFS_PROGRAM::NFSPROC3_WRITE as u32, &write);
    let mut stream = running.connect();
    let pieces: Vec<&[u8]> = call[4..].chunks(333).collect();
    for (i, piece) in pieces.iter().enumerate() {
        let last = if i + 1 == pieces.len() { 1 << 31 } else { 0 };
        let mark = (piece.len() as u32 | last).to_be_bytes();
        for bytes in mark.chunks(1).chain(piece.chunks(50)) {
            stream.write_all(bytes).unwrap();
        }
    }
    let mut mark = [0; 8];
    stream.read_exact(&mut mark).unwrap();
    assert_eq!(mark[4..], 77u32.to_be_bytes());
    let read = READ3args { file, offset: 0, count: 6000 };
    assert_eq!(&now(client.read(&read)).unwrap().unwrap().data[..], data);
}

#[test]
fn a_babbling_client_is_cut_off_and_others_go_on() {
    let running = Running::start();
    let mut client = running.mount();
    let mut babbler = running.connect();
    let _ = babbler.write_all(b"GET / HTTP/1.1\r\nHost: nas\r\n\r\n");
    let mut answer = Vec::new();
    assert!(babbler.read_to_end(&mut answer).is_err() || answer.is_empty());
    let Void = now(client.null()).map(|()| Void).unwrap();
    let root = client.root_nfs_fh3();
    now(client.getattr(&GETATTR3args { object: root })).unwrap().unwrap();
}

#[test]
fn a_client_that_half_closes_gets_its_answers() {
    let running = Running::start();
    let mut stream = running.connect();
    let calls: Vec<u8> = (1..=100).flat_map(|xid| call_bytes(xid, PROGRAM, 0, &Void)).collect();
    stream.write_all(&calls).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut replies = Vec::new();
    stream.read_to_end(&mut replies).unwrap();
    assert_eq!(replies.len(), 100 * 28);
}
