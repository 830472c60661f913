//! What a request may do, through the whole server: RBAC with its reasons, nodes, webhooks, reviews, escalation.

use crate::common::service::{Service, eventually};
use crate::common::{Api, pod};
use fluyt_apiserver::User;
use fluyt_apiserver::authz::{AuthorizationConfiguration, Mode};
use http::{Method, StatusCode};
use serde_json::{Value, json};

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
const REVIEWS: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";

async fn bind(api: &Api, name: &str, role: &str, user: &str) {
    let binding = json!({"metadata": {"name": name}, "subjects": [{"kind": "User", "name": user}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}});
    let (status, body) = api
        .post(&format!("{RBAC}/clusterrolebindings"), binding)
        .await;
    assert_eq!(status, StatusCode::CREATED, "{body}");
}

async fn grant(api: &Api, name: &str, user: &str, rules: Value) {
    let role = json!({"metadata": {"name": name}, "rules": rules});
    let (status, body) = api.post(&format!("{RBAC}/clusterroles"), role).await;
    assert_eq!(status, StatusCode::CREATED, "{body}");
    bind(api, name, name, user).await;
}

async fn as_user(api: &Api, user: &User, method: Method, path: &str, body: Value) -> (u16, Value) {
    let (status, body) = api
        .call_as(user, method, path, "application/json", body)
        .await;
    (status.as_u16(), body)
}

#[tokio::test]
async fn reviews_give_reasons() {
    let api = Api::start().await;
    grant(
        &api,
        "reader",
        "alice",
        json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]),
    )
    .await;
    bind(&api, "dangling", "missing", "alice").await;
    let ask = async |verb: &str| {
        let spec =
            json!({"user": "alice", "resourceAttributes": {"verb": verb, "resource": "pods"}});
        let (_, answer) = api.post(REVIEWS, json!({"spec": spec})).await;
        answer["status"].clone()
    };
    let allowed = ask("get").await;
    assert_eq!(allowed["allowed"], true);
    assert_eq!(
        allowed["reason"],
        "RBAC: allowed by ClusterRoleBinding \"reader\" of ClusterRole \"reader\" to User \"alice\""
    );
    let refused = ask("delete").await;
    assert_eq!(
        refused,
        json!({"allowed": false, "reason": "RBAC: clusterrole.rbac.authorization.k8s.io \"missing\" not found"})
    );
    let alice = User::new("alice", &[]);
    let (status, body) = as_user(
        &api,
        &alice,
        Method::DELETE,
        "/api/v1/namespaces/n/pods/p",
        Value::Null,
    )
    .await;
    assert_eq!(status, 403);
    assert_eq!(
        body["message"],
        "pods \"p\" is forbidden: User \"alice\" cannot delete resource \"pods\" in API group \"\" in the namespace \"n\": RBAC: clusterrole.rbac.authorization.k8s.io \"missing\" not found"
    );
    let (status, body) = api.post(REVIEWS, json!({"spec": {"user": "alice"}})).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{body}");
    let rules = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let (_, body) = as_user(
        &api,
        &alice,
        Method::POST,
        rules,
        json!({"spec": {"namespace": "n"}}),
    )
    .await;
    let listed = body["status"]["resourceRules"].as_array().unwrap();
    assert!(
        listed.iter().any(|r| r["resources"] == json!(["pods"])),
        "{body}"
    );
    assert_eq!(body["status"]["incomplete"], false);
}

