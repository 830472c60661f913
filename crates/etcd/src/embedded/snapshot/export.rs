//! A snapshot of the running store, made while it is sent.

use std::ops::Bound;

use bytes::Bytes;
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::super::hash::{backend_key, backend_value};
use super::super::storage::{Snapshot, Space};
use super::super::{Embedded, Shared, codec, read};
use super::{
    BUCKETS, CONSISTENT_INDEX, FINISHED_COMPACTION, KEY, LEASE, Lease, META, SCHEDULED_COMPACTION,
    TRAILER,
};
use crate::Error;
use crate::bbolt::{self, Bucket};

/// Parts are of about this size.
const PART: usize = 32 << 10;

/// Parts that may wait for the receiver.
const QUEUE: usize = 4;

/// A piece of a snapshot file.
#[derive(Debug)]
pub struct Part {
    pub bytes: Bytes,
    /// Bytes that follow.
    pub remaining: u64,
}

impl Embedded {
    /// The file of a snapshot of the present state, from front to back.
    #[must_use]
    pub fn snapshot(&self) -> mpsc::Receiver<Result<Part, Error>> {
        let (sender, parts) = mpsc::channel(QUEUE);
        let shared = self.shared.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = send(&shared, &sender) {
                // The receiver may be gone; then nobody needs to know.
                let _ = sender.blocking_send(Err(error));
            }
        });
        parts
    }
}

fn send(shared: &Shared, sender: &mpsc::Sender<Result<Part, Error>>) -> Result<(), Error> {
    let compacted = shared.hub.compacted();
    let snapshot = shared.storage.snapshot();
    snapshot.check()?;
    let buckets: Vec<Bucket<'_, Error>> = BUCKETS
        .into_iter()
        .map(|name| Bucket {
            name: name.into(),
            entries: match name {
                KEY => Box::new(|each| changes(&snapshot, each)),
                LEASE => Box::new(|each| leases(&snapshot, each)),
                META => Box::new(|each| meta(compacted, each)),
                _ => Box::new(|_| Ok(())),
            },
        })
        .collect();
    let mut hash = Sha256::new();
    let mut waiting = Vec::with_capacity(2 * PART);
    let send = |bytes: &mut Vec<u8>, remaining: u64| {
        let part = Part {
            bytes: std::mem::take(bytes).into(),
            remaining,
        };
        sender.blocking_send(Ok(part)).map_err(|_| Error::Stopped)
    };
    bbolt::write(&buckets, &mut |page, remaining| {
        hash.update(page);
        waiting.extend_from_slice(page);
        if waiting.len() >= PART || remaining == 0 {
            send(&mut waiting, remaining + TRAILER)?;
        }
        Ok(())
    })?;
    send(&mut hash.finalize().to_vec(), 0)
}

type Each<'a> = dyn FnMut(Vec<u8>, Vec<u8>) -> Result<(), Error> + 'a;

fn changes(snapshot: &Snapshot<'_>, each: &mut Each<'_>) -> Result<(), Error> {
    for item in snapshot.range(Space::History, (Bound::Unbounded, Bound::Unbounded)) {
        let (place, bytes) = item?;
        let (revision, position) = codec::split_log_key(&place).ok_or_else(read::damaged)?;
        let (key, record) = codec::decode_log(&bytes).ok_or_else(read::damaged)?;
        let place = backend_key(revision, position, record.is_deletion());
        each(place, backend_value(&key, record))?;
    }
    Ok(())
}

fn leases(snapshot: &Snapshot<'_>, each: &mut Each<'_>) -> Result<(), Error> {
    for item in snapshot.range(Space::Leases, (Bound::Unbounded, Bound::Unbounded)) {
        let (id, ttl) = item?;
        let number = |bytes| codec::read_u64(bytes).map(u64::cast_signed);
        let lease = Lease {
            id: number(&id).ok_or_else(read::damaged)?,
            ttl: number(&ttl).ok_or_else(read::damaged)?,
            remaining_ttl: 0,
        };
        each(id.to_vec(), lease.encode_to_vec())?;
    }
    Ok(())
}

fn meta(compacted: i64, each: &mut Each<'_>) -> Result<(), Error> {
    each(CONSISTENT_INDEX.into(), 0_u64.to_be_bytes().to_vec())?;
    if compacted > 0 {
        each(FINISHED_COMPACTION.into(), backend_key(compacted, 0, false))?;
        each(
            SCHEDULED_COMPACTION.into(),
            backend_key(compacted, 0, false),
        )?;
    }
    Ok(())
}
