//! Other people's programs, run with a limit: libnfs retries for ever where there is no server.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::server::Url;

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status; `None` if it had to be ended because its time was over.
    pub status: Option<ExitStatus>,
    /// Standard output and standard error.
    pub text: String,
}

impl Ended {
    /// Whether it ended by itself and found nothing wrong.
    pub fn is_success(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// The text, if all went well.
    ///
    /// # Panics
    /// If it did not.
    pub fn expect_success(self, what: &str) -> String {
        assert!(self.is_success(), "{what}: {:?}\n{}", self.status, self.text);
        self.text
    }
}

/// Ends the program when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    output: tempfile::NamedTempFile,
}

impl Running {
    /// Starts a program whose output goes to a file.
    pub fn start(command: &mut Command) -> Self {
        let output = tempfile::NamedTempFile::new().expect("a file for the output");
        let append = || File::options().append(true).open(output.path()).expect("the file for the output");
        command.stdin(Stdio::null()).stdout(append()).stderr(append());
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        Self { child, output }
    }

    /// Whether it is still running.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_none())
    }

    /// Waits for its end, `limit` at most; then ends it.
    pub fn wait(mut self, limit: Duration) -> Ended {
        let began = Instant::now();
        while self.is_running() && began.elapsed() < limit {
            std::thread::sleep(Duration::from_millis(2));
        }
        let status = self.child.try_wait().ok().flatten();
        let text = std::fs::read(self.output.path()).expect("the output");
        Ended { status, text: String::from_utf8_lossy(&text).into_owned() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // An error says that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How long one call of a client may take while the server is well.
pub const CALL_LIMIT: Duration = Duration::from_secs(120);

/// `nfs-cp FROM TO`, started.
pub fn start_copy(from: &str, to: &str) -> Running {
    Running::start(Command::new("nfs-cp").args([from, to]))
}

/// `nfs-cp` of a local file to the server.
pub fn copy_in(file: &Path, url: &Url, path: &str) -> Ended {
    start_copy(local(file), &url.of(path)).wait(CALL_LIMIT)
}

/// `nfs-cp` from the server to a local file, which must not exist.
pub fn copy_out(url: &Url, path: &str, file: &Path) -> Ended {
    start_copy(&url.of(path), local(file)).wait(CALL_LIMIT)
}

/// `nfs-cat` of a file on the server, into a local file.
pub fn cat(url: &Url, path: &str, into: &Path) -> bool {
    let out = File::create(into).expect("a local file");
    let mut child = Command::new("nfs-cat")
        .arg(url.of(path))
        .stdin(Stdio::null())
        .stdout(out)
        .spawn()
        .expect("nfs-cat of libnfs-utils");
    let began = Instant::now();
    loop {
        match child.try_wait().expect("a child") {
            Some(status) => return status.success(),
            None if began.elapsed() > CALL_LIMIT => break,
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    false
}

/// One line of `nfs-ls`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Type and permissions, like `-rw-r-----`.
    pub mode: String,
    /// Length in bytes.
    pub size: u64,
    /// The path from the listed directory on.
    pub path: String,
}

/// `nfs-ls -R` of a directory; `None` if it failed or took longer than `limit`.
pub fn try_list(url: &Url, dir: &str, limit: Duration) -> Option<Vec<Entry>> {
    let ended = Running::start(Command::new("nfs-ls").arg("-R").arg(url.of(dir))).wait(limit);
    if !ended.is_success() || ended.text.contains("Failed") {
        return None;
    }
    ended.text.lines().map(entry).collect()
}

/// `nfs-ls -R` of a directory.
///
/// # Panics
/// If it fails.
pub fn list(url: &Url, dir: &str) -> Vec<Entry> {
    try_list(url, dir, CALL_LIMIT).unwrap_or_else(|| panic!("nfs-ls -R of {dir} failed"))
}

/// `-rw-r-----  1     0     0         1234 a/b`
fn entry(line: &str) -> Option<Entry> {
    let mut words = line.split_whitespace();
    let mode = words.next()?.to_owned();
    let size = words.nth(3)?.parse().ok()?;
    Some(Entry { mode, size, path: words.next()?.to_owned() })
}

fn local(path: &Path) -> &str {
    path.to_str().expect("a temporary path of plain letters")
}
