//! The pods of a Job.

use std::collections::BTreeMap;

use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod},
};

use super::{CONTROLLER_UID, FINALIZER, INDEX};
use crate::common::{
    name,
    pod_control::{Owner, pod_from_template},
    uid,
};

const INDEX_VARIABLE: &str = "JOB_COMPLETION_INDEX";

/// A pod of the job, with its index if the job is indexed.
pub fn new(job: &Job, owner: &Owner, index: Option<i32>) -> Pod {
    let template = job
        .spec
        .as_ref()
        .map(|spec| spec.template.clone())
        .unwrap_or_default();
    let mut pod = pod_from_template(&template, owner);
    let finalizers = pod.metadata.finalizers.get_or_insert_default();
    if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
        finalizers.push(FINALIZER.to_owned());
    }
    // The API server has put these into the template, unless the user chose a selector of their own.
    if job.spec.as_ref().is_none_or(|spec| spec.selector.is_none()) {
        let labels: &mut BTreeMap<_, _> = pod.metadata.labels.get_or_insert_default();
        labels.insert(CONTROLLER_UID.to_owned(), uid(&job.metadata).to_owned());
        labels.insert(
            "batch.kubernetes.io/job-name".to_owned(),
            name(&job.metadata).to_owned(),
        );
    }
    if let Some(index) = index {
        add_index(&mut pod, name(&job.metadata), index);
    }
    pod
}

fn add_index(pod: &mut Pod, job_name: &str, index: i32) {
    for map in [&mut pod.metadata.annotations, &mut pod.metadata.labels] {
        map.get_or_insert_default()
            .insert(INDEX.to_owned(), index.to_string());
    }
    pod.metadata.generate_name = Some(format!("{job_name}-{index}-"));
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(format!("{job_name}-{index}"));
    for container in spec
        .init_containers
        .iter_mut()
        .flatten()
        .chain(&mut spec.containers)
    {
        let variables = container.env.get_or_insert_default();
        if variables
            .iter()
            .any(|variable| variable.name == INDEX_VARIABLE)
        {
            continue;
        }
        variables.push(EnvVar {
            name: INDEX_VARIABLE.to_owned(),
            value_from: Some(EnvVarSource {
                field_ref: Some(ObjectFieldSelector {
                    api_version: None,
                    field_path: format!("metadata.labels['{INDEX}']"),
                }),
                ..EnvVarSource::default()
            }),
            ..EnvVar::default()
        });
    }
}
