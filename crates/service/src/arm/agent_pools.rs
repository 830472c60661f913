//! `agentPools`: as resources of their own, and as the profiles inside a cluster.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde_json::{Map, Value};

use super::error::{ArmError, Result};
use super::fields::{self, Fields};
use super::managed_clusters::{find, idle, kept, random};
use super::operations::{self, Verb};
use super::{Call, ok, validation, view};
use crate::cluster::record::{Cluster, Pool, ProvisioningState};
use crate::service::Service;
use crate::state::Tables;
use crate::vm_sizes;

/// Fields that we show ourselves.
const OWN: &[&str] = &[
    "count",
    "currentOrchestratorVersion",
    "eTag",
    "maxPods",
    "mode",
    "name",
    "nodeImageVersion",
    "nodeLabels",
    "nodeTaints",
    "orchestratorVersion",
    "osType",
    "powerState",
    "provisioningState",
    "status",
    "tags",
    "type",
    "vmSize",
];

const DEFAULT_MAX_PODS: u32 = 250;

/// What a request says of a pool, checked.
#[derive(Clone, Debug)]
pub struct PoolRequest {
    pub name: String,
    count: Option<u32>,
    mode: Option<String>,
    vm_size: Option<&'static str>,
    version: Option<&'static str>,
    max_pods: Option<u32>,
    labels: Option<BTreeMap<String, String>>,
    taints: Option<Vec<String>>,
    tags: Option<BTreeMap<String, String>>,
    rest: Map<String, Value>,
}

// === impl PoolRequest ===

impl PoolRequest {
    /// Reads a profile, or a resource's properties whose `name` is in its path.
    pub fn read(service: &Service, value: &Value, place: &str, name: Option<&str>) -> Result<Self> {
        let map = fields::object(value, fields::POOL, place)?;
        let of = Fields { map, place };
        let name = match name {
            Some(name) => name,
            None => of.text("name")?.unwrap_or_default(),
        };
        validation::pool_name(name)?;
        if let Some(os) = of
            .text("osType")?
            .filter(|os| !os.eq_ignore_ascii_case("Linux"))
        {
            return Err(unsupported(place, "osType", os));
        }
        if let Some(kind) = of
            .text("type")?
            .filter(|t| !t.eq_ignore_ascii_case("VirtualMachineScaleSets"))
        {
            return Err(unsupported(place, "type", kind));
        }
        if of.boolean("enableAutoScaling")? == Some(true) {
            return Err(unsupported(place, "enableAutoScaling", "true"));
        }
        let mode = match of.text("mode")? {
            None => None,
            Some(mode) if mode.eq_ignore_ascii_case("System") => Some("System".to_owned()),
            Some(mode) if mode.eq_ignore_ascii_case("User") => Some("User".to_owned()),
            Some(other) => return Err(unsupported(place, "mode", other)),
        };
        let size = of
            .text("vmSize")?
            .filter(|s| !s.is_empty())
            .map(|size| validation::vm_size(service, size))
            .transpose()?;
        let labels = of.map_of_texts("nodeLabels")?;
        for (key, value) in labels.iter().flatten() {
            validation::label(key, value)?;
        }
        let taints = of.texts("nodeTaints")?;
        for taint in taints.iter().flatten() {
            validation::taint(taint)?;
        }
        let version = of.text("orchestratorVersion")?.filter(|v| !v.is_empty());
        // A pool of no mode may have no nodes only if it is a user pool; which it is, is known when it is made.
        let count = of
            .number("count")?
            .map(|count| validation::count(count, mode.as_deref().unwrap_or("User")))
            .transpose()?;
        Ok(Self {
            name: name.to_owned(),
            count,
            mode,
            vm_size: size.map(|s| s.name),
            version: version
                .map(|v| validation::version(v, "agentPoolProfile.orchestratorVersion"))
                .transpose()?,
            max_pods: of
                .number("maxPods")?
                .map(validation::max_pods)
                .transpose()?,
            labels,
            taints,
            tags: of.map_of_texts("tags")?,
            rest: kept(map, OWN),
        })
    }

