//! `managedClusters`: create, update, show, delete, and the credentials.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;

use axum::Json;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use jiff::Timestamp;
use rand::RngExt as _;
use serde_json::{Map, Value, json};

use super::agent_pools::{self, PoolRequest};
use super::error::{ArmError, Result};
use super::fields::{self, Fields};
use super::operations::{self, Verb};
use super::{Call, groups, ok, validation, view};
use crate::cluster::record::{Cluster, ClusterKey, Network, Outbound, ProvisioningState};
use crate::cluster::supervisor::Supervisor;
use crate::cluster::{kubeconfig, master_process};
use crate::master::pki;
use crate::state::{Group, Tables};
use crate::versions;

/// The first port that a master gets.
const FIRST_PORT: u16 = 6443;

const DOMAIN: &str = "fluyt.local";

pub fn key(call: &Call, group: &str, name: &str) -> ClusterKey {
    ClusterKey::new(&call.subscription, group, name)
}

/// # Errors
/// When there is no such cluster, or no such group.
pub fn find(call: &Call, group: &str, name: &str) -> Result<Arc<Cluster>> {
    find_in(&call.service.state.read(), call, group, name)
}

fn find_in(tables: &Tables, call: &Call, group: &str, name: &str) -> Result<Arc<Cluster>> {
    if let Some(cluster) = tables.clusters.get(&key(call, group, name)) {
        return Ok(cluster.clone());
    }
    if !tables.groups.contains_key(&groups::key(call, group)) {
        return Err(groups::not_found(group));
    }
    Err(ArmError::new(
        StatusCode::NOT_FOUND,
        "ResourceNotFound",
        format!(
            "The Resource 'Microsoft.ContainerService/managedClusters/{name}' under resource group '{group}' was not found."
        ),
    ))
}

/// A cluster that may be changed now.
pub fn idle(tables: &Tables, call: &Call, group: &str, name: &str) -> Result<Arc<Cluster>> {
    let cluster = find_in(tables, call, group, name)?;
    if !cluster.state.is_busy() {
        return Ok(cluster);
    }
    let verb = tables
        .operations
        .get(&cluster.operation)
        .map_or("unknown", |o| o.verb.as_str());
    Err(ArmError::new(
        StatusCode::CONFLICT,
        "OperationNotAllowed",
        format!(
            "Operation is not allowed because there's an in progress {verb} operation on the managed cluster '{}'.",
            cluster.name
        ),
    ))
}

pub fn list(call: &Call, group: Option<&str>) -> Result<Response> {
    if let Some(group) = group {
        groups::require(call, group)?;
    }
    let tables = call.service.state.read();
    let in_group = |c: &&Arc<Cluster>| group.is_none_or(|g| c.group.eq_ignore_ascii_case(g));
    Ok(ok(view::list(
        tables
            .clusters
            .values()
            .filter(in_group)
            .map(|c| view::cluster(c))
            .collect(),
    )))
}

pub fn get(call: &Call, group: &str, name: &str) -> Result<Response> {
    Ok(ok(view::cluster(&*find(call, group, name)?)))
}

/// What a PUT asks for, read and checked as far as that goes without the state.
struct ClusterRequest {
    location: Option<String>,
    tags: Option<std::collections::BTreeMap<String, String>>,
    version: Option<&'static str>,
    dns_prefix: Option<String>,
    node_resource_group: Option<String>,
    network: NetworkRequest,
    pools: Option<Vec<PoolRequest>>,
    top: Map<String, Value>,
    properties: Map<String, Value>,
}

#[derive(Default)]
struct NetworkRequest {
    pods: Option<ipnet::Ipv4Net>,
    services: Option<ipnet::Ipv4Net>,
    dns_service_ip: Option<Ipv4Addr>,
    outbound: Option<Outbound>,
    profile: Map<String, Value>,
}

