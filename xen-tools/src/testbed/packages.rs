//! Debian's packages: which versions apt would take, the files themselves, and what is in them.
//!
//! Nothing is installed: `apt-get download` fetches, `dpkg-deb` unpacks. apt checks what it fetches.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::cache::Cache;
use super::exec::Supervisor;
use super::{TestbedError, io_error};

/// A question to apt's lists on the disk.
const QUESTION: Duration = Duration::from_secs(60);
const DOWNLOAD: Duration = Duration::from_secs(600);
const UNPACK: Duration = Duration::from_secs(180);

/// Where apt looks for packages: where the system does, or somewhere of our own.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lists {
    /// apt's options that make it so.
    options: Vec<String>,
}

/// Newer versions for Debian 12.
const BACKPORTS: &str = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] \
    http://deb.debian.org/debian bookworm-backports main\n";

impl Lists {
    /// Debian's backports, with lists in a folder of our own: the system's sources stay as they are, and root is not
    /// needed. The lists are empty until [`Lists::update`].
    ///
    /// # Errors
    /// The system's.
    pub fn backports(cache: &Path) -> Result<Self, TestbedError> {
        let folder = cache.join("backports");
        for name in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(name)).map_err(io_error(&folder))?;
        }
        let list = folder.join("sources.list");
        fs::write(&list, BACKPORTS).map_err(io_error(&list))?;
        let options = [
            format!("Dir::Etc::SourceList={}", list.display()),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            format!("Dir::State::Lists={}", folder.join("lists").display()),
            format!("Dir::Cache={}", folder.join("cache").display()),
        ];
        Ok(Self { options: options.into() })
    }

    /// Fetches them.
    ///
    /// # Errors
    /// apt's.
    pub fn update(&self, supervisor: &Supervisor) -> Result<(), TestbedError> {
        supervisor.run(self.tell(apt_get()).arg("update"), DOWNLOAD)?;
        Ok(())
    }

    /// As [`stands_for`], of these.
    ///
    /// # Errors
    /// apt's: a package that its lists do not have.
    pub fn stands_for(&self, supervisor: &Supervisor, name: &str) -> Result<String, TestbedError> {
        let text = supervisor.run(self.tell(Command::new("apt-cache")).args(["depends", name]), QUESTION)?;
        first_dependency(&text).ok_or_else(|| TestbedError::NoPackage(name.to_owned()))
    }

    /// As [`resolve`], of these.
    ///
    /// # Errors
    /// apt's: a package that its lists do not have.
    pub fn resolve(&self, supervisor: &Supervisor, names: &[&str]) -> Result<Vec<Package>, TestbedError> {
        let text = supervisor.run(self.tell(apt_get()).args(["--print-uris", "download"]).args(names), QUESTION)?;
        let mut packages = parse_uris(&text);
        packages.iter_mut().for_each(|package| package.lists = self.clone());
        let found: BTreeSet<&str> = packages.iter().map(|package| package.name.as_str()).collect();
        match names.iter().find(|name| !found.contains(**name)) {
            Some(missing) => Err(TestbedError::NoPackage((*missing).to_owned())),
            None => Ok(packages),
        }
    }

    fn tell(&self, mut command: Command) -> Command {
        for option in &self.options {
            command.args(["--option", option]);
        }
        command
    }
}

/// A package in the version that apt would take.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// The file that apt writes.
    pub file: String,
    /// Its checksum, as apt's lists have it.
    pub checksum: String,
    /// The lists that have it.
    lists: Lists,
}

/// Asks apt for the versions of these packages.
///
/// # Errors
/// apt's: a package that its lists do not have.
pub fn resolve(supervisor: &Supervisor, names: &[&str]) -> Result<Vec<Package>, TestbedError> {
    Lists::default().resolve(supervisor, names)
}

/// The package that a meta-package stands for: the first that it depends on.
///
/// # Errors
/// apt's: a package that its lists do not have.
pub fn stands_for(supervisor: &Supervisor, name: &str) -> Result<String, TestbedError> {
    Lists::default().stands_for(supervisor, name)
}

fn first_dependency(text: &str) -> Option<String> {
    text.lines().find_map(|line| line.trim().strip_prefix("Depends: ")).map(str::to_owned)
}

/// `'URI' FILE SIZE ALGORITHM:CHECKSUM`, a line each.
fn parse_uris(text: &str) -> Vec<Package> {
    let package = |line: &str| {
        let mut words = line.split_whitespace();
        let (_, file, _, checksum) = (words.next()?, words.next()?, words.next()?, words.next()?);
        let (name, _) = file.strip_suffix(".deb")?.split_once('_')?;
        let plain = !file.contains('/') && !name.is_empty() && checksum.contains(':');
        let lists = Lists::default();
        plain.then(|| Package { name: name.to_owned(), file: file.to_owned(), checksum: checksum.to_owned(), lists })
    };
    text.lines().filter_map(package).collect()
}

