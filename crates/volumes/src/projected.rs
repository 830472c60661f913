//! `projected`: several sources in one directory; and what the file-shaped volume types share.

use std::path::Path;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ClusterTrustBundleProjection, KeyToPath, Pod, ProjectedVolumeSource,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::atomic_writer::{self, Payload};
use crate::config_map::file;
use crate::{
    Context, Mounted, VolumeError, config_map, downward_api, fs_group, mount, namespace, secret,
    uid,
};

/// How long a projected token lives when the source doesn't say.
const DEFAULT_TOKEN_SECONDS: i64 = 3600;

pub async fn set_up(
    context: &Context,
    pod: &Pod,
    name: &str,
    source: &ProjectedVolumeSource,
) -> Result<Mounted, VolumeError> {
    let mode = mode(source.default_mode, 0o644);
    let mut files = Payload::new();
    let mut refresh_at: Option<Timestamp> = None;
    for part in source.sources.iter().flatten() {
        if let Some(map) = &part.config_map {
            let optional = map.optional.unwrap_or(false);
            let items = map.items.as_deref();
            files.extend(
                config_map::payload(context, namespace(pod), &map.name, items, optional, mode)
                    .await?,
            );
        } else if let Some(map) = &part.secret {
            let optional = map.optional.unwrap_or(false);
            let items = map.items.as_deref();
            files.extend(
                secret::payload(context, namespace(pod), &map.name, items, optional, mode).await?,
            );
        } else if let Some(fields) = &part.downward_api {
            let items = fields.items.as_deref().unwrap_or_default();
            files.extend(downward_api::payload(context, pod, items, mode)?);
        } else if let Some(wanted) = &part.service_account_token {
            let seconds = wanted.expiration_seconds.unwrap_or(DEFAULT_TOKEN_SECONDS);
            let audience = wanted.audience.as_deref().filter(|text| !text.is_empty());
            let token = context
                .objects
                .service_account_token(pod, audience, seconds)
                .await?;
            refresh_at = Some(refresh_at.map_or(token.refresh_at, |at| at.min(token.refresh_at)));
            let (mode, owner) = token_access(pod, mode);
            let mut token = file(token.token.into_bytes(), mode);
            token.owner = owner;
            files.insert(wanted.path.clone(), token);
        } else if let Some(bundle) = &part.cluster_trust_bundle {
            let data = trust_bundle(context, bundle).await?;
            files.insert(bundle.path.clone(), file(data.into_bytes(), mode));
        } else {
            return Err(VolumeError::NoPlugin);
        }
    }
    let dir = context.volume_dir(uid(pod), "projected", name);
    let mounted = write(pod, &dir, &files, true)?;
    Ok(Mounted {
        refresh_at,
        ..mounted
    })
}

/// Mode and owner of a token: with `fsGroup` the group reads it; when all containers run as one user it is that
/// user's own.
fn token_access(pod: &Pod, mode: u32) -> (u32, Option<u32>) {
    if fs_group(pod).is_some() {
        return (0o600, None);
    }
    match single_user(pod) {
        Some(user) => (0o600, Some(user)),
        None => (mode, None),
    }
}

fn single_user(pod: &Pod) -> Option<u32> {
    let spec = pod.spec.as_ref()?;
    let pods_user = spec.security_context.as_ref().and_then(|c| c.run_as_user);
    let mut users = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
        .map(|container| {
            container
                .security_context
                .as_ref()
                .and_then(|c| c.run_as_user)
                .or(pods_user)
        });
    let first = users.next()??;
    users
        .all(|user| user == Some(first))
        .then(|| u32::try_from(first).ok())
        .flatten()
}