/// Fields that we show ourselves, and a request's are not kept for.
const OWN_TOP: &[&str] = &[
    "eTag",
    "id",
    "location",
    "name",
    "properties",
    "systemData",
    "tags",
    "type",
];
const OWN_PROPERTIES: &[&str] = &[
    "agentPoolProfiles",
    "azurePortalFQDN",
    "currentKubernetesVersion",
    "dnsPrefix",
    "fqdn",
    "kubernetesVersion",
    "maxAgentPools",
    "networkProfile",
    "nodeResourceGroup",
    "powerState",
    "privateFQDN",
    "provisioningState",
    "resourceUID",
    "status",
];
const OWN_NETWORK: &[&str] = &[
    "dnsServiceIP",
    "outboundType",
    "podCidr",
    "podCidrs",
    "serviceCidr",
    "serviceCidrs",
];

/// The fields that are not ours and not null.
pub fn kept(map: &Map<String, Value>, own: &[&str]) -> Map<String, Value> {
    map.iter()
        .filter(|(k, v)| !own.contains(&k.as_str()) && !v.is_null())
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect()
}

// === impl ClusterRequest ===

impl ClusterRequest {
    fn read(call: &Call) -> Result<Self> {
        let body = call.json()?;
        let top = fields::object(&body, fields::RESOURCE, "")?;
        let fields = Fields {
            map: top,
            place: "",
        };
        let empty = Value::Object(Map::new());
        let properties = fields::object(
            top.get("properties")
                .filter(|p| !p.is_null())
                .unwrap_or(&empty),
            fields::CLUSTER,
            "properties",
        )?;
        let of = Fields {
            map: properties,
            place: "properties",
        };
        let pools = of.list("agentPoolProfiles")?.map(|list| {
            let read = |(index, value)| {
                PoolRequest::read(
                    &call.service,
                    value,
                    &format!("properties.agentPoolProfiles[{index}]"),
                    None,
                )
            };
            list.iter()
                .enumerate()
                .map(read)
                .collect::<Result<Vec<_>>>()
        });
        let dns_prefix = of.text("dnsPrefix")?.map(str::to_owned);
        if let Some(prefix) = &dns_prefix {
            validation::dns_prefix(prefix)?;
        }
        let node_resource_group = of.text("nodeResourceGroup")?.map(str::to_owned);
        if let Some(name) = &node_resource_group {
            validation::group_name(name)?;
        }
        let version = of.text("kubernetesVersion")?.filter(|v| !v.is_empty());
        Ok(Self {
            location: fields
                .text("location")?
                .map(|l| l.to_lowercase().replace(' ', ""))
                .filter(|l| !l.is_empty()),
            tags: fields.map_of_texts("tags")?,
            version: version
                .map(|v| validation::version(v, "properties.kubernetesVersion"))
                .transpose()?,
            dns_prefix,
            node_resource_group,
            network: NetworkRequest::read(properties)?,
            pools: pools.transpose()?,
            top: kept(top, OWN_TOP),
            properties: kept(properties, OWN_PROPERTIES),
        })
    }
}

impl NetworkRequest {
    fn read(properties: &Map<String, Value>) -> Result<Self> {
        let Some(profile) = properties.get("networkProfile").filter(|p| !p.is_null()) else {
            return Ok(Self::default());
        };
        let place = "properties.networkProfile";
        let map = fields::object(profile, fields::NETWORK, place)?;
        let of = Fields { map, place };
        let cidr = |key: &str| {
            of.text(key)?
                .map(|text| validation::cidr(text, &fields::join(place, key)))
                .transpose()
        };
        let dns = of.text("dnsServiceIP")?.map(|text| {
            text.parse().map_err(|_| {
                ArmError::bad_request(
                    "InvalidDNSServiceIP",
                    format!("'{text}' is not an address."),
                )
                .at(format!("{place}.dnsServiceIP"))
            })
        });
        let outbound = match of.text("outboundType")? {
            None => None,
            Some("none") => Some(Outbound::None),
            Some("loadBalancer") => Some(Outbound::LoadBalancer),
            Some(other) => {
                let message = format!(
                    "The outbound type '{other}' is not supported: use none or loadBalancer."
                );
                return Err(ArmError::bad_request("InvalidParameter", message)
                    .at(format!("{place}.outboundType")));
            }
        };
        Ok(Self {
            pods: cidr("podCidr")?,
            services: cidr("serviceCidr")?,
            dns_service_ip: dns.transpose()?,
            outbound,
            profile: kept(map, OWN_NETWORK),
        })
    }

