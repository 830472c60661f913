//! Plugins about the nodes that pods may be on.

use super::*;
use crate::common::pod;
use fluyt_apiserver::{Features, Versions};

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

/// Resizes what the init container, or what all of the pod, asks for.
async fn resize_part(api: &Api, name: &str, part: &str, cpu: &str) -> (http::StatusCode, Value) {
    let resources = json!({"requests": {"cpu": cpu}});
    let spec = match part {
        "pod" => json!({"resources": resources}),
        list => json!({list: [{"name": "i", "resources": resources}]}),
    };
    let path = format!("{PODS}/{name}/resize");
    let change = json!({"spec": spec});
    api.patch(&path, "strategic-merge-patch", change).await
}

/// A node that declares features, with room.
async fn declaring(api: &Api, name: &str, features: &[&str]) -> Value {
    let node = json!({"metadata": {"name": name}});
    let mut node = made(api.post("/api/v1/nodes", node).await);
    node["status"]["allocatable"] = json!({"cpu": "8", "memory": "1Gi"});
    node["status"]["declaredFeatures"] = json!(features);
    let path = format!("/api/v1/nodes/{name}/status");
    made(api.call(http::Method::PUT, &path, node).await)
}

/// A pod on a node whose init container and whose whole can be resized.
async fn resizable(api: &Api, name: &str, node: &str) {
    let init = json!([{"name": "i", "image": "i", "resources": {"requests": {"cpu": "1"}}}]);
    let spec = json!({"nodeName": node, "containers": container("1"), "initContainers": init,
        "resources": {"requests": {"cpu": "2"}}});
    made(api.post(PODS, pod_with(name, spec)).await);
}

#[tokio::test]
async fn what_a_node_has_not_declared_is_not_asked_of_it() {
    let plugged = Plugged::start(&[], json!([])).await.with_namespace().await;
    let api = &plugged.api;
    let (whole, init) = (
        "InPlacePodLevelResourcesVerticalScaling",
        "InPlacePodVerticalScalingInitContainers",
    );
    for (node, features) in [
        ("plain", &["Other"][..]),
        ("some", &[init]),
        ("all", &[whole, init]),
    ] {
        let made = declaring(api, node, features).await;
        assert_eq!(made["status"]["declaredFeatures"], json!(features));
    }
    for (pod, node) in [
        ("a", "plain"),
        ("b", "some"),
        ("c", "all"),
        ("d", "gone"),
        ("e", ""),
    ] {
        resizable(api, pod, node).await;
    }
    let refused = |pod: &str, why: &str| format!("pods \"{pod}\" is forbidden: {why}");
    let lacks = |features: &str, node: &str| {
        format!(
            "pod update requires features {features} which are not available on node \"{node}\""
        )
    };
    let why = refused("a", &lacks(init, "plain"));
    assert_refused(
        resize_part(api, "a", "initContainers", "2").await,
        403,
        &why,
    );
    let why = refused("a", &lacks(whole, "plain"));
    assert_refused(resize_part(api, "a", "pod", "3").await, 403, &why);
    let both = json!({"spec": {"resources": {"requests": {"cpu": "3"}},
        "initContainers": [{"name": "i", "resources": {"requests": {"cpu": "2"}}}]}});
    let path = format!("{PODS}/a/resize");
    let answer = api.patch(&path, "strategic-merge-patch", both).await;
    let why = refused("a", &lacks(&format!("{whole}, {init}"), "plain"));
    assert_refused(answer, 403, &why);
    let why = refused("b", &lacks(whole, "some"));
    assert_refused(resize_part(api, "b", "pod", "3").await, 403, &why);
    let why = refused("d", "node \"gone\" not found");
    assert_refused(resize_part(api, "d", "pod", "3").await, 403, &why);
    // What needs nothing of its node, and what the node knows.
    made(resize(api, "a", "1500m").await);
    made(resize_part(api, "b", "initContainers", "2").await);
    made(resize_part(api, "c", "initContainers", "2").await);
    made(resize_part(api, "c", "pod", "3").await);
    // One that is nowhere yet goes where it can.
    made(resize_part(api, "e", "pod", "3").await);
    // Whatever else is updated.
    let labels = json!({"metadata": {"labels": {"l": "v"}}});
    made(api.patch(&format!("{PODS}/a"), "merge-patch", labels).await);
}

#[tokio::test]
async fn without_the_feature_nodes_declare_nothing_and_nothing_is_refused() {
    let with = Api::start().await;
    with.namespace().await;
    declaring(&with, "old", &["Other"]).await;
    let gates = "NodeDeclaredFeatures=false";
    let features = Features::parse(gates, Versions::default()).unwrap();
    let api = Api::configured_on(with.store.clone(), |config, _| config.features = features);
    let api = api.await;
    let declared = |node: Value| node["status"]["declaredFeatures"].clone();
    assert!(declared(declaring(&api, "new", &["Other"]).await).is_null());
    let features = json!({"status": {"declaredFeatures": ["New"]}});
    let change = async |node: &str| {
        let path = format!("/api/v1/nodes/{node}/status");
        declared(made(
            api.patch(&path, "merge-patch", features.clone()).await,
        ))
    };
    assert!(change("new").await.is_null());
    assert_eq!(change("old").await, json!(["New"]), "it is in use there");
    resizable(&api, "p", "new").await;
    made(resize_part(&api, "p", "pod", "3").await);
}
