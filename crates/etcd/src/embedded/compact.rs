//! Compaction: drops every version that was superseded at or before the compacted revision.
//!
//! Only keys that changed since the last compaction can have such versions, so only that part of the history is read.

use std::ops::Bound;

use bytes::Bytes;

use super::storage::{Batch, Snapshot, Space};
use super::{Embedded, codec, read};
use crate::Error;

/// Records removed with one batch.
const BATCH: usize = 1000;

/// Where a version of a key is in the history.
type Place = (i64, u32);

impl Embedded {
    /// Removes what compactions up to `revision` have made unreachable. Can be repeated, and is after a crash.
    pub(super) async fn drop_history(&self, revision: i64) -> Result<(), Error> {
        let _one = self.compacting.lock().await;
        let mut from = self.shared.meta("dropped")?.map_or(0, u64::cast_signed) + 1;
        while from <= revision {
            let (batch, next) = self
                .blocking(move |shared| unreachable(&shared.storage.snapshot(), from, revision))
                .await?;
            self.write(batch).await?;
            from = next;
        }
        let mut batch = Batch::default();
        batch.put(Space::Meta, "dropped", revision.to_be_bytes());
        self.write(batch).await
    }
}

/// What to remove because of the changes from one revision on, and the revision to go on at.
fn unreachable(snapshot: &Snapshot<'_>, from: i64, revision: i64) -> Result<(Batch, i64), Error> {
    let mut batch = Batch::default();
    let bounds = (
        Bound::Included(codec::log_key(from, 0).to_vec()),
        Bound::Included(codec::log_key(revision, u32::MAX).to_vec()),
    );
    let mut last = from;
    for item in snapshot.range(Space::History, bounds) {
        let (place, bytes) = item?;
        let place = codec::split_log_key(&place).ok_or_else(read::damaged)?;
        if batch.entries.len() >= BATCH && place.0 != last {
            return Ok((batch, place.0));
        }
        last = place.0;
        let (key, record) = codec::decode_log(&bytes).ok_or_else(read::damaged)?;
        let mut versions = versions_at(snapshot, &key, revision);
        match versions.next().transpose()? {
            // The newest version that is left. If it is a deletion, nothing of the key needs to be.
            Some(newest) if newest == place => {
                if record.is_deletion() {
                    remove(&mut batch, &key, newest);
                }
                for older in versions {
                    remove(&mut batch, &key, older?);
                }
            }
            // The change after this one, in the same revision or later, takes care of the versions.
            _ => batch.remove(Space::History, codec::log_key(place.0, place.1)),
        }
    }
    Ok((batch, revision + 1))
}

fn remove(batch: &mut Batch, key: &[u8], (revision, position): Place) {
    batch.remove(Space::History, codec::log_key(revision, position));
    batch.remove(Space::Versions, codec::version_key(key, revision));
}

/// The places of a key's versions up to a revision, newest first.
pub(super) fn versions_at<'a>(
    snapshot: &'a Snapshot<'_>,
    key: &Bytes,
    revision: i64,
) -> impl Iterator<Item = Result<Place, Error>> + use<'a> {
    let bounds = (
        Bound::Included(codec::version_key(key, revision)),
        Bound::Excluded(crate::prefix_end(&codec::version_prefix(key)).to_vec()),
    );
    snapshot.range(Space::Versions, bounds).map(|item| {
        let (version, position) = item?;
        let (_, at) = codec::split_version_key(&version).ok_or_else(read::damaged)?;
        let position = position.as_ref().try_into().map(u32::from_be_bytes);
        Ok((at, position.map_err(|_| read::damaged())?))
    })
}
