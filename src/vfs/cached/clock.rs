//! A bounded map that lets go of what was not used lately (second chance). Keeps no order but that.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

pub struct Clock<K, V> {
    map: HashMap<K, Slot<V>>,
    /// Every key at least once; the hand stands at the front. Keys that were removed stay until it
    /// comes by.
    hand: VecDeque<K>,
    max: usize,
}

struct Slot<V> {
    value: V,
    used: bool,
}

impl<K: Eq + Hash + Copy, V> Clock<K, V> {
    pub fn new(max: usize) -> Clock<K, V> {
        Clock { map: HashMap::new(), hand: VecDeque::new(), max: max.max(1) }
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.map.len()
    }

    pub fn get(&mut self, key: &K) -> Option<&mut V> {
        let slot = self.map.get_mut(key)?;
        slot.used = true;
        Some(&mut slot.value)
    }

    /// The value, made if there is none.
    pub fn entry(&mut self, key: K, make: impl FnOnce() -> V) -> &mut V {
        if !self.map.contains_key(&key) {
            while self.map.len() >= self.max && self.evict().is_some() {}
            // What was removed and came again stands in the line twice: it is tidied up in time.
            if self.hand.len() > 2 * self.map.len() + 16 {
                let known = &self.map;
                self.hand.retain(|k| known.contains_key(k));
            }
            self.hand.push_back(key);
        }
        // Only what is asked for again counts as used.
        let known = self.map.contains_key(&key);
        let slot = self.map.entry(key).or_insert_with(|| Slot { value: make(), used: false });
        slot.used |= known;
        &mut slot.value
    }

    pub fn remove(&mut self, key: &K) -> Option<V> {
        self.map.remove(key).map(|slot| slot.value)
    }

    /// Lets go of one that was not used since the hand last came by.
    pub fn evict(&mut self) -> Option<V> {
        while let Some(key) = self.hand.pop_front() {
            match self.map.get_mut(&key) {
                None => {}
                Some(slot) if slot.used => {
                    slot.used = false;
                    self.hand.push_back(key);
                }
                Some(_) => return self.remove(&key),
            }
        }
        None
    }

    pub fn clear(&mut self) {
        // The room goes, too: what is forgotten must cost nothing.
        *self = Clock::new(self.max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_the_rest_goes() {
        let mut c = Clock::new(8);
        c.entry(0, || 0);
        for n in 1..1000 {
            c.entry(n, || n);
            assert_eq!(c.get(&0), Some(&mut 0), "{n}");
            assert!(c.len() <= 8);
        }
        assert!(c.get(&1).is_none());
        c.remove(&0);
        for n in 0..1000 {
            c.remove(&5000);
            c.entry(5000, || n);
        }
        assert!(c.hand.len() <= 2 * 8 + 17);
    }
}
