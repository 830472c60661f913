//! endpointslicemirroring-controller: EndpointSlices of Endpoints that people write for Services without a selector.

use std::{net::IpAddr, sync::Arc};

use fluyt_client::{Action, Informer, ObjectKey, WorkQueue, controller};
use k8s_openapi::{
    api::{
        core::v1::{EndpointAddress, EndpointSubset, Endpoints, Service},
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::Client;

use crate::{
    Context,
    common::{
        controller_ref, enqueue, enqueue_mapped, freshness::Freshness, name, namespace,
        service_pods,
    },
    endpointslice::{
        MANAGED_BY, SERVICE_NAME,
        plan::{Group, Plan},
    },
};

const CONTROLLER: &str = "endpointslicemirroring-controller.k8s.io";
/// Set to "true" by who wants no mirror.
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Endpoints that are a lock of leader election.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Annotations that say something of the Endpoints only.
const OWN_ANNOTATIONS: [&str; 2] = [
    "endpoints.kubernetes.io/last-change-trigger-time",
    "kubectl.kubernetes.io/last-applied-configuration",
];
/// Of a subset, more addresses are not mirrored.
const MAX_ADDRESSES: usize = 1000;

struct Controller {
    client: Client,
    endpoints: Informer<Endpoints>,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    freshness: Freshness,
    max_endpoints: usize,
}

/// Run the controller until shutdown.
pub async fn run(context: Context) {
    let controller = Controller {
        client: context.client.clone(),
        endpoints: context.informers.get::<Endpoints>(),
        services: context.informers.get::<Service>(),
        slices: context.informers.get::<EndpointSlice>(),
        freshness: Freshness::default(),
        max_endpoints: context.config.mirroring_max_endpoints_per_subset,
    };
    controller.endpoints.synced().await;
    controller.services.synced().await;
    controller.slices.synced().await;
    let queue = WorkQueue::new();
    enqueue(&controller.endpoints, &queue);
    enqueue(&controller.services, &queue);
    enqueue_mapped(&controller.slices, &queue, |slice| {
        let owner = is_mirror(slice)
            .then(|| label(slice, SERVICE_NAME))
            .flatten();
        let key = owner.map(|owner| ObjectKey::new(namespace(&slice.metadata), owner));
        key.into_iter().collect()
    });
    let workers = context.config.mirroring_concurrent_service_endpoint_syncs;
    let reconcile = |key| controller.reconcile(key);
    controller::run(
        "endpointslicemirroring-controller",
        queue,
        workers,
        reconcile,
        context.shutdown.clone(),
    )
    .await;
}

fn label<'a>(slice: &'a EndpointSlice, label: &str) -> Option<&'a str> {
    let labels = slice.metadata.labels.as_ref()?;
    labels.get(label).map(String::as_str)
}

fn is_mirror(slice: &EndpointSlice) -> bool {
    label(slice, MANAGED_BY) == Some(CONTROLLER)
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> anyhow::Result<Action> {
        if !self.freshness.is_current(&key, &self.slices) {
            return Ok(Action::Await);
        }
        let present: Vec<Arc<EndpointSlice>> = self
            .slices
            .list_namespace(&key.namespace)
            .into_iter()
            .filter(|slice| {
                is_mirror(slice)
                    && label(slice, SERVICE_NAME) == Some(&key.name)
                    && slice.metadata.deletion_timestamp.is_none()
            })
            .collect();
        let mut plan = Plan::default();
        match self
            .endpoints
            .get_key(&key)
            .filter(|e| self.is_mirrored(&key, e))
        {
            Some(endpoints) => {
                for family in ["IPv4", "IPv6"] {
                    let groups = groups(&endpoints, family);
                    let of_family = present.iter().filter(|slice| slice.address_type == family);
                    if groups.is_empty() && family == "IPv6" {
                        plan.delete
                            .extend(of_family.map(|s| name(&s.metadata).to_owned()));
                        continue;
                    }
                    plan.add(
                        &blueprint(&endpoints, family),
                        groups,
                        of_family.map(|slice| &**slice),
                        self.max_endpoints,
                    );
                }
            }
            None => plan
                .delete
                .extend(present.iter().map(|s| name(&s.metadata).to_owned())),
        }
        plan.execute(&self.client, &key, &self.freshness).await?;
        Ok(Action::Await)
    }

    /// Of a Service with a selector, the slices are the endpointslice-controller's.
    fn is_mirrored(&self, key: &ObjectKey, endpoints: &Endpoints) -> bool {
        let meta = &endpoints.metadata;
        let skipped = meta
            .labels
            .as_ref()
            .and_then(|l| l.get(SKIP))
            .is_some_and(|v| v == "true");
        let is_lock = meta
            .annotations
            .as_ref()
            .is_some_and(|a| a.contains_key(LEADER));
        let service = self.services.get_key(key);
        let is_free = service.is_some_and(|service| service_pods::selector(&service).is_none());
        is_free && !skipped && !is_lock && meta.deletion_timestamp.is_none()
    }
}

