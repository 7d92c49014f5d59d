//! An IOzone-style workload: one file per record size, written, rewritten, read, re-read, then read and written at
//! random offsets.
//!
//! Sequential phases keep [`Spec::depth`] calls in flight, as a kernel's read-ahead and write-behind do; random phases
//! wait for each call. Writes are unstable and end with a commit, which counts. Every record carries its offset and
//! the pass that wrote it, and every read checks them: a fast wrong answer is an error.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use nfs3_types::nfs3::{nfs_fh3, stable_how};

use super::client::Client;
use super::rpc::ClientError;
use crate::interrupt::Interrupted;

/// Longer calls than two minutes are recorded as such.
const MAX_LATENCY_MICROS: u64 = 120_000_000;

/// What to run.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Record sizes in bytes, with the size of the file for each.
    pub records: Vec<(u32, u64)>,
    /// Calls in flight in sequential phases.
    pub depth: usize,
    /// A random phase ends after so many calls.
    pub random_calls: u64,
}

impl Spec {
    /// The default: about half a minute for three modes.
    pub fn standard() -> Self {
        Self {
            records: vec![(4 << 10, 16 << 20), (64 << 10, 128 << 20), (1 << 20, 256 << 20)],
            depth: 8,
            random_calls: 1000,
        }
    }

    /// A few seconds, to see that everything works.
    pub fn quick() -> Self {
        Self { records: vec![(4 << 10, 2 << 20), (256 << 10, 32 << 20)], depth: 8, random_calls: 100 }
    }

    /// How many calls a run makes, for a progress bar.
    pub fn calls(&self) -> u64 {
        let calls = |(record, file): &(u32, u64)| 4 * (file / u64::from(*record)) + 2 * self.random_of(*record, *file);
        self.records.iter().map(calls).sum()
    }

    /// The bytes that a run writes.
    pub fn written_bytes(&self) -> u64 {
        let bytes = |(record, file): &(u32, u64)| 2 * file + self.random_of(*record, *file) * u64::from(*record);
        self.records.iter().map(bytes).sum()
    }

    /// Calls of one random phase: no more than the file has records.
    fn random_of(&self, record: u32, file: u64) -> u64 {
        self.random_calls.min(file / u64::from(record))
    }
}

/// The phases, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// A new file, from start to end.
    Write,
    /// The same file again.
    Rewrite,
    /// From start to end.
    Read,
    /// Once more.
    Reread,
    /// Records at random.
    RandomRead,
    /// Records at random.
    RandomWrite,
}

impl Phase {
    /// All phases, in order.
    pub const ALL: [Self; 6] =
        [Self::Write, Self::Rewrite, Self::Read, Self::Reread, Self::RandomRead, Self::RandomWrite];

    /// IOzone's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Rewrite => "rewrite",
            Self::Read => "read",
            Self::Reread => "re-read",
            Self::RandomRead => "random read",
            Self::RandomWrite => "random write",
        }
    }

    fn writes(self) -> bool {
        matches!(self, Self::Write | Self::Rewrite | Self::RandomWrite)
    }

    fn is_random(self) -> bool {
        matches!(self, Self::RandomRead | Self::RandomWrite)
    }
}

/// What a phase did.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The record size in bytes.
    pub record: u32,
    /// Which phase.
    pub phase: Phase,
    /// Calls made, commits not counted.
    pub calls: u64,
    /// Payload bytes.
    pub bytes: u64,
    /// From the first call to the last answer, the commit included.
    pub elapsed: Duration,
    /// Microseconds per call.
    pub latency: Histogram<u64>,
}

impl Outcome {
    /// Megabytes (10^6) per second.
    pub fn megabytes_per_second(&self) -> f64 {
        self.bytes as f64 / 1e6 / self.elapsed.as_secs_f64()
    }
}

/// Why the workload stopped.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// A call failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// It was told to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// The server answered with other bytes than were written.
    #[error("{phase} of {record}-byte records: wrong data at offset {offset}", phase = .phase.name())]
    WrongData {
        /// In which phase.
        phase: Phase,
        /// The record size.
        record: u32,
        /// Where.
        offset: u64,
    },
    /// The histogram cannot be made.
    #[error("latency histogram: {0}")]
    Histogram(#[from] hdrhistogram::CreationError),
    /// The server wrote less than it was given.
    #[error("{phase} of {record}-byte records: only {count} bytes written", phase = .phase.name())]
    ShortWrite {
        /// In which phase.
        phase: Phase,
        /// The record size.
        record: u32,
        /// How much was written.
        count: u32,
    },
}

/// Runs the workload over one connection. `progress` is told the phase and the number of calls done so far in it; its
/// error ends the run.
///
/// # Errors
/// [`WorkloadError`] at the first wrong answer.
pub fn run(
    client: &mut Client,
    spec: &Spec,
    progress: &mut dyn FnMut(u32, Phase, u64) -> Result<(), Interrupted>,
) -> Result<Vec<Outcome>, WorkloadError> {
    let mut outcomes = Vec::new();
    let root = client.root();
    for &(record, file_bytes) in &spec.records {
        let name = format!("iozone-{record}");
        let file = client.create(&root, &name)?;
        let mut run = FileRun { client, file, record, records: file_bytes / u64::from(record) };
        for phase in Phase::ALL {
            let calls = if phase.is_random() { spec.random_of(record, file_bytes) } else { run.records };
            let depth = if phase.is_random() { 1 } else { spec.depth };
            outcomes.push(run.phase(phase, calls, depth, &mut |done| progress(record, phase, done))?);
        }
        client.remove(&root, &name)?;
    }
    Ok(outcomes)
}

