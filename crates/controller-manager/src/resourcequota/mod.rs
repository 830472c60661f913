//! resourcequota-controller: keeps `status.used` of ResourceQuotas true. Admission raises it with every object; this
//! controller lowers it when objects go, and corrects it.

mod usage;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use fluyt_api::quantity::Quantity;
use fluyt_client::{
    Action, Change, Informer, ObjectKey, WorkQueue, controller, is_not_found, status_code,
};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, ResourceQuotaStatus, Service},
    apimachinery::pkg::api::resource::Quantity as Text,
};
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use self::usage::Usage;
use crate::{
    Context,
    common::{
        discovery::{self, Resource},
        namespace,
    },
    context::Meta,
};

/// All quotas are calculated anew this often, whatever happens.
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
    queue: WorkQueue<ObjectKey>,
    context: Context,
    /// Resources whose objects some quota counts or has counted, and what ends that they are followed.
    counted: Mutex<BTreeMap<String, CancellationToken>>,
}

/// Run the controller until shutdown.
pub async fn run(context: Context) {
    let controller = Controller {
        client: context.client.clone(),
        quotas: context.informers.get(),
        pods: context.informers.get(),
        services: context.informers.get(),
        claims: context.informers.get(),
        queue: WorkQueue::new(),
        context: context.clone(),
        counted: Mutex::default(),
    };
    controller.quotas.synced().await;
    controller.pods.synced().await;
    controller.services.synced().await;
    controller.claims.synced().await;
    let queue = controller.queue.clone();
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
        let (feed, quotas) = (queue.clone(), self.quotas.clone());
        self.pods.on_change(move |change| {
            let released = match &change {
                Change::Deleted(_) => true,
                // Its status counts, too: it ends, or a resize does.
                Change::Updated { old, new } => {
                    let now = Timestamp::now();
                    old.spec != new.spec || usage::of_pod(old, now) != usage::of_pod(new, now)
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

    /// Follows a resource that a quota counts: when an object goes, those of its namespace are counted again.
    fn follow(&self, resource: &Resource) -> CancellationToken {
        // Only that they are there is of interest.
        let (informer, stop) = self.context.follow(&resource.api, |object| {
            object.metadata.annotations = None;
            object.metadata.labels = None;
            object.metadata.owner_references = None;
            object.metadata.finalizers = None;
        });
        let (feed, quotas) = (self.queue.clone(), self.quotas.clone());
        informer.on_change(move |change| {
            if let Change::Deleted(object) = &change {
                notify(&feed, &quotas, namespace(&object.metadata));
            }
        });
        // What went before it was seen was counted all the same.
        let (queue, quotas) = (self.queue.clone(), self.quotas.clone());
        let stopped = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = informer.synced() => {}
                () = stopped.cancelled() => return,
            }
            for quota in quotas.list() {
                queue.add(ObjectKey::of(&*quota));
            }
        });
        stop
    }

    /// Starts to follow what is counted, and stops what is not served any more.
    fn follow_counted(&self, wanted: &BTreeSet<String>, served: &BTreeMap<String, Resource>) {
        let mut counted = self.counted.lock();
        for name in wanted {
            let resource = served.get(name);
            let resource = resource.filter(|r| r.supports("list") && r.supports("watch"));
            match resource {
                Some(resource) => {
                    let follow = || self.follow(resource);
                    counted.entry(name.clone()).or_insert_with(follow);
                }
                None => {
                    if let Some(stop) = counted.remove(name) {
                        stop.cancel();
                    }
                }
            }
        }
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
        let now = Timestamp::now();
        for pod in self.pods.list_namespace(namespace) {
            if usage::matches_scopes(quota, &pod) {
                usage.add_pod(&pod, now);
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
        let discovered = discovery::discover(&self.client).await?;
        let named = discovered.resources.into_iter().filter_map(|resource| {
            let (plural, group) = (&resource.api.plural, &resource.api.group);
            let full = if group.is_empty() {
                plural.clone()
            } else {
                format!("{plural}.{group}")
            };
            (resource.namespaced && wanted.contains_key(full.as_str())).then_some((full, resource))
        });
        let served: BTreeMap<String, Resource> = named.collect();
        if discovered.failures.is_empty() {
            let wanted = wanted.keys().map(|name| (*name).to_owned()).collect();
            self.follow_counted(&wanted, &served);
        }
        for (full, resource) in &served {
            let Some(names) = wanted.get(full.as_str()) else {
                continue;
            };
            let api = Api::<Meta>::namespaced_with(self.client.clone(), namespace, &resource.api);
            let count = match api.list(&ListParams::default()).await {
                Err(error) if status_code(&error) == Some(404) => 0,
                result => result?.items.len(),
            };
            counts.extend(names.iter().map(|name| ((*name).to_owned(), count)));
        }
        Ok(counts)
    }
}

/// Queues the quotas of a namespace.
fn notify(queue: &WorkQueue<ObjectKey>, quotas: &Informer<ResourceQuota>, namespace: &str) {
    for quota in quotas.list_namespace(namespace) {
        queue.add(ObjectKey::of(&*quota));
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
