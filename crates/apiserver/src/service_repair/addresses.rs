//! Every address of a service has its object, and every object of the allocator has its service.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use fluyt_api::resources::Resource;
use fluyt_api::{Error, Reason, meta};
use futures::{StreamExt as _, stream};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::Server;
use crate::event_recorder::{self, Warning};
use crate::loopback::SERVER;
use crate::registry::service::{
    ALLOCATOR, FAMILY, MANAGED_BY, address_of, addresses, belongs_to, cluster_ips, family,
    is_in_some_range, is_of_a_service, parse,
};
use crate::registry::{DeleteOptions, Location};

const CONTROLLER: &str = "ipallocator-repair-controller";

/// How many services are looked at at a time: the store writes what waits in one go.
const CONCURRENCY: usize = 32;

/// Upstream's servers write an address before its service, which they do within this time.
const GRACE: SignedDuration = SignedDuration::from_secs(60);
/// And they take it back soon if the service was there already.
const SHORT_GRACE: SignedDuration = SignedDuration::from_secs(5);

/// Looks at all services and addresses; when to look again at one that is too young to judge. One that cannot be repaired
/// does not keep the others from it.
///
/// # Errors
/// When there are no such resources.
pub(super) async fn all(server: &Arc<Server>) -> Result<Option<Duration>, Error> {
    stream::iter(keys(server, super::services()?))
        .for_each_concurrent(CONCURRENCY, |key| async move {
            if let Err(error) = service(server, &key).await {
                tracing::warn!(%error, service = &*key, "cannot repair an address");
            }
        })
        .await;
    let waits = stream::iter(keys(server, addresses()?))
        .map(|name| async move {
            address(server, &name).await.unwrap_or_else(|error| {
                tracing::warn!(%error, address = &*name, "cannot clean up an address");
                None
            })
        })
        .buffer_unordered(CONCURRENCY)
        .filter_map(std::future::ready);
    Ok(waits.collect::<Vec<_>>().await.into_iter().min())
}

/// What the objects of a resource are called in the cache.
fn keys(server: &Server, resource: &Resource) -> Vec<Arc<str>> {
    let entries = server.caches.of(resource).snapshot().objects.entries;
    entries.keys().cloned().collect()
}

fn find_service(server: &Server, key: &str) -> Result<Option<Value>, Error> {
    let entry = server.caches.of(super::services()?).get(key);
    Ok(entry.map(|entry| entry.object()))
}

fn location(name: &str) -> Result<Location<'_>, Error> {
    Ok(Location {
        resource: addresses()?,
        namespace: "",
        name,
        subresource: "",
    })
}

async fn warn(server: &Arc<Server>, object: &Value, reason: &'static str, note: String) {
    let action = match (reason, object["kind"].as_str()) {
        ("ClusterIPNotValid", _) => "ClusterIPValidation",
        (_, Some("Service")) => "ClusterIPAllocation",
        _ => "IPAddressAllocation",
    };
    let warning = Warning {
        controller: CONTROLLER,
        reason,
        action,
        note,
    };
    event_recorder::warn(server, object, warning).await;
}

/// Looks at the addresses of a service, if it is there.
///
/// # Errors
/// When the store fails.
pub(super) async fn service(server: &Arc<Server>, key: &str) -> Result<(), Error> {
    let Some(service) = find_service(server, key)? else {
        return Ok(());
    };
    let spec = &service["spec"];
    if spec["type"] == "ExternalName"
        || matches!(spec["clusterIP"].as_str(), None | Some("" | "None"))
    {
        return Ok(());
    }
    for text in spec["clusterIPs"].as_array().into_iter().flatten() {
        match text.as_str().and_then(parse) {
            Some(address) => one_of(server, &service, address).await?,
            None => {
                let note = "Cluster IP <nil> is not a valid IP; please recreate Service".into();
                warn(server, &service, "ClusterIPNotValid", note).await;
            }
        }
    }
    Ok(())
}

/// What is to be done about the object of an address that a service has.
#[derive(Debug, PartialEq, Eq)]
enum Judgement {
    Right,
    Missing,
    WrongReference,
    /// Another service has it, too.
    Duplicate,
    WrongLabels,
}

