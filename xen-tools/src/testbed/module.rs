//! Our kernel module, built for the kernel that the testbed boots, with that kernel's own headers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::cache::Cache;
use super::exec::Supervisor;
use super::packages;
use super::{TestbedError, io_error};

/// The module's name and its folder in the source tree.
pub const NAME: &str = "fido_arena";
const FOLDER: &str = "xen-tools/kmod";

/// What headers and the build's tools are in: the library is one that a tool needs.
const TOOLS: [&str; 2] = ["linux-kbuild-6.1", "libelf1"];
const LIMIT: Duration = Duration::from_secs(180);

/// Whether the source tree has it.
#[must_use]
pub fn is_there(source: &Path) -> bool {
    source.join(FOLDER).join("Makefile").is_file()
}

/// Builds the module, or takes it from the cache. `kernel` is the kernel's package.
///
/// # Errors
/// Packages that cannot be had, or what the compiler says.
pub fn build(
    supervisor: &Supervisor,
    cache: (&Cache, &Path),
    (source, kernel): (&Path, &str),
    again: bool,
) -> Result<PathBuf, TestbedError> {
    let version = kernel.strip_prefix("linux-image-").unwrap_or(kernel);
    let own = format!("linux-headers-{version}");
    let common = format!("{}-common", own.trim_end_matches("-amd64"));
    let mut names = vec![own.as_str(), common.as_str()];
    names.extend(TOOLS);
    let resolved = packages::resolve(supervisor, &names)?;
    let headers = packages::entry(supervisor, cache, ("headers", "1"), &resolved, again, |folder| {
        let makefile = folder.join("usr/src").join(&own).join("Makefile");
        let text = fs::read_to_string(&makefile).map_err(io_error(&makefile))?;
        fs::write(&makefile, beside(&text)).map_err(io_error(&makefile))
    })?;
    let files = sources(&source.join(FOLDER))?;
    let mut parts: Vec<&str> = resolved.iter().map(|package| package.checksum.as_str()).collect();
    parts.extend(files.iter().flat_map(|(name, text)| [name.as_str(), text.as_str()]));
    let entry = cache.0.entry("module", &parts, again, |folder| {
        for (name, text) in &files {
            fs::write(folder.join(name), text).map_err(io_error(folder))?;
        }
        let mut make = Command::new("make");
        make.arg(format!("KDIR={}", headers.join("usr/src").join(&own).display())).current_dir(folder);
        make.env("LD_LIBRARY_PATH", headers.join("usr/lib/x86_64-linux-gnu"));
        supervisor.run(&mut make, LIMIT)?;
        Ok::<_, TestbedError>(())
    })?;
    let module = entry.join(format!("{NAME}.ko"));
    if module.is_file() { Ok(module) } else { Err(TestbedError::NotInPackage(module)) }
}

/// The headers' makefile includes that of the common headers by its path in the system; here they are beside it.
fn beside(makefile: &str) -> String {
    makefile.replace("/usr/src/", "../")
}

/// What the module is made from, in the order of the names.
fn sources(folder: &Path) -> Result<Vec<(String, String)>, TestbedError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(io_error(folder))? {
        let path = entry.map_err(io_error(folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name == "Makefile" || name.ends_with(".c") && !name.ends_with(".mod.c") || name.ends_with(".h") {
            files.push((name, fs::read_to_string(&path).map_err(io_error(&path))?));
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_common_headers_are_looked_for_beside_the_own() {
        let text = "include /usr/src/linux-headers-6.1.0-56-common/Makefile\n";
        assert_eq!(beside(text), "include ../linux-headers-6.1.0-56-common/Makefile\n");
    }

    #[test]
    fn only_sources_count_and_in_order() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.c", "a.h", "Makefile", "x.mod.c", "x.o", "LICENSE"] {
            fs::write(folder.path().join(name), name).unwrap();
        }
        let names: Vec<_> = sources(folder.path()).unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["Makefile", "a.h", "b.c"]);
        assert!(sources(Path::new("/does/not/exist")).is_err());
    }
}
