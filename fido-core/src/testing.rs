//! Helpers for tests: arenas, memory and lanes without a manager. (Programs without one have [`Memory::private`].)
//!
//! They panic where the system refuses what a test cannot do without.
//!
//! Arenas that nobody else maps are plain memory of the process, so that Miri and the address sanitizer see every access
//! to them. Those of a link are sealed memfds as in an appliance; with `--cfg plain_memory`, and under Miri, they are
//! plain memory too, and both sides use the same mapping.

#![expect(clippy::expect_used, reason = "a test cannot go on without what it asks for")]

mod lanes;
mod mesh;

use std::any::Any;
#[cfg(not(any(miri, plain_memory)))]
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::addr::DomainId;
use crate::arena::{LanePlan, OwnArena, RawArena};
use crate::assignment::Transport;
use crate::bell::Bell;
use crate::lane::{Lane, LaneSetup, Mailbox, News, PassFence};
use crate::memory::Memory;
#[cfg(not(any(miri, plain_memory)))]
use crate::platform::host::memory;
use crate::private::{self, own_id};
use crate::window::{Window, WindowTable};
pub use lanes::TestLanes;
pub use mesh::{Node, mesh};

/// The length of the arenas of a [`TestLink`].
pub const TEST_ARENA_BYTES: u64 = 16 << 20;

/// Memory for an arena that the kernel has no part in: nobody else can map it.
pub(crate) fn plain_memory(len: u64) -> RawArena {
    private::plain_memory(len).expect("memory for an arena")
}

fn plain_arena(id: DomainId, len: u64, lanes: &[LanePlan]) -> OwnArena {
    private::arena(id, len, lanes).expect("memory for an arena, and a layout within the limits")
}

/// An arena of `len` bytes that no manager knows, in a slot of its own (counted down from the last one).
///
/// # Panics
/// If the system has no memory for it or the layout is beyond the limits.
pub fn private_arena(len: u64, lanes: &[LanePlan]) -> OwnArena {
    plain_arena(own_id(), len, lanes)
}

/// Memory over a private arena of `len` bytes: a heap, and no windows but the own.
///
/// # Panics
/// As [`private_arena`].
pub fn private_memory(len: u64) -> Memory {
    Memory::private(len).expect("memory for an arena")
}

/// What is in an arena now, as its successor would find it: a copy that does not follow the original, changed by `edit`.
///
/// # Panics
/// If the system has no memory for it.
pub fn copy_of(window: &Window, edit: impl FnOnce(&mut [u8])) -> Arc<Window> {
    let len = window.len() as usize;
    let raw = plain_memory(window.len());
    // SAFETY: fresh memory of that length that nobody else knows; it starts as zeros, so it is initialised.
    let bytes = unsafe { std::slice::from_raw_parts_mut(raw.base.as_ptr(), len) };
    // SAFETY: both are mapped for `len` bytes and different; tests copy only what nobody writes meanwhile.
    unsafe { std::ptr::copy_nonoverlapping(window.base().as_ptr(), bytes.as_mut_ptr(), len) };
    edit(bytes);
    // SAFETY: the mapping keeps it readable, aligned to a page.
    Arc::new(unsafe { Window::new(window.id(), raw.base, raw.len, raw.mapping) })
}

/// Stores a word in an arena, whatever lies there: what a domain that has gone wild can do to its own. `offset` is cut
/// to an aligned word within the arena.
pub fn store(arena: &OwnArena, offset: u64, value: u32) {
    let offset = (offset & !3).min(arena.len() - 4);
    // SAFETY: an aligned word of the arena, which lives as long as the reference to it. Peers load it atomically or copy
    // it raw; that the owner's own references see it change is what going wild means, and the caller's affair.
    let word = unsafe { AtomicU32::from_ptr(arena.base().add(offset as usize).cast().as_ptr()) };
    word.store(value, Ordering::Release);
}

/// The word of an arena at `offset`, cut as in [`store`].
pub fn load(arena: &OwnArena, offset: u64) -> u32 {
    let offset = (offset & !3).min(arena.len() - 4);
    // SAFETY: as in `store`.
    let word = unsafe { AtomicU32::from_ptr(arena.base().add(offset as usize).cast().as_ptr()) };
    word.load(Ordering::Acquire)
}

