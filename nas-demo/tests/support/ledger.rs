//! A client that writes without end and keeps account of what the server has promised.
//!
//! Blocks of a small file are written over and over, each time with other bytes. For each block the ledger knows which
//! bytes were last promised to be durable, and which were sent afterwards: whatever happens to the server, a block
//! must hold one of these.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nas_demo::workload::client::Client;
use nas_demo::workload::rpc::ClientError;
use nfs3_types::nfs3::{nfs_fh3, stable_how};

use super::data::Noise;

const BLOCKS: usize = 128;
const BLOCK_BYTES: usize = 16 << 10;
/// Unstable writes between two commits.
const BATCH: u64 = 8;
const TIMEOUT: Duration = Duration::from_secs(10);

/// Connects to the server on this port.
///
/// # Errors
/// [`ClientError`].
pub fn try_mount(port: u16) -> Result<Client, ClientError> {
    Client::mount(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), "/", TIMEOUT)
}

/// Connects to the server on this port.
///
/// # Panics
/// If that fails.
pub fn mount(port: u16) -> Client {
    try_mount(port).unwrap_or_else(|error| panic!("cannot mount: {error}"))
}

/// How writes are made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// Each by itself (FILE_SYNC).
    Stable,
    /// Some, and then a commit.
    Commit,
}

/// What one block may hold: numbers of writes.
#[derive(Debug, Clone, Default)]
struct Block {
    promised: Option<u64>,
    /// Sent after that, in order.
    sent: Vec<u64>,
}

/// A writer in a thread of its own.
#[derive(Debug)]
pub struct Writer {
    stop: Arc<AtomicBool>,
    promises: Arc<AtomicU64>,
    thread: Option<JoinHandle<Ledger>>,
}

impl Writer {
    /// Starts to write the file `name`. When the connection fails, the writer connects again.
    pub fn start(port: u16, name: &str, promise: Promise) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let promises = Arc::new(AtomicU64::new(0));
        let mut ledger = Ledger {
            name: name.to_owned(),
            promise,
            blocks: vec![Block::default(); BLOCKS],
            next: 0,
            promises: promises.clone(),
        };
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if let Err(error) = ledger.write_on(port, &stopped) {
                    println!("{}: {error}; connecting again", ledger.name);
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
            ledger
        });
        Self { stop, promises, thread: Some(thread) }
    }

    /// How many promises the server has made so far.
    pub fn promises(&self) -> u64 {
        self.promises.load(Ordering::Relaxed)
    }

    /// Stops and returns the ledger.
    pub fn finish(mut self) -> Ledger {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it is taken only here");
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// What the server has promised.
#[derive(Debug)]
pub struct Ledger {
    name: String,
    promise: Promise,
    blocks: Vec<Block>,
    /// The number of the next write.
    next: u64,
    promises: Arc<AtomicU64>,
}

impl Ledger {
    fn write_on(&mut self, port: u16, stop: &AtomicBool) -> Result<(), ClientError> {
        let mut client = try_mount(port)?;
        let root = client.root();
        let file = client.create(&root, &self.name)?;
        while !stop.load(Ordering::Relaxed) {
            match self.promise {
                Promise::Stable => self.write_stable(&mut client, &file)?,
                Promise::Commit => self.write_and_commit(&mut client, &file)?,
            }
            // The copy beside it shall go on as well.
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn write_stable(&mut self, client: &mut Client, file: &nfs_fh3) -> Result<(), ClientError> {
        let (number, _) = self.write(client, file, stable_how::FILE_SYNC)?;
        self.promised(number);
        Ok(())
    }

    fn write_and_commit(&mut self, client: &mut Client, file: &nfs_fh3) -> Result<(), ClientError> {
        let mut written = Vec::new();
        for _ in 0..BATCH {
            written.push(self.write(client, file, stable_how::UNSTABLE)?);
        }
        let verifier = client.commit(file)?.verifier;
        for (number, before) in written {
            // Another verifier says that the server may have lost what was not committed.
            if before == verifier {
                self.promised(number);
            }
        }
        Ok(())
    }

    /// Writes the next block. Returns the write's number and the server's verifier.
    fn write(&mut self, client: &mut Client, file: &nfs_fh3, how: stable_how) -> Result<(u64, [u8; 8]), ClientError> {
        let number = self.next;
        self.next += 1;
        let index = block_of(number);
        self.blocks[index].sent.push(number);
        let answer = client.write(file, (index * BLOCK_BYTES) as u64, &bytes_of(number), how)?;
        assert_eq!(answer.count as usize, BLOCK_BYTES, "a short write although there is room");
        assert!(how != stable_how::FILE_SYNC || answer.committed == stable_how::FILE_SYNC, "{answer:?}");
        Ok((number, answer.verifier))
    }

    fn promised(&mut self, number: u64) {
        let block = &mut self.blocks[block_of(number)];
        block.sent.retain(|sent| *sent > number);
        block.promised = Some(number);
        self.promises.fetch_add(1, Ordering::Relaxed);
    }

    /// Reads all blocks and checks that each holds what was last promised, or what was sent afterwards.
    ///
    /// # Panics
    /// If one does not.
    pub fn check(&self, client: &mut Client) {
        let root = client.root();
        let file = client.lookup(&root, &self.name).expect("the file was created before");
        for (index, block) in self.blocks.iter().enumerate() {
            let offset = (index * BLOCK_BYTES) as u64;
            let found = client.read(&file, offset, BLOCK_BYTES as u32).expect("a readable file");
            let allowed = block.promised.iter().chain(&block.sent);
            if allowed.into_iter().any(|number| bytes_of(*number) == found) {
                continue;
            }
            let untouched = found.iter().all(|byte| *byte == 0);
            assert!(
                block.promised.is_none() && untouched,
                "{} block {index} ({} bytes, {}zero) holds neither write {:?} nor any of {:?}",
                self.name,
                found.len(),
                if untouched { "all " } else { "not " },
                block.promised,
                block.sent,
            );
        }
    }
}

fn block_of(number: u64) -> usize {
    (number % BLOCKS as u64) as usize
}

fn bytes_of(number: u64) -> Vec<u8> {
    Noise::new(number + 1).bytes(BLOCK_BYTES)
}