struct FileRun<'a> {
    client: &'a mut Client,
    file: nfs_fh3,
    record: u32,
    records: u64,
}

impl FileRun<'_> {
    fn phase(
        &mut self,
        phase: Phase,
        calls: u64,
        depth: usize,
        progress: &mut dyn FnMut(u64) -> Result<(), Interrupted>,
    ) -> Result<Outcome, WorkloadError> {
        let mut latency = Histogram::new_with_bounds(1, MAX_LATENCY_MICROS, 3)?;
        let mut sequence = Sequence::new(self.records, phase.is_random());
        let mut in_flight: HashMap<u32, (u64, Instant)> = HashMap::with_capacity(depth);
        let mut buffer = vec![0x5A; self.record as usize];
        // The rewrite is the last pass before anything is read, and random writes come last of all.
        let pass = if phase == Phase::Write { 1 } else { 2 };
        let (mut sent, mut done) = (0, 0);
        let began = Instant::now();
        while done < calls {
            while sent < calls && in_flight.len() < depth {
                let index = sequence.next();
                let at = Instant::now();
                let xid = self.begin(phase, index, pass, &mut buffer)?;
                in_flight.insert(xid, (index, at));
                sent += 1;
            }
            let xid = self.finish(phase, pass, &in_flight)?;
            if let Some((_, at)) = in_flight.remove(&xid) {
                latency.saturating_record(at.elapsed().as_micros().max(1) as u64);
            }
            done += 1;
            progress(done)?;
        }
        if phase.writes() {
            self.client.commit(&self.file)?;
        }
        let bytes = calls * u64::from(self.record);
        Ok(Outcome { record: self.record, phase, calls, bytes, elapsed: began.elapsed(), latency })
    }

    fn begin(&mut self, phase: Phase, index: u64, pass: u64, buffer: &mut [u8]) -> Result<u32, ClientError> {
        let offset = index * u64::from(self.record);
        if !phase.writes() {
            return self.client.begin_read(&self.file, offset, self.record);
        }
        stamp(buffer, offset, pass);
        self.client.begin_write(&self.file, offset, buffer, stable_how::UNSTABLE)
    }

    fn finish(
        &mut self,
        phase: Phase,
        pass: u64,
        in_flight: &HashMap<u32, (u64, Instant)>,
    ) -> Result<u32, WorkloadError> {
        let record = self.record;
        if phase.writes() {
            let (xid, written) = self.client.finish_write()?;
            if written.count != record {
                return Err(WorkloadError::ShortWrite { phase, record, count: written.count });
            }
            return Ok(xid);
        }
        let mut wrong = None;
        let xid = self.client.finish_read(&mut |xid, bytes| {
            let offset = in_flight.get(&xid).map_or(0, |(index, _)| index * u64::from(record));
            if bytes.len() != record as usize || !is_stamped(bytes, offset, pass) {
                wrong = Some(offset);
            }
        })?;
        match wrong {
            Some(offset) => Err(WorkloadError::WrongData { phase, record, offset }),
            None => Ok(xid),
        }
    }
}

/// Puts offset and pass at both ends of a record.
fn stamp(record: &mut [u8], offset: u64, pass: u64) {
    let mark = (offset << 8 | pass).to_le_bytes();
    let tail = record.len() - mark.len();
    record[..mark.len()].copy_from_slice(&mark);
    record[tail..].copy_from_slice(&mark);
}

fn is_stamped(record: &[u8], offset: u64, pass: u64) -> bool {
    let mark = (offset << 8 | pass).to_le_bytes();
    record.starts_with(&mark) && record.ends_with(&mark)
}

/// Indices of records: in order, or all over the file (a permutation, so that none comes twice).
struct Sequence {
    count: u64,
    next: u64,
    step: u64,
}

impl Sequence {
    fn new(count: u64, random: bool) -> Self {
        // A step without a common divisor visits every record once, far apart; the golden ratio spreads them evenly.
        let mut step = if random { (count as f64 * 0.618) as u64 | 1 } else { 1 };
        while gcd(step, count) != 1 {
            step += 2;
        }
        Self { count, next: 0, step }
    }

    fn next(&mut self) -> u64 {
        let index = self.next;
        self.next = (self.next + self.step) % self.count;
        index
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_visits_every_record_once() {
        for count in [1, 2, 3, 8, 100, 4096] {
            let mut sequence = Sequence::new(count, true);
            let mut seen: Vec<u64> = (0..count).map(|_| sequence.next()).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..count).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_stamp_tells_offset_and_pass() {
        let mut record = vec![0; 4096];
        stamp(&mut record, 8192, 2);
        assert!(is_stamped(&record, 8192, 2));
        assert!(!is_stamped(&record, 4096, 2) && !is_stamped(&record, 8192, 1));
    }
}
