//! Which resources the API server has.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResourceList;
use kube::{Client, core::ApiResource};
use tracing::debug;

/// A resource as discovery describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    pub api: ApiResource,
    pub namespaced: bool,
    pub verbs: Vec<String>,
}

impl Resource {
    pub fn supports(&self, verb: &str) -> bool {
        self.verbs.iter().any(|known| known == verb)
    }
}

/// What discovery found, and what it could not (an aggregated API that is down must not hide all others).
#[derive(Debug, Default)]
pub struct Discovered {
    pub resources: Vec<Resource>,
    pub failures: Vec<String>,
}

/// All resources (no subresources) in the preferred version of their group.
pub async fn discover(client: &Client) -> kube::Result<Discovered> {
    let mut discovered = Discovered::default();
    add(
        &mut discovered.resources,
        &client.list_core_api_resources("v1").await?,
    );
    for group in client.list_api_groups().await?.groups {
        let Some(version) = group.preferred_version.as_ref().or(group.versions.first()) else {
            continue;
        };
        match client
            .list_api_group_resources(&version.group_version)
            .await
        {
            Ok(list) => add(&mut discovered.resources, &list),
            Err(error) => {
                debug!(group = group.name, %error, "discovery failed");
                discovered
                    .failures
                    .push(format!("{}: {error}", version.group_version));
            }
        }
    }
    Ok(discovered)
}

fn add(resources: &mut Vec<Resource>, list: &APIResourceList) {
    let (group, version) = list
        .group_version
        .split_once('/')
        .unwrap_or(("", &list.group_version));
    let whole = list
        .resources
        .iter()
        .filter(|resource| !resource.name.contains('/'));
    resources.extend(whole.map(|resource| Resource {
        api: ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version: list.group_version.clone(),
            kind: resource.kind.clone(),
            plural: resource.name.clone(),
        },
        namespaced: resource.namespaced,
        verbs: resource.verbs.clone(),
    }));
}
