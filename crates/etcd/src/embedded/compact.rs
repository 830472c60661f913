//! Compaction: drops every version that was superseded at or before the compacted revision.

use super::codec;
use super::{Shared, read, storage};
use crate::Error;

/// Records removed with one batch.
const BATCH: usize = 1000;

impl Shared {
    pub(super) fn drop_history(&self, revision: i64) -> Result<(), Error> {
        let mut batch = self.database.batch();
        for guard in self
            .log
            .range(..=codec::log_key(revision, u32::MAX).to_vec())
        {
            let (position, bytes) = guard.into_inner().map_err(storage)?;
            let at = codec::split_log_key(&position).ok_or_else(read::damaged)?;
            let (key, record) = codec::decode_log(&bytes).ok_or_else(read::damaged)?;
            let newest = self.newest_at(&key, revision)?;
            if !record.is_deletion() && newest == Some(at) {
                continue;
            }
            batch.remove(&self.log, position);
            // A transaction may change a key twice; then the revision's entry is that of the later change.
            if newest == Some(at) || newest.is_none_or(|(newest, _)| newest != at.0) {
                batch.remove(&self.versions, codec::version_key(&key, at.0));
            }
            if batch.len() >= 2 * BATCH {
                std::mem::replace(&mut batch, self.database.batch())
                    .commit()
                    .map_err(storage)?;
            }
        }
        batch.commit().map_err(storage)
    }

    /// Where in the log the version is that a read at `revision` finds.
    pub(super) fn newest_at(&self, key: &[u8], revision: i64) -> Result<Option<(i64, u32)>, Error> {
        let end = crate::prefix_end(&codec::version_prefix(key)).to_vec();
        let Some(guard) = self
            .versions
            .range(codec::version_key(key, revision)..end)
            .next()
        else {
            return Ok(None);
        };
        let (version, position) = guard.into_inner().map_err(storage)?;
        let (_, at) = codec::split_version_key(&version).ok_or_else(read::damaged)?;
        let position = position.as_ref().try_into().map(u32::from_be_bytes);
        Ok(Some((at, position.map_err(|_| read::damaged())?)))
    }
}
