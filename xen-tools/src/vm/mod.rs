//! A real Linux guest under QEMU's software emulation, for tests of devices: Debian's kernel, a shell script, and a
//! report over a serial port. See `docs/guests.md`.
//!
//! Nothing here needs virtualisation, a disk image, or root (but for apt's lists, where they are missing). A guest is
//! killed with its value or with its parent, whichever goes first, and leaves only its log.

mod kit;
mod report;

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub use kit::Kit;
use report::{Line, Report};

use crate::image::cpio::{Archive, ArchiveError};
use crate::testbed::exec::{ExecError, Running, last_lines};
use crate::testbed::{TestbedError, io_error};

const PROGRAM: &str = "qemu-system-x86_64";
const TICK: Duration = Duration::from_millis(20);

/// What a guest is to be.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Its name, for its log.
    pub name: String,
    /// What it runs, by `sh` with `set -e`. `say WORDS` tells the host something; its exit status ends the guest.
    pub script: String,
    /// Files of the host, by the place where it has them; programs among them need no library but those of the kit.
    pub files: Vec<(String, PathBuf)>,
    /// Kernel modules to load first, with their parameters: `"nbd nbds_max=1"`. What they need comes by itself.
    pub modules: Vec<&'static str>,
    /// QEMU's arguments for the devices under test.
    pub devices: Vec<OsString>,
    /// Its memory, in MiB.
    pub memory: u32,
    /// Whether its memory is a memfd that a vhost-user back end can map.
    pub shared: bool,
    /// Its processors.
    pub processors: u32,
    /// How long it may live.
    pub limit: Duration,
    /// The folder for its log, `NAME.log`: console and report.
    pub logs: PathBuf,
}

/// Why a guest did not do what it was to do. The end of its console is in the text.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// It could not be put together or started.
    #[error(transparent)]
    Testbed(#[from] TestbedError),
    /// Its script ended otherwise than with status 0, or a module could not be loaded.
    #[error("guest `{name}` ended with {how}; it said {said:?}; its console ended with:\n{console}")]
    Failed {
        /// The guest.
        name: String,
        /// The script's status, or what went wrong before it.
        how: String,
        /// What it had said.
        said: Vec<String>,
        /// The end of its console.
        console: String,
    },
    /// QEMU ended before the script did.
    #[error("the machine of guest `{name}` ended early ({status}); it said {said:?}; QEMU and its console:\n{console}")]
    Died {
        /// The guest.
        name: String,
        /// QEMU's exit status.
        status: String,
        /// What it had said.
        said: Vec<String>,
        /// What QEMU said, and the end of the console.
        console: String,
    },
    /// Its time was over.
    #[error(
        "guest `{name}` has not come to {what} within {} s; it said {said:?}; its console ended with:\n{console}",
        .limit.as_secs()
    )]
    Late {
        /// The guest.
        name: String,
        /// What was waited for.
        what: String,
        /// What it had.
        limit: Duration,
        /// What it had said.
        said: Vec<String>,
        /// The end of its console.
        console: String,
    },
}

impl From<ExecError> for GuestError {
    fn from(error: ExecError) -> Self {
        Self::Testbed(error.into())
    }
}

impl From<ArchiveError> for GuestError {
    fn from(error: ArchiveError) -> Self {
        Self::Testbed(error.into())
    }
}

impl Guest {
    /// A guest of that name with a script: 512 MiB, two processors, two minutes, its log in `target/guests`.
    #[must_use]
    pub fn new(name: &str, script: &str) -> Self {
        Self {
            name: name.to_owned(),
            script: script.to_owned(),
            files: Vec::new(),
            modules: Vec::new(),
            devices: Vec::new(),
            memory: 512,
            shared: false,
            processors: 2,
            limit: Duration::from_secs(120),
            logs: Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guests"),
        }
    }