/// The same window, but `unmapped` is dropped with it: so that a test learns when nobody has it any more.
pub fn watched(window: Window, unmapped: Box<dyn Any + Send + Sync>) -> Window {
    let (id, base, len) = (window.id(), window.base(), window.len());
    // SAFETY: the inner window keeps the same range mapped, and is dropped with the new one.
    unsafe { Window::new(id, base, len, Box::new((window, unmapped))) }
}

/// One domain of a test: its memory, its arena's file and the mailboxes of its lanes.
#[derive(Debug)]
pub struct TestDomain {
    /// Its memory.
    pub memory: Memory,
    #[cfg(not(any(miri, plain_memory)))]
    file: OwnedFd,
    id: DomainId,
}

impl TestDomain {
    #[cfg(not(any(miri, plain_memory)))]
    fn new(id: DomainId, len: u64, lanes: &[LanePlan]) -> Self {
        let (file, raw) = memory::create("test", id, len).expect("memory for an arena");
        // SAFETY: fresh memory from the platform, which nobody can write but through this arena.
        let arena = unsafe { OwnArena::format(raw, id, lanes) }.expect("a layout within the limits");
        Self { memory: Memory::new(arena, Arc::new(WindowTable::default())), file, id }
    }

    /// This domain's arena as a peer sees it: read-only.
    ///
    /// # Panics
    /// If the system cannot map it.
    #[cfg(not(any(miri, plain_memory)))]
    pub fn window(&self) -> Arc<Window> {
        let len = self.memory.arena().len();
        Arc::new(memory::open(self.file.as_fd(), self.id, len).expect("a window"))
    }

    #[cfg(any(miri, plain_memory))]
    fn new(id: DomainId, len: u64, lanes: &[LanePlan]) -> Self {
        let arena = plain_arena(id, len, lanes);
        Self { memory: Memory::new(arena, Arc::new(WindowTable::default())), id }
    }

    /// This domain's arena as a peer sees it: another window on the same memory.
    #[cfg(any(miri, plain_memory))]
    pub fn window(&self) -> Arc<Window> {
        let own = self.memory.arena().window().clone();
        // SAFETY: the same range as that of the own window, which the new one keeps.
        Arc::new(unsafe { Window::new(self.id, own.base(), own.len(), Box::new(own)) })
    }

    /// Who it is.
    pub fn id(&self) -> DomainId {
        self.id
    }
}

/// Counts the fences that a domain has passed.
#[derive(Debug, Default)]
pub struct Passes {
    count: AtomicUsize,
    last: Mutex<Option<DomainId>>,
}

impl Passes {
    /// How often a fence was passed.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    /// Whose fence was passed last.
    pub fn last(&self) -> Option<DomainId> {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PassFence for Passes {
    fn passed(&self, dead: DomainId) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(dead);
        self.count.fetch_add(1, Ordering::SeqCst);
    }
}

/// A link of one lane between two domains of one process; the test plays the manager.
#[derive(Debug)]
pub struct TestLink {
    transport: Transport,
    slots: u32,
    a: TestDomain,
    b: TestDomain,
    a_mail: Arc<Mailbox>,
    b_mail: Arc<Mailbox>,
    /// The fences that side a has passed.
    pub a_passes: Arc<Passes>,
}

impl TestLink {
    /// A link whose rings have `slots` slots, and its two ends, connected.
    ///
    /// # Panics
    /// If the system has no memory for it.
    pub fn new(slots: u32, transport: Transport) -> (Self, Lane, Lane) {
        Self::sized(slots, transport, TEST_ARENA_BYTES)
    }

