//! The manager's thread: one `poll` over everything that can happen, and the deadlines.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fido_core::addr::DomainId;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::channel::{Channel, Descriptors};
use super::error::KillError;
use super::process::Process;
use super::restarts::Restarts;
use super::runtime_dir::RuntimeDir;
use super::shutdown::Stopping;
use super::state::{Event, State};
use super::status::Shared;
use super::strangers::Stranger;
use super::topology::{Index, Topology};
use super::{DomainState, Options};
use crate::manifest::Manifest;

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: i32 = 128;
/// The pause of accepting when the process has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// From the handle.
pub(super) enum Command {
    /// Kill a domain's process.
    Kill {
        /// Its name.
        domain: String,
        /// Where the answer goes.
        answer: Sender<Result<(), KillError>>,
    },
    /// Shut down.
    Shutdown {
        /// By when nothing must be left.
        deadline: Instant,
    },
}

/// One domain with what belongs to its current incarnation.
pub(super) struct Run {
    pub(super) restarts: Restarts,
    /// It has been ready at least once: those that come after it may start.
    pub(super) served: bool,
    pub(super) restart_at: Option<Instant>,
    /// What the next incarnation inherits.
    pub(super) heritage: Option<Heritage>,
    pub(super) incarnation: Option<Incarnation>,
}

/// The arena of a dead incarnation that had been ready, kept until a later one is.
pub(super) struct Heritage {
    pub(super) id: DomainId,
    pub(super) arena: Descriptors,
}

/// A process and what it has handed over.
pub(super) struct Incarnation {
    pub(super) id: DomainId,
    pub(super) process: Process,
    pub(super) channel: Option<Channel>,
    /// The connection of one that has been killed: what it said before may not all have been read.
    pub(super) last_words: Option<Channel>,
    pub(super) arena: Option<Descriptors>,
    pub(super) bells: BTreeMap<u32, Descriptors>,
    pub(super) notes: BTreeMap<String, String>,
    pub(super) ready: bool,
    /// By when it must be ready.
    pub(super) start_deadline: Option<Instant>,
    /// It closed its connection: by when it must be gone.
    pub(super) close_deadline: Option<Instant>,
    /// Why the manager killed it.
    pub(super) condemned: Option<String>,
}

/// What `poll` can report.
#[derive(Clone, Copy)]
enum Token {
    Wake,
    Listener,
    Stranger(u64),
    Channel(Index),
    Process(Index),
}

pub(super) struct EventLoop {
    pub(super) manifest: Manifest,
    pub(super) options: Options,
    pub(super) shared: Arc<Shared>,
    pub(super) state: State,
    pub(super) runs: Vec<Run>,
    /// By when the survivors must have passed.
    pub(super) fences: BTreeMap<DomainId, Instant>,
    /// By when a reader must have an owner's window in place.
    pub(super) mappings: BTreeMap<(DomainId, DomainId), Instant>,
    pub(super) strangers: Vec<Stranger>,
    pub(super) last_stranger: u64,
    pub(super) stopping: Option<Stopping>,
    pub(super) pumps: Vec<JoinHandle<()>>,
    pub(super) socket: PathBuf,
    listener: OwnedFd,
    listener_pause: Option<Instant>,
    wake: Arc<OwnedFd>,
    commands: Receiver<Command>,
    /// Last, so that it goes when everything else has gone.
    _dir: RuntimeDir,
}

impl EventLoop {
    pub(super) fn new(
        manifest: Manifest,
        options: Options,
        shared: Arc<Shared>,
        wake: Arc<OwnedFd>,
        commands: Receiver<Command>,
    ) -> io::Result<Self> {
        let dir = RuntimeDir::create(options.runtime_dir.as_deref())?;
        let socket = dir.socket();
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        rustix::net::bind(&listener, &SocketAddrUnix::new(&socket)?)?;
        rustix::net::listen(&listener, BACKLOG)?;
        let run = |domain: &crate::manifest::Domain| Run {
            restarts: Restarts::new(domain.restart),
            served: false,
            restart_at: None,
            heritage: None,
            incarnation: None,
        };
        Ok(Self {
            state: State::new(Topology::of(&manifest)),
            runs: manifest.domains.iter().map(run).collect(),
            fences: BTreeMap::new(),
            mappings: BTreeMap::new(),
            strangers: Vec::new(),
            last_stranger: 0,
            stopping: None,
            pumps: Vec::new(),
            listener_pause: None,
            manifest,
            options,
            shared,
            socket,
            listener,
            wake,
            commands,
            _dir: dir,
        })
    }

