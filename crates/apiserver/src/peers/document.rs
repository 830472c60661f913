//! The document of aggregated discovery, with and without what peers serve.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use bytes::Bytes;
use serde_json::Value;

use super::counters::increment;
use super::merge::{self, group_name};
use super::{Known, Peers, Serves};
use crate::http::Discovery;

/// A document that was merged.
pub(super) struct Document {
    /// A digest of what is served here.
    local: u64,
    /// What was known of peers.
    generation: u64,
    /// `None` when they serve nothing else.
    merged: Option<Bytes>,
}

impl Peers {
    /// The document of the groups, as it is asked for: `local` is what is served here.
    pub fn groups(&self, local: &Value, wanted: Discovery) -> Bytes {
        let encoded = encode(local);
        match wanted {
            Discovery::WithoutPeers => {
                increment(&self.counters.without_peers);
                encoded
            }
            Discovery::Merged if self.tls.is_none() => encoded,
            Discovery::Merged => self.merged(local, encoded),
        }
    }

    /// The document of the core group, which is not merged.
    pub fn core(&self, local: &Value, wanted: Discovery) -> Bytes {
        if wanted == Discovery::WithoutPeers {
            increment(&self.counters.without_peers);
        }
        encode(local)
    }

    fn merged(&self, local: &Value, encoded: Bytes) -> Bytes {
        let mut hasher = DefaultHasher::new();
        encoded.hash(&mut hasher);
        let digest = hasher.finish();
        let known = self.known.read();
        let mut last = self.document.lock();
        if let Some(last) = last.as_ref()
            && last.local == digest
            && last.generation == known.generation
        {
            increment(&self.counters.hits);
            return last.merged.clone().unwrap_or(encoded);
        }
        increment(&self.counters.misses);
        let merged = known.merge(&self.id, local).map(|merged| encode(&merged));
        *last = Some(Document {
            local: digest,
            generation: known.generation,
            merged: merged.clone(),
        });
        merged.unwrap_or(encoded)
    }
}

impl Known {
    /// What is served by all together; `None` when nobody else is known.
    fn merge(&self, id: &str, local: &Value) -> Option<Value> {
        if self.servers.is_empty() {
            return None;
        }
        let own = local["items"].as_array().cloned().unwrap_or_default();
        let peers = self.servers.iter();
        let mut lists: Vec<(&str, Vec<Value>)> = peers
            .map(|(id, serves)| (&**id, self.shown(serves)))
            .chain([(id, own)])
            .collect();
        lists.sort_by_key(|(id, _)| *id);
        let mut document = local.clone();
        document["items"] = merge::groups(lists.iter().map(|(_, groups)| &**groups)).into();
        Some(document)
    }

    /// A peer's groups, without the versions that no peer is asked for.
    fn shown(&self, serves: &Serves) -> Vec<Value> {
        let mut groups = serves.groups.clone();
        groups.retain_mut(|group| {
            let name = group_name(group).to_owned();
            let Some(versions) = group["versions"].as_array_mut() else {
                return false;
            };
            versions.retain(|version| {
                let version = version["version"].as_str().unwrap_or_default();
                !self.excluded.contains(&name, version)
            });
            !versions.is_empty()
        });
        groups
    }
}

fn encode(document: &Value) -> Bytes {
    serde_json::to_vec(document).unwrap_or_default().into()
}
