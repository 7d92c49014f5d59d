//! What the testbed has made and will need again: folders named by what they were made from.
//!
//! An entry appears under its name in one step, when it is complete. Whoever makes one holds a lock, so that two
//! testbeds do not do the same work, and what a killed one has left half-made can be told and removed.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

const PARTIAL: &str = "partial-";

/// What goes wrong with the folder itself.
#[derive(Debug, thiserror::Error)]
#[error("the cache, {path}: {error}")]
pub struct CacheError {
    path: PathBuf,
    error: io::Error,
}

/// The folder.
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// Opens the folder and makes it if it does not exist.
    ///
    /// # Errors
    /// The system's.
    pub fn open(root: &Path) -> Result<Self, CacheError> {
        fs::create_dir_all(root).map_err(|error| CacheError { path: root.to_path_buf(), error })?;
        Ok(Self { root: root.to_path_buf() })
    }

    /// The entry that was made from `parts`; if there is none, or `again`, `make` fills an empty folder with it.
    ///
    /// # Errors
    /// What `make` says, or the system. Then there is no new entry, and an old one is still there.
    pub fn entry<E: From<CacheError>>(
        &self,
        name: &str,
        parts: &[&str],
        again: bool,
        make: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<PathBuf, E> {
        let place = self.place(name, parts);
        if place.is_dir() && !again {
            return Ok(place);
        }
        let failed = |error| CacheError { path: place.clone(), error };
        let _lock = self.lock()?;
        if place.is_dir() && !again {
            return Ok(place);
        }
        let partial = partial(&self.root)?;
        make(partial.path())?;
        if place.exists() {
            fs::rename(&place, partial.path().with_extension("old")).map_err(failed)?;
        }
        fs::rename(partial.keep(), &place).map_err(failed)?;
        self.remove_partial()?;
        Ok(place)
    }

    fn place(&self, name: &str, parts: &[&str]) -> PathBuf {
        self.root.join(format!("{name}-{}", key(parts)))
    }

    /// Waits for the lock, and removes what a testbed that was killed under it has left.
    fn lock(&self) -> Result<File, CacheError> {
        let path = self.root.join("lock");
        let locked = || {
            let file = File::create(&path)?;
            rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
            Ok(file)
        };
        let file = locked().map_err(|error| CacheError { path: path.clone(), error })?;
        self.remove_partial()?;
        Ok(file)
    }

    fn remove_partial(&self) -> Result<(), CacheError> {
        let failed = |error| CacheError { path: self.root.clone(), error };
        for entry in fs::read_dir(&self.root).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
                fs::remove_dir_all(entry.path()).map_err(failed)?;
            }
        }
        Ok(())
    }
}

/// A folder for what is not complete yet. Only for who holds the lock, that is, inside the making of an entry.
///
/// # Errors
/// The system's.
pub fn partial(root: &Path) -> Result<TempDir, CacheError> {
    let folder = tempfile::Builder::new().prefix(PARTIAL).tempdir_in(root);
    folder.map_err(|error| CacheError { path: root.to_path_buf(), error })
}

/// A name for what is made from `parts`: where one ends and the next begins makes a difference, and so does the order.
#[must_use]
pub fn key(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().take(10).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(text: &'static str) -> impl FnOnce(&Path) -> Result<(), CacheError> {
        move |folder| {
            fs::write(folder.join("file"), text).map_err(|error| CacheError { path: folder.to_path_buf(), error })
        }
    }

    fn names(root: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(root).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn an_entry_is_made_once_and_again_only_if_asked() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(&folder.path().join("deep/cache")).unwrap();
        let entry = cache.entry("x", &["1"], false, make("first")).unwrap();
        assert_eq!(cache.entry("x", &["1"], false, make("second")).unwrap(), entry);
        assert_eq!(fs::read_to_string(entry.join("file")).unwrap(), "first");
        assert_eq!(cache.entry("x", &["1"], true, make("third")).unwrap(), entry);
        assert_eq!(fs::read_to_string(entry.join("file")).unwrap(), "third");
        let other = cache.entry("x", &["2"], false, make("fourth")).unwrap();
        assert_ne!(other, entry);
        assert_eq!(names(&folder.path().join("deep/cache")).len(), 3, "two entries and the lock");
    }

    #[test]
    fn what_could_not_be_made_leaves_nothing_and_keeps_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        let fail = |folder: &Path| {
            fs::write(folder.join("half"), "half").unwrap();
            Err(CacheError { path: folder.to_path_buf(), error: io::Error::other("no") })
        };
        cache.entry("x", &[], false, fail).unwrap_err();
        assert_eq!(names(folder.path()), ["lock"]);
        let entry = cache.entry("x", &[], false, make("good")).unwrap();
        cache.entry("x", &[], true, fail).unwrap_err();
        assert_eq!(fs::read_to_string(entry.join("file")).unwrap(), "good");
    }

    #[test]
    fn what_a_killed_testbed_left_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        fs::create_dir_all(folder.path().join("partial-killed/deep")).unwrap();
        cache.entry("x", &[], false, make("good")).unwrap();
        assert_eq!(names(folder.path()).len(), 2);
    }

    #[test]
    fn a_key_depends_on_parts_borders_and_order() {
        let keys = [key(&["ab", "c"]), key(&["a", "bc"]), key(&["c", "ab"]), key(&["abc"]), key(&[])];
        for (n, one) in keys.iter().enumerate() {
            assert_eq!(one.len(), 20);
            assert!(keys[n + 1..].iter().all(|other| other != one), "{keys:?}");
        }
        assert_eq!(key(&["ab", "c"]), keys[0]);
    }
}
