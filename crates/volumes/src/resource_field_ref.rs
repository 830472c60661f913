//! `resourceFieldRef`: a container's request or limit as a number, for environment variables and downward API
//! files.

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::{VolumeError, quantity};

/// What the node offers to pods; stands in where a container has no limit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allocatable {
    pub milli_cpu: i64,
    pub memory: i64,
    pub ephemeral_storage: i64,
}

/// The value the selector asks for, in units of its divisor, rounded up. `current` is the container that asks,
/// which a selector without `containerName` means.
pub fn extract(
    pod: &Pod,
    current: Option<&str>,
    selector: &ResourceFieldSelector,
    allocatable: &Allocatable,
) -> Result<String, VolumeError> {
    let name = selector
        .container_name
        .as_deref()
        .filter(|name| !name.is_empty())
        .or(current)
        .unwrap_or_default();
    let spec = pod.spec.as_ref();
    let container: &Container = spec
        .into_iter()
        .flat_map(|spec| {
            spec.containers
                .iter()
                .chain(spec.init_containers.iter().flatten())
        })
        .find(|container| container.name == name)
        .ok_or_else(|| VolumeError::Invalid(format!("container {name} not found")))?;
    let (kind, resource) = selector.resource.split_once('.').ok_or_else(|| {
        VolumeError::Invalid(format!(
            "unsupported container resource : {}",
            selector.resource
        ))
    })?;
    let resources = container.resources.as_ref();
    let amounts = match kind {
        "limits" => resources.and_then(|resources| resources.limits.as_ref()),
        "requests" => resources.and_then(|resources| resources.requests.as_ref()),
        _ => None,
    };
    let set = amounts.and_then(|amounts| amounts.get(resource));
    let fall_back = |node: i64| if kind == "limits" { node } else { 0 };
    // CPU in thousandths, everything else in units: the divisor is read in the same unit.
    let (amount, divisor) = match resource {
        "cpu" => (
            set.and_then(quantity::milli_value)
                .filter(|amount| *amount > 0)
                .unwrap_or(fall_back(allocatable.milli_cpu)),
            divisor(selector, quantity::milli_value, 1000),
        ),
        "memory" => (
            set.and_then(quantity::value)
                .filter(|amount| *amount > 0)
                .unwrap_or(fall_back(allocatable.memory)),
            divisor(selector, quantity::value, 1),
        ),
        "ephemeral-storage" => (
            set.and_then(quantity::value)
                .filter(|amount| *amount > 0)
                .unwrap_or(fall_back(allocatable.ephemeral_storage)),
            divisor(selector, quantity::value, 1),
        ),
        _ if resource.starts_with("hugepages-") => (
            set.and_then(quantity::value).unwrap_or(0),
            divisor(selector, quantity::value, 1),
        ),
        _ => {
            return Err(VolumeError::Invalid(format!(
                "unsupported container resource : {}",
                selector.resource
            )));
        }
    };
    Ok((amount / divisor + i64::from(amount % divisor != 0)).to_string())
}

fn divisor(
    selector: &ResourceFieldSelector,
    read: fn(&Quantity) -> Option<i64>,
    default: i64,
) -> i64 {
    selector
        .divisor
        .as_ref()
        .and_then(read)
        .filter(|divisor| *divisor > 0)
        .unwrap_or(default)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "spec": {"containers": [{"name": "c", "resources": {
                "limits": {"cpu": "1500m"}, "requests": {"memory": "100Mi"}}}]}
        }))
        .unwrap();
        let allocatable = Allocatable {
            milli_cpu: 2000,
            memory: 4 << 30,
            ephemeral_storage: 0,
        };
        for (resource, divisor, expected) in [
            ("limits.cpu", None, "2"),
            ("limits.cpu", Some("1m"), "1500"),
            ("requests.cpu", None, "0"),
            ("limits.memory", Some("1Gi"), "4"),
            ("requests.memory", Some("1Mi"), "100"),
            ("requests.memory", Some("0"), "104857600"),
        ] {
            let selector = ResourceFieldSelector {
                container_name: None,
                divisor: divisor.map(|text| Quantity(text.into())),
                resource: resource.into(),
            };
            assert_eq!(
                extract(&pod, Some("c"), &selector, &allocatable).unwrap(),
                expected,
                "{resource}"
            );
        }
        let selector = ResourceFieldSelector {
            resource: "limits.gpu".into(),
            ..Default::default()
        };
        assert!(extract(&pod, Some("c"), &selector, &allocatable).is_err());
    }
}
