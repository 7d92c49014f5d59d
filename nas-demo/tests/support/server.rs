//! The server under test, as a process of its own.
//!
//! Its standard output is the contract with scripts: a line that begins with `nfs://` is the URL of the export's root,
//! a line `domain NAME pid PID generation G` says who is who, and is repeated for a domain that has been restarted.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::command::{Ended, Running, try_list};
use super::wait_until;

/// How long the server may take to start, and a domain to be started again.
pub const START_LIMIT: Duration = Duration::from_secs(60);
/// How long it may take to end in order.
pub const STOP_LIMIT: Duration = Duration::from_secs(30);

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_nas-demo");

/// The URL of an export's root: `nfs://HOST/ROOT?nfsport=P&mountport=P`.
#[derive(Debug, Clone)]
pub struct Url {
    root: String,
    query: String,
}

impl Url {
    fn parse(text: &str) -> Option<Self> {
        let (root, query) = text.split_once('?')?;
        Some(Self { root: root.trim_end_matches('/').to_owned(), query: query.to_owned() })
    }

    /// The URL of something in the export.
    pub fn of(&self, path: &str) -> String {
        format!("{}/{}?{}", self.root, path.trim_start_matches('/'), self.query)
    }

    /// The port of NFS and MOUNT.
    pub fn port(&self) -> u16 {
        let port = self.query.split('&').find_map(|item| item.strip_prefix("nfsport="));
        port.and_then(|port| port.parse().ok()).unwrap_or_else(|| panic!("no nfsport in {self:?}"))
    }
}

/// One start of a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Incarnation {
    /// Its process.
    pub pid: i32,
    /// Which start of it.
    pub generation: u16,
}

/// What the server has said so far.
#[derive(Debug, Default)]
struct Said {
    url: Option<Url>,
    domains: BTreeMap<String, Incarnation>,
}

/// A running server. Dropping it kills it and its domains.
#[derive(Debug)]
pub struct Server {
    child: Child,
    said: Arc<Mutex<Said>>,
    log: PathBuf,
}

/// The command that serves an image.
pub fn command(mode: &str, image: &Path, size: &str, listen: &str) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(["--serve", "--mode", mode, "--size", size, "--listen", listen, "--image"]).arg(image);
    command
}

/// The command that serves a device of `mmblk`'s.
fn command_on(device: &str) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(["--serve", "--listen", "127.0.0.1:0", "--disk", device]);
    command
}

/// Starts the server where it must fail, and returns what it says.
///
/// # Panics
/// If it does not end by itself.
pub fn fails_to_start(command: &mut Command) -> Ended {
    let ended = Running::start(command).wait(START_LIMIT);
    let status = ended.status.unwrap_or_else(|| panic!("it should have failed but went on:\n{}", ended.text));
    assert!(status.signal().is_none() && !status.success(), "it ended with {status}:\n{}", ended.text);
    ended
}

impl Server {
    /// Serves an image on a port of the kernel's choice. Everything temporary of the server goes into `tmp` beside the
    /// image.
    pub fn start(mode: &str, image: &Path, size: &str) -> Self {
        Self::run(command(mode, image, size, "127.0.0.1:0"), image.parent().expect("an image in a directory"))
    }

    /// As `start`, from a device. What is temporary goes into `dir`.
    pub fn start_on(device: &str, dir: &Path) -> Self {
        Self::run(command_on(device), dir)
    }

    fn run(mut command: Command, dir: &Path) -> Self {
        let log = dir.join("server.log");
        let errors = File::options().create(true).append(true).open(&log).expect("a log file");
        let tmp = dir.join("tmp");
        std::fs::create_dir_all(&tmp).expect("a directory");
        let mut child = command
            .env("TMPDIR", &tmp)
            .env_remove("XDG_RUNTIME_DIR")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {PROGRAM}: {error}"));
        let said = Arc::new(Mutex::new(Said::default()));
        let stdout = child.stdout.take().expect("a pipe");
        let into = said.clone();
        std::thread::spawn(move || listen(stdout, &into));
        let mut server = Self { child, said, log };
        wait_until("the server says where it serves", START_LIMIT, || {
            assert!(server.is_running(), "the server has ended");
            let said = server.said.lock().unwrap_or_else(PoisonError::into_inner);
            said.url.is_some() && !said.domains.is_empty()
        });
        server.wait_for_service();
        server
    }

    /// Where it serves.
    pub fn url(&self) -> Url {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.url.clone().expect("it has said so before `start` returned")
    }

    /// What it and its domains have logged.
    pub fn logged(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The domains and their present incarnations.
    pub fn domains(&self) -> BTreeMap<String, Incarnation> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).domains.clone()
    }

    /// Kills a domain, and waits until it has been started again.
    pub fn kill_domain(&self, name: &str) {
        let before = self.domains().get(name).copied().unwrap_or_else(|| panic!("no domain {name}"));
        kill(before.pid, libc::SIGKILL);
        wait_until("the domain is started again", START_LIMIT, || self.domains().get(name) != Some(&before));
    }

    /// Waits until a client can list the export.
    pub fn wait_for_service(&self) {
        let url = self.url();
        wait_until("a client can list the export", START_LIMIT, || {
            try_list(&url, "/", Duration::from_secs(5)).is_some()
        });
    }

    /// Ends the server as a user would, and expects that it does so in order and leaves no process behind.
    pub fn stop(mut self) {
        let domains = self.domains();
        kill(self.child.id() as i32, libc::SIGINT);
        let status = self.wait_for_end(STOP_LIMIT);
        assert!(status.is_some_and(|status| status.success()), "after SIGINT: {status:?}");
        for (name, domain) in domains {
            assert!(!is_alive(domain.pid), "domain {name} is left behind");
        }
    }

    /// Kills the program and all its domains at once.
    pub fn kill_everything(mut self) {
        self.kill_all();
        assert!(self.wait_for_end(STOP_LIMIT).is_some(), "SIGKILL ends a process");
    }

    fn kill_all(&mut self) {
        if self.is_running() {
            // The manager first: it would start the others again.
            kill(self.child.id() as i32, libc::SIGKILL);
            self.domains().values().for_each(|domain| kill(domain.pid, libc::SIGKILL));
        }
    }

    fn is_running(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_none())
    }

    fn wait_for_end(&mut self, limit: Duration) -> Option<ExitStatus> {
        let began = Instant::now();
        while self.is_running() && began.elapsed() < limit {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.child.try_wait().ok().flatten()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill_all();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let from = log.char_indices().rev().nth(8000).map_or(0, |(at, _)| at);
            eprintln!("--- the end of the server's log\n{}\n---", &log[from..]);
        }
    }
}

fn listen(stdout: ChildStdout, said: &Mutex<Said>) {
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        if line.starts_with("nfs://") {
            said.url = Url::parse(line.trim());
        } else if let Some((name, incarnation)) = domain(&line) {
            said.domains.insert(name, incarnation);
        }
    }
}

/// `domain NAME pid PID generation G`
fn domain(line: &str) -> Option<(String, Incarnation)> {
    let words: Vec<_> = line.split_whitespace().collect();
    let ["domain", name, "pid", pid, "generation", generation] = words[..] else { return None };
    Some((name.to_owned(), Incarnation { pid: pid.parse().ok()?, generation: generation.parse().ok()? }))
}

fn kill(pid: i32, signal: i32) {
    // SAFETY: a plain system call; the process is one that the server has said to be its own.
    unsafe { libc::kill(pid, signal) };
}

fn is_alive(pid: i32) -> bool {
    // SAFETY: signal 0 only asks.
    unsafe { libc::kill(pid, 0) == 0 }
}
