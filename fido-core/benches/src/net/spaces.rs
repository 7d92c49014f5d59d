//! Network namespaces, and what joins them.

use std::fs::File;
use std::os::fd::AsFd;
use std::process::Command;

use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use crate::Failure;

/// Runs `ip` in the calling thread's namespace.
///
/// # Errors
/// If it is not installed, or what it says.
pub fn ip(words: &str) -> Result<(), Failure> {
    let output = Command::new("ip").args(words.split(' ')).output();
    let output = output.map_err(|error| format!("ip (Debian's package iproute2): {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip {words}: {}", String::from_utf8_lossy(&output.stderr).trim()).into())
}

/// Takes the calling thread into a network namespace of its own.
///
/// # Errors
/// The kernel's.
pub fn leave() -> Result<(), Failure> {
    // SAFETY: descriptors stay shared; only the network is another one.
    let left = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) };
    left.map_err(|error| format!("no network namespace: {error} (it takes CAP_SYS_ADMIN)").into())
}

/// Why there is no pair of veth devices here, if so.
pub fn absent() -> Option<String> {
    let tried = std::thread::spawn(|| {
        leave()?;
        ip("link add veth0 type veth peer name veth1")
    });
    match tried.join() {
        Ok(tried) => tried.err().map(|error| error.to_string()),
        Err(_) => Some("the thread that tries it panicked".into()),
    }
}

/// A namespace with a name, removed with all that is in it.
pub struct Space {
    /// As `ip netns` knows it.
    pub name: String,
}

impl Space {
    /// A new one; `side` tells those of this process apart.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn new(side: &str) -> Result<Self, Failure> {
        let name = format!("fido-bench-{}-{side}", std::process::id());
        ip(&format!("netns add {name}"))?;
        let space = Self { name };
        space.ip("link set lo up")?;
        Ok(space)
    }

    /// Runs `ip` in it.
    ///
    /// # Errors
    /// What it says.
    pub fn ip(&self, words: &str) -> Result<(), Failure> {
        ip(&format!("-n {} {words}", self.name))
    }

    /// A program to be run in it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        // What cannot be removed is left; there is nobody to tell.
        let _ = ip(&format!("netns del {}", self.name));
    }
}

/// Takes the calling thread into the namespace with that name.
///
/// # Errors
/// The kernel's.
pub fn enter(name: &str) -> Result<(), Failure> {
    let file = File::open(format!("/run/netns/{name}"))?;
    Ok(rustix::thread::move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?)
}
