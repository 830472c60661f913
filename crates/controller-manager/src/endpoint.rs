//! endpoints-controller: the (deprecated but still read) Endpoints object of every Service with a selector.

use std::{collections::BTreeMap, sync::Arc};

use fluyt_client::{
    Action, Informer, ObjectKey, WorkQueue, controller, helpers::pods, is_namespace_terminating,
    is_not_found,
};
use k8s_openapi::{
    api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams},
};

use crate::{
    Context,
    common::{
        enqueue,
        service_pods::{self, HEADLESS},
    },
};

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Addresses per Endpoints object; the rest is cut off.
const CAPACITY: usize = 1000;

struct Controller {
    client: Client,
    services: Informer<Service>,
    pods: Informer<Pod>,
    endpoints: Informer<Endpoints>,
}

/// Run the controller until shutdown.
pub async fn run(context: Context) {
    let controller = Controller {
        client: context.client.clone(),
        services: context.informers.get::<Service>(),
        pods: context.informers.get::<Pod>(),
        endpoints: context.informers.get::<Endpoints>(),
    };
    controller.services.synced().await;
    controller.pods.synced().await;
    controller.endpoints.synced().await;
    let queue = WorkQueue::new();
    service_pods::enqueue_services(&controller.services, &controller.pods, &queue);
    enqueue(&controller.endpoints, &queue);
    let workers = context.config.concurrent_endpoint_syncs;
    let reconcile = |key| controller.reconcile(key);
    controller::run(
        "endpoints-controller",
        queue,
        workers,
        reconcile,
        context.shutdown.clone(),
    )
    .await;
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> anyhow::Result<Action> {
        let api = Api::<Endpoints>::namespaced(self.client.clone(), &key.namespace);
        let current = self.endpoints.get_key(&key);
        let Some(service) = self.services.get_key(&key) else {
            // Only what we made: leader election of old clients uses Endpoints without a Service.
            let ours = current.is_some_and(|current| {
                current
                    .metadata
                    .labels
                    .as_ref()
                    .is_some_and(|labels| labels.contains_key(MANAGED_BY))
            });
            if ours {
                match api.delete(&key.name, &DeleteParams::default()).await {
                    Err(error) if is_not_found(&error) => {}
                    result => drop(result?),
                }
            }
            return Ok(Action::Await);
        };
        if service_pods::selector(&service).is_none() {
            return Ok(Action::Await);
        }
        let mut desired = endpoints_of(&service, &service_pods::selected(&service, &self.pods));
        let written = match current {
            None => api.create(&PostParams::default(), &desired).await,
            Some(current) => {
                let meta = ObjectMeta {
                    labels: desired.metadata.labels.take(),
                    annotations: merge_annotations(&current.metadata, &desired.metadata),
                    ..current.metadata.clone()
                };
                let updated = Endpoints {
                    metadata: meta,
                    subsets: desired.subsets,
                };
                if same_subsets(&current.subsets, &updated.subsets)
                    && current.metadata.labels == updated.metadata.labels
                    && current.metadata.annotations == updated.metadata.annotations
                {
                    return Ok(Action::Await);
                }
                api.replace(&key.name, &PostParams::default(), &updated)
                    .await
            }
        };
        match written {
            Err(error) if is_namespace_terminating(&error) => {}
            result => drop(result?),
        }
        Ok(Action::Await)
    }
}

fn merge_annotations(
    current: &ObjectMeta,
    desired: &ObjectMeta,
) -> Option<BTreeMap<String, String>> {
    let mut annotations = current.annotations.clone().unwrap_or_default();
    annotations.remove(OVER_CAPACITY);
    annotations.extend(desired.annotations.clone().unwrap_or_default());
    (!annotations.is_empty() || current.annotations.is_some()).then_some(annotations)
}

fn same_subsets(a: &Option<Vec<EndpointSubset>>, b: &Option<Vec<EndpointSubset>>) -> bool {
    a.as_deref().unwrap_or_default() == b.as_deref().unwrap_or_default()
}

/// The Endpoints of a Service that selects `pods`.
fn endpoints_of(service: &Service, pods: &[Arc<Pod>]) -> Endpoints {
    let subsets = subsets(service, pods);
    let (subsets, truncated) = truncate(subsets);
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(MANAGED_BY.to_owned(), "endpoint-controller".to_owned());
    if service_pods::is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    } else {
        labels.remove(HEADLESS);
    }
    Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: truncated
                .then(|| [(OVER_CAPACITY.to_owned(), "truncated".to_owned())].into()),
            ..ObjectMeta::default()
        },
        subsets: (!subsets.is_empty()).then_some(subsets),
    }
}

