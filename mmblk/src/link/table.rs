//! The front end's unfinished requests, by the id they have on the lane.

use crate::queue::BlockOp;

/// An unfinished request.
#[derive(Debug)]
pub(super) struct Pending {
    /// The caller's id.
    pub(super) id: u64,
    /// Kept until the answer, so that it can be sent again to the device's successor.
    pub(super) op: BlockOp,
    /// When it was submitted, as a count.
    order: u64,
    /// Whether the peer has it. Only then can it be answered.
    pub(super) sent: bool,
}

/// Up to `depth` requests. An id on the lane is `generation:16 | index:16`: an answer that comes twice, or for a
/// request that has ended, names a generation that is gone.
#[derive(Debug)]
pub(super) struct Table {
    places: Vec<(u16, Option<Pending>)>,
    free: Vec<u16>,
    submitted: u64,
}

impl Table {
    /// A table of `depth` places, at most [`crate::queue::MAX_DEPTH`].
    pub(super) fn new(depth: u32) -> Self {
        let depth = u16::try_from(depth).unwrap_or(u16::MAX);
        let places = (0..depth).map(|_| (0, None)).collect();
        Self { places, free: (0..depth).rev().collect(), submitted: 0 }
    }

    /// How many requests are unfinished.
    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Keeps a request. Returns its id on the lane, or the request if the table is full.
    pub(super) fn insert(&mut self, id: u64, op: BlockOp) -> Result<u32, BlockOp> {
        let Some(index) = self.free.pop() else { return Err(op) };
        let Some((generation, place)) = self.places.get_mut(usize::from(index)) else { return Err(op) };
        *generation = generation.wrapping_add(1);
        *place = Some(Pending { id, op, order: self.submitted, sent: false });
        self.submitted += 1;
        Ok(u32::from(*generation) << 16 | u32::from(index))
    }

    /// The request with that id.
    pub(super) fn get_mut(&mut self, wire: u32) -> Option<&mut Pending> {
        let (generation, place) = self.places.get_mut((wire & 0xFFFF) as usize)?;
        place.as_mut().filter(|_| u32::from(*generation) == wire >> 16)
    }

    /// Takes the request with that id out.
    pub(super) fn remove(&mut self, wire: u32) -> Option<Pending> {
        self.get_mut(wire)?;
        let index = wire as u16;
        self.free.push(index);
        self.places.get_mut(usize::from(index))?.1.take()
    }

    /// The same, if the peer has it.
    pub(super) fn remove_sent(&mut self, wire: u32) -> Option<Pending> {
        let index = wire as u16;
        let (generation, place) = self.places.get_mut(usize::from(index))?;
        if u32::from(*generation) != wire >> 16 {
            return None;
        }
        let pending = place.take_if(|pending| pending.sent)?;
        self.free.push(index);
        Some(pending)
    }

    /// Marks all requests as not sent. Returns their ids in the order of their submission.
    pub(super) fn recall(&mut self) -> Vec<u32> {
        let mut all = Vec::with_capacity(self.len());
        for (index, (generation, place)) in (0u32..).zip(&mut self.places) {
            if let Some(pending) = place {
                pending.sent = false;
                all.push((pending.order, u32::from(*generation) << 16 | index));
            }
        }
        all.sort_unstable();
        all.into_iter().map(|(_, wire)| wire).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_good_once() {
        let mut table = Table::new(2);
        let first = table.insert(7, BlockOp::Flush).unwrap();
        assert_eq!(table.remove(first).unwrap().id, 7);
        assert!(table.remove(first).is_none());
        let again = table.insert(8, BlockOp::Flush).unwrap();
        assert!(again != first && table.get_mut(first).is_none());
        for wrong in [again ^ 1, again ^ 2, again ^ 1 << 16, u32::MAX] {
            assert!(table.remove(wrong).is_none());
        }
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn only_what_the_peer_has_can_be_answered() {
        let mut table = Table::new(2);
        let (a, b) = (table.insert(1, BlockOp::Flush).unwrap(), table.insert(2, BlockOp::Flush).unwrap());
        assert!(table.remove_sent(a).is_none() && table.len() == 2, "it is not sent");
        table.get_mut(a).unwrap().sent = true;
        for wrong in [b, a ^ 1 << 16, a ^ 2, u32::MAX] {
            assert!(table.remove_sent(wrong).is_none());
        }
        assert_eq!(table.remove_sent(a).map(|pending| pending.id), Some(1));
        assert!(table.remove_sent(a).is_none() && table.len() == 1, "once");
    }

    #[test]
    fn full_is_full() {
        let mut table = Table::new(2);
        assert!(table.insert(1, BlockOp::Flush).is_ok() && table.insert(2, BlockOp::Flush).is_ok());
        assert!(table.insert(3, BlockOp::Flush).is_err());
    }

    #[test]
    fn requests_are_recalled_in_order() {
        let mut table = Table::new(4);
        let ids: Vec<u32> = (0..4).map(|id| table.insert(id, BlockOp::Flush).unwrap()).collect();
        table.remove(ids[1]).unwrap();
        let later = table.insert(9, BlockOp::Flush).unwrap();
        table.get_mut(ids[0]).unwrap().sent = true;
        assert_eq!(table.recall(), [ids[0], ids[2], ids[3], later]);
        assert!(!table.get_mut(ids[0]).unwrap().sent);
    }
}
