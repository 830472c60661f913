//! How endpoints are spread over slices: with as few writes as possible, since every write of a slice goes to
//! every node.

use std::collections::{BTreeMap, HashMap};

use fluyt_client::{ObjectKey, is_namespace_terminating, is_not_found};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams},
};

use crate::common::{freshness::Freshness, name};

/// The endpoints that have the same ports.
pub struct Group {
    pub ports: Vec<EndpointPort>,
    pub endpoints: Vec<Endpoint>,
}

/// The writes that bring a Service's slices up to date.
#[derive(Default, Debug, PartialEq)]
pub struct Plan {
    pub create: Vec<EndpointSlice>,
    pub update: Vec<EndpointSlice>,
    pub delete: Vec<String>,
}

/// What identifies an endpoint across changes of its conditions.
fn identity(endpoint: &Endpoint) -> String {
    let uid = endpoint
        .target_ref
        .as_ref()
        .and_then(|target| target.uid.clone())
        .unwrap_or_default();
    format!("{uid} {}", endpoint.addresses.join(","))
}

fn sorted_ports(slice: &EndpointSlice) -> Vec<EndpointPort> {
    let mut ports = slice.ports.clone().unwrap_or_default();
    ports.sort_by(|a, b| (&a.name, a.port, &a.protocol).cmp(&(&b.name, b.port, &b.protocol)));
    ports
}

impl Plan {
    /// Write what is planned for the slices of `key`.
    pub async fn execute(
        self,
        client: &Client,
        key: &ObjectKey,
        freshness: &Freshness,
    ) -> anyhow::Result<()> {
        let api = Api::<EndpointSlice>::namespaced(client.clone(), &key.namespace);
        for slice in &self.create {
            match api.create(&PostParams::default(), slice).await {
                Err(error) if is_namespace_terminating(&error) => return Ok(()),
                result => freshness.wrote(key, &result?),
            }
        }
        for slice in &self.update {
            let written = api
                .replace(name(&slice.metadata), &PostParams::default(), slice)
                .await?;
            freshness.wrote(key, &written);
        }
        for slice in &self.delete {
            match api.delete(slice, &DeleteParams::default()).await {
                Err(error) if is_not_found(&error) => {}
                result => drop(result?),
            }
        }
        Ok(())
    }

    /// Plan the slices of one address family. `template` is an empty slice with the right metadata.
    pub fn add<'a>(
        &mut self,
        template: &EndpointSlice,
        mut groups: Vec<Group>,
        existing: impl Iterator<Item = &'a EndpointSlice>,
        max_endpoints: usize,
    ) {
        let mut existing: Vec<&EndpointSlice> = existing.collect();
        existing.sort_by_key(|slice| name(&slice.metadata));
        if groups.is_empty() {
            // An empty slice says that there are no endpoints; none at all would say that nobody looked.
            groups.push(Group {
                ports: Vec::new(),
                endpoints: Vec::new(),
            });
        }
        let mut unused = Vec::new();
        let mut of_group: BTreeMap<usize, Vec<&EndpointSlice>> = BTreeMap::new();
        for slice in existing {
            let ports = sorted_ports(slice);
            match groups.iter().position(|group| group.ports == ports) {
                Some(index) => of_group.entry(index).or_default().push(slice),
                None => unused.push(slice),
            }
        }
        for (index, group) in groups.into_iter().enumerate() {
            let slices = of_group.remove(&index).unwrap_or_default();
            self.add_group(template, group, slices, &mut unused, max_endpoints);
        }
        self.delete
            .extend(unused.iter().map(|slice| name(&slice.metadata).to_owned()));
    }

    fn add_group<'a>(
        &mut self,
        template: &EndpointSlice,
        group: Group,
        slices: Vec<&'a EndpointSlice>,
        unused: &mut Vec<&'a EndpointSlice>,
        max_endpoints: usize,
    ) {
        let mut wanted: HashMap<String, Endpoint> = group
            .endpoints
            .into_iter()
            .map(|endpoint| (identity(&endpoint), endpoint))
            .collect();
        // What is in a slice already stays there.
        let mut kept: Vec<(&EndpointSlice, Vec<Endpoint>)> = slices
            .into_iter()
            .map(|slice| {
                let present = slice.endpoints.iter().flatten();
                (
                    slice,
                    present
                        .filter_map(|endpoint| wanted.remove(&identity(endpoint)))
                        .collect(),
                )
            })
            .collect();
        let mut fresh: Vec<Endpoint> = wanted.into_values().collect();
        fresh.sort_by_key(identity);
        // Fill up slices that have to be written anyway, then others.
        kept.sort_by_key(|(slice, endpoints)| !differs(slice, endpoints));
        for (_, endpoints) in &mut kept {
            let room = max_endpoints
                .saturating_sub(endpoints.len())
                .min(fresh.len());
            endpoints.extend(fresh.drain(..room));
        }
        let mut new: Vec<Vec<Endpoint>> = fresh
            .chunks(max_endpoints.max(1))
            .map(<[Endpoint]>::to_vec)
            .collect();
        let filled = kept.iter().any(|(_, endpoints)| !endpoints.is_empty()) || !new.is_empty();
        let mut placeholder_needed = !filled;
        for (slice, endpoints) in kept {
            if endpoints.is_empty() && !placeholder_needed {
                self.delete.push(name(&slice.metadata).to_owned());
                continue;
            }
            placeholder_needed &= !endpoints.is_empty();
            self.update_if_changed(template, slice, endpoints, &group.ports);
        }
        if placeholder_needed {
            new.push(Vec::new());
        }
        for endpoints in new {
            // Reuse a slice of outdated ports rather than delete one and create one.
            match unused.pop() {
                Some(slice) => self.update_if_changed(template, slice, endpoints, &group.ports),
                None => {
                    let mut slice = template.clone();
                    fill(&mut slice, endpoints, &group.ports);
                    self.create.push(slice);
                }
            }
        }
    }

    fn update_if_changed(
        &mut self,
        template: &EndpointSlice,
        slice: &EndpointSlice,
        endpoints: Vec<Endpoint>,
        ports: &[EndpointPort],
    ) {
        let labels_differ = slice.metadata.labels != template.metadata.labels;
        if !labels_differ && !differs(slice, &endpoints) && sorted_ports(slice) == ports {
            return;
        }
        let mut updated = slice.clone();
        updated
            .metadata
            .labels
            .clone_from(&template.metadata.labels);
        fill(&mut updated, endpoints, ports);
        self.update.push(updated);
    }
}

fn fill(slice: &mut EndpointSlice, mut endpoints: Vec<Endpoint>, ports: &[EndpointPort]) {
    endpoints.sort_by_key(identity);
    slice.endpoints = Some(endpoints);
    slice.ports = Some(ports.to_vec());
}

fn differs(slice: &EndpointSlice, endpoints: &[Endpoint]) -> bool {
    let present = slice.endpoints.as_deref().unwrap_or_default();
    let by_identity: HashMap<String, &Endpoint> = present
        .iter()
        .map(|endpoint| (identity(endpoint), endpoint))
        .collect();
    present.len() != endpoints.len()
        || endpoints
            .iter()
            .any(|endpoint| by_identity.get(&identity(endpoint)) != Some(&endpoint))
}
