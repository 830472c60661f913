//! Writes that a controller has made but its informer has not shown yet. Until it has, another reconcile would
//! count too few (or too many) dependents and create (or delete) again.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use fluyt_client::ObjectKey;
use parking_lot::Mutex;
use tokio::time::Instant;

/// After this time a write that never showed up is given up, as in upstream.
const EXPIRY: Duration = Duration::from_secs(300);

/// Expected creations and deletions by the key of the controlling object.
#[derive(Default)]
pub struct Expectations {
    by_key: Mutex<HashMap<ObjectKey, Expected>>,
}

struct Expected {
    creations: i64,
    /// Keys of the objects whose deletion was requested.
    deletions: HashSet<ObjectKey>,
    since: Instant,
}

impl Expectations {
    /// Whether the informer has caught up with our writes.
    pub fn satisfied(&self, key: &ObjectKey) -> bool {
        let by_key = self.by_key.lock();
        by_key.get(key).is_none_or(|expected| {
            (expected.creations <= 0 && expected.deletions.is_empty())
                || expected.since.elapsed() > EXPIRY
        })
    }

    /// To be called before the writes are made. Replaces what was expected before.
    pub fn expect(&self, key: &ObjectKey, creations: usize, deletions: HashSet<ObjectKey>) {
        let expected = Expected {
            creations: i64::try_from(creations).unwrap_or(i64::MAX),
            deletions,
            since: Instant::now(),
        };
        self.by_key.lock().insert(key.clone(), expected);
    }

    /// A dependent appeared, or its creation failed.
    pub fn creation_observed(&self, key: &ObjectKey) {
        if let Some(expected) = self.by_key.lock().get_mut(key) {
            expected.creations -= 1;
        }
    }

    /// A dependent is going away, or its deletion failed.
    pub fn deletion_observed(&self, key: &ObjectKey, dependent: &ObjectKey) {
        if let Some(expected) = self.by_key.lock().get_mut(key) {
            expected.deletions.remove(dependent);
        }
    }

    /// The controlling object is gone.
    pub fn forget(&self, key: &ObjectKey) {
        self.by_key.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn satisfied_when_observed_or_expired() {
        let expectations = Expectations::default();
        let key = ObjectKey::new("ns", "rs");
        let pod = ObjectKey::new("ns", "pod");
        assert!(expectations.satisfied(&key));

        expectations.expect(&key, 2, HashSet::new());
        expectations.creation_observed(&key);
        assert!(!expectations.satisfied(&key));
        expectations.creation_observed(&key);
        assert!(expectations.satisfied(&key));

        expectations.expect(&key, 0, [pod.clone()].into());
        expectations.deletion_observed(&key, &ObjectKey::new("ns", "other"));
        assert!(!expectations.satisfied(&key));
        // Twice the same deletion (marked, then gone) counts once.
        expectations.deletion_observed(&key, &pod);
        expectations.deletion_observed(&key, &pod);
        assert!(expectations.satisfied(&key));

        expectations.expect(&key, 1, HashSet::new());
        tokio::time::advance(EXPIRY + Duration::from_secs(1)).await;
        assert!(expectations.satisfied(&key));
    }
}
