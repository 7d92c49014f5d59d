//! Connections by name: a slab whose names carry an epoch, so that a name that outlived its connection never reaches
//! the next one in the same place.

use std::collections::VecDeque;

use super::StreamId;

/// The most connections of one port: a name is 16 bits of place and 16 bits of epoch.
pub const MAX_CONNECTIONS: usize = 1 << 16;

/// Values of type `T` by [`StreamId`]. All operations are O(1).
#[derive(Debug)]
pub(crate) struct Slab<T> {
    entries: Vec<Entry<T>>,
    /// Free places, the one that has been free longest first: it takes 65536 reuses of a place, each after all other
    /// free places, until a name returns.
    free: VecDeque<u16>,
    limit: usize,
    len: usize,
}

#[derive(Debug)]
struct Entry<T> {
    epoch: u16,
    value: Option<T>,
}

impl<T> Slab<T> {
    /// An empty slab for at most `limit` values (never more than [`MAX_CONNECTIONS`]).
    pub(crate) fn new(limit: usize) -> Self {
        Self { entries: Vec::new(), free: VecDeque::new(), limit: limit.min(MAX_CONNECTIONS), len: 0 }
    }

    /// How many values it holds.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether no more fit.
    pub(crate) fn is_full(&self) -> bool {
        self.len >= self.limit
    }

    /// Puts in what `make` makes for its name; `None`, and nothing made, if the slab is full.
    pub(crate) fn insert_with(&mut self, make: impl FnOnce(StreamId) -> T) -> Option<StreamId> {
        if self.is_full() {
            return None;
        }
        let place = match self.free.pop_front() {
            Some(place) => place,
            None => {
                let place = u16::try_from(self.entries.len()).ok()?;
                self.entries.push(Entry { epoch: 0, value: None });
                place
            }
        };
        let entry = self.entries.get_mut(usize::from(place))?;
        let id = name(entry.epoch, place);
        entry.value = Some(make(id));
        self.len += 1;
        Some(id)
    }

    /// The value of that name.
    pub(crate) fn get(&self, id: StreamId) -> Option<&T> {
        let entry = self.entries.get(place(id))?;
        if entry.epoch == epoch(id) { entry.value.as_ref() } else { None }
    }

    /// The value of that name.
    pub(crate) fn get_mut(&mut self, id: StreamId) -> Option<&mut T> {
        let entry = self.entries.get_mut(place(id))?;
        if entry.epoch == epoch(id) { entry.value.as_mut() } else { None }
    }

    /// Takes the value of that name out; the name is spent.
    pub(crate) fn remove(&mut self, id: StreamId) -> Option<T> {
        let entry = self.entries.get_mut(place(id))?;
        if entry.epoch != epoch(id) {
            return None;
        }
        let value = entry.value.take()?;
        entry.epoch = entry.epoch.wrapping_add(1);
        self.free.push_back(place(id) as u16);
        self.len -= 1;
        Some(value)
    }

    /// The names of all values.
    pub(crate) fn ids(&self) -> Vec<StreamId> {
        let used = self.entries.iter().enumerate().filter(|(_, entry)| entry.value.is_some());
        used.map(|(place, entry)| name(entry.epoch, place as u16)).collect()
    }
}

fn name(epoch: u16, place: u16) -> StreamId {
    StreamId(u32::from(epoch) << 16 | u32::from(place))
}

fn place(id: StreamId) -> usize {
    (id.0 & 0xffff) as usize
}

fn epoch(id: StreamId) -> u16 {
    (id.0 >> 16) as u16
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_limit_is_exact() {
        let mut slab = Slab::new(2);
        let first = slab.insert_with(|_| 1).unwrap();
        assert!(slab.insert_with(|_| 2).is_some());
        assert!(slab.insert_with(|_| 3).is_none());
        slab.remove(first).unwrap();
        assert!(slab.insert_with(|_| 4).is_some());
    }

    #[test]
    fn it_holds_as_many_as_names_can_tell_apart() {
        let mut slab = Slab::new(usize::MAX);
        let made = std::iter::from_fn(|| slab.insert_with(|_| ())).take(MAX_CONNECTIONS + 1).count();
        assert_eq!(made, MAX_CONNECTIONS);
    }

    #[test]
    fn a_spent_name_means_nothing() {
        let mut slab = Slab::new(1);
        let old = slab.insert_with(|_| 1).unwrap();
        slab.remove(old).unwrap();
        let new = slab.insert_with(|_| 2).unwrap();
        assert_ne!(old, new);
        assert_eq!(slab.get(old), None);
        assert_eq!(slab.get_mut(old), None);
        assert_eq!(slab.remove(old), None);
        assert_eq!(slab.get(new), Some(&2));
    }

    proptest! {
        #[test]
        fn it_behaves_as_a_map(steps in prop::collection::vec(any::<(bool, u8)>(), 0..200)) {
            let mut slab = Slab::new(16);
            let mut map = HashMap::new();
            let mut names = Vec::new();
            for (insert, pick) in steps {
                if insert {
                    if let Some(id) = slab.insert_with(|_| pick) {
                        prop_assert!(!names.contains(&id));
                        names.push(id);
                        map.insert(id, pick);
                    } else {
                        prop_assert_eq!(map.len(), 16);
                    }
                } else if let Some(&id) = names.get(usize::from(pick) % names.len().max(1)) {
                    prop_assert_eq!(slab.remove(id), map.remove(&id));
                }
                prop_assert_eq!(slab.len(), map.len());
                for id in &names {
                    prop_assert_eq!(slab.get(*id), map.get(id));
                }
            }
            let mut ids = slab.ids();
            ids.sort();
            let mut expected: Vec<_> = map.into_keys().collect();
            expected.sort();
            prop_assert_eq!(ids, expected);
        }
    }
}
