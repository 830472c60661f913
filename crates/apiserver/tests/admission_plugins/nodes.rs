//! Plugins about the nodes that pods may be on.

use super::*;
use common::pod;

fn configured(plugin: &str, configuration: Value) -> Value {
    json!([{"name": plugin, "configuration": configuration}])
}

#[tokio::test]
async fn extended_resources_are_tolerated() {
    let tolerant = Plugged::start(&["ExtendedResourceToleration"], json!([])).await;
    let tolerant = tolerant.with_namespace().await;
    let limits = json!({"cpu": "1", "example.com/device": "1"});
    let containers = json!([{"name": "c", "image": "i", "resources": {"limits": limits}}]);
    let pod = pod_with("p", json!({"containers": containers}));
    let made = made(tolerant.api.post(PODS, pod).await);
    let tolerations = made["spec"]["tolerations"].as_array().unwrap();
    let wanted = json!({"key": "example.com/device", "operator": "Exists", "effect": "NoSchedule"});
    let found = tolerations.iter().filter(|t| t["effect"] == "NoSchedule");
    assert_eq!(found.collect::<Vec<_>>(), [&wanted]);
}

#[tokio::test]
async fn pods_get_the_node_selector_of_their_namespace() {
    let selectors =
        json!({"clusterDefaultNodeSelector": "env=test", "n": "env=test,disk=ssd,zone=a"});
    let configuration = json!({"podNodeSelectorPluginConfig": selectors});
    let plugins = configured("PodNodeSelector", configuration);
    let plugged = Plugged::start(&["PodNodeSelector"], plugins)
        .await
        .with_namespace()
        .await;
    let post = async |name: &'static str, selector: Value| {
        let pod = pod_with(name, json!({"nodeSelector": selector}));
        plugged.api.post(PODS, pod).await
    };
    let selector = |made: Value| made["spec"]["nodeSelector"].clone();
    assert_eq!(
        selector(made(plugged.api.post(PODS, pod("plain")).await)),
        json!({"env": "test"})
    );
    assert_eq!(
        selector(made(post("more", json!({"disk": "ssd"})).await)),
        json!({"env": "test", "disk": "ssd"})
    );
    assert_refused(
        post("other", json!({"env": "prod"})).await,
        403,
        "pods \"other\" is forbidden: pod node label selector conflicts with its namespace node label selector",
    );
    assert_refused(
        post("foreign", json!({"gpu": "yes"})).await,
        403,
        "pods \"foreign\" is forbidden: pod node label selector labels conflict with its namespace whitelist",
    );
    let annotation = "scheduler.alpha.kubernetes.io/node-selector";
    plugged.annotate(json!({annotation: "zone=a"})).await;
    assert_eq!(
        selector(made(plugged.api.post(PODS, pod("zoned")).await)),
        json!({"zone": "a"})
    );
    plugged.annotate(json!({annotation: "zone"})).await;
    let refused = plugged.api.post(PODS, pod("lost")).await;
    assert_refused(refused, 500, "invalid selector: [zone]");
}

