//! Pods of a runtime class get its overhead and its scheduling.

use async_trait::async_trait;
use fluyt_api::{Error, meta};
use serde_json::{Value, json};

use super::{Attributes, Operation, Plugin, cluster_scoped};
use crate::cache::Caches;

pub(super) struct RuntimeClass;

#[async_trait]
impl Plugin for RuntimeClass {
    async fn admit(
        &self,
        caches: &Caches,
        attributes: &Attributes<'_>,
        pod: &mut Value,
    ) -> Result<(), Error> {
        if !attributes.is("pods", Operation::Create) {
            return Ok(());
        }
        let Some(name) = pod["spec"]["runtimeClassName"].as_str().map(str::to_owned) else {
            return Ok(());
        };
        let class = cluster_scoped(caches, "node.k8s.io", "runtimeclasses")
            .into_iter()
            .find(|c| meta::name(c) == name);
        let Some(class) = class else {
            return Err(
                attributes.forbidden(format!("pod rejected: RuntimeClass {name:?} not found"))
            );
        };
        let overhead = &class["overhead"]["podFixed"];
        let given = &pod["spec"]["overhead"];
        let set = given.as_object().is_some_and(|o| !o.is_empty());
        if set && given != overhead {
            return Err(attributes.forbidden(
                "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead",
            ));
        }
        let spec = meta::child(pod, "spec");
        if overhead.is_object() {
            spec.insert("overhead".into(), overhead.clone());
        }
        let wanted = class["scheduling"]["nodeSelector"].as_object();
        for (key, value) in wanted.into_iter().flatten() {
            let selector = spec.entry("nodeSelector").or_insert_with(|| json!({}));
            match selector.get(key) {
                Some(present) if present != value => {
                    return Err(attributes.forbidden(format!("conflict: runtimeClass.scheduling.nodeSelector[{key}] = {value}; pod.spec.nodeSelector[{key}] = {present}")));
                }
                _ => selector[key.as_str()] = value.clone(),
            }
        }
        for toleration in class["scheduling"]["tolerations"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let list = spec.entry("tolerations").or_insert_with(|| json!([]));
            if let Some(list) = list.as_array_mut()
                && !list.contains(toleration)
            {
                list.push(toleration.clone());
            }
        }
        Ok(())
    }

    async fn validate(
        &self,
        _: &Caches,
        attributes: &Attributes<'_>,
        pod: &Value,
    ) -> Result<(), Error> {
        let spec = &pod["spec"];
        let overhead = spec["overhead"].as_object();
        if attributes.is("pods", Operation::Create)
            && spec["runtimeClassName"].is_null()
            && overhead.is_some_and(|o| !o.is_empty())
        {
            return Err(attributes.forbidden("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead"));
        }
        Ok(())
    }
}
