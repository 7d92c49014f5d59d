//! Network namespaces, each with a TAP device, joined by an appliance under the real manager.

use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use conn_mgr::manager::{Manager, Options};
use conn_mgr::manifest::Manifest;

/// Bytes of the buffers that a TAP port keeps for the next frame, as the heap rounds them up.
const NEXT_FRAME: u64 = 2048 + 2 * 32_768;
/// Seconds that a program may take.
const LIMIT: &str = "60";
/// Longer than anything here takes.
pub const PATIENCE: Duration = Duration::from_secs(60);

fn output(words: &[&str], seconds: &str) -> Output {
    let found = Command::new("timeout").arg(seconds).args(words).stdin(Stdio::null()).output().unwrap();
    let said = || String::from_utf8_lossy(&found.stderr).into_owned();
    assert_ne!(found.status.code(), Some(127), "{words:?}: .ci/net installs what is missing: {}", said());
    assert_ne!(found.status.code(), Some(124), "{words:?} takes longer than {seconds} s: {}", said());
    found
}

/// Runs a program, which must succeed, and returns what it says.
pub fn run(words: &[&str]) -> String {
    run_for(words, LIMIT)
}

fn run_for(words: &[&str], seconds: &str) -> String {
    let found = output(words, seconds);
    let text = String::from_utf8_lossy(&found.stdout).into_owned() + &String::from_utf8_lossy(&found.stderr);
    assert!(found.status.success(), "{words:?} ends with {}: {text}", found.status);
    text
}

/// Runs a program, which must succeed, and returns what it says on its standard output.
pub fn said(words: &[&str]) -> String {
    let found = output(words, LIMIT);
    assert!(found.status.success(), "{words:?}: {}", String::from_utf8_lossy(&found.stderr));
    String::from_utf8_lossy(&found.stdout).into_owned()
}

/// A network namespace, removed with all that is in it.
pub struct Space {
    pub name: String,
    /// Its addresses end with this.
    pub number: u8,
}

impl Space {
    /// With a TAP device of that MTU, up, and with addresses 10.77.0.N and fd77::N.
    pub fn new(number: u8, mtu: usize) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("fido-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run(&["ip", "netns", "add", &name]);
        let space = Self { name, number };
        // Without duplicate address detection IPv6 addresses are there at once.
        space.run(&[
            "sysctl",
            "-qw",
            "net.ipv6.conf.default.accept_dad=0",
            "net.ipv6.conf.default.router_solicitations=0",
        ]);
        space.run(&["ip", "link", "set", "lo", "up"]);
        space.run(&["ip", "tuntap", "add", "dev", "tap0", "mode", "tap", "vnet_hdr"]);
        space.run(&["ip", "link", "set", "tap0", "mtu", &mtu.to_string(), "up"]);
        space.run(&["ip", "addr", "add", &format!("10.77.0.{number}/24"), "dev", "tap0"]);
        space.run(&["ip", "addr", "add", &format!("fd77::{number}/64"), "dev", "tap0", "nodad"]);
        space
    }

    pub fn v4(&self) -> String {
        format!("10.77.0.{}", self.number)
    }

    pub fn v6(&self) -> String {
        format!("fd77::{}", self.number)
    }

    fn inside<'a>(&'a self, words: &[&'a str]) -> Vec<&'a str> {
        [&["ip", "netns", "exec", &*self.name], words].concat()
    }

    /// Runs a program in it, which must succeed.
    pub fn run(&self, words: &[&str]) -> String {
        run(&self.inside(words))
    }

    /// The same for one that may take so many seconds.
    pub fn run_for(&self, words: &[&str], seconds: usize) -> String {
        run_for(&self.inside(words), &seconds.to_string())
    }

    /// Runs a program in it, which must not succeed.
    pub fn fails(&self, words: &[&str]) {
        let found = output(&self.inside(words), LIMIT);
        assert!(!found.status.success(), "{words:?} succeeds");
    }

    /// Starts a program in it, which goes on until its value is dropped.
    pub fn start(&self, words: &[&str]) -> Running {
        let all = self.inside(words);
        let started = Command::new(all[0]).args(&all[1..]).stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        Running(started.unwrap())
    }

    /// Waits until something listens on a TCP port in it.
    pub fn wait_for_port(&self, port: u16) {
        let deadline = Instant::now() + PATIENCE;
        while !self.run(&["ss", "-Hltn", &format!("sport = :{port}")]).contains("LISTEN") {
            assert!(Instant::now() < deadline, "nobody listens on {port}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What a domain of the manifest needs to run the TAP component in it.
    pub fn domain(&self, name: &str) -> String {
        self.domain_with(name, "")
    }

    /// The same with further settings.
    pub fn domain_with(&self, name: &str, settings: &str) -> String {
        format!(
            r#"
            [domain.{name}]
            program = "/bin/ip"
            args = ["netns", "exec", "{}", "{}"]
            arena = "64MiB"
            restart-delay = "1ms"
            restart-limit = 1000
            params.device = "tap0"
            {settings}
            "#,
            self.name,
            env!("CARGO_BIN_EXE_mmnet-tap"),
        )
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// A program that goes on until its value is dropped.
pub struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An appliance, ready.
pub struct Appliance {
    pub manager: Manager,
    _folder: tempfile::TempDir,
}

impl Appliance {
    pub fn start(domains: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let text = format!("appliance = \"test\"\n{domains}");
        let manifest = Manifest::parse(&text, "test").unwrap_or_else(|error| panic!("{error}\n{text}"));
        let options = Options { runtime_dir: Some(folder.path().into()), ..Options::default() };
        let manager = Manager::start(manifest, options).unwrap();
        manager.wait_ready(PATIENCE).unwrap_or_else(|error| panic!("{error}: {:#?}", manager.status()));
        Self { manager, _folder: folder }
    }

    /// Kills a domain and waits until its successor serves.
    pub fn kill(&self, name: &str) {
        let before = self.manager.status().domain(name).unwrap().generation;
        self.manager.kill(name).unwrap();
        let serves = self.manager.wait_until(PATIENCE, |status| {
            status.domain(name).is_some_and(|domain| {
                domain.generation > before && domain.state == conn_mgr::manager::DomainState::Ready
            })
        });
        assert!(serves, "{:#?}", self.manager.status());
    }

    /// Waits until a domain says that no more of its heap is in use than for the next frame.
    pub fn wait_for_buffers(&self, name: &str) {
        let free = self.manager.wait_until(PATIENCE, |status| {
            let used = status.domain(name).and_then(|domain| domain.notes.get("heap")?.parse::<u64>().ok());
            used.is_some_and(|used| used <= NEXT_FRAME)
        });
        assert!(free, "{name} has lent buffers that do not come back: {:#?}", self.manager.status());
    }

    pub fn end(self) {
        self.manager.shutdown(PATIENCE).unwrap();
    }
}
