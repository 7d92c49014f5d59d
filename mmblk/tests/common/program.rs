//! Programs of others, each with a limit on its time.

#![allow(dead_code, reason = "each test file uses its part")]

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Seconds that a program may take.
const LIMIT: &str = "60";

fn output(program: &str, args: &[&str]) -> Output {
    let found = Command::new("timeout").arg(LIMIT).arg(program).args(args).output().unwrap();
    assert_ne!(found.status.code(), Some(127), "{program} is missing: .ci/blk installs its Debian package");
    assert_ne!(found.status.code(), Some(124), "{program} {args:?} takes longer than {LIMIT} s");
    found
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Runs it, which must succeed, and returns what it says.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = output(program, args);
    assert!(output.status.success(), "{program} {args:?} ends with {}: {}", output.status, said(&output));
    said(&output)
}

/// Runs it, which must not succeed, and returns what it says.
pub fn fails(program: &str, args: &[&str]) -> String {
    let output = output(program, args);
    assert!(!output.status.success(), "{program} {args:?} succeeds: {}", said(&output));
    said(&output)
}

/// A program that goes on until its value is dropped.
pub struct Running(Child);

/// Starts a server.
pub fn start(program: &str, args: &[&str]) -> Running {
    let started = Command::new(program).args(args).stdin(Stdio::null()).stderr(Stdio::null()).spawn();
    Running(started.unwrap_or_else(|_| panic!("{program} is missing: .ci/blk installs its Debian package")))
}

impl Running {
    /// Waits until somebody answers at a Unix socket.
    pub fn wait_for(&self, socket: &Path) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::os::unix::net::UnixStream::connect(socket).is_err() {
            assert!(Instant::now() < deadline, "nobody listens at {}", socket.display());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
