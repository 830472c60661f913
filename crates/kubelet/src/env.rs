//! The environment of a container: service variables, `envFrom`, `env` with references to earlier ones.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use fluyt_volumes::{Objects, field_ref, resource_field_ref};
use k8s_openapi::api::core::v1::{Container, EnvVarSource, Pod, Service};

use crate::expansion::expand;
use crate::pod::PodExt;

/// Why a container's configuration can't be made (`CreateContainerConfigError`).
#[derive(Debug, thiserror::Error)]
pub enum EnvError {
    #[error("{kind} \"{name}\" not found")]
    NotFound { kind: &'static str, name: String },
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey {
        kind: &'static str,
        namespace: String,
        name: String,
        key: String,
    },
    #[error("{0}")]
    Other(String),
}

/// All variables in the order the container gets them.
pub async fn make(
    pod: &Pod,
    container: &Container,
    services: &[Arc<Service>],
    objects: &dyn Objects,
    allocatable: &resource_field_ref::Allocatable,
) -> Result<Vec<(String, String)>, EnvError> {
    let namespace = pod.namespace();
    let links = pod.spec().enable_service_links.unwrap_or(true);
    let service_env = service_variables(services, namespace, links);
    let mut env: BTreeMap<String, String> = BTreeMap::new();
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if let Some(from) = &source.config_map_ref {
            let map = objects
                .config_map(namespace, &from.name)
                .await
                .map_err(other)?;
            match map {
                Some(map) => {
                    let data = map.data.iter().flatten();
                    env.extend(data.map(|(key, value)| (format!("{prefix}{key}"), value.clone())));
                }
                None if from.optional == Some(true) => {}
                None => return Err(not_found("configmap", &from.name)),
            }
        } else if let Some(from) = &source.secret_ref {
            let secret = objects.secret(namespace, &from.name).await.map_err(other)?;
            match secret {
                Some(secret) => {
                    let data = secret.data.iter().flatten();
                    env.extend(data.map(|(key, value)| {
                        (
                            format!("{prefix}{key}"),
                            String::from_utf8_lossy(&value.0).into_owned(),
                        )
                    }));
                }
                None if from.optional == Some(true) => {}
                None => return Err(not_found("secret", &from.name)),
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (Some(text), _) if !text.is_empty() => Some(expand(text, |name| {
                env.get(name).or_else(|| service_env.get(name)).cloned()
            })),
            (_, Some(source)) => reference(pod, container, source, objects, allocatable).await?,
            _ => Some(String::new()),
        };
        if let Some(value) = value {
            env.insert(variable.name.clone(), value);
        }
    }
    // What the user says wins over the services'.
    let own: HashSet<&String> = env.keys().collect();
    let mut all: Vec<(String, String)> = service_env
        .iter()
        .filter(|(name, _)| !own.contains(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    all.extend(
        env.iter()
            .map(|(name, value)| (name.clone(), value.clone())),
    );
    Ok(all)
}

fn other(error: fluyt_volumes::VolumeError) -> EnvError {
    EnvError::Other(error.to_string())
}

fn not_found(kind: &'static str, name: &str) -> EnvError {
    EnvError::NotFound {
        kind,
        name: name.into(),
    }
}

/// `None` for an optional reference to something that isn't there: the variable is not set at all.
async fn reference(
    pod: &Pod,
    container: &Container,
    source: &EnvVarSource,
    objects: &dyn Objects,
    allocatable: &resource_field_ref::Allocatable,
) -> Result<Option<String>, EnvError> {
    let namespace = pod.namespace();
    let missing = |kind, name: &str, key: &str, optional: Option<bool>| {
        if optional == Some(true) {
            return Ok(None);
        }
        Err(EnvError::NoKey {
            kind,
            namespace: namespace.into(),
            name: name.into(),
            key: key.into(),
        })
    };
    if let Some(field) = &source.field_ref {
        return field_ref::extract(pod, &field.field_path)
            .map(Some)
            .ok_or_else(|| {
                EnvError::Other(format!("unsupported fieldPath: {}", field.field_path))
            });
    }
    if let Some(resource) = &source.resource_field_ref {
        return resource_field_ref::extract(pod, Some(&container.name), resource, allocatable)
            .map(Some)
            .map_err(other);
    }
    if let Some(key) = &source.config_map_key_ref {
        let Some(map) = objects
            .config_map(namespace, &key.name)
            .await
            .map_err(other)?
        else {
            return match key.optional {
                Some(true) => Ok(None),
                _ => Err(not_found("configmap", &key.name)),
            };
        };
        return match map.data.as_ref().and_then(|data| data.get(&key.key)) {
            Some(value) => Ok(Some(value.clone())),
            None => missing("ConfigMap", &key.name, &key.key, key.optional),
        };
    }
    if let Some(key) = &source.secret_key_ref {
        let Some(secret) = objects.secret(namespace, &key.name).await.map_err(other)? else {
            return match key.optional {
                Some(true) => Ok(None),
                _ => Err(not_found("secret", &key.name)),
            };
        };
        return match secret.data.as_ref().and_then(|data| data.get(&key.key)) {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
            None => missing("Secret", &key.name, &key.key, key.optional),
        };
    }
    Err(EnvError::Other("unsupported valueFrom".into()))
}

/// The variables of the services a pod can see: those of its namespace when it wants links, and always those of the
/// API server's own service.
fn service_variables(
    services: &[Arc<Service>],
    namespace: &str,
    links: bool,
) -> BTreeMap<String, String> {
    let mut visible: BTreeMap<&str, &Service> = BTreeMap::new();
    for service in services {
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let own = service.metadata.namespace.as_deref() == Some(namespace);
        let master =
            service.metadata.namespace.as_deref() == Some("default") && name == "kubernetes";
        // One of the pod's own namespace hides the master's of the same name.
        if own && (links || master) {
            visible.insert(name, service);
        } else if master {
            visible.entry(name).or_insert(service);
        }
    }
    let mut env = BTreeMap::new();
    for (name, service) in visible {
        let Some(spec) = &service.spec else { continue };
        let ip = spec.cluster_ip.as_deref().unwrap_or_default();
        let ports = spec.ports.as_deref().unwrap_or_default();
        if ip.is_empty() || ip == "None" || ports.is_empty() {
            continue;
        }
        let prefix = name.to_uppercase().replace('-', "_");
        let host = if ip.contains(':') {
            format!("[{ip}]")
        } else {
            ip.to_string()
        };
        env.insert(format!("{prefix}_SERVICE_HOST"), ip.to_string());
        env.insert(format!("{prefix}_SERVICE_PORT"), ports[0].port.to_string());
        for (index, port) in ports.iter().enumerate() {
            if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
                let name = name.to_uppercase().replace('-', "_");
                env.insert(
                    format!("{prefix}_SERVICE_PORT_{name}"),
                    port.port.to_string(),
                );
            }
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
            if index == 0 {
                env.insert(format!("{prefix}_PORT"), url.clone());
            }
            let each = format!("{prefix}_PORT_{}_{protocol}", port.port);
            env.insert(each.clone(), url);
            env.insert(format!("{each}_PROTO"), protocol.to_lowercase());
            env.insert(format!("{each}_PORT"), port.port.to_string());
            env.insert(format!("{each}_ADDR"), ip.to_string());
        }
    }
    env
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object_cache::ObjectCache;
    use fluyt_client::fake::FakeApi;
    use k8s_openapi::api::core::v1::{ConfigMap, Secret};
    use serde_json::json;

    async fn environment(
        container: serde_json::Value,
    ) -> Result<BTreeMap<String, String>, EnvError> {
        let fake = FakeApi::new();
        let map: ConfigMap = serde_json::from_value(json!({
            "metadata": {"name": "m", "namespace": "n"}, "data": {"a": "1", "b": "2"}}))
        .unwrap();
        fake.insert(map);
        let secret: Secret = serde_json::from_value(json!({
            "metadata": {"name": "s", "namespace": "n"}, "data": {"p": "c2VjcmV0"}}))
        .unwrap();
        fake.insert(secret);
        let (changed, _changes) = tokio::sync::mpsc::unbounded_channel();
        let cache = ObjectCache::new(fake.client(), changed, Default::default());
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n"},
            "spec": {"containers": [container]}, "status": {"podIP": "10.244.0.5"}}))
        .unwrap();
        let service = |name: &str, namespace: &str, ip: &str| {
            Arc::new(serde_json::from_value(json!({
                "metadata": {"name": name, "namespace": namespace},
                "spec": {"clusterIP": ip, "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}}))
            .unwrap())
        };
        let services = [
            service("my-web", "n", "10.0.0.7"),
            service("headless", "n", "None"),
            service("other", "elsewhere", "10.0.0.8"),
            service("kubernetes", "default", "10.0.0.1"),
        ];
        let container = pod.spec().containers[0].clone();
        let env = make(&pod, &container, &services, &cache, &Default::default()).await?;
        Ok(env.into_iter().collect())
    }

    #[tokio::test]
    async fn everything() {
        let env = environment(json!({"name": "c",
            "envFrom": [{"prefix": "M_", "configMapRef": {"name": "m"}}, {"secretRef": {"name": "s"}},
                {"configMapRef": {"name": "none", "optional": true}}],
            "env": [
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "URL", "value": "http://$(IP):$(MY_WEB_SERVICE_PORT)/$(LATER)/$(M_a)"},
                {"name": "LATER", "value": "x"},
                {"name": "KEY", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "b"}}},
                {"name": "NOT", "valueFrom": {"secretKeyRef": {"name": "s", "key": "q", "optional": true}}},
                {"name": "EMPTY"}
            ]}))
        .await
        .unwrap();
        for (name, value) in [
            ("M_a", "1"),
            ("p", "secret"),
            ("IP", "10.244.0.5"),
            ("URL", "http://10.244.0.5:80/$(LATER)/1"),
            ("KEY", "2"),
            ("EMPTY", ""),
            ("MY_WEB_SERVICE_HOST", "10.0.0.7"),
            ("MY_WEB_SERVICE_PORT_HTTP", "80"),
            ("MY_WEB_PORT_80_TCP_ADDR", "10.0.0.7"),
            ("MY_WEB_PORT", "tcp://10.0.0.7:80"),
            ("KUBERNETES_SERVICE_HOST", "10.0.0.1"),
        ] {
            assert_eq!(env.get(name).map(String::as_str), Some(value), "{name}");
        }
        for name in ["NOT", "HEADLESS_SERVICE_HOST", "OTHER_SERVICE_HOST"] {
            assert!(!env.contains_key(name), "{name}");
        }
    }

    #[tokio::test]
    async fn missing() {
        for (env, expected) in [
            (
                json!({"configMapKeyRef": {"name": "none", "key": "k"}}),
                "configmap \"none\" not found",
            ),
            (
                json!({"configMapKeyRef": {"name": "m", "key": "k"}}),
                "couldn't find key k in ConfigMap n/m",
            ),
            (
                json!({"secretKeyRef": {"name": "s", "key": "k"}}),
                "couldn't find key k in Secret n/s",
            ),
        ] {
            let container = json!({"name": "c", "env": [{"name": "A", "valueFrom": env}]});
            assert_eq!(
                environment(container).await.unwrap_err().to_string(),
                expected
            );
        }
    }
}
