//! The service controller: gives load balancers their addresses and keeps the forwarder true to Services, Nodes and
//! EndpointSlices.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use fluyt_client::{EventType, Informer, Informers, Recorder};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::forwarder::Forwarder;
use crate::{Config, pool};

const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// Wait before what failed is tried again.
const RETRY: Duration = Duration::from_secs(5);

struct Controller {
    config: Config,
    client: Client,
    services: Informer<Service>,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
    forwarder: Forwarder,
    recorder: Recorder,
    /// The last failure told of each Service, so that it is told once.
    told: HashMap<String, String>,
}

/// Runs until shutdown.
pub async fn run(
    config: Config,
    client: Client,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let informers = Informers::new(client.clone(), shutdown.clone());
    let mut controller = Controller {
        services: informers.get(),
        nodes: informers.get(),
        slices: informers.get(),
        forwarder: Forwarder::new(config.connect.clone()),
        recorder: Recorder::new(client.clone(), "service-controller", ""),
        told: HashMap::new(),
        config,
        client,
    };
    let mut services = controller.services.subscribe();
    let mut nodes = controller.nodes.subscribe();
    let mut slices = controller.slices.subscribe();
    tokio::select! {
        () = controller.synced() => {}
        () = shutdown.cancelled() => return Ok(()),
    }
    loop {
        while services.try_recv().is_ok() || nodes.try_recv().is_ok() || slices.try_recv().is_ok() {
        }
        let done = controller.sync().await;
        tokio::select! {
            changed = services.recv() => if changed.is_none() { return Ok(()) },
            changed = nodes.recv() => if changed.is_none() { return Ok(()) },
            changed = slices.recv() => if changed.is_none() { return Ok(()) },
            () = tokio::time::sleep(RETRY), if !done => {}
            () = shutdown.cancelled() => return Ok(()),
        }
    }
}

fn is_balanced(service: &Service) -> bool {
    service
        .spec
        .as_ref()
        .is_some_and(|s| s.type_.as_deref() == Some("LoadBalancer"))
        && service.metadata.deletion_timestamp.is_none()
}

fn present_address(service: &Service) -> Option<Ipv4Addr> {
    let balancer = service.status.as_ref()?.load_balancer.as_ref()?;
    balancer
        .ingress
        .as_ref()?
        .first()?
        .ip
        .as_ref()?
        .parse()
        .ok()
}

fn has_finalizer(service: &Service) -> bool {
    service.finalizers().iter().any(|f| f == FINALIZER)
}

impl Controller {
    async fn synced(&self) {
        self.services.synced().await;
        self.nodes.synced().await;
        self.slices.synced().await;
    }

    /// Makes everything as it should be; false when something has to be tried again.
    async fn sync(&mut self) -> bool {
        let services = self.services.list();
        let (mut taken, mut wanted, mut owners) = (BTreeSet::new(), HashMap::new(), HashMap::new());
        let mut done = true;
        // Those that have an address keep it; only then do others choose.
        let mut balanced: Vec<_> = services.iter().filter(|s| is_balanced(s)).collect();
        balanced.sort_by_key(|s| {
            (
                present_address(s).is_none(),
                s.creation_timestamp().map(|t| t.0),
            )
        });
        let mut assigned = Vec::new();
        for service in balanced {
            let asked = service
                .spec
                .as_ref()
                .and_then(|s| s.load_balancer_ip.as_deref());
            match pool::choose(
                self.config.load_balancer_pool,
                &taken,
                present_address(service),
                asked,
            ) {
                Ok(address) => {
                    taken.insert(address);
                    for (listen, backends) in self.listeners(service, address) {
                        wanted.insert(listen, backends);
                        owners.insert(listen, key(service));
                    }
                    assigned.push((service.clone(), address));
                }
                Err(why) => {
                    done = false;
                    self.tell(service, &why);
                }
            }
        }
        let failed = self.forwarder.set(&wanted).await;
        for (service, address) in assigned {
            let broken = failed
                .iter()
                .find(|(listen, _)| owners.get(*listen) == Some(&key(&service)));
            let result = match broken {
                Some((_, why)) => Err(why.clone()),
                None => self
                    .publish(&service, address)
                    .await
                    .map_err(|e| e.to_string()),
            };
            match result {
                Ok(()) => drop(self.told.remove(&key(&service))),
                Err(why) => {
                    done = false;
                    self.tell(&service, &why);
                }
            }
        }
        for service in services
            .iter()
            .filter(|s| !is_balanced(s) && (has_finalizer(s) || present_address(s).is_some()))
        {
            if let Err(error) = self.release(service).await {
                done = false;
                tracing::warn!(service = key(service), %error, "cannot release a load balancer");
            }
        }
        done
    }

