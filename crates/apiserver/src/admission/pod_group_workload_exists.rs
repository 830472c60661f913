//! `PodGroupWorkloadExists`: a group of pods that names the template it was made of names one that there is.

use async_trait::async_trait;
use fluyt_api::{Error, meta, resources};
use serde_json::Value;

use super::{Attributes, Operation, Plugin};
use crate::cache::Caches;

pub(super) struct PodGroupWorkloadExists;

#[async_trait]
impl Plugin for PodGroupWorkloadExists {
    async fn validate(
        &self,
        caches: &Caches,
        attributes: &Attributes<'_>,
        object: &Value,
    ) -> Result<(), Error> {
        let at = attributes.at;
        let reference = &object["spec"]["podGroupTemplateRef"]["workload"];
        let concerns = attributes.is_of("scheduling.k8s.io", "podgroups", Operation::Create);
        if !concerns || !reference.is_object() {
            return Ok(());
        }
        let text = |field: &str| reference[field].as_str().unwrap_or_default();
        let (name, template) = (text("workloadName"), text("podGroupTemplateName"));
        let workloads = resources::find("scheduling.k8s.io", "v1alpha2", "workloads");
        let key = format!("{}/{name}", at.namespace);
        let found = workloads.and_then(|workloads| caches.of(workloads).get(&key));
        let Some(workload) = found.map(|entry| entry.object()) else {
            return Err(
                attributes.forbidden(format!("PodGroup rejected: Workload {name:?} not found"))
            );
        };
        if meta::is_terminating(&workload) {
            return Err(attributes.forbidden(format!(
                "PodGroup rejected: Workload {name:?} is being deleted"
            )));
        }
        let templates = workload["spec"]["podGroupTemplates"].as_array();
        if templates
            .into_iter()
            .flatten()
            .any(|t| t["name"] == template)
        {
            return Ok(());
        }
        Err(attributes.forbidden(format!(
            "PodGroup rejected: PodGroupTemplate {template:?} not found in Workload {name:?}"
        )))
    }
}
