//! Who this server is among those of the cluster: a lease in `kube-system` says so, and expired ones are cleared away.

use std::sync::Arc;
use std::time::Duration;

use fluyt_api::resources::{self, Resource};
use fluyt_api::{Error, meta};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::Server;
use crate::features::Feature;
use crate::loopback::SERVER;
use crate::registry::{Change, DeleteOptions, Location};

pub const NAMESPACE: &str = "kube-system";
pub const LABEL: &str = "apiserver.kubernetes.io/identity";
pub const COMPONENT: &str = "kube-apiserver";

/// Where others reach the server.
const PEER_ADDRESS: &str = "kubernetes.io/peer-advertise-address";

/// How long a lease is good for, in seconds.
const DURATION: u64 = 3600;

/// How often it is renewed where there may be other servers. Alone, one in three chances will do.
const RENEWAL: Duration = Duration::from_secs(10);
const RENEWAL_ALONE: Duration = Duration::from_secs(DURATION / 3);

/// How often expired leases are looked for.
const COLLECTION: Duration = Duration::from_secs(3600);

/// `apiserver-` and a digest of the host's name.
#[must_use]
pub fn name(host: &str) -> String {
    let mut hasher = Sha256::new();
    for part in [host, COMPONENT] {
        hasher.update(u16::try_from(part.len()).unwrap_or(u16::MAX).to_be_bytes());
        hasher.update(part);
    }
    format!("apiserver-{}", base32(&hasher.finalize()[..16]))
}

/// The name of the machine.
#[must_use]
pub fn host() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    host.trim().to_owned()
}

/// RFC 4648, in lower case and without padding.
fn base32(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut text = String::new();
    for chunk in bytes.chunks(5) {
        let mut block = [0_u8; 8];
        block[3..3 + chunk.len()].copy_from_slice(chunk);
        let bits = u64::from_be_bytes(block);
        for i in 0..(chunk.len() * 8).div_ceil(5) {
            let index = (bits >> (35 - 5 * i)) & 31;
            text.push(char::from(
                ALPHABET[usize::try_from(index).unwrap_or_default()],
            ));
        }
    }
    text
}

fn leases() -> Result<&'static Resource, Error> {
    resources::find("coordination.k8s.io", "v1", "leases").ok_or_else(Error::no_route)
}

/// Keeps this server's lease, and clears expired ones away, until shutdown. Others are told by its deletion that it is gone.
pub async fn run(server: Arc<Server>) {
    let _held = server.drain.hold().filter(|_| server.config.shares_store);
    let name = server.config.server_id();
    let holder = format!("{name}_{}", uuid::Uuid::new_v4());
    let renewal = if server.config.shares_store {
        RENEWAL
    } else {
        RENEWAL_ALONE
    };
    let mut renew = tokio::time::interval(renewal);
    let mut collect = tokio::time::interval(COLLECTION);
    loop {
        let done = tokio::select! {
            _ = renew.tick() => keep(&server, &name, &holder).await,
            _ = collect.tick() => clear(&server).await,
            () = server.shutdown.cancelled() => break,
        };
        if let Err(error) = done {
            tracing::warn!(%error, "cannot keep the leases of API servers");
        }
    }
    if server.config.shares_store
        && let Err(error) = remove(&server, &name, DeleteOptions::default()).await
    {
        tracing::warn!(%error, "cannot delete the lease of this server");
    }
}

/// Makes or renews this server's lease.
async fn keep(server: &Arc<Server>, name: &str, holder: &str) -> Result<(), Error> {
    let host = &server.config.host;
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ");
    let mut lease = json!({
        "metadata": {
            "name": name, "namespace": NAMESPACE,
            "labels": {LABEL: COMPONENT, "kubernetes.io/hostname": host},
        },
        "spec": {"holderIdentity": holder, "leaseDurationSeconds": DURATION, "renewTime": now.to_string()},
    });
    let features = server.config.features;
    if features.has(Feature::UnknownVersionInteroperabilityProxy) {
        let address = server.config.peer_address();
        lease["metadata"]["annotations"] = json!({PEER_ADDRESS: address});
    }
    let (group, plural) = ("coordination.k8s.io", "leases");
    let creating = SERVER.create(server, group, plural, NAMESPACE, lease.clone());
    if creating.await? {
        return Ok(());
    }
    let renew: Change<'_> = Box::new(|current: &Value| {
        let mut renewed = current.clone();
        renewed["spec"] = lease["spec"].clone();
        for part in ["labels", "annotations"] {
            for (key, value) in lease["metadata"][part].as_object().into_iter().flatten() {
                renewed["metadata"][part][key] = value.clone();
            }
        }
        Ok(renewed)
    });
    SERVER.amend(server, at(name)?, renew).await
}

fn at(name: &str) -> Result<Location<'_>, Error> {
    Ok(Location {
        resource: leases()?,
        namespace: NAMESPACE,
        name,
        subresource: "",
    })
}

/// Deletes a lease, unless another server was faster, or it is not as `options` say any more.
async fn remove(server: &Arc<Server>, name: &str, options: DeleteOptions) -> Result<(), Error> {
    match SERVER.delete(server, at(name)?, &options).await {
        Err(error) if !matches!(error.code, 404 | 409) => Err(error),
        _ => Ok(()),
    }
}

/// Deletes leases of servers that are gone.
async fn clear(server: &Arc<Server>) -> Result<(), Error> {
    let resource = leases()?;
    let entries = server.caches.of(resource).snapshot().objects.entries;
    for entry in entries.values().filter(|e| e.namespace() == NAMESPACE) {
        let lease = entry.object();
        if lease["metadata"]["labels"][LABEL] != COMPONENT || !is_expired(&lease) {
            continue;
        }
        let options = DeleteOptions {
            resource_version: Some(meta::resource_version(&lease).to_owned()),
            ..DeleteOptions::default()
        };
        remove(server, entry.name(), options).await?;
    }
    Ok(())
}

fn is_expired(lease: &Value) -> bool {
    let spec = &lease["spec"];
    let renewed = spec["renewTime"]
        .as_str()
        .and_then(|t| t.parse::<jiff::Timestamp>().ok());
    match (renewed, spec["leaseDurationSeconds"].as_i64()) {
        (Some(renewed), Some(seconds)) => {
            renewed + jiff::SignedDuration::from_secs(seconds) < jiff::Timestamp::now()
        }
        // Nobody ever wrote such a lease: it says nothing.
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_upstream() {
        assert_eq!(name("vm"), "apiserver-wlv32tlttr4jl3gtroqexyxapa");
    }

    #[test]
    fn leases_expire() {
        let lease = |time: &str| json!({"spec": {"renewTime": time, "leaseDurationSeconds": 3600}});
        assert!(is_expired(&lease("2020-01-02T03:04:05.000000Z")));
        assert!(!is_expired(&lease("2999-01-02T03:04:05.000000Z")));
        assert!(is_expired(&json!({})));
    }
}
