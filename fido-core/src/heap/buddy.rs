//! The allocator behind the arena heap: offsets only, it never touches the memory it hands out.
//!
//! Pages of 4 KiB are managed as a binary buddy system (Knowlton 1965; Knuth, TAOCP 1, 2.5); smaller sizes are
//! powers of two carved out of single pages, with a bit per object. Allocation and release are O(log) and do not
//! allocate themselves.

/// The smallest size class: a cache line.
pub const MIN_BUFFER_BYTES: u64 = 64;
/// The largest buffer, 64 MiB.
pub const MAX_BUFFER_BYTES: u64 = PAGE_BYTES << MAX_ORDER;
/// What the buddy system manages.
pub(super) const PAGE_BYTES: u64 = 4096;

const MAX_ORDER: u32 = 14;
const ORDERS: usize = MAX_ORDER as usize + 1;
/// 64, 128 … 2048 bytes.
const CLASSES: usize = 6;
const NIL: u32 = u32::MAX;

/// What is known about a page, on the first page of its block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Page {
    /// Inside a block: nothing of its own.
    Body,
    /// First of a free block of 2^order pages.
    Free(u8),
    /// First of a block of 2^order pages that is in use.
    Used(u8),
    /// Carved into objects of this class.
    Objects(u8),
}

pub(super) struct Buddy {
    pages: Vec<Page>,
    /// For a page of objects: a set bit per object in use.
    objects: Vec<u64>,
    /// The links of the list a page is in: free blocks of one order, or pages of one class with room.
    next: Vec<u32>,
    prev: Vec<u32>,
    free: [u32; ORDERS],
    partial: [u32; CLASSES],
    used: u64,
}

impl Buddy {
    /// An allocator for `bytes` bytes (cut to whole pages), from offset 0 on.
    pub(super) fn new(bytes: u64) -> Self {
        let count = usize::try_from(bytes / PAGE_BYTES).unwrap_or(0).min(NIL as usize);
        let mut buddy = Self {
            pages: vec![Page::Body; count],
            objects: vec![0; count],
            next: vec![NIL; count],
            prev: vec![NIL; count],
            free: [NIL; ORDERS],
            partial: [NIL; CLASSES],
            used: 0,
        };
        let mut page = 0;
        while page < count {
            let room = (count - page).ilog2();
            let order = (page as u32).trailing_zeros().min(room).min(MAX_ORDER);
            buddy.add_free(page as u32, order);
            page += 1 << order;
        }
        buddy
    }

    pub(super) fn used(&self) -> u64 {
        self.used
    }

    pub(super) fn capacity(&self) -> u64 {
        self.pages.len() as u64 * PAGE_BYTES
    }

    /// The offset of a block of at least `bytes` bytes (`1..=MAX_BUFFER_BYTES`), or `None` if there is none.
    pub(super) fn alloc(&mut self, bytes: u64) -> Option<u64> {
        if bytes <= PAGE_BYTES / 2 {
            let size = bytes.next_power_of_two().max(MIN_BUFFER_BYTES);
            return self.alloc_object((size / MIN_BUFFER_BYTES).ilog2() as usize);
        }
        let order = bytes.div_ceil(PAGE_BYTES).next_power_of_two().ilog2();
        let page = self.alloc_pages(order)?;
        self.pages[page as usize] = Page::Used(order as u8);
        self.used += PAGE_BYTES << order;
        Some(u64::from(page) * PAGE_BYTES)
    }

    /// Gives back the block at `offset`, which [`Buddy::alloc`] has returned and which is in use.
    pub(super) fn free(&mut self, offset: u64) {
        let page = (offset / PAGE_BYTES) as u32;
        match self.pages[page as usize] {
            Page::Used(order) => {
                self.used -= PAGE_BYTES << order;
                self.free_pages(page, u32::from(order));
            }
            Page::Objects(class) => self.free_object(page, class as usize, offset % PAGE_BYTES),
            Page::Free(_) | Page::Body => debug_assert!(false, "freed twice: offset {offset:#x}"),
        }
    }

    fn alloc_pages(&mut self, order: u32) -> Option<u32> {
        let found = (order..=MAX_ORDER).find(|&o| self.free[o as usize] != NIL)?;
        let page = self.free[found as usize];
        self.unlink_free(page, found);
        for smaller in (order..found).rev() {
            self.add_free(page + (1 << smaller), smaller);
        }
        Some(page)
    }

    fn free_pages(&mut self, mut page: u32, mut order: u32) {
        self.pages[page as usize] = Page::Body;
        while order < MAX_ORDER {
            let buddy = page ^ (1 << order);
            if self.pages.get(buddy as usize) != Some(&Page::Free(order as u8)) {
                break;
            }
            self.unlink_free(buddy, order);
            page = page.min(buddy);
            order += 1;
        }
        self.add_free(page, order);
    }

