//! The write-ahead log: one record per group of transactions, in segment files that are deleted once the LSM trees hold
//! what they say.
//!
//! A segment begins with a header that names its place in the log, the first record's index, and where the valid part
//! of the segment before it ends. So nothing is ever overwritten or cut off: after a failed write the log goes on in
//! a new segment, and what the failed write left behind is not valid any more.
//!
//! A crash may leave an incomplete last record, which nobody was told of. Damage looks the same at first. The file
//! `committed` tells them apart: after every durable record, and before anybody is told of it, its end is written there
//! (without waiting for the disk, so that it may be older after a power failure, but never newer).

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::Damage;

const HEADER: usize = 56;
const RECORD_HEADER: usize = 32;
const MAGIC: &[u8; 8] = b"FLUYTWAL";
const RECORD_MAGIC: [u8; 4] = *b"FREC";
const MARKER: usize = 40;

/// Zeros are written ahead of the records in steps of this size. A record in a place that was written before is durable
/// with its own blocks; one that makes the file grow, or fills space that was only reserved, has the file system commit
/// its journal too, which takes as long again.
const AHEAD: usize = 256 << 10;

/// The buffer of a record is kept for the next one up to this size.
const KEPT: usize = 1 << 20;

const DIRECTORY: &str = "wal";
const COMMITTED: &str = "committed";

/// What makes data durable; replaced by tests.
pub type Sync = fn(&File) -> io::Result<()>;

pub struct Log {
    directory: PathBuf,
    store_id: u64,
    /// Oldest segment that exists.
    first: u64,
    segment: u64,
    file: File,
    /// End of the valid part of the segment.
    end: u64,
    /// End of the zeros that were written ahead.
    prepared: u64,
    /// Index of the next record.
    index: u64,
    committed: File,
    /// The segment may hold what a failed write left: the next record needs a new one.
    spoiled: bool,
    /// Bytes in older segments.
    older: u64,
    buffer: Vec<u8>,
    pub sync: Sync,
}

/// Where a segment stands in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    segment: u64,
    first_index: u64,
    /// End of the valid part of the segment before.
    previous_end: u64,
}

/// The end of what is known to be durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Marker {
    segment: u64,
    end: u64,
    /// Index of the next record.
    index: u64,
}

/// One record: its sequence number in the LSM trees and its content.
#[derive(Debug, PartialEq, Eq)]
pub struct Record<'a> {
    pub seqno: u64,
    pub payload: &'a [u8],
}

fn number(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(8)?)?;
    bytes.try_into().ok().map(u64::from_le_bytes)
}

impl Header {
    fn encode(self, store_id: u64) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        for n in [store_id, self.segment, self.first_index, self.previous_end] {
            bytes.extend_from_slice(&n.to_le_bytes());
        }
        bytes.extend_from_slice(&0_u64.to_le_bytes());
        let checksum = xxh3_64(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8], store_id: u64) -> Option<Self> {
        let bytes = bytes.get(..HEADER)?;
        let valid = bytes.starts_with(MAGIC)
            && number(bytes, HEADER - 8)? == xxh3_64(&bytes[..HEADER - 8])
            && number(bytes, 8)? == store_id;
        valid.then_some(Self {
            segment: number(bytes, 16)?,
            first_index: number(bytes, 24)?,
            previous_end: number(bytes, 32)?,
        })
    }
}

impl Marker {
    fn encode(self, store_id: u64) -> [u8; MARKER] {
        let mut bytes = [0; MARKER];
        for (i, n) in [store_id, self.segment, self.end, self.index]
            .into_iter()
            .enumerate()
        {
            bytes[i * 8..i * 8 + 8].copy_from_slice(&n.to_le_bytes());
        }
        let checksum = xxh3_64(&bytes[..MARKER - 8]);
        bytes[MARKER - 8..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8], store_id: u64) -> Option<Self> {
        let valid = bytes.len() == MARKER
            && number(bytes, MARKER - 8)? == xxh3_64(&bytes[..MARKER - 8])
            && number(bytes, 0)? == store_id;
        valid.then_some(Self {
            segment: number(bytes, 8)?,
            end: number(bytes, 16)?,
            index: number(bytes, 24)?,
        })
    }
}

