//! Server-side apply and managed fields, as clients see them.

use crate::common::{Api, pod};
use http::{Method, StatusCode};
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/n/configmaps";

fn config_map(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

async fn apply(api: &Api, path: &str, config: Value, query: &str) -> (StatusCode, Value) {
    let path = format!("{path}?{query}");
    let yaml = "application/apply-patch+yaml";
    api.call_as(&api.user, Method::PATCH, &path, yaml, config)
        .await
}

/// Manager, operation, subresource and fields of every entry.
fn owners(object: &Value) -> Vec<String> {
    let list = object["metadata"]["managedFields"].as_array();
    list.into_iter()
        .flatten()
        .map(|e| {
            format!(
                "{} {} {}{}",
                e["manager"].as_str().unwrap(),
                e["operation"].as_str().unwrap(),
                e["subresource"].as_str().unwrap_or_default(),
                e["fieldsV1"]
            )
        })
        .collect()
}

#[tokio::test]
async fn appliers_share_an_object() {
    let api = Api::start().await;
    api.namespace().await;
    let path = format!("{MAPS}/a");
    let two = config_map("a", json!({"a": "1", "b": "1"}));
    let (status, created) = apply(&api, &path, two, "fieldManager=one").await;
    assert_eq!(status, StatusCode::CREATED, "{created}");
    let (status, shared) = apply(
        &api,
        &path,
        config_map("a", json!({"b": "1"})),
        "fieldManager=two",
    )
    .await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(
        owners(&shared),
        [
            r#"two Apply {"f:data":{"f:b":{}}}"#,
            r#"one Apply {"f:data":{"f:a":{},"f:b":{}}}"#
        ]
    );
    let other = config_map("a", json!({"b": "2"}));
    let (status, conflict) = apply(&api, &path, other.clone(), "fieldManager=one").await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert_eq!(
        conflict["message"],
        "Apply failed with 1 conflict: conflict with \"two\": .data.b"
    );
    assert_eq!(
        conflict["details"]["causes"],
        json!([{"reason": "FieldManagerConflict", "message": "conflict with \"two\"", "field": ".data.b"}])
    );
    let (status, forced) = apply(&api, &path, other.clone(), "fieldManager=one&force=true").await;
    assert_eq!(
        (status, &forced["data"]),
        (StatusCode::OK, &json!({"b": "2"}))
    );
    // Once more is no write at all.
    let (_, again) = apply(&api, &path, other.clone(), "fieldManager=one").await;
    assert_eq!(again, forced);
    // Neither is trying.
    let dry = config_map("a", json!({"b": "3"}));
    let (_, tried) = apply(&api, &path, dry, "fieldManager=one&dryRun=All").await;
    assert_eq!(tried["data"]["b"], "3");
    assert_eq!(api.get(&path).await.1, forced);
}

#[tokio::test]
async fn every_verb_owns_what_it_changes() {
    let api = Api::start().await;
    api.namespace().await;
    let (_, created) = api
        .post(
            &format!("{MAPS}?fieldManager=poster"),
            config_map("a", json!({"a": "1"})),
        )
        .await;
    assert_eq!(
        owners(&created),
        [r#"poster Update {"f:data":{".":{},"f:a":{}}}"#]
    );
    let path = format!("{MAPS}/a");
    let (_, patched) = api
        .patch(
            &format!("{path}?fieldManager=patcher"),
            "merge-patch",
            json!({"data": {"a": "2", "b": "1"}}),
        )
        .await;
    assert_eq!(
        owners(&patched),
        [
            r#"patcher Update {"f:data":{"f:a":{},"f:b":{}}}"#,
            r#"poster Update {"f:data":{}}"#
        ]
    );
    let mut put = patched.clone();
    put["metadata"]["managedFields"] = json!([{}]);
    let (_, reset) = api.call(Method::PUT, &path, put).await;
    assert!(reset["metadata"]["managedFields"].is_null());
    let (_, first) = apply(
        &api,
        &path,
        config_map("a", json!({"c": "1"})),
        "fieldManager=one",
    )
    .await;
    assert_eq!(
        owners(&first),
        [
            r#"one Apply {"f:data":{"f:c":{}}}"#,
            r#"before-first-apply Update {"f:data":{".":{},"f:a":{},"f:b":{}}}"#
        ]
    );
}

#[tokio::test]
async fn subresources_have_entries_of_their_own() {
    let api = Api::start().await;
    api.namespace().await;
    let base = "/apis/apps/v1/namespaces/n/deployments/w";
    let config = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "w"}, "spec": {
        "replicas": 2, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}}});
    let (status, created) = apply(&api, base, config, "fieldManager=one").await;
    assert_eq!(status, StatusCode::CREATED, "{created}");
    // The server's defaults are nobody's.
    assert_eq!(created["spec"]["revisionHistoryLimit"], 10);
    assert!(!owners(&created)[0].contains("revisionHistoryLimit"));
    let status_config = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "w", "labels": {"x": "y"}},
        "spec": {"replicas": 9}, "status": {"replicas": 1, "readyReplicas": 1}});
    let (status, changed) = apply(
        &api,
        &format!("{base}/status"),
        status_config,
        "fieldManager=ctl",
    )
    .await;
    assert_eq!(status, StatusCode::OK, "{changed}");
    assert_eq!(changed["spec"]["replicas"], 2);
    assert!(owners(&changed).contains(
        &r#"ctl Apply status{"f:status":{"f:readyReplicas":{},"f:replicas":{}}}"#.into()
    ));
    let scale = json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "w"}, "spec": {"replicas": 5}});
    let path = format!("{base}/scale");
    let (status, conflict) = apply(&api, &path, scale.clone(), "fieldManager=hpa").await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert_eq!(conflict["details"]["causes"][0]["field"], ".spec.replicas");
    let (status, scaled) = apply(&api, &path, scale, "fieldManager=hpa&force=true").await;
    assert_eq!(
        (status, &scaled["spec"]["replicas"]),
        (StatusCode::OK, &json!(5))
    );
    let (_, seen) = api.get(base).await;
    assert_eq!(seen["spec"]["replicas"], 5);
    assert!(owners(&seen).contains(&r#"hpa Apply scale{"f:spec":{"f:replicas":{}}}"#.into()));
    let (status, missing) = apply(
        &api,
        "/apis/apps/v1/namespaces/n/deployments/nope/status",
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "nope"}}),
        "fieldManager=ctl",
    )
    .await;
    assert_eq!(
        (status, &missing["reason"]),
        (StatusCode::NOT_FOUND, &json!("NotFound"))
    );
}