    fn alloc_object(&mut self, class: usize) -> Option<u64> {
        let size = MIN_BUFFER_BYTES << class;
        let mut page = self.partial[class];
        if page == NIL {
            page = self.alloc_pages(0)?;
            self.pages[page as usize] = Page::Objects(class as u8);
            self.objects[page as usize] = 0;
            link(&mut self.next, &mut self.prev, &mut self.partial[class], page);
        }
        let bits = &mut self.objects[page as usize];
        let index = bits.trailing_ones();
        *bits |= 1 << index;
        if *bits == full(class) {
            unlink(&mut self.next, &mut self.prev, &mut self.partial[class], page);
        }
        self.used += size;
        Some(u64::from(page) * PAGE_BYTES + u64::from(index) * size)
    }

    fn free_object(&mut self, page: u32, class: usize, within: u64) {
        let size = MIN_BUFFER_BYTES << class;
        let bits = &mut self.objects[page as usize];
        let was_full = *bits == full(class);
        let bit = 1u64 << (within / size);
        debug_assert!(*bits & bit != 0, "freed twice: page {page}, byte {within}");
        *bits &= !bit;
        self.used -= size;
        let empty = *bits == 0;
        if was_full {
            link(&mut self.next, &mut self.prev, &mut self.partial[class], page);
        }
        if empty {
            unlink(&mut self.next, &mut self.prev, &mut self.partial[class], page);
            self.free_pages(page, 0);
        }
    }

    fn add_free(&mut self, page: u32, order: u32) {
        self.pages[page as usize] = Page::Free(order as u8);
        link(&mut self.next, &mut self.prev, &mut self.free[order as usize], page);
    }

    fn unlink_free(&mut self, page: u32, order: u32) {
        self.pages[page as usize] = Page::Body;
        unlink(&mut self.next, &mut self.prev, &mut self.free[order as usize], page);
    }
}

/// The bits of a page whose objects of this class are all in use.
fn full(class: usize) -> u64 {
    u64::MAX >> (64 - (64 >> class))
}

fn link(next: &mut [u32], prev: &mut [u32], head: &mut u32, page: u32) {
    prev[page as usize] = NIL;
    next[page as usize] = *head;
    if *head != NIL {
        prev[*head as usize] = page;
    }
    *head = page;
}

fn unlink(next: &mut [u32], prev: &mut [u32], head: &mut u32, page: u32) {
    let (before, after) = (prev[page as usize], next[page as usize]);
    if before == NIL {
        *head = after;
    } else {
        next[before as usize] = after;
    }
    if after != NIL {
        prev[after as usize] = before;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_at_the_limits() {
        let mut buddy = Buddy::new(4 * MAX_BUFFER_BYTES);
        for bytes in [1, 63, 64, 65, 2048, 2049, 4096, 4097, MAX_BUFFER_BYTES] {
            let at = buddy.alloc(bytes).unwrap();
            assert_eq!(at % MIN_BUFFER_BYTES, 0);
            buddy.free(at);
            assert_eq!(buddy.used(), 0, "{bytes} bytes");
        }
    }

    #[test]
    fn exhaustion_is_none_and_everything_comes_back() {
        let mut buddy = Buddy::new(10 * PAGE_BYTES);
        let mut all: Vec<u64> = std::iter::from_fn(|| buddy.alloc(64)).collect();
        assert_eq!(all.len(), 640);
        assert_eq!(buddy.alloc(1), None);
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 640);
        all.into_iter().for_each(|at| buddy.free(at));
        assert!(buddy.alloc(8 * PAGE_BYTES).is_some(), "pages merge again");
    }

    #[test]
    fn nothing_to_give() {
        assert_eq!(Buddy::new(0).alloc(1), None);
        assert_eq!(Buddy::new(PAGE_BYTES - 1).alloc(1), None);
    }

    proptest! {
        #[test]
        fn blocks_never_overlap(pages in 1u64..600, ops in prop::collection::vec((1u64..40_000, any::<prop::sample::Index>(), any::<bool>()), 1..200)) {
            let mut buddy = Buddy::new(pages * PAGE_BYTES);
            let mut live: Vec<(u64, u64)> = Vec::new();
            for (bytes, which, release) in ops {
                if release && !live.is_empty() {
                    buddy.free(live.swap_remove(which.index(live.len())).0);
                } else if let Some(at) = buddy.alloc(bytes) {
                    prop_assert!(at + bytes <= pages * PAGE_BYTES);
                    for &(other, len) in &live {
                        prop_assert!(at + bytes <= other || other + len <= at, "{at}+{bytes} overlaps {other}+{len}");
                    }
                    live.push((at, bytes));
                }
            }
            for (at, _) in live {
                buddy.free(at);
            }
            prop_assert_eq!(buddy.used(), 0);
            let mut fresh = Buddy::new(pages * PAGE_BYTES);
            let largest = (0..=MAX_ORDER).rev().map(|o| PAGE_BYTES << o).find(|&b| fresh.alloc(b).is_some());
            prop_assert!(largest.is_none_or(|b| buddy.alloc(b).is_some()), "all free blocks merge again");
        }
    }
}
