//! How many at once: a gate that counts what is inside, in all and by key. Used for connections and streams by node, which is known by then (before that:
//! [`dotgraft_door`]). Nobody waits here; what does not fit is refused at once.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

/// A cheap clone.
#[derive(Debug)]
pub struct Gate<K: Eq + Hash + Clone> {
    inside: Arc<Mutex<HashMap<K, usize>>>,
    per_key: usize,
    total: usize,
}

impl<K: Eq + Hash + Clone> Clone for Gate<K> {
    fn clone(&self) -> Self {
        Self { inside: Arc::clone(&self.inside), per_key: self.per_key, total: self.total }
    }
}

/// One place inside; given back when dropped.
#[derive(Debug)]
pub struct Pass<K: Eq + Hash + Clone> {
    gate: Gate<K>,
    key: K,
}

impl<K: Eq + Hash + Clone> Gate<K> {
    /// Lets at most `per_key` of one key and `total` of all in.
    pub fn new(per_key: usize, total: usize) -> Self {
        Self { inside: Arc::default(), per_key, total }
    }

    /// A place, if there is one.
    pub fn enter(&self, key: K) -> Option<Pass<K>> {
        let mut inside = self.lock();
        if inside.values().sum::<usize>() >= self.total {
            return None;
        }
        let count = inside.get(&key).copied().unwrap_or_default();
        if count >= self.per_key {
            return None;
        }
        inside.insert(key.clone(), count + 1);
        Some(Pass { gate: self.clone(), key })
    }

    /// How many are inside.
    pub fn len(&self) -> usize {
        self.lock().values().sum()
    }

    /// Whether nobody is inside.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<K, usize>> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash + Clone> Drop for Pass<K> {
    fn drop(&mut self) {
        let mut inside = self.gate.lock();
        if let Some(count) = inside.get_mut(&self.key) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                inside.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_key_can_not_take_the_places_of_all() {
        let gate = Gate::new(2, 3);
        let first = gate.enter("a").unwrap();
        let _second = gate.enter("a").unwrap();
        assert!(gate.enter("a").is_none(), "two of one key");
        let _third = gate.enter("b").unwrap();
        assert!(gate.enter("c").is_none(), "three in all");
        drop(first);
        assert_eq!(gate.len(), 2);
        assert!(gate.enter("c").is_some());
    }

    #[test]
    fn an_empty_gate_remembers_nobody() {
        let gate = Gate::new(1, 1);
        drop(gate.enter(1));
        assert!(gate.is_empty());
    }
}
