//! Who this store is to etcd's clients: ids that stay, and a term that grows with every start.

use super::storage::{Batch, Space};
use super::{Shared, codec};
use crate::Error;

/// What every response header carries besides the revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub cluster_id: u64,
    pub member_id: u64,
    /// Higher after every start, as a restarted member's election makes it.
    pub raft_term: u64,
}

impl Identity {
    /// The ids, made at the first start, and the next term, to be written with the batch.
    pub(super) fn begin(shared: &Shared, batch: &mut Batch) -> Result<Self, Error> {
        let mut number = |name: &str, first: fn() -> u64| -> Result<u64, Error> {
            if let Some(number) = shared.meta(name)? {
                return Ok(number);
            }
            let number = first();
            batch.put(Space::Meta, name, number.to_be_bytes());
            Ok(number)
        };
        let identity = Self {
            cluster_id: number("cluster_id", rand::random)?,
            member_id: number("member_id", rand::random)?,
            raft_term: shared.meta("raft_term")?.unwrap_or(1) + 1,
        };
        batch.put(Space::Meta, "raft_term", identity.raft_term.to_be_bytes());
        Ok(identity)
    }
}

impl Shared {
    /// A number of the store as such.
    pub(super) fn meta(&self, name: &str) -> Result<Option<u64>, Error> {
        let stored = self.storage.get(Space::Meta, name.as_bytes())?;
        Ok(stored.and_then(|bytes| codec::read_u64(&bytes)))
    }
}
