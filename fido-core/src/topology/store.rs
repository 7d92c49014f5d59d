//! Keeps a measured matrix for the next time on the same machine.
//!
//! A file in the user's cache directory, named after a fingerprint of the processor's model and topology: another
//! machine, another set of online processors or another virtual machine has another name. It is read like anything
//! that somebody else may have written: bounded, with a version, and only if it fits this machine.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Matrix, Topology};

/// The version of the files.
pub const VERSION: u32 = 1;
/// The longest file that is written or read, in bytes: some 400 processors.
pub const MAX_BYTES: u64 = 32 << 20;

/// Why a matrix was not kept, or not used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The environment names no directory for caches.
    #[error("neither XDG_CACHE_HOME nor HOME is set to an absolute path")]
    NoDirectory,
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// It is too long.
    #[error("{}: more than {MAX_BYTES} bytes", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// It is not what it should be.
    #[error("{}: {what}", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    fingerprint: String,
    model: Option<String>,
    matrix: Matrix,
}

/// Fido's directory among the user's caches: `$XDG_CACHE_HOME/fido`, or `~/.cache/fido`.
///
/// # Errors
/// [`StoreError::NoDirectory`].
pub fn directory() -> Result<PathBuf, StoreError> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let caches = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")));
    Ok(caches.ok_or(StoreError::NoDirectory)?.join("fido"))
}

/// What tells this machine from others: its model and all its online processors with their caches and nodes.
pub fn fingerprint(topology: &Topology) -> String {
    let described = serde_json::to_vec(&(VERSION, &topology.model, &topology.cpus)).unwrap_or_default();
    // FNV-1a; it only has to tell one person's machines apart.
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    format!("{:016x}", described.iter().fold(0xcbf2_9ce4_8422_2325, step))
}

/// The file for this machine.
pub fn file(directory: &Path, topology: &Topology) -> PathBuf {
    directory.join(format!("hand-over-{}.json", fingerprint(topology)))
}

/// Keeps a matrix; returns the file. It is replaced as a whole.
///
/// # Errors
/// [`StoreError`].
pub fn save(directory: &Path, topology: &Topology, matrix: &Matrix) -> Result<PathBuf, StoreError> {
    let path = file(directory, topology);
    let failed = |source| StoreError::Io { path: path.clone(), source };
    let stored = Stored {
        version: VERSION,
        fingerprint: fingerprint(topology),
        model: topology.model.clone(),
        matrix: matrix.clone(),
    };
    let json = serde_json::to_vec(&stored).map_err(|error| failed(error.into()))?;
    if json.len() as u64 > MAX_BYTES {
        return Err(StoreError::TooLong { path });
    }
    std::fs::create_dir_all(directory).map_err(failed)?;
    let new = path.with_extension(format!("{}.new", std::process::id()));
    let written = File::create(&new).and_then(|mut file| file.write_all(&json));
    written.and_then(|()| std::fs::rename(&new, &path)).map_err(|source| {
        let _ = std::fs::remove_file(&new);
        failed(source)
    })?;
    Ok(path)
}

/// The matrix that was kept for this machine; `None` if there is none.
///
/// # Errors
/// [`StoreError`] if there is one that cannot be used.
pub fn load(directory: &Path, topology: &Topology) -> Result<Option<Matrix>, StoreError> {
    let path = file(directory, topology);
    let failed = |source| StoreError::Io { path: path.clone(), source };
    match std::fs::metadata(&path) {
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => return Err(failed(io::Error::other("not a regular file"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    }
    let mut bytes = Vec::new();
    File::open(&path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes)).map_err(failed)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(StoreError::TooLong { path });
    }
    let wrong = |what: String| StoreError::Wrong { path: path.clone(), what };
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let Version { version } = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
    if version != VERSION {
        return Err(wrong(format!("it has version {version}, this program reads {VERSION}")));
    }
    let stored: Stored = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
    if stored.fingerprint != fingerprint(topology) {
        return Err(wrong(format!("it belongs to the machine {}", stored.fingerprint.escape_debug())));
    }
    if let Some(cpu) = topology.allowed.iter().find(|cpu| stored.matrix.cpus().binary_search(cpu).is_err()) {
        return Err(wrong(format!("processor {cpu} was not measured")));
    }
    Ok(Some(stored.matrix))
}
