//! `/dev/fido_arena` (`xen-tools/kmod/fido_arena.h`): pages that are granted to any number of domains.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::{READ_AND_WRITE, WRITE, ioctl, open, request};
use crate::platform::xen::error::XenError;

/// Where it is.
pub const DEVICE: &str = "/dev/fido_arena";
/// Version of the interface.
pub const VERSION: u32 = 1;

const KIND: u8 = 0xFD;

/// `struct fido_arena_create`.
#[repr(C)]
struct Create {
    version: u32,
    reserved: u32,
    pages: u64,
}

/// `struct fido_arena_grant`.
#[repr(C)]
struct Grant {
    domain: u16,
    reserved: [u16; 3],
    count: u64,
    refs: u64,
}

/// `struct fido_arena_revoke`.
#[repr(C)]
struct Revoke {
    domain: u16,
    reserved: [u16; 3],
    mapped: u64,
}

/// `struct fido_arena_frames`.
#[repr(C)]
struct Frames {
    first: u64,
    count: u64,
    frames: u64,
}

/// `FIDO_ARENA_CREATE`.
const CREATE: u32 = request(WRITE, KIND, 0, size_of::<Create>());
/// `FIDO_ARENA_GRANT`.
const GRANT: u32 = request(WRITE, KIND, 1, size_of::<Grant>());
/// `FIDO_ARENA_REVOKE`.
const REVOKE: u32 = request(READ_AND_WRITE, KIND, 2, size_of::<Revoke>());
/// `FIDO_ARENA_FRAMES`.
const FRAMES: u32 = request(WRITE, KIND, 3, size_of::<Frames>());

/// The device, with the pages of this file. When it is closed and unmapped they are taken back from all readers.
#[derive(Debug)]
pub struct FidoArena(OwnedFd);

impl FidoArena {
    /// Opens it.
    ///
    /// # Errors
    /// [`XenError::NoDevice`] or [`XenError::Privilege`].
    pub fn open() -> Result<Self, XenError> {
        open(DEVICE, "fido_arena", true).map(Self)
    }

    /// Allocates pages; once. They can then be mapped, all of them, from the file's beginning.
    ///
    /// # Errors
    /// The kernel's; the header says which stands for what.
    pub fn create(&self, pages: u64) -> io::Result<()> {
        let mut create = Create { version: VERSION, reserved: 0, pages };
        // SAFETY: the structure of this request.
        unsafe { ioctl(&self.0, CREATE, &raw mut create).map(drop) }
    }

    /// Grants all `pages` pages to `domain`, for reading. Returns the references.
    ///
    /// # Errors
    /// The kernel's; the header says which stands for what.
    pub fn grant(&self, domain: u16, pages: usize) -> io::Result<Vec<u32>> {
        let mut references = vec![0u32; pages];
        let refs = references.as_mut_ptr().expose_provenance() as u64;
        let mut grant = Grant { domain, reserved: [0; 3], count: pages as u64, refs };
        // SAFETY: the kernel writes `count` references to `refs`, or refuses a count that is not that of the pages.
        unsafe { ioctl(&self.0, GRANT, &raw mut grant)? };
        Ok(references)
    }

    /// Takes the pages back from `domain`. Returns how many it still maps.
    ///
    /// # Errors
    /// The kernel's: `ENOENT` if they are not granted to it.
    pub fn revoke(&self, domain: u16) -> io::Result<u64> {
        let mut revoke = Revoke { domain, reserved: [0; 3], mapped: 0 };
        // SAFETY: the structure of this request.
        unsafe { ioctl(&self.0, REVOKE, &raw mut revoke)? };
        Ok(revoke.mapped)
    }

    /// The frame numbers of the first `pages` pages.
    ///
    /// # Errors
    /// The kernel's.
    pub fn frames(&self, pages: usize) -> io::Result<Vec<u64>> {
        let mut numbers = vec![0u64; pages];
        let at = numbers.as_mut_ptr().expose_provenance() as u64;
        let mut frames = Frames { first: 0, count: pages as u64, frames: at };
        // SAFETY: the kernel writes `count` numbers to `frames`, or refuses a count beyond the pages.
        unsafe { ioctl(&self.0, FRAMES, &raw mut frames)? };
        Ok(numbers)
    }
}

impl AsFd for FidoArena {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = include_str!("../../../../../xen-tools/kmod/fido_arena.h");

    fn define(name: &str) -> &'static str {
        let line = HEADER.lines().find_map(|line| line.strip_prefix(&format!("#define {name} ")));
        line.unwrap_or_else(|| panic!("{name} is not in the header"))
    }

    /// Sizes of a structure's fields, in order.
    fn fields(name: &str) -> Vec<usize> {
        let (_, rest) = HEADER.split_once(&format!("struct {name} {{\n")).expect("the structure");
        let (body, _) = rest.split_once("};").expect("its end");
        let field = |line: &str| {
            let (kind, name) = line.trim().split_once(' ').expect("a type and a name");
            let size = match kind {
                "__u16" => 2,
                "__u32" => 4,
                "__u64" => 8,
                other => panic!("a field of type {other}"),
            };
            let array = name.split_once('[').and_then(|(_, rest)| rest.split_once(']')?.0.parse::<usize>().ok());
            size * array.unwrap_or(1)
        };
        body.lines().map(field).collect()
    }

    fn request_of(name: &str) -> (String, u32, String) {
        let (macro_name, arguments) = define(name).split_once('(').expect("a macro");
        let parts: Vec<_> = arguments.trim_end_matches(')').split(", ").collect();
        let [kind, number, structure] = parts.as_slice() else { panic!("{parts:?}") };
        assert_eq!(*kind, "0xFD");
        let structure = structure.strip_prefix("struct ").expect("a structure");
        (macro_name.into(), number.parse().expect("a number"), structure.into())
    }

    #[test]
    fn constants_and_structures_are_those_of_the_header() {
        assert_eq!(define("FIDO_ARENA_VERSION").parse(), Ok(VERSION));
        assert_eq!(define("FIDO_ARENA_PAGE_BYTES").parse(), Ok(super::super::PAGE_BYTES));
        assert_eq!(fields("fido_arena_create"), [4, 4, 8]);
        assert_eq!(fields("fido_arena_grant"), [2, 6, 8, 8]);
        assert_eq!(fields("fido_arena_revoke"), [2, 6, 8]);
        assert_eq!(fields("fido_arena_frames"), [8, 8, 8]);
        for (name, ours) in [
            ("FIDO_ARENA_CREATE", CREATE),
            ("FIDO_ARENA_GRANT", GRANT),
            ("FIDO_ARENA_REVOKE", REVOKE),
            ("FIDO_ARENA_FRAMES", FRAMES),
        ] {
            let (macro_name, number, structure) = request_of(name);
            let direction = if macro_name == "_IOWR" { READ_AND_WRITE } else { WRITE };
            let size = fields(&structure).iter().sum();
            assert_eq!(ours, request(direction, KIND, number as u8, size), "{name}");
        }
    }
}
