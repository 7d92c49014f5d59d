//! The platform `host`: incarnations are processes, watched through pidfds; what they and the manager say to each other
//! goes over a Unix socket ([`fido_core::platform::host::protocol`]).

mod channel;
mod dialogue;
mod process;
mod runtime_dir;
mod strangers;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fido_core::addr::DomainId;
use fido_core::platform::host::protocol::FromManager;
use rustix::event::{PollFd, PollFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::Signal;

use super::carrier::{Carrier, Heritage, News, What, Word};
use super::event_loop::{index_of, timespec};
use super::topology::{Index, Topology};
use super::{Options, Output};
use crate::manifest::Manifest;
use channel::{Channel, Descriptors};
use process::Process;
use runtime_dir::RuntimeDir;
use strangers::Stranger;

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: i32 = 128;
/// The pause of accepting when the process has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long the last lines of output may take.
const OUTPUT_GRACE: Duration = Duration::from_secs(1);

/// A process and what it has handed over.
struct Incarnation {
    id: DomainId,
    process: Process,
    channel: Option<Channel>,
    /// The connection of one that has been killed: what it said before may not all have been read.
    last_words: Option<Channel>,
    /// It has been killed, or has closed its connection.
    is_ending: bool,
    arena: Option<Descriptors>,
    bells: BTreeMap<u32, Descriptors>,
    /// What it inherits, until it is welcomed.
    heritage: Option<Heritage>,
}

/// What `poll` has reported and is still to be done.
#[derive(Clone, Copy)]
enum Task {
    Accept,
    HearStranger(u64),
    /// Sends what waits, and reads.
    Serve(Index),
    /// Reads so many messages.
    Hear(Index, usize),
    /// Hears what a process has said at last, and reaps it.
    End(Index),
    Reap(Index),
}

/// See the module.
pub(super) struct HostCarrier {
    manifest: Arc<Manifest>,
    topology: Topology,
    output: Output,
    incarnations: Vec<Option<Incarnation>>,
    strangers: Vec<Stranger>,
    last_stranger: u64,
    pumps: Vec<JoinHandle<()>>,
    tasks: VecDeque<Task>,
    news: VecDeque<News>,
    socket: PathBuf,
    listener: OwnedFd,
    listener_pause: Option<Instant>,
    /// Last, so that it goes when everything else has gone.
    _dir: RuntimeDir,
}

impl HostCarrier {
    /// Makes the manager's socket.
    pub(super) fn new(manifest: Arc<Manifest>, options: &Options) -> io::Result<Self> {
        let dir = RuntimeDir::create(options.runtime_dir.as_deref())?;
        let socket = dir.socket();
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        rustix::net::bind(&listener, &SocketAddrUnix::new(&socket)?)?;
        rustix::net::listen(&listener, BACKLOG)?;
        Ok(Self {
            topology: Topology::of(&manifest),
            incarnations: manifest.domains.iter().map(|_| None).collect(),
            output: options.output.clone(),
            strangers: Vec::new(),
            last_stranger: 0,
            pumps: Vec::new(),
            tasks: VecDeque::new(),
            news: VecDeque::new(),
            listener_pause: None,
            manifest,
            socket,
            listener,
            _dir: dir,
        })
    }

    fn living(&self) -> impl Iterator<Item = (Index, &Incarnation)> {
        self.incarnations.iter().enumerate().filter_map(|(index, living)| Some((index, living.as_ref()?)))
    }

    fn at(&mut self, index: Index) -> Option<&mut Incarnation> {
        self.incarnations.get_mut(index)?.as_mut()
    }

    fn of(&mut self, id: DomainId) -> Option<&mut Incarnation> {
        self.at(index_of(id)?).filter(|incarnation| incarnation.id == id)
    }

    fn name(&self, index: Index) -> &str {
        self.manifest.domains.get(index).map_or("", |domain| &domain.name)
    }

    fn report(&mut self, id: DomainId, what: What) {
        self.news.push_back(News { id, what });
    }

    /// What is due by now.
    fn keep_deadlines(&mut self, now: Instant) {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if due(self.listener_pause) {
            self.listener_pause = None;
        }
        self.refuse_silent(now);
        for index in 0..self.incarnations.len() {
            if self.at(index).is_some_and(|i| due(i.channel.as_ref().and_then(Channel::pause))) {
                self.flush(index);
            }
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let pauses = self.living().map(|(_, incarnation)| incarnation.channel.as_ref().and_then(Channel::pause));
        let strangers = self.strangers.iter().map(|stranger| stranger.deadline);
        pauses.chain(strangers).chain([self.listener_pause]).flatten().min()
    }

    /// Takes a new connection in, if it comes from a domain's process.
    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = match rustix::net::accept_with(&self.listener, flags) {
            Ok(socket) => socket,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::CONNABORTED | rustix::io::Errno::INTR) => return,
            Err(error) => {
                tracing::error!(%error, "cannot accept a connection");
                self.listener_pause = Some(Instant::now() + ACCEPT_PAUSE);
                return;
            }
        };
        self.judge_connection(socket);
    }

    fn work(&mut self, task: Task) {
        match task {
            Task::Accept => self.accept(),
            Task::HearStranger(key) => self.hear_stranger(key),
            Task::Serve(index) => {
                self.flush(index);
                self.tasks.push_front(Task::Hear(index, dialogue::BATCH));
            }
            Task::Hear(index, left) => {
                if left > 0 && self.hear(index) {
                    self.tasks.push_front(Task::Hear(index, left - 1));
                }
            }
            // It may have said that it is ready between the look at its connection and the look at its process: whose
            // heritage the next one gets depends on it.
            Task::End(index) => {
                self.tasks.push_front(Task::Reap(index));
                self.tasks.push_front(Task::Serve(index));
            }
            Task::Reap(index) => self.reap(index),
        }
    }
}

