//! What must be in order before a guest is created, and what a manager that was killed has left.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use fido_core::assignment::Assignment;
use fido_core::platform::xen::layout::{self, LayoutError, ManagerNode};
use fido_core::platform::xen::store::Store;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::guest::Home;
use super::life::{UUID_PREFIX, guests};
use super::vault::{KernelVault, Vault};
use super::xl::Xl;
use super::{XenCarrier, XenError};
use crate::manifest::Manifest;
use crate::xen::{config, limits};

impl XenCarrier {
    /// Checks everything that can be checked without creating a guest, and ends guests that a manager of the same
    /// appliance has left behind.
    pub(in crate::manager) fn new(manifest: Arc<Manifest>) -> Result<Self, XenError> {
        let xl = Xl::find()?;
        let store = Store::connect()?;
        check_files(&manifest)?;
        Self::prepare(manifest, xl, store, Box::new(KernelVault))
    }

    /// The rest of it, with a toolstack, a store and a vault.
    pub(super) fn prepare(
        manifest: Arc<Manifest>,
        xl: Xl,
        store: Store,
        vault: Box<dyn Vault>,
    ) -> Result<Self, XenError> {
        let claim = claim(&manifest.appliance)?;
        let (needed, allowed) = (limits::of_hypervisor(&manifest), xl.limits()?);
        if needed.grant_frames > allowed.grant_frames || needed.maptrack_frames > allowed.maptrack_frames {
            let line = needed.max(allowed).command_line();
            return Err(XenError::Limits { needed, allowed, line });
        }
        sweep(&manifest, &xl, &store)?;
        Ok(Self::over(manifest, xl, store, vault, claim)?)
    }
}

/// Whether kernels and images can be read.
pub(super) fn check_files(manifest: &Manifest) -> Result<(), XenError> {
    for domain in &manifest.domains {
        let Some(guest) = &domain.guest else { continue };
        let files: [(&'static str, &PathBuf, &'static str); 2] = [
            ("kernel", &guest.kernel, "give the kernel of the guests, such as /boot/vmlinuz-…"),
            ("image", &guest.image, "make it from the manifest with `fido xen image`"),
        ];
        for (key, path, help) in files {
            let opened = std::fs::File::open(path).and_then(|file| file.metadata());
            let source = match opened {
                Ok(metadata) if metadata.is_file() => continue,
                Ok(_) => std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a file"),
                Err(error) => error,
            };
            return Err(XenError::File { domain: domain.name.clone(), key, path: path.clone(), source, help });
        }
    }
    Ok(())
}

/// Takes the appliance's name on this machine. It is free again when the answer is closed, however that happens.
fn claim(appliance: &str) -> Result<OwnedFd, XenError> {
    let system =
        |errno: rustix::io::Errno| XenError::System { step: "claim the appliance's name", source: errno.into() };
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
    let socket = socket.map_err(system)?;
    let name = SocketAddrUnix::new_abstract_name(format!("fido-xen-{appliance}").as_bytes()).map_err(system)?;
    match rustix::net::bind(&socket, &name) {
        Ok(()) => Ok(socket),
        Err(rustix::io::Errno::ADDRINUSE) => Err(XenError::Running(appliance.to_owned())),
        Err(errno) => Err(system(errno)),
    }
}

/// Whether a guest has been told that it belongs to another appliance: with hyphens in them, the names of two appliances
/// and of their domains can make the same name of a guest.
fn is_of_another(manifest: &Manifest, store: &Store, home: &Home) -> Result<bool, XenError> {
    let path = ManagerNode::Assignment.path(&home.path);
    let document = match layout::read_document(&store.now(), &path) {
        Err(LayoutError::Store(error)) if error.code().is_none() => return Err(error.into()),
        // It has been told nothing yet, or goes away right now.
        document => document.unwrap_or_default(),
    };
    let assignment: Option<Assignment> = serde_json::from_slice(&document).ok();
    Ok(assignment.is_some_and(|assignment| assignment.appliance != manifest.appliance))
}

/// Ends the guests that have the names of this appliance's domains. Their manager is gone: its claim was.
fn sweep(manifest: &Manifest, xl: &Xl, store: &Store) -> Result<(), XenError> {
    let names: Vec<_> =
        manifest.domains.iter().map(|domain| config::guest_name(&manifest.appliance, &domain.name)).collect();
    for (home, guest) in guests(store)? {
        if !names.contains(&guest.name) {
            continue;
        }
        if !guest.uuid.starts_with(UUID_PREFIX) || is_of_another(manifest, store, &home)? {
            return Err(XenError::NameTaken { name: guest.name, domain: home.domain });
        }
        tracing::warn!(guest = guest.name, domain = home.domain, "destroying what a manager that was killed has left");
        xl.run(&["destroy", &home.domain.to_string()]).map_err(XenError::Xl)?;
    }
    Ok(())
}
