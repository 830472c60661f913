//! `fieldRef`: a field of the pod as text, for environment variables and downward API files.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;

/// The value of `path` (`metadata.name`, `metadata.labels['app']`, `status.podIP`, …), or `None` for a path that
/// the downward API doesn't offer. A field that is offered but not set yet is the empty string.
pub fn extract(pod: &Pod, path: &str) -> Option<String> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    let status = pod.status.as_ref();
    if let Some((field, key)) = subscript(path) {
        let map = match field {
            "metadata.labels" => &meta.labels,
            "metadata.annotations" => &meta.annotations,
            _ => return None,
        };
        return Some(
            map.as_ref()
                .and_then(|map| map.get(key))
                .cloned()
                .unwrap_or_default(),
        );
    }
    let value = match path {
        "metadata.name" => meta.name.clone(),
        "metadata.namespace" => meta.namespace.clone(),
        "metadata.uid" => meta.uid.clone(),
        "metadata.labels" => meta.labels.as_ref().map(format_map),
        "metadata.annotations" => meta.annotations.as_ref().map(format_map),
        "spec.nodeName" => spec.and_then(|spec| spec.node_name.clone()),
        "spec.serviceAccountName" => spec.and_then(|spec| spec.service_account_name.clone()),
        "spec.restartPolicy" => spec.and_then(|spec| spec.restart_policy.clone()),
        "spec.schedulerName" => spec.and_then(|spec| spec.scheduler_name.clone()),
        "status.phase" => status.and_then(|status| status.phase.clone()),
        "status.hostIP" => status.and_then(|status| status.host_ip.clone()),
        "status.podIP" => status.and_then(|status| status.pod_ip.clone()),
        "status.nominatedNodeName" => status.and_then(|status| status.nominated_node_name.clone()),
        "status.hostIPs" => status.and_then(|status| {
            let ips = status.host_ips.as_ref()?;
            Some(join(ips.iter().map(|ip| ip.ip.as_str())))
        }),
        "status.podIPs" => status.and_then(|status| {
            let ips = status.pod_ips.as_ref()?;
            Some(join(ips.iter().map(|ip| ip.ip.as_str())))
        }),
        _ => return None,
    };
    Some(value.unwrap_or_default())
}

/// `metadata.labels['key']` as (`metadata.labels`, `key`).
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (field, rest) = path.split_once("['")?;
    Some((field, rest.strip_suffix("']")?))
}

fn join<'a>(items: impl Iterator<Item = &'a str>) -> String {
    items.collect::<Vec<_>>().join(",")
}

/// `key="value"` lines, sorted, the value quoted as Go's `%q` does.
fn format_map(map: &BTreeMap<String, String>) -> String {
    map.iter()
        .map(|(key, value)| format!("{key}={}", quote(value)))
        .collect::<Vec<_>>()
        .join("\n")
}

fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => {
                quoted.push_str(&format!("\\x{:02x}", c as u32));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u",
                "labels": {"b": "2\n\"x\"", "a": "1"}},
            "spec": {"nodeName": "node-0", "containers": []},
            "status": {"podIP": "1.2.3.4", "podIPs": [{"ip": "1.2.3.4"}, {"ip": "::1"}]}
        }))
        .unwrap();
        for (path, expected) in [
            ("metadata.name", Some("p")),
            ("metadata.labels", Some("a=\"1\"\nb=\"2\\n\\\"x\\\"\"")),
            ("metadata.labels['a']", Some("1")),
            ("metadata.labels['none']", Some("")),
            ("metadata.annotations", Some("")),
            ("spec.nodeName", Some("node-0")),
            ("status.podIPs", Some("1.2.3.4,::1")),
            ("status.hostIP", Some("")),
            ("spec.containers", None),
            ("status.podIP['x']", None),
        ] {
            assert_eq!(extract(&pod, path).as_deref(), expected, "{path}");
        }
    }
}
