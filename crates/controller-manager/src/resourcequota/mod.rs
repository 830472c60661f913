//! resourcequota-controller: keeps `status.used` of ResourceQuotas true. Admission raises it with every object; this
//! controller lowers it when objects go, and corrects it.

mod usage;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use fluyt_api::quantity::Quantity;
use fluyt_client::{
    Action, Change, Informer, ObjectKey, WorkQueue, controller, helpers::pods, is_not_found,
    status_code,
};
use k8s_openapi::{
    api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, ResourceQuotaStatus, Service},
    apimachinery::pkg::api::resource::Quantity as Text,
};
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
    core::{DynamicObject, PartialObjectMeta},
};

use self::usage::Usage;
use crate::{
    Context,
    common::{discovery, namespace},
};

/// All quotas are calculated anew this often, for what no watch tells us (counts of other kinds).
const RESYNC: Duration = Duration::from_secs(300);
/// Kinds that have a quota name of their own beside `count/<resource>`.
const COUNTED_BY_NAME: [(&str, &str); 4] = [
    ("configmaps", "configmaps"),
    ("secrets", "secrets"),
    ("replicationcontrollers", "replicationcontrollers"),
    ("resourcequotas", "resourcequotas"),
];

struct Controller {
    client: Client,
    quotas: Informer<ResourceQuota>,
    pods: Informer<Pod>,
    services: Informer<Service>,
    claims: Informer<PersistentVolumeClaim>,
}

/// Run the controller until shutdown.
pub async fn run(context: Context) {
    let controller = Controller {
        client: context.client.clone(),
        quotas: context.informers.get(),
        pods: context.informers.get(),
        services: context.informers.get(),
        claims: context.informers.get(),
    };
    controller.quotas.synced().await;
    controller.pods.synced().await;
    controller.services.synced().await;
    controller.claims.synced().await;
    let queue = WorkQueue::new();
    controller.watch_limits(&queue);
    controller.watch_usage(&queue);
    let workers = context.config.concurrent_resource_quota_syncs;
    let reconcile = |key| controller.reconcile(key);
    controller::run(
        "resourcequota-controller",
        queue,
        workers,
        reconcile,
        context.shutdown.clone(),
    )
    .await;
}

impl Controller {
    /// Queue quotas whose limits are new. That admission has charged one is no reason to count again: what it was charged
    /// for may not be stored yet.
    fn watch_limits(&self, queue: &WorkQueue<ObjectKey>) {
        let queue = queue.clone();
        self.quotas.on_change(move |change| {
            let limits = |quota: &ResourceQuota| quota.spec.as_ref().and_then(|s| s.hard.clone());
            let counts = match &change {
                Change::Added(_) => true,
                Change::Updated { old, new } => limits(old) != limits(new),
                Change::Deleted(_) => false,
            };
            if counts {
                queue.add(ObjectKey::of(&**change.object()));
            }
        });
    }

    /// Queue the quotas of a namespace when something there released resources.
    fn watch_usage(&self, queue: &WorkQueue<ObjectKey>) {
        let notify =
            |queue: &WorkQueue<ObjectKey>, quotas: &Informer<ResourceQuota>, namespace: &str| {
                quotas
                    .list_namespace(namespace)
                    .iter()
                    .for_each(|quota| queue.add(ObjectKey::of(&**quota)));
            };
        let (feed, quotas) = (queue.clone(), self.quotas.clone());
        self.pods.on_change(move |change| {
            let released = match &change {
                Change::Deleted(_) => true,
                Change::Updated { old, new } => {
                    (!pods::is_terminated(old) && pods::is_terminated(new)) || old.spec != new.spec
                }
                Change::Added(_) => false,
            };
            if released {
                notify(&feed, &quotas, namespace(&change.object().metadata));
            }
        });
        let (feed, quotas) = (queue.clone(), self.quotas.clone());
        self.services.on_change(move |change| {
            if !matches!(change, Change::Added(_)) {
                notify(&feed, &quotas, namespace(&change.object().metadata));
            }
        });
        let (feed, quotas) = (queue.clone(), self.quotas.clone());
        self.claims.on_change(move |change| {
            if !matches!(change, Change::Added(_)) {
                notify(&feed, &quotas, namespace(&change.object().metadata));
            }
        });
    }

