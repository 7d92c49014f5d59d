//! A vault without Xen: every arena has its incarnation's name as its heritage.

use std::io;
use std::sync::{Arc, Mutex};

use fido_core::addr::DomainId;
use fido_core::heritage::Heritage;
use fido_core::platform::xen::error::XenError;
use fido_core::platform::xen::layout::Predecessor;
use fido_core::platform::xen::window::Owner;
use fido_core::testing::private_memory;
use fido_core::window::Window;

use super::super::vault::{Hold, Vault};

pub struct TestVault {
    pub log: Arc<Mutex<Vec<String>>>,
    pub fails: bool,
}

/// Says when it is let go.
struct Held(Arc<Mutex<Vec<String>>>, String);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.lock().unwrap().push(format!("{} is let go", self.1));
    }
}

fn refused() -> XenError {
    XenError::System { step: "use the vault", source: io::ErrorKind::OutOfMemory.into() }
}

impl Vault for TestVault {
    fn keep(&self, owner: Owner, root: u32) -> Result<Arc<Window>, XenError> {
        if self.fails {
            return Err(refused());
        }
        assert_eq!((root, owner.bytes), (78, 1 << 20));
        let memory = private_memory(owner.bytes);
        let mut heritage = Heritage::new(&memory, 8).unwrap();
        heritage.write(0, owner.id.to_string().as_bytes());
        heritage.announce();
        // As if its owner had died, and not put it away in order.
        std::mem::forget(heritage);
        Ok(memory.arena().window().clone())
    }

    fn bequeath(&self, of: DomainId, heritage: &[u8], heir: u16) -> Result<(Predecessor, Hold), XenError> {
        if self.fails {
            return Err(refused());
        }
        let what = String::from_utf8_lossy(heritage).trim_end_matches('\0').to_owned();
        self.log.lock().unwrap().push(format!("{what}, of {of}, for guest {heir}"));
        let left = Predecessor { id: of.into(), domain: 0, root: 79, bytes: 1 << 16 };
        Ok((left, Box::new(Held(self.log.clone(), what))))
    }
}
