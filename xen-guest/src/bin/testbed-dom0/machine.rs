//! dom0: its file systems, daemons, guests and logs.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use fido_core::platform::xen::store::Store;
use xen_guest::boot;
use xen_guest::grants::{self, Table};
use xen_guest::report::Kind;

use crate::guest::Guest;
use crate::process::Process;
use crate::{Failure, Reporter};

/// Where the toolstack's programs are.
pub const TOOLS: &str = "/usr/lib/xen-4.17/bin";
const LOGS: &str = "/var/log/xen";
/// Where the guests' consoles are logged.
pub const CONSOLES: &str = "/var/log/xen/console";

/// How long a daemon may take to answer. Emulation on a busy machine is slow; a hang is caught by the host.
const DAEMON_LIMIT: Duration = Duration::from_secs(60);

/// How long one command of the toolstack may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// dom0 with its toolstack up.
pub struct Machine {
    /// Guests are PVH and not PV.
    pub pvh: bool,
    guests: Vec<Guest>,
    processors: u32,
    store: Child,
    _console: Child,
    is_store_gone: bool,
}

/// Mounts what a process needs before it can report.
pub fn mount_all() -> Result<(), Failure> {
    let all = [
        ("devtmpfs", "/dev"),
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("tmpfs", "/run"),
        ("tmpfs", "/tmp"),
        ("devpts", "/dev/pts"),
    ];
    for (kind, folder) in all {
        boot::mount(kind, folder).map_err(|error| error.to_string())?;
    }
    for folder in ["/run/xen", "/run/xenstored", "/run/lock", "/var/lib/xen", "/var/lib/xenstored", CONSOLES] {
        fs::create_dir_all(folder).map_err(|error| format!("{folder}: {error}"))?;
    }
    Ok(())
}

/// What the connection manager logs goes to a file.
pub fn log_to_file() -> Result<(), Failure> {
    let path = format!("{LOGS}/manager.log");
    let file = log(&path)?;
    tracing_subscriber::fmt().with_ansi(false).with_writer(file).init();
    Ok(())
}

impl Machine {
    /// Loads modules and starts the toolstack's daemons.
    pub fn start(pvh: bool) -> Result<Self, Failure> {
        boot::load_modules().map_err(|error| error.to_string())?;
        boot::mount("xenfs", "/proc/xen").map_err(|error| error.to_string())?;
        let store = daemon("xenstored", &["--no-fork", "--internal-db"])?;
        wait_for("xenstored", || Path::new("/run/xenstored/socket").exists())?;
        command(&format!("{TOOLS}/xen-init-dom0"), &[])?;
        let console = daemon("xenconsoled", &["--interactive", "--log=guest", &format!("--log-dir={CONSOLES}")])?;
        let processors = processors(&xl(&["info"])?).ok_or("xl info does not say how many processors there are")?;
        Ok(Self { pvh, guests: Vec::new(), processors, store, _console: console, is_store_gone: false })
    }

    /// Seconds since dom0's kernel began.
    pub fn uptime(&self) -> f64 {
        let text = fs::read_to_string("/proc/uptime").unwrap_or_default();
        text.split(' ').next().and_then(|seconds| seconds.parse().ok()).unwrap_or_default()
    }

    /// Creates a guest that runs `testbed-guest` with these arguments on a processor of its own.
    pub fn create(&mut self, name: &str, memory: u32, cpu: u32, arguments: &[&str]) -> Result<Guest, Failure> {
        self.create_with(name, memory, cpu, arguments, "")
    }

    /// As [`Machine::create`], with more lines for the guest's xl configuration.
    pub fn create_with(
        &mut self,
        name: &str,
        memory: u32,
        cpu: u32,
        arguments: &[&str],
        more: &str,
    ) -> Result<Guest, Failure> {
        let config = format!("/run/xen/{name}.cfg");
        let kind = if self.pvh { "type = \"pvh\"\ntsc_mode = \"native\"" } else { "type = \"pv\"" };
        // A guest that has ended stays until the scenario has read what it left in xenstore.
        let text = format!(
            "name = \"{name}\"\n{kind}\nkernel = \"/guest/vmlinux\"\nramdisk = \"/guest/image.cpio\"\n\
             memory = {memory}\nvcpus = 1\ncpus = \"{cpu}\"\nextra = \"console=hvc0 quiet panic=1 -- {}\"\n\
             on_poweroff = \"preserve\"\non_crash = \"preserve\"\non_reboot = \"preserve\"\n{more}",
            arguments.join(" ")
        );
        fs::write(&config, text).map_err(|error| format!("{config}: {error}"))?;
        xl(&["create", "-q", &config])?;
        let id = xl(&["domid", name])?.trim().parse().map_err(|_| format!("xl gives no number to guest {name}"))?;
        let guest = Guest { name: name.to_owned(), id };
        self.guests.push(guest.clone());
        Ok(guest)
    }

    /// The hypervisor's account of all grants in use, after what its log has had so far.
    pub fn grants(&self) -> Result<Vec<Table>, Failure> {
        xl(&["debug-keys", "g"])?;
        let log = xl(&["dmesg"])?;
        grants::parse(&log).ok_or_else(|| "Xen's dump of the grant tables is not complete".to_owned())
    }

    /// The processors of the machine. dom0 has the first.
    pub fn processors(&self) -> u32 {
        self.processors
    }

