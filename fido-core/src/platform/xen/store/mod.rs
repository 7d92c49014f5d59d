//! A client of xenstore: over xenstored's Unix socket (dom0) or the kernel's xenbus device (guests).
//!
//! [`Store`] is a connection that all threads may share; [`View`] is what one sees through it, outside of transactions
//! ([`Store::now`]) or inside of one ([`Store::transaction`]). Every call is bounded in time. What comes from xenstored
//! is checked ([`wire`]); what is wrong with it is a [`StoreError`].
//!
//! Not here: which nodes there are and what they mean ([`super::layout`]), and the privileged operations of the
//! toolstack (introducing domains and the like).

mod connection;
mod error;
pub mod fake;
#[cfg(test)]
mod tests;
pub mod wire;

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use connection::Connection;
pub use connection::{MAX_QUEUED_EVENTS, WatchEvent};
pub use error::{Code, StoreError};
use wire::{Kind, Permission, WireError};

#[cfg(feature = "libxen")]
use super::libxen::plain::Plain;

/// The kernel's device, and where older systems have it.
pub const DEVICES: [&str; 2] = ["/dev/xen/xenbus", "/proc/xen/xenbus"];
/// Where xenstored listens in dom0.
pub const SOCKETS: [&str; 2] = ["/run/xenstored/socket", "/var/run/xenstored/socket"];
/// How long a request waits for its reply.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// The most children that are listed.
pub const MAX_CHILDREN: usize = 65536;
/// How often a transaction is tried.
pub const MAX_ATTEMPTS: u32 = 64;

/// A connection with xenstored.
#[derive(Debug, Clone)]
pub struct Store(Arc<Connection>);

impl Store {
    /// Connects by whatever way there is: the socket, which only dom0 has, else the device. A socket that xenstored has left
    /// ends at once; the device would wait for it for ever.
    ///
    /// # Errors
    /// [`StoreError::Absent`], [`StoreError::Privilege`] or [`StoreError::Gone`], with what to do.
    pub fn connect() -> Result<Self, StoreError> {
        Self::connect_by(&SOCKETS, &DEVICES)
    }

    fn connect_by(sockets: &[&str], devices: &[&str]) -> Result<Self, StoreError> {
        let mut tried = Vec::new();
        let mut passed_over = |path: &str, source: io::Error| match source.kind() {
            io::ErrorKind::PermissionDenied => Err(StoreError::Privilege { path: path.into(), source }),
            // There was somebody once.
            io::ErrorKind::ConnectionRefused => Err(StoreError::Gone),
            _ => {
                tried.push(format!("{path}: {source}"));
                Ok(())
            }
        };
        for path in sockets {
            match UnixStream::connect(path) {
                Ok(socket) => return Self::found(socket.into()),
                Err(error) => passed_over(path, error)?,
            }
        }
        for path in devices {
            match File::options().read(true).write(true).open(path) {
                Ok(file) => return Self::found(file.into()),
                Err(error) => passed_over(path, error)?,
            }
        }
        Err(StoreError::Absent { tried: tried.join("; ") })
    }

    #[cfg(not(feature = "libxen"))]
    fn found(fd: OwnedFd) -> Result<Self, StoreError> {
        Self::over(fd, PATIENCE)
    }

    #[cfg(feature = "libxen")]
    fn found(fd: OwnedFd) -> Result<Self, StoreError> {
        let mut connection = Connection::new(fd, PATIENCE)?;
        connection.plain = Some(Plain::connect()?);
        Ok(Self(Arc::new(connection)))
    }

    /// Over a connected socket or an open device; a reply may take `patience`.
    ///
    /// # Errors
    /// [`StoreError::System`] if it cannot be set up.
    pub fn over(fd: OwnedFd, patience: Duration) -> Result<Self, StoreError> {
        Ok(Self(Arc::new(Connection::new(fd, patience)?)))
    }