#[tokio::test]
async fn scheduling_and_eviction_own_nothing() {
    let api = Api::start().await;
    api.namespace().await;
    let (_, created) = api
        .post("/api/v1/namespaces/n/pods?fieldManager=k", pod("a"))
        .await;
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "a"}, "target": {"kind": "Node", "name": "x"}});
    let (status, _) = api
        .post("/api/v1/namespaces/n/pods/a/binding", binding)
        .await;
    assert_eq!(status, StatusCode::CREATED);
    let (_, bound) = api.get("/api/v1/namespaces/n/pods/a").await;
    assert_eq!(bound["spec"]["nodeName"], "x");
    assert_eq!(owners(&bound), owners(&created));
    assert_eq!(
        bound["metadata"]["generation"],
        created["metadata"]["generation"]
    );
}

#[tokio::test]
async fn what_the_server_writes_is_its_parts_to_own() {
    let api = Api::start().await;
    api.namespace().await;
    let cidr = "/apis/networking.k8s.io/v1/servicecidrs/kubernetes";
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let flow = "/apis/flowcontrol.apiserver.k8s.io/v1";
    let dangling = r#"Apply status{"f:status":{"f:conditions":{"k:{\"type\":\"Dangling\"}":{".":{},"f:lastTransitionTime":{},"f:message":{},"f:reason":{},"f:status":{},"f:type":{}}}}}"#;
    let consumer = format!("api-priority-and-fairness-config-consumer-v1 {dangling}");
    api.watch_until(&format!("{flow}/flowschemas?watch=true"), |event| {
        event["metadata"]["name"] == "exempt" && event["status"]["conditions"].is_array()
    })
    .await;
    for (path, expected) in [
        (
            "/api/v1/namespaces/kube-system",
            &[
                r#"kube-apiserver Update {"f:metadata":{"f:labels":{".":{},"f:kubernetes.io/metadata.name":{}}}}"#,
            ][..],
        ),
        (
            &format!("{rbac}/clusterrolebindings/system:basic-user"),
            &[
                r#"kube-apiserver Update {"f:metadata":{"f:annotations":{".":{},"f:rbac.authorization.kubernetes.io/autoupdate":{}},"f:labels":{".":{},"f:kubernetes.io/bootstrapping":{}}},"f:roleRef":{},"f:subjects":{}}"#,
            ],
        ),
        (
            "/api/v1/namespaces/default/services/kubernetes",
            &[
                r#"kube-apiserver Update {"f:metadata":{"f:labels":{".":{},"f:component":{},"f:provider":{}}},"f:spec":{"f:clusterIP":{},"f:internalTrafficPolicy":{},"f:ipFamilyPolicy":{},"f:ports":{".":{},"k:{\"port\":443,\"protocol\":\"TCP\"}":{".":{},"f:name":{},"f:port":{},"f:protocol":{},"f:targetPort":{}}},"f:sessionAffinity":{},"f:type":{}}}"#,
            ],
        ),
        (
            "/apis/networking.k8s.io/v1/ipaddresses/10.0.0.1",
            &[
                r#"kube-apiserver Update {"f:metadata":{"f:labels":{".":{},"f:ipaddress.kubernetes.io/ip-family":{},"f:ipaddress.kubernetes.io/managed-by":{}}},"f:spec":{"f:parentRef":{".":{},"f:name":{},"f:namespace":{},"f:resource":{}}}}"#,
            ],
        ),
        (
            cidr,
            &[
                r#"kubernetes-service-cidr-controller Apply status{"f:status":{"f:conditions":{"k:{\"type\":\"Ready\"}":{".":{},"f:lastTransitionTime":{},"f:message":{},"f:status":{},"f:type":{}}}}}"#,
                r#"kube-apiserver Update {"f:spec":{"f:cidrs":{}}}"#,
            ],
        ),
        (
            &format!("{flow}/flowschemas/exempt"),
            &[
                &consumer,
                r#"api-priority-and-fairness-config-producer-v1 Update {"f:metadata":{"f:annotations":{".":{},"f:apf.kubernetes.io/autoupdate-spec":{}}},"f:spec":{"f:matchingPrecedence":{},"f:priorityLevelConfiguration":{"f:name":{}},"f:rules":{}}}"#,
            ],
        ),
        (
            &format!("{flow}/prioritylevelconfigurations/exempt"),
            &[
                r#"api-priority-and-fairness-config-producer-v1 Update {"f:metadata":{"f:annotations":{".":{},"f:apf.kubernetes.io/autoupdate-spec":{}}},"f:spec":{"f:exempt":{".":{},"f:lendablePercent":{},"f:nominalConcurrencyShares":{}},"f:type":{}}}"#,
            ],
        ),
    ] {
        let (status, object) = api.get(path).await;
        assert_eq!(status, StatusCode::OK, "{path}");
        assert_eq!(owners(&object), expected, "{path}");
    }
    // What somebody else changes is not the server's any more.
    let role = format!("{rbac}/clusterroles/system:basic-user");
    let emptying = format!("{role}?fieldManager=me");
    let emptied = api.patch(&emptying, "merge-patch", json!({"rules": []}));
    let mut left = owners(&emptied.await.1);
    left.sort();
    assert_eq!(
        left,
        [
            r#"kube-apiserver Update {"f:metadata":{"f:annotations":{".":{},"f:rbac.authorization.kubernetes.io/autoupdate":{}},"f:labels":{".":{},"f:kubernetes.io/bootstrapping":{}}}}"#,
            r#"me Update {"f:rules":{}}"#,
        ]
    );
    // An eviction is told to the budget by the server.
    let (budgets, status) = (
        "/apis/policy/v1/namespaces/n/poddisruptionbudgets",
        "b/status",
    );
    let selector = json!({"matchLabels": {"a": "b"}});
    let budget =
        json!({"metadata": {"name": "b"}, "spec": {"minAvailable": 0, "selector": selector}});
    api.post(budgets, budget).await;
    let counts =
        json!({"status": {"observedGeneration": 1, "disruptionsAllowed": 2, "currentHealthy": 1}});
    api.patch(&format!("{budgets}/{status}"), "merge-patch", counts)
        .await;
    let mut running = pod("a");
    running["metadata"]["labels"] = json!({"a": "b"});
    api.post("/api/v1/namespaces/n/pods", running).await;
    let phase = json!({"status": {"phase": "Running"}});
    api.patch("/api/v1/namespaces/n/pods/a/status", "merge-patch", phase)
        .await;
    let eviction =
        json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "a"}});
    let (status, _) = api
        .post("/api/v1/namespaces/n/pods/a/eviction", eviction)
        .await;
    assert_eq!(status, StatusCode::CREATED);
    let (_, told) = api.get(&format!("{budgets}/b")).await;
    let owner = r#"kube-apiserver Update status{"f:status":{"f:disruptedPods":{".":{},"f:a":{}},"f:disruptionsAllowed":{}}}"#;
    assert!(owners(&told).contains(&owner.into()), "{told}");
}

