//! Resolves a pod's priority class to its number.

use async_trait::async_trait;
use fluyt_api::{Error, meta, resources};
use serde_json::Value;

use super::{Attributes, Operation, Plugin, cluster_scoped};
use crate::cache::Caches;

pub(super) struct Priority;

#[async_trait]
impl Plugin for Priority {
    async fn admit(
        &self,
        caches: &Caches,
        attributes: &Attributes<'_>,
        pod: &mut Value,
    ) -> Result<(), Error> {
        if let Some(old) = attributes
            .old
            .filter(|_| attributes.is("pods", Operation::Update))
        {
            // What creation has found stays, whether the update has it or not.
            for field in ["priority", "preemptionPolicy"] {
                let kept = &old["spec"][field];
                if pod["spec"][field].is_null() && !kept.is_null() {
                    meta::child(pod, "spec").insert(field.to_owned(), kept.clone());
                }
            }
        }
        if !attributes.is("pods", Operation::Create) {
            return Ok(());
        }
        let name = pod["spec"]["priorityClassName"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let class = if name.is_empty() {
            cluster_scoped(caches, "scheduling.k8s.io", "priorityclasses")
                .into_iter()
                .find(|c| c["globalDefault"] == true)
        } else {
            let resource = resources::find("scheduling.k8s.io", "v1", "priorityclasses");
            let found = resource
                .and_then(|r| caches.of(r).get(&name))
                .map(|entry| entry.object());
            if found.is_none() {
                return Err(
                    attributes.forbidden(format!("no PriorityClass with name {name} was found"))
                );
            }
            found
        };
        let (priority, preemption) = match &class {
            Some(class) => {
                let policy = class["preemptionPolicy"]
                    .as_str()
                    .unwrap_or("PreemptLowerPriority");
                (class["value"].as_i64().unwrap_or(0), policy.to_owned())
            }
            None => (0, "PreemptLowerPriority".to_owned()),
        };
        if let Some(given) = pod["spec"]["priority"].as_i64()
            && given != priority
        {
            let why = format!(
                "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {priority} from the given PriorityClass name"
            );
            return Err(attributes.forbidden(why));
        }
        if let Some(given) = pod["spec"]["preemptionPolicy"].as_str()
            && given != preemption
        {
            let why = format!(
                "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed {preemption} from the given PriorityClass name"
            );
            return Err(attributes.forbidden(why));
        }
        let spec = meta::child(pod, "spec");
        if let Some(class) = &class {
            spec.insert("priorityClassName".into(), meta::name(class).into());
        }
        spec.insert("priority".into(), priority.into());
        spec.entry("preemptionPolicy")
            .or_insert_with(|| preemption.into());
        Ok(())
    }
}
