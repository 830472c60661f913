//! The ConfigMaps, Secrets and tokens of this node's pods. An object is watched, by its name, for as long as a pod
//! here refers to it (a node may not list others): its updates reach volumes without polling.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fluyt_client::{Change, Informer, Selectors};
use fluyt_volumes::{Token, VolumeError};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::certificates::v1beta1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::{
    ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod, Secret, ServiceAccount,
};
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::pod::PodExt;

/// A token is renewed at 80 % of its life, and after a day at the latest.
const TOKEN_LIFE_PERCENT: i64 = 80;
const TOKEN_MAX_AGE: SignedDuration = SignedDuration::from_hours(24);

type Name = (String, String);

pub struct ObjectCache {
    client: Client,
    config_maps: Watched<ConfigMap>,
    secrets: Watched<Secret>,
    /// By pod uid, audience and lifetime.
    tokens: Mutex<HashMap<(String, String, i64), Token>>,
}

impl ObjectCache {
    /// Uids of pods go to `changed` when an object they refer to has changed.
    pub fn new(
        client: Client,
        changed: mpsc::UnboundedSender<String>,
        shutdown: CancellationToken,
    ) -> Self {
        ObjectCache {
            config_maps: Watched::new(client.clone(), changed.clone(), shutdown.clone()),
            secrets: Watched::new(client.clone(), changed, shutdown),
            client,
            tokens: Mutex::default(),
        }
    }

    /// The pod is here (again): watch what it refers to.
    pub fn register(&self, pod: &Pod) {
        let (config_maps, secrets) = references(pod);
        self.config_maps.register(pod, &config_maps);
        self.secrets.register(pod, &secrets);
    }

    /// The pod is gone.
    pub fn unregister(&self, uid: &str) {
        self.config_maps.unregister(uid);
        self.secrets.unregister(uid);
        self.tokens.lock().retain(|(owner, _, _), _| owner != uid);
    }
}

struct Watched<K> {
    client: Client,
    changed: mpsc::UnboundedSender<String>,
    shutdown: CancellationToken,
    entries: Arc<Mutex<HashMap<Name, Entry<K>>>>,
}

struct Entry<K> {
    informer: Informer<K>,
    stop: CancellationToken,
    pods: BTreeSet<String>,
}

impl<K> Watched<K>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi_scope::Namespaced>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    fn new(
        client: Client,
        changed: mpsc::UnboundedSender<String>,
        shutdown: CancellationToken,
    ) -> Self {
        Watched {
            client,
            changed,
            shutdown,
            entries: Arc::default(),
        }
    }

    fn register(&self, pod: &Pod, names: &BTreeSet<String>) {
        let mut entries = self.entries.lock();
        for name in names {
            let key = (pod.namespace().to_string(), name.clone());
            let entry = entries
                .entry(key.clone())
                .or_insert_with(|| self.watch(&key));
            entry.pods.insert(pod.uid().to_string());
        }
    }

    fn watch(&self, key: &Name) -> Entry<K> {
        let stop = self.shutdown.child_token();
        let selectors = Selectors {
            fields: Some(format!("metadata.name={}", key.1)),
            labels: None,
        };
        let api = Api::namespaced(self.client.clone(), &key.0);
        let informer = Informer::start(api, selectors, stop.clone());
        let (changed, entries, key) = (self.changed.clone(), self.entries.clone(), key.clone());
        informer.on_change(move |_: Change<K>| {
            if let Some(entry) = entries.lock().get(&key) {
                for uid in &entry.pods {
                    // Nobody listens any more only at shutdown.
                    let _ = changed.send(uid.clone());
                }
            }
        });
        Entry {
            informer,
            stop,
            pods: BTreeSet::new(),
        }
    }

    fn unregister(&self, uid: &str) {
        self.entries.lock().retain(|_, entry| {
            entry.pods.remove(uid);
            if entry.pods.is_empty() {
                entry.stop.cancel();
            }
            !entry.pods.is_empty()
        });
    }

    /// The object as last seen; asked for directly while its watch is only starting.
    async fn get(&self, namespace: &str, name: &str) -> Result<Option<Arc<K>>, VolumeError> {
        let informer = {
            let entries = self.entries.lock();
            let entry = entries.get(&(namespace.to_string(), name.to_string()));
            entry.map(|entry| entry.informer.clone())
        };
        if let Some(informer) = informer.filter(Informer::has_synced)
            && let Some(object) = informer.get(Some(namespace), name)
        {
            return Ok(Some(object));
        }
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        let object = api.get_opt(name).await.map_err(api_error)?;
        Ok(object.map(Arc::new))
    }
}

/// The scope types under a name of their own.
mod k8s_openapi_scope {
    pub use k8s_openapi::NamespaceResourceScope as Namespaced;
}

fn api_error(error: kube::Error) -> VolumeError {
    VolumeError::Api(match error {
        kube::Error::Api(status) => status.message,
        other => other.to_string(),
    })
}

