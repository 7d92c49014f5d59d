//! A small xenstored within the process, for tests of what talks to one: nodes with owners and permissions, watches,
//! transactions, long directories. The real one is used in the Xen testbed.
//!
//! It panics where the system refuses what a test cannot do without. It has no quotas.

#![expect(clippy::expect_used, reason = "a test cannot go on without what it asks for")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Store;
use super::wire::{self, Access, Decoder, Kind, MAX_PAYLOAD_BYTES, Packet, Permission};

/// The store itself. Clones are the same one.
#[derive(Debug, Clone)]
pub struct FakeStore(Arc<Mutex<Shared>>);

#[derive(Debug, Clone)]
struct Node {
    value: Vec<u8>,
    permissions: Vec<Permission>,
}

type Tree = BTreeMap<String, Node>;

#[derive(Debug, Default)]
struct Shared {
    tree: Tree,
    /// Rises with every change.
    generation: u64,
    watches: Vec<Watch>,
    connections: Vec<UnixStream>,
    transactions: BTreeMap<u32, Transaction>,
    last_transaction: u32,
}

#[derive(Debug)]
struct Watch {
    connection: usize,
    domain: u16,
    /// As the client wrote it.
    path: String,
    absolute: String,
    token: String,
}

#[derive(Debug)]
struct Transaction {
    connection: usize,
    /// When it began.
    generation: u64,
    tree: Tree,
    changed: Vec<String>,
}

/// Names of errors, as they travel.
type Refusal = &'static str;

fn home(domain: u16) -> String {
    format!("/local/domain/{domain}")
}

fn parent(path: &str) -> &str {
    match path.rfind('/') {
        Some(0) | None => "/",
        Some(at) => &path[..at],
    }
}

fn is_below(path: &str, above: &str) -> bool {
    path == above || above == "/" || path.strip_prefix(above).is_some_and(|rest| rest.starts_with('/'))
}

impl Default for FakeStore {
    fn default() -> Self {
        let mut shared = Shared::default();
        let permissions = vec![Permission { domain: 0, access: Access::Read }];
        for path in ["/", "/local", "/local/domain"] {
            shared.tree.insert(path.into(), Node { value: Vec::new(), permissions: permissions.clone() });
        }
        Self(Arc::new(Mutex::new(shared)))
    }
}

impl FakeStore {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the nodes that a toolstack makes for a new domain: its home, which it may read, and in it `data`, which
    /// belongs to it.
    pub fn add_domain(&self, domain: u16) {
        let mut shared = self.lock();
        let home = home(domain);
        let readable =
            vec![Permission { domain: 0, access: Access::None }, Permission { domain, access: Access::Read }];
        let own = vec![Permission { domain, access: Access::None }];
        shared.tree.insert(format!("{home}/data"), Node { value: Vec::new(), permissions: own });
        shared.tree.insert(home.clone(), Node { value: Vec::new(), permissions: readable });
        shared.changed(&home);
    }

    /// What xenstored does when a domain is gone: nodes that it owned are removed, and so is its home.
    pub fn remove_domain(&self, domain: u16) {
        let mut shared = self.lock();
        let home = home(domain);
        let is_gone = |path: &str, node: &Node| is_below(path, &home) || node.permissions[0].domain == domain;
        let gone: Vec<_> =
            shared.tree.iter().filter(|(path, node)| is_gone(path, node)).map(|(path, _)| path.clone()).collect();
        for path in &gone {
            shared.tree.remove(path);
        }
        gone.iter().for_each(|path| shared.changed(path));
        shared.changed("@releaseDomain");
    }

    /// What xenstored says when a domain has shut itself down or crashed and is still there.
    pub fn announce_release(&self) {
        self.lock().changed("@releaseDomain");
    }

    /// A client's connection as that domain; 0 is privileged.
    ///
    /// # Panics
    /// If the system has no socket or thread left.
    pub fn connect(&self, domain: u16) -> Store {
        let (client, server) = UnixStream::pair().expect("a pair of sockets");
        let writer = server.try_clone().expect("a descriptor");
        let connection = {
            let mut shared = self.lock();
            shared.connections.push(writer);
            shared.connections.len() - 1
        };
        let fake = self.clone();
        std::thread::spawn(move || fake.serve(server, connection, domain));
        Store::over(client.into(), Duration::from_secs(20)).expect("a connection")
    }

