//! The add-ons of a cluster: their manifests, and keeping them applied.
//!
//! An object carries the hash of the manifest it was made from, so that nothing is written unless a manifest changed;
//! one that somebody deletes or strips of its mark comes back.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use fluyt_client::{is_already_exists, is_not_found};
use futures::future::join_all;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::Config;
use crate::versions::IMAGE_TAG;

/// Those at the top are needed by those below.
const MANIFESTS: &[&str] = &[
    include_str!("../addons/bootstrap.yaml"),
    include_str!("../addons/cloud-controller-manager.yaml"),
    include_str!("../addons/storage.yaml"),
    include_str!("../addons/coredns.yaml"),
    include_str!("../addons/metrics-server.yaml"),
];

const HASH: &str = "addons.fluyt.io/hash";

/// How often it is checked that all is still in place.
const RECHECK: Duration = Duration::from_secs(60);

/// Applies all add-ons now and whenever something is missing.
pub async fn run(
    config: Arc<Config>,
    client: Client,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let objects = objects(&config)?;
    loop {
        let applied = join_all(objects.iter().map(|object| apply(&client, object))).await;
        let mut failed = applied.into_iter().filter_map(Result::err);
        if let Some(error) = failed.next() {
            return Err(error);
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(RECHECK) => {}
        }
    }
}

/// The objects of all manifests, with this cluster's values in them.
fn objects(config: &Config) -> anyhow::Result<Vec<Value>> {
    let (token_id, token_secret) = config
        .bootstrap_token
        .split_once('.')
        .context("the bootstrap token is not id.secret")?;
    let dns_service_ip = config.dns_service_ip.to_string();
    let values = [
        ("{{dnsServiceIP}}", dns_service_ip.as_str()),
        ("{{imageTag}}", IMAGE_TAG),
        ("{{tokenId}}", token_id),
        ("{{tokenSecret}}", token_secret),
    ];
    let mut objects = Vec::new();
    for manifest in MANIFESTS {
        let text = values
            .iter()
            .fold((*manifest).to_owned(), |text, (name, value)| {
                text.replace(name, value)
            });
        for document in text.split("\n---\n") {
            let mut object: Value =
                serde_saphyr::from_str(document).context("in an add-on's manifest")?;
            let hash = Sha256::digest(document.as_bytes());
            let hash: String = hash
                .iter()
                .take(8)
                .map(|byte| format!("{byte:02x}"))
                .collect();
            object["metadata"]["annotations"][HASH] = hash.into();
            object["metadata"]["labels"]["kubernetes.azure.com/managedby"] = "aks".into();
            objects.push(object);
        }
    }
    Ok(objects)
}

async fn apply(client: &Client, object: &Value) -> anyhow::Result<()> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (api_version, kind, name) = (
        text(&object["apiVersion"]),
        text(&object["kind"]),
        text(&object["metadata"]["name"]),
    );
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    let resource = fluyt_api::resources::find_kind(group, version, &kind)
        .with_context(|| format!("no resource of kind {kind}"))?;
    let resource = ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: api_version.clone(),
        kind: kind.clone(),
        plural: resource.plural.to_owned(),
    };
    let api: Api<DynamicObject> = match object["metadata"]["namespace"].as_str() {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let wanted = &object["metadata"]["annotations"][HASH];
    let what = || format!("add-on {kind} {name}");
    match api.get_metadata(&name).await {
        Ok(present)
            if present
                .metadata
                .annotations
                .as_ref()
                .and_then(|a| a.get(HASH))
                .map(String::as_str)
                == wanted.as_str() =>
        {
            Ok(())
        }
        Ok(_) => api
            .patch(&name, &PatchParams::default(), &Patch::Merge(object))
            .await
            .map(drop)
            .with_context(what),
        Err(error) if is_not_found(&error) => {
            let object: DynamicObject = serde_json::from_value(object.clone())?;
            match api.create(&PostParams::default(), &object).await {
                Err(error) if is_already_exists(&error) => Ok(()),
                created => created.map(drop).with_context(what),
            }
        }
        Err(error) => Err(error).with_context(what),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_parse_and_name_known_resources() {
        let config = crate::master::tests::config(std::path::Path::new("/"));
        let objects = objects(&config).unwrap();
        for object in &objects {
            let api_version = object["apiVersion"].as_str().unwrap();
            let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
            let kind = object["kind"].as_str().unwrap();
            let resource = fluyt_api::resources::find_kind(group, version, kind)
                .unwrap_or_else(|| panic!("{kind}"));
            assert_eq!(
                resource.namespaced,
                object["metadata"]["namespace"].is_string(),
                "{kind}"
            );
            assert!(!object.to_string().contains("{{"), "{object}");
        }
        let service = objects
            .iter()
            .find(|o| o["kind"] == "Service" && o["metadata"]["name"] == "kube-dns")
            .unwrap();
        assert_eq!(service["spec"]["clusterIP"], "10.0.0.10");
    }
}
