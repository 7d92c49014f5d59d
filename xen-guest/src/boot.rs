//! What a first process does before anything else: mounts, and kernel modules.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::mount::MountFlags;

/// Where an image keeps what belongs to Fido.
pub const FOLDER: &str = "/fido";

/// The list of an image's modules, in load order: one file name a line, with options after a blank.
pub const MODULE_LIST: &str = "/fido/modules.list";

/// The folder of an image's modules.
pub const MODULES: &str = "/fido/modules";

/// The program that a guest image runs.
pub const PROGRAM: &str = "/fido/program";

/// Its first arguments, one a line.
pub const ARGUMENTS: &str = "/fido/arguments";

/// Where, below the domain's own folder in xenstore, a guest says how its program ended.
pub const EXIT_NODE: &str = "data/fido-exit";

/// Mounts a file system of the kernel and makes its folder. One that is mounted already is no error.
///
/// # Errors
/// The system's, with the folder.
pub fn mount(kind: &str, folder: &str) -> io::Result<()> {
    std::fs::create_dir_all(folder).map_err(|error| name(error, folder))?;
    match rustix::mount::mount(kind, folder, kind, MountFlags::empty(), None) {
        Err(error) if error != rustix::io::Errno::BUSY => Err(name(error.into(), folder)),
        _ => Ok(()),
    }
}

/// Loads the modules of [`MODULE_LIST`]; those that are loaded already are no error. An image may have none.
///
/// # Errors
/// A module that cannot be loaded, by name.
pub fn load_modules() -> io::Result<()> {
    let list = match std::fs::read_to_string(MODULE_LIST) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        list => list.map_err(|error| name(error, MODULE_LIST))?,
    };
    for line in list.lines().filter(|line| !line.is_empty()) {
        let (module, options) = line.split_once(' ').unwrap_or((line, ""));
        load_module(&Path::new(MODULES).join(module), options).map_err(|error| name(error, module))?;
    }
    Ok(())
}

fn load_module(path: &Path, options: &str) -> io::Result<()> {
    let options = std::ffi::CString::new(options)?;
    match rustix::system::finit_module(File::open(path)?, &options, 0) {
        Err(error) if error != rustix::io::Errno::EXIST => Err(error.into()),
        _ => Ok(()),
    }
}

fn name(error: io::Error, what: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}