    /// Loads these kernel modules before the script runs.
    #[must_use]
    pub fn modules(mut self, modules: &[&'static str]) -> Self {
        self.modules.extend_from_slice(modules);
        self
    }

    /// Adds a program of the host.
    #[must_use]
    pub fn file(mut self, place: &str, host: &Path) -> Self {
        self.files.push((place.to_owned(), host.to_path_buf()));
        self
    }

    /// Adds QEMU's arguments: `["-device", "nvme,drive=d,serial=1"]`.
    #[must_use]
    pub fn devices<W: Into<OsString>>(mut self, words: impl IntoIterator<Item = W>) -> Self {
        self.devices.extend(words.into_iter().map(Into::into));
        self
    }

    /// Lets vhost-user back ends map its memory.
    #[must_use]
    pub fn shared(mut self) -> Self {
        self.shared = true;
        self
    }

    /// Boots it.
    ///
    /// # Errors
    /// What it needs cannot be had, or QEMU cannot be started.
    pub fn boot<'a>(&self, kit: &'a Kit) -> Result<Booted<'a>, GuestError> {
        let folder = tempfile::Builder::new().prefix("fido-guest-").tempdir().map_err(io_error(Path::new("/tmp")))?;
        self.write_image(kit, &folder.path().join("image.cpio"))?;
        let place = |name: &str| folder.path().join(name);
        for name in [CONSOLE, REPORT] {
            File::create(place(name)).map_err(io_error(&place(name)))?;
        }
        // Killed with its parent: a test that is killed by force leaves no machine behind either.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", PROGRAM]).args(self.arguments(kit.kernel())).current_dir(folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(place(ERRORS)).map_err(io_error(&place(ERRORS)))?);
        let running = kit.supervisor().start(&mut command)?;
        let report = Report::open(&place(REPORT)).map_err(io_error(&place(REPORT)))?;
        Ok(Booted {
            guest: self.clone(),
            kit,
            folder,
            running,
            report,
            began: Instant::now(),
            said: Vec::new(),
            end: None,
        })
    }

    /// The kit's image, and behind it what is this guest's.
    fn write_image(&self, kit: &Kit, to: &Path) -> Result<(), GuestError> {
        let mut archive = Archive::new();
        archive.file("init", include_str!("init.sh"), true)?;
        archive.file("script", self.script.as_str(), false)?;
        for (place, host) in &self.files {
            archive.host_file(place, host, true)?;
        }
        let mut list = String::new();
        for (file, parameters) in kit.modules(&self.modules)? {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            archive.host_file(Path::new("modules").join(&name), &file, false)?;
            list.push_str(&format!("{name} {parameters}\n"));
        }
        archive.file("modules.list", list, false)?;
        fs::copy(kit.image(), to).map_err(io_error(to))?;
        let file = File::options().append(true).open(to).map_err(io_error(to))?;
        archive.write(std::io::BufWriter::new(file))?;
        Ok(())
    }

    /// The arguments of QEMU. All files but the kernel are in its working folder.
    fn arguments(&self, kernel: &Path) -> Vec<OsString> {
        let memory = self.memory.to_string();
        let backend = format!("memory-backend-memfd,id=memory,share=on,size={memory}M");
        let mut words: Vec<OsString> = ["-nodefaults", "-no-user-config", "-no-reboot"].map(OsString::from).into();
        let mut option = |name: &str, value: &str| words.extend([name.into(), value.into()]);
        if self.shared {
            option("-object", &backend);
        }
        option("-machine", if self.shared { "q35,memory-backend=memory" } else { "q35" });
        option("-accel", "tcg,thread=multi");
        option("-cpu", "max");
        option("-smp", &self.processors.to_string());
        option("-m", &memory);
        option("-display", "none");
        option("-serial", &format!("file:{CONSOLE}"));
        option("-serial", &format!("file:{REPORT}"));
        option("-append", "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on");
        option("-initrd", "image.cpio");
        words.extend(["-kernel".into(), kernel.into()]);
        words.extend(self.devices.iter().cloned());
        words
    }
}

const CONSOLE: &str = "console.log";
const REPORT: &str = "report";
const ERRORS: &str = "qemu.log";

