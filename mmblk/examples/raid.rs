//! How fast arrays are here: parity against a copy, and whole stripes against the members.
//!
//! `cargo run --release -p mmblk --example raid -- [DIRECTORY]`: images are made in the directory (a temporary one by
//! default) and removed. The first members are memory that takes its time, as disks do: the array can be compared with
//! what they are able to do. Images in the page cache show what the processors are able to do.

use std::collections::VecDeque;
use std::error::Error;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use fido_core::memory::Memory;
use fido_core::testing::private_memory;
use fido_core::wait::Source;
use mmblk::backend::file::{FileDevice, FileOptions};
use mmblk::backend::memory::MemoryDevice;
use mmblk::backend::raid::MemberQueue;
use mmblk::backend::raid::create::CreateOptions;
use mmblk::backend::raid::layout::Level;
use mmblk::backend::raid::measure::{FullStripe, full_stripe, parity_speed};
use mmblk::queue::{BlockCompletion, BlockOp, BlockQueue, Busy, Features, Geometry};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

const MEMBERS: usize = 4;
const STRIPES: u64 = 256;
const DEPTH: usize = 8;
const MIB: f64 = (1 << 20) as f64;
/// What a member that takes its time takes in a second.
const RATE: f64 = 150.0 * MIB;

/// A queue whose writes end no faster than its rate.
struct Paced<Q> {
    queue: Q,
    free_at: Instant,
    ended: VecDeque<(Instant, BlockCompletion)>,
    sizes: VecDeque<u64>,
    timer: OwnedFd,
}

impl<Q: BlockQueue> Paced<Q> {
    fn new(queue: Q) -> Result<Self, Box<dyn Error>> {
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK)?;
        Ok(Self { queue, free_at: Instant::now(), ended: VecDeque::new(), sizes: VecDeque::new(), timer })
    }
}

impl<Q: BlockQueue> BlockQueue for Paced<Q> {
    fn geometry(&self) -> Geometry {
        self.queue.geometry()
    }

    fn features(&self) -> Features {
        self.queue.features()
    }

    fn submit(&mut self, id: u64, op: BlockOp) -> Result<(), Busy> {
        if self.ended.len() >= self.geometry().depth as usize {
            return Err(Busy(op));
        }
        let bytes = op.payload_bytes();
        self.queue.submit(id, op)?;
        self.sizes.push_back(bytes);
        // The memory behind it ends everything at once, in order.
        while let Some(completion) = self.queue.poll() {
            let time = Duration::from_secs_f64(self.sizes.pop_front().unwrap_or(0) as f64 / RATE);
            self.free_at = self.free_at.max(Instant::now()) + time;
            self.ended.push_back((self.free_at, completion));
        }
        Ok(())
    }

    fn poll(&mut self) -> Option<BlockCompletion> {
        let now = Instant::now();
        if self.ended.front()?.0 > now {
            return None;
        }
        self.ended.pop_front().map(|(_, completion)| completion)
    }

    fn flush_submissions(&mut self) {}
}

impl<Q: BlockQueue> Source for Paced<Q> {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }

    fn arm(&mut self) {
        let Some((at, _)) = self.ended.front() else { return };
        let wait = at.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = Timespec { tv_sec: 0, tv_nsec: wait.as_nanos() as i64 % 1_000_000_000 };
        let once = Itimerspec { it_interval: zero, it_value: value };
        // Without it, whoever waits looks again by itself.
        let _ = rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once);
    }

    fn ready(&mut self) -> bool {
        self.ended.front().is_some_and(|(at, _)| *at <= Instant::now())
    }

    fn disarm(&mut self) {
        let _ = rustix::io::read(&self.timer, &mut [0; 8]);
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let memory = private_memory(64 << 20);
    for sources in [2, 3, 4, 8] {
        let (parity, copy) = parity_speed(&memory, sources, 1 << 20)?;
        println!(
            "parity of {sources} MiB in as many sources: {:.0} MiB/s, {:.2} of a copy",
            parity / MIB,
            parity / copy
        );
    }
    let options = CreateOptions { zeroed: true, log_bytes: 4 << 20, ..CreateOptions::new(Level::Raid5) };
    let bytes = (6 << 20) + STRIPES * u64::from(options.chunk);
    let geometry = Geometry { bytes, block: 4096, depth: 64 };
    let memories = || (0..MEMBERS).map(|_| MemoryDevice::new(geometry)?.queue(memory.clone()));
    let paced = memories().map(|queue| Ok(MemberQueue::new(Paced::new(queue?)?)));
    let paced = paced.collect::<Result<Vec<_>, Box<dyn Error>>>()?;
    report("memory at 150 MiB/s", &full_stripe(paced, &options, STRIPES, DEPTH, &memory)?);
    let plain = memories().map(|queue| Ok(MemberQueue::new(queue?))).collect::<Result<Vec<_>, Box<dyn Error>>>()?;
    report("memory", &full_stripe(plain, &options, STRIPES, DEPTH, &memory)?);
    let directory = std::env::args().nth(1).map_or_else(tempfile::tempdir, tempfile::tempdir_in)?;
    let files = images(directory.path(), geometry, &memory)?;
    report("images", &full_stripe(files, &options, STRIPES, DEPTH, &memory)?);
    Ok(())
}

fn images(directory: &Path, geometry: Geometry, memory: &Memory) -> Result<Vec<MemberQueue>, Box<dyn Error>> {
    let image = |index: usize| {
        let path = directory.join(format!("member{index}"));
        let options =
            FileOptions { create_bytes: Some(geometry.bytes), depth: geometry.depth, ..FileOptions::new(path) };
        Ok(MemberQueue::new(FileDevice::open(&options)?.queue(memory.clone())?))
    };
    (0..MEMBERS).map(image).collect()
}

fn report(what: &str, found: &FullStripe) {
    let alone: Vec<String> = found.alone.iter().map(|speed| format!("{:.0}", speed / MIB)).collect();
    println!(
        "RAID 5 of {MEMBERS}, {what}: {:.0} MiB/s; members alone {}: {:.2} of the data members; together {:.0}: {:.2}",
        found.array / MIB,
        alone.join(" "),
        found.to_alone(),
        found.together / MIB,
        found.to_together()
    );
}
