//! What is in the store, read in parts: a collection may be larger than one answer should be.

use fluyt_etcd::{DynStore, Error, Keys, Range, RangeResult};

/// The parts of an interval of keys, all as of one revision.
pub struct Parts {
    store: DynStore,
    /// What is left to read; nothing after the last part.
    keys: Option<Keys>,
    /// 0 until the first part says which is the newest.
    revision: i64,
    size: usize,
    counted: bool,
}

impl Parts {
    /// Parts of at most `size` keys, as of a revision, or of the newest if that is 0.
    #[must_use]
    pub fn new(store: DynStore, keys: Keys, revision: i64, size: usize) -> Self {
        Self {
            store,
            keys: Some(keys),
            revision,
            size,
            counted: false,
        }
    }

    /// Which revision the parts are of, once one has been read.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// The next part. The first one says how many keys there are.
    ///
    /// # Errors
    /// The store's; that the revision has been compacted, if that takes place meanwhile.
    pub async fn next(&mut self) -> Result<Option<RangeResult>, Error> {
        let Some(keys) = self.keys.take() else {
            return Ok(None);
        };
        let range = Range {
            revision: self.revision,
            limit: self.size,
            uncounted: self.counted,
            ..Range::new(keys.clone())
        };
        let part = self.store.range(range).await?;
        self.counted = true;
        if self.revision == 0 {
            self.revision = part.revision;
        }
        if let Some(last) = part.kvs.last().filter(|_| part.more) {
            self.keys = Some(keys.starting_at([&*last.key, &[0]].concat().into()));
        }
        Ok(Some(part))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use fluyt_etcd::embedded::Embedded;
    use fluyt_etcd::{Op, Put, Txn};

    use super::*;

    fn put(key: &str) -> Txn {
        Txn {
            success: vec![Op::Put(Put::new(key.to_owned(), "v"))],
            ..Txn::default()
        }
    }

    #[tokio::test]
    async fn parts_are_all_there_was_at_one_moment() {
        let directory = tempfile::tempdir().unwrap();
        let store: DynStore = Arc::new(Embedded::open(directory.path()).unwrap());
        for key in ["a", "k/1", "k/2", "k/3", "k/4", "k/5", "l"] {
            store.txn(put(key)).await.unwrap();
        }
        for size in 1..7 {
            let mut parts = Parts::new(store.clone(), Keys::prefix("k/"), 0, size);
            let (mut keys, mut count) = (Vec::new(), None);
            while let Some(part) = parts.next().await.unwrap() {
                assert!(part.kvs.len() <= size);
                count.get_or_insert(part.count);
                keys.extend(part.kvs.into_iter().map(|kv| kv.key));
                store.txn(put(&format!("k/4/{size}"))).await.unwrap();
                store.txn(put("k/0")).await.unwrap();
            }
            let mut expected = vec!["k/1", "k/2", "k/3", "k/4"];
            let others: Vec<_> = (1..size).map(|n| format!("k/4/{n}")).collect();
            if size > 1 {
                expected.insert(0, "k/0");
            }
            expected.extend(others.iter().map(String::as_str));
            expected.push("k/5");
            assert_eq!(keys, expected, "{size}");
            assert_eq!(count, i64::try_from(expected.len()).ok());
        }
    }
}