fn judge(
    service: &Value,
    address: IpAddr,
    object: Option<&Value>,
    find: impl FnOnce(&str) -> Result<Option<Value>, Error>,
) -> Result<Judgement, Error> {
    let Some(object) = object else {
        return Ok(Judgement::Missing);
    };
    if !is_of_a_service(object) {
        return Ok(Judgement::WrongReference);
    }
    if !belongs_to(object, meta::namespace(service), meta::name(service)) {
        return Ok(match find(&parent_key(object))? {
            None => Judgement::WrongReference,
            Some(other) if cluster_ips(&other).contains(&address) => Judgement::Duplicate,
            // It is not the other's, whose loss of it is to be seen when the object is looked at.
            Some(_) => Judgement::Right,
        });
    }
    let label = |name: &str| object["metadata"]["labels"][name].as_str();
    let are_ours = label(FAMILY) == Some(family(address)) && label(MANAGED_BY) == Some(ALLOCATOR);
    Ok(if are_ours {
        Judgement::Right
    } else {
        Judgement::WrongLabels
    })
}

fn parent_key(object: &Value) -> String {
    let parent = &object["spec"]["parentRef"];
    let text = |field: &str| parent[field].as_str().unwrap_or_default();
    format!("{}/{}", text("namespace"), text("name"))
}

async fn one_of(server: &Arc<Server>, service: &Value, address: IpAddr) -> Result<(), Error> {
    let of = family(address);
    if !is_in_some_range(&server.caches, address)? {
        let note = format!(
            "Cluster IP [{of}]: {address} is not within any configured Service CIDR; please recreate service"
        );
        warn(server, service, "ClusterIPOutOfRange", note).await;
        return Ok(());
    }
    let entry = server.caches.of(addresses()?).get(&address.to_string());
    let object = entry.map(|entry| entry.object());
    let judgement = judge(service, address, object.as_ref(), |key| {
        find_service(server, key)
    })?;
    let (namespace, name) = (meta::namespace(service), meta::name(service));
    let (reason, note) = match judgement {
        Judgement::Right => return Ok(()),
        Judgement::Missing => (
            "ClusterIPNotAllocated",
            format!("Cluster IP [{of}]: {address} is not allocated; repairing"),
        ),
        Judgement::Duplicate => {
            let note = format!(
                "Cluster IP [{of}]:{address} was assigned to multiple services; please recreate service"
            );
            warn(server, service, "ClusterIPAlreadyAllocated", note).await;
            return Ok(());
        }
        Judgement::WrongReference | Judgement::WrongLabels => (
            "ClusterIPNotAllocated",
            format!(
                "the ClusterIP [{of}]: {address} for Service {namespace}/{name} has a wrong reference; repairing"
            ),
        ),
    };
    if judgement != Judgement::WrongLabels {
        warn(server, service, reason, note).await;
    }
    if let Some(object) = &object {
        delete(server, object).await?;
    }
    let resource = addresses()?;
    let object = address_of(address, namespace, name);
    let created = SERVER
        .create(server, resource.group, resource.plural, "", object)
        .await;
    created.map(drop)
}

/// Deletes this very object.
async fn delete(server: &Arc<Server>, object: &Value) -> Result<(), Error> {
    let options = DeleteOptions {
        uid: Some(meta::uid(object).to_owned()),
        ..DeleteOptions::default()
    };
    let at = location(meta::name(object))?;
    match SERVER.delete(server, at, &options).await {
        Err(error) if matches!(error.reason, Reason::NotFound | Reason::Conflict) => Ok(()),
        done => done.map(drop),
    }
}

/// Looks whether an address of the allocator is a service's; when to look again if that is too early to say.
///
/// # Errors
/// When the store fails.
pub(super) async fn address(server: &Arc<Server>, name: &str) -> Result<Option<Duration>, Error> {
    let Some(entry) = server.caches.of(addresses()?).get(name) else {
        return Ok(None);
    };
    if entry.labels.get(MANAGED_BY) != Some(ALLOCATOR) {
        return Ok(None);
    }
    let object = entry.object();
    let service = find_service(server, &parent_key(&object))?;
    match orphan(&object, service.as_ref(), Timestamp::now()) {
        Orphan::No => Ok(None),
        Orphan::Young(wait) => Ok(Some(Duration::try_from(wait).unwrap_or_default())),
        Orphan::Yes(reason, note) => {
            warn(server, &object, reason, note).await;
            delete(server, &object).await?;
            Ok(None)
        }
    }
}

