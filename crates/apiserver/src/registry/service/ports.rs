//! The node ports in use: a bitmap under one key of the store, where upstream's servers keep theirs. Whoever takes or gives
//! back a port changes it in the transaction that writes the service, and only as it was when the ports were looked up: so
//! servers that share a store agree, whatever their caches show.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use fluyt_api::Error;
use fluyt_api::resources::Resource;
use fluyt_etcd::{KeyValue, Keys, Op, Put, Range, Txn};
use tokio::sync::{Mutex, MutexGuard};

use super::allocation::Changes;
use super::range_allocation::{Bitmap, RangeAllocation};
use crate::cache::{Caches, REGISTRY};
use crate::registry::store_error;
use crate::registry::write::Side;

/// Of the part that automatic choice leaves alone: its least and its largest size, and its share of the range.
const RESERVED: (usize, usize, usize) = (16, 128, 32);

/// What encryption knows the bitmap as. It is served to nobody.
static RESOURCE: Resource =
    Resource::unserved("servicenodeportallocations", "RangeAllocation", "ranges");

/// A range of ports, and which of them are in use.
pub(crate) struct NodePorts {
    low: u16,
    high: u16,
    /// As last seen in the store. Who changes it has it in hand.
    known: Mutex<Option<Known>>,
    /// How many are in use, as last seen in the store.
    used: AtomicUsize,
}

/// The bitmap at a revision, or why nothing can be allocated.
struct Known {
    revision: i64,
    taken: Result<Bitmap, String>,
}

/// The ports as they are in the store, to choose from.
pub(super) struct View<'a> {
    ports: &'a NodePorts,
    taken: Result<Bitmap, String>,
}

/// The ports in the hand of a writer, who commits a change of them.
pub(in crate::registry) struct Held<'a> {
    ports: &'a NodePorts,
    caches: &'a Caches,
    known: MutexGuard<'a, Option<Known>>,
}

/// What a change of ports comes to.
pub(in crate::registry) enum Plan {
    /// There is no bitmap that it could be made in.
    Nothing,
    Write(Changed),
    /// Somebody else has taken one of the ports.
    Taken,
}

/// A bitmap that is about to be committed.
pub(in crate::registry) struct Changed {
    taken: Bitmap,
    pub(in crate::registry) side: Side,
}

/// What is stored of ports.
pub(crate) struct StoredPorts {
    /// 0 when nothing is.
    pub(crate) revision: i64,
    /// Nothing is to be allocated from any other range than the server's.
    pub(crate) is_of_this_range: bool,
    pub(crate) taken: BTreeSet<i64>,
}

fn key() -> Bytes {
    format!("{REGISTRY}ranges/servicenodeports").into()
}

async fn find(caches: &Caches) -> Result<Option<KeyValue>, Error> {
    let found = caches
        .main()
        .store()
        .range(Range::new(Keys::One(key())))
        .await;
    Ok(found.map_err(store_error)?.kvs.into_iter().next())
}

async fn decode(caches: &Caches, kv: &KeyValue) -> Result<RangeAllocation, Error> {
    let encryption = &caches.codec.encryption;
    let opened = encryption.open(&RESOURCE, &kv.key, &kv.value).await;
    let opened = opened.map_err(Error::internal)?;
    RangeAllocation::decode(&opened.plain).map_err(Error::internal)
}

// === impl NodePorts ===

impl NodePorts {
    pub(super) fn new((low, high): (u16, u16)) -> Self {
        Self {
            low,
            high,
            known: Mutex::default(),
            used: AtomicUsize::new(0),
        }
    }

    /// How many ports are in use, and how many are free.
    pub(super) fn stock(&self) -> (usize, usize) {
        let used = self.used.load(Ordering::Relaxed);
        (used, self.size().saturating_sub(used))
    }

    /// What is in use, if it is of this range.
    fn seen(&self, allocation: RangeAllocation) -> Option<Bitmap> {
        let taken = (allocation.range == self.range()).then_some(allocation.taken)?;
        self.used.store(taken.len(), Ordering::Relaxed);
        Some(taken)
    }

    /// As upstream writes it.
    pub(crate) fn range(&self) -> String {
        format!("{}-{}", self.low, self.high)
    }

