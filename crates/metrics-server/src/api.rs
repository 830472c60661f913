//! `metrics.k8s.io/v1beta1`.

use std::collections::BTreeMap;
use std::sync::Arc;

use fluyt_api::Error;
use fluyt_api::quantity::Quantity;
use fluyt_api::selector::LabelSelector;
use fluyt_client::Informer;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt as _;
use serde_json::{Value, json};

use crate::samples::{Measured, Store, Usage};

const GROUP: &str = "metrics.k8s.io";
const VERSION: &str = "metrics.k8s.io/v1beta1";

/// Answers requests from the samples.
pub struct Api {
    store: Arc<Store>,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
}

impl Api {
    pub fn new(store: Arc<Store>, nodes: Informer<Node>, pods: Informer<Pod>) -> Self {
        Self { store, nodes, pods }
    }

    pub fn is_ready(&self) -> bool {
        self.nodes.has_synced() && self.pods.has_synced()
    }

    /// The answer to a GET.
    pub fn get(&self, path: &str, query: Option<&str>) -> Result<Value, Error> {
        let selector = selector(query)?;
        let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
        match segments.as_slice() {
            ["apis"] => {
                Ok(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": [group()]}))
            }
            ["apis", GROUP] => Ok(group()),
            ["apis", GROUP, "v1beta1"] => Ok(resources()),
            ["apis", GROUP, "v1beta1", "nodes"] => {
                let nodes = self.nodes.list();
                let items = nodes
                    .iter()
                    .filter(|n| matches(&selector, n.labels()))
                    .filter_map(|n| self.node(n));
                Ok(list("NodeMetricsList", items.collect()))
            }
            ["apis", GROUP, "v1beta1", "nodes", name] => {
                let node = self.nodes.get(None, name);
                node.and_then(|n| self.node(&n))
                    .ok_or_else(|| Error::not_found(GROUP, "nodes", name))
            }
            ["apis", GROUP, "v1beta1", "pods"] => Ok(self.pods(&self.pods.list(), &selector)),
            ["apis", GROUP, "v1beta1", "namespaces", namespace, "pods"] => {
                Ok(self.pods(&self.pods.list_namespace(namespace), &selector))
            }
            [
                "apis",
                GROUP,
                "v1beta1",
                "namespaces",
                namespace,
                "pods",
                name,
            ] => {
                let pod = self.pods.get(Some(namespace), name);
                let found = pod.and_then(|p| self.pod(&p));
                found.ok_or_else(|| Error::not_found(GROUP, "pods", &format!("{namespace}/{name}")))
            }
            _ => Err(Error::no_route()),
        }
    }

    fn node(&self, node: &Node) -> Option<Value> {
        let measured = self.store.node(&node.name_any())?;
        let mut item = item("NodeMetrics", &node.name_any(), node.labels(), &measured);
        item["usage"] = usage(measured.usage);
        Some(item)
    }

    fn pods(&self, pods: &[Arc<Pod>], selector: &LabelSelector) -> Value {
        let items = pods
            .iter()
            .filter(|p| matches(selector, p.labels()))
            .filter_map(|p| self.pod(p));
        list("PodMetricsList", items.collect())
    }

    fn pod(&self, pod: &Pod) -> Option<Value> {
        let namespace = pod.namespace()?;
        let measured = self.store.pod(&namespace, &pod.name_any())?;
        let mut item = item("PodMetrics", &pod.name_any(), pod.labels(), &measured);
        item["metadata"]["namespace"] = namespace.into();
        item["containers"] = measured
            .usage
            .iter()
            .map(|(name, used)| json!({"name": name, "usage": usage(*used)}))
            .collect();
        Some(item)
    }
}

fn selector(query: Option<&str>) -> Result<LabelSelector, Error> {
    let text = query
        .into_iter()
        .flat_map(|q| q.split('&'))
        .find_map(|pair| pair.strip_prefix("labelSelector="))
        .unwrap_or_default();
    LabelSelector::parse(&decode(text)).map_err(Error::bad_request)
}

/// Percent-decoding; malformed escapes stay as they are.
fn decode(text: &str) -> String {
    let text = text.replace('+', " ");
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        match part
            .get(..2)
            .and_then(|hex| u8::from_str_radix(hex, 16).ok())
        {
            Some(byte) => {
                bytes.push(byte);
                bytes.extend_from_slice(&part.as_bytes()[2..]);
            }
            None => {
                bytes.push(b'%');
                bytes.extend_from_slice(part.as_bytes());
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn matches(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    selector.matches_with(|key| labels.get(key).map(String::as_str))
}

fn item<T>(
    kind: &str,
    name: &str,
    labels: &BTreeMap<String, String>,
    measured: &Measured<T>,
) -> Value {
    let timestamp = measured.at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    json!({
        "kind": kind, "apiVersion": VERSION, "timestamp": timestamp,
        "window": format!("{:.3}s", measured.window.as_secs_f64()),
        "metadata": {"name": name, "labels": labels, "creationTimestamp": timestamp},
    })
}

fn usage(used: Usage) -> Value {
    let kibibytes = i64::try_from(used.memory_bytes / 1024).unwrap_or(i64::MAX);
    json!({
        "cpu": if used.cpu_nanocores == 0 { "0".to_owned() } else { format!("{}n", used.cpu_nanocores) },
        "memory": Quantity::from_bytes(kibibytes.saturating_mul(1024)).to_string(),
    })
}

fn list(kind: &str, items: Vec<Value>) -> Value {
    json!({"kind": kind, "apiVersion": VERSION, "metadata": {}, "items": items})
}

fn group() -> Value {
    let version = json!({"groupVersion": VERSION, "version": "v1beta1"});
    json!({"kind": "APIGroup", "apiVersion": "v1", "name": GROUP, "versions": [version], "preferredVersion": version})
}

fn resources() -> Value {
    let resource = |name: &str, namespaced: bool, kind: &str| json!({"name": name, "singularName": "", "namespaced": namespaced, "kind": kind, "verbs": ["get", "list"]});
    json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": VERSION,
        "resources": [resource("nodes", false, "NodeMetrics"), resource("pods", true, "PodMetrics")],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api() -> Api {
        let node: Node =
            serde_json::from_value(json!({"metadata": {"name": "a", "labels": {"x": "y"}}}))
                .unwrap();
        let store = Arc::new(Store::default());
        for (second, cpu) in [(0, 1.0), (10, 3.5)] {
            let text = format!(
                "node_cpu_usage_seconds_total {cpu}\nnode_memory_working_set_bytes 1048576\n"
            );
            let at = jiff::Timestamp::from_second(second).unwrap();
            store.push("a", crate::samples::Sample::parse(at, &text));
        }
        Api::new(
            store,
            Informer::of_objects([node]),
            Informer::of_objects([]),
        )
    }

    #[test]
    fn nodes_are_served_and_selected() {
        let api = api();
        let node = api
            .get("/apis/metrics.k8s.io/v1beta1/nodes/a", None)
            .unwrap();
        assert_eq!(node["usage"], json!({"cpu": "250000000n", "memory": "1Mi"}));
        let count = |query: &str| {
            api.get("/apis/metrics.k8s.io/v1beta1/nodes", Some(query))
                .unwrap()["items"]
                .as_array()
                .unwrap()
                .len()
        };
        assert_eq!(
            (count("labelSelector=x%3Dy"), count("labelSelector=x%3Dz")),
            (1, 0)
        );
        assert_eq!(
            api.get("/apis/metrics.k8s.io/v1beta1/nodes/b", None)
                .unwrap_err()
                .code,
            404
        );
        assert!(api.get("/nothing", None).is_err());
    }
}