async fn trust_bundle(
    context: &Context,
    source: &ClusterTrustBundleProjection,
) -> Result<String, VolumeError> {
    let mut bundles = context.objects.cluster_trust_bundles().await?;
    bundles.retain(|bundle| match (&source.name, &source.signer_name) {
        (Some(name), _) => bundle.metadata.name.as_ref() == Some(name),
        (None, Some(signer)) => {
            bundle.spec.signer_name.as_ref() == Some(signer)
                && source
                    .label_selector
                    .as_ref()
                    .is_some_and(|selector| matches(selector, bundle.metadata.labels.as_ref()))
        }
        (None, None) => false,
    });
    if bundles.is_empty() && !source.optional.unwrap_or(false) {
        return Err(VolumeError::NotFound {
            kind: "clustertrustbundle",
            name: source
                .name
                .clone()
                .or_else(|| source.signer_name.clone())
                .unwrap_or_default(),
        });
    }
    let mut certificates: Vec<&str> = Vec::new();
    for bundle in &bundles {
        for block in bundle
            .spec
            .trust_bundle
            .split_inclusive("-----END CERTIFICATE-----")
        {
            let block = block.trim();
            if block.starts_with("-----BEGIN") && !certificates.contains(&block) {
                certificates.push(block);
            }
        }
    }
    Ok(certificates
        .iter()
        .map(|block| format!("{block}\n"))
        .collect())
}

fn matches(
    selector: &LabelSelector,
    labels: Option<&std::collections::BTreeMap<String, String>>,
) -> bool {
    let label = |key: &str| labels.and_then(|labels| labels.get(key));
    let equal = selector
        .match_labels
        .iter()
        .flatten()
        .all(|(key, value)| label(key) == Some(value));
    equal
        && selector.match_expressions.iter().flatten().all(|rule| {
            let listed = |value: &String| rule.values.iter().flatten().any(|v| v == value);
            match rule.operator.as_str() {
                "In" => label(&rule.key).is_some_and(listed),
                "NotIn" => !label(&rule.key).is_some_and(listed),
                "Exists" => label(&rule.key).is_some(),
                "DoesNotExist" => label(&rule.key).is_none(),
                _ => false,
            }
        })
}

// === what the file-shaped types share ===

pub(crate) fn mode(wanted: Option<i32>, default: u32) -> u32 {
    wanted
        .and_then(|mode| u32::try_from(mode).ok())
        .unwrap_or(default)
        & 0o777
}

/// All keys, or those that `items` names under the paths it names.
pub(crate) fn select_keys<'a>(
    kind: &'static str,
    keys: impl Iterator<Item = &'a String>,
    value: impl Fn(&str) -> Option<Vec<u8>>,
    items: Option<&[KeyToPath]>,
    optional: bool,
    default_mode: u32,
) -> Result<Payload, VolumeError> {
    let mut files = Payload::new();
    match items {
        None | Some([]) => {
            for key in keys {
                if let Some(data) = value(key) {
                    files.insert(key.clone(), file(data, default_mode));
                }
            }
        }
        Some(items) => {
            for item in items {
                match value(&item.key) {
                    Some(data) => {
                        let mode = mode(item.mode, default_mode);
                        files.insert(item.path.clone(), file(data, mode));
                    }
                    None if optional => {}
                    None => {
                        return Err(VolumeError::NoSuchKey {
                            kind,
                            key: item.key.clone(),
                        });
                    }
                }
            }
        }
    }
    Ok(files)
}

