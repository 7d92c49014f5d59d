//! Our own programs for the machine, linked statically.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::TestbedError;
use super::exec::{Pending, Supervisor};
use crate::image::guest::Libraries;

/// The GNU target: what is linked statically for it runs in an image without anything else.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// What scenarios run in guests.
const GUEST: &str = "testbed-guest";
const LIMIT: Duration = Duration::from_secs(900);

/// Where the programs are.
pub struct Programs {
    folder: PathBuf,
    /// Where `testbed-guest` with the feature `libxen` is, linked dynamically.
    libxen: Option<PathBuf>,
}

/// The programs, while cargo builds them.
pub struct Building {
    cargo: Pending,
    target: PathBuf,
}

impl Programs {
    /// Begins to build them from the source tree.
    ///
    /// # Errors
    /// There is no cargo.
    pub fn begin(supervisor: &Supervisor, source: &Path) -> Result<Building, TestbedError> {
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| source.join("target"), PathBuf::from);
        let mut command = Command::new("cargo");
        command.args(["build", "--release", "--locked", "--bins"]);
        command.args(["--package", "xen-guest", "--package", "nas-demo", "--package", "conn-mgr"]);
        command.args(["--package", "xen-tools"]);
        command.args(["--target", TARGET, "--target-dir"]);
        command.arg(&target).current_dir(source);
        // A target named explicitly keeps the flags away from build scripts, and the files apart from the usual ones.
        // What is stripped need not be made first.
        command.env("RUSTFLAGS", "-C target-feature=+crt-static");
        command.env("CARGO_PROFILE_RELEASE_STRIP", "true").env("CARGO_PROFILE_RELEASE_DEBUG", "false");
        command.env_remove("CARGO_ENCODED_RUSTFLAGS");
        Ok(Building { cargo: supervisor.begin(&mut command)?, target })
    }

    /// One of them, for a guest.
    #[must_use]
    pub fn guests(&self, name: &str) -> PathBuf {
        self.libxen.as_ref().filter(|_| name == GUEST).map_or_else(|| self.file(name), |folder| folder.join(name))
    }

    /// The libraries for those that need some.
    #[must_use]
    pub fn libraries(&self) -> Option<Libraries> {
        // The crate loads it by this name.
        let opened = vec!["libxenevtchn.so".to_owned()];
        self.libxen.is_some().then(|| Libraries { root: "/".into(), opened })
    }

    /// One of them.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

impl Building {
    /// Waits until they are built; with `libxen`, builds what guests run by way of Xen's own libraries, too.
    ///
    /// # Errors
    /// What cargo says.
    pub fn finish(self, supervisor: &Supervisor, source: &Path, libxen: bool) -> Result<Programs, TestbedError> {
        let Self { cargo, target } = self;
        supervisor.finish(cargo, LIMIT)?;
        let libxen = libxen.then(|| build_libxen(supervisor, source, &target.join("libxen"))).transpose()?;
        Ok(Programs { folder: target.join(TARGET).join("release"), libxen })
    }
}

/// What scenarios run in guests, with the feature `libxen`. Returns the folder that it is in.
fn build_libxen(supervisor: &Supervisor, source: &Path, target: &Path) -> Result<PathBuf, TestbedError> {
    let mut command = Command::new("cargo");
    command.args(["build", "--release", "--locked", "--package", "xen-guest", "--bin", GUEST, "--features", "libxen"]);
    command.arg("--target-dir").arg(target).current_dir(source).env("CARGO_PROFILE_RELEASE_STRIP", "true");
    supervisor.run(&mut command, LIMIT)?;
    Ok(target.join("release"))
}

/// The source tree that a folder is in: the one with a workspace and the crate `xen-guest`.
///
/// # Errors
/// A folder that is in none.
pub fn source_tree(from: &Path) -> Result<PathBuf, TestbedError> {
    let is_it = |folder: &&Path| folder.join("Cargo.lock").is_file() && folder.join("xen-guest/Cargo.toml").is_file();
    from.ancestors().find(is_it).map(Path::to_path_buf).ok_or_else(|| TestbedError::NoSource(from.to_path_buf()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_tree_is_found_from_inside_and_only_there() {
        let own = Path::new(env!("CARGO_MANIFEST_DIR"));
        assert_eq!(source_tree(&own.join("src")).unwrap(), own.parent().unwrap());
        assert!(matches!(source_tree(Path::new("/")), Err(TestbedError::NoSource(_))));
    }
}