    async fn reconcile(&self, key: ObjectKey) -> anyhow::Result<Action> {
        let Some(quota) = self.quotas.get_key(&key) else {
            return Ok(Action::Await);
        };
        let hard = quota
            .spec
            .as_ref()
            .and_then(|spec| spec.hard.clone())
            .unwrap_or_default();
        let used = self.used(&quota, &hard).await?;
        let text =
            |(name, quantity): (&String, &Quantity)| (name.clone(), Text(quantity.to_string()));
        let fresh = ResourceQuotaStatus {
            hard: Some(hard.clone()),
            used: Some(used.iter().map(text).collect()),
        };
        if !is_same(quota.status.as_ref(), &fresh) {
            let mut updated = (*quota).clone();
            updated.status = Some(fresh);
            let api = Api::<ResourceQuota>::namespaced(self.client.clone(), &key.namespace);
            match api
                .replace_status(&key.name, &PostParams::default(), &updated)
                .await
            {
                Err(error) if is_not_found(&error) => return Ok(Action::Await),
                result => drop(result?),
            }
        }
        Ok(Action::Requeue(RESYNC))
    }

    async fn used(
        &self,
        quota: &ResourceQuota,
        hard: &BTreeMap<String, Text>,
    ) -> anyhow::Result<BTreeMap<String, Quantity>> {
        let namespace = namespace(&quota.metadata);
        let mut usage = Usage::default();
        for pod in self.pods.list_namespace(namespace) {
            if usage::matches_scopes(quota, &pod) {
                usage.add_pod(&pod);
            }
        }
        if !usage::has_scopes(quota) {
            self.services
                .list_namespace(namespace)
                .iter()
                .for_each(|service| usage.add_service(service));
            self.claims
                .list_namespace(namespace)
                .iter()
                .for_each(|claim| usage.add_claim(claim));
            for (resource, count) in self.counts(namespace, hard).await? {
                usage.set_count(&resource, count);
            }
        }
        Ok(hard
            .keys()
            .map(|name| (name.clone(), usage.of(name)))
            .collect())
    }

    /// Numbers of objects of kinds that nobody here follows, by the names that the quota uses.
    async fn counts(
        &self,
        namespace: &str,
        hard: &BTreeMap<String, Text>,
    ) -> anyhow::Result<Vec<(String, usize)>> {
        let followed = ["pods", "services", "persistentvolumeclaims"];
        let mut wanted: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for name in hard.keys() {
            let by_name = COUNTED_BY_NAME
                .iter()
                .find(|(known, _)| known == name)
                .map(|(_, resource)| *resource);
            if let Some(resource) = by_name.or_else(|| name.strip_prefix("count/"))
                && !followed.contains(&resource)
            {
                wanted.entry(resource).or_default().insert(name);
            }
        }
        let mut counts = Vec::new();
        if wanted.is_empty() {
            return Ok(counts);
        }
        for resource in discovery::discover(&self.client).await?.resources {
            let (plural, group) = (&resource.api.plural, &resource.api.group);
            let full = if group.is_empty() {
                plural.clone()
            } else {
                format!("{plural}.{group}")
            };
            let Some(names) = wanted.get(full.as_str()).filter(|_| resource.namespaced) else {
                continue;
            };
            let api = Api::<PartialObjectMeta<DynamicObject>>::namespaced_with(
                self.client.clone(),
                namespace,
                &resource.api,
            );
            let count = match api.list(&ListParams::default()).await {
                Err(error) if status_code(&error) == Some(404) => 0,
                result => result?.items.len(),
            };
            counts.extend(names.iter().map(|name| ((*name).to_owned(), count)));
        }
        Ok(counts)
    }
}

/// Whether the status says the same, however its quantities are written.
fn is_same(current: Option<&ResourceQuotaStatus>, fresh: &ResourceQuotaStatus) -> bool {
    let parse = |list: &Option<BTreeMap<String, Text>>| -> BTreeMap<String, Option<Quantity>> {
        let list = list.iter().flatten();
        list.map(|(name, text)| (name.clone(), text.0.parse().ok()))
            .collect()
    };
    current.is_some_and(|current| {
        parse(&current.hard) == parse(&fresh.hard) && parse(&current.used) == parse(&fresh.used)
    })
}

#[cfg(test)]
mod tests;