/// Whether nobody has an address.
#[derive(Debug, PartialEq, Eq)]
enum Orphan {
    No,
    /// It is to be seen after this time.
    Young(SignedDuration),
    /// With what is said of it.
    Yes(&'static str, String),
}

fn created(object: &Value) -> Timestamp {
    let text = object["metadata"]["creationTimestamp"].as_str();
    let time = text.and_then(|text| text.parse().ok());
    time.unwrap_or(Timestamp::UNIX_EPOCH)
}

/// `service` is the one that the address says is its own.
fn orphan(object: &Value, service: Option<&Value>, now: Timestamp) -> Orphan {
    const NOT_ALLOCATED: &str = "IPAddressNotAllocated";
    let (name, parent) = (meta::name(object), &object["spec"]["parentRef"]);
    let text = |field: &str| parent[field].as_str().unwrap_or_default();
    let of = format!("{}/{}", text("namespace"), text("name"));
    if !is_of_a_service(object) {
        let shown = format!(
            "&ParentReference{{Group:{},Resource:{},Namespace:{},Name:{},}}",
            text("group"),
            text("resource"),
            text("namespace"),
            text("name")
        );
        let note = format!(
            "IPAddress {name} appears to have been modified, not referencing a Service {shown}: cleaning up"
        );
        return Orphan::Yes(NOT_ALLOCATED, note);
    }
    let age = now.duration_since(created(object));
    let Some(service) = service else {
        if age <= GRACE {
            return Orphan::Young(GRACE - age);
        }
        let note =
            format!("IPAddress: {name} for Service {of} appears to have leaked: cleaning up");
        return Orphan::Yes(NOT_ALLOCATED, note);
    };
    if parse(name).is_some_and(|address| cluster_ips(service).contains(&address)) {
        return Orphan::No;
    }
    if service["spec"]["type"] == "ExternalName" && age < GRACE {
        return Orphan::Young(GRACE - age);
    }
    if created(object) > created(service) && age < SHORT_GRACE {
        return Orphan::Young(SHORT_GRACE - age);
    }
    let note = format!("IPAddress: {name} for Service {of} has a wrong reference; cleaning up");
    Orphan::Yes("IPAddressWrongReference", note)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(name: &str, address: &str) -> Value {
        json!({"metadata": {"namespace": "n", "name": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"type": "ClusterIP", "clusterIP": address, "clusterIPs": [address]}})
    }

    fn object(of: &str) -> Value {
        let mut object = address_of("10.0.0.1".parse().unwrap(), "n", of);
        object["metadata"]["creationTimestamp"] = "2026-01-01T00:01:00Z".into();
        object
    }

    fn judged(object: Option<&Value>, other: Option<Value>) -> Judgement {
        let own = service("a", "10.0.0.1");
        let address = "10.0.0.1".parse().unwrap();
        judge(&own, address, object, |key| {
            assert_eq!(key, "n/b");
            Ok(other)
        })
        .unwrap()
    }

    #[test]
    fn a_service_has_the_object_of_its_address() {
        assert_eq!(judged(Some(&object("a")), None), Judgement::Right);
        assert_eq!(judged(None, None), Judgement::Missing);
        assert_eq!(judged(Some(&object("b")), None), Judgement::WrongReference);
        let other = |address: &str| Some(service("b", address));
        let of_other = object("b");
        assert_eq!(
            judged(Some(&of_other), other("10.0.0.1")),
            Judgement::Duplicate
        );
        assert_eq!(judged(Some(&of_other), other("10.0.0.2")), Judgement::Right);
        let mut foreign = object("a");
        foreign["spec"]["parentRef"]["resource"] = "gateways".into();
        assert_eq!(judged(Some(&foreign), None), Judgement::WrongReference);
        let mut unlabelled = object("a");
        unlabelled["metadata"]["labels"][FAMILY] = "IPv6".into();
        assert_eq!(judged(Some(&unlabelled), None), Judgement::WrongLabels);
    }

    #[test]
    fn an_address_without_its_service_goes_after_a_while() {
        let at = |time: &str| time.parse::<Timestamp>().unwrap();
        let (soon, late) = (at("2026-01-01T00:01:03Z"), at("2026-01-01T00:03:00Z"));
        let address = object("a");
        let seconds = SignedDuration::from_secs;
        assert_eq!(orphan(&address, None, soon), Orphan::Young(seconds(57)));
        let reason = |orphan: Orphan| match orphan {
            Orphan::Yes(reason, _) => reason,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            reason(orphan(&address, None, late)),
            "IPAddressNotAllocated"
        );
        let (right, wrong) = (service("a", "10.0.0.1"), service("a", "10.0.0.2"));
        assert_eq!(orphan(&address, Some(&right), late), Orphan::No);
        assert_eq!(
            orphan(&address, Some(&wrong), soon),
            Orphan::Young(seconds(2))
        );
        assert_eq!(
            reason(orphan(&address, Some(&wrong), late)),
            "IPAddressWrongReference"
        );
        let mut changed = address;
        changed["spec"]["parentRef"]["resource"] = "gateways".into();
        assert_eq!(
            reason(orphan(&changed, None, soon)),
            "IPAddressNotAllocated"
        );
    }
}
