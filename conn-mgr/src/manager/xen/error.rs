//! Why an appliance cannot be run on this machine's Xen.

use std::path::PathBuf;

use fido_core::platform::xen::layout::LayoutError;
use fido_core::platform::xen::store::StoreError;

use crate::xen::limits::GrantLimits;

/// See the module. Nothing of the appliance runs then.
#[derive(Debug, thiserror::Error)]
pub enum XenError {
    /// There is no toolstack.
    #[error(
        "there is no `xl` in PATH, /usr/sbin or /usr/lib/xen-*/bin: an appliance with platform `xen` is run in dom0 of a \
         Xen host, with Xen's utilities installed (Debian: xen-utils-common). Without Xen, use platform `host`"
    )]
    NoXl,
    /// `xl` has failed.
    #[error("{0}")]
    Xl(String),
    /// xenstore cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is in xenstore makes no sense.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Xen's tables are smaller than the appliance needs.
    #[error(
        "the arenas and links of this appliance need grant tables of up to {} frames and maptrack tables of up to {}, but \
         this Xen allows {} and {}; put on Xen's command line (Debian: GRUB_CMDLINE_XEN_DEFAULT) and reboot: {line}",
        needed.grant_frames, needed.maptrack_frames, allowed.grant_frames, allowed.maptrack_frames
    )]
    Limits {
        /// What is needed.
        needed: GrantLimits,
        /// What there is.
        allowed: GrantLimits,
        /// What would help.
        line: String,
    },
    /// A kernel or an image is not there.
    #[error("domain `{domain}`, `xen.{key}`: {path} cannot be read ({source}); {help}")]
    File {
        /// Whose.
        domain: String,
        /// Which key of the manifest.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
        /// What would help.
        help: &'static str,
    },
    /// Another manager has it.
    #[error("another manager on this machine runs an appliance named `{0}`; shut that down first, or rename this one")]
    Running(String),
    /// A guest of somebody else has a name that is needed.
    #[error(
        "there is a guest named `{name}` (number {domain}), which no manager of this appliance has made; end it (`xl destroy {domain}`), or \
         rename the appliance or the domain"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// The guest's number.
        domain: u16,
    },
    /// The operating system's error.
    #[error("cannot {step}: {source}")]
    System {
        /// What was being done.
        step: &'static str,
        /// The reason.
        source: std::io::Error,
    },
}
