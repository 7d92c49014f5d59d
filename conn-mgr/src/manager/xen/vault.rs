//! What the manager does about heritage with the memory of guests, behind one face: the tests have another one without Xen.

use std::any::Any;
use std::sync::Arc;

use fido_core::addr::DomainId;
use fido_core::heritage::Inherited;
use fido_core::platform::xen::error::XenError;
use fido_core::platform::xen::keeper::{self, Bequest};
use fido_core::platform::xen::layout::Predecessor;
use fido_core::platform::xen::window::Owner;
use fido_core::window::Window;

use crate::xen::limits::MAX_HERITAGE;

/// What holds the memory of a bequest until it is dropped.
pub(super) type Hold = Box<dyn Any + Send>;

/// See the module.
pub(super) trait Vault: Send {
    /// Maps the arena of a guest, through the root page that it has granted, so that it outlives the guest.
    fn keep(&self, owner: Owner, root: u32) -> Result<Arc<Window>, XenError>;

    /// Lets the guest with the number `heir` read what incarnation `of` has left.
    fn bequeath(&self, of: DomainId, heritage: &[u8], heir: u16) -> Result<(Predecessor, Hold), XenError>;
}

/// With the kernel's devices in dom0.
pub(super) struct KernelVault;

impl Vault for KernelVault {
    fn keep(&self, owner: Owner, root: u32) -> Result<Arc<Window>, XenError> {
        keeper::keep(owner, root).map(Arc::new)
    }

    fn bequeath(&self, of: DomainId, heritage: &[u8], heir: u16) -> Result<(Predecessor, Hold), XenError> {
        let bequest = Bequest::grant(of, heritage, heir)?;
        Ok((bequest.predecessor(), Box::new(bequest)))
    }
}

/// Copies what a dead guest has left. `None` if that is nothing, or nothing that can be taken over: then its successor
/// begins without.
pub(super) fn copy(window: &Arc<Window>) -> Option<Arc<[u8]>> {
    let id = window.id();
    let left = match Inherited::of(window) {
        Ok(left) => left?,
        Err(error) => {
            tracing::warn!(%id, %error, "what a guest has left cannot be read");
            return None;
        }
    };
    if left.len() as u64 > MAX_HERITAGE {
        tracing::warn!(%id, bytes = left.len(), limit = MAX_HERITAGE, "a guest has left too much to be kept");
        return None;
    }
    Some(left.to_vec().into())
}

#[cfg(test)]
mod tests {
    use fido_core::heritage::Heritage;
    use fido_core::testing::{copy_of, private_memory};

    use super::*;

    #[test]
    fn a_heritage_is_copied_up_to_the_limit() {
        let limit = MAX_HERITAGE as usize;
        let memory = private_memory(2 * MAX_HERITAGE);
        assert!(copy(memory.arena().window()).is_none(), "nothing is announced");
        let mut small = Heritage::new(&memory, limit).unwrap();
        small.write(limit - 3, b"end");
        small.announce();
        assert!(copy(memory.arena().window()).unwrap().ends_with(b"end"));
        // No heap gives more, but a guest can say what it likes; its length is the sixth word of the header.
        let said =
            |bytes: u64| copy_of(memory.arena().window(), |arena| arena[40..48].copy_from_slice(&bytes.to_le_bytes()));
        assert_eq!(copy(&said(MAX_HERITAGE)).unwrap().len(), limit);
        assert!(copy(&said(MAX_HERITAGE + 1)).is_none() && copy(&said(u64::MAX)).is_none());
    }
}
