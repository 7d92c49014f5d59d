//! A component that speaks the manager's protocol by hand, so that it can also speak it wrongly, and what the tests
//! need around it.
//!
//! The component is the test binary itself: a domain's program is the running executable with arguments that select
//! the test `component`, which becomes the component when the manager's variables are set. Words among the arguments
//! choose what it does; whatever it sees goes into a log file that all domains of a test share.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

pub mod run;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fido_core::arena::{LanePlan, OwnArena, Peer};
use fido_core::assignment::{Assignment, LinkAssignment};
use fido_core::platform::host::memory;
use fido_core::platform::host::protocol::{
    self, DOMAIN_VARIABLE, FromDomain, FromManager, PROTOCOL_VERSION, SOCKET_VARIABLE,
};
use rustix::event::{EventfdFlags, PollFd, PollFlags};
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

/// Longer than anything here takes on a busy machine; no test waits that long unless it fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A folder, a log, and the manifest's text.
pub struct Bench {
    pub folder: tempfile::TempDir,
    text: String,
}

impl Bench {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("run")).unwrap();
        Self { folder, text: "appliance = \"test\"\n".into() }
    }

    pub fn line(&mut self, line: &str) -> &mut Self {
        self.text.push_str(line);
        self.text.push('\n');
        self
    }

    /// A domain that does `words`; `keys` are further lines of the manifest.
    pub fn domain(&mut self, name: &str, words: &[&str], keys: &[&str]) -> &mut Self {
        let program = std::env::current_exe().unwrap();
        let log = format!("log={}", self.log_file().display());
        let mut args = vec!["component", "--exact", "--nocapture", "--test-threads=1", &log];
        args.extend(words);
        self.line(&format!("[domain.{name}]\nprogram = {program:?}\nargs = {args:?}\narena = \"128KiB\""));
        keys.iter().for_each(|key| _ = self.line(key));
        self
    }

    pub fn link(&mut self, name: &str, a: &str, b: &str, lanes: u32) -> &mut Self {
        self.line(&format!("[[link]]\nname = {name:?}\nbetween = [{a:?}, {b:?}]\nlanes = {lanes}\nslots = 16"))
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn log_file(&self) -> PathBuf {
        self.path("log")
    }

    /// The lines that the domains have logged.
    pub fn log(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.log_file()).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Waits for a line that contains `part` and returns it.
    pub fn wait_for(&self, part: &str) -> String {
        let mut found = None;
        eventually(&format!("{part:?} in the log"), || {
            found = self.log().into_iter().find(|line| line.contains(part));
            found.is_some()
        });
        found.unwrap_or_default()
    }

    /// Where in the log a line is; fails the test if it is not there.
    pub fn position(&self, part: &str) -> usize {
        let log = self.log();
        log.iter().position(|line| line.contains(part)).unwrap_or_else(|| panic!("no {part:?} in {log:#?}"))
    }

    /// The manager's socket, as a domain has logged it.
    pub fn socket(&self) -> PathBuf {
        PathBuf::from(self.wait_for(" socket ").rsplit(' ').next().unwrap())
    }

    /// Nothing of the manager is left in the folder for its sockets.
    pub fn is_swept(&self) -> bool {
        std::fs::read_dir(self.path("run")).unwrap().count() == 0
    }
}

pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether there is a process (a zombie counts as none) with this id.
pub fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !matches!(rest.trim().chars().next(), Some('Z' | 'X') | None))
}

pub fn connect(path: &Path) -> OwnedFd {
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    rustix::net::connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    socket
}

/// The component. Does nothing unless a manager started this process.
pub fn component() {
    if let (Ok(socket), Ok(domain)) = (std::env::var(SOCKET_VARIABLE), std::env::var(DOMAIN_VARIABLE)) {
        let words: Vec<String> = std::env::args().collect();
        let status = Component::join(&socket, domain, words).serve();
        std::process::exit(status);
    }
}

struct Component {
    socket: OwnedFd,
    words: Vec<String>,
    log: std::fs::File,
    assignment: Assignment,
    arena: OwnArena,
    bells: Vec<(u32, usize, OwnedFd)>,
}