    /// The store as it is now, outside of any transaction.
    pub fn now(&self) -> View<'_> {
        View { connection: &self.0, transaction: 0 }
    }

    /// Runs `work` in a transaction: all of its changes happen at once, or none if it fails. If others interfere, it is
    /// run again, up to [`MAX_ATTEMPTS`] times.
    ///
    /// # Errors
    /// The error of `work`, or [`StoreError::Contended`].
    pub fn transaction<T>(&self, mut work: impl FnMut(&View<'_>) -> Result<T, StoreError>) -> Result<T, StoreError> {
        for attempt in 0..MAX_ATTEMPTS {
            let number = self.0.request(Kind::TransactionStart, 0, b"\0".to_vec())?;
            let view = View { connection: &self.0, transaction: wire::number(&number)? };
            let result = work(&view);
            let end = if result.is_ok() { b"T\0" } else { b"F\0" };
            let ended = self.0.request(Kind::TransactionEnd, view.transaction, end.to_vec());
            let conflict = |error: &StoreError| error.code() == Some(&Code::Conflict);
            match (result, ended) {
                (Ok(value), Ok(_)) => return Ok(value),
                (Ok(_), Err(error)) if conflict(&error) => {}
                (Ok(_), Err(error)) => return Err(error),
                // A conflict can show before the end.
                (Err(error), _) if conflict(&error) => {}
                (Err(error), _) => return Err(error),
            }
            std::thread::sleep(Duration::from_millis(u64::from(attempt.min(20))));
        }
        Err(StoreError::Contended { attempts: MAX_ATTEMPTS })
    }

    /// Watches a node and all below it: [`Store::wait_event`] reports changes with `token`, and one at once.
    ///
    /// # Errors
    /// [`StoreError`]; [`Code::Exists`] if there is this watch already.
    pub fn watch(&self, path: &str, token: &str) -> Result<(), StoreError> {
        self.0.request(Kind::Watch, 0, watch_content(path, token)?).map(drop).map_err(|error| name_path(error, path))
    }

    /// Ends a watch. Events of it may still be queued.
    ///
    /// # Errors
    /// [`StoreError`]; [`Code::NoEntry`] if there is no such watch.
    pub fn unwatch(&self, path: &str, token: &str) -> Result<(), StoreError> {
        self.0.request(Kind::Unwatch, 0, watch_content(path, token)?).map(drop).map_err(|error| name_path(error, path))
    }

    /// Waits for the next watch event; `None` when the time is over. Without a limit, until there is one.
    ///
    /// # Errors
    /// [`StoreError`] if the connection is at its end.
    pub fn wait_event(&self, timeout: Option<Duration>) -> Result<Option<WatchEvent>, StoreError> {
        // A time beyond the clock is as good as none.
        self.0.wait_event(timeout.and_then(|timeout| Instant::now().checked_add(timeout)))
    }

    /// The next watch event, if there is one.
    ///
    /// # Errors
    /// [`StoreError`] if the connection is at its end.
    pub fn poll_event(&self) -> Result<Option<WatchEvent>, StoreError> {
        self.0.poll_event()
    }

    /// For event loops: one of them is readable when [`Store::poll_event`] may have an event.
    pub fn event_fds(&self) -> [BorrowedFd<'_>; 2] {
        self.0.event_fds()
    }

    /// The path of a domain's own nodes, such as `/local/domain/5`. There need not be such a domain.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn domain_path(&self, domain: u16) -> Result<String, StoreError> {
        let content = self.0.request(Kind::GetDomainPath, 0, format!("{domain}\0").into_bytes())?;
        let path = wire::string(&content)?;
        wire::check_path(path)?;
        Ok(path.to_owned())
    }
}

fn watch_content(path: &str, token: &str) -> Result<Vec<u8>, StoreError> {
    wire::check_path(path)?;
    if token.contains('\0') || token.len() > 255 {
        return Err(WireError::Token { token: token.chars().take(80).collect() }.into());
    }
    Ok(format!("{path}\0{token}\0").into_bytes())
}

/// A refusal by the kernel does not say of which node.
fn name_path(error: StoreError, path: &str) -> StoreError {
    match error {
        StoreError::Refused { operation, code, .. } => StoreError::Refused { operation, path: path.to_owned(), code },
        error => error,
    }
}

/// The store as seen outside of all transactions or inside of one.
#[derive(Debug)]
pub struct View<'s> {
    connection: &'s Connection,
    transaction: u32,
}

