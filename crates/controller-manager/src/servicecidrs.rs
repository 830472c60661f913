//! service-cidr-controller: says that ServiceCIDRs are ready, and keeps one that is deleted as long as addresses of services
//! are in no other.

use std::{net::IpAddr, sync::Arc};

use fluyt_client::{
    Action, EventType, Informer, ObjectKey, Recorder, WorkQueue, controller, is_not_found,
};
use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::networking::v1::{IPAddress, ServiceCIDR},
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

use crate::{
    Context,
    common::{enqueue_mapped, name, now, to_wait},
};

const NAME: &str = "service-cidr-controller";
const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";

/// Who looks after an address, and the API server's allocator by its name there.
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const ALLOCATOR: &str = "ipallocator.k8s.io";

/// API servers that have not heard yet of a deletion may go on allocating for as long.
const GRACE: SignedDuration = SignedDuration::from_secs(10);

const WORKERS: usize = 5;

/// Run the controller until shutdown.
pub async fn run(context: Context) {
    let cidrs = context.informers.get::<ServiceCIDR>();
    let addresses = context.informers.get::<IPAddress>();
    cidrs.synced().await;
    addresses.synced().await;
    let queue = WorkQueue::new();
    let known = cidrs.clone();
    enqueue_mapped(&cidrs, &queue, move |cidr| {
        // One that comes may take over what another one waits for.
        let all = known.list();
        let others = all.iter().filter(|other| overlap(cidr, other));
        let mut keys = vec![ObjectKey::of(cidr)];
        keys.extend(others.map(|other| ObjectKey::of(&**other)));
        keys
    });
    let known = cidrs.clone();
    enqueue_mapped(&addresses, &queue, move |address| {
        let Some(address) = managed(address) else {
            return Vec::new();
        };
        // Only one that is to go is interested in addresses.
        let all = known.list();
        let containing = all
            .iter()
            .filter(|cidr| cidr.metadata.deletion_timestamp.is_some() && contains(cidr, address));
        containing.map(|cidr| ObjectKey::of(&**cidr)).collect()
    });
    let recorder = context.recorder(NAME);
    let reconcile = |key| reconcile(key, &cidrs, &addresses, &context.client, &recorder);
    let shutdown = context.shutdown.clone();
    controller::run(NAME, queue, WORKERS, reconcile, shutdown).await;
}

async fn reconcile(
    key: ObjectKey,
    cidrs: &Informer<ServiceCIDR>,
    addresses: &Informer<IPAddress>,
    client: &Client,
    recorder: &Recorder,
) -> anyhow::Result<Action> {
    let Some(cidr) = cidrs.get_key(&key) else {
        return Ok(Action::Await);
    };
    let api = Api::<ServiceCIDR>::all(client.clone());
    let Some(deleted) = &cidr.metadata.deletion_timestamp else {
        set_finalizer(&api, &cidr, true).await?;
        let ready = condition("True", "", "Kubernetes Service CIDR is ready");
        if let Err(error) = set_condition(&api, &cidr, &ready).await {
            recorder.event(
                &cidr.object_ref(&()),
                EventType::Warning,
                "KubernetesServiceCIDRError",
                "The ServiceCIDR Status can not be set to Ready=True",
            );
            return Err(error.into());
        }
        return Ok(Action::Await);
    };
    if !may_go(&cidr, &cidrs.list(), &addresses.list()) {
        let waiting = condition(
            "False",
            "Terminating",
            "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR",
        );
        set_condition(&api, &cidr, &waiting).await?;
        return Ok(Action::Await);
    }
    let left = GRACE - Timestamp::now().duration_since(deleted.0);
    if left.is_positive() {
        return Ok(Action::Requeue(to_wait(left)));
    }
    set_finalizer(&api, &cidr, false).await?;
    Ok(Action::Await)
}

fn networks(cidr: &ServiceCIDR) -> impl Iterator<Item = IpNet> {
    let all = cidr
        .spec
        .iter()
        .flat_map(|spec| spec.cidrs.iter().flatten());
    all.filter_map(|text| text.parse().ok())
}

fn overlap(cidr: &ServiceCIDR, other: &ServiceCIDR) -> bool {
    networks(cidr).any(|a| networks(other).any(|b| a.contains(&b) || b.contains(&a)))
}

/// Whether a service could have the address from this range: the ends of it are nobody's.
fn contains(cidr: &ServiceCIDR, address: IpAddr) -> bool {
    networks(cidr).any(|net| {
        net.contains(&address)
            && net.network() != address
            && (address.is_ipv6() || net.broadcast() != address)
    })
}

/// The address of an object that the API server has made for a service.
fn managed(address: &IPAddress) -> Option<IpAddr> {
    let labels = address.metadata.labels.as_ref()?;
    let is_managed = labels.get(MANAGED_BY).is_some_and(|by| by == ALLOCATOR);
    let name = Some(name(&address.metadata)).filter(|_| is_managed)?;
    name.parse().ok()
}

/// Whether nothing is lost with a range: others contain it, or all addresses in use.
fn may_go(cidr: &ServiceCIDR, all: &[Arc<ServiceCIDR>], addresses: &[Arc<IPAddress>]) -> bool {
    let all = all.iter().map(|other| &**other);
    let is_other = |other: &&ServiceCIDR| name(&other.metadata) != name(&cidr.metadata);
    let others: Vec<&ServiceCIDR> = all.filter(is_other).collect();
    let is_covered = |net: IpNet| {
        let mut others = others.iter();
        others.any(|other| networks(other).any(|o| o.contains(&net)))
    };
    if networks(cidr).all(is_covered) {
        return true;
    }
    let mut in_use = addresses.iter().filter_map(|address| managed(address));
    !in_use.any(|address| {
        contains(cidr, address) && !others.iter().any(|other| contains(other, address))
    })
}

