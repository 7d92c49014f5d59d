//! Measures what `docs/adr/0005-buffered-file-io.md` rests on: writing payload that lies unaligned in memory, as TCP
//! delivers it, through the page cache straight from where it lies, against copying it into aligned buffers and
//! writing these with O_DIRECT; and reading back what was written.
//!
//! The first write is reported by itself (the file system allocates, and a virtual machine may have to find memory for
//! the page cache); write, sync and read are the best of [`ROUNDS`] further rounds, so that other work on the machine
//! disturbs them little.
//!
//! `cargo run --release -p mmblk --example file_io -- DIRECTORY [MEBIBYTES]`

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Instant;

use fido_core::heap::ArenaBuf;
use fido_core::memory::Memory;
use fido_core::payload::Payload;
use fido_core::testing::private_memory;
use io_uring::{IoUring, opcode, types};
use mmblk::backend::file::{FileDevice, FileOptions};
use mmblk::queue::{BlockOp, BlockQueue};

const DEPTH: usize = 8;
/// How often each measurement is repeated.
const ROUNDS: usize = 5;
/// Where a record begins in its page: a record mark, an RPC call's header and credentials before it.
const ODD: u64 = 156;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("usage: file_io DIRECTORY [MEBIBYTES]")?;
    let total = args.next().map_or(Ok(512), |n| n.parse::<u64>())? << 20;
    println!(
        "record     how        first MB/s   write MB/s   CPU s/GB   with sync   read MB/s   CPU s/GB   copied/byte"
    );
    for record in [64 << 10, 256 << 10, 1 << 20] {
        for direct in [false, true] {
            let path = Path::new(&dir).join("file_io.image");
            let row =
                if direct { through_copies(&path, total, record) } else { through_the_cache(&path, total, record) };
            std::fs::remove_file(&path)?;
            let how = if direct { "direct" } else { "buffered" };
            println!("{:>4} KiB   {how:<8}   {}", record >> 10, row?);
        }
    }
    Ok(())
}

/// Unaligned records, each under its own hold, as many as are in flight.
fn records(memory: &Memory, record: u64) -> Result<Vec<Payload>> {
    let make = |index: usize| {
        let mut buf = memory.alloc((record + ODD) as usize)?;
        buf.as_mut_slice().fill(index as u8);
        buf.into_payload().slice(ODD, record).ok_or_else(|| "a record within its buffer".into())
    };
    (0..DEPTH).map(make).collect()
}

fn through_the_cache(path: &Path, total: u64, record: u64) -> Result<String> {
    let options = FileOptions { create_bytes: Some(total), depth: DEPTH as u32, ..FileOptions::new(path) };
    let memory = private_memory(64 << 20);
    let mut queue = FileDevice::open(&options)?.queue(memory.clone())?;
    let records = records(&memory, record)?;
    let count = total / record;
    let mut row = Row::start(total);
    for pass in [Pass::Write, Pass::Read].repeat(1 + ROUNDS) {
        run(&mut queue, count, |n| match pass {
            Pass::Write => {
                BlockOp::Write { offset: n * record, data: records[n as usize % DEPTH].clone(), durable: false }
            }
            Pass::Read => BlockOp::Read { offset: n * record, len: record as u32 },
        })?;
        row.lap();
        if pass == Pass::Write {
            run(&mut queue, 1, |_| BlockOp::Flush)?;
            row.lap();
        }
    }
    Ok(row.finish(0))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    Write,
    Read,
}

fn run(queue: &mut impl BlockQueue, count: u64, op: impl Fn(u64) -> BlockOp) -> Result<()> {
    let (mut next, mut done) = (0, 0);
    while done < count {
        while next < count && next - done < DEPTH as u64 {
            queue.submit(next, op(next)).map_err(|_| "the queue is full below its depth")?;
            next += 1;
        }
        queue.flush_submissions();
        let before = done;
        while let Some(completion) = queue.poll() {
            drop(completion.result?);
            done += 1;
        }
        if done == before {
            wait(queue.wake_fd().as_raw_fd())?;
        }
    }
    Ok(())
}