/// A guest that runs. Dropped, it is killed, and its log is written.
pub struct Booted<'a> {
    guest: Guest,
    kit: &'a Kit,
    folder: TempDir,
    running: Running,
    report: Report,
    began: Instant,
    said: Vec<String>,
    end: Option<String>,
}

impl Booted<'_> {
    /// Waits until the guest says a line that begins with `words`, now or earlier, and returns the whole line.
    ///
    /// # Errors
    /// The guest ends before, fails, or is late.
    pub fn wait_for(&mut self, words: &str) -> Result<String, GuestError> {
        loop {
            if let Some(line) = self.said.iter().find(|line| line.starts_with(words)) {
                return Ok(line.clone());
            }
            if let Some(how) = self.end.clone() {
                return Err(self.failed(format!("{how}, without a word of {words:?}")));
            }
            self.step(words)?;
        }
    }

    /// Waits for the end of the script, and returns all that the guest has said.
    ///
    /// # Errors
    /// A status other than 0, a machine that ends by itself, or one that is late.
    pub fn wait(mut self) -> Result<Vec<String>, GuestError> {
        loop {
            match self.end.clone().as_deref() {
                Some("status 0") => return Ok(std::mem::take(&mut self.said)),
                Some(how) => return Err(self.failed(how.to_owned())),
                None => self.step("its end")?,
            }
        }
    }

    /// Whether it has said a line that begins with `words`, or has ended.
    pub fn has_said(&mut self, words: &str) -> bool {
        self.take();
        self.end.is_some() || self.said.iter().any(|line| line.starts_with(words))
    }

    /// QEMU's process.
    #[must_use]
    pub fn process(&self) -> u32 {
        self.running.id()
    }

    fn step(&mut self, what: &str) -> Result<(), GuestError> {
        let status = self.running.wait(self.kit.supervisor(), TICK, || Ok(false))?;
        let found = self.take();
        if found || self.end.is_some() {
            return Ok(());
        }
        let (name, said) = (self.guest.name.clone(), self.said.clone());
        if let Some(status) = status {
            return Err(GuestError::Died { name, status: status.to_string(), said, console: self.console() });
        }
        if self.began.elapsed() > self.guest.limit {
            let (what, limit) = (format!("{what:?}"), self.guest.limit);
            return Err(GuestError::Late { name, what, limit, said, console: self.console() });
        }
        Ok(())
    }

    /// Reads what has been reported. Whether there was anything.
    fn take(&mut self) -> bool {
        let lines = self.report.lines();
        let any = !lines.is_empty();
        for line in lines {
            match line {
                Line::Say(words) => self.said.push(words),
                Line::End(how) => self.end = Some(how),
            }
        }
        any
    }

    fn failed(&self, how: String) -> GuestError {
        let (name, said) = (self.guest.name.clone(), self.said.clone());
        GuestError::Failed { name, how, said, console: self.console() }
    }

    fn read(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.folder.path().join(name)).unwrap_or_default()).replace('\r', "")
    }

    fn console(&self) -> String {
        format!("{}\n{}", self.read(ERRORS), last_lines(&self.read(CONSOLE)))
    }
}

impl Drop for Booted<'_> {
    /// Keeps the log; what cannot be written is lost.
    fn drop(&mut self) {
        let log = format!("{}{}\n== report\n{}", self.read(ERRORS), self.read(CONSOLE), self.read(REPORT));
        let _ = fs::create_dir_all(&self.guest.logs);
        let _ = fs::write(self.guest.logs.join(format!("{}.log", self.guest.name)), log);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_shared_only_if_asked_for() {
        let guest = Guest::new("x", "").devices(["-device", "x"]);
        let words = |guest: &Guest| guest.arguments(Path::new("/k")).join(" ".as_ref()).into_string().unwrap();
        assert!(!words(&guest).contains("memfd"));
        let shared = words(&guest.shared());
        assert!(shared.contains("share=on,size=512M -machine q35,memory-backend=memory"), "{shared}");
        assert!(shared.ends_with("-kernel /k -device x"), "{shared}");
    }
}
