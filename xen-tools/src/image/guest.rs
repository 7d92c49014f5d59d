//! The image of one guest: the first process, the program that it runs, files, and kernel modules.
//!
//! The layout is what `fido-init` (crate `xen-guest`) expects.

use std::path::{Path, PathBuf};

use xen_guest::boot;

use super::closure::{self, ClosureError};
use super::cpio::{Archive, ArchiveError};
use super::elf::{self, ElfError};

/// What goes into an image.
#[derive(Debug, Default)]
pub struct Guest {
    /// The first process: `fido-init`, linked statically.
    pub init: PathBuf,
    /// The program that it runs, linked statically.
    pub program: PathBuf,
    /// The program's arguments; those on the kernel's command line come after them.
    pub arguments: Vec<String>,
    /// Further files: where they are in the image, and on the host.
    pub files: Vec<(PathBuf, PathBuf)>,
    /// Where the libraries of a program that is linked dynamically are; without it, such a program is refused.
    pub libraries: Option<Libraries>,
    /// Kernel modules, in load order (see [`super::closure::Modules::load_order`]).
    pub modules: Vec<PathBuf>,
}

/// Where libraries come from, for programs that are linked dynamically.
#[derive(Clone, Debug)]
pub struct Libraries {
    /// The root of the system that has them.
    pub root: PathBuf,
    /// The names of those that the program opens itself when it runs, which it does not say.
    pub opened: Vec<String>,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A program that needs what the image does not have.
    #[error(
        "{0} is linked dynamically; build it with RUSTFLAGS=\"-C target-feature=+crt-static\" and --target, or take its \
         libraries along (--libraries ROOT)"
    )]
    Dynamic(PathBuf),
    /// An argument that cannot be handed over.
    #[error("the argument {0:?} has a line break or a zero in it")]
    BadArgument(String),
    /// A module whose name cannot be handed over.
    #[error("{0}: not the name of a kernel module")]
    BadModule(PathBuf),
    /// A program that cannot be read or is no program.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// Modules that are missing.
    #[error(transparent)]
    Closure(#[from] ClosureError),
    /// What the archive says.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
}

impl Guest {
    /// The image, ready to be written.
    ///
    /// # Errors
    /// Programs that are not linked statically, bad arguments, or two files with one path.
    pub fn archive(&self) -> Result<Archive, ImageError> {
        let mut archive = Archive::new();
        // The kernel gives the first process this device as its standard streams.
        archive.character_device("dev/console", 5, 1)?;
        if !elf::is_static(&self.init)? {
            return Err(ImageError::Dynamic(self.init.clone()));
        }
        archive.host_file("init", &self.init, true)?;
        if !elf::is_static(&self.program)? {
            let libraries = self.libraries.as_ref().ok_or_else(|| ImageError::Dynamic(self.program.clone()))?;
            libraries.add(&mut archive, &self.program)?;
        }
        archive.host_file(relative(boot::PROGRAM), &self.program, true)?;
        if let Some(bad) = self.arguments.iter().find(|argument| argument.contains(['\n', '\0'])) {
            return Err(ImageError::BadArgument(bad.clone()));
        }
        let lines: String = self.arguments.iter().map(|argument| format!("{argument}\n")).collect();
        archive.file(relative(boot::ARGUMENTS), lines, false)?;
        for (place, host) in &self.files {
            archive.host_file(place, host, false)?;
        }
        modules(&mut archive, &self.modules)?;
        Ok(archive)
    }
}

impl Libraries {
    /// Adds what a program needs, and what it opens itself.
    fn add(&self, archive: &mut Archive, program: &Path) -> Result<(), ImageError> {
        let mut all = vec![program.to_path_buf()];
        for name in &self.opened {
            let file = closure::library(&self.root, name, program)?;
            archive.host_file(place(name), &file, true)?;
            all.push(file);
        }
        needed(archive, &self.root, &all)
    }
}

/// Adds the libraries that programs need, theirs included, from below `root`.
///
/// # Errors
/// A library that is not there.
pub fn needed(archive: &mut Archive, root: &Path, programs: &[PathBuf]) -> Result<(), ImageError> {
    for (name, file) in closure::libraries(root, programs)? {
        archive.host_file(place(&name), &file, true)?;
    }
    Ok(())
}

