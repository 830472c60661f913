//! `JobValidation`: a job whose pods are scheduled all at once keeps their number.

use async_trait::async_trait;
use fluyt_api::{Error, meta, resources};
use serde_json::Value;

use super::{Attributes, Operation, Plugin};
use crate::cache::Caches;

pub(super) struct JobValidation;

#[async_trait]
impl Plugin for JobValidation {
    async fn validate(
        &self,
        caches: &Caches,
        attributes: &Attributes<'_>,
        object: &Value,
    ) -> Result<(), Error> {
        let concerns = attributes.is_of("batch", "jobs", Operation::Update);
        let Some(old) = attributes.old.filter(|_| concerns) else {
            return Ok(());
        };
        if object["spec"].get("parallelism") == old["spec"].get("parallelism") {
            return Ok(());
        }
        match groups(caches, attributes.at.namespace, old).find(is_gang) {
            Some(group) => Err(attributes.forbidden(format!(
                "cannot change parallelism for a Job referencing gang-scheduled PodGroup {:?}",
                meta::name(&group)
            ))),
            None => Ok(()),
        }
    }
}

/// The group that a job's template names, or else all that belong to the job.
fn groups<'a>(
    caches: &Caches,
    namespace: &'a str,
    job: &'a Value,
) -> Box<dyn Iterator<Item = Value> + Send + 'a> {
    let Some(groups) = resources::find("scheduling.k8s.io", "v1alpha2", "podgroups") else {
        return Box::new(std::iter::empty());
    };
    let cache = caches.of(groups);
    let named = &job["spec"]["template"]["spec"]["schedulingGroup"]["podGroupName"];
    if let Some(name) = named.as_str() {
        let group = cache.get(&format!("{namespace}/{name}"));
        return Box::new(group.map(|entry| entry.object()).into_iter());
    }
    let all = cache.snapshot();
    let own: Vec<Value> = (all.entries.values())
        .filter(|entry| entry.namespace() == namespace)
        .map(|entry| entry.object())
        .filter(|group| is_controlled_by(group, job))
        .collect();
    Box::new(own.into_iter())
}

fn is_gang(group: &Value) -> bool {
    group["spec"]["schedulingPolicy"]["gang"].is_object()
}

fn is_controlled_by(object: &Value, owner: &Value) -> bool {
    let owners = object["metadata"]["ownerReferences"].as_array();
    let controller = owners
        .into_iter()
        .flatten()
        .find(|reference| reference["controller"] == true);
    controller.is_some_and(|reference| reference["uid"] == meta::uid(owner))
}