impl View<'_> {
    fn request(&self, kind: Kind, path: &str, rest: &[u8]) -> Result<Vec<u8>, StoreError> {
        wire::check_path(path)?;
        #[cfg(feature = "libxen")]
        if let Some(plain) = self.connection.plain.as_ref().filter(|_| self.transaction == 0)
            && let Some(result) = plain.request(kind, path, rest)
        {
            return result;
        }
        let mut content = Vec::with_capacity(path.len() + 1 + rest.len());
        content.extend_from_slice(path.as_bytes());
        content.push(0);
        content.extend_from_slice(rest);
        self.connection.request(kind, self.transaction, content)
    }

    /// A node's value.
    ///
    /// # Errors
    /// [`StoreError`]; [`Code::NoEntry`] if there is no such node.
    pub fn read(&self, path: &str) -> Result<Vec<u8>, StoreError> {
        self.request(Kind::Read, path, &[])
    }

    /// A node's value, or `None` if there is no such node.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn read_if_any(&self, path: &str) -> Result<Option<Vec<u8>>, StoreError> {
        none_if_absent(self.read(path))
    }

    /// Sets a node's value; creates it, and the nodes above it, where needed.
    ///
    /// # Errors
    /// [`StoreError`]; [`WireError::TooLong`] if path and value do not fit into a packet.
    pub fn write(&self, path: &str, value: &[u8]) -> Result<(), StoreError> {
        self.request(Kind::Write, path, value).map(drop)
    }

    /// Creates a node without a value, if it is not there.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn make_directory(&self, path: &str) -> Result<(), StoreError> {
        self.request(Kind::MakeDirectory, path, &[]).map(drop)
    }

    /// Removes a node and all below it; whether it was there.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove(&self, path: &str) -> Result<bool, StoreError> {
        Ok(none_if_absent(self.request(Kind::Remove, path, &[]))?.is_some())
    }

    /// The names of a node's children, however many; none if there is no such node.
    ///
    /// # Errors
    /// [`StoreError`]; [`StoreError::Directory`] if there are more than [`MAX_CHILDREN`], or they never stand still.
    pub fn children(&self, path: &str) -> Result<Vec<String>, StoreError> {
        let content = match none_if_absent(self.request(Kind::Directory, path, &[])) {
            Ok(content) => content.unwrap_or_default(),
            Err(error) if error.code() == Some(&Code::TooBig) => return self.many_children(path),
            Err(error) => return Err(error),
        };
        Ok(wire::strings(&content)?.into_iter().map(str::to_owned).collect())
    }

    /// Children in parts: from the beginning again whenever they change meanwhile.
    fn many_children(&self, path: &str) -> Result<Vec<String>, StoreError> {
        let error = |what| StoreError::Directory { path: path.to_owned(), what };
        let (mut names, mut generation, mut offset) = (Vec::new(), None::<String>, 0);
        for _ in 0..MAX_ATTEMPTS as usize * 1024 {
            let content = self.request(Kind::DirectoryPart, path, format!("{offset}\0").as_bytes())?;
            let part = wire::directory_part(&content)?;
            if generation.as_deref().is_some_and(|known| known != part.generation) {
                (generation, offset) = (None, 0);
                names.clear();
                continue;
            }
            generation = Some(part.generation.to_owned());
            offset += part.bytes;
            names.extend(part.names.iter().map(|&name| name.to_owned()));
            if names.len() > MAX_CHILDREN {
                return Err(error("there are more than 65536"));
            }
            if part.is_last {
                return Ok(names);
            }
        }
        Err(error("they change all the time"))
    }

    /// A node's permissions.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn permissions(&self, path: &str) -> Result<Vec<Permission>, StoreError> {
        Ok(wire::permissions(&self.request(Kind::GetPermissions, path, &[])?)?)
    }

    /// Sets a node's permissions. Only its owner (and dom0) may. xenstored allows an unprivileged domain five entries.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn set_permissions(&self, path: &str, permissions: &[Permission]) -> Result<(), StoreError> {
        let rest: String = permissions.iter().map(|entry| entry.encode() + "\0").collect();
        self.request(Kind::SetPermissions, path, rest.as_bytes()).map(drop)
    }
}

fn none_if_absent<T>(result: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.code() == Some(&Code::NoEntry) => Ok(None),
        Err(error) => Err(error),
    }
}