/// The ports of a pod for this Service; `None` if it has none of them.
fn ports_of(pod: &Pod, service: &Service) -> Option<Vec<EndpointPort>> {
    let ports = service
        .spec
        .as_ref()
        .and_then(|spec| spec.ports.as_deref())
        .unwrap_or_default();
    if ports.is_empty() {
        // Only headless Services have no ports.
        return service_pods::is_headless(service).then(Vec::new);
    }
    let mut found: Vec<EndpointPort> = ports
        .iter()
        .filter_map(|port| {
            Some(EndpointPort {
                name: port.name.clone().filter(|name| !name.is_empty()),
                port: service_pods::target_port(pod, port)?,
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect();
    found.sort_by(|a, b| (&a.name, a.port, &a.protocol).cmp(&(&b.name, b.port, &b.protocol)));
    (!found.is_empty()).then_some(found)
}

fn subsets(service: &Service, pods: &[Arc<Pod>]) -> Vec<EndpointSubset> {
    let mut subsets: Vec<EndpointSubset> = Vec::new();
    for pod in pods.iter().filter(|pod| pods::is_active(pod)) {
        let address = pod.status.as_ref().and_then(|status| status.pod_ip.clone());
        let Some(ip) = address.filter(|ip| !ip.is_empty()) else {
            continue;
        };
        let Some(ports) = ports_of(pod, service) else {
            continue;
        };
        let address = EndpointAddress {
            ip,
            hostname: service_pods::host_name(pod, service),
            node_name: pods::node_name(pod).map(str::to_owned),
            target_ref: Some(service_pods::reference(pod)),
        };
        let ports = (!ports.is_empty()).then_some(ports);
        let index = subsets
            .iter()
            .position(|subset| subset.ports == ports)
            .unwrap_or_else(|| {
                subsets.push(EndpointSubset {
                    ports,
                    ..EndpointSubset::default()
                });
                subsets.len() - 1
            });
        let ready = pods::is_ready(pod) || service_pods::publishes_not_ready(service);
        let subset = &mut subsets[index];
        let list = if ready {
            &mut subset.addresses
        } else {
            &mut subset.not_ready_addresses
        };
        list.get_or_insert_default().push(address);
    }
    for subset in &mut subsets {
        for list in [&mut subset.addresses, &mut subset.not_ready_addresses]
            .into_iter()
            .flatten()
        {
            list.sort_by(|a, b| a.ip.cmp(&b.ip));
        }
    }
    subsets.sort_by_key(|subset| format!("{:?}", subset.ports));
    subsets
}

/// Keep the first thousand addresses, ready ones first.
fn truncate(mut subsets: Vec<EndpointSubset>) -> (Vec<EndpointSubset>, bool) {
    let mut left = CAPACITY;
    let mut truncated = false;
    let mut cut = |list: &mut Option<Vec<EndpointAddress>>| {
        if let Some(addresses) = list {
            truncated |= addresses.len() > left;
            addresses.truncate(left);
            left -= addresses.len();
        }
        *list = list.take().filter(|addresses| !addresses.is_empty());
    };
    subsets
        .iter_mut()
        .for_each(|subset| cut(&mut subset.addresses));
    subsets
        .iter_mut()
        .for_each(|subset| cut(&mut subset.not_ready_addresses));
    subsets.retain(|subset| subset.addresses.is_some() || subset.not_ready_addresses.is_some());
    (subsets, truncated)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        common::{name, test_support::context},
        endpointslice::tests::{pod, service},
    };

    #[tokio::test]
    async fn addresses_follow_readiness() {
        let (fake, context) = context();
        fake.insert(service("web"));
        fake.insert(pod("ready", "10.244.0.2", true));
        fake.insert(pod("starting", "10.244.0.3", false));
        tokio::spawn(run(context));
        let ips = |list: &Option<Vec<EndpointAddress>>| {
            let ips = list.iter().flatten().map(|address| address.ip.clone());
            ips.collect::<Vec<_>>().join(",")
        };
        let state = |fake: &fluyt_client::fake::FakeApi| {
            let subset = fake.get::<Endpoints>("ns", "web")?.subsets?.remove(0);
            let port = subset.ports.as_ref().map(|ports| ports[0].port);
            Some((
                ips(&subset.addresses),
                ips(&subset.not_ready_addresses),
                port,
            ))
        };
        let expect = |ready: &str, not: &str| Some((ready.to_owned(), not.to_owned(), Some(8080)));
        fake.until("one ready", |fake| {
            state(fake) == expect("10.244.0.2", "10.244.0.3")
        })
        .await;
        fake.update(&pod("starting", "10.244.0.3", true));
        fake.until("both ready", |fake| {
            state(fake) == expect("10.244.0.2,10.244.0.3", "")
        })
        .await;
        fake.remove(&service("web"));
        fake.until("gone", |fake| fake.get::<Endpoints>("ns", "web").is_none())
            .await;
    }

    #[test]
    fn more_than_the_capacity_is_cut_off() {
        let pods: Vec<Arc<Pod>> = (0..1200)
            .map(|i| {
                Arc::new(pod(
                    &format!("p{i}"),
                    &format!("10.1.{}.{}", i / 250, i % 250),
                    i % 2 == 0,
                ))
            })
            .collect();
        let endpoints = endpoints_of(&service("web"), &pods);
        let subset = &endpoints.subsets.unwrap()[0];
        assert_eq!(
            subset.addresses.as_ref().unwrap().len(),
            600,
            "ready ones stay"
        );
        assert_eq!(subset.not_ready_addresses.as_ref().unwrap().len(), 400);
        assert_eq!(name(&endpoints.metadata), "web");
        assert_eq!(
            endpoints.metadata.annotations.unwrap()[OVER_CAPACITY],
            "truncated"
        );
    }
}
