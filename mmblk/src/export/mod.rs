//! Exports: the standard faces by which others than domains use a block device.
//!
//! * [`nbd`]: network block devices, for anything that speaks NBD.
//! * [`vhost_user`]: virtio disks of virtual machines.
//! * `ublk`: disks of the machine's own kernel; with the feature of that name.

pub mod nbd;
#[cfg(any(feature = "ublk", test))]
pub mod ublk;
pub mod vhost_user;

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// Binds, in the place of a predecessor's socket if nobody listens there any more.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let is_socket = path.metadata().is_ok_and(|meta| meta.file_type().is_socket());
            let dead = UnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused);
            if !is_socket || !dead {
                return Err(error);
            }
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        other => other,
    }
}