    pub(crate) fn contains(&self, port: i64) -> bool {
        self.offset(port).is_some()
    }

    fn size(&self) -> usize {
        usize::from(self.high.saturating_sub(self.low)) + 1
    }

    fn offset(&self, port: i64) -> Option<usize> {
        let port = u16::try_from(port).ok()?;
        let is_in = (self.low..=self.high).contains(&port);
        is_in.then(|| usize::from(port - self.low))
    }

    fn port(&self, offset: usize) -> i64 {
        i64::from(self.low) + i64::try_from(offset).unwrap_or_default()
    }

    /// All ports in the order in which automatic choice tries them: the lower part comes last (KEP-3668).
    fn candidates(&self) -> impl Iterator<Item = usize> {
        let size = self.size();
        let (least, most, share) = RESERVED;
        let reserved = if size <= least {
            0
        } else {
            (size / share).clamp(least, most)
        };
        let parts = [(reserved, size - reserved), (0, reserved)];
        parts.into_iter().flat_map(|(start, length)| {
            let skipped = if length > 0 {
                rand::random_range(0..length)
            } else {
                0
            };
            (0..length).map(move |i| start + (skipped + i) % length)
        })
    }

    async fn known(&self, caches: &Caches, found: Option<&KeyValue>) -> Result<Known, Error> {
        let Some(kv) = found else {
            let why = format!(
                "cannot allocate resources of type {} at this time",
                RESOURCE.plural
            );
            return Ok(Known {
                revision: 0,
                taken: Err(why),
            });
        };
        let taken = self.seen(decode(caches, kv).await?);
        let mismatch = || "the provided range does not match the current range".to_owned();
        Ok(Known {
            revision: kv.mod_revision,
            taken: taken.ok_or_else(mismatch),
        })
    }

    /// The write of a bitmap, if what is stored is still at a revision.
    async fn side(&self, caches: &Caches, revision: i64, taken: Bitmap) -> Result<Side, Error> {
        let allocation = RangeAllocation {
            range: self.range(),
            taken,
        };
        let (key, codec) = (key(), &caches.codec);
        let plain = allocation.encode(codec.media_type());
        let sealed = codec.encryption.seal(&RESOURCE, &key, plain).await;
        let value = sealed.map_err(Error::internal)?;
        Ok(Side::new(
            key.clone(),
            revision,
            Op::Put(Put::new(key, value)),
        ))
    }

    /// The ports as the store has them now, to choose from.
    pub(super) async fn view(&self, caches: &Caches) -> Result<View<'_>, Error> {
        let found = find(caches).await?;
        let taken = self.known(caches, found.as_ref()).await?.taken;
        Ok(View { ports: self, taken })
    }

    /// Takes the ports in hand, to change them.
    pub(in crate::registry) async fn hold<'a>(
        &'a self,
        caches: &'a Caches,
    ) -> Result<Held<'a>, Error> {
        let mut known = self.known.lock().await;
        if known.as_ref().is_none_or(|known| known.taken.is_err()) {
            let found = find(caches).await?;
            *known = Some(self.known(caches, found.as_ref()).await?);
        }
        Ok(Held {
            ports: self,
            caches,
            known,
        })
    }

    /// What is stored, for its repair.
    pub(crate) async fn stored(&self, caches: &Caches) -> Result<StoredPorts, Error> {
        let Some(kv) = find(caches).await? else {
            return Ok(StoredPorts {
                revision: 0,
                is_of_this_range: false,
                taken: BTreeSet::new(),
            });
        };
        let allocation = decode(caches, &kv).await?;
        let ends = allocation.range.split_once('-');
        let ends = ends.and_then(|(low, high)| Some((low.parse().ok()?, high.parse().ok()?)));
        let of = Self::new(ends.unwrap_or((self.low, self.high)));
        let taken = (0..of.size()).filter(|offset| allocation.taken.has(*offset));
        let taken = taken.map(|offset| of.port(offset)).collect();
        Ok(StoredPorts {
            revision: kv.mod_revision,
            is_of_this_range: self.seen(allocation).is_some(),
            taken,
        })
    }

    /// Stores which ports are taken, if what is stored is still at a revision; whether it was.
    pub(crate) async fn replace(
        &self,
        caches: &Caches,
        revision: i64,
        taken: &BTreeSet<i64>,
    ) -> Result<bool, Error> {
        let mut bitmap = Bitmap::default();
        for offset in taken.iter().filter_map(|port| self.offset(*port)) {
            bitmap.set(offset, true);
        }
        let used = bitmap.len();
        let side = self.side(caches, revision, bitmap).await?;
        let txn = Txn {
            compares: vec![side.compare()],
            success: vec![side.op()],
            failure: Vec::new(),
        };
        let result = caches.main().store().txn(txn).await.map_err(store_error)?;
        if result.succeeded {
            self.used.store(used, Ordering::Relaxed);
        }
        Ok(result.succeeded)
    }
}

