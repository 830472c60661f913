//! What is under the engine: two LSM trees behind one write-ahead log.
//!
//! A batch is durable once the log has it; then it goes into the trees' memory, all at once for readers. When that is
//! full it is sealed and written to tables by a thread of its own, and the part of the log that it came from is deleted.
//! Another thread merges tables. Both wait for each other only when far behind, and only then does a writer wait.

mod batch;
mod integrity;
mod wal;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fs::File;
use std::io;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use bytes::Bytes;
use lsm_tree::compaction::Leveled;
use lsm_tree::config::{CompressionPolicy, FilterPolicy};
use lsm_tree::{
    AbstractTree as _, AnyTree, Cache, CompressionType, Config, DescriptorTable, Guard as _, SeqNo,
    SequenceNumberCounter,
};
use parking_lot::{Condvar, Mutex};

use super::codec;
use crate::Error;
pub use batch::{Batch, Change, Space};
use integrity::TableFile;
pub use integrity::{Damage, OpenError};
use wal::Log;
#[cfg(test)]
pub use wal::{decode_log_record, log_sample};

/// The memory that the trees may use: a master must stay small.
const BLOCK_CACHE_BYTES: u64 = 8 << 20;
const MEMTABLE_BYTES: u64 = 4 << 20;

/// Sealed memory that may wait for being written to tables.
const SEALED: usize = 2;

/// Tables of the history are of about this size.
const TABLE_BYTES: u64 = 16 << 20;

/// Tables of the state are much smaller than those of the history that are written with them, and many runs of them
/// are merged at once: else the same large tables would be merged again for every few small ones.
const STATE_TABLE_BYTES: u64 = 4 << 20;
const STATE_RUNS: u8 = 8;

/// Unmerged runs of tables at which writing more of them waits.
const RUNS: usize = 24;

/// Tables are verified before the store opens up to this size together; the rest is verified while it runs.
const VERIFIED_AT_ONCE: u64 = 512 << 20;

const OPEN_FILES: usize = 128;

/// The one writer's side: the log and what decides when memory is sealed.
pub struct Writing {
    log: Log,
    /// Bytes in the trees' memory.
    memory: u64,
    /// The newest revision in the trees.
    revision: i64,
}

/// The trees, shared by everybody.
pub struct Storage {
    state: AnyTree,
    history: AnyTree,
    seqno: SequenceNumberCounter,
    /// Held while a batch has its number and is not complete.
    numbering: Mutex<()>,
    readers: Mutex<Readers>,
    /// Held while tables are merged.
    merging: Mutex<()>,
    upkeep: Upkeep,
    /// Bytes in tables and in the log.
    table_bytes: AtomicU64,
    log_bytes: AtomicU64,
    corrupt: AtomicBool,
    directory: PathBuf,
    _lock: File,
}

/// What can be read, and from where on somebody still reads.
struct Readers {
    /// Entries below this are complete.
    visible: SeqNo,
    revision: i64,
    active: BTreeMap<SeqNo, usize>,
}

/// What the threads in the background have to do.
#[derive(Default)]
struct Upkeep {
    work: Mutex<Work>,
    changed: Condvar,
}

#[derive(Default)]
struct Work {
    /// Sealed parts that are not in tables yet, by the last segment of the log that they came from.
    sealed: VecDeque<u64>,
    /// Segments of the log that are not needed any more.
    written_through: u64,
    /// Why the last attempt to write tables failed; it is tried again when somebody needs the room.
    failed: Option<Error>,
    merge: bool,
    stop: bool,
}

/// Background threads; dropping waits for them.
pub struct Threads {
    storage: Arc<Storage>,
    threads: Vec<JoinHandle<()>>,
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.storage.upkeep.work.lock().stop = true;
        self.storage.upkeep.changed.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the store panicked");
            }
        }
    }
}

/// A consistent view of everything.
pub struct Snapshot<'a> {
    storage: &'a Storage,
    seqno: SeqNo,
    /// The newest revision in it.
    pub revision: i64,
}

