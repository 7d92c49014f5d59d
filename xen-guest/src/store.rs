//! The little of xenstore that init and the scenarios need: read and write a node, over the kernel's device.
//!
//! Source of the protocol: `docs/misc/xenstore.txt` and `xen/include/public/io/xs_wire.h` of Xen.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};

const DEVICE: &str = "/dev/xen/xenbus";
const READ: u32 = 2;
const WRITE: u32 = 11;
const ERROR: u32 = 16;

/// The most bytes that a message may carry.
const PAYLOAD_MAX: usize = 4096;

/// A connection to xenstored.
#[derive(Debug)]
pub struct Store {
    device: File,
    request: u32,
}

impl Store {
    /// Opens the device. In a guest, xenstored is there as long as the machine; in dom0, see to it first.
    ///
    /// # Errors
    /// The system's: no such device outside Xen, or no permission.
    pub fn open() -> io::Result<Self> {
        let device = OpenOptions::new().read(true).write(true).open(DEVICE);
        let device = device.map_err(|error| io::Error::new(error.kind(), format!("{DEVICE}: {error}")))?;
        Ok(Self { device, request: 0 })
    }

    /// The value of a node. A path that does not begin with `/` is below the domain's own folder.
    ///
    /// # Errors
    /// `NotFound` for a node that does not exist, or what xenstored or the system said.
    pub fn read(&mut self, path: &str) -> io::Result<String> {
        let value = self.ask(READ, &[path.as_bytes(), b"\0"].concat(), path)?;
        String::from_utf8(value).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("{path}: not text")))
    }

    /// Makes a node or changes its value.
    ///
    /// # Errors
    /// What xenstored or the system said.
    pub fn write(&mut self, path: &str, value: &str) -> io::Result<()> {
        self.ask(WRITE, &[path.as_bytes(), b"\0", value.as_bytes()].concat(), path).map(drop)
    }

    fn ask(&mut self, operation: u32, payload: &[u8], path: &str) -> io::Result<Vec<u8>> {
        let wrong = |what: String| io::Error::new(io::ErrorKind::InvalidData, format!("xenstore, {path}: {what}"));
        if payload.len() > PAYLOAD_MAX {
            return Err(wrong(format!("{} bytes do not fit into a message of {PAYLOAD_MAX}", payload.len())));
        }
        self.request = self.request.wrapping_add(1);
        let mut message = Vec::with_capacity(16 + payload.len());
        for word in [operation, self.request, 0, payload.len() as u32] {
            message.extend_from_slice(&word.to_ne_bytes());
        }
        message.extend_from_slice(payload);
        self.device.write_all(&message)?;
        let mut head = [0; 16];
        self.device.read_exact(&mut head)?;
        let word = |n: usize| u32::from_ne_bytes([head[4 * n], head[4 * n + 1], head[4 * n + 2], head[4 * n + 3]]);
        let (kind, request, length) = (word(0), word(1), word(3) as usize);
        if length > PAYLOAD_MAX {
            return Err(wrong(format!("an answer of {length} bytes")));
        }
        let mut answer = vec![0; length];
        self.device.read_exact(&mut answer)?;
        match kind {
            _ if request != self.request => Err(wrong(format!("the answer to request {request}"))),
            ERROR => {
                let text = String::from_utf8_lossy(&answer).trim_end_matches('\0').to_owned();
                let kind = if text == "ENOENT" { io::ErrorKind::NotFound } else { io::ErrorKind::Other };
                Err(io::Error::new(kind, format!("xenstore, {path}: {text}")))
            }
            kind if kind == operation => Ok(answer),
            kind => Err(wrong(format!("an answer of kind {kind}"))),
        }
    }
}
