//! A bounded cache that forgets what was not used for longest, except what is pinned.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// How many pinned entries are passed over before the cache grows beyond its limit instead.
const LOOK_AT: usize = 64;

/// A map of at most `limit` entries (more, only while they are pinned).
#[derive(Debug)]
pub struct Cache<K, V> {
    entries: HashMap<K, (V, u64)>,
    /// Last use to key.
    order: BTreeMap<u64, K>,
    clock: u64,
    limit: usize,
}

impl<K: Hash + Eq + Clone, V> Cache<K, V> {
    /// An empty cache.
    pub fn new(limit: usize) -> Self {
        Self { entries: HashMap::new(), order: BTreeMap::new(), clock: 0, limit }
    }

    /// An entry, without counting as use.
    pub fn peek<B>(&self, key: &B) -> Option<&V>
    where
        K: Borrow<B>,
        B: Hash + Eq + ?Sized,
    {
        self.entries.get(key).map(|(value, _)| value)
    }

    /// An entry.
    pub fn get_mut<B>(&mut self, key: &B) -> Option<&mut V>
    where
        K: Borrow<B>,
        B: Hash + Eq + ?Sized,
    {
        let (value, used) = self.entries.get_mut(key)?;
        if *used + 1 != self.clock
            && let Some(key) = self.order.remove(used)
        {
            self.order.insert(self.clock, key);
            *used = self.clock;
            self.clock += 1;
        }
        Some(value)
    }

    /// Adds or replaces an entry. Call [`Cache::trim`] at a moment when entries may go.
    pub fn insert(&mut self, key: K, value: V) {
        self.remove(&key);
        self.order.insert(self.clock, key.clone());
        self.entries.insert(key, (value, self.clock));
        self.clock += 1;
    }

    /// Removes an entry.
    pub fn remove<B>(&mut self, key: &B) -> Option<V>
    where
        K: Borrow<B>,
        B: Hash + Eq + ?Sized,
    {
        let (value, used) = self.entries.remove(key)?;
        self.order.remove(&used);
        Some(value)
    }

    /// Forgets entries beyond the limit, those first that were not used for longest.
    pub fn trim(&mut self, pinned: impl Fn(&V) -> bool) {
        let mut passed = 0;
        while self.entries.len() > self.limit && passed < LOOK_AT {
            let Some((used, key)) = self.order.pop_first() else { return };
            if self.entries.get(&key).is_some_and(|(value, _)| pinned(value)) {
                passed += 1;
                self.order.insert(self.clock, key.clone());
                if let Some(entry) = self.entries.get_mut(&key) {
                    entry.1 = self.clock;
                }
                self.clock += 1;
                continue;
            }
            debug_assert!(used < self.clock);
            self.entries.remove(&key);
        }
    }

    /// Forgets what `keep` refuses.
    pub fn retain(&mut self, mut keep: impl FnMut(&K, &mut V) -> bool) {
        let order = &mut self.order;
        self.entries.retain(|key, (value, used)| {
            let kept = keep(key, value);
            if !kept {
                order.remove(used);
            }
            kept
        });
    }

    /// The keys, those first that were not used for longest.
    pub fn oldest(&self) -> impl Iterator<Item = &K> {
        self.order.values()
    }

    /// How many entries there are.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_last_stays() {
        let mut cache = Cache::new(2);
        for key in [1, 2] {
            cache.insert(key, key);
        }
        assert_eq!(cache.get_mut(&1), Some(&mut 1));
        cache.insert(3, 3);
        cache.trim(|_| false);
        assert_eq!(cache.oldest().copied().collect::<Vec<_>>(), [1, 3]);
        assert_eq!(cache.len(), 2);
    }

    #[test]
    fn what_is_pinned_stays_even_beyond_the_limit() {
        let mut cache = Cache::new(1);
        for key in 0..100 {
            cache.insert(key, key);
        }
        cache.trim(|value| *value < 50);
        assert!(cache.peek(&0).is_some());
        for _ in 0..4 {
            cache.trim(|value| *value < 50);
        }
        assert_eq!(cache.len(), 50);
        cache.trim(|_| false);
        assert_eq!(cache.len(), 1);
        assert_eq!(cache.oldest().count(), 1);
    }
}