impl Drop for Snapshot<'_> {
    fn drop(&mut self) {
        let mut readers = self.storage.readers.lock();
        if let Some(count) = readers.active.get_mut(&self.seqno) {
            *count -= 1;
            if *count == 0 {
                readers.active.remove(&self.seqno);
            }
        }
    }
}

fn io_error(error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::NoSpace,
        _ => Error::Unavailable(error.to_string()),
    }
}

/// An interval of keys.
pub type Bounds = (Bound<Vec<u8>>, Bound<Vec<u8>>);

fn full_key(space: Space, key: &[u8]) -> Vec<u8> {
    let mut full = Vec::with_capacity(1 + key.len());
    full.push(space.prefix());
    full.extend_from_slice(key);
    full
}

/// Keys of the trees, with their prefix, are not longer.
const LONGEST_KEY: usize = u16::MAX as usize;

/// Whether a client's key fits into the trees.
pub fn fits(key: &[u8]) -> bool {
    codec::version_key(key, 0).len() < LONGEST_KEY
}

/// A bound that the trees can take: keys that are stored compare with it as with the given one.
fn shortened(bound: Bound<Vec<u8>>, beyond: fn(Vec<u8>) -> Bound<Vec<u8>>) -> Bound<Vec<u8>> {
    match bound {
        Bound::Included(mut key) | Bound::Excluded(mut key) if key.len() > LONGEST_KEY => {
            key.truncate(LONGEST_KEY);
            beyond(key)
        }
        bound => bound,
    }
}

impl Storage {
    /// Opens or makes the store in a directory.
    pub fn open(directory: &Path) -> Result<(Arc<Self>, Writing, Threads), OpenError> {
        Self::open_verifying(directory, VERIFIED_AT_ONCE)
    }

    /// Opens it once so many bytes of tables are verified; the rest is while it runs.
    fn open_verifying(
        directory: &Path,
        mut budget: u64,
    ) -> Result<(Arc<Self>, Writing, Threads), OpenError> {
        std::fs::create_dir_all(directory).map_err(OpenError::io(directory))?;
        let lock = integrity::lock(directory)?;
        let id = match integrity::store_id(directory)? {
            Some(id) => id,
            None => create(directory)?,
        };
        let mut later = Vec::new();
        for tree in ["state", "log"].map(|name| directory.join(name)) {
            integrity::remove_drafts(&tree)?;
            for table in integrity::tables(&tree)? {
                match budget.checked_sub(table.size) {
                    Some(left) => {
                        budget = left;
                        table.verify()?;
                    }
                    None => later.push(table),
                }
            }
        }
        let seqno = SequenceNumberCounter::default();
        let trees = Trees::open(directory, &seqno)?;
        let persisted = [&trees.state, &trees.history].map(|t| t.get_highest_persisted_seqno());
        seqno.set(persisted.into_iter().flatten().max().map_or(1, |n| n + 1));
        let mut revision = 0;
        let mut memory = 0;
        let log = Log::recover(directory, id, |record| {
            let batch = Batch::decode(record.payload).ok_or_else(|| {
                Damage::file(&directory.join("wal"), "a record is not of this format")
            })?;
            seqno.fetch_max(record.seqno + 1);
            revision = batch.revision.max(revision);
            memory = trees.apply(batch, record.seqno, persisted);
            Ok(())
        })?;
        let at = seqno.get();
        let stored = trees.state.get(full_key(Space::Meta, b"revision"), at);
        let stored = stored.map_err(|e| Damage::file(&directory.join("state"), e))?;
        if let Some(stored) = stored.and_then(|bytes| codec::read_u64(&bytes)) {
            revision = revision.max(stored.cast_signed());
        }
        let storage = Arc::new(Self {
            seqno,
            numbering: Mutex::new(()),
            merging: Mutex::new(()),
            readers: Mutex::new(Readers {
                visible: at,
                revision,
                active: BTreeMap::new(),
            }),
            upkeep: Upkeep::default(),
            table_bytes: AtomicU64::new(trees.size()),
            log_bytes: AtomicU64::new(log.size()),
            corrupt: AtomicBool::new(false),
            directory: directory.to_owned(),
            state: trees.state,
            history: trees.history,
            _lock: lock,
        });
        let threads = storage
            .clone()
            .spawn(later)
            .map_err(OpenError::io(directory))?;
        let writing = Writing {
            log,
            memory,
            revision,
        };
        Ok((storage, writing, threads))
    }