    /// What to listen on for a Service, and where its connections go.
    fn listeners(
        &self,
        service: &Service,
        address: Ipv4Addr,
    ) -> Vec<(SocketAddr, Vec<SocketAddr>)> {
        let Some(spec) = &service.spec else {
            return Vec::new();
        };
        let local = spec.external_traffic_policy.as_deref() == Some("Local");
        let with_endpoints = local.then(|| self.nodes_with_endpoints(service));
        let nodes: Vec<IpAddr> = self
            .nodes
            .list()
            .iter()
            .filter(|n| takes_traffic(n))
            .filter(|n| {
                with_endpoints
                    .as_ref()
                    .is_none_or(|w| w.contains(&n.name_any()))
            })
            .filter_map(|n| internal_address(n))
            .collect();
        let ports = spec
            .ports
            .iter()
            .flatten()
            .filter(|p| p.protocol.as_deref().unwrap_or("TCP") == "TCP");
        ports
            .filter_map(|p| {
                let (port, node_port) = (
                    u16::try_from(p.port).ok()?,
                    u16::try_from(p.node_port?).ok()?,
                );
                let backends = nodes
                    .iter()
                    .map(|n| SocketAddr::new(*n, node_port))
                    .collect();
                Some((SocketAddr::new(address.into(), port), backends))
            })
            .collect()
    }

    fn nodes_with_endpoints(&self, service: &Service) -> BTreeSet<String> {
        let namespace = service.namespace().unwrap_or_default();
        let slices = self.slices.list_namespace(&namespace);
        let own = slices.iter().filter(|s| {
            s.labels()
                .get("kubernetes.io/service-name")
                .map(String::as_str)
                == service.metadata.name.as_deref()
        });
        own.flat_map(|s| s.endpoints.iter().flatten())
            .filter(|e| e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true))
            .filter_map(|e| e.node_name.clone())
            .collect()
    }

    /// Writes the address into the Service's status, and the finalizer that holds the Service until it is released.
    async fn publish(&self, service: &Service, address: Ipv4Addr) -> Result<(), kube::Error> {
        if !has_finalizer(service) {
            let mut finalizers = service.finalizers().to_vec();
            finalizers.push(FINALIZER.to_owned());
            self.patch(
                service,
                json!({"metadata": {"finalizers": finalizers}}),
                false,
            )
            .await?;
        }
        if present_address(service) == Some(address) {
            return Ok(());
        }
        let ports: Vec<Value> = service
            .spec
            .iter()
            .flat_map(|s| s.ports.iter().flatten())
            .map(|p| json!({"port": p.port, "protocol": p.protocol.as_deref().unwrap_or("TCP")}))
            .collect();
        let ingress = json!([{"ip": address.to_string(), "ipMode": "Proxy", "ports": ports}]);
        self.patch(
            service,
            json!({"status": {"loadBalancer": {"ingress": ingress}}}),
            true,
        )
        .await?;
        self.recorder.event(
            &reference(service),
            EventType::Normal,
            "EnsuredLoadBalancer",
            "Ensured load balancer",
        );
        Ok(())
    }

    async fn release(&self, service: &Service) -> Result<(), kube::Error> {
        if present_address(service).is_some() && service.metadata.deletion_timestamp.is_none() {
            self.patch(
                service,
                json!({"status": {"loadBalancer": {"ingress": null}}}),
                true,
            )
            .await?;
        }
        if has_finalizer(service) {
            let finalizers: Vec<&String> = service
                .finalizers()
                .iter()
                .filter(|f| *f != FINALIZER)
                .collect();
            self.patch(
                service,
                json!({"metadata": {"finalizers": finalizers}}),
                false,
            )
            .await?;
            self.recorder.event(
                &reference(service),
                EventType::Normal,
                "DeletedLoadBalancer",
                "Deleted load balancer",
            );
        }
        Ok(())
    }

    async fn patch(
        &self,
        service: &Service,
        patch: Value,
        status: bool,
    ) -> Result<(), kube::Error> {
        let api: Api<Service> = Api::namespaced(
            self.client.clone(),
            &service.namespace().unwrap_or_default(),
        );
        let (name, params) = (service.name_any(), PatchParams::default());
        let patched = if status {
            api.patch_status(&name, &params, &Patch::Merge(patch)).await
        } else {
            api.patch(&name, &params, &Patch::Merge(patch)).await
        };
        match patched {
            Err(error) if fluyt_client::is_not_found(&error) => Ok(()),
            other => other.map(drop),
        }
    }

    fn tell(&mut self, service: &Service, why: &str) {
        if self.told.insert(key(service), why.to_owned()).as_deref() == Some(why) {
            return;
        }
        let message = format!("Error syncing load balancer: failed to ensure load balancer: {why}");
        self.recorder.event(
            &reference(service),
            EventType::Warning,
            "SyncLoadBalancerFailed",
            &message,
        );
    }
}

fn reference(service: &Service) -> k8s_openapi::api::core::v1::ObjectReference {
    use kube::Resource as _;
    service.object_ref(&())
}

fn key(service: &Service) -> String {
    format!(
        "{}/{}",
        service.namespace().unwrap_or_default(),
        service.name_any()
    )
}

fn takes_traffic(node: &Node) -> bool {
    let conditions = node
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten());
    let ready = conditions
        .into_iter()
        .any(|c| c.type_ == "Ready" && c.status == "True");
    ready && !node.labels().contains_key(EXCLUDED) && node.metadata.deletion_timestamp.is_none()
}

fn internal_address(node: &Node) -> Option<IpAddr> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    addresses
        .iter()
        .find(|a| a.type_ == "InternalIP")?
        .address
        .parse()
        .ok()
}