/// Where a library is looked for; the loader is asked for by its full path.
fn place(library: &str) -> PathBuf {
    let folder = if library.starts_with("ld-linux") { "lib64" } else { "usr/lib/x86_64-linux-gnu" };
    Path::new(folder).join(library)
}

/// Adds modules and the list that says in which order to load them.
///
/// # Errors
/// A file without a name that can stand in the list.
pub fn modules(archive: &mut Archive, files: &[PathBuf]) -> Result<(), ImageError> {
    let mut list = String::new();
    for file in files {
        let name = file.file_name().and_then(|name| name.to_str()).filter(|name| !name.contains([' ', '\n']));
        let name = name.ok_or_else(|| ImageError::BadModule(file.clone()))?;
        archive.host_file(Path::new(relative(boot::MODULES)).join(name), file, false)?;
        list.push_str(name);
        list.push('\n');
    }
    archive.file(relative(boot::MODULE_LIST), list, false)?;
    Ok(())
}

/// A path in an image, for an archive.
fn relative(path: &str) -> &str {
    path.trim_start_matches('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that is enough of a program: an ELF header without segments.
    fn program(folder: &Path) -> PathBuf {
        let mut file = vec![0; 64];
        file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        file[16] = 2;
        file[18] = 62;
        file[20] = 1;
        file[52] = 64;
        let path = folder.join("program");
        std::fs::write(&path, file).unwrap();
        path
    }

    #[test]
    fn an_image_has_what_init_expects() {
        let folder = tempfile::tempdir().unwrap();
        let program = program(folder.path());
        let module = folder.path().join("xen-gntdev.ko");
        std::fs::write(&module, "module").unwrap();
        let guest = Guest {
            init: program.clone(),
            program: program.clone(),
            arguments: vec!["--slot".to_owned(), "a b".to_owned()],
            files: vec![("etc/nas.toml".into(), module.clone())],
            libraries: None,
            modules: vec![module],
        };
        let mut bytes = Vec::new();
        guest.archive().unwrap().write(&mut bytes).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        for part in ["fido/program\0", "init\0", "etc/nas.toml\0", "fido/modules/xen-gntdev.ko\0", "--slot\na b\n"] {
            assert!(text.contains(part), "{part}");
        }
        assert!(text.contains("fido/modules.list\0xen-gntdev.ko\n"), "{text}");
    }

    #[test]
    fn what_could_not_run_there_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let own = std::env::current_exe().unwrap();
        let fine = Guest { init: program(folder.path()), program: program(folder.path()), ..Guest::default() };
        assert!(fine.archive().is_ok());
        let error = Guest { program: own.clone(), ..fine }.archive().unwrap_err();
        assert!(matches!(&error, ImageError::Dynamic(path) if *path == own), "{error}");
        let libraries = |opened: &[&str]| {
            let opened = opened.iter().map(|&name| name.to_owned()).collect();
            Some(Libraries { root: "/".into(), opened })
        };
        let with = |opened| Guest {
            init: program(folder.path()),
            program: own.clone(),
            libraries: libraries(opened),
            ..Guest::default()
        };
        let mut bytes = Vec::new();
        with(&["libm.so.6"]).archive().unwrap().write(&mut bytes).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        for part in ["lib64/ld-linux-x86-64.so.2\0", "usr/lib/x86_64-linux-gnu/libc.so.6\0", "/libm.so.6\0"] {
            assert!(text.contains(part), "{part}");
        }
        let error = with(&["libnot-there.so"]).archive().unwrap_err();
        assert!(matches!(error, ImageError::Closure(ClosureError::NoLibrary { .. })), "{error}");
        let fine = Guest { init: program(folder.path()), program: program(folder.path()), ..Guest::default() };
        let error = Guest { arguments: vec!["a\nb".to_owned()], ..fine }.archive().unwrap_err();
        assert!(matches!(error, ImageError::BadArgument(_)), "{error}");
    }
}
