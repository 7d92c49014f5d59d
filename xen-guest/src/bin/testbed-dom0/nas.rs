//! The NAS with its net, fs and disk each in a guest of its own, run by `fidod` and served to a client that is not ours:
//! libnfs's `nfs-cp`, here in dom0, over netfront and netback. Its volume is a disk that dom0 gives to the disk's guest.

use std::fs;
use std::net::TcpStream;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use xen_guest::report::Kind;

use crate::fidod::{self, Fidod};
use crate::machine::{self, Machine, xl};
use crate::process::Process;
use crate::{Failure, Reporter};

/// Where the NAS serves.
const SERVER: &str = "10.0.0.2";
/// The port of NFS and MOUNT.
const PORT: u16 = 2049;
/// How long the three guests may take until they serve, or serve again.
pub const READY_LIMIT: Duration = Duration::from_secs(240);
/// How long a copy may take, also one in whose middle a guest is destroyed. TCP doubles its pauses while nobody answers.
const COPY_LIMIT: Duration = Duration::from_secs(180);
/// The length of a file that is copied, in bytes: not a multiple of anything.
pub const FILE_BYTES: usize = (8 << 20) + 12_345;
/// So much of it is under way when a guest is destroyed.
const MIDDLE: u64 = 1 << 20;
/// The volume, as a file in dom0 and as the device that the guest gets.
const DISK_FILE: &str = "/run/nas-disk.img";
const DISK_BYTES: u64 = 96 << 20;
const DISK_DEVICE: &str = "/dev/loop0";
/// The file in dom0, and where one comes back to.
pub const IN: &str = "/tmp/in";
const OUT: &str = "/tmp/out";

/// Copies files in and out; destroys each guest in the middle of a copy; kills the manager and starts it again.
pub fn run(machine: &Machine, reporter: &mut Reporter) -> Result<String, Failure> {
    let disk = Disk::attach()?;
    let manifest = manifest(machine);
    let mut note = |text: String| reporter.send(Kind::Note, "nas", text.as_bytes());
    let mut manager = Fidod::start("nas", "nas", &manifest)?;
    manager.wait_ready(READY_LIMIT)?;
    note("three guests serve under fidod".to_owned())?;
    refuses_a_second(&manifest)?;
    let bytes = noise(FILE_BYTES);
    fs::write(IN, &bytes).map_err(|error| format!("{IN}: {error}"))?;
    let began = Instant::now();
    copy(IN, &url("file"))?;
    note(format!("{FILE_BYTES} bytes copied in within {:.1} s", began.elapsed().as_secs_f64()))?;
    same("file", &bytes)?;
    note("copied out again, the same".to_owned())?;
    for domain in ["disk", "net", "fs"] {
        let seconds = destroy(&mut manager, domain)?;
        same(&format!("during-{domain}"), &bytes)?;
        note(format!("{domain} destroyed in the middle of a copy, which ended {seconds:.1} s later, the same"))?;
    }
    manager.kill()?;
    let began = Instant::now();
    let mut manager = Fidod::start("nas-again", "nas", &manifest)?;
    manager.wait_ready(READY_LIMIT)?;
    reach()?;
    let seconds = began.elapsed().as_secs_f64();
    same("file", &bytes)?;
    same("during-disk", &bytes)?;
    note(format!("fidod killed and started anew: all guests replaced within {seconds:.1} s, the files are the same"))?;
    manager.stop()?;
    disk.detach()?;
    Ok("nfs-cp has copied in and out while each guest was destroyed, and after the manager was killed".to_owned())
}

const COPY: &str = "/usr/bin/nfs-cp";
/// Where it writes what it has to say.
const COPY_LOG: &str = "/var/log/xen/nfs-cp.log";

/// The manifest for this machine: PV or PVH, on the processors that there are.
pub fn manifest(machine: &Machine) -> String {
    let mut text = include_str!("nas.toml").to_owned();
    if machine.pvh {
        text = text.replace("type = \"pv\"", "type = \"pvh\"");
    }
    // dom0 has the first.
    let last = machine.processors() - 1;
    (1..=3).filter(|cpu| *cpu > last).fold(text, |text, cpu| text.replace(&format!("cpus = [{cpu}]"), "cpus = [1]"))
}

/// While an appliance runs, nobody else can run it.
fn refuses_a_second(manifest: &str) -> Result<(), Failure> {
    let mut second = fidod::start(&mut fidod::command("nas-second", manifest)?, "nas-second")?;
    let status = second.wait(READY_LIMIT)?;
    let said = "another manager on this machine runs an appliance named `nas`";
    if status.code() == Some(1) && second.said().contains(said) {
        return Ok(());
    }
    Err(second.failure(&format!("a second manager of one appliance: {status}, and not {said:?}")))
}

/// Destroys a domain's guest in the middle of a copy, and waits until the copy has ended. Seconds from the one to the other.
fn destroy(manager: &mut Fidod, domain: &str) -> Result<f64, Failure> {
    let guest = manager.wait_serving(domain, None, READY_LIMIT)?;
    let mut copy = copy_to_the_middle(manager, &format!("during-{domain}"))?;
    if domain == "net" {
        wait_for_unanswered_bytes(&mut copy)?;
    }
    let began = Instant::now();
    xl(&["destroy", &guest.to_string()])?;
    manager.wait_serving(domain, Some(guest), READY_LIMIT)?;
    copy.succeed(COPY_LIMIT)?;
    Ok(began.elapsed().as_secs_f64())
}