#[tokio::test]
async fn bad_applies_are_refused_as_upstream_does() {
    let api = Api::start().await;
    api.namespace().await;
    let path = format!("{MAPS}/a");
    let good = || config_map("a", json!({}));
    let mut managed = good();
    managed["metadata"]["managedFields"] = json!([]);
    let mut typed = good();
    typed["data"] = json!({"n": 1});
    for (config, query, code, message) in [
        (
            good(),
            "",
            422,
            "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
        ),
        (
            managed,
            "fieldManager=x",
            400,
            "metadata.managedFields must be nil",
        ),
        (
            config_map("b", json!({})),
            "fieldManager=x",
            400,
            "the name of the object (b) does not match the name on the URL (a)",
        ),
        (
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}}),
            "fieldManager=x",
            400,
            "invalid object type: /v1, Kind=Secret",
        ),
        (
            json!({"apiVersion": "v1", "kind": "ConfigMap"}),
            "fieldManager=x",
            400,
            "the name of the object (a based on URL) was undeterminable: name must be provided",
        ),
        (
            json!([]),
            "fieldManager=x",
            400,
            "error decoding YAML: error unmarshaling JSON: while decoding JSON: json: cannot unmarshal array into Go value of type map[string]interface {}",
        ),
        (
            typed,
            "fieldManager=x",
            500,
            "failed to create typed patch object (/a; /v1, Kind=ConfigMap): .data.n: expected string, got &value.valueUnstructured{Value:1}",
        ),
        (
            good(),
            "fieldManager=x&fieldValidation=Foo",
            422,
            "PatchOptions.meta.k8s.io \"\" is invalid: fieldValidation: Unsupported value: \"Foo\": supported values: \"\", \"Ignore\", \"Strict\", \"Warn\"",
        ),
    ] {
        let (status, error) = apply(&api, &path, config, query).await;
        assert_eq!(
            (status.as_u16(), &error["message"]),
            (code, &json!(message))
        );
    }
    let (status, error) = api
        .patch(&format!("{path}?force=true"), "merge-patch", json!({}))
        .await;
    assert_eq!(status.as_u16(), 422);
    assert_eq!(
        error["message"],
        "PatchOptions.meta.k8s.io \"\" is invalid: force: Forbidden: may not be specified for non-apply patch"
    );
    // Nothing of all this came into being.
    assert_eq!(api.get(&path).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn creating_by_apply_takes_the_right_to_create() {
    use fluyt_apiserver::User;
    let api = Api::start().await;
    api.namespace().await;
    api.post(
        "/apis/rbac.authorization.k8s.io/v1/namespaces/n/roles",
        json!({"metadata": {"name": "p"}, "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["patch"]}]}),
    )
    .await;
    api.post(
        "/apis/rbac.authorization.k8s.io/v1/namespaces/n/rolebindings",
        json!({"metadata": {"name": "p"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "p"},
            "subjects": [{"kind": "User", "name": "u", "apiGroup": "rbac.authorization.k8s.io"}]}),
    )
    .await;
    let user = User::new("u", &[]);
    let path = format!("{MAPS}/a?fieldManager=u");
    let yaml = "application/apply-patch+yaml";
    let config = config_map("a", json!({"x": "1"}));
    let (status, refused) = api
        .call_as(&user, Method::PATCH, &path, yaml, config.clone())
        .await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{refused}");
    api.post(MAPS, config_map("a", json!({"y": "1"}))).await;
    let (status, _) = api.call_as(&user, Method::PATCH, &path, yaml, config).await;
    assert_eq!(status, StatusCode::OK);
}
