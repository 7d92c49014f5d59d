//! The NAS with its net, fs and disk each in a guest of its own, served to a client that is not ours: libnfs's `nfs-cp`,
//! here in dom0, over netfront and netback.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use conn_mgr::manager::{Manager, Status};
use conn_mgr::manifest::{Domain, Guest, Link, Manifest, Platform};
use fido_core::assignment::WaitStrategy;
use xen_guest::report::Kind;

use crate::appliance::{self, FENCE_LIMIT, SHUTDOWN_LIMIT};
use crate::machine::{self, Machine};
use crate::{Failure, Reporter, hotplug};

/// Where the NAS serves.
const SERVER: &str = "10.0.0.2";
/// The port of NFS and MOUNT.
const PORT: u16 = 2049;
/// How long the three guests may take until they serve, or serve again.
const READY_LIMIT: Duration = Duration::from_secs(120);
/// The length of the file that is copied, in bytes: not a multiple of anything.
const FILE_BYTES: usize = (4 << 20) + 12_345;

/// Copies a file in and out, kills the file system and then the network in the middle, and reads it again.
pub fn run(machine: &Machine, reporter: &mut Reporter) -> Result<String, Failure> {
    let manager = appliance::start(manifest(machine))?;
    let mut note = |text: String| reporter.send(Kind::Note, "nas", text.as_bytes());
    ready(&manager)?;
    note("three guests serve".to_owned())?;
    let bytes = noise(FILE_BYTES);
    fs::write("/tmp/in", &bytes).map_err(|error| format!("/tmp/in: {error}"))?;
    let began = Instant::now();
    copy("/tmp/in", &url("file"))?;
    note(format!("{FILE_BYTES} bytes copied in within {:.1} s", began.elapsed().as_secs_f64()))?;
    same(&bytes)?;
    note("copied out again, the same".to_owned())?;
    for domain in ["fs", "net"] {
        let began = Instant::now();
        manager.kill(domain).map_err(|error| error.to_string())?;
        let again = |status: &Status| status.domain(domain).is_some_and(|domain| domain.generation == 2);
        if !manager.wait_until(READY_LIMIT, again) {
            return Err(format!("{domain} is not started again: {}", appliance::problems(&manager.status())));
        }
        ready(&manager)?;
        reach()?;
        note(format!("{domain} is ready and reached again after {:.1} s", began.elapsed().as_secs_f64()))?;
        same(&bytes)?;
        note(format!("after the death of {domain} the same again, {:.1} s", began.elapsed().as_secs_f64()))?;
    }
    manager.shutdown(SHUTDOWN_LIMIT).map_err(|error| format!("the guests do not end: {error}"))?;
    Ok("nfs-cp has copied a file in and out, and out again after the deaths of fs and net".to_owned())
}

fn manifest(machine: &Machine) -> Manifest {
    let domain = |position: u32, name: &str, arena: u64, memory: u64| {
        let image = format!("/guest/nas-{name}.cpio");
        let domain = appliance::domain(name, &image, position, machine);
        let guest = domain.guest.clone().map(|guest| Guest { memory: memory << 20, ..guest });
        Domain { arena: arena << 20, guest, wait: WaitStrategy::Sleep, ..domain }
    };
    let mut disk = domain(0, "disk", 64, 288);
    disk.windows = vec!["net".to_owned()];
    let image = [("image", "/run/nas.img".into()), ("size", (96u64 << 20).into())];
    disk.params = image.map(|(key, value)| (key.to_owned(), value)).into();
    let mut fs = domain(1, "fs", 64, 192);
    fs.after = vec!["disk".to_owned()];
    let mut net = domain(2, "net", 64, 256);
    net.windows = vec!["disk".to_owned()];
    net.params = BTreeMap::from([("listen".to_owned(), format!("{SERVER}:{PORT}").into())]);
    if let Some(guest) = &mut net.guest {
        guest.vif = vec![format!("ip={SERVER}/24,script={},mac=00:16:3e:00:00:02", hotplug::PROGRAM)];
    }
    let fence = conn_mgr::manifest::FencePolicy { deadline: FENCE_LIMIT };
    let links = vec![Link { lanes: 2, ..Link::new("disk", "fs", "disk") }, Link::new("nfs", "net", "fs")];
    Manifest { platform: Platform::Xen, fence, domains: vec![disk, fs, net], links, ..Manifest::new("nas") }
}

fn ready(manager: &Manager) -> Result<(), Failure> {
    let result = manager.wait_ready(READY_LIMIT);
    result.map(drop).map_err(|error| format!("{error}: {}", appliance::problems(&manager.status())))
}

/// Waits until the NAS takes a connection.
fn reach() -> Result<(), Failure> {
    let (address, began) = (format!("{SERVER}:{PORT}"), Instant::now());
    let address = address.parse().map_err(|error| format!("{address}: {error}"))?;
    loop {
        match TcpStream::connect_timeout(&address, Duration::from_secs(1)) {
            Ok(_) => return Ok(()),
            Err(error) if began.elapsed() > READY_LIMIT => return Err(format!("{address}: {error}")),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn url(path: &str) -> String {
    format!("nfs://{SERVER}/export/{path}?nfsport={PORT}&mountport={PORT}")
}

fn copy(from: &str, to: &str) -> Result<(), Failure> {
    machine::command("/usr/bin/nfs-cp", &[from, to]).map(drop)
}

/// Reads the file and compares it byte by byte.
fn same(bytes: &[u8]) -> Result<(), Failure> {
    // It does not write over a file.
    let _ = fs::remove_file("/tmp/out");
    copy(&url("file"), "/tmp/out")?;
    let back = fs::read("/tmp/out").map_err(|error| format!("/tmp/out: {error}"))?;
    let differs = back.iter().zip(bytes).position(|(a, b)| a != b);
    match differs {
        None if back.len() == bytes.len() => Ok(()),
        _ => Err(format!("{} of {} bytes came back, different from byte {differs:?} on", back.len(), bytes.len())),
    }
}

/// Bytes that do not repeat: Marsaglia's xorshift64.
fn noise(length: usize) -> Vec<u8> {
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
