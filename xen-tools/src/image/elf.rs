//! What is read from ELF files: the libraries that a program needs, and the modules that a kernel module needs.
//!
//! Nothing is run for it: `ldd` would start the program's own loader.

use std::path::{Path, PathBuf};

use elf::ElfBytes;
use elf::endian::AnyEndian;

/// Why a file does not say what it needs.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    /// It cannot be read.
    #[error("{path}: {error}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// It is no ELF file, or a damaged one.
    #[error("{path}: not an intact ELF file: {error}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: elf::ParseError,
    },
    /// A kernel module without the section that describes it.
    #[error("{0}: not a kernel module: it has no section `.modinfo`")]
    NoModule(PathBuf),
}

/// The names of the shared libraries that a program or library asks for itself. None if it is statically linked.
///
/// # Errors
/// A file that cannot be read or is no ELF file.
pub fn needed_libraries(path: &Path) -> Result<Vec<String>, ElfError> {
    let bytes = read(path)?;
    libraries(&bytes).map_err(|error| ElfError::Damaged { path: path.to_path_buf(), error })
}

/// Whether a program runs without a loader and without libraries.
///
/// # Errors
/// As for [`needed_libraries`].
pub fn is_static(path: &Path) -> Result<bool, ElfError> {
    let bytes = read(path)?;
    let damaged = |error| ElfError::Damaged { path: path.to_path_buf(), error };
    let file = ElfBytes::<AnyEndian>::minimal_parse(&bytes).map_err(damaged)?;
    let segments = file.segments().map(|all| all.iter().collect::<Vec<_>>()).unwrap_or_default();
    Ok(!segments.iter().any(|segment| segment.p_type == elf::abi::PT_INTERP)
        && libraries(&bytes).map_err(damaged)?.is_empty())
}

fn libraries(bytes: &[u8]) -> Result<Vec<String>, elf::ParseError> {
    let file = ElfBytes::<AnyEndian>::minimal_parse(bytes)?;
    let common = file.find_common_data()?;
    let (Some(entries), Some(strings)) = (file.dynamic()?, common.dynsyms_strs) else { return Ok(Vec::new()) };
    let needed = entries.iter().filter(|entry| entry.d_tag == elf::abi::DT_NEEDED);
    needed
        .map(|entry| {
            let offset = usize::try_from(entry.d_val())?;
            Ok(strings.get(offset)?.to_owned())
        })
        .collect()
}

/// The names of the modules that a kernel module needs (its field `depends`), with `_` for `-`.
///
/// # Errors
/// A file that cannot be read or is no kernel module.
pub fn needed_modules(path: &Path) -> Result<Vec<String>, ElfError> {
    let bytes = read(path)?;
    let damaged = |error| ElfError::Damaged { path: path.to_path_buf(), error };
    let file = ElfBytes::<AnyEndian>::minimal_parse(&bytes).map_err(damaged)?;
    let section = file.section_header_by_name(".modinfo").map_err(damaged)?;
    let section = section.ok_or_else(|| ElfError::NoModule(path.to_path_buf()))?;
    let (info, _) = file.section_data(&section).map_err(damaged)?;
    Ok(depends(info))
}

/// The field `depends` of a section `.modinfo`: strings `key=value`, each ended by a zero.
fn depends(info: &[u8]) -> Vec<String> {
    let fields = info.split(|byte| *byte == 0);
    let names = fields.filter_map(|field| field.strip_prefix(b"depends="));
    names
        .flat_map(|names| names.split(|byte| *byte == b','))
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8_lossy(name).replace('-', "_"))
        .collect()
}

fn read(path: &Path) -> Result<Vec<u8>, ElfError> {
    std::fs::read(path).map_err(|error| ElfError::Read { path: path.to_path_buf(), error })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_very_program_needs_the_c_library() {
        let own = std::env::current_exe().unwrap();
        let needed = needed_libraries(&own).unwrap();
        assert!(needed.iter().any(|name| name.starts_with("libc.so")), "{needed:?}");
        assert!(!is_static(&own).unwrap());
    }

    #[test]
    fn dependencies_are_split_at_commas_and_written_with_underscores() {
        assert_eq!(depends(b"license=GPL\0depends=xen-a,b\0name=c\0"), ["xen_a", "b"]);
        assert_eq!(depends(b"depends=\0"), [""; 0]);
        assert_eq!(depends(b"license=GPL\0"), [""; 0]);
    }

    #[test]
    fn what_is_no_elf_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x");
        std::fs::write(&file, "#!/bin/sh").unwrap();
        assert!(matches!(needed_libraries(&file), Err(ElfError::Damaged { .. })));
        assert!(matches!(needed_modules(&std::env::current_exe().unwrap()), Err(ElfError::NoModule(_))));
        assert!(matches!(is_static(Path::new("/does/not/exist")), Err(ElfError::Read { .. })));
    }
}