    /// The addresses of a new cluster: AKS's defaults unless others were asked for.
    fn plan(self, slice: u8) -> Result<Network> {
        let net = |text: &str| {
            text.parse()
                .map_err(|e| ArmError::from(anyhow::Error::new(e)))
        };
        let nodes: ipnet::Ipv4Net = net("10.224.0.0/16")?;
        let (pods, services) = (
            self.pods.map_or_else(|| net("10.244.0.0/16"), Ok)?,
            self.services.map_or_else(|| net("10.0.0.0/16"), Ok)?,
        );
        let overlap = |a: &ipnet::Ipv4Net, b: &ipnet::Ipv4Net| a.contains(b) || b.contains(a);
        for (what, a, b) in [
            ("podCidr", &pods, &services),
            ("podCidr", &pods, &nodes),
            ("serviceCidr", &services, &nodes),
        ] {
            if overlap(a, b) {
                let message = format!("The ranges {a} and {b} overlap.");
                return Err(ArmError::bad_request("InvalidParameter", message)
                    .at(format!("properties.networkProfile.{what}")));
            }
        }
        if pods.prefix_len() > 24 || services.prefix_len() > 24 || services.prefix_len() < 12 {
            let message =
                "The pods' range has a prefix of at most /24, the services' one of /12 to /24.";
            return Err(
                ArmError::bad_request("InvalidParameter", message).at("properties.networkProfile")
            );
        }
        let dns_service_ip = self
            .dns_service_ip
            .unwrap_or(Ipv4Addr::from(u32::from(services.network()) + 10));
        if !services.contains(&dns_service_ip)
            || u32::from(dns_service_ip) <= u32::from(services.network()) + 1
        {
            let message = format!(
                "The DNS service IP {dns_service_ip} must be in {services} and not one of its first two addresses."
            );
            return Err(ArmError::bad_request("InvalidDNSServiceIP", message)
                .at("properties.networkProfile.dnsServiceIP"));
        }
        Ok(Network {
            nodes,
            pods,
            services,
            dns_service_ip,
            outbound: self.outbound.unwrap_or(Outbound::None),
            slice,
            profile: self.profile,
        })
    }
}

/// Creates a cluster, or makes it what the body says.
pub async fn put(call: &Call, group: &str, name: &str) -> Result<Response> {
    let request = ClusterRequest::read(call)?;
    let exists = find(call, group, name).is_ok();
    if exists {
        update(call, group, name, request).await
    } else {
        create(call, group, name, request).await
    }
}