fn wait(fd: i32) -> io::Result<()> {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid entry.
    match unsafe { libc::poll(&raw mut poll, 1, -1) } {
        -1 if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn through_copies(path: &Path, total: u64, record: u64) -> Result<String> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).custom_flags(libc::O_DIRECT).open(path)?;
    file.set_len(total)?;
    let memory = private_memory(64 << 20);
    let records = records(&memory, record)?;
    // From 4 KiB on, the heap aligns to pages.
    let mut buffers = (0..DEPTH).map(|_| memory.alloc(record as usize)).collect::<std::result::Result<Vec<_>, _>>()?;
    let mut ring = IoUring::new(DEPTH as u32)?;
    let mut row = Row::start(total);
    for pass in [Pass::Write, Pass::Read].repeat(1 + ROUNDS) {
        let (mut next, mut done, count) = (0, 0, total / record);
        let mut free: Vec<usize> = (0..DEPTH).collect();
        while done < count {
            while next < count
                && let Some(index) = free.pop()
            {
                let buf = &mut buffers[index];
                if pass == Pass::Write {
                    memory.copy_to_slice(&records[index], buf.as_mut_slice())?;
                }
                // SAFETY: the buffer is neither touched nor freed before its completion is seen below.
                unsafe { ring.submission().push(&entry(&file, pass, buf, next * record, index)) }?;
                next += 1;
            }
            ring.submit_and_wait(1)?;
            while let Some(completion) = { ring.completion().next() } {
                if completion.result() != record as i32 {
                    return Err(format!("a result of {}", completion.result()).into());
                }
                free.push(completion.user_data() as usize);
                done += 1;
            }
        }
        row.lap();
        if pass == Pass::Write {
            file.sync_data()?;
            row.lap();
        }
    }
    Ok(row.finish(memory.stats().snapshot().payload_bytes_copied))
}

fn entry(file: &File, pass: Pass, buf: &ArenaBuf, offset: u64, index: usize) -> io_uring::squeue::Entry {
    let (fd, ptr, len) = (types::Fd(file.as_raw_fd()), buf.as_ptr().as_ptr(), buf.len() as u32);
    let entry = match pass {
        Pass::Write => opcode::Write::new(fd, ptr, len).offset(offset).build(),
        Pass::Read => opcode::Read::new(fd, ptr, len).offset(offset).build(),
    };
    entry.user_data(index as u64)
}

/// Wall-clock and processor time of write, sync and read.
struct Row {
    total: u64,
    laps: Vec<(f64, f64)>,
    since: (Instant, f64),
}

impl Row {
    fn start(total: u64) -> Self {
        Self { total, laps: Vec::new(), since: (Instant::now(), cpu_seconds()) }
    }

    fn lap(&mut self) {
        let (wall, cpu) = self.since;
        self.laps.push((wall.elapsed().as_secs_f64(), cpu_seconds() - cpu));
        self.since = (Instant::now(), cpu_seconds());
    }

    fn finish(&self, copied: u64) -> String {
        let rate = |seconds: f64| self.total as f64 / 1e6 / seconds;
        let cpu = |seconds: f64| seconds * 1e9 / self.total as f64;
        let best = |kind: usize| {
            let rounds = self.laps.iter().copied().skip(3 + kind).step_by(3);
            rounds.reduce(|a, b| if b.0 < a.0 { b } else { a }).unwrap_or_default()
        };
        let first = self.laps.first().copied().unwrap_or_default();
        let (write, sync, read) = (best(0), best(1), best(2));
        format!(
            "{:>10.0}  {:>11.0}  {:>9.2}  {:>10.0}  {:>10.0}  {:>9.2}  {:>12.2}",
            rate(first.0),
            rate(write.0),
            cpu(write.1),
            rate(write.0 + sync.0),
            rate(read.0),
            cpu(read.1),
            copied as f64 / self.total as f64 / (1 + ROUNDS) as f64
        )
    }
}

/// Of this process, the ring's kernel threads among it.
fn cpu_seconds() -> f64 {
    // SAFETY: all zeros is a valid value, and the kernel fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}
