//! A store whose keys live under another prefix in the store below: what kube-apiserver's `--etcd-prefix` asks for.

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::{
    Delete, DynStore, Error, KeyValue, Keys, Op, OpResult, Range, RangeResult, Store, Txn,
    TxnResult, Watch, WatchStream, WatchUpdate, prefix_end,
};

/// Updates on their way to a receiver; the store below keeps the rest.
const QUEUE: usize = 4;

/// Shows keys that start with `outer` where the store below has them start with `inner`. No other key can be used.
pub struct Rebased {
    store: DynStore,
    rename: Rename,
}

#[derive(Clone)]
struct Rename {
    outer: Bytes,
    inner: Bytes,
}

impl Rebased {
    #[must_use]
    pub fn new(store: DynStore, outer: impl Into<Bytes>, inner: impl Into<Bytes>) -> Self {
        let rename = Rename {
            outer: outer.into(),
            inner: inner.into(),
        };
        Self { store, rename }
    }
}

fn replaced(key: &Bytes, from: &Bytes, to: &Bytes) -> Option<Bytes> {
    let rest = key.strip_prefix(&from[..])?;
    Some([&to[..], rest].concat().into())
}

impl Rename {
    fn key(&self, key: &Bytes) -> Result<Bytes, Error> {
        replaced(key, &self.outer, &self.inner).ok_or_else(|| {
            let key = String::from_utf8_lossy(key);
            Error::Unavailable(format!("key {key} is outside of the store's prefix"))
        })
    }

    fn keys(&self, keys: &Keys) -> Result<Keys, Error> {
        Ok(match keys {
            Keys::One(key) => Keys::One(self.key(key)?),
            Keys::Range(start, end) if *end == prefix_end(&self.outer) => {
                Keys::Range(self.key(start)?, prefix_end(&self.inner))
            }
            Keys::Range(start, end) => Keys::Range(self.key(start)?, self.key(end)?),
        })
    }

    fn txn(&self, mut txn: Txn) -> Result<Txn, Error> {
        for compare in &mut txn.compares {
            compare.keys = self.keys(&compare.keys)?;
        }
        for op in txn.success.iter_mut().chain(&mut txn.failure) {
            match op {
                Op::Range(Range { keys, .. }) | Op::Delete(Delete { keys, .. }) => {
                    *keys = self.keys(keys)?;
                }
                Op::Put(put) => put.key = self.key(&put.key)?,
                Op::Txn(nested) => *nested = self.txn(std::mem::take(nested))?,
            }
        }
        Ok(txn)
    }

    fn back(&self, kv: &mut KeyValue) {
        if let Some(key) = replaced(&kv.key, &self.inner, &self.outer) {
            kv.key = key;
        }
    }

    fn result(&self, result: &mut TxnResult) {
        for op in &mut result.results {
            match op {
                OpResult::Range(range) => range.kvs.iter_mut().for_each(|kv| self.back(kv)),
                OpResult::Put { prev } => prev.iter_mut().for_each(|kv| self.back(kv)),
                OpResult::Delete { prev, .. } => prev.iter_mut().for_each(|kv| self.back(kv)),
                OpResult::Txn(nested) => self.result(nested),
            }
        }
    }

    fn update(&self, update: &mut WatchUpdate) {
        if let WatchUpdate::Events { events, .. } = update {
            for event in events {
                self.back(&mut event.kv);
                event.prev.iter_mut().for_each(|kv| self.back(kv));
            }
        }
    }
}

#[async_trait::async_trait]
impl Store for Rebased {
    async fn range(&self, mut range: Range) -> Result<RangeResult, Error> {
        range.keys = self.rename.keys(&range.keys)?;
        let mut result = self.store.range(range).await?;
        for kv in &mut result.kvs {
            self.rename.back(kv);
        }
        Ok(result)
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResult, Error> {
        let mut result = self.store.txn(self.rename.txn(txn)?).await?;
        self.rename.result(&mut result);
        Ok(result)
    }

    async fn watch(&self, mut watch: Watch) -> Result<WatchStream, Error> {
        watch.keys = self.rename.keys(&watch.keys)?;
        let mut below = self.store.watch(watch).await?;
        let (sender, updates) = mpsc::channel(QUEUE);
        let rename = self.rename.clone();
        tokio::spawn(async move {
            loop {
                let update = tokio::select! {
                    update = below.next() => update,
                    () = sender.closed() => return,
                };
                let Some(mut update) = update else { return };
                if let Ok(update) = &mut update {
                    rename.update(update);
                }
                if sender.send(update).await.is_err() {
                    return;
                }
            }
        });
        Ok(WatchStream { updates })
    }

    async fn compact(&self, revision: i64) -> Result<(), Error> {
        self.store.compact(revision).await
    }

    async fn lease_grant(&self, id: i64, ttl: i64) -> Result<(i64, i64), Error> {
        self.store.lease_grant(id, ttl).await
    }

    async fn lease_revoke(&self, id: i64) -> Result<(), Error> {
        self.store.lease_revoke(id).await
    }

    async fn lease_keep_alive(&self, id: i64) -> Result<i64, Error> {
        self.store.lease_keep_alive(id).await
    }

    async fn revision(&self) -> Result<i64, Error> {
        self.store.revision().await
    }

    async fn size(&self) -> Result<i64, Error> {
        self.store.size().await
    }
}