#[tokio::test]
async fn nobody_grants_more_than_they_have() {
    let api = Api::start().await;
    grant(&api, "roles", "alice", json!([
        {"verbs": ["*"], "apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles", "clusterrolebindings"]},
        {"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]},
    ]))
    .await;
    let alice = User::new("alice", &[]);
    let role = |rules: Value| json!({"metadata": {"name": "mine"}, "rules": rules});
    let path = format!("{RBAC}/clusterroles");
    let more = role(
        json!([{"verbs": ["get", "delete", "list"], "apiGroups": [""], "resources": ["pods"]}]),
    );
    // `*` on roles includes `escalate` and `bind`: with plain verbs only what is held can be granted.
    let plain = json!([{"verbs": ["create", "update", "get", "patch"], "apiGroups": ["rbac.authorization.k8s.io"],
        "resources": ["clusterroles", "clusterrolebindings"]}, {"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]);
    grant(&api, "plain", "bob", plain).await;
    let bob = User::new("bob", &[]);
    let (status, body) = as_user(&api, &bob, Method::POST, &path, more.clone()).await;
    assert_eq!(status, 403);
    assert_eq!(
        body["message"],
        "clusterroles.rbac.authorization.k8s.io \"mine\" is forbidden: user \"bob\" (groups=[\"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"delete\" \"list\"]}"
    );
    let held = role(json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]));
    assert_eq!(as_user(&api, &bob, Method::POST, &path, held).await.0, 201);
    let aggregated = json!({"metadata": {"name": "all"}, "aggregationRule": {"clusterRoleSelectors": [{}]}, "rules": []});
    let (status, body) = as_user(&api, &bob, Method::POST, &path, aggregated).await;
    assert_eq!(status, 403);
    assert!(
        body["message"]
            .as_str()
            .unwrap()
            .ends_with("must have cluster-admin privileges to use the aggregationRule")
    );
    let binding = |role: &str| {
        json!({"metadata": {"name": role}, "subjects": [{"kind": "User", "name": "bob"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}})
    };
    let bindings = format!("{RBAC}/clusterrolebindings");
    assert_eq!(
        as_user(
            &api,
            &bob,
            Method::POST,
            &bindings,
            binding("cluster-admin")
        )
        .await
        .0,
        403
    );
    assert_eq!(
        as_user(&api, &bob, Method::POST, &bindings, binding("nothing"))
            .await
            .0,
        404
    );
    assert_eq!(
        as_user(&api, &bob, Method::POST, &bindings, binding("mine"))
            .await
            .0,
        201
    );
    let body = role(json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]));
    let (status, body) = as_user(&api, &alice, Method::PUT, &format!("{path}/mine"), body).await;
    assert_eq!(status, 200, "{body}");
}

#[tokio::test]
async fn policies_read_only_what_their_authors_may() {
    let api = Api::start().await;
    let rules = json!([
        {"verbs": ["*"], "apiGroups": ["admissionregistration.k8s.io"], "resources": ["*"]},
        {"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["own"]},
        {"verbs": ["get"], "apiGroups": [""], "resources": ["configmaps"]},
    ]);
    grant(&api, "author", "alice", rules).await;
    let alice = User::new("alice", &[]);
    let make = async |plural: &str, name: &str, spec: Value| {
        let path = format!("/apis/admissionregistration.k8s.io/v1/{plural}");
        let object = json!({"metadata": {"name": name}, "spec": spec});
        let (status, body) = as_user(&api, &alice, Method::POST, &path, object).await;
        let message = body["message"].as_str().unwrap_or_default();
        let why = message
            .split_once("Forbidden: ")
            .map_or(message, |(_, why)| why);
        (status, why.to_owned())
    };
    let policy = |kind: &str| {
        json!({"paramKind": {"apiVersion": "v1", "kind": kind}, "validations": [{"expression": "true"}],
            "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"],
                "resources": ["pods"]}]}})
    };
    let (status, why) = make("validatingadmissionpolicies", "secret", policy("Secret")).await;
    assert_eq!(status, 422);
    assert_eq!(
        why,
        "user &{alice  [system:authenticated] map[]} must have \"get\" permission on all objects of the referenced paramKind (kind=Secret, apiVersion=v1)"
    );
    let made = make("validatingadmissionpolicies", "map", policy("ConfigMap")).await;
    assert_eq!(made.0, 201, "{made:?}");
    let binding = |policy: &str, name: &str| {
        let mut reference = json!({"namespace": "n", "parameterNotFoundAction": "Allow"});
        match name {
            "" => reference["selector"] = json!({}),
            name => reference["name"] = name.into(),
        }
        json!({"policyName": policy, "paramRef": reference, "validationActions": ["Deny"]})
    };
    let bindings = "validatingadmissionpolicybindings";
    let made = make(bindings, "one", binding("map", "one")).await;
    assert_eq!(made.0, 201, "{made:?}");
    let (status, why) = make(bindings, "all", binding("map", "")).await;
    assert_eq!(status, 422);
    assert_eq!(
        why,
        "user &{alice  [system:authenticated] map[]} does not have \"list\" permission on the object referenced by paramRef"
    );
    let (status, why) = make(bindings, "none", binding("none", "one")).await;
    assert_eq!(status, 422);
    assert_eq!(
        why,
        "unable to get policy none to determine minimum required permissions and user &{alice  [system:authenticated] map[]} does not have \"get\" permission for all groups, versions and resources"
    );
}