/// Writes the payload to the volume's directory; secrets go to a tmpfs so that they never reach the disk.
pub(crate) fn write(
    pod: &Pod,
    dir: &Path,
    files: &Payload,
    in_memory: bool,
) -> Result<Mounted, VolumeError> {
    let failed = || VolumeError::io(format!("writing {}", dir.display()));
    std::fs::create_dir_all(dir).map_err(failed())?;
    if in_memory && !mount::is_mount_point(dir)? {
        mount::mount_tmpfs(dir, None, "0755")?;
    }
    atomic_writer::write(dir, files, fs_group(pod)).map_err(failed())?;
    Ok(Mounted {
        host_path: dir.to_path_buf(),
        read_only: true,
        ..Mounted::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fake, set_up, tear_down_pod};
    use std::os::unix::fs::MetadataExt;

    fn volume(json: serde_json::Value) -> k8s_openapi::api::core::v1::Volume {
        serde_json::from_value(json).unwrap()
    }

    fn read(mounted: &Mounted, path: &str) -> String {
        std::fs::read_to_string(mounted.host_path.join(path)).unwrap()
    }

    #[tokio::test]
    async fn everything_in_one_directory_and_updates_show() {
        let objects = fake::Objects::default();
        objects.put_config_map("ca", &[("ca.crt", "CA")]);
        objects.put_secret("s", &[("password", "hunter2")]);
        let (_dir, context) = fake::context(objects.clone());
        let pod = fake::pod();
        let volume = volume(
            serde_json::json!({"name": "all", "projected": {"defaultMode": 288, "sources": [
                {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
                {"configMap": {"name": "ca", "items": [{"key": "ca.crt", "path": "certs/ca.crt", "mode": 256}]}},
                {"secret": {"name": "s"}},
                {"secret": {"name": "none", "optional": true}},
                {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}}
            ]}}),
        );
        let mounted = set_up(&context, &pod, &volume).await.unwrap();
        assert_eq!(read(&mounted, "token"), "token-3607-");
        assert_eq!(read(&mounted, "certs/ca.crt"), "CA");
        assert_eq!(read(&mounted, "password"), "hunter2");
        assert_eq!(read(&mounted, "namespace"), "n");
        assert!(mounted.refresh_at.is_some());
        let mode = |path: &str| {
            std::fs::metadata(mounted.host_path.join(path))
                .unwrap()
                .mode()
                & 0o777
        };
        assert_eq!((mode("certs/ca.crt"), mode("password")), (0o400, 0o440));
        assert!(mount::is_mount_point(&mounted.host_path).unwrap());

        objects.put_secret("s", &[("password", "changed"), ("more", "x")]);
        let mounted = set_up(&context, &pod, &volume).await.unwrap();
        assert_eq!(read(&mounted, "password"), "changed");
        assert_eq!(read(&mounted, "more"), "x");
        tear_down_pod(&context, "u").unwrap();
    }

    #[tokio::test]
    async fn missing_objects_and_keys() {
        let objects = fake::Objects::default();
        objects.put_config_map("c", &[("a", "1")]);
        let (_dir, context) = fake::context(objects);
        let pod = fake::pod();
        for (source, expected) in [
            (
                serde_json::json!({"configMap": {"name": "none"}}),
                "configmap \"none\" not found",
            ),
            (
                serde_json::json!({"secret": {"secretName": "none"}}),
                "secret \"none\" not found",
            ),
            (
                serde_json::json!({"configMap": {"name": "c", "items": [{"key": "b", "path": "b"}]}}),
                "references non-existent config key: b",
            ),
            (
                serde_json::json!({"nfs": {"server": "s", "path": "/"}}),
                "no volume plugin matched",
            ),
        ] {
            let mut source = source;
            source["name"] = "v".into();
            let error = set_up(&context, &pod, &volume(source)).await.unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn token_owner() {
        let pod = |json| -> Pod { serde_json::from_value(json).unwrap() };
        let same = pod(
            serde_json::json!({"spec": {"securityContext": {"runAsUser": 5},
            "containers": [{"name": "a"}, {"name": "b", "securityContext": {"runAsUser": 5}}]}}),
        );
        assert_eq!(token_access(&same, 0o644), (0o600, Some(5)));
        let mixed = pod(
            serde_json::json!({"spec": {"securityContext": {"runAsUser": 5},
            "containers": [{"name": "a"}, {"name": "b", "securityContext": {"runAsUser": 6}}]}}),
        );
        assert_eq!(token_access(&mixed, 0o644), (0o644, None));
    }
}
