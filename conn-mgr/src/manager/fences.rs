//! Fences: when may the buffers that a dead incarnation had a hand in be used again?
//!
//! Every survivor that had a link with the dead one owes a word: it holds nothing any more that came through it, and
//! what it forwarded has come back. Only what it forwarded to others that are dead as well it may leave out, if it
//! names them: it would otherwise wait for their fences, which may wait for its word.
//!
//! If everybody else lives, nobody holds anything when all have passed. Where a chain of lending has several dead
//! members, fences depend on each other:
//!
//! * a survivor that dies before it passed may have forwarded what came through the first dead one, to somebody who
//!   only owes its word to *it*: the first fence waits for the second;
//! * an incarnation that dies while the fence of one it was linked with is still open may have lent its own memory
//!   through that one, to somebody who only owes its word to *that one*: the second fence waits for the first;
//! * a survivor that passes with exceptions has forwarded to those: the fence waits for theirs.
//!
//! So the dependencies may form circles: a fence is complete when nobody owes anything to any fence that can be
//! reached from it.

use std::collections::{BTreeMap, BTreeSet};

use fido_core::addr::DomainId;

#[derive(Debug, Default)]
struct Fence {
    owing: BTreeSet<DomainId>,
    waits_for: BTreeSet<DomainId>,
}

/// The open fences, by the incarnation that died.
#[derive(Debug, Default)]
pub struct Fences {
    open: BTreeMap<DomainId, Fence>,
}

impl Fences {
    /// Opens the fence of `dead`. `owing` are the survivors that had a link with it; `linked` all incarnations it had
    /// a link with, dead ones included.
    pub fn open(&mut self, dead: DomainId, owing: BTreeSet<DomainId>, linked: &BTreeSet<DomainId>) {
        for fence in self.open.values_mut() {
            if fence.owing.remove(&dead) {
                fence.waits_for.insert(dead);
            }
        }
        let waits_for = linked.iter().copied().filter(|id| self.open.contains_key(id)).collect();
        self.open.insert(dead, Fence { owing, waits_for });
    }

    /// A survivor's word, which leaves out what it forwarded to `except`. Whoever does not owe the word may give it all
    /// the same.
    pub fn pass(&mut self, survivor: DomainId, dead: DomainId, except: &[DomainId]) {
        let others: Vec<_> = except.iter().copied().filter(|id| self.open.contains_key(id)).collect();
        if let Some(fence) = self.open.get_mut(&dead)
            && fence.owing.remove(&survivor)
        {
            fence.waits_for.extend(others);
        }
    }

    /// Takes out the fences that are complete.
    pub fn take_complete(&mut self) -> Vec<DomainId> {
        let complete: Vec<DomainId> = self.open.keys().copied().filter(|&id| self.is_complete(id)).collect();
        for id in &complete {
            self.open.remove(id);
        }
        for fence in self.open.values_mut() {
            fence.waits_for.retain(|id| !complete.contains(id));
        }
        complete
    }

    fn is_complete(&self, id: DomainId) -> bool {
        let mut seen = BTreeSet::from([id]);
        let mut next = vec![id];
        while let Some(id) = next.pop() {
            let Some(fence) = self.open.get(&id) else { continue };
            if !fence.owing.is_empty() {
                return false;
            }
            next.extend(fence.waits_for.iter().copied().filter(|&id| seen.insert(id)));
        }
        true
    }

    /// Whether the fence of that incarnation is open.
    pub fn is_open(&self, id: DomainId) -> bool {
        self.open.contains_key(&id)
    }

    /// The incarnations whose fences are open.
    pub fn pending(&self) -> impl Iterator<Item = DomainId> {
        self.open.keys().copied()
    }

    /// Who has not passed the fence of that incarnation.
    pub fn owing(&self, id: DomainId) -> impl Iterator<Item = DomainId> {
        self.open.get(&id).into_iter().flat_map(|fence| fence.owing.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fido_core::addr::{Generation, Slot};

    fn id(slot: u16) -> DomainId {
        DomainId { slot: Slot::new(slot).unwrap(), generation: Generation::FIRST }
    }

    fn set(slots: &[u16]) -> BTreeSet<DomainId> {
        slots.iter().map(|&slot| id(slot)).collect()
    }

    #[test]
    fn all_must_pass() {
        let mut fences = Fences::default();
        fences.open(id(2), set(&[1, 3]), &set(&[1, 3]));
        fences.pass(id(1), id(2), &[]);
        fences.pass(id(9), id(2), &[]);
        assert!(fences.take_complete().is_empty());
        assert_eq!(fences.owing(id(2)).collect::<Vec<_>>(), [id(3)]);
        fences.pass(id(3), id(2), &[]);
        assert_eq!(fences.take_complete(), [id(2)]);
        assert!(!fences.is_open(id(2)));
    }

    /// 1 - 2 - 3 - 4: 2 dies, 3 dies before it passed; 4 holds what came from 1 through both.
    #[test]
    fn a_fence_waits_for_that_of_a_survivor_that_died_owing() {
        let mut fences = Fences::default();
        fences.open(id(2), set(&[1, 3]), &set(&[1, 3]));
        fences.pass(id(1), id(2), &[]);
        fences.open(id(3), set(&[4]), &set(&[2, 4]));
        assert!(fences.take_complete().is_empty(), "4 may hold 1's bytes");
        fences.pass(id(4), id(3), &[]);
        assert_eq!(fences.take_complete(), [id(2), id(3)]);
    }

    /// 1 - 2 - 3: 2 dies, then its lender 1, which nobody but 2 was linked with; 3 still reads 1's bytes.
    #[test]
    fn a_fence_waits_for_that_of_a_dead_intermediary() {
        let mut fences = Fences::default();
        fences.open(id(2), set(&[1, 3]), &set(&[1, 3]));
        fences.open(id(1), set(&[]), &set(&[2]));
        assert!(fences.take_complete().is_empty(), "3 may hold 1's bytes");
        fences.pass(id(3), id(2), &[]);
        assert_eq!(fences.take_complete(), [id(1), id(2)]);
    }

    /// 1 - 2 - 3 - 4: 1 lends to 2, who forwards to 3, who forwards to 4. 1 and 3 die.
    #[test]
    fn a_word_that_leaves_out_the_dead_makes_the_fence_wait_for_theirs() {
        let mut fences = Fences::default();
        fences.open(id(1), set(&[2]), &set(&[2]));
        fences.open(id(3), set(&[2, 4]), &set(&[2, 4]));
        fences.pass(id(2), id(1), &[id(3)]);
        fences.pass(id(2), id(3), &[]);
        assert!(fences.take_complete().is_empty(), "4 may hold 1's bytes");
        fences.pass(id(4), id(3), &[]);
        assert_eq!(fences.take_complete(), [id(1), id(3)]);
    }
}
