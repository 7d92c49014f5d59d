//! How the references of an arena's pages are listed, for one reader: a root page names directory pages, and each of
//! those lists the references of 1024 pages of the arena, in order.
//!
//! ```text
//! root       0  magic, version, kind, slot, generation, reader (32 bits each but the magic), pages (64 bits)
//!           64  references of the directory pages, 32 bits each
//! directory  0  references of the arena's pages, 32 bits each
//! ```
//! Numbers are little-endian. A list of frames, for foreign mapping, has the same form with frame numbers in place of
//! references. The pages belong to the owner of the arena, so a reader copies them once, word by word, and checks and
//! uses the copy only. Pure functions over words; [`super::window`] maps the pages.

use std::collections::HashSet;

use crate::addr::DomainId;

/// First word of a root page: `FIDOROOT`.
pub const MAGIC: u64 = u64::from_le_bytes(*b"FIDOROOT");
/// Version of the format.
pub const VERSION: u32 = 1;
/// Words (32 bits) of a page: so many references does a directory page list.
pub const WORDS: usize = 1024;
/// The word at which the directory pages begin in the root page.
const LIST_AT: usize = 16;
/// The most directory pages.
pub const MAX_DIRECTORIES: usize = WORDS - LIST_AT;
/// The most pages of an arena: almost 4 GiB.
pub const MAX_PAGES: usize = MAX_DIRECTORIES * WORDS;
/// The first reference that is not reserved for the console, xenstore and others of that kind.
pub const FIRST_REFERENCE: u32 = 8;

/// A page's words.
pub type Page = [u32; WORDS];

/// What is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Grant references.
    Grants = 1,
    /// Frame numbers.
    Frames = 2,
}

/// What is wrong with a directory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DirectoryError {
    /// It does not begin with the magic number.
    #[error("its root page begins with {found:#018x}")]
    Magic {
        /// What it begins with.
        found: u64,
    },
    /// A word of the root page is not what it should be.
    #[error("its {what} is {found}, expected {expected}")]
    Head {
        /// Which.
        what: &'static str,
        /// What it is.
        found: u64,
        /// What was announced.
        expected: u64,
    },
    /// The arena's length is not one that can be listed.
    #[error("an arena of {bytes} bytes: on Xen it must be whole pages, at most {MAX_PAGES} of them")]
    Length {
        /// The length.
        bytes: u64,
    },
    /// A reference that cannot be.
    #[error("the reference at {at} is {found}, which is reserved")]
    Reserved {
        /// Its position.
        at: usize,
        /// What it is.
        found: u32,
    },
    /// A reference that is listed twice.
    #[error("the reference {found} is listed twice, the second time at {at}")]
    Twice {
        /// Its second position.
        at: usize,
        /// What it is.
        found: u32,
    },
    /// A frame beyond 32 bits.
    #[error("frame {found:#x} is beyond what can be listed")]
    Frame {
        /// Its number.
        found: u64,
    },
}

/// Whose arena it is, and for whom the list is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label {
    /// What is listed.
    pub kind: Kind,
    /// The owner.
    pub owner: DomainId,
    /// The number of the domain that the references are for.
    pub reader: u16,
    /// How many pages the arena has.
    pub pages: usize,
}

/// The pages of an arena of so many bytes.
///
/// # Errors
/// [`DirectoryError::Length`].
pub fn pages_of(bytes: u64) -> Result<usize, DirectoryError> {
    let pages = usize::try_from(bytes / super::sys::PAGE_BYTES).unwrap_or(usize::MAX);
    if bytes.is_multiple_of(super::sys::PAGE_BYTES) && (1..=MAX_PAGES).contains(&pages) {
        return Ok(pages);
    }
    Err(DirectoryError::Length { bytes })
}

/// How many directory pages list so many pages.
pub fn directories_of(pages: usize) -> usize {
    pages.div_ceil(WORDS)
}

/// The root page, for directory pages with those references.
///
/// # Panics
/// If there are more than [`MAX_DIRECTORIES`].
pub fn root(label: &Label, directories: &[u32]) -> Page {
    let mut page = [0; WORDS];
    let pages = label.pages as u64;
    let head = [
        MAGIC as u32,
        (MAGIC >> 32) as u32,
        VERSION,
        label.kind as u32,
        label.owner.slot.number().into(),
        label.owner.generation.number().into(),
        label.reader.into(),
        0,
        pages as u32,
        (pages >> 32) as u32,
    ];
    page[..head.len()].copy_from_slice(&head);
    page[LIST_AT..LIST_AT + directories.len()].copy_from_slice(directories);
    page
}

/// The directory pages that list `entries`.
pub fn directories(entries: &[u32]) -> impl Iterator<Item = Page> {
    entries.chunks(WORDS).map(|part| {
        let mut page = [0; WORDS];
        page[..part.len()].copy_from_slice(part);
        page
    })
}

/// Frame numbers as they are listed.
///
/// # Errors
/// [`DirectoryError::Frame`] if one has more than 32 bits (16 TiB of memory).
pub fn frames(numbers: &[u64]) -> Result<Vec<u32>, DirectoryError> {
    numbers.iter().map(|&found| u32::try_from(found).map_err(|_| DirectoryError::Frame { found })).collect()
}

