//! Windows on Xen: the arena of another guest, mapped read-only in the pseudo-global address space.
//!
//! [`granted`] maps what the owner has granted to this domain. [`foreign`] is for a component in dom0: it needs no grant,
//! only dom0's privilege. Both open the kernel's device for reading only, so that no later `mprotect` makes the window
//! writable, and both stay readable when the owner dies, until they are dropped.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::mm::{MapFlags, ProtFlags};

use super::directory::{self, Kind, Label, Page, WORDS};
use super::error::XenError;
use super::sys::PAGE_BYTES;
use super::sys::gntdev::{Gntdev, MAX_REFERENCES};
use super::sys::privcmd::Privcmd;
use crate::addr::DomainId;
use crate::platform::place::{Mapping, reserve};
use crate::window::Window;

/// Whose arena is to be mapped, and what was said of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The incarnation.
    pub id: DomainId,
    /// Its number on this host.
    pub domain: u16,
    /// The arena's length in bytes.
    pub bytes: u64,
}

impl Owner {
    fn label(&self, kind: Kind, reader: u16) -> Result<Label, XenError> {
        let pages = directory::pages_of(self.bytes).map_err(|error| self.directory(error))?;
        Ok(Label { kind, owner: self.id, reader, pages })
    }

    fn directory(&self, source: directory::DirectoryError) -> XenError {
        XenError::Directory { id: self.id, domain: self.domain, source }
    }
}

/// Maps the arena whose root page has the reference `root`, granted to this domain, whose number is `reader`.
///
/// # Errors
/// [`XenError`]: no device, references that Xen or the directory's rules refuse, a full table.
pub fn granted(owner: Owner, reader: u16, root: u32) -> Result<Window, XenError> {
    let label = owner.label(Kind::Grants, reader)?;
    // A file of its own: on PVH the kernel lets go of the pages only when it is closed.
    let device = Gntdev::open()?;
    let list = read_lists(owner, label, root, |list, place| map_grants(&device, owner.domain, list, place))?;
    drop(device);
    let device = Gntdev::open()?;
    let mapping = map_grants(&device, owner.domain, &list, Place::Of(owner.id))?;
    Ok(window(owner, GrantMapping { mapping, _device: device }))
}

/// Maps the arena whose root page of frames has the number `root`, by dom0's privilege.
///
/// # Errors
/// [`XenError`]: no device or privilege, frames that are not there, a directory that breaks its rules.
pub fn foreign(owner: Owner, root: u32) -> Result<Window, XenError> {
    let device = Privcmd::open()?;
    let map = |list: &[u32], place| map_frames(&device, owner.domain, list, place);
    let list = read_lists(owner, owner.label(Kind::Frames, 0)?, root, map)?;
    let mapping = map_frames(&device, owner.domain, &list, Place::Of(owner.id))?;
    Ok(window(owner, mapping))
}

/// A mapping of grants, and the file that holds them. The mapping goes first.
struct GrantMapping {
    mapping: Mapping,
    _device: Gntdev,
}

impl AsRef<Mapping> for GrantMapping {
    fn as_ref(&self) -> &Mapping {
        &self.mapping
    }
}

impl AsRef<Mapping> for Mapping {
    fn as_ref(&self) -> &Mapping {
        self
    }
}

fn window(owner: Owner, mapping: impl AsRef<Mapping> + Send + Sync + 'static) -> Window {
    let base = mapping.as_ref().base;
    // SAFETY: `mapping` keeps the range readable: Xen never takes a mapped page away. It is aligned to a page.
    unsafe { Window::new(owner.id, base, owner.bytes, Box::new(mapping)) }
}

/// Where something is to be mapped.
#[derive(Clone, Copy)]
enum Place {
    /// In the pseudo-global place of an incarnation.
    Of(DomainId),
    /// Anywhere, for a moment.
    Any,
}

/// Addresses for so many pages.
fn addresses(pages: usize, place: Place) -> Result<Mapping, XenError> {
    let bytes = pages as u64 * PAGE_BYTES;
    let reserved = match place {
        Place::Of(id) => reserve(id, bytes),
        Place::Any => crate::platform::place::reserve_anywhere(bytes),
    };
    reserved.map_err(XenError::system("find addresses for an arena"))
}