// === impl View ===

impl View<'_> {
    pub(super) fn range(&self) -> String {
        self.ports.range()
    }

    pub(super) fn contains(&self, port: i64) -> bool {
        self.ports.contains(port)
    }

    /// Whether a port is in use.
    ///
    /// # Errors
    /// When nothing can be allocated.
    pub(super) fn has(&self, port: i64) -> Result<bool, String> {
        let taken = self.taken.as_ref().map_err(Clone::clone)?;
        Ok(self.ports.offset(port).is_some_and(|o| taken.has(o)))
    }

    /// The free ports in the order of automatic choice.
    ///
    /// # Errors
    /// When nothing can be allocated.
    pub(super) fn free(&self) -> Result<impl Iterator<Item = i64>, String> {
        let taken = self.taken.as_ref().map_err(Clone::clone)?;
        let free = self.ports.candidates().filter(|o| !taken.has(*o));
        Ok(free.map(|offset| self.ports.port(offset)))
    }
}

// === impl Held ===

impl Held<'_> {
    /// The bitmap as a change leaves it. What is known may be old, so the store is asked before a port counts as taken: it
    /// may have been given back meanwhile.
    ///
    /// # Errors
    /// When the store fails, or the bitmap cannot be encrypted.
    pub(in crate::registry) async fn plan(&mut self, change: &Changes<i64>) -> Result<Plan, Error> {
        loop {
            let plan = self.plan_as_known(change).await?;
            if !matches!(plan, Plan::Taken) {
                return Ok(plan);
            }
            let found = find(self.caches).await?;
            if !self.learn(found.as_ref()).await? {
                return Ok(plan);
            }
        }
    }

    async fn plan_as_known(&self, change: &Changes<i64>) -> Result<Plan, Error> {
        let Some(Known {
            revision,
            taken: Ok(before),
        }) = self.known.as_ref()
        else {
            return Ok(if change.taken.is_empty() {
                Plan::Nothing
            } else {
                Plan::Taken
            });
        };
        let offsets = |ports: &[i64]| -> Vec<usize> {
            let ports = ports.iter();
            ports.filter_map(|port| self.ports.offset(*port)).collect()
        };
        let mut taken = before.clone();
        for offset in offsets(&change.released) {
            taken.set(offset, false);
        }
        for offset in offsets(&change.taken) {
            if before.has(offset) {
                return Ok(Plan::Taken);
            }
            taken.set(offset, true);
        }
        let side = self.ports.side(self.caches, *revision, taken.clone());
        let side = side.await?;
        Ok(Plan::Write(Changed { taken, side }))
    }

    /// A change has been committed.
    pub(in crate::registry) fn committed(&mut self, changed: Changed, revision: i64) {
        let used = changed.taken.len();
        self.ports.used.store(used, Ordering::Relaxed);
        *self.known = Some(Known {
            revision,
            taken: Ok(changed.taken),
        });
    }

    /// Takes over what the store has; whether that is news.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(in crate::registry) async fn learn(
        &mut self,
        found: Option<&KeyValue>,
    ) -> Result<bool, Error> {
        let known = self.ports.known(self.caches, found).await?;
        let is_news = self
            .known
            .as_ref()
            .is_none_or(|before| before.revision != known.revision);
        *self.known = Some(known);
        Ok(is_news)
    }
}
