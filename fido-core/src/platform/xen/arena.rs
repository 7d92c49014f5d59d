//! Arenas on Xen: pages of this guest that others may read, and the directories that tell them the references.
//!
//! Two providers behind one face (`Pages`): our kernel module, which grants to any number of domains, and stock
//! gntalloc, which grants each page to one domain, named beforehand. [`SharedArena`] keeps an arena's readers.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use rustix::io::Errno;
use rustix::mm::ProtFlags;

use super::directory::{self, Kind, Label, Page};
use super::error::XenError;
use super::layout::ProviderKind;
use super::sys::PAGE_BYTES;
use super::sys::fido_arena::FidoArena;
use super::sys::gntalloc::{Gntalloc, LIMIT};
use crate::addr::DomainId;
use crate::arena::RawArena;
use crate::platform::place::{self, Mapping};

/// Pages that others may read.
trait Pages: Send {
    /// How many.
    fn count(&self) -> usize;

    /// Lets `domain` read them; their references, in order.
    fn grant(&mut self, domain: u16) -> Result<Vec<u32>, XenError>;

    /// Takes them back from `domain`. What it maps stays readable to it until it lets go.
    fn revoke(&mut self, domain: u16) -> Result<(), XenError>;

    /// Their frame numbers, if they can be known.
    fn frames(&self) -> Result<Option<Vec<u64>>, XenError>;

    /// Maps them, writable: at an incarnation's place, or anywhere.
    fn map(&self, id: Option<DomainId>) -> io::Result<Mapping>;
}

/// The pages of one file of our module.
struct ModulePages {
    device: FidoArena,
    count: usize,
}

impl ModulePages {
    fn allocate(count: usize) -> Result<Self, XenError> {
        let device = FidoArena::open()?;
        device.create(count as u64).map_err(|source| {
            let fix = match Errno::from_io_error(&source) {
                Some(Errno::FBIG) => "raise the parameter max_arena_pages of the module fido_arena",
                Some(Errno::NOSPC) => "give the guest more memory, or raise the parameter max_pages of fido_arena",
                Some(Errno::PROTO) => "the module fido_arena is of another release; build it from this one",
                _ => "give the guest more memory",
            };
            XenError::NoPages { pages: count as u64, fix, source }
        })?;
        Ok(Self { device, count })
    }
}

impl Pages for ModulePages {
    fn count(&self) -> usize {
        self.count
    }

    fn grant(&mut self, domain: u16) -> Result<Vec<u32>, XenError> {
        self.device.grant(domain, self.count).map_err(|source| not_granted(self.count, domain, source))
    }

    fn revoke(&mut self, domain: u16) -> Result<(), XenError> {
        let mapped = self.device.revoke(domain).map_err(XenError::system("take an arena back"))?;
        tracing::debug!(domain, mapped, "took the pages back");
        Ok(())
    }

    fn frames(&self) -> Result<Option<Vec<u64>>, XenError> {
        self.device.frames(self.count).map(Some).map_err(XenError::system("ask for the frames of an arena"))
    }

    fn map(&self, id: Option<DomainId>) -> io::Result<Mapping> {
        map_whole(&self.device, 0, self.count, id)
    }
}

fn not_granted(pages: usize, domain: u16, source: io::Error) -> XenError {
    let fix = match Errno::from_io_error(&source) {
        Some(Errno::NOSPC) => {
            "the grant table is full (a page for each of its readers takes an entry, 512 entries a frame): raise \
             `max_grant_frames` in the guest's xl configuration, and Xen's own limit `gnttab_max_frames` on its command line"
        }
        Some(Errno::MFILE) => "the arena has the most readers that the module fido_arena allows",
        Some(Errno::EXIST) => "it is granted to that domain already",
        Some(Errno::INVAL) => "that cannot be a domain",
        _ => "give the guest more memory",
    };
    XenError::NotGranted { pages: pages as u64, domain, fix, source }
}

/// Pages from stock gntalloc, for one domain.
struct PairPages {
    device: Gntalloc,
    index: u64,
    references: Vec<u32>,
    pair: u16,
}

impl PairPages {
    fn allocate(count: usize, pair: u16) -> Result<Self, XenError> {
        let device = Gntalloc::open()?;
        let wanted = u32::try_from(count).unwrap_or(u32::MAX);
        let (index, references) = match device.allocate(pair, wanted) {
            // The module starts with a limit of 1024 pages; who may use it may mostly raise it too.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NOSPC) && raise_limit(count) => {
                device.allocate(pair, wanted)
            }
            result => result,
        }
        .map_err(|source| {
            let fix = match Errno::from_io_error(&source) {
                Some(Errno::NOSPC) => {
                    "raise the parameter `limit` of xen-gntalloc, or `max_grant_frames` in the guest's xl configuration"
                }
                _ => "give the guest more memory",
            };
            XenError::NoPages { pages: count as u64, fix, source }
        })?;
        Ok(Self { device, index, references, pair })
    }
}