    /// The same with arenas of `bytes` bytes.
    ///
    /// # Panics
    /// As [`TestLink::new`], and if the rings leave no room in the arenas.
    pub fn sized(slots: u32, transport: Transport, bytes: u64) -> (Self, Lane, Lane) {
        let plan = [LanePlan { link: 1, lane: 0, slots }];
        let a = TestDomain::new(own_id(), bytes, &plan);
        let b = TestDomain::new(own_id(), bytes, &plan);
        let mail = || Arc::new(Mailbox::new(Arc::new(Bell::new().expect("a bell"))));
        let (a_mail, b_mail) = (mail(), mail());
        let link = Self { transport, slots, a, b, a_mail, b_mail, a_passes: Arc::default() };
        let a = link.lane(&link.a, &link.a_mail, link.a_passes.clone());
        let b = link.lane(&link.b, &link.b_mail, Arc::new(Passes::default()));
        link.introduce();
        let (a, b) = (connected(a), connected(b));
        let a = connected(a);
        (link, a, b)
    }

    fn lane(&self, domain: &TestDomain, mailbox: &Arc<Mailbox>, fence: Arc<dyn PassFence>) -> Lane {
        Lane::new(LaneSetup {
            name: "test[0]".into(),
            place: domain.memory.arena().lanes()[0],
            transport: self.transport,
            memory: domain.memory.clone(),
            mailbox: mailbox.clone(),
            fence,
        })
    }

    /// Gives each side the other's window and bell.
    fn introduce(&self) {
        self.a.memory.windows().insert(self.b.window());
        self.b.memory.windows().insert(self.a.window());
        let bell = |mail: &Mailbox| Box::new(mail.bell().share().expect("a bell"));
        self.a_mail.put(News::Up(self.b.id, bell(&self.b_mail)));
        self.b_mail.put(News::Up(self.a.id, bell(&self.a_mail)));
    }

    /// Side a.
    pub fn a(&self) -> &TestDomain {
        &self.a
    }

    /// Side b.
    pub fn b(&self) -> &TestDomain {
        &self.b
    }

    /// Lets both sides read a third domain's arena.
    pub fn add_window(&self, third: &TestDomain) {
        self.a.memory.windows().insert(third.window());
        self.b.memory.windows().insert(third.window());
    }

    /// Tells side a that b is dead. (Drop b's lane yourself, or keep it as a zombie.)
    pub fn kill_b(&self) {
        self.a_mail.put(News::Died(self.b.id));
    }

    /// Tells side a that everybody has passed the fence of b's present incarnation.
    pub fn fence_b(&self) {
        self.a.memory.windows().remove(self.b.id);
        self.a_mail.put(News::Fenced(self.b.id));
    }

    /// Starts b again in its next generation, with a new arena, and connects it. Returns its end of the lane.
    ///
    /// # Panics
    /// If the system has no memory for it.
    pub fn restart_b(&mut self) -> Lane {
        self.restart_b_as(|_| ())
    }

    /// The same with an arena in which `edit` has written before anybody else sees it.
    ///
    /// # Panics
    /// As [`TestLink::restart_b`].
    pub fn restart_b_as(&mut self, edit: impl FnOnce(&OwnArena)) -> Lane {
        let id = DomainId { slot: self.b.id.slot, generation: self.b.id.generation.next() };
        let plan = [LanePlan { link: 1, lane: 0, slots: self.slots }];
        self.b = TestDomain::new(id, self.a.memory.arena().len(), &plan);
        edit(self.b.memory.arena());
        self.b_mail = Arc::new(Mailbox::new(Arc::new(Bell::new().expect("a bell"))));
        let lane = self.lane(&self.b, &self.b_mail, Arc::new(Passes::default()));
        self.introduce();
        lane
    }
}

/// The lane after it has noticed what there is to notice; a first change to `Up` is taken.
fn connected(mut lane: Lane) -> Lane {
    let _ = lane.change();
    lane
}

/// Two connected ends of a lane, each with an arena of its own. What [`TestLink::new`] gives, for tests in which
/// nobody dies.
///
/// # Panics
/// If the system has no memory for it.
pub fn lane_pair(slots: u32, transport: Transport) -> (Lane, Lane) {
    let (_link, a, b) = TestLink::new(slots, transport);
    (a, b)
}

/// A third domain, whose bytes can be forwarded over a [`TestLink`].
///
/// # Panics
/// If the system has no memory for it.
pub fn test_domain(len: u64) -> TestDomain {
    TestDomain::new(own_id(), len, &[])
}