#[async_trait]
impl fluyt_volumes::Objects for ObjectCache {
    async fn config_map(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<ConfigMap>>, VolumeError> {
        self.config_maps.get(namespace, name).await
    }

    async fn secret(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Secret>>, VolumeError> {
        self.secrets.get(namespace, name).await
    }

    async fn service_account_token(
        &self,
        pod: &Pod,
        audience: Option<&str>,
        expiration_seconds: i64,
    ) -> Result<Token, VolumeError> {
        let key = (
            pod.uid().to_string(),
            audience.unwrap_or_default().to_string(),
            expiration_seconds,
        );
        let known = self.tokens.lock().get(&key).cloned();
        if let Some(token) = known
            .as_ref()
            .filter(|token| token.refresh_at > Timestamp::now())
        {
            return Ok(token.clone());
        }
        match self.request_token(pod, audience, expiration_seconds).await {
            Ok(token) => {
                self.tokens.lock().insert(key, token.clone());
                Ok(token)
            }
            // The old one is good for a while yet: keep it and ask again soon.
            Err(error) => known.map_or(Err(error), |token| {
                Ok(Token {
                    refresh_at: Timestamp::now() + SignedDuration::from_secs(30),
                    ..token
                })
            }),
        }
    }

    async fn persistent_volume_claim(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<PersistentVolumeClaim>, VolumeError> {
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        api.get_opt(name).await.map_err(api_error)
    }

    async fn persistent_volume(&self, name: &str) -> Result<Option<PersistentVolume>, VolumeError> {
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        api.get_opt(name).await.map_err(api_error)
    }

    async fn cluster_trust_bundles(&self) -> Result<Vec<ClusterTrustBundle>, VolumeError> {
        let api: Api<ClusterTrustBundle> = Api::all(self.client.clone());
        let everything = kube::api::ListParams::default();
        Ok(api.list(&everything).await.map_err(api_error)?.items)
    }
}

impl ObjectCache {
    async fn request_token(
        &self,
        pod: &Pod,
        audience: Option<&str>,
        expiration_seconds: i64,
    ) -> Result<Token, VolumeError> {
        let account = pod
            .spec()
            .service_account_name
            .as_deref()
            .unwrap_or("default");
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: audience.map(|audience| vec![audience.to_string()]),
                expiration_seconds: Some(expiration_seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: pod.metadata.name.clone(),
                    uid: pod.metadata.uid.clone(),
                }),
            }),
            ..TokenRequest::default()
        };
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), pod.namespace());
        let asked: TokenRequest = api
            .create_subresource("token", account, &PostParams::default(), &request)
            .await
            .map_err(|error| {
                VolumeError::Api(format!("failed to fetch token: {}", api_error(error)))
            })?;
        let status = asked.status.unwrap_or_default();
        let now = Timestamp::now();
        let expires = status.expiration_timestamp.map_or(
            now + SignedDuration::from_secs(expiration_seconds),
            |time| time.0,
        );
        let life = expires.duration_since(now).as_secs();
        let age = SignedDuration::from_secs(life * TOKEN_LIFE_PERCENT / 100).min(TOKEN_MAX_AGE);
        Ok(Token {
            token: status
                .token
                .ok_or_else(|| VolumeError::Api("the API server issued no token".into()))?,
            // Never at once: an answer without a life must not make a busy loop.
            refresh_at: now + age.max(SignedDuration::from_secs(1)),
        })
    }
}

/// Names of the ConfigMaps and Secrets that a pod refers to.
fn references(pod: &Pod) -> (BTreeSet<String>, BTreeSet<String>) {
    let spec = pod.spec();
    let mut config_maps = BTreeSet::new();
    let mut secrets = BTreeSet::new();
    for secret in spec.image_pull_secrets.iter().flatten() {
        secrets.insert(secret.name.clone());
    }
    for volume in spec.volumes.iter().flatten() {
        config_maps.extend(volume.config_map.iter().map(|source| source.name.clone()));
        secrets.extend(
            volume
                .secret
                .iter()
                .flat_map(|source| source.secret_name.clone()),
        );
        let parts = volume
            .projected
            .iter()
            .flat_map(|p| p.sources.iter().flatten());
        for part in parts {
            config_maps.extend(part.config_map.iter().map(|source| source.name.clone()));
            secrets.extend(part.secret.iter().map(|source| source.name.clone()));
        }
    }
    let ephemeral = pod.ephemeral_containers();
    let containers = spec
        .containers
        .iter()
        .chain(pod.init_containers())
        .chain(&ephemeral);
    for container in containers {
        for from in container.env_from.iter().flatten() {
            config_maps.extend(from.config_map_ref.iter().map(|source| source.name.clone()));
            secrets.extend(from.secret_ref.iter().map(|source| source.name.clone()));
        }
        for from in container
            .env
            .iter()
            .flatten()
            .flat_map(|env| &env.value_from)
        {
            config_maps.extend(from.config_map_key_ref.iter().map(|key| key.name.clone()));
            secrets.extend(from.secret_key_ref.iter().map(|key| key.name.clone()));
        }
    }
    secrets.remove("");
    config_maps.remove("");
    (config_maps, secrets)
}

/// How long a pod waits before it looks again at something that failed.
pub const RETRY: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;
    use fluyt_client::fake::FakeApi;
    use fluyt_volumes::Objects;
    use serde_json::json;

    #[tokio::test]
    async fn updates_reach_the_pods_that_refer_to_them() {
        let fake = FakeApi::new();
        let (changed, mut changes) = mpsc::unbounded_channel();
        let shutdown = CancellationToken::new();
        let cache = ObjectCache::new(fake.client(), changed, shutdown.clone());
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [{"name": "c", "env": [{"name": "A",
                "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "a"}}}]}]}
        }))
        .unwrap();
        cache.register(&pod);
        assert!(cache.config_map("n", "settings").await.unwrap().is_none());
        let map: ConfigMap = serde_json::from_value(json!({
            "metadata": {"name": "settings", "namespace": "n"}, "data": {"a": "1"}}))
        .unwrap();
        fake.insert(map);
        assert_eq!(changes.recv().await.as_deref(), Some("u"));
        let seen = cache.config_map("n", "settings").await.unwrap().unwrap();
        assert_eq!(seen.data.as_ref().unwrap()["a"], "1");
        cache.unregister("u");
        assert!(cache.config_maps.entries.lock().is_empty());
        shutdown.cancel();
    }
}