/// The root page, then the directory pages, then the arena's: each list is copied once before it is believed.
fn read_lists(
    owner: Owner,
    label: Label,
    root: u32,
    map: impl Fn(&[u32], Place) -> Result<Mapping, XenError>,
) -> Result<Vec<u32>, XenError> {
    let error = |source| owner.directory(source);
    let page = copy(&map(&[root], Place::Any)?, 0);
    let directories = directory::read_root(&page, &label).map_err(error)?;
    let mapped = map(&directories, Place::Any)?;
    let pages: Vec<Page> = (0..directories.len()).map(|page| copy(&mapped, page)).collect();
    directory::read_directories(&pages, &label).map_err(error)
}

/// A page of a mapping, each word read exactly once.
fn copy(mapping: &Mapping, page: usize) -> Page {
    let bytes = PAGE_BYTES as usize;
    assert!((page + 1) * bytes <= mapping.len, "a page of the mapping");
    std::array::from_fn(|word: usize| {
        debug_assert!(word < WORDS);
        // SAFETY: within the mapping, by the check above, and aligned; accessed atomically, and only read.
        let word = unsafe { AtomicU32::from_ptr(mapping.base.add(page * bytes + word * 4).cast().as_ptr()) };
        u32::from_le(word.load(Ordering::Relaxed))
    })
}

/// Maps a part of a file over a part of reserved addresses.
fn map_over(reserved: &Mapping, at: usize, pages: usize, fd: BorrowedFd<'_>, offset: u64) -> io::Result<NonNull<u8>> {
    let (start, bytes) = (at * PAGE_BYTES as usize, pages * PAGE_BYTES as usize);
    if start.checked_add(bytes).is_none_or(|end| end > reserved.len) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: within the reserved range, by the check above.
    let address = unsafe { reserved.base.add(start) };
    // SAFETY: replaces addresses that `reserved` owns and that nobody can have accessed.
    let base = unsafe {
        rustix::mm::mmap(
            address.as_ptr().cast(),
            bytes,
            ProtFlags::READ,
            MapFlags::SHARED | MapFlags::FIXED,
            fd,
            offset,
        )?
    };
    NonNull::new(base.cast()).ok_or_else(|| io::ErrorKind::Other.into())
}

fn map_grants(device: &Gntdev, domain: u16, list: &[u32], place: Place) -> Result<Mapping, XenError> {
    let reserved = addresses(list.len(), place)?;
    for (number, part) in list.chunks(MAX_REFERENCES).enumerate() {
        let first = number * MAX_REFERENCES;
        let map = || {
            let index = device.announce(domain, part)?;
            map_over(&reserved, first, part.len(), device.as_fd(), index)
        };
        if let Err(source) = map() {
            return Err(explain(device, domain, part, first, source));
        }
    }
    Ok(reserved)
}

/// The kernel says only that a request failed. Xen can tell which page it would not read.
fn explain(device: &Gntdev, domain: u16, list: &[u32], first: usize, source: io::Error) -> XenError {
    match device.find_refused(domain, list) {
        Ok(Some((at, status))) => XenError::BadReference { domain, page: first + at, reference: list[at], status },
        Ok(None) => XenError::NoMaptrack { domain, pages: first + list.len(), source },
        Err(_) => XenError::System { step: "map granted pages", source },
    }
}

fn map_frames(device: &Privcmd, domain: u16, list: &[u32], place: Place) -> Result<Mapping, XenError> {
    let reserved = addresses(list.len(), place)?;
    let step = XenError::system("map a foreign domain's pages");
    let base = map_over(&reserved, 0, list.len(), device.as_fd(), 0).map_err(&step)?;
    let frames: Vec<u64> = list.iter().map(|&frame| frame.into()).collect();
    // SAFETY: just mapped for this, as long as the list, and known to nobody else.
    match unsafe { device.fill(domain, base, &frames) } {
        Ok(None) => Ok(reserved),
        Ok(Some((at, error))) => Err(XenError::Foreign { domain, frame: frames[at], error }),
        Err(source) => Err(step(source)),
    }
}
