//! The defaults and exemptions of `PodSecurity`.

use super::*;
use fluyt_apiserver::User;
use http::{Method, Request};
use http_body_util::Full;

async fn secured() -> Plugged {
    let configuration = json!({
        "apiVersion": "pod-security.admission.config.k8s.io/v1", "kind": "PodSecurityConfiguration",
        "defaults": {"enforce": "baseline", "enforce-version": "v1.30", "audit": "restricted"},
        "exemptions": {"usernames": ["trusted"], "namespaces": ["free"], "runtimeClasses": ["vm"]},
    });
    let plugins = json!([{"name": "PodSecurity", "configuration": configuration}]);
    let secured = Plugged::start(&[], plugins).await.with_namespace().await;
    let class = json!({"metadata": {"name": "vm"}, "handler": "vm"});
    made(
        secured
            .api
            .post("/apis/node.k8s.io/v1/runtimeclasses", class)
            .await,
    );
    for (path, name) in [
        ("/api/v1/namespaces", "free"),
        ("/api/v1/namespaces/free/serviceaccounts", "default"),
    ] {
        made(
            secured
                .api
                .post(path, json!({"metadata": {"name": name}}))
                .await,
        );
    }
    secured
}

fn key(name: &str) -> String {
    format!("pod-security.kubernetes.io/{name}")
}

#[tokio::test]
async fn defaults_hold_where_labels_say_nothing() {
    let secured = secured().await;
    let api = &secured.api;
    let hostile = |name: &str| pod_with(name, json!({"hostNetwork": true}));
    assert_refused(
        api.post(PODS, hostile("a")).await,
        403,
        "pods \"a\" is forbidden: violates PodSecurity \"baseline:v1.30\": host namespaces (hostNetwork=true)",
    );
    made(api.post(PODS, crate::common::pod("b")).await);
    let annotations = secured.annotations();
    assert_eq!(annotations[key("enforce-policy")], "baseline:v1.30");
    let violations = annotations[key("audit-violations")].as_str().unwrap();
    assert!(
        violations.starts_with("would violate PodSecurity \"restricted:latest\": "),
        "{violations}"
    );
    let label = |value: Value| json!({"metadata": {"labels": {key("enforce"): value}}});
    let relaxed = label("privileged".into());
    made(
        api.patch("/api/v1/namespaces/n", "merge-patch", relaxed)
            .await,
    );
    made(api.post(PODS, hostile("c")).await);
}

#[tokio::test]
async fn nothing_holds_for_who_is_exempt() {
    let secured = secured().await;
    let api = &secured.api;
    let hostile = |name: &str| pod_with(name, json!({"hostNetwork": true}));
    let exempt = || secured.annotations()[key("exempt")].clone();
    let trusted = User::new("trusted", &[fluyt_apiserver::MASTERS]);
    let (post, format) = (Method::POST, "application/json");
    made(
        api.call_as(&trusted, post, PODS, format, hostile("a"))
            .await,
    );
    assert_eq!(exempt(), "user");
    made(api.post("/api/v1/namespaces/free/pods", hostile("b")).await);
    assert_eq!(exempt(), "namespace");
    let mut virtual_machine = hostile("c");
    virtual_machine["spec"]["runtimeClassName"] = "vm".into();
    made(api.post(PODS, virtual_machine).await);
    assert_eq!(exempt(), "runtimeClass");
    assert_eq!(api.post(PODS, hostile("d")).await.0, StatusCode::FORBIDDEN);
    // Who labels a namespace for nothing is told so.
    let labels = json!({"metadata": {"labels": {key("enforce"): "restricted"}}});
    let mut request = Request::patch("/api/v1/namespaces/free")
        .header("content-type", "application/merge-patch+json")
        .body(Full::from(labels.to_string()))
        .unwrap();
    request.extensions_mut().insert(api.user.clone());
    let (status, headers, _) = api.send(request).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(
        headers["warning"],
        "299 - \"namespace \\\"free\\\" is exempt from Pod Security, and the policy (enforce=restricted:v1.30) will be ignored\""
    );
}
