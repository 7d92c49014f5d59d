//! `fido bench blk`: what a block device costs in another domain, in the shape of Fip-see's tables 8 to 17.
//!
//! Every device is used three ways through one and the same API: *direct*, in this process; through *MMBlk*, in a second
//! process; and *copying*, in a second process in the manner of blkfront (a model made for this benchmark).
//! The three take turns in every round. The devices are the null device, memory, and a file with and without the page
//! cache; the rows are reads and writes at random places; what is asked is operations per second with many requests
//! under way, and the latency of one at a time.
//!
//! In the same run the standard faces compete with those of others over a null device (`faces`), and arrays with
//! their members (`array`).

mod array;
mod copying;
mod faces;
mod load;
mod paced;
mod pair;
mod tables;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use fido_core::assignment::WaitStrategy;
use fido_core::memory::Memory;
use fido_core::waiter::Waiter;
use hdrhistogram::Histogram;
use mmblk::device::{BoxQueue, Device, open_text};
use mmblk::link::device::LinkDevice;

use crate::Failure;
use crate::machine::{Machine, process_time};
use crate::other_side::{Control, Part, Partner, Program};
use crate::report::{Output, Report, Table, Target};
use crate::ring;
use copying::CopyingQueue;
use load::{LOADS, Load};
use pair::{JOBS, Pair, Say};

/// How long the other side may take to be there.
const PATIENCE: Duration = Duration::from_secs(30);
/// The size of every device.
const DEVICE_BYTES: u64 = 256 << 20;

/// What is to be measured, and where the results go.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// How often every way to the device gets its turn.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rounds: u32,
    /// Where the image for the file device is made (256 MiB), on a file system that can do O_DIRECT [default: the folder
    /// for temporary files].
    #[arg(long, value_name = "FOLDER")]
    pub folder: Option<PathBuf>,
    /// Short turns: to see that it works, not what it costs.
    #[arg(long)]
    pub quick: bool,
    /// Asks only this question (may be given more than once).
    #[arg(long, value_name = "NAME")]
    pub only: Vec<Question>,
    /// Where the results go.
    #[command(flatten)]
    pub output: Output,
}

/// One thing that is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Question {
    /// What a device costs in another domain.
    Ways,
    /// NBD and vhost-user against other servers. Needs Debian's fio, nbdkit and qemu-system-common.
    Faces,
    /// RAID 5 against its members.
    Arrays,
}

/// Finds the answers to a question, and what they say about targets.
type Ask = fn(&Options, &Program<'_>) -> Result<(Vec<Table>, Vec<Target>), Failure>;

impl Options {
    fn asks(&self, question: Question) -> bool {
        self.only.is_empty() || self.only.contains(&question)
    }

    fn folder(&self) -> PathBuf {
        self.folder.clone().unwrap_or_else(std::env::temp_dir)
    }
}

/// A device to measure: what the tables call it, and its description.
struct Subject {
    name: &'static str,
    device: String,
}

/// A way to a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Direct,
    Copying,
    MmBlk,
}

const WAYS: [Way; 3] = [Way::Direct, Way::Copying, Way::MmBlk];

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Copying => "copying",
            Self::MmBlk => "MMBlk",
        }
    }
}

/// What one load did to one device by one way.
struct Measured {
    subject: &'static str,
    way: Way,
    load: Load,
    times: Histogram<u64>,
    /// Operations per second of each round.
    rates: Vec<f64>,
    /// Processor time of both sides per operation, in nanoseconds, of each round.
    costs: Vec<f64>,
}

/// Measures, prints the tables, and writes what the options ask for. `program` says how this program becomes the other
/// side.
///
/// # Errors
/// If a side fails or a file cannot be written.
pub fn run(options: &Options, program: &Program<'_>) -> Result<(), Failure> {
    let machine = Machine::here(None);
    let (mut tables, mut targets) = (Vec::new(), Vec::new());
    let questions: [(Question, Ask); 3] =
        [(Question::Ways, ways), (Question::Faces, faces::measure), (Question::Arrays, array::measure)];
    for (question, ask) in questions {
        if options.asks(question) {
            let (answers, verdicts) = ask(options, program)?;
            tables.extend(answers);
            targets.extend(verdicts);
        }
    }
    let report = Report { machine, tables, targets };
    report.publish(&options.output)
}

/// What a device costs in another domain.
fn ways(options: &Options, program: &Program<'_>) -> Result<(Vec<Table>, Vec<Target>), Failure> {
    let image = Image::create(options.folder())?;
    let path = image.0.display();
    let subject = |name, kind: &str| Subject { name, device: format!("{kind},block=512,depth=256") };
    let subjects = [
        subject("null", &format!("null:{DEVICE_BYTES}")),
        subject("memory", &format!("memory:{DEVICE_BYTES}")),
        subject("file", &format!("file:{path}")),
        subject("file, O_DIRECT", &format!("file:{path},direct=yes")),
    ];
    let trip = ring::round_trip(program, options.quick)?;
    let mut measured = Vec::new();
    for subject in &subjects {
        eprintln!("{} ...", subject.name);
        measured.extend(in_turn(subject, options, program)?);
    }
    Ok(tables::all(&measured, trip, options.rounds))
}