async fn create(call: &Call, group: &str, name: &str, request: ClusterRequest) -> Result<Response> {
    validation::cluster_name(name)?;
    validation::group_name(group)?;
    let location = request.location.clone().ok_or_else(|| {
        ArmError::bad_request(
            "LocationRequired",
            "The location property is required for this definition.",
        )
        .at("location")
    })?;
    let pools = request.pools.filter(|p| !p.is_empty()).ok_or_else(|| {
        ArmError::bad_request("InvalidParameter", "Required parameter agentPoolProfiles is missing: a cluster has at least one agent pool.").at("properties.agentPoolProfiles")
    })?;
    let dns_prefix = request.dns_prefix.ok_or_else(|| {
        ArmError::bad_request(
            "InvalidParameter",
            "Required parameter dnsPrefix is missing (null).",
        )
        .at("properties.dnsPrefix")
    })?;
    let version = request.version.unwrap_or(versions::DEFAULT);
    let pools = pools
        .into_iter()
        .map(|p| p.create(version))
        .collect::<Result<Vec<_>>>()?;
    agent_pools::check_set(&pools)?;
    let id = random(12, 16);
    let change = |tables: &mut Tables| {
        let key = key(call, group, name);
        if let Some(there) = tables.clusters.get(&key) {
            return Err(ArmError::new(
                StatusCode::CONFLICT,
                "Conflict",
                format!("The cluster '{}' exists.", there.name),
            ));
        }
        // ARM wants the group to be made first; a group is nothing but a name here, so it is made on the way.
        let group = tables
            .groups
            .entry(groups::key(call, group))
            .or_insert_with(|| {
                Arc::new(Group {
                    subscription: call.subscription.clone(),
                    name: group.to_owned(),
                    location: location.clone(),
                    tags: None,
                })
            });
        let group = group.name.clone();
        let slice = (0..=u8::MAX)
            .find(|s| tables.clusters.values().all(|c| c.network.slice != *s))
            .ok_or_else(|| {
                ArmError::bad_request(
                    "QuotaExceeded",
                    "This host has as many clusters as it can have: 256.",
                )
            })?;
        let now = Timestamp::now();
        let mut cluster = Cluster {
            fqdn: format!("{dns_prefix}-{}.hcp.{location}.{DOMAIN}", &id[..8]).to_lowercase(),
            node_resource_group: request
                .node_resource_group
                .unwrap_or_else(|| format!("MC_{group}_{name}_{location}")),
            id,
            subscription: call.subscription.clone(),
            group,
            name: name.to_owned(),
            location: location.clone(),
            tags: request.tags,
            version: version.to_owned(),
            dns_prefix,
            network: request.network.plan(slice)?,
            top: request.top,
            properties: request.properties,
            port: free_port(tables)?,
            bootstrap_token: format!("{}.{}", random(6, 36), random(16, 36)),
            created: now,
            changed: now,
            state: ProvisioningState::Creating,
            operation: String::new(),
            pools,
            generation: 1,
        };
        cluster
            .plan_nodes()
            .map_err(|why| ArmError::bad_request("InsufficientSubnetSize", why))?;
        cluster.operation = operations::begin(
            tables,
            call,
            &location,
            &cluster.resource_id(),
            Verb::Create,
        );
        let cluster = Arc::new(cluster);
        tables.clusters.insert(key, cluster.clone());
        validation::budget(&call.service, tables)?;
        Ok(cluster)
    };
    let cluster = call.service.state.update(change).await?;
    Supervisor::spawn(call.service.clone(), cluster.key());
    let mut response = (StatusCode::CREATED, Json(view::cluster(&cluster))).into_response();
    operations::follow(call, &cluster.location, &cluster.operation, &mut response);
    Ok(response)
}

async fn update(call: &Call, group: &str, name: &str, request: ClusterRequest) -> Result<Response> {
    let change = |tables: &mut Tables| {
        let before = idle(tables, call, group, name)?;
        let mut now = Cluster::clone(&before);
        let fixed = |field: &str, is_same: bool| match is_same {
            true => Ok(()),
            false => Err(agent_pools::fixed(field)),
        };
        fixed(
            "location",
            request.location.as_ref().is_none_or(|l| *l == now.location),
        )?;
        fixed(
            "properties.dnsPrefix",
            request
                .dns_prefix
                .as_ref()
                .is_none_or(|p| *p == now.dns_prefix),
        )?;
        fixed(
            "properties.nodeResourceGroup",
            request
                .node_resource_group
                .as_ref()
                .is_none_or(|g| *g == now.node_resource_group),
        )?;
        let (network, asked) = (&now.network, &request.network);
        fixed(
            "properties.networkProfile.podCidr",
            asked.pods.is_none_or(|p| p == network.pods),
        )?;
        fixed(
            "properties.networkProfile.serviceCidr",
            asked.services.is_none_or(|s| s == network.services),
        )?;
        fixed(
            "properties.networkProfile.dnsServiceIP",
            asked
                .dns_service_ip
                .is_none_or(|d| d == network.dns_service_ip),
        )?;
        fixed(
            "properties.networkProfile.outboundType",
            asked.outbound.is_none_or(|o| o == network.outbound),
        )?;
        fixed(
            "properties.kubernetesVersion",
            request.version.is_none_or(|v| v == now.version),
        )?;
        for pool in request.pools.iter().flatten() {
            match now.pool_mut(&pool.name) {
                Some(there) => pool.update(there)?,
                None => now.pools.push(pool.clone().create(&before.version)?),
            }
        }
        agent_pools::check_set(&now.pools)?;
        if request.tags.is_some() {
            now.tags = request.tags;
        }
        now.top.extend(request.top);
        now.properties.extend(request.properties);
        now.plan_nodes()
            .map_err(|why| ArmError::bad_request("InsufficientSubnetSize", why))?;
        now.state = ProvisioningState::Updating;
        now.operation = operations::begin(
            tables,
            call,
            &now.location,
            &now.resource_id(),
            Verb::Update,
        );
        tables.edit(&before.key(), |cluster| *cluster = now);
        validation::budget(&call.service, tables)?;
        find_in(tables, call, group, name)
    };
    let cluster = call.service.state.update(change).await?;
    let mut response = Json(view::cluster(&cluster)).into_response();
    operations::follow(call, &cluster.location, &cluster.operation, &mut response);
    Ok(response)
}

