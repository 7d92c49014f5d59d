//! What the doctor looks at: files, devices, xenstore, and what `xl` says.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fido_core::platform::xen::store::Store;

/// How long xl may take; without xenstored it would wait for ever.
const PATIENCE: Duration = Duration::from_secs(5);

/// How a device is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// For reading only.
    Read,
    /// For both.
    Both,
}

/// A machine that can be looked at.
pub trait Machine {
    /// The text of a file of the system; `None` if it is not there or cannot be read.
    fn read(&self, path: &str) -> Option<String>;

    /// Opens a device, and closes it again.
    ///
    /// # Errors
    /// The system's.
    fn open(&self, path: &str, access: Access) -> io::Result<()>;

    /// The number of this domain, from xenstore.
    ///
    /// # Errors
    /// Why xenstored does not answer, in words that say what to do.
    fn domain_number(&self) -> Result<u32, String>;

    /// What `xl info` says; only dom0 can ask.
    ///
    /// # Errors
    /// Why it says nothing.
    fn hypervisor_info(&self) -> Result<String, String>;
}

/// The system that this process runs on. With another root than `/`, files and devices are looked for below it.
pub struct System {
    root: PathBuf,
}

impl System {
    /// The system below a root.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_path_buf() }
    }

    fn place(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }
}

impl Machine for System {
    fn read(&self, path: &str) -> Option<String> {
        std::fs::read(self.place(path)).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    fn open(&self, path: &str, access: Access) -> io::Result<()> {
        std::fs::OpenOptions::new().read(true).write(access == Access::Both).open(self.place(path)).map(drop)
    }

    fn domain_number(&self) -> Result<u32, String> {
        let store = Store::connect().map_err(|error| error.to_string())?;
        let value = store.now().read("domid").map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&value).into_owned();
        text.trim().parse().map_err(|_| format!("the node `domid` says {text:?}"))
    }

    fn hypervisor_info(&self) -> Result<String, String> {
        let mut xl = Command::new("xl");
        xl.arg("info").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = xl.spawn().map_err(|error| format!("xl: {error}"))?;
        let began = Instant::now();
        // What it writes fits into the pipe.
        while child.try_wait().map_err(|error| format!("xl: {error}"))?.is_none() {
            if began.elapsed() > PATIENCE {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("xl info: no answer within {} s", PATIENCE.as_secs()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let output = child.wait_with_output().map_err(|error| format!("xl: {error}"))?;
        if !output.status.success() {
            return Err(format!("xl info: {}", output.status));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
