//! Both ends of a link, for the tests that need them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{FEATURES, GEOMETRY, PATIENCE};
use fido_core::assignment::{Transport, WaitStrategy};
use fido_core::lane::Lane;
use fido_core::payload::Payload;
use fido_core::testing::TestLink;
use fido_core::waiter::Waiter;
use mmblk::backend::file::{FileDevice, FileOptions};
use mmblk::backend::memory::MemoryDevice;
use mmblk::link::back::BackEnd;
use mmblk::link::codec::{self, Answer, Identity, Request};
use mmblk::link::front::LinkQueue;
use mmblk::queue::{BlockQueue, Features, Geometry};

/// A back end in a thread of its own, until it is dropped.
pub struct Served {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    pub fn new<Q: BlockQueue + Send + 'static>(mut back: BackEnd<Q>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut waiter = Waiter::new(WaitStrategy::Sleep).unwrap();
            while !stopped.load(Ordering::Relaxed) {
                if back.poll() {
                    waiter.busy();
                } else {
                    back.flush();
                    waiter.idle(&mut back.sources(), Some(Duration::from_millis(20))).unwrap();
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

pub fn memory_device() -> MemoryDevice {
    MemoryDevice::new(GEOMETRY).unwrap()
}

pub fn file_device(dir: &tempfile::TempDir) -> FileDevice {
    let options = FileOptions {
        create_bytes: Some(GEOMETRY.bytes),
        block: GEOMETRY.block,
        depth: GEOMETRY.depth,
        ..FileOptions::new(dir.path().join("image"))
    };
    FileDevice::open(&options).unwrap()
}

pub fn connect(lane: Lane) -> LinkQueue {
    LinkQueue::connect(lane, PATIENCE).unwrap()
}

/// What the device says when it is asked who it is.
pub fn identity(geometry: Geometry) -> Answer {
    Answer::Identity(Identity { geometry, features: FEATURES })
}

/// A front end whose device the test itself plays.
pub fn played(geometry: Geometry) -> (TestLink, LinkQueue, Lane) {
    let (link, a, mut b) = TestLink::new(16, Transport::Pointer);
    b.send(identity(geometry).encode(u32::MAX), Payload::new()).unwrap();
    let queue = connect(a);
    let (head, _) = b.recv().unwrap().unwrap();
    assert_eq!(Request::decode(&head), Ok(Request::Identify { version: codec::VERSION }));
    (link, queue, b)
}

pub fn next_request(lane: &mut Lane) -> (u32, Request, Payload) {
    let (head, data) = lane.recv().expect("a request").unwrap();
    (codec::id(&head), Request::decode(&head).unwrap(), data)
}

pub fn say(device: &mut Lane, geometry: Geometry, features: Features) {
    device.send(Answer::Identity(Identity { geometry, features }).encode(u32::MAX), Payload::new()).unwrap();
}

/// Polls until it is so.
pub fn until(mut what: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !what() {
        assert!(Instant::now() < deadline, "it did not come");
        std::thread::yield_now();
    }
}
