//! Leases: granted durably, their deadlines kept in memory. A restart renews every lease in full, so that an outage
//! never expires what its owner could not renew.

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::storage::Space;
use super::{Shared, codec, read};
use crate::Error;

/// etcd's longest lease, in seconds.
const MAX_TTL: i64 = 9_000_000_000;

#[derive(Default)]
pub(super) struct Leases {
    leases: HashMap<i64, Lease>,
    deadlines: BTreeSet<(Instant, i64)>,
}

/// What is known of a granted lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseStatus {
    /// Seconds.
    pub granted_ttl: i64,
    pub remaining: Duration,
    /// Keys attached to it, in order.
    pub keys: Vec<Bytes>,
}

struct Lease {
    ttl: i64,
    deadline: Instant,
    keys: BTreeSet<Bytes>,
}

impl Leases {
    pub fn load(shared: &Shared) -> Result<Self, Error> {
        let mut leases = Self::default();
        let everything = || (Bound::Unbounded, Bound::Unbounded);
        for item in shared.storage.range(Space::Leases, everything()) {
            let (id, ttl) = item?;
            let number = |b: &[u8]| {
                codec::read_u64(b)
                    .map(u64::cast_signed)
                    .ok_or_else(read::damaged)
            };
            leases.insert(number(&id)?, number(&ttl)?);
        }
        for item in shared.storage.range(Space::Attached, everything()) {
            let (lease, key) = codec::split_attached_key(&item?.0).ok_or_else(read::damaged)?;
            leases.move_key(&key, 0, lease);
        }
        Ok(leases)
    }

    fn insert(&mut self, id: i64, ttl: i64) {
        let deadline = Instant::now() + Duration::from_secs(ttl.unsigned_abs());
        self.deadlines.insert((deadline, id));
        self.leases.insert(
            id,
            Lease {
                ttl,
                deadline,
                keys: BTreeSet::new(),
            },
        );
    }

    pub fn grant(&mut self, id: i64, ttl: i64) -> Result<(i64, i64), Error> {
        if ttl > MAX_TTL {
            return Err(Error::LeaseTtlTooLarge);
        }
        if id != 0 && self.leases.contains_key(&id) {
            return Err(Error::LeaseExists);
        }
        let mut id = id;
        while id == 0 || self.leases.contains_key(&id) {
            id = rand::random::<i64>() & i64::MAX;
            if !self.leases.contains_key(&id) {
                break;
            }
        }
        let ttl = ttl.max(1);
        self.insert(id, ttl);
        Ok((id, ttl))
    }

    pub fn status(&self, id: i64) -> Option<LeaseStatus> {
        let lease = self.leases.get(&id)?;
        Some(LeaseStatus {
            granted_ttl: lease.ttl,
            remaining: lease.deadline.saturating_duration_since(Instant::now()),
            keys: lease.keys.iter().cloned().collect(),
        })
    }

    /// All leases, the one that expires first at the front.
    pub fn by_expiry(&self) -> Vec<i64> {
        self.deadlines.iter().map(|(_, id)| *id).collect()
    }

    pub fn contains(&self, id: i64) -> bool {
        self.leases.contains_key(&id)
    }

    /// The renewed time to live, 0 for an unknown lease.
    pub fn keep_alive(&mut self, id: i64) -> i64 {
        let Some(lease) = self.leases.get_mut(&id) else {
            return 0;
        };
        self.deadlines.remove(&(lease.deadline, id));
        lease.deadline = Instant::now() + Duration::from_secs(lease.ttl.unsigned_abs());
        self.deadlines.insert((lease.deadline, id));
        lease.ttl
    }

    /// Forgets a lease; the keys that must go with it.
    pub fn revoke(&mut self, id: i64) -> BTreeSet<Bytes> {
        let Some(lease) = self.leases.remove(&id) else {
            return BTreeSet::new();
        };
        self.deadlines.remove(&(lease.deadline, id));
        lease.keys
    }

    /// Notes that a key was attached to another lease (0: none).
    pub fn move_key(&mut self, key: &Bytes, from: i64, to: i64) {
        if from == to {
            return;
        }
        if let Some(lease) = self.leases.get_mut(&from) {
            lease.keys.remove(key);
        }
        if let Some(lease) = self.leases.get_mut(&to) {
            lease.keys.insert(key.clone());
        }
    }

    pub fn next_expiry(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    pub fn expired(&self, now: Instant) -> Vec<i64> {
        self.deadlines
            .iter()
            .take_while(|(deadline, _)| *deadline <= now)
            .map(|(_, id)| *id)
            .collect()
    }
}
