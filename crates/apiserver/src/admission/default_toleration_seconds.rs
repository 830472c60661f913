//! Pods stay some minutes on a node that stopped answering, unless they say otherwise.

use async_trait::async_trait;
use fluyt_api::Error;
use serde_json::{Value, json};

use super::{Attributes, Plugin};
use crate::cache::Caches;

/// How many seconds pods stay on a node that is not ready, or cannot be reached, unless they say otherwise.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct Tolerations {
    /// Seconds that pods stay on a node that is not ready, unless they say otherwise.
    #[arg(long, default_value_t = 300)]
    default_not_ready_toleration_seconds: i64,
    /// Seconds that pods stay on a node that cannot be reached, unless they say otherwise.
    #[arg(long, default_value_t = 300)]
    default_unreachable_toleration_seconds: i64,
}

impl Default for Tolerations {
    fn default() -> Self {
        Self {
            default_not_ready_toleration_seconds: 300,
            default_unreachable_toleration_seconds: 300,
        }
    }
}

pub(super) struct DefaultTolerationSeconds(pub Tolerations);

#[async_trait]
impl Plugin for DefaultTolerationSeconds {
    async fn admit(
        &self,
        _caches: &Caches,
        attributes: &Attributes<'_>,
        pod: &mut Value,
    ) -> Result<(), Error> {
        // On updates, too: they may add tolerations, and must not lose these.
        if !attributes.writes("pods") {
            return Ok(());
        }
        let mut tolerations = pod["spec"]["tolerations"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let Tolerations {
            default_not_ready_toleration_seconds: not_ready,
            default_unreachable_toleration_seconds: unreachable,
        } = self.0;
        for (taint, seconds) in [
            ("node.kubernetes.io/not-ready", not_ready),
            ("node.kubernetes.io/unreachable", unreachable),
        ] {
            let tolerated = tolerations.iter().any(|t| {
                let key = t["key"].as_str().unwrap_or_default();
                let effect = t["effect"].as_str().unwrap_or_default();
                (key == taint || key.is_empty()) && (effect == "NoExecute" || effect.is_empty())
            });
            if !tolerated {
                tolerations.push(json!({
                    "key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds,
                }));
            }
        }
        pod["spec"]["tolerations"] = tolerations.into();
        Ok(())
    }
}
