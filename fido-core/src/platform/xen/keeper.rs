//! The keeper's part in a heritage, in dom0: what a guest leaves dies with it, unless somebody else holds it.
//!
//! The keeper maps the arena of each guest that is to leave something, from before the guest serves: [`keep`]. Pages that
//! are mapped elsewhere are neither freed nor used again by the guest's kernel, whether the program in it dies or the
//! guest. Of a dead one it copies the heritage and lets the pages go. The successor gets the copy in an arena of the
//! keeper's memory, granted to it alone: [`Bequest`].

use super::arena::{Provider, SharedArena};
use super::error::XenError;
use super::layout::Predecessor;
use super::window::{self, Owner};
use crate::addr::DomainId;
use crate::arena::OwnArena;
use crate::heritage::{bytes_for, restate};
use crate::window::Window;

/// dom0's number.
pub const KEEPER: u16 = 0;

/// Maps the arena of a guest, granted to dom0, so that it outlives the guest.
///
/// # Errors
/// As for [`window::granted`].
pub fn keep(owner: Owner, root: u32) -> Result<Window, XenError> {
    window::granted(owner, KEEPER, root)
}

/// What a dead incarnation has left, in dom0's memory, readable by its successor until this is dropped and that has let
/// go.
#[derive(Debug)]
pub struct Bequest {
    bytes: u64,
    root: u32,
    // The mapping goes before the pages.
    arena: OwnArena,
    _pages: SharedArena,
}

impl Bequest {
    /// Lets the guest with the number `heir` read what incarnation `of` has left.
    ///
    /// # Errors
    /// [`XenError`]: dom0 has neither the module fido_arena nor gntalloc, or not enough memory or grants.
    pub fn grant(of: DomainId, heritage: &[u8], heir: u16) -> Result<Self, XenError> {
        let bytes = bytes_for(heritage.len());
        let provider = Provider::find(|| Ok(Some(heir)))?;
        let (mut pages, raw) = SharedArena::create(provider, of, bytes)?;
        // SAFETY: fresh pages, which the kernel has zeroed; this process alone can write them, and does so here only.
        let arena = unsafe { restate(raw, of, heritage) }.map_err(|error| {
            let source = std::io::Error::other(error);
            XenError::System { step: "write down a heritage", source }
        })?;
        Ok(Self { bytes, root: pages.grant(heir)?, arena, _pages: pages })
    }

    /// What the successor is told.
    pub fn predecessor(&self) -> Predecessor {
        Predecessor { id: self.arena.id().into(), domain: KEEPER, root: self.root, bytes: self.bytes }
    }
}