/// Tags only, as in ARM.
pub async fn patch_tags(call: &Call, group: &str, name: &str) -> Result<Response> {
    let body = call.json()?;
    let map = fields::object(&body, &["tags"], "")?;
    let tags = Fields { map, place: "" }.map_of_texts("tags")?;
    let change = |tables: &mut Tables| {
        let before = idle(tables, call, group, name)?;
        tables.edit(&before.key(), |cluster| {
            cluster.tags = Some(tags.unwrap_or_default())
        });
        find_in(tables, call, group, name)
    };
    Ok(ok(view::cluster(
        &*call.service.state.update(change).await?,
    )))
}

/// Deletes the cluster, whatever else is going on with it.
pub async fn delete(call: &Call, group: &str, name: &str) -> Result<Response> {
    if find(call, group, name).is_err() {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let change = |tables: &mut Tables| {
        let before = find_in(tables, call, group, name)?;
        if before.state == ProvisioningState::Deleting {
            return Ok(before);
        }
        let error =
            json!({"code": "OperationPreempted", "message": "The cluster was deleted meanwhile."});
        tables.finish(&before.operation, Some(error));
        let operation = operations::begin(
            tables,
            call,
            &before.location,
            &before.resource_id(),
            Verb::Delete,
        );
        tables.edit(&before.key(), |cluster| {
            cluster.state = ProvisioningState::Deleting;
            cluster.operation = operation;
        });
        find_in(tables, call, group, name)
    };
    let cluster = call.service.state.update(change).await?;
    operations::accepted(call, &cluster.location, &cluster.operation)
}

pub async fn action(call: &Call, group: &str, name: &str, action: &str) -> Result<Response> {
    let is_admin = match action {
        "listclusteradmincredential" => true,
        "listclusterusercredential" | "listclustermonitoringusercredential" => false,
        _ => {
            let message = format!("The action '{action}' is not supported on managed clusters.");
            return Err(ArmError::new(
                StatusCode::NOT_FOUND,
                "InvalidResourceType",
                message,
            ));
        }
    };
    let cluster = find(call, group, name)?;
    let config = master_process::config(&call.service.settings.data_dir, &cluster);
    let keys = tokio::task::spawn_blocking(move || pki::ensure(&config))
        .await
        .map_err(anyhow::Error::from)??;
    let kubeconfig = kubeconfig::admin(&cluster, &keys, is_admin)?;
    let credential = if is_admin {
        "clusterAdmin"
    } else {
        "clusterUser"
    };
    Ok(ok(
        json!({"kubeconfigs": [{"name": credential, "value": STANDARD.encode(kubeconfig)}]}),
    ))
}

/// A port of the host's loopback that nobody has now and no cluster will want.
fn free_port(tables: &Tables) -> Result<u16> {
    let is_ours = |port: u16| tables.clusters.values().any(|c| c.port == port);
    (FIRST_PORT..FIRST_PORT + 1000)
        .find(|port| !is_ours(*port) && TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .ok_or_else(|| {
            ArmError::bad_request(
                "QuotaExceeded",
                "No port of the host is free for the cluster's API server.",
            )
        })
}

/// Random digits.
pub fn random(length: usize, radix: u32) -> String {
    let mut rng = rand::rng();
    (0..length)
        .filter_map(|_| char::from_digit(rng.random_range(0..radix), radix))
        .collect()
}