/// All loads by all ways.
fn in_turn(subject: &Subject, options: &Options, program: &Program<'_>) -> Result<Vec<Measured>, Failure> {
    let time = Duration::from_millis(if options.quick { 10 } else { 250 });
    let mut all = Vec::new();
    for way in WAYS {
        for load in LOADS {
            let (times, rates, costs) = (Histogram::new(3)?, Vec::new(), Vec::new());
            all.push(Measured { subject: subject.name, way, load, times, rates, costs });
        }
    }
    for _ in 0..options.rounds {
        for way in WAYS {
            let mut bench = Bench::start(subject, way, program)?;
            for measured in all.iter_mut().filter(|measured| measured.way == way) {
                bench.turn(measured, time).map_err(|error| format!("{way:?}, {:?}: {error}", measured.load))?;
            }
            bench.finish()?;
        }
    }
    Ok(all)
}

/// The queues of one way to a device, and whoever serves them.
struct Bench {
    /// First, so that nothing is under way when the rest goes.
    queues: Vec<BoxQueue>,
    memory: Memory,
    _device: Option<std::sync::Arc<dyn Device>>,
    other: Option<(Partner, Control, Pair)>,
}

impl Bench {
    fn start(subject: &Subject, way: Way, program: &Program<'_>) -> Result<Self, Failure> {
        if way == Way::Direct {
            let memory = pair::memory()?;
            let device = open_text(&subject.device)?;
            let queues = (0..JOBS).map(|_| device.queue(&memory)).collect::<Result<_, _>>()?;
            return Ok(Self { queues, memory, _device: Some(device), other: None });
        }
        let copying = way == Way::Copying;
        let (partner, mut control, mut pair) = Pair::start(program, Part::Blk, JOBS)?;
        control.say(&Say::Serve { device: subject.device.clone(), copying }, &[])?;
        let Say::Serving(shape) = control.hear()?.0 else { return Err("the other side does not serve".into()) };
        let memory = pair.memory.clone();
        let (lanes, bells) = pair.take();
        let queues: Vec<BoxQueue> = if copying {
            let boxed =
                |(lane, bell)| Box::new(CopyingQueue::new(lane, bell, shape.into(), memory.clone())) as BoxQueue;
            lanes.into_iter().zip(bells).map(boxed).collect()
        } else {
            let device = LinkDevice::connect(lanes, PATIENCE)?;
            std::iter::from_fn(|| Some(Box::new(device.queue()?) as BoxQueue)).collect()
        };
        Ok(Self { queues, memory, _device: None, other: Some((partner, control, pair)) })
    }

    /// Puts a load on for some time, on as many queues as it has jobs.
    fn turn(&mut self, measured: &mut Measured, time: Duration) -> Result<(), Failure> {
        let load = measured.load;
        // What is modelled is driven by interrupts on both sides.
        let wait = if measured.way == Way::Copying { WaitStrategy::Sleep } else { WaitStrategy::Adaptive };
        let before = self.cpu_time()?;
        let memory = &self.memory;
        let jobs = self.queues.iter_mut().take(load.jobs).enumerate();
        let results: Vec<Result<load::Done, Failure>> = std::thread::scope(|scope| {
            let run = |(index, queue): (usize, &mut BoxQueue), memory: Memory| {
                let waiter = Waiter::new(wait)?;
                load::run(queue, &memory, load, time, index as u64, waiter)
            };
            let threads: Vec<_> =
                jobs.map(|job| (job, memory.clone())).map(|(j, m)| scope.spawn(move || run(j, m))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err("a job panicked".into()))).collect()
        });
        let cpu = self.cpu_time()?.saturating_sub(before);
        let (mut operations, mut rate) = (0, 0.0);
        for result in results {
            let done = result?;
            operations += done.times.len();
            rate += done.times.len() as f64 / done.elapsed.as_secs_f64();
            measured.times.add(&done.times)?;
        }
        measured.rates.push(rate);
        measured.costs.push(cpu.as_nanos() as f64 / operations as f64);
        if let Some((partner, ..)) = &self.other {
            partner.beat();
        }
        Ok(())
    }

    /// Processor time of both sides so far.
    fn cpu_time(&mut self) -> Result<Duration, Failure> {
        let own = process_time();
        let Some((_, control, _)) = &mut self.other else { return Ok(own) };
        control.say(&Say::Cpu, &[])?;
        match control.hear()?.0 {
            Say::Used(theirs) => Ok(own + theirs),
            other => Err(format!("the other side said {other:?}").into()),
        }
    }

    fn finish(self) -> Result<(), Failure> {
        drop(self.queues);
        let Some((partner, mut control, _pair)) = self.other else { return Ok(()) };
        control.say(&Say::Done, &[])?;
        partner.finish()
    }
}

/// The part of a server of a standard face.
pub(crate) fn serve_face(control: &mut Control) -> Result<(), Failure> {
    faces::serve(control)
}

/// The other side's part: serves the device until it is told that it is over.
pub(crate) fn follow(control: &mut Control) -> Result<(), Failure> {
    pair::serve(control)
}

/// The file device's image, full of data, removed when dropped.
struct Image(PathBuf);

impl Image {
    fn create(folder: PathBuf) -> Result<Self, Failure> {
        let image = Self(folder.join(format!("fido-bench-{}.img", std::process::id())));
        write_all(&image.0).map_err(|error| format!("{}: {error}", image.0.display()))?;
        Ok(image)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // What cannot be removed is left; there is nobody to tell.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Without holes, so that no write has to find space first.
fn write_all(path: &Path) -> std::io::Result<()> {
    use std::io::Write;
    let mut file = std::fs::File::create_new(path)?;
    let piece = vec![0x5A; 1 << 20];
    for _ in 0..DEVICE_BYTES / piece.len() as u64 {
        file.write_all(&piece)?;
    }
    file.sync_all()
}