#[tokio::test]
async fn the_status_of_claims_is_written_by_schedulers_and_drivers() {
    let api = Api::start().await;
    api.namespace().await;
    let claims = "/apis/resource.k8s.io/v1/namespaces/n/resourceclaims";
    let spec =
        json!({"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "k"}}]}});
    let claim = json!({"metadata": {"name": "c"}, "spec": spec});
    let (status, mut claim) = api.post(claims, claim).await;
    assert_eq!(status, StatusCode::CREATED, "{claim}");
    let rule = |verb: &str, resource: &str| json!([{"verbs": [verb], "apiGroups": ["resource.k8s.io"], "resources": [resource]}]);
    grant(
        &api,
        "status",
        "alice",
        rule("update", "resourceclaims/status"),
    )
    .await;
    let alice = User::new("alice", &[]);
    let path = format!("{claims}/c/status");
    let put = async |claim: &Value| {
        let (status, body) = as_user(&api, &alice, Method::PUT, &path, claim.clone()).await;
        let message = body["message"].as_str().unwrap_or_default().to_owned();
        (status, message)
    };
    let refused = |why: &str| {
        (
            422,
            format!("ResourceClaim.resource.k8s.io \"c\" is invalid: {why}"),
        )
    };
    let device = json!({"driver": "d.example", "pool": "p", "device": "x"});
    let mut result = device.clone();
    result["request"] = "r".into();
    claim["metadata"]["resourceVersion"].take();
    claim["status"]["allocation"] = json!({"devices": {"results": [result]}});
    assert_eq!(
        put(&claim).await,
        refused(
            "status.allocation: Forbidden: changing status.allocation or status.reservedFor requires resource=\"resourceclaims/binding\", verb=\"update\" permission: resourceclaims.resource.k8s.io is forbidden: User \"alice\" cannot update resource \"resourceclaims/binding\" in API group \"resource.k8s.io\" at the cluster scope"
        )
    );
    grant(
        &api,
        "binder",
        "alice",
        rule("update", "resourceclaims/binding"),
    )
    .await;
    let (status, message) = put(&claim).await;
    assert_eq!(status, 200, "{message}");
    claim["status"]["devices"] = json!([device]);
    assert_eq!(
        put(&claim).await,
        refused(
            "status.devices: Forbidden: changing status.devices requires resource=\"resourceclaims/driver\", verb=\"[arbitrary-node:update]\" permission: resourceclaims.resource.k8s.io \"d.example\" is forbidden: User \"alice\" cannot arbitrary-node:update resource \"resourceclaims/driver\" in API group \"resource.k8s.io\" in the namespace \"n\""
        )
    );
    let rules = rule("arbitrary-node:update", "resourceclaims/driver");
    grant(&api, "driver", "alice", rules).await;
    let (status, message) = put(&claim).await;
    assert_eq!(status, 200, "{message}");
}

#[tokio::test]
async fn a_node_reads_what_its_pods_need() {
    let api = Api::start().await;
    api.namespace().await;
    for (name, node) in [("a", "one"), ("b", "two")] {
        let mut pod = pod(name);
        pod["spec"]["nodeName"] = node.into();
        pod["spec"]["volumes"] =
            json!([{"name": "v", "secret": {"secretName": format!("of-{name}")}}]);
        let (status, body) = api.post("/api/v1/namespaces/n/pods", pod).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
        let secret = json!({"metadata": {"name": format!("of-{name}")}});
        api.post("/api/v1/namespaces/n/secrets", secret).await;
        api.post("/api/v1/nodes", json!({"metadata": {"name": node}}))
            .await;
    }
    let node = User::new("system:node:one", &["system:nodes"]);
    let get = async |path: &str| {
        let (status, body) = as_user(&api, &node, Method::GET, path, Value::Null).await;
        let message = body["message"].as_str().unwrap_or_default().to_owned();
        (status, message)
    };
    for allowed in [
        "/api/v1/namespaces/n/secrets/of-a",
        "/api/v1/namespaces/n/secrets?fieldSelector=metadata.name%3Dof-a",
        "/api/v1/namespaces/n/pods/a",
        "/api/v1/pods?fieldSelector=spec.nodeName%3Done",
        "/api/v1/nodes/one",
        "/api/v1/nodes?fieldSelector=metadata.name%3Done",
        "/api/v1/services",
    ] {
        assert_eq!(get(allowed).await.0, 200, "{allowed}");
    }
    for (refused, why) in [
        (
            "/api/v1/namespaces/n/secrets/of-b",
            "no relationship found between node 'one' and this object",
        ),
        ("/api/v1/namespaces/n/secrets", "No Object name found"),
        (
            "/api/v1/namespaces/n/pods/b",
            "no relationship found between node 'one' and this object",
        ),
        (
            "/api/v1/pods",
            "can only list/watch pods with spec.nodeName field selector",
        ),
        (
            "/api/v1/pods?fieldSelector=spec.nodeName%3Dtwo",
            "can only list/watch pods with spec.nodeName field selector",
        ),
        (
            "/api/v1/nodes/two",
            "node 'one' cannot read 'two', only its own Node object",
        ),
        (
            "/api/v1/nodes",
            "node 'one' cannot read all nodes, only its own Node object",
        ),
    ] {
        let (status, message) = get(refused).await;
        assert_eq!(status, 403, "{refused}");
        assert!(message.ends_with(why), "{refused}: {message}");
    }
    let other = json!({"metadata": {"name": "two", "labels": {"a": "b"}}});
    let (status, body) = as_user(&api, &node, Method::PUT, "/api/v1/nodes/two", other).await;
    assert_eq!(status, 403);
    assert!(
        body["message"]
            .as_str()
            .unwrap()
            .ends_with("node \"one\" is not allowed to modify node \"two\""),
        "{body}"
    );
}

#[tokio::test]
async fn webhooks_decide_in_their_place_of_the_chain() {
    let hook = Service::start(|_, review| {
        let spec = &review["spec"];
        let status = match (
            spec["user"].as_str(),
            spec["resourceAttributes"]["resource"].as_str(),
        ) {
            (Some("alice"), Some("pods")) => json!({"allowed": true, "reason": "pods are fine"}),
            (_, Some("secrets")) => {
                json!({"allowed": false, "denied": true, "reason": "never secrets"})
            }
            _ => json!({"allowed": false, "reason": "no idea"}),
        };
        (
            200,
            json!({"apiVersion": review["apiVersion"], "kind": review["kind"], "status": status}),
        )
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("authorization.yaml");
    let kubeconfig = hook.kubeconfig(&directory).display().to_string();
    let text = |conditions: &str| {
        format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\nauthorizers:\n- type: Webhook\n  name: hook\n  webhook:\n    timeout: 3s\n    subjectAccessReviewVersion: v1\n    matchConditionSubjectAccessReviewVersion: v1\n    failurePolicy: Deny\n    connectionInfo: {{type: KubeConfigFile, kubeConfigFile: {kubeconfig}}}\n    matchConditions: [{{expression: \"{conditions}\"}}]\n- {{type: RBAC, name: rbac}}\n"
        )
    };
    let first = text("has(request.resourceAttributes)");
    std::fs::write(&path, &first).unwrap();
    let api = Api::configured(|config, _| {
        config.authorization.modes = AuthorizationConfiguration::parse(&first, None).unwrap();
        config.authorization.config_file = Some(path.clone());
    })
    .await;
    let alice = User::new("alice", &[]);
    let get = async |path: &str| as_user(&api, &alice, Method::GET, path, Value::Null).await;
    let list = "/api/v1/namespaces/n/pods?labelSelector=a%3Db";
    assert_eq!(get(list).await.0, 200);
    let asked = hook.received.lock().last().unwrap().1.clone();
    assert_eq!(
        asked["spec"]["resourceAttributes"]["labelSelector"],
        json!({"requirements": [{"key": "a", "operator": "In", "values": ["b"]}]})
    );
    assert_eq!(asked["spec"]["groups"], json!(["system:authenticated"]));
    let before = hook.count();
    assert_eq!(get(list).await.0, 200);
    assert_eq!(hook.count(), before, "answers are remembered");
    let (status, body) = get("/api/v1/namespaces/n/secrets").await;
    assert_eq!(status, 403);
    assert!(
        body["message"]
            .as_str()
            .unwrap()
            .ends_with("in the namespace \"n\": never secrets"),
        "{body}"
    );
    // RBAC is asked after the webhook has no opinion, and that is shown when it has none either.
    assert_eq!(get("/version").await.0, 200);
    let (_, body) = get("/api/v1/namespaces/n/configmaps").await;
    assert!(
        body["message"]
            .as_str()
            .unwrap()
            .ends_with("in the namespace \"n\": no idea"),
        "{body}"
    );
    // A condition that excludes everything: only RBAC is left.
    std::fs::write(&path, text("false")).unwrap();
    let reloaded = eventually(async || get(list).await.0 == 403).await;
    assert!(reloaded);
}

#[tokio::test]
async fn a_failing_webhook_does_what_its_policy_says() {
    let hook = Service::start(|_, _| (400, json!({}))).await;
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = hook.kubeconfig(&directory).display().to_string();
    for (policy, status) in [("NoOpinion", 200), ("Deny", 403)] {
        let text = format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\nauthorizers:\n- type: Webhook\n  name: hook\n  webhook:\n    timeout: 3s\n    subjectAccessReviewVersion: v1\n    failurePolicy: {policy}\n    connectionInfo: {{type: KubeConfigFile, kubeConfigFile: {kubeconfig}}}\n- {{type: AlwaysAllow, name: all}}\n"
        );
        let api = Api::configured(|config, _| {
            config.authorization.modes = AuthorizationConfiguration::parse(&text, None).unwrap();
        })
        .await;
        let alice = User::new("alice", &[]);
        let (got, body) = as_user(&api, &alice, Method::GET, "/api/v1/pods", Value::Null).await;
        assert_eq!(got, status, "{policy}: {body}");
    }
}

#[tokio::test]
async fn other_modes() {
    let api =
        Api::configured(|config, _| config.authorization.modes = vec![Mode::AlwaysDeny]).await;
    let alice = User::new("alice", &[]);
    let (status, body) = as_user(&api, &alice, Method::GET, "/api/v1/pods", Value::Null).await;
    assert_eq!(status, 403);
    assert!(
        body["message"]
            .as_str()
            .unwrap()
            .ends_with("Everything is forbidden.")
    );
    assert_eq!(
        api.get("/api/v1/pods").await.0,
        StatusCode::OK,
        "masters may always"
    );
}
