//! Everything that a set of programs or kernel modules needs, found below one root: libraries with theirs, modules in
//! the order in which they have to be loaded.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use super::elf::{self, ElfError};

/// Where Debian has the libraries of the first architecture, below a root.
const LIBRARY_FOLDERS: [&str; 4] = [
    "lib/x86_64-linux-gnu",
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/x86_64-linux-gnu/ceph",
    "usr/lib/xen-4.17/lib/x86_64-linux-gnu",
];

/// What is missing, or cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ClosureError {
    /// A library that is in none of the folders.
    #[error("library `{name}`, which `{by}` needs, is not among the packages in {root}")]
    NoLibrary {
        /// Its name.
        name: String,
        /// Who needs it.
        by: PathBuf,
        /// Where it was looked for.
        root: PathBuf,
    },
    /// A module that the kernel does not have.
    #[error("kernel module `{name}`, which {by} needs, is not in {root}")]
    NoModule {
        /// Its name.
        name: String,
        /// Who needs it.
        by: String,
        /// Where it was looked for.
        root: PathBuf,
    },
    /// Modules that need each other.
    #[error("kernel module `{0}` needs itself, by way of others")]
    Circle(String),
    /// A file that does not say what it needs.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// A folder that cannot be read.
    #[error("{path}: {error}")]
    Read {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

/// The libraries that these programs need, theirs included: name and file, by name.
///
/// # Errors
/// A library that is not below `root`, or a file that cannot be read.
pub fn libraries(root: &Path, programs: &[PathBuf]) -> Result<BTreeMap<String, PathBuf>, ClosureError> {
    let mut found = BTreeMap::new();
    let mut open: Vec<PathBuf> = programs.to_vec();
    while let Some(file) = open.pop() {
        for name in elf::needed_libraries(&file)? {
            if found.contains_key(&name) {
                continue;
            }
            let place = library(root, &name, &file)?;
            found.insert(name, place.clone());
            open.push(place);
        }
    }
    Ok(found)
}

/// The file of a library below `root`, which `by` needs.
///
/// # Errors
/// It is not there.
pub fn library(root: &Path, name: &str, by: &Path) -> Result<PathBuf, ClosureError> {
    let mut places = LIBRARY_FOLDERS.iter().map(|folder| root.join(folder).join(name));
    places.find(|place| place.is_file()).ok_or_else(|| ClosureError::NoLibrary {
        name: name.to_owned(),
        by: by.to_path_buf(),
        root: root.to_path_buf(),
    })
}

/// The kernel modules of a folder such as `/lib/modules/VERSION`.
pub struct Modules {
    root: PathBuf,
    files: BTreeMap<String, PathBuf>,
}

impl Modules {
    /// Looks for all modules (`*.ko`, not compressed) in a folder and the folders in it.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub fn find(root: &Path) -> Result<Self, ClosureError> {
        let mut files = BTreeMap::new();
        let mut open = vec![root.to_path_buf()];
        while let Some(folder) = open.pop() {
            let read = |error| ClosureError::Read { path: folder.clone(), error };
            for entry in std::fs::read_dir(&folder).map_err(read)? {
                let entry = entry.map_err(read)?;
                let path = entry.path();
                if entry.file_type().map_err(read)?.is_dir() {
                    open.push(path);
                } else if path.extension() == Some(OsStr::new("ko"))
                    && let Some(name) = path.file_stem().and_then(OsStr::to_str)
                {
                    files.insert(name.replace('-', "_"), path);
                }
            }
        }
        Ok(Self { root: root.to_path_buf(), files })
    }

    /// The files of all of them.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.values().map(PathBuf::as_path)
    }

    /// Whether there is a module of that name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.files.contains_key(&name.replace('-', "_"))
    }

    /// The files of these modules and of all that they need, in an order in which they can be loaded.
    ///
    /// # Errors
    /// A module that does not exist, cannot be read, or needs itself.
    pub fn load_order(&self, names: &[&str]) -> Result<Vec<PathBuf>, ClosureError> {
        let mut order = Order { modules: self, done: BTreeSet::new(), files: Vec::new() };
        for name in names {
            order.add(&name.replace('-', "_"), "the image", &mut Vec::new())?;
        }
        Ok(order.files)
    }
}