/// Unpacks packages into one folder. Those that the cache does not have are fetched.
///
/// # Errors
/// apt's, dpkg's, or the system's.
pub fn unpack(supervisor: &Supervisor, cache: &Path, packages: &[Package], to: &Path) -> Result<(), TestbedError> {
    for file in fetch(supervisor, cache, packages)? {
        supervisor.run(Command::new("dpkg-deb").arg("--extract").arg(file).arg(to), UNPACK)?;
    }
    Ok(())
}

/// The packages' files, from the cache or from Debian.
fn fetch(supervisor: &Supervisor, cache: &Path, packages: &[Package]) -> Result<Vec<PathBuf>, TestbedError> {
    let store = cache.join("packages");
    let place =
        |package: &Package| store.join(format!("{}-{}", &super::cache::key(&[&package.checksum]), package.file));
    let missing: Vec<&Package> = packages.iter().filter(|package| !place(package).is_file()).collect();
    if let Some(first) = missing.first() {
        fs::create_dir_all(&store).map_err(io_error(&store))?;
        let folder = super::cache::partial(cache)?;
        let names = missing.iter().map(|package| package.name.as_str());
        // Whoever resolves packages has them from the same lists.
        let mut command = first.lists.tell(apt_get());
        supervisor.run(command.arg("download").args(names).current_dir(folder.path()), DOWNLOAD)?;
        for package in missing {
            let file = folder.path().join(&package.file);
            fs::rename(&file, place(package)).map_err(io_error(&file))?;
        }
    }
    Ok(packages.iter().map(place).collect())
}

/// Without apt's own user, who could not write into the cache.
fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.args(["--quiet", "--option", "APT::Sandbox::User=root"]).env("LC_ALL", "C");
    command
}

/// Fetches apt's lists, which only root can.
///
/// # Errors
/// apt's.
pub fn update_lists(supervisor: &Supervisor) -> Result<(), TestbedError> {
    supervisor.run(apt_get().arg("update"), DOWNLOAD)?;
    Ok(())
}

/// Installs packages by name, which only root can.
///
/// # Errors
/// apt's.
pub fn install(supervisor: &Supervisor, names: &[&str]) -> Result<(), TestbedError> {
    let mut command = apt_get();
    command.args(["install", "--yes", "--no-install-recommends"]).args(names);
    supervisor.run(command.env("DEBIAN_FRONTEND", "noninteractive"), DOWNLOAD)?;
    Ok(())
}

/// A cache's entry with packages unpacked in it, changed by `then`.
///
/// # Errors
/// As for [`unpack`], or what `then` says.
pub fn entry(
    supervisor: &Supervisor,
    cache: (&Cache, &Path),
    (name, version): (&str, &str),
    packages: &[Package],
    again: bool,
    then: impl FnOnce(&Path) -> Result<(), TestbedError>,
) -> Result<PathBuf, TestbedError> {
    let mut parts: Vec<&str> = packages.iter().map(|package| package.checksum.as_str()).collect();
    parts.push(version);
    cache.0.entry(name, &parts, again, |folder| {
        unpack(supervisor, cache.1, packages, folder)?;
        then(folder)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_apt_would_fetch_is_read() {
        let text = "'http://deb/busybox-static_1.35.0-4%2bb1_amd64.deb' busybox-static_1%3a1.35.0-4+b1_amd64.deb 928188 \
                    SHA256:3d3f\nReading lists... Done\n'x' evil/../x_1_amd64.deb 1 SHA256:1\n'x' x_1_amd64.deb 1\n";
        let package = Package {
            name: "busybox-static".to_owned(),
            file: "busybox-static_1%3a1.35.0-4+b1_amd64.deb".to_owned(),
            checksum: "SHA256:3d3f".to_owned(),
            lists: Lists::default(),
        };
        assert_eq!(parse_uris(text), [package]);
        assert_eq!(parse_uris(""), []);
    }

    #[test]
    fn a_meta_package_names_its_package() {
        let text = "linux-image-amd64\n  Depends: linux-image-6.1.0-48-amd64\n  Suggests: x\n";
        assert_eq!(first_dependency(text).as_deref(), Some("linux-image-6.1.0-48-amd64"));
        assert_eq!(first_dependency("linux-image-amd64\n"), None);
    }
}