    /// Everything that is committed now.
    pub fn snapshot(&self) -> Snapshot<'_> {
        let mut readers = self.readers.lock();
        let (seqno, revision) = (readers.visible, readers.revision);
        *readers.active.entry(seqno).or_default() += 1;
        Snapshot {
            storage: self,
            seqno,
            revision,
        }
    }

    /// Bytes on disk.
    pub fn size(&self) -> u64 {
        self.table_bytes.load(Ordering::Relaxed) + self.log_bytes.load(Ordering::Relaxed)
    }

    /// Fails once stored data has turned out to be damaged.
    pub fn check(&self) -> Result<(), Error> {
        if self.corrupt.load(Ordering::Relaxed) {
            return Err(Error::Corrupt);
        }
        Ok(())
    }

    fn failed(&self, error: lsm_tree::Error) -> Error {
        match error {
            lsm_tree::Error::Io(error) => io_error(&error),
            error => {
                self.give_up(&error);
                Error::Corrupt
            }
        }
    }

    /// Stops serving: what is stored cannot be trusted.
    pub fn give_up(&self, what: &dyn std::fmt::Display) {
        if !self.corrupt.swap(true, Ordering::Relaxed) {
            let directory = self.directory.display();
            tracing::error!(%directory, %what, "stored data is damaged; nothing is served any more: restore a snapshot");
        }
    }

    /// Nothing newer than this is needed by anybody to be kept apart.
    fn watermark(&self) -> SeqNo {
        let readers = self.readers.lock();
        let oldest = readers.active.first_key_value().map(|(seqno, _)| *seqno);
        oldest.map_or(readers.visible, |oldest| oldest.min(readers.visible))
    }

    /// Makes a batch durable and visible. After an error nothing of it is visible.
    pub fn commit(&self, writing: &mut Writing, batch: Batch, sync: bool) -> Result<(), Error> {
        self.check()?;
        if writing.memory >= MEMTABLE_BYTES {
            self.seal(writing)?;
        }
        self.trim(writing);
        let _under_way = self.numbering.lock();
        let seqno = self.seqno.next();
        let appended = writing.log.append(seqno, sync, |log| batch.encode(log));
        appended.map_err(|e| io_error(&e))?;
        let revision = batch.revision;
        writing.revision = revision;
        // Readers see what is below `visible`: all of the batch appears with that.
        let trees = TreesRef(&self.state, &self.history);
        writing.memory = trees.apply(batch, seqno, [None, None]);
        let mut readers = self.readers.lock();
        readers.visible = seqno + 1;
        readers.revision = revision;
        Ok(())
    }

    /// Deletes the parts of the log that tables have.
    pub fn trim(&self, writing: &mut Writing) {
        let through = self.upkeep.work.lock().written_through;
        writing.log.forget(through);
        self.log_bytes.store(writing.log.size(), Ordering::Relaxed);
    }

    /// Hands the trees' memory over to be written to tables.
    pub fn seal(&self, writing: &mut Writing) -> Result<(), Error> {
        if writing.memory == 0 {
            return Ok(());
        }
        let mut work = self.upkeep.work.lock();
        while work.sealed.len() >= SEALED {
            // Those who need the room have the failed attempt repeated, and learn what becomes of it.
            work.failed = None;
            self.upkeep.changed.notify_all();
            self.upkeep.changed.wait(&mut work);
            if let Some(error) = &work.failed {
                return Err(error.clone());
            }
        }
        drop(work);
        let ended = writing.log.begin_segment().map_err(|e| io_error(&e))?;
        let seqno = self.seqno.next();
        // The log will be gone, and the last change with it once it is compacted.
        let revision = writing.revision.to_be_bytes();
        self.state
            .insert(full_key(Space::Meta, b"revision"), revision, seqno);
        self.state.rotate_memtable();
        self.history.rotate_memtable();
        writing.memory = 0;
        self.upkeep.work.lock().sealed.push_back(ended);
        self.upkeep.changed.notify_all();
        Ok(())
    }

    /// Waits until all sealed memory is in tables.
    pub fn written(&self) -> Result<(), Error> {
        let mut work = self.upkeep.work.lock();
        work.failed = None;
        self.upkeep.changed.notify_all();
        while !work.sealed.is_empty() && !work.stop {
            if let Some(error) = &work.failed {
                return Err(error.clone());
            }
            self.upkeep.changed.wait(&mut work);
        }
        Ok(())
    }

    /// Rewrites all tables without what is not needed any more.
    pub fn rewrite(&self) -> Result<(), Error> {
        let _merging = self.merging.lock();
        for (tree, bytes) in [
            (&self.state, STATE_TABLE_BYTES),
            (&self.history, TABLE_BYTES),
        ] {
            tree.major_compact(bytes, self.watermark())
                .map_err(|e| self.failed(e))?;
        }
        self.measure();
        Ok(())
    }

    fn measure(&self) {
        let bytes = self.state.disk_space() + self.history.disk_space();
        self.table_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Readers need nothing that tables made meanwhile have replaced, even if nothing is written any more.
    fn catch_up(&self) {
        let _none_under_way = self.numbering.lock();
        let mut readers = self.readers.lock();
        readers.visible = readers.visible.max(self.seqno.get());
    }
}