    /// The new pool that it asks for.
    pub fn create(self, cluster_version: &str) -> Result<Pool> {
        if let Some(version) = self.version.filter(|v| *v != cluster_version) {
            return Err(unsupported(
                "agentPoolProfile",
                "orchestratorVersion",
                version,
            ));
        }
        let mode = self.mode.unwrap_or_else(|| "User".to_owned());
        Ok(Pool {
            count: validation::count(self.count.map_or(1, i64::from), &mode)?,
            name: self.name,
            mode,
            vm_size: self.vm_size.unwrap_or(vm_sizes::DEFAULT).to_owned(),
            version: cluster_version.to_owned(),
            max_pods: self.max_pods.unwrap_or(DEFAULT_MAX_PODS),
            labels: self.labels.unwrap_or_default(),
            taints: self.taints.unwrap_or_default(),
            tags: self.tags,
            properties: self.rest,
            state: ProvisioningState::Creating,
            digits: random(8, 10),
            next_node: 0,
            nodes: Vec::new(),
            deleting: false,
            generation: 1,
        })
    }

    /// Changes a pool that is there.
    pub fn update(&self, pool: &mut Pool) -> Result<()> {
        let same = |field: &str, is_same: bool| {
            if is_same {
                Ok(())
            } else {
                Err(fixed(&format!("properties.agentPoolProfile.{field}")))
            }
        };
        same("vmSize", self.vm_size.is_none_or(|s| s == pool.vm_size))?;
        same("maxPods", self.max_pods.is_none_or(|m| m == pool.max_pods))?;
        same(
            "orchestratorVersion",
            self.version.is_none_or(|v| v == pool.version),
        )?;
        // Nodes take these when they join, and there is no replacing of nodes yet.
        same(
            "nodeLabels",
            self.labels.as_ref().is_none_or(|l| *l == pool.labels),
        )?;
        same(
            "nodeTaints",
            self.taints.as_ref().is_none_or(|t| *t == pool.taints),
        )?;
        let mode = self.mode.as_ref().unwrap_or(&pool.mode).clone();
        let count = validation::count(self.count.unwrap_or(pool.count).into(), &mode)?;
        let is_scaled = count != pool.count;
        if is_scaled || mode != pool.mode {
            pool.state = if is_scaled {
                ProvisioningState::Scaling
            } else {
                ProvisioningState::Updating
            };
            pool.generation += 1;
        }
        (pool.count, pool.mode) = (count, mode);
        if self.tags.is_some() {
            pool.tags = self.tags.clone();
        }
        pool.properties.extend(self.rest.clone());
        Ok(())
    }
}

pub fn fixed(field: &str) -> ArmError {
    ArmError::bad_request(
        "PropertyChangeNotAllowed",
        format!("Changing property '{field}' is not allowed."),
    )
    .at(field)
}

fn unsupported(place: &str, field: &str, value: &str) -> ArmError {
    let path = fields::join(place, field);
    ArmError::bad_request(
        "InvalidParameter",
        format!("The value '{value}' of parameter {path} is not supported."),
    )
    .at(path)
}

/// Whether pools can be together in one cluster.
pub fn check_set(pools: &[Pool]) -> Result<()> {
    for (index, pool) in pools.iter().enumerate() {
        if pools[..index].iter().any(|p| p.name == pool.name) {
            let message = format!(
                "The agent pool name '{}' is used more than once.",
                pool.name
            );
            return Err(
                ArmError::bad_request("InvalidParameter", message).at("agentPoolProfile.name")
            );
        }
    }
    if pools.iter().any(|p| p.mode == "System" && !p.deleting) {
        return Ok(());
    }
    let message = "There has to be at least one system agent pool.";
    Err(ArmError::bad_request("InvalidParameter", message).at("agentPoolProfile.mode"))
}

