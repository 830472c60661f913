//! Pods may keep others away from their node, not from more than that.

use async_trait::async_trait;
use fluyt_api::Error;
use serde_json::Value;

use super::{Attributes, Plugin};
use crate::cache::Caches;

pub(super) struct LimitPodHardAntiAffinityTopology;

const HOSTNAME: &str = "kubernetes.io/hostname";

#[async_trait]
impl Plugin for LimitPodHardAntiAffinityTopology {
    async fn validate(
        &self,
        _caches: &Caches,
        attributes: &Attributes<'_>,
        pod: &Value,
    ) -> Result<(), Error> {
        if !attributes.writes("pods") {
            return Ok(());
        }
        let affinity = &pod["spec"]["affinity"]["podAntiAffinity"];
        let terms = affinity["requiredDuringSchedulingIgnoredDuringExecution"].as_array();
        let keys = terms.into_iter().flatten();
        let mut keys = keys.map(|term| term["topologyKey"].as_str().unwrap_or_default());
        match keys.find(|key| *key != HOSTNAME) {
            None => Ok(()),
            Some(key) => Err(attributes.forbidden(format!(
                "affinity.PodAntiAffinity.RequiredDuringScheduling has TopologyKey {key} but only key {HOSTNAME} is allowed"
            ))),
        }
    }
}
