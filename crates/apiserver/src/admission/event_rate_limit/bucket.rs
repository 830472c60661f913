//! Allowances that fill up with time, for keys that come and go.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

/// How much is allowed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    pub per_second: f64,
    pub burst: f64,
}

/// The allowances of the keys that were used last. Whoever is forgotten starts with a full one.
pub(super) struct Buckets {
    rate: Rate,
    capacity: usize,
    all: HashMap<String, Bucket>,
    /// Keys by when they were used, the last at the end.
    order: BTreeMap<u64, String>,
    uses: u64,
}

struct Bucket {
    left: f64,
    since: Instant,
    used: u64,
}

impl Buckets {
    pub(super) fn new(rate: Rate, capacity: usize) -> Self {
        Self {
            rate,
            capacity,
            all: HashMap::new(),
            order: BTreeMap::new(),
            uses: 0,
        }
    }

    /// Whether a key has something left, of which this takes one.
    pub(super) fn take(&mut self, key: &str, now: Instant) -> bool {
        let Rate { per_second, burst } = self.rate;
        self.uses += 1;
        let bucket = self.all.entry(key.to_owned()).or_insert(Bucket {
            left: burst,
            since: now,
            used: self.uses,
        });
        self.order.remove(&bucket.used);
        bucket.used = self.uses;
        self.order.insert(self.uses, key.to_owned());
        let gained = now.saturating_duration_since(bucket.since).as_secs_f64() * per_second;
        bucket.left = (bucket.left + gained).min(burst);
        bucket.since = bucket.since.max(now);
        let allowed = bucket.left >= 1.0;
        if allowed {
            bucket.left -= 1.0;
        }
        self.forget();
        allowed
    }

    /// Forgets whoever is over the limit.
    fn forget(&mut self) {
        while self.all.len() > self.capacity
            && let Some((_, key)) = self.order.pop_first()
        {
            self.all.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_allowance_fills_up() {
        let rate = Rate {
            per_second: 2.0,
            burst: 3.0,
        };
        let mut buckets = Buckets::new(rate, 10);
        let start = Instant::now();
        let mut taken = |key: &str, after: u64| {
            let now = start + Duration::from_millis(after);
            (0..10).filter(|_| buckets.take(key, now)).count()
        };
        assert_eq!(taken("a", 0), 3);
        assert_eq!(taken("a", 499), 0);
        assert_eq!(taken("a", 500), 1);
        assert_eq!(taken("b", 500), 3);
        assert_eq!(taken("a", 1_500), 2);
        assert_eq!(taken("a", 60_000), 3);
    }

    #[test]
    fn the_key_that_was_used_first_is_forgotten() {
        let rate = Rate {
            per_second: 1.0,
            burst: 1.0,
        };
        let mut buckets = Buckets::new(rate, 2);
        let now = Instant::now();
        assert!(buckets.take("a", now) && buckets.take("b", now));
        assert!(!buckets.take("a", now));
        assert!(buckets.take("c", now));
        assert_eq!((buckets.all.len(), buckets.order.len()), (2, 2));
        assert!(!buckets.take("a", now) && buckets.take("b", now));
    }
}