fn find_pool<'a>(cluster: &'a Cluster, name: &str) -> Result<&'a Pool> {
    cluster.pool(name).ok_or_else(|| {
        let message = format!(
            "The agent pool '{name}' of the managed cluster '{}' could not be found.",
            cluster.name
        );
        ArmError::new(StatusCode::NOT_FOUND, "NotFound", message)
    })
}

pub fn list(call: &Call, group: &str, cluster: &str) -> Result<Response> {
    let cluster = find(call, group, cluster)?;
    Ok(ok(view::list(
        cluster
            .pools
            .iter()
            .map(|p| view::pool(&cluster, p))
            .collect(),
    )))
}

pub fn get(call: &Call, group: &str, cluster: &str, name: &str) -> Result<Response> {
    let cluster = find(call, group, cluster)?;
    Ok(ok(view::pool(&cluster, find_pool(&cluster, name)?)))
}

pub async fn put(call: &Call, group: &str, cluster: &str, name: &str) -> Result<Response> {
    let body = call.json()?;
    let top = fields::object(
        &body,
        &["eTag", "id", "name", "properties", "systemData", "type"],
        "",
    )?;
    let empty = Value::Object(Map::new());
    let properties = top
        .get("properties")
        .filter(|p| !p.is_null())
        .unwrap_or(&empty);
    let request = PoolRequest::read(&call.service, properties, "properties", Some(name))?;
    let change = |tables: &mut Tables| {
        let before = idle(tables, call, group, cluster)?;
        let mut now = Cluster::clone(&before);
        let is_new = match now.pool_mut(name) {
            Some(pool) => {
                request.update(pool)?;
                false
            }
            None => {
                now.pools.push(request.create(&before.version)?);
                true
            }
        };
        agent_pools_changed(
            tables,
            call,
            &before,
            now,
            name,
            if is_new { Verb::Create } else { Verb::Update },
        )?;
        Ok::<_, ArmError>((find_again(tables, &before)?, is_new))
    };
    let (cluster, is_new) = call.service.state.update(change).await?;
    let status = if is_new {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    let mut response = (
        status,
        Json(view::pool(&cluster, find_pool(&cluster, name)?)),
    )
        .into_response();
    operations::follow(call, &cluster.location, &cluster.operation, &mut response);
    Ok(response)
}

pub async fn delete(call: &Call, group: &str, cluster: &str, name: &str) -> Result<Response> {
    if find(call, group, cluster)?.pool(name).is_none() {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let change = |tables: &mut Tables| {
        let before = idle(tables, call, group, cluster)?;
        let mut now = Cluster::clone(&before);
        if let Some(pool) = now.pool_mut(name) {
            pool.deleting = true;
            pool.state = ProvisioningState::Deleting;
        }
        agent_pools_changed(tables, call, &before, now, name, Verb::Delete)?;
        find_again(tables, &before)
    };
    let cluster = call.service.state.update(change).await?;
    operations::accepted(call, &cluster.location, &cluster.operation)
}

fn find_again(tables: &Tables, cluster: &Cluster) -> Result<Arc<Cluster>> {
    tables
        .clusters
        .get(&cluster.key())
        .cloned()
        .ok_or_else(|| anyhow::anyhow!("the cluster has gone").into())
}

/// Records a cluster whose pools have changed, and the operation about it.
fn agent_pools_changed(
    tables: &mut Tables,
    call: &Call,
    before: &Cluster,
    mut now: Cluster,
    pool: &str,
    verb: Verb,
) -> Result<()> {
    check_set(&now.pools)?;
    now.plan_nodes()
        .map_err(|why| ArmError::bad_request("InsufficientSubnetSize", why))?;
    now.state = ProvisioningState::Updating;
    let resource_id = format!("{}/agentPools/{pool}", now.resource_id());
    now.operation = operations::begin(tables, call, &now.location, &resource_id, verb);
    tables.edit(&before.key(), |cluster| *cluster = now);
    validation::budget(&call.service, tables)
}