impl Carrier for HostCarrier {
    fn start(&mut self, index: Index, id: DomainId, heritage: Option<Heritage>) -> Result<(), String> {
        let domain = self.manifest.domains.get(index).ok_or("there is no such domain")?;
        let (process, pump) = Process::spawn(domain, id, &self.socket, &self.output)
            .map_err(|error| format!("cannot start {}: {error}", domain.program.display()))?;
        let pid = process.pid();
        self.pumps.retain(|pump| !pump.is_finished());
        self.pumps.extend(pump);
        if let Some(place) = self.incarnations.get_mut(index) {
            *place = Some(Incarnation {
                id,
                process,
                channel: None,
                last_words: None,
                is_ending: false,
                arena: None,
                bells: BTreeMap::new(),
                heritage,
            });
        }
        self.report(id, What::Process(pid));
        Ok(())
    }

    fn tell(&mut self, to: DomainId, word: Word) {
        let nothing: Descriptors = Arc::new([]);
        match word {
            Word::Peer(of) => self.introduce(to, of),
            Word::Link { link, peer } => {
                let bells = self.of(peer).and_then(|incarnation| incarnation.bells.get(&link).cloned());
                if let Some(bells) = bells {
                    self.send(to, FromManager::Link { link, peer: peer.into() }, bells);
                }
            }
            Word::Died(id) => self.send(to, FromManager::Died { id: id.into() }, nothing),
            Word::Fenced(id) => self.send(to, FromManager::Fenced { id: id.into() }, nothing),
            Word::Shutdown => {
                if let Some(incarnation) = self.of(to).filter(|incarnation| incarnation.channel.is_none()) {
                    // Not connected: there is no other way to tell it.
                    incarnation.process.signal(Signal::TERM);
                }
                self.send(to, FromManager::Shutdown, nothing);
            }
        }
    }

    fn kill(&mut self, id: DomainId) {
        if let Some(incarnation) = self.of(id) {
            incarnation.process.signal(Signal::KILL);
            // From here on it is neither heard nor told anything. Only whether it was ready still counts, at its end.
            incarnation.last_words = incarnation.channel.take();
            incarnation.is_ending = true;
        }
        self.strangers.retain(|stranger| !stranger.is_of(id));
    }

    fn urge(&mut self, id: DomainId) {
        if let Some(incarnation) = self.of(id) {
            tracing::debug!(domain = %id, "sending SIGTERM");
            incarnation.process.signal(Signal::TERM);
        }
    }

    fn wait(&mut self, wake: BorrowedFd<'_>, until: Option<Instant>) -> io::Result<()> {
        self.keep_deadlines(Instant::now());
        if !self.news.is_empty() || !self.tasks.is_empty() {
            return Ok(());
        }
        let mut watched: Vec<(Option<Task>, BorrowedFd<'_>, PollFlags)> = vec![(None, wake, PollFlags::IN)];
        for (index, incarnation) in self.living() {
            if let Some(channel) = &incarnation.channel {
                let room = if channel.wants_room() { PollFlags::OUT } else { PollFlags::empty() };
                watched.push((Some(Task::Serve(index)), channel.socket(), PollFlags::IN | room));
            }
        }
        for stranger in &self.strangers {
            watched.push((Some(Task::HearStranger(stranger.key)), stranger.channel.socket(), PollFlags::IN));
        }
        if self.listener_pause.is_none() {
            watched.push((Some(Task::Accept), self.listener.as_fd(), PollFlags::IN));
        }
        // Last: what a domain said before it died is heard first.
        for (index, incarnation) in self.living() {
            watched.push((Some(Task::End(index)), incarnation.process.pidfd(), PollFlags::IN));
        }
        let mut fds: Vec<_> = watched.iter().map(|&(_, fd, flags)| PollFd::from_borrowed_fd(fd, flags)).collect();
        let timeout = until.into_iter().chain(self.next_deadline()).min().map(timespec);
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let ready = watched.iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
        let tasks: Vec<Task> = ready.filter_map(|((task, ..), _)| *task).collect();
        self.tasks.extend(tasks);
        Ok(())
    }

    fn next(&mut self) -> Option<News> {
        loop {
            if let Some(news) = self.news.pop_front() {
                return Some(news);
            }
            let task = self.tasks.pop_front()?;
            self.work(task);
        }
    }

    fn finish(&mut self) -> Vec<String> {
        let deadline = Instant::now() + OUTPUT_GRACE;
        while self.pumps.iter().any(|pump| !pump.is_finished()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        // The kernel ends what is killed.
        Vec::new()
    }
}
