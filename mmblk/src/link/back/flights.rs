//! The requests that the queue has, by the id they have there.

use super::account::Lent;

/// A request that the queue has.
#[derive(Debug)]
pub(super) struct Flight {
    /// Its id on the lane.
    pub(super) wire: u32,
    /// The session that it belongs to.
    pub(super) session: u32,
    /// What a read holds of its front end's account.
    pub(super) lent: Option<Lent>,
}

/// As many as there are; the queue's depth is the limit.
#[derive(Debug, Default)]
pub(super) struct Flights {
    places: Vec<Option<Flight>>,
    free: Vec<usize>,
}

impl Flights {
    /// Enters a request. Returns its id.
    pub(super) fn enter(&mut self, flight: Flight) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        if let Some(place) = self.places.get_mut(index) {
            *place = Some(flight);
        }
        index as u64
    }

    /// Takes the request with that id out.
    pub(super) fn remove(&mut self, id: u64) -> Option<Flight> {
        let index = usize::try_from(id).ok()?;
        let flight = self.places.get_mut(index)?.take()?;
        self.free.push(index);
        Some(flight)
    }
}