    /// Ends all connections, as the death of xenstored does.
    pub fn die(&self) {
        for connection in &self.lock().connections {
            // A client that has gone before is as good.
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
    }

    fn serve(&self, mut socket: UnixStream, connection: usize, domain: u16) {
        let (mut decoder, mut bytes) = (Decoder::default(), [0; 8192]);
        loop {
            while let Ok(Some(request)) = decoder.take() {
                self.lock().answer(connection, domain, &request);
            }
            match socket.read(&mut bytes) {
                Ok(count) if count > 0 => decoder.push(&bytes[..count]),
                _ => break,
            }
        }
        let mut shared = self.lock();
        shared.watches.retain(|watch| watch.connection != connection);
        shared.transactions.retain(|_, transaction| transaction.connection != connection);
    }
}

impl Shared {
    fn send(&mut self, connection: usize, packet: &Packet) {
        let bytes = packet.encode().expect("within the limit");
        // A client that is gone reads no replies.
        let _ = self.connections[connection].write_all(&bytes);
    }

    fn answer(&mut self, connection: usize, domain: u16, request: &Packet) {
        let (kind, content) = match self.carry_out(connection, domain, request) {
            Ok(content) if content.len() <= MAX_PAYLOAD_BYTES => (request.kind, content),
            Ok(_) => (Kind::Error, b"E2BIG\0".to_vec()),
            Err(refusal) => (Kind::Error, format!("{refusal}\0").into_bytes()),
        };
        self.send(connection, &Packet { kind, content, ..*request });
        if request.kind == Kind::Watch && kind == Kind::Watch {
            let watch = self.watches.last().expect("just added");
            let content = format!("{}\0{}\0", watch.path, watch.token).into_bytes();
            self.send(connection, &Packet { kind: Kind::WatchEvent, request: 0, transaction: 0, content });
        }
    }

    fn carry_out(&mut self, connection: usize, domain: u16, request: &Packet) -> Result<Vec<u8>, Refusal> {
        let at = request.content.iter().position(|&byte| byte == 0).ok_or("EINVAL")?;
        let first = std::str::from_utf8(&request.content[..at]).map_err(|_| "EINVAL")?;
        let rest = &request.content[at + 1..];
        let path = if first.starts_with(['/', '@']) { first.to_owned() } else { format!("{}/{first}", home(domain)) };
        let ok = b"OK\0".to_vec();
        match request.kind {
            Kind::GetDomainPath => {
                return Ok(format!("{}\0", home(first.parse().map_err(|_| "EINVAL")?)).into_bytes());
            }
            Kind::TransactionStart => return self.begin(connection),
            Kind::TransactionEnd => {
                return self.end(request.transaction, connection, first == "T").map(|()| ok);
            }
            Kind::Watch => {
                let token = wire::string(rest).map_err(|_| "EINVAL")?.to_owned();
                let same = |w: &Watch| w.connection == connection && w.absolute == path && w.token == token;
                if self.watches.iter().any(same) {
                    return Err("EEXIST");
                }
                let watch = Watch { connection, domain, path: first.to_owned(), absolute: path, token };
                self.watches.push(watch);
                return Ok(ok);
            }
            Kind::Unwatch => {
                let token = wire::string(rest).map_err(|_| "EINVAL")?;
                let before = self.watches.len();
                self.watches.retain(|w| w.connection != connection || w.absolute != path || w.token != token);
                return if self.watches.len() < before { Ok(ok) } else { Err("ENOENT") };
            }
            _ => wire::check_path(first).map_err(|_| "EINVAL")?,
        }
        let generation = self.generation;
        let mut changed = Vec::new();
        let tree = match request.transaction {
            0 => &mut self.tree,
            number => &mut self.transactions.get_mut(&number).ok_or("ENOENT")?.tree,
        };
        let result = operate(tree, &mut changed, domain, request.kind, &path, rest, generation);
        match self.transactions.get_mut(&request.transaction) {
            Some(transaction) => transaction.changed.append(&mut changed),
            None => changed.iter().for_each(|path| self.changed(path)),
        }
        result
    }

    fn begin(&mut self, connection: usize) -> Result<Vec<u8>, Refusal> {
        self.last_transaction += 1;
        let (generation, tree) = (self.generation, self.tree.clone());
        let transaction = Transaction { connection, generation, tree, changed: Vec::new() };
        self.transactions.insert(self.last_transaction, transaction);
        Ok(format!("{}\0", self.last_transaction).into_bytes())
    }

    fn end(&mut self, number: u32, connection: usize, commit: bool) -> Result<(), Refusal> {
        let transaction = self.transactions.remove(&number).filter(|t| t.connection == connection).ok_or("ENOENT")?;
        if !commit {
            return Ok(());
        }
        if transaction.generation != self.generation {
            return Err("EAGAIN");
        }
        self.tree = transaction.tree;
        transaction.changed.iter().for_each(|path| self.changed(path));
        Ok(())
    }

