//! What is presented to admission webhooks.

use super::*;
use crate::common::pod;
use crate::common::service::Service;
use base64::Engine as _;

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";

fn webhook(service: &Service) -> Value {
    let bundle = base64::engine::general_purpose::STANDARD.encode(&service.ca_pem);
    json!({"metadata": {"name": "hooks"}, "webhooks": [{"name": "pods.example.com", "sideEffects": "None",
        "clientConfig": {"url": format!("{}/hook", service.url()), "caBundle": bundle},
        "admissionReviewVersions": ["v1"],
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}]}]})
}

/// What a webhook of each kind is presented whose host has a user; and the webhook.
async fn presented(user: Value) -> (Vec<Option<String>>, Service) {
    let service = Service::start(|_, review| {
        let response = json!({"uid": review["request"]["uid"], "allowed": true});
        (200, json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}))
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = directory.path().join("users.yaml");
    let users = json!({"users": [
        {"name": service.address.to_string(), "user": user},
        {"name": "*", "user": {"token": "for-others"}}]});
    std::fs::write(&kubeconfig, users.to_string()).unwrap();
    let configuration = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "WebhookAdmissionConfiguration",
        "kubeConfigFile": kubeconfig.to_str().unwrap()});
    let plugins = json!([{"name": "ValidatingAdmissionWebhook", "configuration": configuration}]);
    let plugged = Plugged::start_in(directory, &[], plugins)
        .await
        .with_namespace()
        .await;
    let api = &plugged.api;
    for kind in ["validating", "mutating"] {
        let path = format!("{GROUP}/{kind}webhookconfigurations");
        made(api.post(&path, webhook(&service)).await);
    }
    made(api.post(PODS, pod("p")).await);
    let presented = service
        .headers
        .lock()
        .iter()
        .map(|headers| Some(headers.get("authorization")?.to_str().unwrap().to_owned()))
        .collect();
    (presented, service)
}

#[tokio::test]
async fn webhooks_get_the_credentials_of_their_host() {
    let (presented, _) = presented(json!({"token": "for-the-host"})).await;
    // Nothing is configured for mutating ones, which are asked first.
    assert_eq!(presented, [None, Some("Bearer for-the-host".to_owned())]);
}

#[tokio::test]
async fn a_program_is_told_which_webhook_it_is_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let info = directory.path().join("info");
    let version = "client.authentication.k8s.io/v1beta1";
    let credential =
        json!({"kind": "ExecCredential", "apiVersion": version, "status": {"token": "made"}});
    let script = format!(
        r#"printf %s "$KUBERNETES_EXEC_INFO" > {}; echo '{credential}'"#,
        info.display()
    );
    let exec = json!({"apiVersion": version, "command": "sh", "args": ["-c", script], "provideClusterInfo": true,
        "interactiveMode": "Never"});
    let (presented, service) = presented(json!({"exec": exec})).await;
    assert_eq!(presented, [None, Some("Bearer made".to_owned())]);
    let told: Value = serde_json::from_slice(&std::fs::read(info).unwrap()).unwrap();
    let bundle = base64::engine::general_purpose::STANDARD.encode(&service.ca_pem);
    let cluster =
        json!({"server": service.url(), "certificate-authority-data": bundle, "config": null});
    assert_eq!(
        told["spec"],
        json!({"interactive": false, "cluster": cluster})
    );
}
