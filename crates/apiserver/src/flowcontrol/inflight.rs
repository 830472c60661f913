//! Without priority and fairness: as many requests at a time as the flags say.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Requests being served, of one sort.
pub(super) struct InFlight {
    count: Arc<AtomicU64>,
    /// None when 0.
    limit: u64,
}

/// One of them; it is over when this is dropped.
pub struct Place(Arc<AtomicU64>);

impl InFlight {
    pub(super) fn new(limit: u64) -> Self {
        Self {
            count: Arc::default(),
            limit,
        }
    }

    pub(super) fn enter(&self) -> Option<Place> {
        let before = self.count.fetch_add(1, Ordering::AcqRel);
        let place = Place(self.count.clone());
        (self.limit == 0 || before < self.limit).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