/// Raises gntalloc's limit by so many pages; whether that worked.
fn raise_limit(pages: usize) -> bool {
    let limit = std::fs::read_to_string(LIMIT).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let wanted = limit.and_then(|limit| limit.checked_add(pages as u64)).filter(|wanted| *wanted <= i32::MAX as u64);
    wanted.is_some_and(|wanted| std::fs::write(LIMIT, wanted.to_string()).is_ok())
}

impl Pages for PairPages {
    fn count(&self) -> usize {
        self.references.len()
    }

    fn grant(&mut self, domain: u16) -> Result<Vec<u32>, XenError> {
        if domain != self.pair {
            return Err(XenError::OnlyPairs { pair: self.pair, domain });
        }
        Ok(self.references.clone())
    }

    fn revoke(&mut self, _domain: u16) -> Result<(), XenError> {
        // gntalloc takes pages back only when they are freed, and they have this one reader.
        Ok(())
    }

    fn frames(&self) -> Result<Option<Vec<u64>>, XenError> {
        Ok(None)
    }

    fn map(&self, id: Option<DomainId>) -> io::Result<Mapping> {
        map_whole(&self.device, self.index, self.references.len(), id)
    }
}

fn map_whole(device: &impl AsFd, offset: u64, pages: usize, id: Option<DomainId>) -> io::Result<Mapping> {
    let len = pages as u64 * PAGE_BYTES;
    let access = ProtFlags::READ | ProtFlags::WRITE;
    match id {
        Some(id) => place::map(device.as_fd(), offset, id, len, access),
        None => place::map_anywhere(device.as_fd(), offset, len, access),
    }
}

/// What arenas of this guest are made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provider {
    /// The kernel module `fido_arena`.
    Module,
    /// Stock gntalloc, for that one reader.
    Gntalloc {
        /// The reader's number.
        pair: u16,
    },
}

impl Provider {
    /// The best that this guest has. `pair` asks for the only reader there will be, and is called only if it matters.
    ///
    /// # Errors
    /// [`XenError::NoProvider`] or [`XenError::NoPair`] with what is missing; the error of `pair`.
    pub fn find(pair: impl FnOnce() -> Result<Option<u16>, XenError>) -> Result<Self, XenError> {
        let Err(module) = FidoArena::open() else { return Ok(Self::Module) };
        let module = Box::new(module);
        match Gntalloc::open() {
            Err(gntalloc) => Err(XenError::NoProvider { module, gntalloc: Box::new(gntalloc) }),
            Ok(_) => match pair()? {
                Some(pair) => Ok(Self::Gntalloc { pair }),
                None => Err(XenError::NoPair { module }),
            },
        }
    }

    /// As it is published.
    pub fn kind(self) -> ProviderKind {
        match self {
            Self::Module => ProviderKind::Module,
            Self::Gntalloc { .. } => ProviderKind::Gntalloc,
        }
    }

    fn pages(self, count: usize) -> Result<Box<dyn Pages>, XenError> {
        Ok(match self {
            Self::Module => Box::new(ModulePages::allocate(count)?),
            Self::Gntalloc { pair } => Box::new(PairPages::allocate(count, pair)?),
        })
    }
}

/// A root page and its directory pages, granted to one reader.
struct Directory {
    /// Holds the grants; the pages are freed when it is dropped and the reader has let go.
    _pages: Box<dyn Pages>,
    root: u32,
}

/// An arena as its owner shares it. The memory itself is in the [`RawArena`] that comes with it.
pub struct SharedArena {
    id: DomainId,
    provider: Provider,
    pages: Box<dyn Pages>,
    /// By the reader's number.
    readers: HashMap<u16, Directory>,
    /// For foreign mapping.
    frames: Option<Directory>,
}

impl SharedArena {
    /// Allocates an arena of `bytes` bytes and maps it at its place, zeroed.
    ///
    /// # Errors
    /// [`XenError`] with what is missing or too small.
    pub fn create(provider: Provider, id: DomainId, bytes: u64) -> Result<(Self, RawArena), XenError> {
        let count = directory::pages_of(bytes).map_err(|source| XenError::Directory { id, domain: 0, source })?;
        let pages = provider.pages(count)?;
        let mapping = pages.map(Some(id)).map_err(XenError::system("map the own arena"))?;
        let raw = RawArena { base: mapping.base, len: bytes, mapping: Box::new(mapping) };
        Ok((Self { id, provider, pages, readers: HashMap::new(), frames: None }, raw))
    }

    /// What it is made with.
    pub fn provider(&self) -> Provider {
        self.provider
    }

