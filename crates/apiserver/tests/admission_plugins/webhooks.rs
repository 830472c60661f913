//! What is presented to admission webhooks.

use super::*;
use base64::Engine as _;
use common::pod;
use common::service::Service;

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";

fn webhook(service: &Service) -> Value {
    let bundle = base64::engine::general_purpose::STANDARD.encode(&service.ca_pem);
    json!({"metadata": {"name": "hooks"}, "webhooks": [{"name": "pods.example.com", "sideEffects": "None",
        "clientConfig": {"url": format!("{}/hook", service.url()), "caBundle": bundle},
        "admissionReviewVersions": ["v1"],
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}]}]})
}

#[tokio::test]
async fn webhooks_get_the_credentials_of_their_host() {
    let service = Service::start(|_, review| {
        let response = json!({"uid": review["request"]["uid"], "allowed": true});
        (200, json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}))
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = directory.path().join("users.yaml");
    let users = json!({"users": [
        {"name": service.address.to_string(), "user": {"token": "for-the-host"}},
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
    let presented: Vec<Option<String>> = service
        .headers
        .lock()
        .iter()
        .map(|headers| Some(headers.get("authorization")?.to_str().unwrap().to_owned()))
        .collect();
    // Nothing is configured for mutating ones, which are asked first.
    assert_eq!(presented, [None, Some("Bearer for-the-host".to_owned())]);
}
