//! Requests under way, by a number that each has as long as it is.

/// A table that grows as needed and gives each entry a number.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    places: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    /// Enters something. Returns its number.
    pub(crate) fn insert(&mut self, entry: T) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        if let Some(place) = self.places.get_mut(index) {
            *place = Some(entry);
        }
        index as u64
    }

    /// Takes out what has that number.
    pub(crate) fn remove(&mut self, number: u64) -> Option<T> {
        let index = usize::try_from(number).ok()?;
        let entry = self.places.get_mut(index)?.take()?;
        self.free.push(index);
        Some(entry)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_good_until_it_is_taken() {
        let mut slab = Slab::default();
        let (a, b) = (slab.insert('a'), slab.insert('b'));
        assert_eq!((slab.remove(a), slab.remove(a), slab.len()), (Some('a'), None, 1));
        assert_eq!(slab.insert('c'), a);
        assert_eq!(
            (slab.remove(b), slab.remove(a), slab.remove(7), slab.remove(u64::MAX)),
            (Some('b'), Some('c'), None, None)
        );
        assert_eq!(slab.len(), 0);
    }
}