/// Begins to copy the file in; returns when some of it has gone to the net's guest.
fn copy_to_the_middle(manager: &mut Fidod, name: &str) -> Result<Process, Failure> {
    let net = manager.wait_serving("net", None, READY_LIMIT)?;
    let counter = format!("/sys/class/net/vif{net}.0/statistics/tx_bytes");
    let count = || -> Result<u64, Failure> {
        let text = fs::read_to_string(&counter).map_err(|error| format!("{counter}: {error}"))?;
        text.trim().parse().map_err(|_| format!("{counter}: {text:?}"))
    };
    let before = count()?;
    let mut copy = Process::start(Command::new(COPY).args([IN, &url(name)]), COPY_LOG)?;
    let began = Instant::now();
    while count()? < before + MIDDLE {
        if let Some(status) = copy.ended()? {
            return Err(copy.failure(&format!("ended before its middle: {status}")));
        }
        if began.elapsed() > COPY_LIMIT {
            return Err(copy.failure("does not get to its middle"));
        }
        sleep(Duration::from_millis(5));
    }
    Ok(copy)
}

/// Has the NAS not hear what the client sends, until the client has sent something: what comes back still arrives. The end
/// of a connection that goes without a word is noticed by who has sent something; libnfs, which has no limit of time, would
/// wait for ever for an answer to what the dead had received.
fn wait_for_unanswered_bytes(copy: &mut Process) -> Result<(), Failure> {
    machine::command("/bin/busybox", &["arp", "-s", SERVER, "00:16:3e:00:00:ff"])?;
    let began = Instant::now();
    loop {
        let table = fs::read_to_string("/proc/net/tcp").map_err(|error| format!("/proc/net/tcp: {error}"))?;
        // Local address, remote one, state, and the bytes that are not acknowledged.
        let waits = |line: &str| {
            let words: Vec<_> = line.split_whitespace().collect();
            let remote = words.get(2).is_some_and(|remote| remote.ends_with(&format!(":{PORT:04X}")));
            remote && words.get(4).is_some_and(|queues| !queues.starts_with("00000000"))
        };
        if table.lines().any(waits) {
            return Ok(());
        }
        if copy.ended()?.is_some() || began.elapsed() > READY_LIMIT {
            return Err(copy.failure("sends nothing any more"));
        }
        sleep(Duration::from_millis(5));
    }
}

/// The volume's device in dom0.
pub struct Disk;

impl Disk {
    /// Makes it, with a new volume.
    pub fn attach() -> Result<Self, Failure> {
        let made = fs::File::create(DISK_FILE).and_then(|file| file.set_len(DISK_BYTES));
        made.map_err(|error| format!("{DISK_FILE}: {error}"))?;
        machine::command("/bin/busybox", &["losetup", DISK_DEVICE, DISK_FILE])?;
        Ok(Self)
    }

    fn detach(self) -> Result<(), Failure> {
        machine::command("/bin/busybox", &["losetup", "-d", DISK_DEVICE])?;
        fs::remove_file(DISK_FILE).map_err(|error| format!("{DISK_FILE}: {error}"))
    }
}

/// Waits until the NAS takes a connection.
fn reach() -> Result<(), Failure> {
    let (address, began) = (format!("{SERVER}:{PORT}"), Instant::now());
    let address = address.parse().map_err(|error| format!("{address}: {error}"))?;
    loop {
        match TcpStream::connect_timeout(&address, Duration::from_secs(1)) {
            Ok(_) => return Ok(()),
            Err(error) if began.elapsed() > READY_LIMIT => return Err(format!("{address}: {error}")),
            Err(_) => sleep(Duration::from_millis(50)),
        }
    }
}

/// A file of the NAS, as libnfs names it.
pub fn url(path: &str) -> String {
    format!("nfs://{SERVER}/export/{path}?nfsport={PORT}&mountport={PORT}")
}

/// Copies a file to its end.
pub fn copy(from: &str, to: &str) -> Result<(), Failure> {
    Process::start(Command::new(COPY).args([from, to]), COPY_LOG)?.succeed(COPY_LIMIT).map(drop)
}

/// Reads a file and compares it byte by byte.
pub fn same(name: &str, bytes: &[u8]) -> Result<(), Failure> {
    // It does not write over a file.
    let _ = fs::remove_file(OUT);
    copy(&url(name), OUT)?;
    let back = fs::read(OUT).map_err(|error| format!("{OUT}: {error}"))?;
    let differs = back.iter().zip(bytes).position(|(a, b)| a != b);
    match differs {
        None if back.len() == bytes.len() => Ok(()),
        _ => {
            let (came, all) = (back.len(), bytes.len());
            Err(format!("{name}: {came} of {all} bytes came back, different from byte {differs:?} on"))
        }
    }
}

/// Bytes that do not repeat: Marsaglia's xorshift64.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let word = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> = std::iter::repeat_with(word).take(length.div_ceil(8)).flatten().collect();
    bytes.truncate(length);
    bytes
}