/// Checksums of different segments and stores differ, so that no record is ever valid out of its place.
fn checksum(store_id: u64, segment: u64, head: &[u8], payload: &[u8]) -> u64 {
    let seed = xxh3_64_with_seed(head, store_id ^ segment.rotate_left(32));
    xxh3_64_with_seed(payload, seed)
}

/// A record whose payload is written by `payload`, in place.
fn encode_record(
    buffer: &mut Vec<u8>,
    place: (u64, u64),
    index: u64,
    seqno: u64,
    payload: impl FnOnce(&mut Vec<u8>),
) {
    buffer.clear();
    buffer.resize(RECORD_HEADER, 0);
    payload(buffer);
    let (head, payload) = buffer.split_at_mut(RECORD_HEADER);
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    head[..4].copy_from_slice(&RECORD_MAGIC);
    head[4..8].copy_from_slice(&length.to_le_bytes());
    head[8..16].copy_from_slice(&index.to_le_bytes());
    head[16..24].copy_from_slice(&seqno.to_le_bytes());
    let checksum = checksum(place.0, place.1, &head[..24], payload);
    head[24..].copy_from_slice(&checksum.to_le_bytes());
}

/// The record at the start of the bytes: its index, itself, and how long it is.
pub fn decode_record(
    bytes: &[u8],
    store_id: u64,
    segment: u64,
) -> Option<(u64, Record<'_>, usize)> {
    let head = bytes.get(..RECORD_HEADER)?;
    if head[..4] != RECORD_MAGIC {
        return None;
    }
    let length = u32::from_le_bytes(head[4..8].try_into().ok()?) as usize;
    let end = RECORD_HEADER.checked_add(length)?;
    let payload = bytes.get(RECORD_HEADER..end)?;
    if number(head, 24)? != checksum(store_id, segment, &head[..24], payload) {
        return None;
    }
    let seqno = number(head, 16)?;
    Some((number(head, 8)?, Record { seqno, payload }, end))
}