fn condition(status: &str, reason: &str, message: &str) -> Condition {
    Condition {
        type_: "Ready".to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: now(),
        observed_generation: None,
    }
}

async fn set_condition(
    api: &Api<ServiceCIDR>,
    cidr: &ServiceCIDR,
    condition: &Condition,
) -> kube::Result<()> {
    let status = cidr.status.as_ref();
    let mut present = status.iter().flat_map(|s| s.conditions.iter().flatten());
    let is_said = present.any(|present| {
        present.type_ == condition.type_
            && present.status == condition.status
            && present.reason == condition.reason
            && present.message == condition.message
    });
    if is_said {
        return Ok(());
    }
    let applied = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": name(&cidr.metadata)}, "status": {"conditions": [condition]}});
    let params = PatchParams::apply(NAME).force();
    api.patch_status(name(&cidr.metadata), &params, &Patch::Apply(&applied))
        .await
        .map(drop)
}

async fn set_finalizer(
    api: &Api<ServiceCIDR>,
    cidr: &ServiceCIDR,
    wanted: bool,
) -> kube::Result<()> {
    let mut changed = cidr.clone();
    let finalizers = changed.metadata.finalizers.get_or_insert_default();
    if finalizers.iter().any(|f| f == FINALIZER) == wanted {
        return Ok(());
    }
    if wanted {
        finalizers.push(FINALIZER.to_owned());
    } else {
        finalizers.retain(|f| f != FINALIZER);
    }
    let name = name(&cidr.metadata);
    match api.replace(name, &PostParams::default(), &changed).await {
        Err(error) if is_not_found(&error) => Ok(()),
        result => result.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::networking::v1::{ServiceCIDRSpec, ServiceCIDRStatus};
    use kube::api::DeleteParams;

    use super::*;
    use crate::common::test_support::{context, labelled, named};

    fn cidr(name: &str, ranges: &[&str]) -> ServiceCIDR {
        ServiceCIDR {
            metadata: named("", name),
            spec: Some(ServiceCIDRSpec {
                cidrs: Some(ranges.iter().map(|range| (*range).to_owned()).collect()),
            }),
            status: None,
        }
    }

    fn address(name: &str, manager: &str) -> IPAddress {
        IPAddress {
            metadata: labelled("", name, &format!("{MANAGED_BY}={manager}")),
            ..IPAddress::default()
        }
    }

    fn ready(cidr: &ServiceCIDR) -> Option<&Condition> {
        let status: &ServiceCIDRStatus = cidr.status.as_ref()?;
        status
            .conditions
            .as_ref()?
            .iter()
            .find(|c| c.type_ == "Ready")
    }

    #[test]
    fn a_range_stays_for_addresses_that_are_in_no_other() {
        let own = cidr("own", &["10.1.0.0/24", "fd00:1::/112"]);
        let may_go = |others: &[ServiceCIDR], addresses: &[IPAddress]| {
            let mut all: Vec<_> = others.iter().cloned().map(Arc::new).collect();
            all.push(Arc::new(own.clone()));
            let addresses: Vec<_> = addresses.iter().cloned().map(Arc::new).collect();
            may_go(&own, &all, &addresses)
        };
        let used = [address("10.1.0.5", ALLOCATOR)];
        assert!(may_go(&[], &[]));
        assert!(!may_go(&[], &used));
        assert!(!may_go(&[], &[address("fd00:1::5", ALLOCATOR)]));
        // Neither somebody else's address, nor one elsewhere, nor the ends of the range.
        for free in ["10.2.0.5", "10.1.0.0", "10.1.0.255"] {
            assert!(may_go(&[], &[address(free, ALLOCATOR)]), "{free}");
        }
        assert!(may_go(&[], &[address("10.1.0.5", "somebody")]));
        // Another one has the address, or the whole range.
        assert!(may_go(&[cidr("small", &["10.1.0.0/29"])], &used));
        assert!(!may_go(&[cidr("edge", &["10.1.0.5/32"])], &used));
        assert!(may_go(
            &[cidr("large", &["10.0.0.0/8"]), cidr("six", &["fd00::/16"])],
            &used
        ));
    }

    #[tokio::test]
    async fn ranges_become_ready_and_wait_for_their_addresses() {
        let (fake, context) = context();
        fake.insert(cidr("a", &["10.1.0.0/24"]));
        let used = fake.insert(address("10.1.0.5", ALLOCATOR));
        let client = context.client.clone();
        tokio::spawn(run(context));
        let get = |fake: &fluyt_client::fake::FakeApi| fake.get::<ServiceCIDR>("", "a");
        fake.until("ready and protected", |fake| {
            get(fake).is_some_and(|cidr| {
                ready(&cidr).is_some_and(|c| {
                    c.status == "True" && c.message == "Kubernetes Service CIDR is ready"
                }) && cidr.metadata.finalizers == Some(vec![FINALIZER.to_owned()])
            })
        })
        .await;
        // It was deleted a while ago, so that API servers have heard of it.
        let api = Api::<ServiceCIDR>::all(client);
        api.delete("a", &DeleteParams::default()).await.unwrap();
        let mut deleted = get(&fake).unwrap();
        let long_ago = Timestamp::now() - SignedDuration::from_secs(60);
        deleted.metadata.deletion_timestamp = Some(long_ago.into());
        fake.update(&deleted);
        fake.until("waiting", |fake| {
            get(fake).is_some_and(|cidr| {
                ready(&cidr).is_some_and(|c| c.status == "False" && c.reason == "Terminating")
            })
        })
        .await;
        fake.remove(&used);
        fake.until("gone", |fake| get(fake).is_none()).await;
    }
}
