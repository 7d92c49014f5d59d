//! For the client's tests: the devices of domains that are threads of one process. Memory is shared as on `host`; a
//! "reference" is the number of a grant, a "port" that of a pair of bells.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};

use super::super::devices::{Devices, LaneNumber};
use super::super::error::XenError;
use super::super::layout::ProviderKind;
use super::super::window::Owner;
use crate::addr::DomainId;
use crate::arena::RawArena;
use crate::bell::{Bell, Ringer};
use crate::platform::host::memory;
use crate::window::Window;

struct Grant {
    file: OwnedFd,
    id: DomainId,
    bytes: u64,
    reader: u16,
}

/// A pair of bells, the binder's being there later.
struct Pair {
    owner: u16,
    binder: u16,
    bells: [Arc<Mutex<Option<Bell>>>; 2],
}

#[derive(Default)]
struct Shared {
    /// By reference. `None` if it has been taken back.
    grants: Vec<Option<Grant>>,
    pairs: Vec<Pair>,
}

/// All domains' devices.
#[derive(Clone, Default)]
pub(super) struct Machine(Arc<Mutex<Shared>>);

impl Machine {
    /// What the domain with that number has of it.
    pub(super) fn devices(&self, domain: u16) -> Box<dyn Devices> {
        Box::new(Part { machine: self.clone(), domain, arena: None, bells: BTreeMap::new() })
    }

    /// How many grants to that domain have not been taken back.
    pub(super) fn granted_to(&self, reader: u16) -> usize {
        self.lock().grants.iter().flatten().filter(|grant| grant.reader == reader).count()
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap()
    }
}

struct Part {
    machine: Machine,
    domain: u16,
    arena: Option<(OwnedFd, DomainId, u64)>,
    bells: BTreeMap<LaneNumber, Bell>,
}

#[derive(Debug)]
struct Far(Arc<Mutex<Option<Bell>>>);

impl Ringer for Far {
    fn ring(&self) {
        if let Some(bell) = &*self.0.lock().unwrap() {
            bell.ring();
        }
    }
}

impl Devices for Part {
    fn create_arena(
        &mut self,
        id: DomainId,
        bytes: u64,
        pair: &mut dyn FnMut() -> Result<Option<u16>, XenError>,
    ) -> Result<(RawArena, ProviderKind), XenError> {
        assert_eq!(pair()?, Some(99), "the manager names a pair in these tests");
        let (file, raw) = memory::create("xen-test", id, bytes).unwrap();
        self.arena = Some((file, id, bytes));
        Ok((raw, ProviderKind::Module))
    }

    fn root_frame(&mut self) -> Result<Option<u32>, XenError> {
        Ok(Some(4711))
    }

    fn grant(&mut self, domain: u16) -> Result<u32, XenError> {
        let (file, id, bytes) = self.arena.as_ref().unwrap();
        let mut shared = self.machine.lock();
        shared.grants.push(Some(Grant { file: file.try_clone().unwrap(), id: *id, bytes: *bytes, reader: domain }));
        Ok(shared.grants.len() as u32 - 1)
    }

    fn revoke(&mut self, domain: u16) -> Result<(), XenError> {
        let own = self.arena.as_ref().unwrap().1;
        for grant in &mut self.machine.lock().grants {
            if grant.as_ref().is_some_and(|grant| grant.reader == domain && grant.id == own) {
                *grant = None;
            }
        }
        Ok(())
    }

    fn map(&mut self, owner: Owner, reader: u16, root: u32) -> Result<Window, XenError> {
        let shared = self.machine.lock();
        let fits = |grant: &&Grant| (grant.id, grant.bytes, grant.reader) == (owner.id, owner.bytes, reader);
        let grant = shared.grants.get(root as usize).and_then(Option::as_ref).filter(fits);
        let refused = || XenError::BadReference { domain: owner.domain, page: 0, reference: root, status: -3 };
        Ok(memory::open(grant.ok_or_else(refused)?.file.as_fd(), owner.id, owner.bytes).unwrap())
    }

    fn bell(&mut self, lane: LaneNumber) -> Result<Bell, XenError> {
        let bell = Bell::new().unwrap();
        self.bells.insert(lane, bell.share().unwrap());
        Ok(bell)
    }

    fn offer_port(&mut self, lane: LaneNumber, domain: u16) -> Result<(u32, Box<dyn Ringer>), XenError> {
        let own = Arc::new(Mutex::new(Some(self.bells[&lane].share().unwrap())));
        let far = Arc::new(Mutex::new(None));
        let mut shared = self.machine.lock();
        shared.pairs.push(Pair { owner: self.domain, binder: domain, bells: [own, far.clone()] });
        Ok((shared.pairs.len() as u32 - 1, Box::new(Far(far))))
    }

    fn bind_port(&mut self, lane: LaneNumber, domain: u16, port: u32) -> Result<Box<dyn Ringer>, XenError> {
        let shared = self.machine.lock();
        let pair = shared.pairs.get(port as usize).filter(|pair| (pair.owner, pair.binder) == (domain, self.domain));
        let source = io::ErrorKind::InvalidInput.into();
        let [far, own] = &pair.ok_or(XenError::NotBound { domain, port, source })?.bells;
        let bell = self.bells[&lane].share().unwrap();
        bell.ring();
        *own.lock().unwrap() = Some(bell);
        Ok(Box::new(Far(far.clone())))
    }
}