/// Makes an empty store. Nothing is a store before the last step.
fn create(directory: &Path) -> Result<u64, OpenError> {
    let id = rand::random();
    let fail = OpenError::io(directory);
    for tree in ["state", "log"] {
        let path = directory.join(tree);
        if path.exists() {
            std::fs::remove_dir_all(&path).map_err(&fail)?;
        }
    }
    drop(Trees::open(directory, &SequenceNumberCounter::default())?);
    Log::create(directory, id).map_err(&fail)?;
    integrity::declare(directory, id).map_err(&fail)?;
    Ok(id)
}

struct Trees {
    state: AnyTree,
    history: AnyTree,
}

/// The trees by reference.
struct TreesRef<'a>(&'a AnyTree, &'a AnyTree);

impl Trees {
    fn open(directory: &Path, seqno: &SequenceNumberCounter) -> Result<Self, OpenError> {
        let cache = Arc::new(Cache::with_capacity_bytes(BLOCK_CACHE_BYTES));
        let files = Arc::new(DescriptorTable::new(OPEN_FILES));
        let config = |name: &str| {
            // Which entries are complete is kept track of here, not by the trees.
            Config::new(
                directory.join(name),
                seqno.clone(),
                SequenceNumberCounter::default(),
            )
            .use_cache(cache.clone())
            .use_descriptor_table(Some(files.clone()))
            // What is young is soon merged again, and compressing it every time costs more than it saves.
            .data_block_compression_policy(CompressionPolicy::new([
                CompressionType::None,
                CompressionType::None,
                CompressionType::Lz4,
            ]))
        };
        let open = |name: &str, config: Config| {
            let path = directory.join(name);
            // Tables that are verified only later may be anything.
            let opened = catch_unwind(AssertUnwindSafe(|| config.open()));
            match opened {
                Ok(Ok(tree)) => Ok(tree),
                Ok(Err(lsm_tree::Error::Io(error))) => Err(OpenError::io(&path)(error)),
                Ok(Err(error)) => Err(Damage::file(&path, error).into()),
                Err(_) => Err(Damage::file(&path, "a table cannot be read").into()),
            }
        };
        // The history is read in order, or at places that are known to exist.
        let history = config("log").filter_policy(FilterPolicy::disabled());
        Ok(Self {
            state: open("state", config("state"))?,
            history: open("log", history)?,
        })
    }

