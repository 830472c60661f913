//! Resource quotas: a create or update is charged to every quota of its namespace before it is stored.

mod limited;
mod scopes;

use async_trait::async_trait;
use fluyt_api::component_helpers::resource::{Amounts, PodResources};
use fluyt_api::quantity::Quantity;
use fluyt_api::quota::{self, Life};
use fluyt_api::resources::{self, Resource};
use fluyt_api::{Error, meta};
use fluyt_etcd::{Compare, CompareOp, Keys, Op, Put, Target, Txn};
use jiff::Timestamp;
use serde_json::Value;

use super::{Attributes, Operation, Plugin};
use crate::cache::{Caches, REGISTRY};

use limited::Configuration;

/// Attempts at charging a quota that other requests charge at the same time.
const ATTEMPTS: usize = 10;

/// The plugin.
pub(super) struct ResourceQuota(Configuration);

impl ResourceQuota {
    /// # Errors
    /// When the configuration is malformed or makes no sense.
    pub(super) fn new(configuration: Option<&str>) -> anyhow::Result<Self> {
        let read = configuration.map(Configuration::parse).transpose()?;
        Ok(Self(read.unwrap_or_default()))
    }
}

#[async_trait]
impl Plugin for ResourceQuota {
    async fn validate(
        &self,
        caches: &Caches,
        attributes: &Attributes<'_>,
        object: &Value,
    ) -> Result<(), Error> {
        let at = attributes.at;
        let chargeable = attributes.operation == Operation::Create
            || (attributes.operation == Operation::Update
                && ["pods", "services", "persistentvolumeclaims"].contains(&at.resource.plural));
        let is_resize = at.resource.plural == "pods" && at.subresource == "resize";
        if !at.resource.namespaced
            || !(at.subresource.is_empty() || is_resize)
            || !chargeable
            || at.resource.is_virtual()
        {
            return Ok(());
        }
        let Some(quotas) = resources::find("", "v1", "resourcequotas") else {
            return Ok(());
        };
        let prefix = format!("{}/", at.namespace);
        let snapshot = caches.of(quotas).snapshot();
        let of_namespace = snapshot
            .entries
            .iter()
            .filter(|(k, _)| k.starts_with(&prefix));
        if self.0.demands_nothing() && of_namespace.clone().next().is_none() {
            return Ok(());
        }
        let mut usage = usage(attributes, object);
        let mut needs = self.0.needs(attributes, object, &usage);
        if let Some(old) = attributes.old {
            for (name, amount) in self::usage(attributes, old) {
                let entry = usage.entry(name).or_insert(Quantity::ZERO);
                *entry = entry.minus(amount);
            }
        }
        let keys: Vec<String> = of_namespace
            .map(|(key, entry)| {
                needs.find(at.resource.plural, object, &entry.object());
                key.to_string()
            })
            .collect();
        if usage.values().any(|amount| *amount > Quantity::ZERO) {
            needs.check(attributes)?;
        }
        for key in keys {
            charge(caches, attributes, object, &usage, &key).await?;
        }
        Ok(())
    }
}

type Usage = Amounts;

fn is_pods(resource: &Resource) -> bool {
    resource.group.is_empty() && resource.plural == "pods"
}

fn life(pod: &Value) -> Life<'_> {
    let metadata = &pod["metadata"];
    let deleted = metadata["deletionTimestamp"].as_str();
    Life {
        phase: pod["status"]["phase"].as_str(),
        deletion_timestamp: deleted.and_then(|at| at.parse().ok()),
        deletion_grace_period_seconds: metadata["deletionGracePeriodSeconds"].as_i64(),
    }
}

/// What one object counts for, by quota resource name.
fn usage(attributes: &Attributes<'_>, object: &Value) -> Usage {
    let resource = attributes.at.resource;
    if is_pods(resource) {
        let now = Timestamp::now();
        return quota::pod_usage(&PodResources::of(object), life(object), now);
    }
    let mut usage = Usage::new();
    let one = Quantity::from_units(1);
    usage.insert(format!("count/{}", resource.group_resource()), one);
    if resource.group.is_empty() {
        let counted = [
            "services",
            "secrets",
            "configmaps",
            "persistentvolumeclaims",
            "replicationcontrollers",
            "resourcequotas",
        ];
        if counted.contains(&resource.plural) {
            usage.insert(resource.plural.to_owned(), one);
        }
    }
    let quantity = |v: &Value| v.as_str().and_then(|t| t.parse::<Quantity>().ok());
    match resource.plural {
        "services" => {
            let ports = i64::try_from(object["spec"]["ports"].as_array().map_or(0, Vec::len))
                .unwrap_or(i64::MAX);
            match object["spec"]["type"].as_str() {
                Some("NodePort") => {
                    usage.insert("services.nodeports".into(), Quantity::from_units(ports));
                }
                Some("LoadBalancer") => {
                    usage.insert("services.nodeports".into(), Quantity::from_units(ports));
                    usage.insert("services.loadbalancers".into(), one);
                }
                _ => {}
            }
        }
        "persistentvolumeclaims" => {
            let storage = quantity(&object["spec"]["resources"]["requests"]["storage"])
                .unwrap_or(Quantity::ZERO);
            usage.insert("requests.storage".into(), storage);
            if let Some(class) = object["spec"]["storageClassName"].as_str() {
                let prefix = format!("{class}.storageclass.storage.k8s.io");
                usage.insert(format!("{prefix}/requests.storage"), storage);
                usage.insert(format!("{prefix}/persistentvolumeclaims"), one);
            }
        }
        _ => {}
    }
    usage
}

