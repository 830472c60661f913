//! Files of bbolt, the database under etcd, as far as etcd's snapshots need them: [`read`] walks a file's buckets,
//! [`write`] lays one out from sorted entries. The format is that of `go.etcd.io/bbolt` (version 2): pages of one size,
//! two meta pages in front, and a B+tree per bucket. All numbers are little-endian.

mod read;
mod write;

pub use read::Database;
#[cfg(test)]
use read::Error;
pub use write::{Bucket, write};

const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;

/// Page kinds.
const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
const META: u16 = 0x04;
const FREELIST: u16 = 0x10;

/// A leaf's entry that is a bucket.
const BUCKET: u32 = 0x01;

/// Bytes of a page's header and of one element of its index.
const PAGE_HEADER: usize = 16;
const ELEMENT: usize = 16;

/// Bytes of a meta page's content, and of those before its checksum.
const META_BYTES: usize = 64;
const META_SUMMED: usize = 56;

/// FNV-1a, 64 bits, which protects the meta pages.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use proptest::prelude::*;

    type Entries = BTreeMap<Vec<u8>, Vec<u8>>;

    fn file(buckets: &BTreeMap<Vec<u8>, Entries>) -> Vec<u8> {
        let buckets: Vec<Bucket<'_, Error>> = buckets
            .iter()
            .map(|(name, entries)| Bucket {
                name: name.clone(),
                entries: Box::new(move |each| {
                    entries
                        .iter()
                        .try_for_each(|(k, v)| each(k.clone(), v.clone()))
                }),
            })
            .collect();
        let mut bytes = Vec::new();
        write(&buckets, &mut |page, _| {
            bytes.extend_from_slice(page);
            Ok(())
        })
        .unwrap();
        bytes
    }

    fn read_back(bytes: &[u8]) -> Result<BTreeMap<Vec<u8>, Entries>, Error> {
        let mut stored = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut stored, bytes).unwrap();
        let database = Database::open(stored)?;
        let mut buckets = BTreeMap::new();
        for name in database.buckets()? {
            let mut entries = Entries::new();
            database.each(&name, &mut |key, value| {
                entries.insert(key.to_vec(), value.to_vec());
                Ok::<_, Error>(())
            })?;
            buckets.insert(name, entries);
        }
        Ok(buckets)
    }

    fn entries() -> impl Strategy<Value = Entries> {
        let key = prop::collection::vec(any::<u8>(), 1..40);
        let value = prop_oneof![
            9 => prop::collection::vec(any::<u8>(), 0..300),
            1 => prop::collection::vec(any::<u8>(), 3000..20_000),
        ];
        prop::collection::btree_map(key, value, 0..200)
    }

    fn contents() -> impl Strategy<Value = BTreeMap<Vec<u8>, Entries>> {
        let name = prop::collection::vec(b'a'..=b'z', 1..10);
        prop::collection::btree_map(name, entries(), 1..4)
    }

    #[test]
    fn the_checksum_is_fnv_1a() {
        assert_eq!(fnv(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn many_entries_make_several_levels() {
        let entries: Entries = (0..60_000_u32)
            .map(|n| (n.to_be_bytes().repeat(4), n.to_le_bytes().to_vec()))
            .collect();
        let buckets = BTreeMap::from([(b"key".to_vec(), entries)]);
        assert_eq!(read_back(&file(&buckets)).unwrap(), buckets);
    }

    #[test]
    fn a_root_of_several_pages_is_followed_by_another_bucket() {
        let entries = Entries::from([(b"large".to_vec(), vec![7; 10_000])]);
        let buckets = BTreeMap::from([(b"a".to_vec(), entries.clone()), (b"b".to_vec(), entries)]);
        assert_eq!(read_back(&file(&buckets)).unwrap(), buckets);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn what_is_written_is_read(buckets in contents()) {
            let bytes = file(&buckets);
            prop_assert_eq!(bytes.len() % 4096, 0);
            prop_assert_eq!(read_back(&bytes).unwrap(), buckets);
        }

        #[test]
        fn damaged_files_never_panic(buckets in contents(), damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8), cut in prop::option::of(any::<prop::sample::Index>())) {
            let mut bytes = file(&buckets);
            for (at, byte) in damage {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            let _ = read_back(&bytes);
        }
    }
}
