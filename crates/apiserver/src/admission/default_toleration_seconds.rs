//! Pods stay five minutes on a node that stopped answering, unless they say otherwise.

use async_trait::async_trait;
use fluyt_api::Error;
use serde_json::{Value, json};

use super::{Attributes, Operation, Plugin};
use crate::cache::Caches;

const SECONDS: i64 = 300;
const TAINTS: [&str; 2] = [
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
];

pub(super) struct DefaultTolerationSeconds;

#[async_trait]
impl Plugin for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    async fn admit(
        &self,
        _caches: &Caches,
        attributes: &Attributes<'_>,
        pod: &mut Value,
    ) -> Result<(), Error> {
        // On updates, too: they may add tolerations, and must not lose these.
        let applies = [Operation::Create, Operation::Update]
            .iter()
            .any(|operation| attributes.is("pods", *operation));
        if !applies {
            return Ok(());
        }
        let mut tolerations = pod["spec"]["tolerations"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        for taint in TAINTS {
            let tolerated = tolerations.iter().any(|t| {
                let key = t["key"].as_str().unwrap_or_default();
                let effect = t["effect"].as_str().unwrap_or_default();
                (key == taint || key.is_empty()) && (effect == "NoExecute" || effect.is_empty())
            });
            if !tolerated {
                tolerations.push(json!({
                    "key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS,
                }));
            }
        }
        pod["spec"]["tolerations"] = tolerations.into();
        Ok(())
    }
}
