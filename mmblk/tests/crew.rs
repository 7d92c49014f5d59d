//! Queues over a file that go from thread to thread with cold reads in flight. The kernel ties a request to the thread
//! that submitted it; a crew sees to it that this thread is there as long as the request.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fido_core::assignment::WaitStrategy;
use fido_core::bell::{Bell, Ringer};
use fido_core::crew::{Crew, Job, Limits};
use fido_core::testing::private_memory;
use fido_core::wait::Source;
use fido_core::waiter::Waiter;
use mmblk::backend::file::{FileDevice, FileOptions, FileQueue};
use mmblk::queue::{BlockOp, BlockQueue};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
const BYTES: u64 = 32 << 20;
const READ: u32 = 64 << 10;
/// Reads that one flush asks for.
const BATCH: u64 = 12;
const DEPTH: u32 = 64;

/// What the test and one lane know of each other.
struct Sight {
    bell: Bell,
    /// There is always work, so that the crew grows.
    flooded: AtomicBool,
    /// Whether to read, and to leave the completions in the ring. Cleared by the first thread, which takes them.
    reads: AtomicBool,
    asked: AtomicU64,
    ended: AtomicU64,
    failures: Mutex<Vec<String>>,
}

/// A lane: asks for reads at the last moment before it is handed over.
struct Lane {
    queue: FileQueue,
    sight: Arc<Sight>,
    call: Call,
    at: u64,
}

impl Lane {
    /// Takes what has ended.
    fn take(&mut self) -> bool {
        let mut any = false;
        while let Some(completion) = self.queue.poll() {
            any = true;
            match completion.result {
                Ok(data) => assert_eq!(data.len(), u64::from(READ)),
                Err(error) => self.sight.failures.lock().unwrap().push(error.to_string()),
            }
            self.sight.ended.fetch_add(1, Ordering::SeqCst);
        }
        any
    }
}

/// Whether this is the thread that stays.
fn is_first() -> bool {
    std::thread::current().name() == Some("fido-crew-0")
}

impl Job for Lane {
    fn name(&self) -> String {
        "a lane".into()
    }

    fn poll(&mut self) -> bool {
        let taken = is_first() && self.take();
        taken || self.sight.flooded.load(Ordering::SeqCst)
    }

    fn flush(&mut self) {
        if is_first() || !self.sight.reads.load(Ordering::SeqCst) {
            return;
        }
        for _ in 0..BATCH {
            let read = BlockOp::Read { offset: self.at % BYTES, len: READ };
            if self.queue.submit(self.at, read).is_err() {
                break;
            }
            self.at += u64::from(READ);
            self.sight.asked.fetch_add(1, Ordering::SeqCst);
        }
        self.queue.flush_submissions();
    }

    fn sources<'a>(&'a mut self, all: &mut Vec<&'a mut dyn Source>) {
        if is_first() {
            all.push(&mut self.queue);
        }
        all.push(&mut self.call);
    }
}

/// What wakes a lane's thread when the test wants something.
struct Call(Arc<Sight>);

impl Source for Call {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.0.bell.as_fd()
    }

    fn edge_triggered(&self) -> bool {
        true
    }

    fn ready(&mut self) -> bool {
        self.0.flooded.load(Ordering::SeqCst)
    }
}

/// Takes the image out of the page cache.
fn cool(image: &Path) {
    let file = std::fs::File::open(image).unwrap();
    file.sync_all().unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

/// A crew of up to two threads over four queues of one image.
fn crew(dir: &tempfile::TempDir) -> (Crew<Lane>, Vec<Arc<Sight>>, PathBuf) {
    let image = dir.path().join("image");
    std::fs::write(&image, vec![7; BYTES as usize]).unwrap();
    let device = FileDevice::open(&FileOptions { depth: DEPTH, ..FileOptions::new(image.clone()) }).unwrap();
    let sight = |_| {
        Arc::new(Sight {
            bell: Bell::new().unwrap(),
            flooded: AtomicBool::new(false),
            reads: AtomicBool::new(false),
            asked: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            failures: Mutex::default(),
        })
    };
    let sights: Vec<_> = (0..4).map(sight).collect();
    let memory = private_memory(64 << 20);
    let lanes = sights.iter().enumerate().map(|(number, sight)| Lane {
        queue: device.queue(memory.clone()).unwrap(),
        sight: sight.clone(),
        call: Call(sight.clone()),
        at: number as u64 * BYTES / 4,
    });
    let limits = Limits { least: 1, most: 2, lull: Duration::from_millis(2) };
    let crew = Crew::start(limits, || Waiter::new(WaitStrategy::Sleep), lanes.collect()).unwrap();
    (crew, sights, image)
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Makes the crew grow to two threads.
fn grow(crew: &Crew<Lane>, sights: &[Arc<Sight>]) {
    for sight in sights {
        sight.flooded.store(true, Ordering::SeqCst);
        sight.bell.ring();
    }
    eventually("two threads", || crew.counts().threads == 2);
}

fn total(sights: &[Arc<Sight>], count: impl Fn(&Sight) -> &AtomicU64) -> u64 {
    sights.iter().map(|sight| count(sight).load(Ordering::SeqCst)).sum()
}

/// All failures of all lanes.
fn failures(sights: &[Arc<Sight>]) -> Vec<String> {
    sights.iter().flat_map(|sight| std::mem::take(&mut *sight.failures.lock().unwrap())).collect()
}

#[test]
fn reads_survive_that_their_lane_goes_to_another_thread() {
    let dir = tempfile::tempdir().unwrap();
    let (crew, sights, image) = crew(&dir);
    for turn in 1..=4 {
        let before = total(&sights, |sight| &sight.asked);
        grow(&crew, &sights);
        cool(&image);
        for sight in &sights {
            sight.reads.store(true, Ordering::SeqCst);
            sight.flooded.store(false, Ordering::SeqCst);
        }
        eventually("one thread", || crew.counts().threads == 1);
        sights.iter().for_each(|sight| sight.reads.store(false, Ordering::SeqCst));
        let asked = total(&sights, |sight| &sight.asked);
        assert!(asked > before, "no read was under way in turn {turn}");
        eventually("all reads", || total(&sights, |sight| &sight.ended) == asked);
        assert_eq!(failures(&sights), [""; 0], "of {asked} reads, in turn {turn}");
    }
    assert!(crew.counts().let_go >= 4, "{:?}", crew.counts());
}

#[test]
fn reads_survive_the_end_of_their_crew() {
    let dir = tempfile::tempdir().unwrap();
    let (crew, sights, image) = crew(&dir);
    grow(&crew, &sights);
    cool(&image);
    sights.iter().for_each(|sight| sight.reads.store(true, Ordering::SeqCst));
    let mut lanes = crew.stop();
    assert_eq!(lanes.len(), 4);
    let asked = total(&sights, |sight| &sight.asked);
    assert!(asked > 0, "no read was under way");
    eventually("all reads", || {
        lanes.iter_mut().for_each(|lane| _ = lane.take());
        total(&sights, |sight| &sight.ended) == asked
    });
    assert_eq!(failures(&sights), [""; 0], "of {asked} reads");
}