    fn size(&self) -> u64 {
        self.state.disk_space() + self.history.disk_space()
    }

    fn apply(&self, batch: Batch, seqno: SeqNo, persisted: [Option<SeqNo>; 2]) -> u64 {
        TreesRef(&self.state, &self.history).apply(batch, seqno, persisted)
    }
}

impl TreesRef<'_> {
    /// Puts a batch into the trees' memory, except where tables have it already. Returns the bytes in memory.
    fn apply(&self, batch: Batch, seqno: SeqNo, persisted: [Option<SeqNo>; 2]) -> u64 {
        let Self(state, history) = self;
        let [in_state, in_history] = persisted.map(|p| p.is_some_and(|p| seqno <= p));
        // Only the last of several changes of a key is current, and an entry may be written once with one number.
        let mut current: HashSet<Bytes> = HashSet::new();
        let mut numbered: HashSet<(Bytes, i64)> = HashSet::new();
        let single = batch.changes.len() == 1;
        for change in batch.changes.into_iter().rev() {
            let Change {
                revision,
                position,
                key,
                record,
            } = change;
            if !in_history {
                let mut bytes = Vec::with_capacity(codec::log_length(&key, &record));
                codec::encode_log(&mut bytes, &key, &record);
                history.insert(codec::log_key(revision, position), bytes, seqno);
            }
            if in_state {
                continue;
            }
            if single || numbered.insert((key.clone(), revision)) {
                let version = codec::version_key(&key, revision);
                state.insert(
                    full_key(Space::Versions, &version),
                    position.to_be_bytes(),
                    seqno,
                );
            }
            if single || current.insert(key.clone()) {
                let full = full_key(Space::Latest, &key);
                if record.is_deletion() {
                    state.remove(full, seqno);
                } else {
                    state.insert(full, codec::Head::encode(&record, position), seqno);
                }
            }
        }
        let mut written: HashSet<Vec<u8>> = HashSet::new();
        for entry in batch.entries.into_iter().rev() {
            let (tree, done, key) = match entry.space {
                Space::History => (history, in_history, entry.key),
                space => (state, in_state, full_key(space, &entry.key)),
            };
            if done || !written.insert(key.clone()) {
                continue;
            }
            match entry.value {
                Some(value) => tree.insert(key, value, seqno),
                None => tree.remove(key, seqno),
            };
        }
        state.active_memtable().size() + history.active_memtable().size()
    }
}

type Item = Result<(Bytes, Bytes), Error>;

impl Storage {
    fn get_at(&self, space: Space, key: &[u8], seqno: SeqNo) -> Result<Option<Bytes>, Error> {
        if key.len() >= LONGEST_KEY {
            return Ok(None);
        }
        let found = match space {
            Space::History => self.history.get(key, seqno),
            space => self.state.get(full_key(space, key), seqno),
        };
        Ok(found.map_err(|e| self.failed(e))?.map(Bytes::from))
    }