fn name(segment: u64) -> String {
    format!("{segment:016}.wal")
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

impl Log {
    /// Makes an empty log in the directory of a new store.
    pub fn create(store: &Path, store_id: u64) -> io::Result<()> {
        let directory = store.join(DIRECTORY);
        std::fs::create_dir_all(&directory)?;
        let header = Header {
            segment: 1,
            first_index: 1,
            previous_end: 0,
        };
        let file = File::create(directory.join(name(1)))?;
        file.write_all_at(&header.encode(store_id), 0)?;
        file.sync_all()?;
        sync_directory(&directory)?;
        let marker = Marker {
            segment: 1,
            end: HEADER as u64,
            index: 1,
        };
        let file = File::create(store.join(COMMITTED))?;
        file.write_all_at(&marker.encode(store_id), 0)?;
        file.sync_all()
    }

    /// Reads the whole log, giving each record to `replay`, and opens it for more.
    pub fn recover(
        store: &Path,
        store_id: u64,
        mut replay: impl FnMut(Record<'_>) -> Result<(), Damage>,
    ) -> Result<Self, Damage> {
        let directory = store.join(DIRECTORY);
        let committed_path = store.join(COMMITTED);
        let bytes = std::fs::read(&committed_path).map_err(|e| Damage::file(&committed_path, e))?;
        let marker = Marker::decode(&bytes, store_id)
            .ok_or_else(|| Damage::file(&committed_path, "it is not valid"))?;
        let segments = segments(&directory)?;
        let (first, last) = match (segments.first(), segments.last()) {
            (Some(first), Some(last)) => (*first, *last),
            _ => return Err(Damage::file(&directory, "it has no segment")),
        };
        let mut state = Reading {
            store_id,
            marker,
            index: None,
            end: 0,
            file_length: 0,
            clean: true,
        };
        let mut current = first;
        let mut older = 0;
        for segment in first..=last {
            let path = directory.join(name(segment));
            let bytes = std::fs::read(&path).map_err(|e| Damage::file(&path, e))?;
            let next = directory.join(name(segment + 1));
            let next = if segment < last {
                let bytes = std::fs::read(&next).map_err(|e| Damage::file(&next, e))?;
                Header::decode(&bytes, store_id)
            } else {
                None
            };
            // A segment that was being made during a crash: the log ends before it, and it will be made again.
            let ends = segment == last
                || (next.is_none() && segment + 1 == last && marker.segment <= segment);
            if !ends && next.is_none() {
                let path = directory.join(name(segment + 1));
                return Err(Damage::file(&path, "its header is not valid"));
            }
            older += state.end;
            state.segment(
                &path,
                segment,
                &bytes,
                if ends { None } else { next },
                &mut replay,
            )?;
            current = segment;
            if ends {
                break;
            }
        }
        let path = directory.join(name(current));
        let file = open(&path).map_err(|e| Damage::file(&path, e))?;
        let committed = open(&committed_path).map_err(|e| Damage::file(&committed_path, e))?;
        Ok(Self {
            directory,
            store_id,
            first,
            segment: current,
            file,
            end: state.end,
            prepared: state.file_length,
            index: state.index.unwrap_or(1),
            committed,
            spoiled: !state.clean,
            older,
            buffer: Vec::new(),
            sync: File::sync_data,
        })
    }

    /// Writes a record, durably if `sync`. After an error it is as if it had not been written, except that a crash
    /// right then may leave it there.
    pub fn append(
        &mut self,
        seqno: u64,
        sync: bool,
        payload: impl FnOnce(&mut Vec<u8>),
    ) -> io::Result<()> {
        if self.spoiled {
            self.begin_segment()?;
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let place = (self.store_id, self.segment);
        encode_record(&mut buffer, place, self.index, seqno, payload);
        let written = self.write(&buffer, sync);
        let length = buffer.len() as u64;
        // Large transactions are rare: their space need not be kept.
        if buffer.capacity() <= KEPT {
            self.buffer = buffer;
        }
        if let Err(error) = written {
            // Out of space before anything was written leaves nothing behind.
            self.spoiled |= error.kind() != ErrorKind::StorageFull;
            return Err(error);
        }
        self.end += length;
        self.index += 1;
        if sync {
            let marker = Marker {
                segment: self.segment,
                end: self.end,
                index: self.index,
            };
            // Without it damage may later pass for a crash; what was written is durable all the same.
            if let Err(error) = self
                .committed
                .write_all_at(&marker.encode(self.store_id), 0)
            {
                tracing::warn!(%error, "cannot note what is committed");
            }
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8], sync: bool) -> io::Result<()> {
        let end = self.end + bytes.len() as u64;
        let grows = end > self.prepared;
        // A large record's own blocks are what counts.
        let ahead = if grows && bytes.len() <= AHEAD {
            AHEAD
        } else {
            0
        };
        if grows {
            let step = end + ahead as u64 - self.prepared;
            // Space is made sure of before anything is written: running out of it later would be found by a failing
            // sync, or by nobody.
            match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), self.prepared, step) {
                Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let spoil = |error: io::Error| match error.kind() {
            // Whatever it was, part of the record may be there.
            ErrorKind::StorageFull => io::Error::other(error),
            _ => error,
        };
        self.file.write_all_at(bytes, self.end).map_err(spoil)?;
        if ahead > 0 {
            let zeros = vec![0; ahead];
            self.file.write_all_at(&zeros, end).map_err(spoil)?;
        }
        if sync {
            (self.sync)(&self.file).map_err(spoil)?;
        }
        if grows {
            self.prepared = end + ahead as u64;
        }
        Ok(())
    }

    /// Ends the segment and starts the next; all records up to here are in the ended one or older ones.
    pub fn begin_segment(&mut self) -> io::Result<u64> {
        let header = Header {
            segment: self.segment + 1,
            first_index: self.index,
            previous_end: self.end,
        };
        let path = self.directory.join(name(header.segment));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)?;
        let made = file
            .write_all_at(&header.encode(self.store_id), 0)
            .and_then(|()| file.sync_all())
            .and_then(|()| sync_directory(&self.directory));
        if let Err(error) = made {
            // Half a segment must not stand in the way of the next attempt.
            let _ = std::fs::remove_file(&path);
            return Err(error);
        }
        let ended = self.segment;
        // Give back what was reserved and not used; if that fails it is only space.
        if !self.spoiled {
            let _ = self.file.set_len(self.end);
        }
        self.older += self.end;
        self.file = file;
        self.segment = header.segment;
        self.end = HEADER as u64;
        self.prepared = self.end;
        self.spoiled = false;
        Ok(ended)
    }

    /// Deletes the segments up to and including one.
    pub fn forget(&mut self, through: u64) {
        while self.first <= through && self.first < self.segment {
            let path = self.directory.join(name(self.first));
            let length = std::fs::metadata(&path).map_or(0, |m| m.len());
            if let Err(error) = std::fs::remove_file(&path)
                && error.kind() != ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), %error, "cannot delete");
                return;
            }
            self.older = self.older.saturating_sub(length);
            self.first += 1;
        }
    }

    /// Bytes of all segments.
    pub fn size(&self) -> u64 {
        self.older + self.end
    }
}