/// What a copy of a root page says: the directory pages.
///
/// # Errors
/// [`DirectoryError`] if it is not what `label` says, or not well-formed.
pub fn read_root(page: &Page, label: &Label) -> Result<Vec<u32>, DirectoryError> {
    let pair = |at: usize| u64::from(page[at]) | u64::from(page[at + 1]) << 32;
    if pair(0) != MAGIC {
        return Err(DirectoryError::Magic { found: pair(0) });
    }
    let head = [
        ("version", page[2].into(), VERSION.into()),
        ("kind", page[3].into(), label.kind as u64),
        ("slot", page[4].into(), label.owner.slot.number().into()),
        ("generation", page[5].into(), label.owner.generation.number().into()),
        ("reader", page[6].into(), label.reader.into()),
        ("number of pages", pair(8), label.pages as u64),
    ];
    for (what, found, expected) in head {
        if found != expected {
            return Err(DirectoryError::Head { what, found, expected });
        }
    }
    if label.pages == 0 || label.pages > MAX_PAGES {
        return Err(DirectoryError::Length { bytes: (label.pages as u64).saturating_mul(super::sys::PAGE_BYTES) });
    }
    let list = page[LIST_AT..].iter().take(directories_of(label.pages)).copied().collect();
    check(list, label.kind)
}

/// What copies of all directory pages say: the arena's pages.
///
/// # Errors
/// [`DirectoryError`] if a reference is reserved or listed twice.
pub fn read_directories(pages: &[Page], label: &Label) -> Result<Vec<u32>, DirectoryError> {
    let list: Vec<u32> = pages.iter().flatten().take(label.pages).copied().collect();
    if list.len() != label.pages {
        let (found, expected) = (list.len() as u64, label.pages as u64);
        return Err(DirectoryError::Head { what: "number of listed pages", found, expected });
    }
    check(list, label.kind)
}

fn check(list: Vec<u32>, kind: Kind) -> Result<Vec<u32>, DirectoryError> {
    let mut seen = HashSet::with_capacity(list.len());
    for (at, &found) in list.iter().enumerate() {
        if kind == Kind::Grants && found < FIRST_REFERENCE {
            return Err(DirectoryError::Reserved { at, found });
        }
        if !seen.insert(found) {
            return Err(DirectoryError::Twice { at, found });
        }
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{Generation, Slot};
    use proptest::prelude::*;

    fn label(pages: usize) -> Label {
        let owner = DomainId { slot: Slot::new(3).unwrap(), generation: Generation::new(2).unwrap() };
        Label { kind: Kind::Grants, owner, reader: 7, pages }
    }

    fn references(from: u32, count: usize) -> Vec<u32> {
        (from..).take(count).collect()
    }

    #[test]
    fn lists_survive_up_to_the_limit() {
        for pages in [1, WORDS, WORDS + 1, MAX_PAGES] {
            let entries = references(5000, pages);
            let pages_of_list: Vec<Page> = directories(&entries).collect();
            assert_eq!(pages_of_list.len(), directories_of(pages));
            let roots = references(8, pages_of_list.len());
            let page = root(&label(pages), &roots);
            assert_eq!(read_root(&page, &label(pages)).unwrap(), roots);
            assert_eq!(read_directories(&pages_of_list, &label(pages)).unwrap(), entries);
        }
        let page = root(&label(MAX_PAGES + 1), &[8]);
        assert!(matches!(read_root(&page, &label(MAX_PAGES + 1)), Err(DirectoryError::Length { .. })));
    }

    #[test]
    fn lengths_are_whole_pages() {
        assert_eq!(pages_of(4096), Ok(1));
        assert_eq!(pages_of(MAX_PAGES as u64 * 4096), Ok(MAX_PAGES));
        for bad in [0, 1, 4095, 4097, (MAX_PAGES as u64 + 1) * 4096, u64::MAX] {
            assert_eq!(pages_of(bad), Err(DirectoryError::Length { bytes: bad }));
        }
    }

    #[test]
    fn every_word_of_the_head_is_checked() {
        let good = root(&label(5), &[8]);
        for at in [0, 1, 2, 3, 4, 5, 6, 8, 9] {
            let mut bad = good;
            bad[at] ^= 1 << 5;
            assert!(read_root(&bad, &label(5)).is_err(), "word {at}");
        }
    }

    #[test]
    fn reserved_and_double_references_are_refused() {
        let page = root(&label(2048), &[8, 8]);
        assert_eq!(read_root(&page, &label(2048)), Err(DirectoryError::Twice { at: 1, found: 8 }));
        let page = root(&label(2048), &[9, 7]);
        assert_eq!(read_root(&page, &label(2048)), Err(DirectoryError::Reserved { at: 1, found: 7 }));
        let pages: Vec<Page> = directories(&[10, 11, 10]).collect();
        assert_eq!(read_directories(&pages, &label(3)), Err(DirectoryError::Twice { at: 2, found: 10 }));
        assert!(matches!(read_directories(&pages, &label(1025)), Err(DirectoryError::Head { .. })));
        let frames_label = Label { kind: Kind::Frames, ..label(1) };
        assert_eq!(read_directories(&directories(&[0]).collect::<Vec<_>>(), &frames_label), Ok(vec![0]));
        assert!(frames(&[1 << 32]).is_err() && frames(&[u64::from(u32::MAX)]).is_ok());
    }

    proptest! {
        #[test]
        fn any_words_are_a_list_or_an_error(words in prop::collection::vec(any::<u32>(), 0..64), pages in 0usize..3000) {
            let mut page = root(&label(pages), &[]);
            let at = words.first().map_or(0, |word| *word as usize % WORDS);
            for (to, word) in page.iter_mut().skip(at).zip(&words) {
                *to = *word;
            }
            if let Ok(list) = read_root(&page, &label(pages)) {
                prop_assert!(list.len() == directories_of(pages) && list.iter().all(|word| *word >= FIRST_REFERENCE));
            }
            if let Ok(list) = read_directories(&[page, page, page], &label(pages)) {
                prop_assert_eq!(list.len(), pages);
            }
        }
    }
}
