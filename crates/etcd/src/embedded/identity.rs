//! Who this store is to etcd's clients: ids that stay, and a term that grows with every start.

use super::{Embedded, Shared, codec, storage};
use crate::Error;

/// What every response header carries besides the revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub cluster_id: u64,
    pub member_id: u64,
    /// Higher after every start, as a restarted member's election makes it.
    pub raft_term: u64,
}

impl Embedded {
    /// Begins a new term; call once, when serving starts.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn begin_term(&self) -> Result<Identity, Error> {
        let shared = &self.shared;
        let identity = Identity {
            cluster_id: shared.number("cluster_id", rand::random)?,
            member_id: shared.number("member_id", rand::random)?,
            raft_term: shared.number("raft_term", || 1)? + 1,
        };
        shared
            .meta
            .insert("raft_term", identity.raft_term.to_be_bytes())
            .map_err(storage)?;
        shared
            .database
            .persist(fjall::PersistMode::SyncAll)
            .map_err(storage)?;
        Ok(identity)
    }
}

impl Shared {
    fn number(&self, name: &str, first: impl FnOnce() -> u64) -> Result<u64, Error> {
        let stored = self.meta.get(name).map_err(storage)?;
        if let Some(number) = stored.and_then(|bytes| codec::read_u64(&bytes)) {
            return Ok(number);
        }
        let number = first();
        self.meta
            .insert(name, number.to_be_bytes())
            .map_err(storage)?;
        Ok(number)
    }
}
