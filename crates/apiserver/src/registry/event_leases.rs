//! Leases of the store, under which events live; many share one.

use std::time::{Duration, Instant};

use fluyt_api::Error;
use fluyt_etcd::Store;
use tokio::sync::Mutex;

use super::store_error;

/// Events that share a lease at most.
const MOST: u32 = 1000;

/// Gives out leases.
pub(super) struct EventLeases {
    ttl: i64,
    /// How long a lease is given out, which is how much longer it lasts.
    reuse: i64,
    current: Mutex<Option<Lease>>,
}

struct Lease {
    id: i64,
    made: Instant,
    events: u32,
}

impl EventLeases {
    /// `reuse` seconds, or the twentieth part of the events' life if that is less.
    pub fn new(ttl: Duration, reuse: i64) -> Self {
        let ttl = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX / 2);
        Self {
            ttl,
            reuse: reuse.min(ttl / 20),
            current: Mutex::default(),
        }
    }

    /// A lease for one more event.
    pub async fn get(&self, store: &dyn Store) -> Result<i64, Error> {
        let mut current = self.current.lock().await;
        let reuse = Duration::from_secs(u64::try_from(self.reuse).unwrap_or_default());
        if let Some(lease) = current.as_mut()
            && lease.made.elapsed() < reuse
            && lease.events < MOST
        {
            lease.events += 1;
            return Ok(lease.id);
        }
        let ttl = self.ttl + self.reuse.max(0);
        let (id, _) = store.lease_grant(0, ttl).await.map_err(store_error)?;
        *current = Some(Lease {
            id,
            made: Instant::now(),
            events: 1,
        });
        Ok(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fluyt_etcd::embedded::Embedded;

    async fn ids(leases: &EventLeases, events: u32) -> Vec<i64> {
        let directory = tempfile::tempdir().unwrap();
        let store = Embedded::open(directory.path()).unwrap();
        let mut ids = Vec::new();
        for _ in 0..events {
            ids.push(leases.get(&store).await.unwrap());
        }
        ids.dedup();
        ids
    }

    #[tokio::test]
    async fn a_lease_is_shared_by_a_thousand_events() {
        let hour = Duration::from_secs(3600);
        assert_eq!(ids(&EventLeases::new(hour, 60), MOST).await.len(), 1);
        assert_eq!(ids(&EventLeases::new(hour, 60), MOST + 1).await.len(), 2);
    }

    #[tokio::test]
    async fn none_is_shared_where_that_is_not_wanted_or_events_are_short_lived() {
        let hour = Duration::from_secs(3600);
        assert_eq!(ids(&EventLeases::new(hour, 0), 3).await.len(), 3);
        let second = Duration::from_secs(1);
        assert_eq!(ids(&EventLeases::new(second, 60), 3).await.len(), 3);
        assert_eq!(EventLeases::new(hour, 1000).reuse, 180);
    }
}
