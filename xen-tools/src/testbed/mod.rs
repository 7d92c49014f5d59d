//! A real Xen on a machine without virtualisation: hypervisor, dom0 and guests under QEMU's software emulation.
//!
//! Everything comes from Debian's packages and from this source tree; see `docs/xen-testbed.md`. Nothing is installed
//! but QEMU, by apt and by name. Times that are measured under emulation mean nothing but in relation to each other.

pub(crate) mod cache;
mod clinic;
pub(crate) mod exec;
mod images;
pub(crate) mod kernel;
mod module;
pub(crate) mod packages;
mod programs;
mod qemu;
pub mod scenario;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use xen_guest::report::{Frame, FrameError, Kind};

pub use exec::ExecError;
use exec::Supervisor;
use images::Parts;
use programs::Programs;
use qemu::Machine;

use crate::image::closure::ClosureError;
use crate::image::cpio::ArchiveError;
use crate::image::guest::ImageError;

/// What is needed besides cargo: a program, and the package that has it.
const HOST_PROGRAMS: [(&str, &str); 7] = [
    (qemu::PROGRAM, "qemu-system-x86"),
    ("xz", "xz-utils"),
    ("gzip", "gzip"),
    ("dpkg-deb", "dpkg"),
    ("setpriv", "util-linux"),
    ("make", "make"),
    ("gcc-12", "gcc-12"),
];

/// What the feature `libxen` is built with: a file, and the package that has it.
const LIBXEN: [(&str, &str); 2] =
    [("/usr/include/xenevtchn.h", "libxen-dev"), ("/usr/lib/llvm-14/lib/libclang.so", "libclang-dev")];

/// What is to be run, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The scenarios, by name.
    pub scenarios: Vec<String>,
    /// Guests are PVH and not PV.
    pub pvh: bool,
    /// What scenarios run in guests goes by way of Xen's own libraries.
    pub libxen: bool,
    /// The memory of the whole machine, in MiB.
    pub memory: u32,
    /// Its processors.
    pub processors: u32,
    /// Its processors go before everything else on the host, which only root can have.
    pub realtime: bool,
    /// Where logs go; the folder is emptied first.
    pub logs: PathBuf,
    /// Where packages and what is made from them are kept.
    pub cache: PathBuf,
    /// A folder of the source tree.
    pub source: PathBuf,
    /// Make everything anew that the cache has.
    pub rebuild: bool,
    /// Keep the machine's folder.
    pub keep: bool,
}

/// What the scenarios said.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Name, and what was found or what went wrong.
    pub results: Vec<(String, Result<String, String>)>,
    /// The machine's folder, if it was kept.
    pub kept: Option<PathBuf>,
}

