//! API objects in a map, for the tests of this crate.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::ByteString;
use parking_lot::Mutex;

use super::*;

#[derive(Clone, Default)]
pub struct Objects(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    config_maps: BTreeMap<String, Arc<ConfigMap>>,
    secrets: BTreeMap<String, Arc<Secret>>,
    claims: BTreeMap<String, PersistentVolumeClaim>,
    volumes: BTreeMap<String, PersistentVolume>,
}

impl Objects {
    pub fn put_config_map(&self, name: &str, data: &[(&str, &str)]) {
        let data = data.iter().map(|(k, v)| (k.to_string(), v.to_string()));
        let object = ConfigMap {
            data: Some(data.collect()),
            ..Default::default()
        };
        self.0
            .lock()
            .config_maps
            .insert(name.into(), Arc::new(object));
    }

    pub fn put_secret(&self, name: &str, data: &[(&str, &str)]) {
        let data = data
            .iter()
            .map(|(k, v)| (k.to_string(), ByteString(v.as_bytes().to_vec())));
        let object = Secret {
            data: Some(data.collect()),
            ..Default::default()
        };
        self.0.lock().secrets.insert(name.into(), Arc::new(object));
    }

    pub fn put_claim(&self, name: &str, phase: &str, volume: &str, path: &Path) {
        let claim = serde_json::json!({"metadata": {"name": name, "uid": "claim"},
            "spec": {"volumeName": volume}, "status": {"phase": phase}});
        let pv = serde_json::json!({"metadata": {"name": volume,
            "annotations": {"fluyt.io/provisioned-by": "local"}},
            "spec": {"local": {"path": path}, "claimRef": {"uid": "claim"}}});
        let mut inner = self.0.lock();
        inner
            .claims
            .insert(name.into(), serde_json::from_value(claim).unwrap());
        inner
            .volumes
            .insert(volume.into(), serde_json::from_value(pv).unwrap());
    }
}

#[async_trait]
impl super::Objects for Objects {
    async fn config_map(&self, _: &str, name: &str) -> Result<Option<Arc<ConfigMap>>, VolumeError> {
        Ok(self.0.lock().config_maps.get(name).cloned())
    }

    async fn secret(&self, _: &str, name: &str) -> Result<Option<Arc<Secret>>, VolumeError> {
        Ok(self.0.lock().secrets.get(name).cloned())
    }

    async fn service_account_token(
        &self,
        _: &Pod,
        audience: Option<&str>,
        seconds: i64,
    ) -> Result<Token, VolumeError> {
        Ok(Token {
            token: format!("token-{seconds}-{}", audience.unwrap_or_default()),
            refresh_at: Timestamp::now(),
        })
    }

    async fn persistent_volume_claim(
        &self,
        _: &str,
        name: &str,
    ) -> Result<Option<PersistentVolumeClaim>, VolumeError> {
        Ok(self.0.lock().claims.get(name).cloned())
    }

    async fn persistent_volume(&self, name: &str) -> Result<Option<PersistentVolume>, VolumeError> {
        Ok(self.0.lock().volumes.get(name).cloned())
    }

    async fn cluster_trust_bundles(&self) -> Result<Vec<ClusterTrustBundle>, VolumeError> {
        Ok(Vec::new())
    }
}

pub fn context(objects: Objects) -> (tempfile::TempDir, Context) {
    let dir = tempfile::tempdir().unwrap();
    let context = Context {
        root_dir: dir.path().to_path_buf(),
        objects: Arc::new(objects),
        allocatable: resource_field_ref::Allocatable::default(),
    };
    (dir, context)
}

pub fn pod() -> Pod {
    serde_json::from_value(serde_json::json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u"},
        "spec": {"containers": [{"name": "c"}]}
    }))
    .unwrap()
}
