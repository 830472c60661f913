//! Every pod runs as a service account and gets a bound token, unless it opts out.

use async_trait::async_trait;
use fluyt_api::{Error, meta, resources};
use serde_json::{Value, json};

use super::{Attributes, Operation, Plugin};
use crate::cache::Caches;

const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Upstream's lifetime of mounted tokens, in seconds, with the slack it gives clients.
const TOKEN_SECONDS: i64 = 3607;

pub(super) struct ServiceAccount;

#[async_trait]
impl Plugin for ServiceAccount {
    async fn admit(
        &self,
        caches: &Caches,
        attributes: &Attributes<'_>,
        pod: &mut Value,
    ) -> Result<(), Error> {
        if !attributes.is("pods", Operation::Create)
            || meta::annotation(pod, "kubernetes.io/config.mirror").is_some()
        {
            return Ok(());
        }
        if pod["spec"]["serviceAccountName"]
            .as_str()
            .unwrap_or_default()
            .is_empty()
        {
            pod["spec"]["serviceAccountName"] = "default".into();
        }
        pod["spec"]["serviceAccount"] = pod["spec"]["serviceAccountName"].clone();
        let name = pod["spec"]["serviceAccountName"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let account = resources::find("", "v1", "serviceaccounts")
            .and_then(|r| {
                caches
                    .of(r)
                    .get(&format!("{}/{name}", attributes.at.namespace))
            })
            .map(|entry| entry.object());
        let Some(account) = account else {
            let why = format!(
                "error looking up service account {}/{name}: serviceaccount \"{name}\" not found",
                attributes.at.namespace
            );
            return Err(attributes.forbidden(why));
        };
        let mount = pod["spec"]["automountServiceAccountToken"]
            .as_bool()
            .or(account["automountServiceAccountToken"].as_bool())
            .unwrap_or(true);
        if mount {
            mount_token(pod);
        }
        if pod["spec"]["imagePullSecrets"]
            .as_array()
            .is_none_or(Vec::is_empty)
        {
            let secrets = account["imagePullSecrets"].clone();
            if secrets.is_array() {
                pod["spec"]["imagePullSecrets"] = secrets;
            } else if let Some(spec) = pod["spec"].as_object_mut() {
                spec.remove("imagePullSecrets");
            }
        }
        if let Some(spec) = pod["spec"].as_object_mut() {
            spec.retain(|_, v| !v.is_null());
        }
        Ok(())
    }
}

fn mount_token(pod: &mut Value) {
    let volume = format!("kube-api-access-{}", suffix());
    let mut needed = false;
    for list in ["initContainers", "containers"] {
        for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
            let mounts = container["volumeMounts"].as_array();
            if mounts
                .into_iter()
                .flatten()
                .any(|m| m["mountPath"] == MOUNT_PATH)
            {
                continue;
            }
            needed = true;
            let mount = json!({"name": volume, "mountPath": MOUNT_PATH, "readOnly": true});
            match container["volumeMounts"].as_array_mut() {
                Some(mounts) => mounts.push(mount),
                None => container["volumeMounts"] = json!([mount]),
            }
        }
    }
    if !needed {
        return;
    }
    let source = json!({"name": volume, "projected": {"defaultMode": 420, "sources": [
        {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]}});
    match pod["spec"]["volumes"].as_array_mut() {
        Some(volumes) => volumes.push(source),
        None => pod["spec"]["volumes"] = json!([source]),
    }
}

fn suffix() -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    (0..5)
        .map(|_| char::from(ALPHABET[rand::random_range(0..ALPHABET.len())]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_mounted_into_every_container_that_does_not_have_it() {
        let mut pod = json!({"spec": {"containers": [
            {"name": "a"}, {"name": "b", "volumeMounts": [{"name": "x", "mountPath": MOUNT_PATH}]}]}});
        mount_token(&mut pod);
        assert_eq!(
            pod["spec"]["containers"][0]["volumeMounts"][0]["mountPath"],
            MOUNT_PATH
        );
        assert_eq!(
            pod["spec"]["containers"][1]["volumeMounts"]
                .as_array()
                .unwrap()
                .len(),
            1
        );
        assert_eq!(
            pod["spec"]["volumes"][0]["name"],
            pod["spec"]["containers"][0]["volumeMounts"][0]["name"]
        );
    }
}