/// Why scenarios could not be run to their ends.
#[derive(Debug, thiserror::Error)]
pub enum TestbedError {
    /// A program that fails, hangs or is interrupted.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] cache::CacheError),
    /// A package that apt does not know.
    #[error("apt does not know the package `{0}`; the testbed needs Debian 12, and its lists (`apt-get update`)")]
    NoPackage(String),
    /// Programs that are missing, and no right to install them.
    #[error("{} missing; as root: apt-get install --no-install-recommends {}", .0.join(" and "), .1.join(" "))]
    NoProgram(Vec<&'static str>, Vec<&'static str>),
    /// A package that does not have what it should.
    #[error("{0}: the package does not have what was looked for here")]
    NotInPackage(PathBuf),
    /// A kernel of another kind.
    #[error("{0}: not a kernel image compressed with xz or lz4")]
    BadKernel(PathBuf),
    /// Not in the source tree.
    #[error("{0} is not in Fido's source tree, which the testbed builds its programs from")]
    NoSource(PathBuf),
    /// What a program or module needs is missing.
    #[error(transparent)]
    Closure(#[from] ClosureError),
    /// An image that cannot be made.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// An image that cannot be written.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A file.
    #[error("{path}: {error}")]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The machine's report is damaged.
    #[error(transparent)]
    Report(#[from] FrameError),
    /// The machine stays silent.
    #[error("the machine did not {what} within {} s; the end of its console:\n{console}", .limit.as_secs())]
    Silent {
        /// What it should have done.
        what: String,
        /// What it had.
        limit: Duration,
        /// The end of its console.
        console: String,
    },
    /// Results that did not come.
    #[error("the machine ended without a result for: {0}")]
    Unreported(String),
}

pub(crate) fn io_error(path: &Path) -> impl FnOnce(io::Error) -> TestbedError {
    |error| TestbedError::File { path: path.to_path_buf(), error }
}

/// Runs scenarios. `say` gets a line at each step; a message on `stop` ends everything.
///
/// # Errors
/// What kept scenarios from being run to their ends. A scenario that fails is no error but a result.
pub fn run(options: &Options, stop: Receiver<()>, say: &dyn Fn(&str)) -> Result<Outcome, TestbedError> {
    let supervisor = Supervisor::new(stop);
    let began = Instant::now();
    let step = |what: &str| say(&format!("[{:5.1} s] {what}", began.elapsed().as_secs_f64()));
    let source = programs::source_tree(&options.source)?;
    step("programs of the host");
    need_programs(&supervisor, options.libxen, &step)?;
    step("our programs, linked statically; hypervisor, kernel and toolstack from Debian's packages");
    let building = Programs::begin(&supervisor, &source)?;
    let parts = prepare(&supervisor, options, &source, &step)?;
    step("packages are there");
    let programs = building.finish(&supervisor, &source, options.libxen)?;
    step("images");
    let folder =
        tempfile::Builder::new().prefix("fido-xen-").tempdir().map_err(io_error(Path::new("temporary folder")))?;
    let clinic = clinic::make(&supervisor, folder.path(), &programs, &parts.modules(), options.pvh)?;
    parts.write_dom0(&programs, &clinic, &folder.path().join(qemu::IMAGE))?;
    for (name, file) in [(qemu::HYPERVISOR, &parts.hypervisor), (qemu::KERNEL, &parts.kernel)] {
        std::os::unix::fs::symlink(file, folder.path().join(name)).map_err(io_error(folder.path()))?;
    }
    empty(&options.logs)?;
    step(&format!("boot of the machine; logs go to {}", options.logs.display()));
    let machine = Machine {
        memory: options.memory,
        processors: options.processors,
        pvh: options.pvh,
        realtime: options.realtime,
        scenarios: options.scenarios.clone(),
    };
    let mut outcome = Outcome::default();
    let ran = machine.run(&supervisor, folder.path(), |frame| take(frame, &options.logs, &mut outcome, &step));
    for name in [qemu::CONSOLE, "qemu.log"] {
        let from = folder.path().join(name);
        if from.is_file() {
            fs::copy(&from, options.logs.join(name)).map_err(io_error(&from))?;
        }
    }
    if options.keep {
        outcome.kept = Some(folder.keep());
    }
    ran?;
    check_complete(&options.scenarios, outcome)
}

/// Keeps what the machine reported.
fn take(frame: Frame, logs: &Path, outcome: &mut Outcome, step: &dyn Fn(&str)) -> Result<(), TestbedError> {
    let text = || String::from_utf8_lossy(&frame.body).into_owned();
    match frame.kind {
        Kind::Note => step(&format!("{}: {}", frame.name, text())),
        Kind::File => {
            let file = logs.join(&frame.name);
            fs::write(&file, &frame.body).map_err(io_error(&file))?;
        }
        Kind::Passed => {
            step(&format!("{}: passed: {}", frame.name, text()));
            outcome.results.push((frame.name.clone(), Ok(text())));
        }
        Kind::Failed => {
            step(&format!("{}: FAILED: {}", frame.name, text()));
            outcome.results.push((frame.name.clone(), Err(text())));
        }
        Kind::End => {}
    }
    Ok(())
}

/// Each scenario must have said how it ended, unless dom0 did not come up, which is a result of its own.
fn check_complete(scenarios: &[String], outcome: Outcome) -> Result<Outcome, TestbedError> {
    let failed = outcome.results.iter().any(|(_, result)| result.is_err());
    let said = |name: &String| outcome.results.iter().any(|(said, _)| said == name);
    match scenarios.iter().find(|name| !said(name)) {
        Some(missing) if !failed => Err(TestbedError::Unreported(missing.clone())),
        _ => Ok(outcome),
    }
}

/// Packages and what is made from them. Root fetches apt's lists if they are missing or too old.
fn prepare(
    supervisor: &Supervisor,
    options: &Options,
    source: &Path,
    step: &dyn Fn(&str),
) -> Result<Parts, TestbedError> {
    with_lists(supervisor, step, || Parts::prepare(supervisor, &options.cache, source, options.rebuild))
}

/// Does what needs apt's lists; if it fails, root fetches them, and it is done once more.
pub(crate) fn with_lists<T>(
    supervisor: &Supervisor,
    step: &dyn Fn(&str),
    prepare: impl Fn() -> Result<T, TestbedError>,
) -> Result<T, TestbedError> {
    match prepare() {
        Err(TestbedError::NoPackage(_) | TestbedError::Exec(ExecError::Failed { .. })) if is_root() => {
            step("apt's lists are missing or old: apt-get update");
            packages::update_lists(supervisor)?;
            prepare()
        }
        parts => parts,
    }
}

/// The user's folder for what can be made again: the default for [`Options::cache`].
#[must_use]
pub fn default_cache() -> PathBuf {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
    cache.unwrap_or_else(std::env::temp_dir).join("fido/xen")
}

fn need_programs(supervisor: &Supervisor, libxen: bool, step: &dyn Fn(&str)) -> Result<(), TestbedError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // A full path stays what it is.
    let there = |program: &str| std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
    let further = LIBXEN.into_iter().filter(|_| libxen);
    let missing: Vec<_> = HOST_PROGRAMS.into_iter().chain(further).filter(|(program, _)| !there(program)).collect();
    let (names, packages): (Vec<_>, Vec<_>) = missing.into_iter().unzip();
    if names.is_empty() {
        return Ok(());
    }
    if !is_root() {
        return Err(TestbedError::NoProgram(names, packages));
    }
    step(&format!("{} missing: apt-get install {}", names.join(" and "), packages.join(" ")));
    packages::update_lists(supervisor)?;
    packages::install(supervisor, &packages)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// An empty folder for logs: files of an earlier run go, folders are not touched.
fn empty(folder: &Path) -> Result<(), TestbedError> {
    fs::create_dir_all(folder).map_err(io_error(folder))?;
    for entry in fs::read_dir(folder).map_err(io_error(folder))? {
        let path = entry.map_err(io_error(folder))?.path();
        if path.is_file() {
            fs::remove_file(&path).map_err(io_error(&path))?;
        }
    }
    Ok(())
}
