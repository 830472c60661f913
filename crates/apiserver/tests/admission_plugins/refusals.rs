//! Plugins that refuse.

use std::sync::Arc;

use super::*;
use crate::common::pod;
use http::Method;

const SERVICES: &str = "/api/v1/namespaces/n/services";
const CONFIG_MAPS: &str = "/api/v1/namespaces/n/configmaps";

/// What a server leaves in a store for one with other plugins.
async fn store_with(path: &str, object: Value) -> (DynStore, TempDir, Api) {
    let directory = tempfile::tempdir().unwrap();
    let store: DynStore = Arc::new(Embedded::open(&directory.path().join("store")).unwrap());
    let before = Api::configured_on(store.clone(), |_, _| {}).await;
    before.namespace().await;
    made(before.post(path, object).await);
    (store, directory, before)
}

fn service(name: &str, external_ips: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"ports": [{"port": 80}], "externalIPs": external_ips}})
}

#[tokio::test]
async fn always_deny_refuses_every_write() {
    let map = json!({"metadata": {"name": "m"}});
    let (store, _directory, before) = store_with(CONFIG_MAPS, map).await;
    let api = Api::configured_on(store, |config, _| {
        config.admission.enabled = vec!["AlwaysDeny".into(), "AlwaysAdmit".into()];
        // With the same authority there is nothing that the server has to write to start.
        config.client_ca_pem = before.authority.certificate_pem().to_owned();
    })
    .await;
    let why = |name: &str| {
        format!("configmaps {name:?} is forbidden: admission control is denying all modifications")
    };
    let other = json!({"metadata": {"name": "other"}});
    assert_refused(api.post(CONFIG_MAPS, other).await, 403, &why("other"));
    let path = format!("{CONFIG_MAPS}/m");
    let change = json!({"data": {"a": "b"}});
    let patched = api.patch(&path, "merge-patch", change).await;
    assert_refused(patched, 403, &why("m"));
    let deleted = api.call(Method::DELETE, &path, Value::Null).await;
    assert_refused(deleted, 403, &why("m"));
    assert_eq!(made(api.get(&path).await)["data"], Value::Null);
}

#[tokio::test]
async fn deny_service_external_ips_keeps_those_that_are_there() {
    let old = service("s", json!(["192.0.2.1", "192.0.2.2"]));
    let (store, directory, _before) = store_with(SERVICES, old).await;
    let plugins = ["DenyServiceExternalIPs"];
    let denying = Plugged::start_on(store, directory, &plugins, json!([])).await;
    let api = &denying.api;
    let why = |name: &str| {
        format!(
            "services {name:?} is forbidden: Use of external IPs is denied by admission control"
        )
    };
    let new = service("new", json!(["192.0.2.1"]));
    assert_refused(api.post(SERVICES, new).await, 403, &why("new"));
    made(api.post(SERVICES, service("plain", json!([]))).await);
    let path = format!("{SERVICES}/s");
    let patched = async |addresses: Value| {
        let change = json!({"spec": {"externalIPs": addresses}});
        api.patch(&path, "merge-patch", change).await
    };
    assert_refused(patched(json!(["192.0.2.3"])).await, 403, &why("s"));
    made(patched(json!(["192.0.2.2"])).await);
    assert_refused(
        patched(json!(["192.0.2.1", "192.0.2.2"])).await,
        403,
        &why("s"),
    );
}

#[tokio::test]
async fn limit_pod_hard_anti_affinity_topology_allows_hosts_only() {
    let limited = Plugged::start(&["LimitPodHardAntiAffinityTopology"], json!([])).await;
    let limited = limited.with_namespace().await;
    let apart = |name: &str, list: &str, term: Value| {
        pod_with(
            name,
            json!({"affinity": {"podAntiAffinity": {list: [term]}}}),
        )
    };
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    let term = |key: &str| json!({"topologyKey": key, "labelSelector": {}});
    let by_zone = apart("zone", required, term("topology.kubernetes.io/zone"));
    assert_refused(
        limited.api.post(PODS, by_zone).await,
        403,
        "pods \"zone\" is forbidden: affinity.PodAntiAffinity.RequiredDuringScheduling has TopologyKey topology.kubernetes.io/zone but only key kubernetes.io/hostname is allowed",
    );
    let by_host = apart("host", required, term("kubernetes.io/hostname"));
    made(limited.api.post(PODS, by_host).await);
    let wish = json!({"weight": 1, "podAffinityTerm": term("topology.kubernetes.io/zone")});
    let wish = apart(
        "wish",
        "preferredDuringSchedulingIgnoredDuringExecution",
        wish,
    );
    made(limited.api.post(PODS, wish).await);
}

#[tokio::test]
async fn event_rate_limit_counts_events_of_a_namespace() {
    let limits = json!([{"type": "Namespace", "qps": 1, "burst": 1}, {"type": "User", "qps": 1000, "burst": 1000}]);
    let configuration = json!({"apiVersion": "eventratelimit.admission.k8s.io/v1alpha1", "kind": "Configuration", "limits": limits});
    let plugins = json!([{"name": "EventRateLimit", "configuration": configuration}]);
    let limited = Plugged::start(&["EventRateLimit"], plugins)
        .await
        .with_namespace()
        .await;
    let api = &limited.api;
    let post = async |namespace: &str, query: &str| {
        let event = json!({"metadata": {"generateName": "e-", "namespace": namespace},
            "involvedObject": {"kind": "Pod", "namespace": namespace, "name": "p"}});
        let path = format!("/api/v1/namespaces/{namespace}/events{query}");
        api.post(&path, event).await
    };
    // What is not written takes nothing from the allowance.
    for _ in 0..3 {
        made(post("n", "?dryRun=All").await);
    }
    made(post("n", "").await);
    // The allowance grows while these are sent, but not as fast.
    let mut refused = None;
    for _ in 0..1000 {
        let answer = post("n", "").await;
        if answer.0 == StatusCode::TOO_MANY_REQUESTS {
            refused = Some(answer);
            break;
        }
    }
    assert_refused(
        refused.unwrap(),
        429,
        "Too many requests: limit reached on type Namespace for key n",
    );
    made(post("default", "").await);
    // What is no event is not limited.
    for _ in 0..3 {
        made(
            api.post(
                PODS,
                json!({"metadata": {"generateName": "p-"}, "spec": pod("p")["spec"]}),
            )
            .await,
        );
    }
}
