//! ReplicaSet and ReplicationController as one shape.

use std::fmt::Debug;

use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus},
        core::v1::{
            PodTemplateSpec, ReplicationController, ReplicationControllerCondition,
            ReplicationControllerStatus,
        },
    },
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::{Api, Client, Resource, api::PostParams};
use serde::de::DeserializeOwned;

/// What the controller needs to know of an object, in ReplicaSet's terms.
pub struct View {
    pub generation: i64,
    pub replicas: i32,
    pub min_ready_seconds: i32,
    pub selector: LabelSelector,
    pub template: PodTemplateSpec,
    pub status: ReplicaSetStatus,
}

/// A kind that keeps a number of equal pods.
pub trait Replicated:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + DeserializeOwned
    + Clone
    + Debug
    + Send
    + Sync
    + 'static
{
    const GROUP: &'static str;
    const KIND: &'static str;
    /// The controller's name in events and logs.
    const COMPONENT: &'static str;

    fn view(&self) -> View;

    fn write_status(
        client: &Client,
        object: &Self,
        status: ReplicaSetStatus,
    ) -> impl Future<Output = kube::Result<()>> + Send;
}

impl Replicated for ReplicaSet {
    const GROUP: &'static str = "apps";
    const KIND: &'static str = "ReplicaSet";
    const COMPONENT: &'static str = "replicaset-controller";

    fn view(&self) -> View {
        let spec = self.spec.clone().unwrap_or_default();
        View {
            generation: self.metadata.generation.unwrap_or(0),
            replicas: spec.replicas.unwrap_or(1),
            min_ready_seconds: spec.min_ready_seconds.unwrap_or(0),
            selector: spec.selector,
            template: spec.template.unwrap_or_default(),
            status: self.status.clone().unwrap_or_default(),
        }
    }

    async fn write_status(
        client: &Client,
        object: &Self,
        status: ReplicaSetStatus,
    ) -> kube::Result<()> {
        let mut object = object.clone();
        object.status = Some(status);
        let (namespace, name) = names(&object);
        let api = Api::<Self>::namespaced(client.clone(), &namespace);
        api.replace_status(&name, &PostParams::default(), &object)
            .await
            .map(drop)
    }
}

impl Replicated for ReplicationController {
    const GROUP: &'static str = "";
    const KIND: &'static str = "ReplicationController";
    const COMPONENT: &'static str = "replication-controller";

    fn view(&self) -> View {
        let spec = self.spec.clone().unwrap_or_default();
        let status = self.status.clone().unwrap_or_default();
        let conditions = status.conditions.map(|conditions| {
            let convert = |condition: ReplicationControllerCondition| ReplicaSetCondition {
                last_transition_time: condition.last_transition_time,
                message: condition.message,
                reason: condition.reason,
                status: condition.status,
                type_: condition.type_,
            };
            conditions.into_iter().map(convert).collect()
        });
        View {
            generation: self.metadata.generation.unwrap_or(0),
            replicas: spec.replicas.unwrap_or(1),
            min_ready_seconds: spec.min_ready_seconds.unwrap_or(0),
            selector: LabelSelector {
                match_labels: spec.selector,
                match_expressions: None,
            },
            template: spec.template.unwrap_or_default(),
            status: ReplicaSetStatus {
                available_replicas: status.available_replicas,
                conditions,
                fully_labeled_replicas: status.fully_labeled_replicas,
                observed_generation: status.observed_generation,
                ready_replicas: status.ready_replicas,
                replicas: status.replicas,
                terminating_replicas: None,
            },
        }
    }

    async fn write_status(
        client: &Client,
        object: &Self,
        status: ReplicaSetStatus,
    ) -> kube::Result<()> {
        let conditions = status.conditions.map(|conditions| {
            let convert = |condition: ReplicaSetCondition| ReplicationControllerCondition {
                last_transition_time: condition.last_transition_time,
                message: condition.message,
                reason: condition.reason,
                status: condition.status,
                type_: condition.type_,
            };
            conditions.into_iter().map(convert).collect()
        });
        let status = ReplicationControllerStatus {
            available_replicas: status.available_replicas,
            conditions,
            fully_labeled_replicas: status.fully_labeled_replicas,
            observed_generation: status.observed_generation,
            ready_replicas: status.ready_replicas,
            replicas: status.replicas,
        };
        // What this kind's status can't say must not look like a change.
        if object.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let mut object = object.clone();
        object.status = Some(status);
        let (namespace, name) = names(&object);
        let api = Api::<Self>::namespaced(client.clone(), &namespace);
        api.replace_status(&name, &PostParams::default(), &object)
            .await
            .map(drop)
    }
}

fn names<K: Resource>(object: &K) -> (String, String) {
    let meta = object.meta();
    (
        meta.namespace.clone().unwrap_or_default(),
        meta.name.clone().unwrap_or_default(),
    )
}
