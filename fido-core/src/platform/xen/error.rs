//! What can go wrong on Xen besides xenstore, and what to do about it.

use std::io;

use super::directory::DirectoryError;
use super::layout::LayoutError;
use super::store::StoreError;
use crate::addr::DomainId;

/// Why the platform could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum XenError {
    /// A device is missing.
    #[error("{device} cannot be opened ({source}); `modprobe {module}`, if this is a Xen guest or dom0 at all")]
    NoDevice {
        /// Where it should be.
        device: &'static str,
        /// The kernel module that provides it.
        module: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// A device is there, but this process may not use it.
    #[error("{device} cannot be opened ({source}); run as root, or let this user read and write it")]
    Privilege {
        /// Which.
        device: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// The pages of an arena cannot be allocated.
    #[error("{pages} pages for the arena cannot be had ({source}): {fix}")]
    NoPages {
        /// How many.
        pages: u64,
        /// What to do.
        fix: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The pages of an arena cannot be granted.
    #[error("the arena's {pages} pages cannot be granted to domain {domain} ({source}): {fix}")]
    NotGranted {
        /// How many.
        pages: u64,
        /// To whom.
        domain: u16,
        /// What to do.
        fix: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// Stock gntalloc's pages have one reader.
    #[error(
        "this arena is granted to domain {pair} and to nobody else, so domain {domain} cannot read it: stock gntalloc can \
         grant a page to one domain only. Load the module `fido_arena` (xen-tools/kmod) in this guest, and start the \
         domain again; it must also be started again when its only reader comes back with another number"
    )]
    OnlyPairs {
        /// The reader there is.
        pair: u16,
        /// The one that cannot be.
        domain: u16,
    },
    /// Neither provider of arenas is there.
    #[error("there is nothing to grant memory with: {module}; and stock gntalloc: {gntalloc}")]
    NoProvider {
        /// Why not the module.
        module: Box<XenError>,
        /// Why not gntalloc.
        gntalloc: Box<XenError>,
    },
    /// Stock gntalloc has to know the reader before there is an arena.
    #[error(
        "{module}. Stock gntalloc needs to know the only reader beforehand, and the manager names none (node `pair`), \
         because there are several or none"
    )]
    NoPair {
        /// Why not the module.
        module: Box<XenError>,
    },
    /// Xen refuses a reference.
    #[error(
        "reference {reference} (page {page}) of domain {domain} cannot be mapped, Xen says {status}: {}",
        status_text(*status)
    )]
    BadReference {
        /// The owner.
        domain: u16,
        /// Which page of the arena.
        page: usize,
        /// The reference in question.
        reference: u32,
        /// Xen's `GNTST_*`.
        status: i16,
    },
    /// All references are good, but they cannot be mapped.
    #[error(
        "{pages} pages of domain {domain} cannot be mapped although each of them is granted ({source}): this guest's table \
         of mappings is probably full; raise `max_maptrack_frames` in its xl configuration, and Xen's own limit \
         `gnttab_max_maptrack_frames` on its command line. In a PVH guest the hypervisor may have no memory left for page \
         tables, too; raise `shadow_memory`: 8 MiB for each GiB that is mapped, beyond xl's default"
    )]
    NoMaptrack {
        /// The owner.
        domain: u16,
        /// How many pages.
        pages: usize,
        /// The kernel's reason.
        source: io::Error,
    },
    /// A foreign mapping failed.
    #[error(
        "frame {frame:#x} of domain {domain} cannot be mapped (error {error}); only a privileged domain may, and only while \
         that domain lives"
    )]
    Foreign {
        /// The owner.
        domain: u16,
        /// The frame in question.
        frame: u64,
        /// The kernel's negative error number.
        error: i32,
    },
    /// The pages that list an arena's references make no sense.
    #[error("the directory of the arena of {id} (domain {domain}): {source}")]
    Directory {
        /// Whose.
        id: DomainId,
        /// Its number on this host.
        domain: u16,
        /// What is wrong.
        source: DirectoryError,
    },
    /// A peer's event channel cannot be had.
    #[error(
        "port {port} of domain {domain} cannot be bound ({source}): the peer has gone in the middle of the handshake, or the \
         port is not for this domain"
    )]
    NotBound {
        /// The peer.
        domain: u16,
        /// Its port.
        port: u32,
        /// The kernel's reason.
        source: io::Error,
    },
    /// No event channel is left.
    #[error(
        "no event channel for domain {domain} ({source}); see Xen's limit `max_event_channels` in the xl configuration"
    )]
    NoPort {
        /// The peer.
        domain: u16,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The peer has another idea of a link's lanes.
    #[error("link {link} has {own} lanes here, and the peer made {ports} ports for it")]
    Lanes {
        /// The link.
        link: u32,
        /// Lanes of this end.
        own: usize,
        /// Ports of the other.
        ports: usize,
    },
    /// xenstore failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A node of xenstore makes no sense.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The operating system's error.
    #[error("cannot {step}: {source}")]
    System {
        /// What was being done.
        step: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

impl XenError {
    pub(super) fn system(step: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::System { step, source }
    }
}

/// What a `GNTST_*` of Xen's public header `grant_table.h` means here.
fn status_text(status: i16) -> &'static str {
    match status {
        -1 => "it is not granted to this domain: it is for another one, or its owner took it back",
        -2 => "there is no such domain any more: it has gone in the middle of the handshake",
        -3 => "its owner has no such reference",
        -8 => "this domain may not",
        -9 => "its page is not there",
        _ => "see GNTST_* in Xen's header grant_table.h",
    }
}