impl Component {
    fn join(path: &str, domain: String, words: Vec<String>) -> Self {
        let word = |word: &str| words.iter().any(|w| w == word);
        let log_file = words.iter().find_map(|word| word.strip_prefix("log=")).unwrap();
        let mut log = OpenOptions::new().append(true).create(true).open(log_file).unwrap();
        let pid = std::process::id();
        log.write_all(format!("{domain} pid {pid} socket {path}\n").as_bytes()).unwrap();
        if word("crash") {
            std::process::exit(3);
        }
        if word("abort") {
            std::process::abort();
        }
        if word("never-connect") {
            loop {
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        let socket = connect(Path::new(path));
        let first: Vec<u8> = if word("garbage-first") {
            b"\xff\x00 what?".to_vec()
        } else if word("ready-first") {
            serde_json::to_vec(&FromDomain::Ready { notes: BTreeMap::new() }).unwrap()
        } else {
            let name = words.iter().find_map(|word| word.strip_prefix("name=")).unwrap_or(&domain).to_owned();
            let version = if word("old-version") { 0 } else { PROTOCOL_VERSION };
            serde_json::to_vec(&FromDomain::Hello { version, domain: name }).unwrap()
        };
        rustix::net::send(&socket, &first, SendFlags::NOSIGNAL).unwrap();
        let assignment = match protocol::receive(socket.as_fd()) {
            Ok((FromManager::Welcome { assignment, .. }, _)) => *assignment,
            other => {
                log.write_all(format!("{domain} {other:?}\n").as_bytes()).unwrap();
                std::process::exit(4);
            }
        };
        let id = assignment.id.check().unwrap();
        let (fd, raw) = memory::create(&domain, id, assignment.arena_bytes).unwrap();
        let lanes = |link: &LinkAssignment| {
            let (link, slots) = (link.link, link.slots);
            move |lane| LanePlan { link, lane, slots }
        };
        let plans: Vec<_> = assignment.links.iter().flat_map(|link| (0..link.lanes).map(lanes(link))).collect();
        // SAFETY: `raw` is fresh memory from `create`, used by nobody else.
        let arena = unsafe { OwnArena::format(raw, id, &plans) }.unwrap();
        arena.stats().messages_sent.add(5);
        if word("other-layout") {
            // SAFETY: the header's version, an aligned word of the own arena, which nobody else has seen yet.
            unsafe { arena.base().add(8).cast::<u32>().write((fido_core::arena::VERSION + 1).to_le()) };
        }
        let mut component = Self { socket, words, log, assignment, arena, bells: Vec::new() };
        component.hand_over(fd);
        component
    }

    fn word(&self, word: &str) -> bool {
        self.words.iter().any(|w| w == word)
    }

    fn log(&mut self, what: &str) {
        let line = format!("{} {} {what}\n", self.assignment.domain, self.assignment.id.generation);
        self.log.write_all(line.as_bytes()).unwrap();
    }

    fn say(&self, message: &FromDomain, fds: &[&OwnedFd]) {
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        // The manager may have had enough of this component already.
        let _ = protocol::send(self.socket.as_fd(), message, &fds);
    }

    fn hand_over(&mut self, fd: OwnedFd) {
        let bytes = self.arena.len();
        let arena = FromDomain::Arena { bytes };
        if self.word("unsealed") {
            let plain = rustix::fs::memfd_create("plain", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
            rustix::fs::ftruncate(&plain, bytes).unwrap();
            self.say(&arena, &[&plain]);
        } else if self.word("wrong-size") {
            self.say(&FromDomain::Arena { bytes: bytes / 2 }, &[&fd]);
        } else if self.word("no-arena-fd") {
            self.say(&arena, &[]);
        } else if self.word("unformatted") {
            let id = self.arena.id();
            let (blank, _raw) = memory::create("blank", id, bytes).unwrap();
            self.say(&arena, &[&blank]);
        } else {
            self.say(&arena, &[&fd]);
        }
        if self.word("arena-twice") {
            self.say(&arena, &[&fd]);
        }
        for link in self.assignment.links.clone() {
            let bell = || rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
            let mut bells: Vec<_> = (0..link.lanes).map(|_| bell()).collect();
            if self.word("few-bells") {
                bells.pop();
            }
            if self.word("wrong-bells") {
                bells[0] = fd.try_clone().unwrap();
            }
            self.say(&FromDomain::Bells { link: link.link }, &bells.iter().collect::<Vec<_>>());
            self.bells.extend(bells.into_iter().enumerate().map(|(lane, bell)| (link.link, lane, bell)));
        }
        if self.word("bells-of-others") {
            self.say(&FromDomain::Bells { link: 99 }, &[]);
        }
        if self.word("passes-anything") {
            let id = fido_core::assignment::WireId { slot: 2, generation: 1 };
            self.say(&FromDomain::Passed { id, except: Vec::new() }, &[]);
        }
        if self.word("huge") {
            let huge = vec![b' '; protocol::MAX_MESSAGE_BYTES + 1];
            let _ = rustix::net::send(&self.socket, &huge, SendFlags::NOSIGNAL);
        }
        if self.word("garbage-later") {
            let _ = rustix::net::send(&self.socket, b"{\"say\":\"nonsense\"}", SendFlags::NOSIGNAL);
        }
        if self.word("connect-twice") {
            let path = std::env::var(SOCKET_VARIABLE).unwrap();
            let answer = protocol::receive::<FromManager>(connect(Path::new(&path)).as_fd());
            self.log(&format!("second connection: {answer:?}"));
        }
        if self.word("never-ready") {
            return;
        }
        if self.word("ignore-term") {
            // SAFETY: ignoring a signal runs no code.
            unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
        }
        self.log("ready");
        let note = |key: &str, value: String| (key.to_owned(), value);
        let cpus = rustix::thread::sched_getaffinity(None).map_or(0, |set| set.count());
        let notes = [note("port", "1234".into()), note("cpus", cpus.to_string())];
        self.say(&FromDomain::Ready { notes: notes.into_iter().collect() }, &[]);
    }

    fn serve(mut self) -> i32 {
        if self.word("done") {
            return 0;
        }
        if self.word("close") {
            self.socket = connect_to_nobody();
            loop {
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        let mut owed = Vec::new();
        loop {
            let mut fds = vec![PollFd::new(&self.socket, PollFlags::IN)];
            fds.extend(self.bells.iter().map(|(_, _, bell)| PollFd::new(bell, PollFlags::IN)));
            let pause = rustix::event::Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
            let _ = rustix::event::poll(&mut fds, Some(&pause));
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            let rung: Vec<_> =
                self.bells.iter().zip(&ready[1..]).filter(|(_, ready)| **ready).map(|(b, _)| b).collect();
            let mut lines = Vec::new();
            for (link, lane, bell) in rung {
                let _ = rustix::io::read(bell, &mut [0u8; 8]);
                lines.push(format!("bell {link}/{lane}"));
            }
            lines.iter().for_each(|line| self.log(line));
            if ready[0] {
                match protocol::receive::<FromManager>(self.socket.as_fd()) {
                    Ok((FromManager::Shutdown, _)) => {
                        self.log("shutdown");
                        if !self.word("ignore-shutdown") {
                            return 0;
                        }
                    }
                    Ok((FromManager::Died { id }, _)) => {
                        self.log(&format!("died {}.{}", id.slot, id.generation));
                        owed.push(id);
                    }
                    Ok((message, fds)) => self.take(message, fds),
                    Err(_) => return 5,
                }
            }
            if self.may_pass() {
                for id in owed.drain(..) {
                    self.log(&format!("passed {}.{}", id.slot, id.generation));
                    self.say(&FromDomain::Passed { id, except: Vec::new() }, &[]);
                }
            }
        }
    }

    /// With `pass-when=FILE`, only when the file is there.
    fn may_pass(&self) -> bool {
        let file = self.words.iter().find_map(|word| word.strip_prefix("pass-when="));
        file.is_none_or(|file| Path::new(file).exists())
    }

    fn take(&mut self, message: FromManager, fds: Vec<OwnedFd>) {
        match message {
            FromManager::Peer { id, domain, bytes } => {
                let id = id.check().unwrap();
                let window = memory::open(fds[0].as_fd(), id, bytes).unwrap();
                let counted = Peer::read(&window).unwrap().stats().messages_sent;
                self.log(&format!("peer {domain} {id} counted {counted}"));
                if !self.words.iter().any(|word| word == "never-maps") {
                    self.say(&FromDomain::Mapped { id: id.into() }, &[]);
                }
            }
            FromManager::Link { link, peer } => {
                self.log(&format!("link {link} {}.{} lanes {}", peer.slot, peer.generation, fds.len()));
                fds.iter().for_each(|bell| _ = rustix::io::write(bell, &1u64.to_ne_bytes()).unwrap());
            }
            FromManager::Fenced { id } => self.log(&format!("fenced {}.{}", id.slot, id.generation)),
            other => self.log(&format!("unexpected {other:?}")),
        }
    }
}

fn connect_to_nobody() -> OwnedFd {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}