    /// Tells the watches above a node and, because it may have been removed, those below.
    fn changed(&mut self, path: &str) {
        self.generation += 1;
        let mut events = Vec::new();
        for watch in &self.watches {
            if !is_below(path, &watch.absolute) {
                continue;
            }
            let home = home(watch.domain) + "/";
            let told = if watch.path.starts_with('/') { path } else { path.strip_prefix(&home).unwrap_or(path) };
            events.push((watch.connection, format!("{told}\0{}\0", watch.token).into_bytes()));
        }
        for (connection, content) in events {
            self.send(connection, &Packet { kind: Kind::WatchEvent, request: 0, transaction: 0, content });
        }
    }
}

fn may(node: &Node, domain: u16, check: fn(Access) -> bool) -> bool {
    let owner = node.permissions[0];
    let own = node.permissions[1..].iter().find(|entry| entry.domain == domain);
    domain == 0 || owner.domain == domain || check(own.map_or(owner.access, |entry| entry.access))
}

fn look<'t>(tree: &'t Tree, domain: u16, path: &str) -> Result<&'t Node, Refusal> {
    let node = tree.get(path).ok_or("ENOENT")?;
    if may(node, domain, Access::may_read) { Ok(node) } else { Err("EACCES") }
}

fn list(tree: &Tree, path: &str) -> Vec<u8> {
    let below = if path == "/" { "/".to_owned() } else { format!("{path}/") };
    let names = tree.keys().filter_map(|key| key.strip_prefix(&below));
    names
        .filter(|name| !name.is_empty() && !name.contains('/'))
        .flat_map(|name| format!("{name}\0").into_bytes())
        .collect()
}

fn operate(
    tree: &mut Tree,
    changed: &mut Vec<String>,
    domain: u16,
    kind: Kind,
    path: &str,
    rest: &[u8],
    generation: u64,
) -> Result<Vec<u8>, Refusal> {
    match kind {
        Kind::Read => return Ok(look(tree, domain, path)?.value.clone()),
        Kind::Directory => return look(tree, domain, path).map(|_| list(tree, path)),
        Kind::DirectoryPart => {
            look(tree, domain, path)?;
            let offset = wire::number(rest).map_err(|_| "EINVAL")? as usize;
            return Ok(part(&list(tree, path), offset, generation));
        }
        Kind::GetPermissions => {
            let entries = look(tree, domain, path)?.permissions.iter();
            return Ok(entries.flat_map(|entry| (entry.encode() + "\0").into_bytes()).collect());
        }
        Kind::Write | Kind::MakeDirectory => create(tree, changed, domain, path)?,
        Kind::Remove | Kind::SetPermissions => {}
        _ => return Err("ENOSYS"),
    }
    let node = tree.get_mut(path).ok_or("ENOENT")?;
    if !may(node, domain, Access::may_write) {
        return Err("EACCES");
    }
    match kind {
        Kind::Write => node.value = rest.to_vec(),
        Kind::SetPermissions if domain == 0 || node.permissions[0].domain == domain => {
            node.permissions = wire::permissions(rest).map_err(|_| "EINVAL")?;
        }
        Kind::SetPermissions => return Err("EACCES"),
        Kind::Remove => tree.retain(|key, _| !is_below(key, path)),
        _ => return Ok(b"OK\0".to_vec()),
    }
    changed.push(path.to_owned());
    Ok(b"OK\0".to_vec())
}

/// Creates a node and those above it, as their parent lets; they belong to who creates them.
fn create(tree: &mut Tree, changed: &mut Vec<String>, domain: u16, path: &str) -> Result<(), Refusal> {
    let mut missing = Vec::new();
    let mut at = path;
    while !tree.contains_key(at) {
        missing.push(at.to_owned());
        at = parent(at);
    }
    let above = &tree[at];
    if !missing.is_empty() && !may(above, domain, Access::may_write) {
        return Err("EACCES");
    }
    let mut permissions = above.permissions.clone();
    if domain != 0 {
        permissions[0].domain = domain;
    }
    for path in missing.into_iter().rev() {
        tree.insert(path.clone(), Node { value: Vec::new(), permissions: permissions.clone() });
        changed.push(path);
    }
    Ok(())
}

/// The names from `offset` on, as many as fit into a packet.
fn part(children: &[u8], offset: usize, generation: u64) -> Vec<u8> {
    let mut content = format!("{generation}\0").into_bytes();
    let left = children.get(offset..).unwrap_or_default();
    let room = MAX_PAYLOAD_BYTES - content.len() - 1;
    let mut len = 0;
    for name in left.split_inclusive(|&byte| byte == 0) {
        if len + name.len() > room {
            break;
        }
        len += name.len();
    }
    content.extend_from_slice(&left[..len]);
    if len == left.len() {
        content.push(0);
    }
    content
}