    /// Works until the appliance is down.
    pub(super) fn run(mut self) {
        self.start_waiting();
        loop {
            self.keep_deadlines();
            if self.shutdown_is_complete() {
                break;
            }
            match self.wait() {
                Ok(tokens) => tokens.into_iter().for_each(|token| self.handle(token)),
                Err(error) => {
                    // Out of kernel memory, at worst. Polling again is all there is to do, but not in a tight loop.
                    tracing::error!(%error, "cannot wait for events");
                    std::thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
        self.finish();
    }

    /// Sleeps until something happens or a deadline comes. Deaths are reported last: what a domain said before it
    /// died is heard first.
    fn wait(&self) -> io::Result<Vec<Token>> {
        let now = Instant::now();
        let mut watched: Vec<(Token, BorrowedFd<'_>, PollFlags)> =
            vec![(Token::Wake, self.wake.as_fd(), PollFlags::IN)];
        for (index, incarnation) in self.incarnations() {
            if let Some(channel) = &incarnation.channel {
                let room = if channel.wants_room() { PollFlags::OUT } else { PollFlags::empty() };
                watched.push((Token::Channel(index), channel.socket(), PollFlags::IN | room));
            }
        }
        for stranger in &self.strangers {
            watched.push((Token::Stranger(stranger.key), stranger.channel.socket(), PollFlags::IN));
        }
        if self.listener_pause.is_none() {
            watched.push((Token::Listener, self.listener.as_fd(), PollFlags::IN));
        }
        for (index, incarnation) in self.incarnations() {
            watched.push((Token::Process(index), incarnation.process.pidfd(), PollFlags::IN));
        }
        let mut fds: Vec<_> = watched.iter().map(|&(_, fd, flags)| PollFd::from_borrowed_fd(fd, flags)).collect();
        let timeout = self.next_deadline().map(|at| timespec(at.saturating_duration_since(now)));
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let ready = watched.iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
        Ok(ready.map(|((token, ..), _)| *token).collect())
    }

    fn handle(&mut self, token: Token) {
        match token {
            Token::Wake => self.take_commands(),
            Token::Listener => self.accept(),
            Token::Stranger(key) => self.hear_stranger(key),
            Token::Channel(index) => self.hear(index),
            Token::Process(index) => self.reap(index),
        }
    }

    fn take_commands(&mut self) {
        let _ = rustix::io::read(&*self.wake, &mut [0u8; 8]);
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Kill { domain, answer } => {
                    // Whoever asked may have gone.
                    let _ = answer.send(self.kill(domain));
                }
                Command::Shutdown { deadline } => self.begin_shutdown(deadline),
            }
        }
    }

    fn kill(&mut self, domain: String) -> Result<(), KillError> {
        let index = self.manifest.position(&domain).ok_or_else(|| KillError::Unknown(domain.clone()))?;
        if self.runs.get(index).is_none_or(|run| run.incarnation.is_none()) {
            return Err(KillError::NotRunning(domain));
        }
        self.condemn(index, "it was killed on request");
        Ok(())
    }

    /// Everything that has a time.
    fn next_deadline(&self) -> Option<Instant> {
        let runs = self.runs.iter().flat_map(|run| {
            let own = run.incarnation.iter().flat_map(|i| {
                let pause = i.channel.as_ref().and_then(Channel::pause);
                [i.start_deadline, i.close_deadline, pause]
            });
            own.chain([run.restart_at])
        });
        let stop = self.stopping.as_ref().and_then(Stopping::next_deadline);
        let others =
            self.fences.values().chain(self.mappings.values()).copied().map(Some).chain([stop, self.listener_pause]);
        let strangers = self.strangers.iter().map(|stranger| stranger.deadline);
        runs.chain(others).chain(strangers).flatten().min()
    }

    fn keep_deadlines(&mut self) {
        let now = Instant::now();
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if due(self.listener_pause) {
            self.listener_pause = None;
        }
        self.refuse_silent(now);
        for index in 0..self.runs.len() {
            let Some(run) = self.runs.get_mut(index) else { continue };
            if due(run.restart_at) {
                run.restart_at = None;
                self.feed(Event::Want(index));
                continue;
            }
            let Some(incarnation) = &run.incarnation else { continue };
            if due(incarnation.start_deadline) {
                let what = format!("it was not ready within {:?}", self.options.start_deadline);
                self.condemn(index, &what);
            } else if due(incarnation.close_deadline) {
                self.condemn(index, "it closed its connection with the manager");
            } else if due(incarnation.channel.as_ref().and_then(Channel::pause)) {
                self.flush(index);
            }
        }
        let late: Vec<DomainId> = self.fences.iter().filter(|(_, at)| **at <= now).map(|(id, _)| *id).collect();
        for dead in late {
            self.fences.remove(&dead);
            for index in self.state.owing(dead).into_iter().filter_map(|id| self.state.index(id)).collect::<Vec<_>>() {
                self.condemn(index, &format!("it did not let go of what came through the dead domain {dead} in time"));
            }
        }
        let late: Vec<_> = self.mappings.iter().filter(|(_, at)| **at <= now).map(|(pair, _)| *pair).collect();
        for (reader, owner) in late {
            self.mappings.remove(&(reader, owner));
            if self.state.is_mapping(reader, owner)
                && let Some(index) = self.state.index(reader)
            {
                self.condemn(index, &format!("it did not map the arena of domain {owner} in time"));
            }
        }
        self.keep_shutdown_deadlines(now);
    }

    fn incarnations(&self) -> impl Iterator<Item = (Index, &Incarnation)> {
        self.runs.iter().enumerate().filter_map(|(index, run)| Some((index, run.incarnation.as_ref()?)))
    }

    pub(super) fn incarnation(&mut self, index: Index) -> Option<&mut Incarnation> {
        self.runs.get_mut(index)?.incarnation.as_mut()
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

    pub(super) fn show(&self, index: Index, change: impl FnOnce(&mut super::status::Entry)) {
        self.shared.change(|board| board.entries.get_mut(index).map(change));
    }

    pub(super) fn name(&self, index: Index) -> &str {
        self.manifest.domains.get(index).map_or("", |domain| &domain.name)
    }

    pub(super) fn show_state(&self, index: Index, state: DomainState) {
        self.show(index, |entry| entry.status.state = state);
    }
}

fn timespec(duration: Duration) -> Timespec {
    // Rounded up to the millisecond: a wake-up just before the deadline would only be another round.
    let duration = duration + Duration::from_millis(1);
    let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    Timespec { tv_sec: seconds, tv_nsec: i64::from(duration.subsec_nanos()) }
}