/// Endpoints of one address family by the ports they have.
fn groups(endpoints: &Endpoints, family: &str) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for subset in endpoints.subsets.iter().flatten() {
        let mirrored = addresses(subset, family);
        if mirrored.is_empty() {
            continue;
        }
        let ports = ports(subset);
        match groups.iter_mut().find(|group| group.ports == ports) {
            Some(group) => group.endpoints.extend(mirrored),
            None => groups.push(Group {
                ports,
                endpoints: mirrored,
            }),
        }
    }
    groups
}

fn ports(subset: &EndpointSubset) -> Vec<EndpointPort> {
    let mut ports: Vec<EndpointPort> = subset
        .ports
        .iter()
        .flatten()
        .map(|port| EndpointPort {
            name: Some(port.name.clone().unwrap_or_default()),
            port: Some(port.port),
            protocol: port.protocol.clone(),
            app_protocol: port.app_protocol.clone(),
        })
        .collect();
    ports.sort_by(|a, b| (&a.name, a.port, &a.protocol).cmp(&(&b.name, b.port, &b.protocol)));
    ports
}

fn addresses(subset: &EndpointSubset, family: &str) -> Vec<Endpoint> {
    let is_of_family = |address: &&EndpointAddress| {
        let ip = address.ip.parse::<IpAddr>();
        ip.is_ok_and(|ip| ip.is_ipv4() == (family == "IPv4"))
    };
    let ready = subset.addresses.iter().flatten().map(|a| (a, true));
    let not_ready = subset
        .not_ready_addresses
        .iter()
        .flatten()
        .map(|a| (a, false));
    ready
        .chain(not_ready)
        .filter(|(address, _)| is_of_family(address))
        .take(MAX_ADDRESSES)
        .map(|(address, ready)| Endpoint {
            addresses: vec![address.ip.clone()],
            conditions: Some(EndpointConditions {
                ready: Some(ready),
                ..EndpointConditions::default()
            }),
            hostname: address.hostname.clone(),
            node_name: address.node_name.clone(),
            target_ref: address.target_ref.clone(),
            ..Endpoint::default()
        })
        .collect()
}

fn blueprint(endpoints: &Endpoints, family: &str) -> EndpointSlice {
    let meta = &endpoints.metadata;
    let mut labels = meta.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.to_owned(), name(meta).to_owned());
    labels.insert(MANAGED_BY.to_owned(), CONTROLLER.to_owned());
    let mut annotations = meta.annotations.clone().unwrap_or_default();
    annotations.retain(|annotation, _| !OWN_ANNOTATIONS.contains(&annotation.as_str()));
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", name(meta))),
            namespace: meta.namespace.clone(),
            labels: Some(labels),
            annotations: Some(annotations).filter(|a| !a.is_empty()),
            owner_references: Some(vec![controller_ref(endpoints)]),
            ..ObjectMeta::default()
        },
        address_type: family.to_owned(),
        endpoints: None,
        ports: None,
    }
}

#[cfg(test)]
mod tests {
    use fluyt_client::fake::FakeApi;
    use k8s_openapi::api::core::v1::ServiceSpec;

    use super::*;
    use crate::common::test_support::{context, named};

    fn slices(fake: &FakeApi) -> Vec<(String, Vec<String>)> {
        let slices = fake.list::<EndpointSlice>().into_iter();
        let of_slice = |slice: EndpointSlice| {
            let endpoints = slice.endpoints.into_iter().flatten();
            (
                slice.address_type,
                endpoints.flat_map(|e| e.addresses).collect(),
            )
        };
        slices.map(of_slice).collect()
    }

    #[tokio::test]
    async fn what_people_write_is_mirrored_until_it_goes() {
        let (fake, context) = context();
        fake.insert(Service {
            metadata: named("ns", "db"),
            spec: Some(ServiceSpec::default()),
            status: None,
        });
        let address = |ip: &str| EndpointAddress {
            ip: ip.to_owned(),
            ..EndpointAddress::default()
        };
        let mut endpoints = fake.insert(Endpoints {
            metadata: named("ns", "db"),
            subsets: Some(vec![EndpointSubset {
                addresses: Some(vec![address("192.0.2.1"), address("2001:db8::1")]),
                ..EndpointSubset::default()
            }]),
        });
        tokio::spawn(run(context));
        fake.until("a slice for each family", |fake| {
            let mut all = slices(fake);
            all.sort();
            all == [
                ("IPv4".to_owned(), vec!["192.0.2.1".to_owned()]),
                ("IPv6".to_owned(), vec!["2001:db8::1".to_owned()]),
            ]
        })
        .await;
        endpoints.subsets.as_mut().unwrap()[0].addresses = Some(vec![address("192.0.2.2")]);
        fake.update(&endpoints);
        fake.until("the slice follows", |fake| {
            slices(fake) == [("IPv4".to_owned(), vec!["192.0.2.2".to_owned()])]
        })
        .await;
        fake.remove(&endpoints);
        fake.until("and goes", |fake| slices(fake).is_empty()).await;
    }
}
