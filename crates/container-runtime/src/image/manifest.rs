//! Manifests, indexes and configs, of OCI and of Docker (schema 2): the parts that a runtime needs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Error, Result};

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    pub media_type: String,
    pub digest: String,
    pub size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Platform {
    pub architecture: String,
    pub os: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub schema_version: u32,
    #[serde(default)]
    pub media_type: String,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
pub struct Index {
    pub manifests: Vec<Descriptor>,
}

/// A manifest, or the index that names one per platform.
#[derive(Debug)]
pub enum ManifestOrIndex {
    Manifest(Manifest),
    Index(Index),
}

/// An image's config.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ImageConfig {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub config: Option<Execution>,
    #[serde(default)]
    pub rootfs: RootFs,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RootFs {
    #[serde(rename = "type", default)]
    pub kind: String,
    #[serde(default)]
    pub diff_ids: Vec<String>,
}

/// How the image wants to be run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Execution {
    pub user: Option<String>,
    pub env: Option<Vec<String>>,
    pub entrypoint: Option<Vec<String>>,
    pub cmd: Option<Vec<String>>,
    pub working_dir: Option<String>,
    pub stop_signal: Option<String>,
    pub labels: Option<BTreeMap<String, String>>,
    pub exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
}

// === impl ManifestOrIndex ===

impl ManifestOrIndex {
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let invalid = |error: serde_json::Error| Error::Invalid(format!("bad manifest: {error}"));
        let value: serde_json::Value = serde_json::from_slice(bytes).map_err(invalid)?;
        if value.get("manifests").is_some() {
            serde_json::from_value(value)
                .map(Self::Index)
                .map_err(invalid)
        } else if value.get("fsLayers").is_some() {
            Err(Error::Invalid(
                "Docker schema 1 manifests are not supported".to_owned(),
            ))
        } else {
            serde_json::from_value(value)
                .map(Self::Manifest)
                .map_err(invalid)
        }
    }
}

// === impl Index ===

impl Index {
    /// The manifest for this machine.
    pub fn for_this_platform(&self) -> Result<&Descriptor> {
        let architecture = architecture();
        self.manifests
            .iter()
            .find(|descriptor| match &descriptor.platform {
                Some(platform) => platform.os == "linux" && platform.architecture == architecture,
                None => true,
            })
            .ok_or_else(|| Error::Invalid(format!("no match for platform linux/{architecture}")))
    }
}

/// This machine's architecture, by Go's name for it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_told_from_a_manifest() {
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[
            {{"mediaType":"m","digest":"sha256:1","size":1,"platform":{{"os":"windows","architecture":"{0}"}}}},
            {{"mediaType":"m","digest":"sha256:2","size":1,"platform":{{"os":"linux","architecture":"{0}"}}}}]}}"#,
            architecture()
        );
        let ManifestOrIndex::Index(index) = ManifestOrIndex::parse(index.as_bytes()).unwrap()
        else {
            panic!("an index");
        };
        assert_eq!(index.for_this_platform().unwrap().digest, "sha256:2");
    }

    #[test]
    fn docker_configs_with_nulls_are_read() {
        let config: ImageConfig = serde_json::from_str(
            r#"{"architecture":"amd64","os":"linux","config":{"Entrypoint":null,"Cmd":["sh"],"ArgsEscaped":true}}"#,
        )
        .unwrap();
        assert_eq!(config.config.unwrap().cmd.unwrap(), ["sh"]);
    }
}