    /// Lets `domain` read the arena. Returns the reference of the root page for it; the same if it is asked again.
    ///
    /// # Errors
    /// [`XenError`]: another reader than gntalloc can have, a full grant table.
    pub fn grant(&mut self, domain: u16) -> Result<u32, XenError> {
        if let Some(directory) = self.readers.get(&domain) {
            return Ok(directory.root);
        }
        let references = self.pages.grant(domain)?;
        let label = Label { kind: Kind::Grants, owner: self.id, reader: domain, pages: self.pages.count() };
        match self.list(&label, &references) {
            Ok(directory) => Ok(self.readers.entry(domain).or_insert(directory).root),
            Err(error) => {
                if let Err(error) = self.pages.revoke(domain) {
                    tracing::warn!(domain, %error, "an arena that cannot be listed cannot be taken back");
                }
                Err(error)
            }
        }
    }

    /// Takes the arena back from `domain`. What it has mapped it reads until it lets go; Xen cannot force it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn revoke(&mut self, domain: u16) -> Result<(), XenError> {
        match self.readers.remove(&domain) {
            Some(_) => self.pages.revoke(domain),
            None => Ok(()),
        }
    }

    /// The frame number of a root page by which dom0 can map the arena without grants; `None` where frames cannot be
    /// known (stock gntalloc).
    ///
    /// # Errors
    /// [`XenError`].
    pub fn root_frame(&mut self) -> Result<Option<u32>, XenError> {
        if let Some(directory) = &self.frames {
            return Ok(Some(directory.root));
        }
        let Some(numbers) = self.pages.frames()? else { return Ok(None) };
        let error = |source| XenError::Directory { id: self.id, domain: 0, source };
        let frames = directory::frames(&numbers).map_err(error)?;
        let label = Label { kind: Kind::Frames, owner: self.id, reader: 0, pages: self.pages.count() };
        let directory = self.list(&label, &frames)?;
        Ok(Some(self.frames.insert(directory).root))
    }

    /// Writes a list into pages of its own.
    fn list(&self, label: &Label, entries: &[u32]) -> Result<Directory, XenError> {
        let count = 1 + directory::directories_of(entries.len());
        let mut pages = self.provider.pages(count)?;
        let own: Vec<u32> = match label.kind {
            Kind::Grants => pages.grant(label.reader)?,
            Kind::Frames => {
                let error = |source| XenError::Directory { id: self.id, domain: 0, source };
                directory::frames(&pages.frames()?.unwrap_or_default()).map_err(error)?
            }
        };
        let Some((&root, directories)) = own.split_first().filter(|(_, rest)| rest.len() + 1 == count) else {
            return Err(XenError::System { step: "list the pages of an arena", source: io::ErrorKind::Other.into() });
        };
        let mapping = pages.map(None).map_err(XenError::system("map the directory of an arena"))?;
        for (at, page) in directory::directories(entries).enumerate() {
            write(&mapping, at + 1, &page);
        }
        write(&mapping, 0, &directory::root(label, directories));
        // SYNC: the reader learns of the root through xenstore, which is two system calls and more; this orders the
        // words before them all the same.
        fence(Ordering::Release);
        Ok(Directory { _pages: pages, root })
    }
}

impl std::fmt::Debug for SharedArena {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SharedArena({}, {:?}, {} pages)", self.id, self.provider, self.pages.count())
    }
}

fn write(mapping: &Mapping, page: usize, words: &Page) {
    let bytes = PAGE_BYTES as usize;
    assert!((page + 1) * bytes <= mapping.len, "a page of the mapping");
    // SAFETY: within the mapping, by the check above.
    let start: NonNull<u32> = unsafe { mapping.base.add(page * bytes) }.cast();
    for (at, word) in words.iter().enumerate() {
        // SAFETY: a word of that page, aligned; the owner writes it, and all accesses are atomic.
        unsafe { AtomicU32::from_ptr(start.add(at).as_ptr()) }.store(word.to_le(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_provider_the_error_names_both() {
        let missing =
            |device, module| Box::new(XenError::NoDevice { device, module, source: io::ErrorKind::NotFound.into() });
        let error = XenError::NoProvider {
            module: missing("/dev/fido_arena", "fido_arena"),
            gntalloc: missing("/dev/xen/gntalloc", "xen-gntalloc"),
        };
        let text = error.to_string();
        assert!(text.contains("modprobe fido_arena") && text.contains("modprobe xen-gntalloc"), "{text}");
    }

    #[test]
    fn a_third_party_is_told_why_and_what_to_do() {
        let text = XenError::OnlyPairs { pair: 3, domain: 4 }.to_string();
        assert!(text.contains("one domain only") && text.contains("fido_arena") && text.contains("domain 4"), "{text}");
        let error = not_granted(100, 4, Errno::NOSPC.into()).to_string();
        assert!(error.contains("max_grant_frames") && error.contains("gnttab_max_frames"), "{error}");
    }
}
