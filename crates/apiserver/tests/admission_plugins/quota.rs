//! What may be used only where a quota limits it.

use super::*;

const QUOTAS: &str = "/api/v1/namespaces/n/resourcequotas";
const CLAIMS: &str = "/api/v1/namespaces/n/persistentvolumeclaims";

async fn limited() -> Plugged {
    let storage = json!({"resource": "persistentvolumeclaims", "matchContains": [".storageclass.storage.k8s.io/requests.storage"]});
    let scope = json!({"scopeName": "PriorityClass", "operator": "In", "values": ["system-cluster-critical"]});
    let pods = json!({"resource": "pods", "matchScopes": [scope]});
    let configuration = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "ResourceQuotaConfiguration",
        "limitedResources": [storage, pods]});
    let directory = tempfile::tempdir().unwrap();
    // In a file beside the other one.
    let path = directory.path().join("quota.yaml");
    std::fs::write(path, configuration.to_string()).unwrap();
    let plugins = json!([{"name": "ResourceQuota", "path": "quota.yaml"}]);
    let limited = Plugged::start_in(directory, &[], plugins).await;
    limited.with_namespace().await
}

/// A quota with what a controller would have counted.
async fn quota(api: &Api, name: &str, mut spec: Value, used: Value) {
    let hard = spec["hard"].clone();
    let quota = json!({"metadata": {"name": name}, "spec": spec.take()});
    let mut quota = made(api.post(QUOTAS, quota).await);
    quota["status"] = json!({"hard": hard, "used": used});
    let path = format!("{QUOTAS}/{name}/status");
    made(api.call(http::Method::PUT, &path, quota).await);
}

#[tokio::test]
async fn limited_resources_need_a_quota() {
    let limited = limited().await;
    let api = &limited.api;
    let claim = |name: &str, class: &str| {
        json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"],
            "storageClassName": class, "resources": {"requests": {"storage": "1Gi"}}}})
    };
    let resource = "gold.storageclass.storage.k8s.io/requests.storage";
    let why = format!(
        "persistentvolumeclaims \"a\" is forbidden: insufficient quota to consume: {resource}"
    );
    assert_refused(api.post(CLAIMS, claim("a", "gold")).await, 403, &why);
    quota(
        api,
        "gold",
        json!({"hard": {resource: "1Gi"}}),
        json!({resource: "0"}),
    )
    .await;
    made(api.post(CLAIMS, claim("a", "gold")).await);
    let second = api.post(CLAIMS, claim("b", "gold")).await;
    let exceeded = format!(
        "persistentvolumeclaims \"b\" is forbidden: exceeded quota: gold, requested: {resource}=1Gi, used: {resource}=1Gi, limited: {resource}=1Gi"
    );
    assert_refused(second, 403, &exceeded);
    // The quota is of another class.
    let (status, answer) = api.post(CLAIMS, claim("c", "silver")).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{answer}");
    made(api.post(PODS, crate::common::pod("p")).await);
}

#[tokio::test]
async fn limited_scopes_need_a_quota() {
    let limited = limited().await;
    let api = &limited.api;
    let critical = |name: &str| {
        pod_with(
            name,
            json!({"priorityClassName": "system-cluster-critical"}),
        )
    };
    assert_refused(
        api.post(PODS, critical("a")).await,
        500,
        "insufficient quota to match these scopes: [{PriorityClass In [system-cluster-critical]}]",
    );
    let selector = |values: Value| json!({"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In", "values": values}]});
    let spec = |values: Value| json!({"hard": {"pods": "5"}, "scopeSelector": selector(values)});
    quota(api, "others", spec(json!(["other"])), json!({"pods": "0"})).await;
    assert_eq!(
        api.post(PODS, critical("b")).await.0,
        StatusCode::INTERNAL_SERVER_ERROR
    );
    let of_critical = spec(json!(["system-cluster-critical"]));
    quota(api, "critical", of_critical, json!({"pods": "0"})).await;
    made(api.post(PODS, critical("c")).await);
    let quota = made(api.get(&format!("{QUOTAS}/critical")).await);
    assert_eq!(quota["status"]["used"]["pods"], "1");
    let others = made(api.get(&format!("{QUOTAS}/others")).await);
    assert_eq!(others["status"]["used"]["pods"], "0");
}

