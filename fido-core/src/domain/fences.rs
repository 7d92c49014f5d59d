//! The fences of dead peers, summed over the lanes that lead to them.

#[cfg(all(test, loom))]
mod model;

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use crate::addr::DomainId;
use crate::assignment::LinkAssignment;
use crate::lane::PassFence;
use crate::platform::Reporter;
use crate::sync::Mutex;

/// Counts the lanes that have passed a dead peer's fence, and tells the manager when all have.
pub(super) struct FenceDesk {
    /// How many lanes lead to each slot.
    lanes: HashMap<u16, usize>,
    passed: Mutex<HashMap<DomainId, usize>>,
    reporter: Arc<dyn Reporter>,
}

impl FenceDesk {
    pub(super) fn new(links: &[LinkAssignment], reporter: Arc<dyn Reporter>) -> Self {
        let mut lanes = HashMap::new();
        for link in links {
            *lanes.entry(link.peer_slot).or_insert(0) += usize::from(link.lanes);
        }
        Self { lanes, passed: Mutex::default(), reporter }
    }
}

impl PassFence for FenceDesk {
    fn passed(&self, dead: DomainId) {
        let needed = self.lanes.get(&dead.slot.number()).copied().unwrap_or(0);
        let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        let count = passed.entry(dead).or_insert(0);
        *count += 1;
        if *count < needed {
            return;
        }
        passed.remove(&dead);
        drop(passed);
        // If the manager cannot be told any more, it is gone, and with it the appliance.
        if let Err(error) = self.reporter.passed(dead) {
            tracing::warn!(peer = %dead, %error, "the manager was not told that the fence is passed");
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::addr::{Generation, Slot};
    use crate::assignment::Transport;
    use crate::platform::PlatformError;
    use std::collections::BTreeMap;

    #[derive(Default)]
    struct Reports(Mutex<Vec<DomainId>>);

    impl Reporter for Reports {
        fn ready(&self, _notes: &BTreeMap<String, String>) -> Result<(), PlatformError> {
            Ok(())
        }

        fn mapped(&self, _owner: DomainId) -> Result<(), PlatformError> {
            Ok(())
        }

        fn passed(&self, dead: DomainId) -> Result<(), PlatformError> {
            self.0.lock().unwrap().push(dead);
            Ok(())
        }
    }

    #[test]
    fn all_lanes_of_all_links_have_to_pass() {
        let link = |link, peer_slot, lanes| LinkAssignment {
            link,
            name: String::new(),
            peer: String::new(),
            peer_slot,
            lanes,
            slots: 4,
            transport: Transport::Pointer,
        };
        let reports = Arc::new(Reports::default());
        let desk = FenceDesk::new(&[link(0, 5, 2), link(1, 5, 1), link(2, 6, 1)], reports.clone());
        let dead = DomainId { slot: Slot::new(5).unwrap(), generation: Generation::FIRST };
        desk.passed(dead);
        desk.passed(dead);
        assert!(reports.0.lock().unwrap().is_empty());
        desk.passed(dead);
        assert_eq!(*reports.0.lock().unwrap(), [dead]);
    }
}