async fn charge(
    caches: &Caches,
    attributes: &Attributes<'_>,
    object: &Value,
    usage: &Usage,
    key: &str,
) -> Result<(), Error> {
    let Some(quotas) = resources::find("", "v1", "resourcequotas") else {
        return Ok(());
    };
    for _ in 0..ATTEMPTS {
        let Some(entry) = caches.of(quotas).get(key) else {
            return Ok(());
        };
        let mut quota = entry.object();
        let is_met = |scope: &Value| scopes::is_met(scope, attributes.at.resource.plural, object);
        if !scopes::of_quota(&quota).iter().all(is_met) {
            return Ok(());
        }
        // What the controller has not counted yet is not limited yet.
        let hard = quota["status"]["hard"]
            .as_object()
            .cloned()
            .unwrap_or_default();
        // What is there already need not say what nobody asked for when it was made.
        let says =
            attributes.operation == Operation::Create || attributes.at.subresource == "resize";
        if is_pods(attributes.at.resource) && says {
            let limited = hard.keys().map(String::as_str);
            quota::constraints(&PodResources::of(object), limited).map_err(|why| {
                attributes.forbidden(format!("failed quota: {}: {why}", meta::name(&quota)))
            })?;
        }
        let uncounted = |name: &&String| {
            hard.contains_key(*name) && quota["status"]["used"][name.as_str()].is_null()
        };
        let uncounted: Vec<&str> = usage.keys().filter(uncounted).map(String::as_str).collect();
        if !uncounted.is_empty() {
            return Err(attributes.forbidden(format!(
                "status unknown for quota: {}, resources: {}",
                meta::name(&quota),
                uncounted.join(",")
            )));
        }
        let (mut charged, mut exceeded) = (false, Vec::new());
        for (name, amount) in usage {
            let Some(limit) = hard
                .get(name)
                .and_then(Value::as_str)
                .and_then(|t| t.parse::<Quantity>().ok())
            else {
                continue;
            };
            let used = quota["status"]["used"][name]
                .as_str()
                .and_then(|t| t.parse::<Quantity>().ok())
                .unwrap_or(Quantity::ZERO);
            let after = used.plus(*amount);
            if after > limit && *amount > Quantity::ZERO {
                exceeded.push((name.clone(), *amount, used, limit));
            }
            if !amount.is_zero() {
                charged = true;
                quota["status"]["used"][name] = after.to_string().into();
            }
        }
        if !exceeded.is_empty() {
            let list = |pick: fn(&(String, Quantity, Quantity, Quantity)) -> Quantity| {
                exceeded
                    .iter()
                    .map(|e| format!("{}={}", e.0, pick(e)))
                    .collect::<Vec<_>>()
                    .join(",")
            };
            let why = format!(
                "exceeded quota: {}, requested: {}, used: {}, limited: {}",
                meta::name(&quota),
                list(|e| e.1),
                list(|e| e.2),
                list(|e| e.3)
            );
            return Err(attributes.forbidden(why));
        }
        if !charged || attributes.cx.dry_run {
            return Ok(());
        }
        meta::set(&mut quota, "resourceVersion", Value::Null);
        let store_key = format!("{REGISTRY}resourcequotas/{key}");
        let value = caches
            .codec
            .encode(quotas, store_key.as_bytes(), &quota)
            .await
            .map_err(Error::internal)?;
        let txn = Txn {
            compares: vec![Compare {
                keys: Keys::One(store_key.clone().into()),
                target: Target::Mod(entry.revision),
                op: CompareOp::Equal,
            }],
            success: vec![Op::Put(Put::new(store_key, value))],
            failure: Vec::new(),
        };
        let feed = caches.feed(quotas);
        let result = feed.store().txn(txn).await.map_err(Error::internal)?;
        feed.wait_for(result.revision).await?;
        if result.succeeded {
            return Ok(());
        }
    }
    Err(Error::conflict(
        "",
        "resourcequotas",
        key,
        "the quota is being changed by too many requests at once",
    ))
}