#[tokio::test]
async fn a_resize_is_charged() {
    let plugged = Plugged::start(&[], json!([])).await.with_namespace().await;
    let api = &plugged.api;
    let spec = json!({"hard": {"requests.cpu": "3"}});
    quota(api, "cpu", spec, json!({"requests.cpu": "0"})).await;
    let containers =
        |cpu: &str| json!([{"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}}]);
    // A sidecar counts beside what it helps.
    let sidecar = json!([{"name": "s", "image": "i", "restartPolicy": "Always",
        "resources": {"requests": {"cpu": "500m"}}}]);
    let pod = json!({"containers": containers("1"), "initContainers": sidecar});
    made(api.post(PODS, pod_with("p", pod)).await);
    let used = async || {
        let (_, quota) = api.get(&format!("{QUOTAS}/cpu")).await;
        quota["status"]["used"]["requests.cpu"].clone()
    };
    assert_eq!(used().await, "1500m");
    let resize = async |cpu: &str| {
        let spec = json!({"spec": {"containers": containers(cpu)}});
        let format = "strategic-merge-patch";
        api.patch(&format!("{PODS}/p/resize"), format, spec).await
    };
    let why = "pods \"p\" is forbidden: exceeded quota: cpu, requested: requests.cpu=2, used: requests.cpu=1500m, limited: requests.cpu=3";
    assert_refused(resize("3").await, 403, why);
    made(resize("2").await);
    assert_eq!(used().await, "2500m");
}

#[tokio::test]
async fn what_is_limited_must_be_stated_by_every_container() {
    let plugged = Plugged::start(&[], json!([])).await.with_namespace().await;
    let api = &plugged.api;
    made(api.post(PODS, crate::common::pod("old")).await);
    let hard = json!({"requests.cpu": "4", "limits.cpu": "4", "hugepages-2Mi": "6Mi"});
    let none = json!({"requests.cpu": "0", "limits.cpu": "0", "hugepages-2Mi": "0"});
    quota(api, "q", json!({"hard": hard}), none).await;
    let container =
        |name: &str, resources: Value| json!({"name": name, "image": "i", "resources": resources});
    let requests = json!({"requests": {"cpu": "1"}});
    let containers = json!([container("b", requests), container("a", json!({}))]);
    let refused = "pods \"p\" is forbidden: failed quota: q: must specify limits.cpu for: a,b; requests.cpu for: a";
    let pod = pod_with("p", json!({"containers": containers}));
    assert_refused(api.post(PODS, pod).await, 403, refused);
    let labels = json!({"metadata": {"labels": {"l": "v"}}});
    let old = format!("{PODS}/old");
    made(api.patch(&old, "merge-patch", labels).await);
    // A pod may state it for all of them.
    let limits = json!({"limits": {"cpu": "2", "hugepages-2Mi": "4Mi", "memory": "1Gi"}});
    let whole = json!({"resources": limits, "containers": containers});
    made(api.post(PODS, pod_with("q", whole.clone())).await);
    let (_, counted) = api.get(&format!("{QUOTAS}/q")).await;
    let used = json!({"requests.cpu": "1", "limits.cpu": "2", "hugepages-2Mi": "4Mi"});
    assert_eq!(counted["status"]["used"], used);
    let exceeded = "pods \"r\" is forbidden: exceeded quota: q, requested: hugepages-2Mi=4Mi, used: hugepages-2Mi=4Mi, limited: hugepages-2Mi=6Mi";
    assert_refused(api.post(PODS, pod_with("r", whole)).await, 403, exceeded);
}
