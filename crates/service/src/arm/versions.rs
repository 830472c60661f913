//! Which versions of Kubernetes there are.

use axum::response::Response;
use serde_json::{Value, json};

use super::error::Result;
use super::{Call, managed_clusters, ok};
use crate::versions::{DEFAULT, OFFERED};

/// All that are offered, by minor version.
pub fn list() -> Response {
    let mut minors: Vec<(&str, Vec<&str>)> = Vec::new();
    for version in OFFERED {
        let minor = version
            .rsplit_once('.')
            .map_or(*version, |(minor, _)| minor);
        match minors.last_mut() {
            Some((last, patches)) if *last == minor => patches.push(version),
            _ => minors.push((minor, vec![version])),
        }
    }
    let values: Vec<Value> = minors
        .into_iter()
        .map(|(minor, patches)| {
            let patches: serde_json::Map<_, _> = patches
                .into_iter()
                .map(|p| (p.to_owned(), json!({"upgrades": []})))
                .collect();
            json!({
                "version": minor,
                "capabilities": {"supportPlan": ["KubernetesOfficial"]},
                "isDefault": DEFAULT.starts_with(minor),
                "isPreview": null,
                "patchVersions": patches,
            })
        })
        .collect();
    ok(json!({"values": values}))
}

/// Those that a pool of the cluster may have.
pub fn for_pools(call: &Call, group: &str, name: &str) -> Result<Response> {
    let cluster = managed_clusters::find(call, group, name)?;
    let versions: Vec<Value> = OFFERED
        .iter()
        .map(|v| json!({"default": *v == DEFAULT, "kubernetesVersion": v}))
        .collect();
    let id = format!("{}/availableAgentPoolVersions", cluster.resource_id());
    Ok(ok(json!({
        "id": id, "name": "default", "type": "Microsoft.ContainerService/managedClusters/availableAgentPoolVersions",
        "properties": {"agentPoolVersions": versions},
    })))
}

/// Where the cluster may go from here: nowhere, as long as one version is offered.
pub fn upgrade_profile(call: &Call, group: &str, name: &str) -> Result<Response> {
    let cluster = managed_clusters::find(call, group, name)?;
    let profile = |version: &str, name: &str| json!({"kubernetesVersion": version, "name": name, "osType": "Linux", "upgrades": []});
    let pools: Vec<Value> = cluster
        .pools
        .iter()
        .map(|p| profile(&p.version, &p.name))
        .collect();
    Ok(ok(json!({
        "id": format!("{}/upgradeprofiles/default", cluster.resource_id()), "name": "default",
        "type": "Microsoft.ContainerService/managedClusters/upgradeprofiles",
        "properties": {"controlPlaneProfile": profile(&cluster.version, ""), "agentPoolProfiles": pools},
    })))
}