#[tokio::test]
async fn tolerations_are_given_and_restricted() {
    let configuration = json!({
        "apiVersion": "podtolerationrestriction.admission.k8s.io/v1alpha1", "kind": "Configuration",
        "default": [{"key": "cluster", "operator": "Exists"}],
        "whitelist": [{"key": "cluster", "operator": "Exists"}, {"key": "node.kubernetes.io/not-ready", "operator": "Exists"},
            {"key": "node.kubernetes.io/unreachable", "operator": "Exists"}, {"key": "node.kubernetes.io/memory-pressure", "operator": "Exists"}],
    });
    let plugins = configured("PodTolerationRestriction", configuration);
    let plugged = Plugged::start(&["PodTolerationRestriction"], plugins).await;
    let plugged = plugged.with_namespace().await;
    let api = &plugged.api;
    let keys = |made: Value| -> Vec<String> {
        let tolerations = made["spec"]["tolerations"].as_array().unwrap().iter();
        let keys = tolerations.map(|t| t["key"].as_str().unwrap().to_owned());
        keys.map(|k| k.trim_start_matches("node.kubernetes.io/").to_owned())
            .collect()
    };
    let plain = made(api.post(PODS, pod("plain")).await);
    assert_eq!(keys(plain), ["not-ready", "unreachable", "cluster"]);
    let resources = json!({"requests": {"memory": "1Mi"}});
    let containers = json!([{"name": "c", "image": "i", "resources": resources}]);
    let burstable = pod_with("burstable", json!({"containers": containers}));
    let burstable = made(api.post(PODS, burstable).await);
    assert_eq!(
        keys(burstable),
        ["not-ready", "unreachable", "cluster", "memory-pressure"]
    );
    let conflict = |whose: &str| {
        format!(
            "pod tolerations (possibly merged with namespace default tolerations) conflict with its {whose} whitelist"
        )
    };
    let foreign = |name: &str| {
        pod_with(
            name,
            json!({"tolerations": [{"key": "foreign", "operator": "Exists"}]}),
        )
    };
    assert_refused(
        api.post(PODS, foreign("a")).await,
        500,
        &conflict("cluster"),
    );
    let everything = r#"[{"operator": "Exists"}]"#;
    let allowed = "scheduler.alpha.kubernetes.io/tolerationsWhitelist";
    let default = "scheduler.alpha.kubernetes.io/defaultTolerations";
    let own = r#"[{"key": "own", "operator": "Exists"}]"#;
    plugged
        .annotate(json!({allowed: everything, default: own}))
        .await;
    let foreign_pod = made(api.post(PODS, foreign("b")).await);
    assert_eq!(
        keys(foreign_pod),
        ["foreign", "not-ready", "unreachable", "own"]
    );
    plugged.annotate(json!({allowed: own})).await;
    assert_refused(api.post(PODS, pod("c")).await, 500, &conflict("namespace"));
}

/// A container that asks for so much CPU.
fn container(cpu: &str) -> Value {
    json!([{"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}}])
}

async fn resize(api: &Api, name: &str, cpu: &str) -> (http::StatusCode, Value) {
    let path = format!("{PODS}/{name}/resize");
    let spec = json!({"spec": {"containers": container(cpu)}});
    api.patch(&path, "strategic-merge-patch", spec).await
}

#[tokio::test]
async fn what_is_resized_must_fit_on_its_node() {
    let plugged = Plugged::start(&[], json!([])).await.with_namespace().await;
    let api = &plugged.api;
    for (name, system) in [("small", "linux"), ("other", "windows")] {
        let labels = json!({"kubernetes.io/os": system});
        let node = json!({"metadata": {"name": name, "labels": labels}});
        let mut node = made(api.post("/api/v1/nodes", node).await);
        node["status"]["allocatable"] = json!({"cpu": "2", "memory": "1Gi"});
        let path = format!("/api/v1/nodes/{name}/status");
        made(api.call(http::Method::PUT, &path, node).await);
    }
    for (name, node) in [("a", "small"), ("b", "other"), ("c", "gone")] {
        let spec = json!({"nodeName": node, "containers": container("1")});
        made(api.post(PODS, pod_with(name, spec)).await);
    }
    let refused = |name: &str, why: &str| format!("pods \"{name}\" is forbidden: {why}");
    let (status, answer) = resize(api, "a", "3").await;
    let why =
        "node didn't have enough allocatable resources: cpu, requested: 3000, allocatable: 2000";
    assert_eq!(answer["details"]["causes"][0]["reason"], "NodeCapacity");
    assert_refused((status, answer), 403, &refused("a", why));
    let (status, answer) = resize(api, "b", "2").await;
    let why = "pod resize is only supported on linux nodes, node \"other\" is \"windows\"";
    assert_eq!(
        answer["details"]["causes"][0]["reason"],
        "UnsupportedPlatform"
    );
    assert_refused((status, answer), 403, &refused("b", why));
    let gone = refused("c", "node \"gone\" not found");
    assert_refused(resize(api, "c", "2").await, 403, &gone);
    // As much as there is, and what changes nothing.
    let resized = made(resize(api, "a", "2").await);
    assert_eq!(
        resized["spec"]["containers"][0]["resources"]["requests"]["cpu"],
        "2"
    );
    made(resize(api, "c", "1").await);
}
