//! What an existing pod or template may keep although a new one could not have it.

use serde_json::Value;

use super::annotations::has_valid_deletion_cost;
use super::scheduling::{match_label_keys, node_selector_terms};
use super::security::is_host_sysctl;
use super::{CONTAINER_LISTS, containers_of, resources};
use crate::validation::{
    At, Errors, has_invalid_values, label_selector, label_value, non_reserved_path,
};

/// How a pod spec is validated: strictly, but for what the old one has.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a rule of its own")]
pub(in crate::strategy) struct Options {
    /// A pod, not a template.
    pub is_pod: bool,
    pub invalid_deletion_cost: bool,
    pub invalid_label_values_in_selectors: bool,
    pub indivisible_huge_pages: bool,
    pub invalid_topology_spread_selectors: bool,
    pub invalid_match_label_keys: bool,
    pub reserved_token_paths: bool,
    pub host_sysctls: bool,
    pub invalid_label_values_in_node_affinity: bool,
    pub restarting_init_containers: bool,
    pub devices_in_user_namespace: bool,
    pub host_network_in_user_namespace: bool,
    pub toleration_comparisons: bool,
    pub mount_option_policy: bool,
}

impl Options {
    /// For a new object.
    pub fn new(is_pod: bool) -> Self {
        Self {
            is_pod,
            ..Self::default()
        }
    }

    /// For an update of what holds `old` in `spec` and `metadata`.
    pub fn for_update(is_pod: bool, old: &Value) -> Self {
        let spec = &old["spec"];
        let user_namespace = spec["hostUsers"] == false;
        Self {
            is_pod,
            invalid_deletion_cost: !has_valid_deletion_cost(&old["metadata"]["annotations"]),
            invalid_label_values_in_selectors: affinity_terms(spec).any(|t| {
                has_invalid_values(&t["labelSelector"])
                    || has_invalid_values(&t["namespaceSelector"])
            }),
            indivisible_huge_pages: resources::has_indivisible_huge_pages(spec),
            invalid_topology_spread_selectors: constraints(spec).any(|c| {
                let mut errors = Errors::default();
                label_selector(&mut errors, &At::root(&c["labelSelector"]));
                !errors.is_empty()
            }),
            invalid_match_label_keys: constraints(spec).any(|c| {
                let mut errors = Errors::default();
                match_label_keys(&At::root(c), &mut errors);
                !errors.is_empty()
            }),
            reserved_token_paths: has_reserved_token_path(spec),
            host_sysctls: list(&spec["securityContext"]["sysctls"])
                .any(|s| is_host_sysctl(spec, s["name"].as_str().unwrap_or_default()).is_some()),
            invalid_label_values_in_node_affinity: node_selector_terms(
                &spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"],
            )
            .flat_map(|t| list(&t["matchExpressions"]))
            .flat_map(|e| list(&e["values"]))
            .any(|v| !label_value(v.as_str().unwrap_or_default()).is_empty()),
            restarting_init_containers: list(&spec["initContainers"]).any(|c| {
                c["restartPolicy"] != "Always"
                    && list(&c["resizePolicy"]).any(|p| p["restartPolicy"] == "RestartContainer")
            }),
            devices_in_user_namespace: user_namespace
                && CONTAINER_LISTS
                    .iter()
                    .flat_map(|name| list(&spec[*name]))
                    .any(|c| list(&c["volumeDevices"]).next().is_some()),
            host_network_in_user_namespace: user_namespace && spec["hostNetwork"] == true,
            mount_option_policy: spec["securityContext"]["seLinuxChangePolicy"] == "MountOption",
            toleration_comparisons: list(&spec["tolerations"])
                .any(|t| t["operator"] == "Lt" || t["operator"] == "Gt"),
        }
    }
}

pub(in crate::strategy) fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn constraints(spec: &Value) -> impl Iterator<Item = &Value> {
    list(&spec["topologySpreadConstraints"])
}

/// All terms of affinity and anti-affinity between pods.
fn affinity_terms(spec: &Value) -> impl Iterator<Item = &Value> {
    ["podAffinity", "podAntiAffinity"]
        .into_iter()
        .flat_map(|kind| {
            let affinity = &spec["affinity"][kind];
            list(&affinity["requiredDuringSchedulingIgnoredDuringExecution"]).chain(
                list(&affinity["preferredDuringSchedulingIgnoredDuringExecution"])
                    .map(|weighted| &weighted["podAffinityTerm"]),
            )
        })
}

fn has_reserved_token_path(spec: &Value) -> bool {
    list(&spec["volumes"])
        .flat_map(|v| list(&v["projected"]["sources"]))
        .filter(|s| s["serviceAccountToken"].is_object())
        .any(|s| {
            let mut errors = Errors::default();
            non_reserved_path(&mut errors, &At::root(&s["serviceAccountToken"]["path"]));
            !errors.is_empty()
        })
}

/// Whether a container of that name is in the spec.
pub(super) fn has_container(spec: &At<'_, '_>, name: &str) -> bool {
    containers_of(spec.value()).any(|c| c["name"] == name)
}
