//! The NAS as an appliance: the manifest of each mode.

use std::error::Error;
use std::fmt::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use conn_mgr::manager::WaitError;
use conn_mgr::manifest::{Manifest, ManifestError};
use conn_mgr::{Manager, Options};

use crate::interrupt::Interrupted;

/// How often one that starts is asked whether it should.
const GLANCE: Duration = Duration::from_millis(50);

/// What whoever edits the printed manifest may set, too.
const THREADS: &str =
    "# threads = 2    # the most that serve its lanes, 1 to 64; by default its share of the processors\n";

/// How the NAS is put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Three isolated domains that pass pointers: what Fido is for.
    Split,
    /// The same three domains with the classic transport: each payload copied into and out of a shared ring, a
    /// notification per request, as netfront and blkfront do.
    Copying,
    /// The same components in one process, with direct calls.
    Monolithic,
}

impl Mode {
    /// All modes, in the order of the demo.
    pub const ALL: [Self; 3] = [Self::Split, Self::Copying, Self::Monolithic];

    /// Its name on the command line and in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Split => "split",
            Self::Copying => "copying",
            Self::Monolithic => "monolithic",
        }
    }
}

/// A NAS to be started.
#[derive(Debug, Clone)]
pub struct Nas {
    /// How it is put together.
    pub mode: Mode,
    /// This program, which holds all components.
    pub program: PathBuf,
    /// The image file; created and formatted on first use.
    pub image: PathBuf,
    /// The image's size in bytes when it is created.
    pub size: u64,
    /// The device in the image's place, as a description of `mmblk`'s; paths in it are absolute.
    pub disk: Option<String>,
    /// Where it serves NFS and MOUNT.
    pub listen: SocketAddr,
}

impl Nas {
    /// The appliance's manifest as a text that `fidod` takes as well.
    pub fn manifest_text(&self) -> String {
        let mut text = format!("appliance = \"nas-{}\"\n", self.mode.name());
        match self.mode {
            Mode::Monolithic => self.monolithic(&mut text),
            Mode::Split => self.split(&mut text, "pointer"),
            Mode::Copying => self.split(&mut text, "copying"),
        }
        text
    }

    /// The appliance's manifest.
    ///
    /// # Errors
    /// [`ManifestError`] if a path in it is not what it should be.
    pub fn manifest(&self) -> Result<Manifest, ManifestError> {
        Manifest::parse(&self.manifest_text(), "the NAS's manifest")
    }

    /// Starts it and waits until it serves, or until `go_on` has an error.
    ///
    /// # Errors
    /// Whatever keeps it from serving.
    pub fn start(
        &self,
        patience: Duration,
        go_on: &dyn Fn() -> Result<(), Interrupted>,
    ) -> Result<Manager, Box<dyn Error>> {
        if self.image.to_str().is_none() {
            let name = self.image.display();
            return Err(format!("the image's path {name} is no UTF-8 text, which a manifest has to be").into());
        }
        let manager = Manager::start(self.manifest()?, Options::default())?;
        let deadline = Instant::now() + patience;
        loop {
            match manager.wait_ready(GLANCE) {
                Ok(_) => return Ok(manager),
                Err(WaitError::Timeout { .. }) if Instant::now() < deadline => go_on()?,
                Err(error) => return Err(format!("{error}; what it said of it is above").into()),
            }
        }
    }

    fn split(&self, text: &mut String, transport: &str) {
        self.domain(text, "disk", "128MiB", "windows = [\"net\"]", &(self.disk_params() + THREADS));
        self.domain(text, "fs", "64MiB", "after = [\"disk\"]\ninherit = true", "");
        self.domain(text, "net", "128MiB", "windows = [\"disk\"]", &self.listen_param());
        for (name, a, b, lanes) in [("disk", "fs", "disk", 2), ("nfs", "net", "fs", 1)] {
            // Writing to a String cannot fail.
            let _ = write!(
                text,
                "\n[[link]]\nname = \"{name}\"\nbetween = [\"{a}\", \"{b}\"]\nlanes = {lanes}\nslots = 1024\ntransport = \"{transport}\"\n"
            );
        }
    }

    fn monolithic(&self, text: &mut String) {
        let params = self.disk_params() + &self.listen_param();
        self.domain(text, "monolith", "320MiB", "inherit = true", &params);
    }

    fn domain(&self, text: &mut String, name: &str, arena: &str, more: &str, params: &str) {
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "\n[domain.{name}]\nprogram = {}\nargs = [\"component\", \"{name}\"]\narena = \"{arena}\"\nrestart-limit = 100\n",
            quoted(&self.program)
        );
        if !more.is_empty() {
            let _ = writeln!(text, "{more}");
        }
        if !params.is_empty() {
            let _ = write!(text, "\n[domain.{name}.params]\n{params}");
        }
    }

    fn disk_params(&self) -> String {
        if let Some(disk) = &self.disk {
            return format!("device = {}\n", quoted(Path::new(disk)));
        }
        format!("image = {}\nsize = {}\n", quoted(&self.image), self.size)
    }

    fn listen_param(&self) -> String {
        format!("listen = \"{}\"\n", self.listen)
    }
}

/// A path as a TOML string.
fn quoted(path: &Path) -> String {
    let mut text = String::from("\"");
    for char in path.to_string_lossy().chars() {
        match char {
            '"' | '\\' => text.extend(['\\', char]),
            char if char.is_control() => {
                // Writing to a String cannot fail.
                let _ = write!(text, "\\u{:04X}", u32::from(char));
            }
            char => text.push(char),
        }
    }
    text.push('"');
    text
}

/// The address with a free port in place of port 0, so that a restarted net domain comes back where its clients look
/// for it.
///
/// # Errors
/// The system's, if the address cannot be bound.
pub fn fixed_port(listen: SocketAddr) -> std::io::Result<SocketAddr> {
    if listen.port() != 0 {
        return Ok(listen);
    }
    TcpListener::bind(listen)?.local_addr()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mode_has_a_valid_manifest() {
        for mode in Mode::ALL {
            let nas = Nas {
                mode,
                program: std::env::current_exe().unwrap(),
                image: "/tmp/a \"quoted\\ image\n".into(),
                size: 1 << 30,
                disk: None,
                listen: ([127, 0, 0, 1], 2049).into(),
            };
            let manifest = nas.manifest().unwrap();
            assert_eq!(manifest.domains.len(), if mode == Mode::Monolithic { 1 } else { 3 });
            let disk = manifest.domains.iter().find(|domain| domain.params.contains_key("image")).unwrap();
            assert_eq!(disk.params["image"], nas.image.to_str().unwrap());
            let text = "raid5(file:/a\\,\"b\"; file:/c; file:/d)";
            let manifest = Nas { disk: Some(text.into()), ..nas }.manifest().unwrap();
            let disk = manifest.domains.iter().find(|domain| domain.params.contains_key("device")).unwrap();
            assert_eq!(disk.params["device"], text);
            assert!(!disk.params.contains_key("image"));
        }
    }

    #[test]
    fn port_zero_becomes_a_real_one() {
        let address = fixed_port(([127, 0, 0, 1], 0).into()).unwrap();
        assert_ne!(address.port(), 0);
        assert_eq!(fixed_port(address).unwrap(), address);
    }
}