fn segments(directory: &Path) -> Result<Vec<u64>, Damage> {
    let fail = |e: io::Error| Damage::file(directory, e);
    let mut segments = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let file_name = entry.file_name();
        let number = file_name.to_str().and_then(|n| n.strip_suffix(".wal"));
        match number.and_then(|n| n.parse().ok()) {
            Some(segment) => segments.push(segment),
            None => {
                return Err(Damage::file(
                    &entry.path(),
                    "it is not a file of this store",
                ));
            }
        }
    }
    segments.sort_unstable();
    Ok(segments)
}

/// What reading the segments in order has found.
struct Reading {
    store_id: u64,
    marker: Marker,
    index: Option<u64>,
    end: u64,
    file_length: u64,
    /// Nothing follows the last record.
    clean: bool,
}

impl Reading {
    fn segment(
        &mut self,
        path: &Path,
        segment: u64,
        bytes: &[u8],
        next: Option<Header>,
        replay: &mut impl FnMut(Record<'_>) -> Result<(), Damage>,
    ) -> Result<(), Damage> {
        let header = Header::decode(bytes, self.store_id)
            .filter(|header| header.segment == segment)
            .ok_or_else(|| Damage::file(path, "its header is not valid"))?;
        if self.index.is_some_and(|index| index != header.first_index) {
            return Err(Damage::file(path, "records before it are missing"));
        }
        // What follows a failed write is not valid, even if it can be read.
        let limit = match next {
            Some(next) => usize::try_from(next.previous_end).unwrap_or(usize::MAX),
            None => bytes.len(),
        };
        let valid = bytes
            .get(..limit)
            .ok_or_else(|| Damage::file(path, "its end is missing"))?;
        let (mut at, mut index) = (HEADER, header.first_index);
        while let Some((found, record, length)) =
            decode_record(&valid[at..], self.store_id, segment)
            && found == index
        {
            replay(record)?;
            at += length;
            index += 1;
        }
        let rest = &valid[at..];
        match next {
            Some(next) if !rest.is_empty() || next.first_index != index => {
                return Err(Damage::file(
                    path,
                    format!("the record at byte {at} is not valid"),
                ));
            }
            Some(_) => {}
            None => {
                let promised = (self.marker.segment, self.marker.end, self.marker.index);
                if promised > (segment, at as u64, index) {
                    let what = format!(
                        "committed records are missing: it ends at byte {at} (record {index}), and segment {} \
                         was written up to byte {} (record {})",
                        self.marker.segment, self.marker.end, self.marker.index
                    );
                    return Err(Damage::file(path, what));
                }
                // Records are written one at a time, so none can follow an incomplete one.
                if follows(rest, self.store_id, segment, index) {
                    return Err(Damage::file(
                        path,
                        format!("the record at byte {at} is not valid"),
                    ));
                }
            }
        }
        self.index = Some(index);
        self.end = at as u64;
        self.file_length = bytes.len() as u64;
        self.clean = rest.iter().all(|byte| *byte == 0);
        Ok(())
    }
}

/// Whether a valid record later than `index` is anywhere in the bytes.
fn follows(bytes: &[u8], store_id: u64, segment: u64, index: u64) -> bool {
    let mut at = 0;
    while let Some(found) = bytes[at..].windows(4).position(|w| w == RECORD_MAGIC) {
        at += found;
        if decode_record(&bytes[at..], store_id, segment).is_some_and(|(i, ..)| i > index) {
            return true;
        }
        at += 1;
    }
    false
}

/// A record with these contents, as the first of a log.
#[cfg(test)]
pub fn log_sample(payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_record(&mut bytes, (1, 1), 1, 1, |buffer| {
        buffer.extend_from_slice(payload);
    });
    bytes
}

#[cfg(test)]
pub fn decode_log_record(bytes: &[u8]) -> Option<&[u8]> {
    let _ = Header::decode(bytes, 1);
    let _ = Marker::decode(bytes, 1);
    decode_record(bytes, 1, 1).map(|(_, record, _)| record.payload)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STORE: u64 = 42;

    fn read(store: &Path) -> Result<(Log, Vec<Vec<u8>>), Damage> {
        let mut seen = Vec::new();
        let log = Log::recover(store, STORE, |record| {
            assert_eq!(record.seqno, record.payload.len() as u64);
            seen.push(record.payload.to_vec());
            Ok(())
        })?;
        Ok((log, seen))
    }

    fn append(log: &mut Log, payload: &[u8]) -> io::Result<()> {
        log.append(payload.len() as u64, true, |buffer| {
            buffer.extend_from_slice(payload);
        })
    }

    fn segment(store: &Path, n: u64) -> PathBuf {
        store.join(DIRECTORY).join(name(n))
    }

    fn filled(payloads: &[&[u8]]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        Log::create(directory.path(), STORE).unwrap();
        let (mut log, _) = read(directory.path()).unwrap();
        for payload in payloads {
            append(&mut log, payload).unwrap();
        }
        directory
    }

    #[test]
    fn records_come_back_over_segments() {
        let directory = filled(&[b"a", b"bb"]);
        let (mut log, seen) = read(directory.path()).unwrap();
        assert_eq!(seen, [&b"a"[..], b"bb"]);
        let ended = log.begin_segment().unwrap();
        append(&mut log, b"ccc").unwrap();
        assert_eq!(read(directory.path()).unwrap().1.len(), 3);
        log.forget(ended);
        assert_eq!(read(directory.path()).unwrap().1, [b"ccc"]);
    }

    #[test]
    fn small_records_go_into_space_that_was_written_before() {
        let store = filled(&[]);
        let (mut log, _) = read(store.path()).unwrap();
        let path = segment(store.path(), 1);
        let length = || std::fs::metadata(&path).unwrap().len();
        append(&mut log, b"first").unwrap();
        let prepared = length();
        assert_eq!(prepared, log.end + AHEAD as u64);
        // Space that is only reserved would be told as a hole.
        let last = rustix::fs::SeekFrom::Data(prepared - 1);
        assert_eq!(rustix::fs::seek(&log.file, last), Ok(prepared - 1));
        append(&mut log, b"second").unwrap();
        assert_eq!(length(), prepared);
        // What is larger than what is written ahead needs no zeros after it.
        append(&mut log, &vec![b'l'; AHEAD + 1]).unwrap();
        assert_eq!(length(), log.end);
        append(&mut log, b"last").unwrap();
        assert_eq!(length(), log.end + AHEAD as u64);
        drop(log);
        let (log, records) = read(store.path()).unwrap();
        assert_eq!(records.len(), 4);
        assert_eq!(records[3], b"last");
        assert_eq!(log.prepared, length());
    }

    #[test]
    fn a_torn_record_that_nobody_knows_of_is_dropped() {
        let directory = filled(&[b"a"]);
        let path = segment(directory.path(), 1);
        let (mut log, _) = read(directory.path()).unwrap();
        let end = log.end;
        let mut torn = Vec::new();
        encode_record(&mut torn, (STORE, 1), 2, 3, |buffer| {
            buffer.extend_from_slice(b"bbb");
        });
        open(&path)
            .unwrap()
            .write_all_at(&torn[..torn.len() - 1], end)
            .unwrap();
        let (again, seen) = read(directory.path()).unwrap();
        assert_eq!((seen.len(), again.spoiled), (1, true));
        log = again;
        append(&mut log, b"c").unwrap();
        assert_eq!(read(directory.path()).unwrap().1, [b"a", b"c"]);
    }

    #[test]
    fn a_failed_sync_leaves_nothing_behind() {
        let directory = filled(&[b"a"]);
        let (mut log, _) = read(directory.path()).unwrap();
        log.sync = |_| Err(io::Error::other("no"));
        assert!(append(&mut log, b"lost").is_err());
        assert!(append(&mut log, b"lost as well").is_err());
        log.sync = File::sync_data;
        append(&mut log, b"bb").unwrap();
        assert_eq!(read(directory.path()).unwrap().1, [&b"a"[..], b"bb"]);
    }

    #[test]
    fn a_segment_that_was_being_made_is_made_again() {
        let directory = filled(&[b"a"]);
        std::fs::write(segment(directory.path(), 2), b"FLUY").unwrap();
        let (mut log, seen) = read(directory.path()).unwrap();
        assert_eq!((seen.len(), log.segment), (1, 1));
        append(&mut log, b"b").unwrap();
        log.begin_segment().unwrap();
        append(&mut log, b"c").unwrap();
        assert_eq!(read(directory.path()).unwrap().1, [b"a", b"b", b"c"]);
    }

    #[test]
    fn missing_files_are_noticed() {
        let directory = filled(&[b"a"]);
        let (mut log, _) = read(directory.path()).unwrap();
        for payload in [b"b", b"c"] {
            log.begin_segment().unwrap();
            append(&mut log, payload).unwrap();
        }
        for gone in [2, 3] {
            let path = segment(directory.path(), gone);
            let content = std::fs::read(&path).unwrap();
            std::fs::remove_file(&path).unwrap();
            assert!(read(directory.path()).is_err(), "{gone}");
            std::fs::write(&path, content).unwrap();
        }
        std::fs::remove_file(directory.path().join(COMMITTED)).unwrap();
        let damage = read(directory.path()).err().unwrap();
        assert!(damage.path.ends_with(COMMITTED));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn truncation_and_flipped_bits_are_noticed(payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 1..6), at in any::<prop::sample::Index>(), bit in 0..8, cut in any::<bool>(), split in any::<bool>()) {
            let directory = filled(&[b"first"]);
            let (mut log, _) = read(directory.path()).unwrap();
            if split {
                log.begin_segment().unwrap();
            }
            for payload in &payloads {
                append(&mut log, payload).unwrap();
            }
            let path = segment(directory.path(), log.segment);
            let mut bytes = std::fs::read(&path).unwrap();
            let at = at.index(usize::try_from(log.end).unwrap());
            if cut {
                bytes.truncate(at);
            } else {
                bytes[at] ^= 1_u8 << bit;
            }
            std::fs::write(&path, bytes).unwrap();
            let damage = read(directory.path()).err().unwrap();
            prop_assert!(damage.path.starts_with(directory.path()));
        }

        #[test]
        fn decoding_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let framed = [&RECORD_MAGIC[..], &bytes].concat();
            for bytes in [&bytes, &framed] {
                prop_assert!(decode_record(bytes, STORE, 1).is_none());
                prop_assert!(Header::decode(bytes, STORE).is_none());
                prop_assert!(Marker::decode(bytes, STORE).is_none());
            }
        }
    }
}