struct Order<'a> {
    modules: &'a Modules,
    done: BTreeSet<String>,
    files: Vec<PathBuf>,
}

impl Order<'_> {
    /// Adds a module after all that it needs. `path` holds those that are being added.
    fn add(&mut self, name: &str, by: &str, path: &mut Vec<String>) -> Result<(), ClosureError> {
        if self.done.contains(name) {
            return Ok(());
        }
        if path.iter().any(|above| above == name) {
            return Err(ClosureError::Circle(name.to_owned()));
        }
        let file = self.modules.files.get(name).ok_or_else(|| ClosureError::NoModule {
            name: name.to_owned(),
            by: by.to_owned(),
            root: self.modules.root.clone(),
        })?;
        path.push(name.to_owned());
        for needed in elf::needed_modules(file)? {
            self.add(&needed, &format!("`{name}`"), path)?;
        }
        path.pop();
        self.done.insert(name.to_owned());
        self.files.push(file.clone());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that is enough of a kernel module: an ELF file with a section `.modinfo`.
    fn module(folder: &Path, name: &str, depends: &str) {
        let info = format!("license=GPL\0depends={depends}\0");
        let names = b"\0.modinfo\0.shstrtab\0";
        let mut file = vec![0; 64];
        file[..16].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        let (info_at, names_at) = (64, 64 + info.len());
        let table_at = names_at + names.len();
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(16, &1_u16.to_le_bytes());
        put(18, &62_u16.to_le_bytes());
        put(20, &1_u32.to_le_bytes());
        put(40, &(table_at as u64).to_le_bytes());
        put(52, &64_u16.to_le_bytes());
        put(58, &64_u16.to_le_bytes());
        put(60, &3_u16.to_le_bytes());
        put(62, &2_u16.to_le_bytes());
        file.extend_from_slice(info.as_bytes());
        file.extend_from_slice(names);
        for (name, kind, at, size) in
            [(0_u32, 0_u32, 0, 0), (1, 1, info_at, info.len()), (10, 3, names_at, names.len())]
        {
            let mut header = [0; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[4..8].copy_from_slice(&kind.to_le_bytes());
            header[24..32].copy_from_slice(&(at as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(size as u64).to_le_bytes());
            header[48] = 1;
            file.extend_from_slice(&header);
        }
        std::fs::write(folder.join(format!("{name}.ko")), file).unwrap();
    }

    fn order(modules: &[(&str, &str)], wanted: &[&str]) -> Result<Vec<String>, ClosureError> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("deep")).unwrap();
        for (name, depends) in modules {
            module(&folder.path().join("deep"), name, depends);
        }
        let files = Modules::find(folder.path()).unwrap().load_order(wanted)?;
        Ok(files.iter().map(|file| file.file_stem().unwrap().to_str().unwrap().to_owned()).collect())
    }

    #[test]
    fn what_a_module_needs_is_loaded_before_it_and_once() {
        let modules = [("a", "b,xen-c"), ("b", "xen_c"), ("xen-c", ""), ("d", "")];
        assert_eq!(order(&modules, &["a", "b"]).unwrap(), ["xen-c", "b", "a"]);
        assert_eq!(order(&modules, &["xen-c", "d"]).unwrap(), ["xen-c", "d"]);
    }

    #[test]
    fn what_cannot_be_loaded_is_an_error() {
        let error = order(&[("a", "b")], &["a"]).unwrap_err();
        assert!(error.to_string().starts_with("kernel module `b`, which `a` needs, is not in "), "{error}");
        assert!(matches!(order(&[("a", "b"), ("b", "a")], &["a"]), Err(ClosureError::Circle(_))));
        assert!(matches!(order(&[("a", "a")], &["a"]), Err(ClosureError::Circle(_))));
    }

    #[test]
    fn libraries_are_found_with_theirs_or_named() {
        let root = tempfile::tempdir().unwrap();
        let own = std::env::current_exe().unwrap();
        let error = libraries(root.path(), std::slice::from_ref(&own)).unwrap_err();
        assert!(matches!(error, ClosureError::NoLibrary { .. }), "{error}");
        let found = libraries(Path::new("/"), &[own]).unwrap();
        assert!(found.contains_key("libc.so.6"), "{found:?}");
        assert!(found.contains_key("ld-linux-x86-64.so.2"), "{found:?}");
    }
}
