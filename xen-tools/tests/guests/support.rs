//! What the tests of this tier share.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use xen_tools::vm::Kit;

/// How long a server may take to open its socket.
const PATIENCE: Duration = Duration::from_secs(20);

/// Packages, unpacked.
pub fn kit() -> Kit {
    Kit::prepare().unwrap_or_else(|error| panic!("no guests ({error}); .ci/guests installs what they need"))
}

/// A program of this workspace, which `.ci/guests` builds.
pub fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let program = own.parent().and_then(|deps| deps.parent()).unwrap().join(name);
    assert!(program.is_file(), "{} is missing: cargo build -p mmblk --bins (.ci/guests does)", program.display());
    program
}

/// A server that is killed when dropped.
pub struct Server(Child);

impl Server {
    /// Starts a program and waits until `socket` is there.
    pub fn start(command: &mut Command, socket: &std::path::Path) -> Self {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let mut server = Self(child);
        let began = Instant::now();
        while std::os::unix::net::UnixStream::connect(socket).is_err() {
            assert!(server.0.try_wait().unwrap().is_none(), "{command:?} has ended");
            assert!(began.elapsed() < PATIENCE, "{command:?} does not open {}", socket.display());
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }

    /// Sends it SIGHUP.
    pub fn hang_up(&self) {
        let process = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw).unwrap();
        rustix::process::kill_process(process, rustix::process::Signal::HUP).unwrap();
    }

    /// Kills it with SIGKILL.
    pub fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