    fn range_at(
        &self,
        space: Space,
        (start, end): Bounds,
        seqno: SeqNo,
    ) -> impl Iterator<Item = Item> + use<'_> {
        let (tree, prefix) = match space {
            Space::History => (&self.history, 0),
            _ => (&self.state, 1),
        };
        let full = |key: Vec<u8>| {
            if prefix == 0 {
                key
            } else {
                full_key(space, &key)
            }
        };
        let start = match start {
            Bound::Unbounded if prefix > 0 => Bound::Included(vec![space.prefix()]),
            start => shortened(start.map(full), Bound::Excluded),
        };
        let end = match end {
            Bound::Unbounded if prefix > 0 => Bound::Excluded(vec![space.prefix() + 1]),
            end => shortened(end.map(full), Bound::Included),
        };
        // The tree takes an interval that ends before it starts for a mistake.
        let empty = match (&start, &end) {
            (Bound::Included(s) | Bound::Excluded(s), Bound::Included(e) | Bound::Excluded(e)) => {
                s > e
            }
            _ => false,
        };
        let items = (!empty).then(|| tree.range::<Vec<u8>, _>((start, end), seqno, None));
        items.into_iter().flatten().map(move |guard| {
            let (key, value) = guard.into_inner().map_err(|e| self.failed(e))?;
            Ok((Bytes::from(key).slice(prefix..), Bytes::from(value)))
        })
    }

    /// For the one writer, which sees what it has written itself.
    pub fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, Error> {
        self.get_at(space, key, SeqNo::MAX)
    }

    /// For the one writer.
    pub fn range(&self, space: Space, bounds: Bounds) -> impl Iterator<Item = Item> + use<'_> {
        self.range_at(space, bounds, SeqNo::MAX)
    }
}

impl Snapshot<'_> {
    pub fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, Error> {
        self.storage.check()?;
        self.storage.get_at(space, key, self.seqno)
    }

    pub fn range(&self, space: Space, bounds: Bounds) -> impl Iterator<Item = Item> + use<'_> {
        self.storage.range_at(space, bounds, self.seqno)
    }

    pub fn check(&self) -> Result<(), Error> {
        self.storage.check()
    }
}

impl Storage {
    fn spawn(self: Arc<Self>, later: Vec<TableFile>) -> io::Result<Threads> {
        let mut threads = Threads {
            storage: self.clone(),
            threads: Vec::new(),
        };
        let thread = |name: &str| std::thread::Builder::new().name(name.into());
        let storage = self.clone();
        let writer = thread("etcd-tables").spawn(move || storage.write_tables())?;
        threads.threads.push(writer);
        let storage = self.clone();
        let merger = thread("etcd-merge").spawn(move || storage.merge_tables())?;
        threads.threads.push(merger);
        if !later.is_empty() {
            let storage = self;
            let verifier = thread("etcd-verify").spawn(move || storage.verify(&later))?;
            threads.threads.push(verifier);
        }
        Ok(threads)
    }

    /// Writes sealed memory to tables.
    fn write_tables(&self) {
        let mut work = self.upkeep.work.lock();
        loop {
            if work.stop {
                return;
            }
            let Some(through) = work
                .sealed
                .front()
                .copied()
                .filter(|_| work.failed.is_none())
            else {
                self.upkeep.changed.wait(&mut work);
                continue;
            };
            if self.state.l0_run_count().max(self.history.l0_run_count()) >= RUNS {
                work.merge = true;
                self.upkeep.changed.notify_all();
                self.upkeep.changed.wait(&mut work);
                continue;
            }
            drop(work);
            let written = [&self.state, &self.history]
                .into_iter()
                .try_for_each(|tree| {
                    let lock = tree.get_flush_lock();
                    tree.flush(&lock, self.watermark()).map(drop)
                });
            self.catch_up();
            self.measure();
            work = self.upkeep.work.lock();
            match written {
                Ok(()) => {
                    work.sealed.pop_front();
                    work.written_through = through;
                    work.merge = true;
                }
                Err(error) => {
                    let error = self.failed(error);
                    tracing::warn!(%error, "cannot write a table");
                    work.failed = Some(error);
                    drop(work);
                    self.remove_leftovers();
                    work = self.upkeep.work.lock();
                }
            }
            self.upkeep.changed.notify_all();
        }
    }

