//! The private directory with the manager's socket.
//!
//! It is removed at the end. A manager that was killed cannot do that: each directory therefore holds a file that its
//! manager keeps locked, and the next manager of the same user removes those whose lock has gone.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

const PREFIX: &str = "fido-";
const SOCKET: &str = "manager.sock";
const LOCK: &str = "lock";
/// Directories of one process: attempts to find a free name.
const ATTEMPTS: u32 = 10_000;
/// The longest path of a Unix socket, in bytes.
const MAX_SOCKET_PATH: usize = 107;

/// A directory that only this user can enter; removed when dropped.
#[derive(Debug)]
pub(super) struct RuntimeDir {
    path: PathBuf,
    /// Held for its lock.
    _lock: File,
}

impl RuntimeDir {
    /// Makes a new one under `base`, or under `$XDG_RUNTIME_DIR`, or the folder for temporary files.
    pub(super) fn create(base: Option<&Path>) -> io::Result<Self> {
        let base = match (base, std::env::var_os("XDG_RUNTIME_DIR")) {
            (Some(base), _) => base.to_owned(),
            (None, Some(runtime)) if Path::new(&runtime).is_dir() => runtime.into(),
            (None, _) => std::env::temp_dir(),
        };
        let base = std::path::absolute(base)?;
        sweep(&base);
        for attempt in 0..ATTEMPTS {
            let path = base.join(format!("{PREFIX}{}-{attempt}", std::process::id()));
            if path.join(SOCKET).as_os_str().len() > MAX_SOCKET_PATH {
                let what = format!("the path of a socket in {} would exceed {MAX_SOCKET_PATH} bytes", base.display());
                return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
            }
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                result => result?,
            }
            match lock(&path.join(LOCK), true) {
                Ok(Some(lock)) => return Ok(Self { path, _lock: lock }),
                // Another manager took it for an abandoned one between the two steps: leave it to that one.
                Ok(None) => continue,
                Err(error) => {
                    let _ = std::fs::remove_dir(&path);
                    return Err(error);
                }
            }
        }
        Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("no free name in {}", base.display())))
    }

    /// The path of the manager's socket.
    pub(super) fn socket(&self) -> PathBuf {
        self.path.join(SOCKET)
    }
}

impl Drop for RuntimeDir {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Opens and locks; `None` if somebody else holds the lock or the file has been removed meanwhile.
fn lock(path: &Path, create: bool) -> io::Result<Option<File>> {
    let file = OpenOptions::new().read(true).write(true).create_new(create).open(path)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
        result => result?,
    }
    Ok((file.metadata()?.nlink() > 0).then_some(file))
}

/// Removes what belongs in such a directory, and then the directory if nothing else is in it.
fn remove(path: &Path) {
    for name in [SOCKET, LOCK] {
        let _ = std::fs::remove_file(path.join(name));
    }
    if let Err(error) = std::fs::remove_dir(path) {
        tracing::warn!(path = %path.display(), %error, "cannot remove the runtime directory");
    }
}

/// Removes the directories of managers that were killed.
fn sweep(base: &Path) {
    let Ok(entries) = std::fs::read_dir(base) else { return };
    let own = rustix::process::getuid().as_raw();
    for entry in entries.flatten() {
        let named = entry.file_name().to_str().is_some_and(|name| {
            let parts = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-'));
            parts.is_some_and(|(pid, n)| pid.parse::<u32>().is_ok() && n.parse::<u32>().is_ok())
        });
        let ours = entry.metadata().is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == own);
        if named
            && ours
            && let Ok(Some(_lock)) = lock(&entry.path().join(LOCK), false)
        {
            tracing::info!(path = %entry.path().display(), "removing the directory of a manager that was killed");
            remove(&entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn it_is_private_and_goes_away() {
        let base = tempfile::tempdir().unwrap();
        let first = RuntimeDir::create(Some(base.path())).unwrap();
        let second = RuntimeDir::create(Some(base.path())).unwrap();
        assert_ne!(first.path, second.path);
        assert_eq!(first.path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        File::create(first.socket()).unwrap();
        drop((first, second));
        assert_eq!(base.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn abandoned_ones_are_swept_and_others_are_not() {
        let base = tempfile::tempdir().unwrap();
        let abandoned = base.path().join("fido-999999-0");
        std::fs::create_dir(&abandoned).unwrap();
        File::create(abandoned.join(LOCK)).unwrap();
        for kept in ["fido-999999-1", "fido-x-1", "other"] {
            std::fs::create_dir(base.path().join(kept)).unwrap();
        }
        let live = RuntimeDir::create(Some(base.path())).unwrap();
        let _next = RuntimeDir::create(Some(base.path())).unwrap();
        assert!(!abandoned.exists());
        assert!(live.path.exists());
        assert!(base.path().join("fido-999999-1").exists(), "no lock file: perhaps just being made");
    }

    #[test]
    fn too_long_a_path_is_an_error() {
        let base = tempfile::tempdir().unwrap();
        let long = base.path().join("x".repeat(100));
        std::fs::create_dir(&long).unwrap();
        assert!(RuntimeDir::create(Some(&long)).unwrap_err().to_string().contains("107"));
        assert!(RuntimeDir::create(Some(Path::new("/nonexistent"))).is_err());
    }
}