    /// Whether Xen knows a domain with that number, dead or alive.
    pub fn is_listed(&self, id: u32) -> Result<bool, Failure> {
        let list = xl(&["list"])?;
        Ok(list.lines().skip(1).any(|line| line.split_whitespace().nth(1) == Some(id.to_string().as_str())))
    }

    /// Kills xenstored, as a fault of it would. No guest can be created or destroyed any more.
    pub fn kill_store(&mut self) -> Result<(), Failure> {
        self.is_store_gone = true;
        let killed = self.store.kill().and_then(|()| self.store.wait());
        killed.map(drop).map_err(|error| format!("xenstored cannot be killed: {error}"))
    }

    /// Destroys what guests are left, so that the next scenario finds an empty machine. Nothing may be left of them: no
    /// domain that somebody's mappings keep from ending, and no grant in use. Without xenstored there is no way to do so.
    pub fn clean_up(&mut self) -> Result<(), Failure> {
        if self.is_store_gone {
            return Ok(());
        }
        for guest in std::mem::take(&mut self.guests) {
            // A scenario may have done it already.
            if self.is_listed(guest.id)? {
                xl(&["destroy", &guest.id.to_string()])?;
            }
        }
        let left = || xl(&["list"]).map(|list| list.lines().skip(2).map(str::to_owned).collect::<Vec<_>>());
        let began = Instant::now();
        while !left()?.is_empty() {
            if began.elapsed() > COMMAND_LIMIT {
                return Err(format!("guests stay after `xl destroy`:\n{}", left()?.join("\n")));
            }
            sleep(Duration::from_millis(100));
        }
        let left: Vec<_> = self.grants()?.into_iter().filter(|table| table.domain != 0 || table.active > 0).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("grants are left in the hypervisor: {left:?}")) }
    }
}

/// Sends the logs of the toolstack and the guests, and empties them: who writes them goes on doing so.
pub fn send_logs(reporter: &mut Reporter, scenario: &str) -> Result<(), Failure> {
    let prefix = if scenario.is_empty() { String::new() } else { format!("{scenario}-") };
    for folder in [CONSOLES, LOGS] {
        let Ok(files) = fs::read_dir(folder) else { continue };
        for path in files.flatten().map(|entry| entry.path()).filter(|path| path.is_file()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let wrong = |error| format!("{}: {error}", path.display());
            let body = fs::read(&path).map_err(wrong)?;
            if !body.is_empty() {
                reporter.send(Kind::File, &format!("{prefix}{name}"), &body)?;
                fs::OpenOptions::new().write(true).truncate(true).open(&path).map_err(wrong)?;
            }
        }
    }
    let dmesg = xl(&["dmesg", "-c"]).unwrap_or_else(|failure| failure);
    reporter.send(Kind::File, &format!("{prefix}xen.log"), dmesg.as_bytes())
}

fn processors(info: &str) -> Option<u32> {
    let line = info.lines().find(|line| line.starts_with("nr_cpus"))?;
    line.split(':').nth(1)?.trim().parse().ok()
}

/// Runs `xl`; the error has what it wrote.
pub fn xl(arguments: &[&str]) -> Result<String, Failure> {
    command(&format!("{TOOLS}/xl"), arguments)
}

/// Adds what xenstore has and what dom0's kernel has said to the logs, for who has to find out why something hangs.
pub fn note_state() {
    for (name, program, arguments) in
        [("xenstore", "/usr/bin/xenstore-ls", &["-f"][..]), ("dmesg", "/bin/busybox", &["dmesg"])]
    {
        let text = command(program, arguments).unwrap_or_else(|failure| failure);
        // It is a help, and no more.
        let _ = fs::write(format!("{LOGS}/{name}.log"), text);
    }
}

/// A node of xenstore, `None` if it does not exist.
pub fn read_node(path: &str) -> Result<Option<String>, Failure> {
    let value = Store::connect().and_then(|store| store.now().read_if_any(path)).map_err(|error| error.to_string())?;
    Ok(value.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

/// A log that can be emptied while it is written.
fn log(path: &str) -> Result<fs::File, Failure> {
    let file = fs::OpenOptions::new().create(true).append(true).open(path);
    file.map_err(|error| format!("{path}: {error}"))
}

fn daemon(name: &str, arguments: &[&str]) -> Result<Child, Failure> {
    let path = format!("{LOGS}/{name}.log");
    let file = log(&path)?;
    let other = file.try_clone().map_err(|error| format!("{path}: {error}"))?;
    let mut command = Command::new(format!("{TOOLS}/{name}"));
    command.args(arguments).stdin(Stdio::null()).stdout(file).stderr(other);
    command.spawn().map_err(|error| format!("{name}: {error}"))
}

fn wait_for(what: &str, ready: impl Fn() -> bool) -> Result<(), Failure> {
    let began = Instant::now();
    while !ready() {
        if began.elapsed() > DAEMON_LIMIT {
            return Err(format!("{what} does not come up within {} s", DAEMON_LIMIT.as_secs()));
        }
        sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Runs a command to its end, within [`COMMAND_LIMIT`]; what it wrote.
pub fn command(program: &str, arguments: &[&str]) -> Result<String, Failure> {
    Process::start(Command::new(program).args(arguments), "/run/command.out")?.succeed(COMMAND_LIMIT)
}