    /// Merges tables as long as that is due.
    fn merge_tables(&self) {
        let strategies = [
            Leveled::default()
                .with_table_target_size(STATE_TABLE_BYTES)
                .with_l0_threshold(STATE_RUNS),
            Leveled::default().with_table_target_size(TABLE_BYTES),
        ]
        .map(Arc::new);
        let mut work = self.upkeep.work.lock();
        loop {
            if work.stop {
                return;
            }
            if !std::mem::take(&mut work.merge) {
                self.upkeep.changed.wait(&mut work);
                continue;
            }
            drop(work);
            let merging = self.merging.lock();
            for (tree, strategy) in [&self.state, &self.history].into_iter().zip(&strategies) {
                loop {
                    let before = tree.current_version().id();
                    if let Err(error) = tree.compact(strategy.clone(), self.watermark()) {
                        let error = self.failed(error);
                        tracing::warn!(%error, "cannot merge tables");
                        break;
                    }
                    if tree.current_version().id() == before || self.upkeep.work.lock().stop {
                        break;
                    }
                    // Whoever waits for fewer runs can go on.
                    self.upkeep.changed.notify_all();
                }
            }
            drop(merging);
            self.catch_up();
            self.measure();
            work = self.upkeep.work.lock();
            self.upkeep.changed.notify_all();
        }
    }

    /// Deletes tables that a failed attempt left half-written: they would fill the disk further with every attempt.
    fn remove_leftovers(&self) {
        // Those that are being made are not known to the trees either.
        let Some(_not_merging) = self.merging.try_lock() else {
            return;
        };
        for (tree, name) in [(&self.state, "state"), (&self.history, "log")] {
            let known: HashSet<u64> = tree
                .current_version()
                .iter_tables()
                .map(|table| table.id())
                .collect();
            let directory = self.directory.join(name).join("tables");
            let Ok(entries) = std::fs::read_dir(&directory) else {
                continue;
            };
            for entry in entries.flatten() {
                let name = entry.file_name();
                let id = name.to_str().and_then(|n| n.parse::<u64>().ok());
                if id.is_some_and(|id| !known.contains(&id)) {
                    let _ = std::fs::remove_file(entry.path());
                }
            }
        }
    }

    fn verify(&self, tables: &[TableFile]) {
        for table in tables {
            if self.upkeep.work.lock().stop || self.corrupt.load(Ordering::Relaxed) {
                return;
            }
            match table.verify() {
                // It has been merged into others meanwhile.
                _ if !table.path.exists() => {}
                Ok(()) => {}
                Err(damage) => self.give_up(&damage),
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use codec::Record;

    /// A store whose history is in tables.
    fn filled(directory: &Path) {
        let (storage, mut writing, _threads) = Storage::open(directory).unwrap();
        let changes = (0..64).map(|n| Change {
            revision: 2,
            position: n,
            key: Bytes::from(format!("key-{n:02}")),
            record: Record {
                mod_revision: 2,
                create_revision: 2,
                version: 1,
                lease: 0,
                value: vec![n.to_le_bytes()[0]; 4096].into(),
            },
        });
        let batch = Batch {
            revision: 2,
            changes: changes.collect(),
            ..Batch::default()
        };
        storage.commit(&mut writing, batch, true).unwrap();
        storage.seal(&mut writing).unwrap();
        storage.written().unwrap();
    }

    fn flip_a_byte(path: &Path) {
        let mut bytes = std::fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(path, bytes).unwrap();
    }

    #[test]
    fn damage_that_is_found_late_stops_the_store() {
        for damaged in [false, true] {
            let directory = tempfile::tempdir().unwrap();
            filled(directory.path());
            let tables = integrity::tables(&directory.path().join("log")).unwrap();
            if damaged {
                flip_a_byte(&tables[0].path);
                let at_once = Storage::open(directory.path()).err().unwrap().to_string();
                assert!(at_once.contains("tables"), "{at_once}");
            }
            let (storage, _writing, mut threads) =
                Storage::open_verifying(directory.path(), 0).unwrap();
            // The last of them is the verifier.
            threads.threads.pop().unwrap().join().unwrap();
            assert_eq!(storage.check().is_err(), damaged);
        }
    }
}
