//! endpointslice-controller: the EndpointSlices of every Service with a selector.

pub(crate) mod plan;

use std::sync::Arc;

use fluyt_client::{Action, Informer, ObjectKey, WorkQueue, controller, helpers::pods};
use k8s_openapi::{
    api::{
        core::v1::{Node, Pod, Service},
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::Client;

use self::plan::{Group, Plan};
use crate::{
    Context,
    common::{
        controller_ref, enqueue_mapped,
        freshness::Freshness,
        name, namespace,
        service_pods::{self, HEADLESS},
    },
};

pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub(crate) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const CONTROLLER: &str = "endpointslice-controller.k8s.io";
const ZONE: &str = "topology.kubernetes.io/zone";

struct Controller {
    client: Client,
    services: Informer<Service>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
    freshness: Freshness,
    max_endpoints: usize,
}

/// Run the controller until shutdown.
pub async fn run(context: Context) {
    let controller = Controller {
        client: context.client.clone(),
        services: context.informers.get::<Service>(),
        pods: context.informers.get::<Pod>(),
        nodes: context.informers.get::<Node>(),
        slices: context.informers.get::<EndpointSlice>(),
        freshness: Freshness::default(),
        max_endpoints: context.config.max_endpoints_per_slice,
    };
    controller.services.synced().await;
    controller.pods.synced().await;
    controller.nodes.synced().await;
    controller.slices.synced().await;
    let queue = WorkQueue::new();
    service_pods::enqueue_services(&controller.services, &controller.pods, &queue);
    enqueue_mapped(&controller.slices, &queue, |slice| {
        let service = is_ours(slice)
            .then(|| slice.metadata.labels.as_ref()?.get(SERVICE_NAME))
            .flatten();
        let key = service.map(|service| ObjectKey::new(namespace(&slice.metadata), service));
        key.into_iter().collect()
    });
    let workers = context.config.concurrent_service_endpoint_syncs;
    let reconcile = |key| controller.reconcile(key);
    controller::run(
        "endpointslice-controller",
        queue,
        workers,
        reconcile,
        context.shutdown.clone(),
    )
    .await;
}

fn is_ours(slice: &EndpointSlice) -> bool {
    let managed_by = slice
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(MANAGED_BY));
    managed_by.is_some_and(|managed_by| managed_by == CONTROLLER)
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> anyhow::Result<Action> {
        if !self.freshness.is_current(&key, &self.slices) {
            return Ok(Action::Await);
        }
        let Some(service) = self.services.get_key(&key) else {
            // The garbage collector deletes the slices.
            return Ok(Action::Await);
        };
        if service_pods::selector(&service).is_none()
            || service.metadata.deletion_timestamp.is_some()
        {
            return Ok(Action::Await);
        }
        let existing: Vec<Arc<EndpointSlice>> = self
            .slices
            .list_namespace(&key.namespace)
            .into_iter()
            .filter(|slice| {
                let labels = slice.metadata.labels.as_ref();
                let service = labels.and_then(|labels| labels.get(SERVICE_NAME));
                is_ours(slice)
                    && service == Some(&key.name)
                    && slice.metadata.deletion_timestamp.is_none()
            })
            .collect();
        let pods = service_pods::selected(&service, &self.pods);
        let mut plan = Plan::default();
        for family in families(&service) {
            let of_family = existing.iter().filter(|slice| slice.address_type == family);
            let groups = self.groups(&service, &pods, &family);
            let template = blueprint(&service, &family);
            plan.add(
                &template,
                groups,
                of_family.map(|slice| &**slice),
                self.max_endpoints,
            );
        }
        // Of a family that the Service no longer has.
        let families = families(&service);
        let stale = existing
            .iter()
            .filter(|slice| !families.contains(&slice.address_type));
        plan.delete
            .extend(stale.map(|slice| name(&slice.metadata).to_owned()));
        plan.execute(&self.client, &key, &self.freshness).await?;
        Ok(Action::Await)
    }

    /// The endpoints of the Service by the ports they have.
    fn groups(&self, service: &Service, pods: &[Arc<Pod>], family: &str) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        for pod in pods {
            let Some(endpoint) = self.endpoint(service, pod, family) else {
                continue;
            };
            let ports = ports_of(pod, service);
            match groups.iter_mut().find(|group| group.ports == ports) {
                Some(group) => group.endpoints.push(endpoint),
                None => groups.push(Group {
                    ports,
                    endpoints: vec![endpoint],
                }),
            }
        }
        groups
    }

    fn endpoint(&self, service: &Service, pod: &Pod, family: &str) -> Option<Endpoint> {
        if pods::is_terminated(pod) {
            return None;
        }
        let address = address_of(pod, family)?;
        let terminating = pods::is_terminating(pod);
        let serving = pods::is_ready(pod);
        let ready = service_pods::publishes_not_ready(service) || (serving && !terminating);
        let node_name = pods::node_name(pod);
        let node = node_name.and_then(|node| self.nodes.get(None, node));
        Some(Endpoint {
            addresses: vec![address],
            conditions: Some(EndpointConditions {
                ready: Some(ready),
                serving: Some(serving),
                terminating: Some(terminating),
            }),
            hostname: service_pods::host_name(pod, service),
            node_name: node_name.map(str::to_owned),
            zone: node.and_then(|node| node.metadata.labels.as_ref()?.get(ZONE).cloned()),
            target_ref: Some(service_pods::reference(pod)),
            ..Endpoint::default()
        })
    }
}

/// `addressType`s of the Service's slices.
fn families(service: &Service) -> Vec<String> {
    let listed = service
        .spec
        .as_ref()
        .and_then(|spec| spec.ip_families.clone())
        .unwrap_or_default();
    if listed.is_empty() {
        vec!["IPv4".to_owned()]
    } else {
        listed
    }
}

fn address_of(pod: &Pod, family: &str) -> Option<String> {
    let status = pod.status.as_ref()?;
    let listed = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let mut all = listed
        .chain(status.pod_ip.as_deref())
        .filter(|ip| !ip.is_empty());
    all.find(|ip| ip.contains(':') == (family == "IPv6"))
        .map(str::to_owned)
}

fn ports_of(pod: &Pod, service: &Service) -> Vec<EndpointPort> {
    let ports = service
        .spec
        .as_ref()
        .and_then(|spec| spec.ports.as_deref())
        .unwrap_or_default();
    let found = ports.iter().filter_map(|port| {
        Some(EndpointPort {
            // Unlike in Endpoints, an unnamed port has an empty name.
            name: Some(port.name.clone().unwrap_or_default()),
            port: Some(service_pods::target_port(pod, port)?),
            protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
            app_protocol: port.app_protocol.clone(),
        })
    });
    let mut found: Vec<_> = found.collect();
    found.sort_by(|a, b| (&a.name, a.port, &a.protocol).cmp(&(&b.name, b.port, &b.protocol)));
    found
}

/// An empty slice of the Service.
fn blueprint(service: &Service, family: &str) -> EndpointSlice {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.to_owned(), name(&service.metadata).to_owned());
    labels.insert(MANAGED_BY.to_owned(), CONTROLLER.to_owned());
    if service_pods::is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    } else {
        labels.remove(HEADLESS);
    }
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", name(&service.metadata))),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels),
            owner_references: Some(vec![controller_ref(service)]),
            ..ObjectMeta::default()
        },
        address_type: family.to_owned(),
        endpoints: None,
        ports: None,
    }
}

#[cfg(test)]
pub mod tests;
