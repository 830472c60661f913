//! A new store from a snapshot file, etcd's or ours.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use etcd_client::proto::PbKeyValue;
use prost::Message as _;
use sha2::{Digest as _, Sha256};

use super::super::codec::{self, Record};
use super::super::hash::Crc32c;
use super::super::storage::{Batch, Change, Space, Storage, fits};
use super::{FINISHED_COMPACTION, KEY, LEASE, Lease, META, SCHEDULED_COMPACTION, SECTOR, TRAILER};
use crate::bbolt::Database;

/// Bytes written as one batch.
const BATCH: usize = 1 << 20;

/// What is in a snapshot, as `etcdctl snapshot status` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    pub hash: u32,
    pub revision: i64,
    pub total_keys: u64,
    pub total_bytes: u64,
}

fn open(snapshot: &Path) -> anyhow::Result<Database> {
    let file = File::open(snapshot).with_context(|| snapshot.display().to_string())?;
    Database::open(file).with_context(|| snapshot.display().to_string())
}

/// Looks at a snapshot.
///
/// # Errors
/// When the file cannot be read or is not a snapshot.
pub fn status(snapshot: &Path) -> anyhow::Result<Status> {
    let database = open(snapshot)?;
    let mut hash = Crc32c::default();
    let mut status = Status {
        hash: 0,
        revision: 0,
        total_keys: 0,
        total_bytes: database.size(),
    };
    for bucket in database.buckets()? {
        hash.update(&bucket);
        let is_key = bucket == KEY.as_bytes();
        database.each(&bucket, &mut |key, value| {
            hash.update(key);
            hash.update(value);
            status.total_keys += 1;
            if is_key {
                status.revision = place(key)?.0;
            }
            anyhow::Ok(())
        })?;
    }
    status.hash = hash.finish();
    Ok(status)
}

/// Makes a store in a directory that does not exist yet.
///
/// # Errors
/// When the file is damaged or the directory cannot be made; then there is no store.
pub fn restore(snapshot: &Path, directory: &Path, skip_hash_check: bool) -> anyhow::Result<Status> {
    if directory.exists() {
        let mut entries = std::fs::read_dir(directory)?;
        ensure!(
            entries.next().is_none(),
            "data-dir \"{}\" not empty or could not be read",
            directory.display()
        );
    }
    if !skip_hash_check {
        check_hash(snapshot)?;
    }
    let status = status(snapshot)?;
    // The store appears all at once, or not at all.
    let mut draft = directory.as_os_str().to_owned();
    draft.push(".restoring");
    let draft = Path::new(&draft);
    if draft.exists() {
        std::fs::remove_dir_all(draft).with_context(|| draft.display().to_string())?;
    }
    fill(snapshot, draft).inspect_err(|_| {
        // What was made of it is of no use to anybody.
        let _ = std::fs::remove_dir_all(draft);
    })?;
    std::fs::rename(draft, directory).with_context(|| directory.display().to_string())?;
    let parent = directory.parent().filter(|p| !p.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(status)
}

fn check_hash(snapshot: &Path) -> anyhow::Result<()> {
    let mut file = File::open(snapshot).with_context(|| snapshot.display().to_string())?;
    let length = file.metadata()?.len();
    ensure!(
        length % SECTOR == TRAILER,
        "snapshot missing hash but --skip-hash-check=false"
    );
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    let mut content = (&mut file).take(length - TRAILER);
    loop {
        let read = content.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
    }
    let mut expected = Vec::new();
    file.read_to_end(&mut expected)?;
    let found = hash.finalize();
    ensure!(
        found[..] == expected[..],
        "expected sha256 {expected:02x?}, got {:02x?}: {} is damaged",
        &found[..],
        snapshot.display()
    );
    Ok(())
}

/// Revision and position of a key of the bucket `key`, and whether it is of a deletion.
fn place(key: &[u8]) -> anyhow::Result<(i64, u32, bool)> {
    let number = |at: usize| {
        let bytes = key.get(at..at + 8)?.try_into().ok()?;
        Some(i64::from_be_bytes(bytes))
    };
    let deletion = match key.get(17..) {
        Some([]) => Some(false),
        Some(b"t") => Some(true),
        _ => None,
    };
    let parts = || {
        let position = u32::try_from(number(9)?).ok()?;
        Some((
            number(0).filter(|revision| *revision > 0)?,
            position,
            deletion?,
        ))
    };
    parts().with_context(|| format!("{key:02x?} is not the key of a revision"))
}

fn fill(snapshot: &Path, directory: &Path) -> anyhow::Result<()> {
    let database = open(snapshot)?;
    let compacted = compacted(&database)?;
    let mut leases = HashSet::new();
    let mut last = Batch::default();
    database.each(LEASE.as_bytes(), &mut |_, value| {
        let lease = Lease::decode(value).context("a lease is damaged")?;
        leases.insert(lease.id);
        last.put(
            Space::Leases,
            lease.id.to_be_bytes(),
            lease.ttl.to_be_bytes(),
        );
        anyhow::Ok(())
    })?;
    let (storage, mut writing, _threads) = Storage::open(directory)?;
    let mut batch = Batch::default();
    let mut size = 0;
    let mut attached: BTreeMap<Bytes, i64> = BTreeMap::new();
    let mut newest = 1;
    database.each(KEY.as_bytes(), &mut |place_key, value| {
        let (revision, position, deletion) = place(place_key)?;
        let kv = PbKeyValue::decode(value).context("a key is damaged")?;
        let key = Bytes::from(kv.key);
        ensure!(fits(&key), "a key of {} bytes is too long", key.len());
        ensure!(
            deletion == (kv.version == 0),
            "a key's version is not right"
        );
        if kv.lease != 0 && leases.contains(&kv.lease) {
            attached.insert(key.clone(), kv.lease);
        } else {
            attached.remove(&key);
        }
        newest = newest.max(revision);
        // A revision is not cut in two: what is in one batch has one number.
        if size >= BATCH && batch.revision != revision {
            size = 0;
            storage.commit(&mut writing, std::mem::take(&mut batch), false)?;
        }
        size += key.len() + kv.value.len() + 64;
        batch.revision = newest;
        batch.changes.push(Change {
            revision,
            position,
            key,
            record: Record {
                mod_revision: revision,
                create_revision: kv.create_revision,
                version: kv.version,
                lease: kv.lease,
                value: kv.value.into(),
            },
        });
        anyhow::Ok(())
    })?;
    storage.commit(&mut writing, batch, false)?;
    for (key, lease) in attached {
        last.put(Space::Attached, codec::attached_key(lease, &key), "");
    }
    // The newest changes may all have been compacted away.
    last.revision = newest.max(compacted);
    if compacted > 0 {
        last.put(Space::Meta, "compacted", compacted.to_be_bytes());
    }
    storage.commit(&mut writing, last, true)?;
    Ok(())
}

/// The revision up to which the snapshot's history is gone; 0 when none is.
fn compacted(database: &Database) -> anyhow::Result<i64> {
    let mut compacted = 0;
    database.each(META.as_bytes(), &mut |name, value| {
        // What a compaction that was under way has left over is not visible, and goes with the next one.
        if name == SCHEDULED_COMPACTION.as_bytes() || name == FINISHED_COMPACTION.as_bytes() {
            compacted = compacted.max(place(value)?.0);
        }
        anyhow::Ok(())
    })?;
    Ok(compacted)
}
