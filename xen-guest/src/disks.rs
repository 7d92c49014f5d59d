//! The disks of a guest: waits until the kernel has those that its configuration names.

use std::fs;
use std::io;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use fido_core::platform::xen::store::Store;

/// How long a disk of the guest may take to appear.
const DISK_LIMIT: Duration = Duration::from_secs(20);
/// The kernel's devices on Xen's bus. One that works as a disk has its block device below it.
const DEVICES: &str = "/sys/bus/xen/devices";

/// Waits for each disk that the toolstack has given this guest: from then on it is in `/dev`.
///
/// # Errors
/// xenstore's, or a disk that does not appear, with what may be missing.
pub fn wait_for_guest() -> io::Result<()> {
    let store = Store::connect().map_err(io::Error::other)?;
    for device in store.now().children("device/vbd").map_err(io::Error::other)? {
        wait_for(Path::new(DEVICES), &device, DISK_LIMIT)?;
    }
    Ok(())
}

/// Waits for the disk with that number; its name, such as `xvda`.
fn wait_for(devices: &Path, device: &str, limit: Duration) -> io::Result<String> {
    let began = Instant::now();
    let folder = devices.join(format!("vbd-{device}/block"));
    loop {
        let disk = fs::read_dir(&folder).into_iter().flatten().flatten().next();
        if let Some(disk) = disk {
            return Ok(disk.file_name().to_string_lossy().into_owned());
        }
        if began.elapsed() > limit {
            let what = format!(
                "no disk {device} within {} s; has the image the module xen-blkfront, and dom0 the module xen-blkback and \
                 what the disk's `target` names?",
                limit.as_secs()
            );
            return Err(io::Error::new(io::ErrorKind::NotFound, what));
        }
        sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_there_with_its_block_device() {
        let folder = std::env::temp_dir().join(format!("fido-disks-{}", std::process::id()));
        fs::create_dir_all(folder.join("vbd-51712/block/xvda")).unwrap();
        fs::create_dir_all(folder.join("vbd-51728")).unwrap();
        let found = wait_for(&folder, "51712", DISK_LIMIT);
        let missing = wait_for(&folder, "51728", Duration::ZERO);
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(found.unwrap(), "xvda");
        assert!(missing.unwrap_err().to_string().contains("xen-blkfront"));
    }
}
