//! A bounded map whose entries expire: what was answered lately.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Answers by key, each for its own time, and never more than a limit.
pub struct Expiring<K, V> {
    entries: Mutex<HashMap<K, (Instant, V)>>,
    capacity: usize,
}

impl<K: Eq + Hash, V: Clone> Expiring<K, V> {
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            entries: Mutex::default(),
            capacity,
        }
    }

    #[must_use]
    pub fn get<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let entries = self.entries.lock();
        let (until, value) = entries.get(key)?;
        (*until > Instant::now()).then(|| value.clone())
    }

    pub fn put(&self, key: K, value: V, lasting: Duration) {
        if lasting.is_zero() {
            return;
        }
        let now = Instant::now();
        let mut entries = self.entries.lock();
        if entries.len() >= self.capacity {
            entries.retain(|_, (until, _)| *until > now);
        }
        if entries.len() >= self.capacity {
            // All are fresh. Those that expire first are worth least.
            let mut ends: Vec<Instant> = entries.values().map(|(until, _)| *until).collect();
            let middle = ends.len() / 2;
            let (_, median, _) = ends.select_nth_unstable(middle);
            let median = *median;
            entries.retain(|_, (until, _)| *until > median);
        }
        entries.insert(key, (now + lasting, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_expire_and_are_bounded() {
        let cache = Expiring::new(10);
        cache.put("gone".to_owned(), 1, Duration::ZERO);
        assert_eq!(cache.get("gone"), None);
        for i in 0..100 {
            cache.put(i.to_string(), i, Duration::from_secs(60 + i));
            assert!(cache.entries.lock().len() <= 10);
        }
        assert_eq!(cache.get("99"), Some(99));
    }
}
