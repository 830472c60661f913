//! Webhooks, policies and the Pod Security Standards, through the server.

use std::sync::Arc;

use crate::common::{Api, pod};
use base64::Engine as _;
use fluyt_pki::{Authority, Identity, Usage};
use http::{Method, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";
const PODS: &str = "/api/v1/namespaces/n/pods";

/// A webhook server that answers with what `judge` makes of a request; its URL and its authority in base64.
async fn webhook(judge: fn(&Value) -> Value) -> (String, String) {
    let authority = Authority::create("hooks").unwrap();
    let identity = Identity {
        common_name: "hook".into(),
        addresses: vec!["127.0.0.1".parse().unwrap()],
        ..Identity::default()
    };
    let serving = authority.issue(&identity, Usage::Server, 1).unwrap();
    let certificates =
        rustls_pki_types::CertificateDer::pem_slice_iter(serving.certificate_pem.as_bytes())
            .collect::<Result<_, _>>()
            .unwrap();
    let key = rustls_pki_types::PrivateKeyDer::from_pem_slice(serving.key_pem.as_bytes()).unwrap();
    let tls = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/hook", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let answer = service_fn(
                    move |request: http::Request<hyper::body::Incoming>| async move {
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        let review: Value = serde_json::from_slice(&body).unwrap();
                        let mut response = judge(&review["request"]);
                        response["uid"] = review["request"]["uid"].clone();
                        let review = json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response});
                        let body =
                            Full::new(bytes::Bytes::from(serde_json::to_vec(&review).unwrap()));
                        Ok::<_, std::convert::Infallible>(http::Response::new(body))
                    },
                );
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), answer)
                    .await;
            });
        }
    });
    let bundle = base64::engine::general_purpose::STANDARD.encode(authority.certificate_pem());
    (url, bundle)
}

fn configuration(kind: &str, url: &str, bundle: &str, more: Value) -> Value {
    let mut webhook = json!({"name": "pods.example.com", "clientConfig": {"url": url, "caBundle": bundle}, "sideEffects": "None",
        "admissionReviewVersions": ["v1"], "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE", "DELETE"]}]});
    for (field, value) in more.as_object().unwrap() {
        webhook[field] = value.clone();
    }
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": "hooks"}, "webhooks": [webhook]})
}

#[tokio::test]
async fn mutating_webhooks_patch_and_validating_ones_refuse() {
    let api = Api::start().await;
    api.namespace().await;
    let (url, bundle) = webhook(|request| {
        let patch = json!([{"op": "add", "path": "/metadata/labels/touched", "value": request["userInfo"]["username"]}]);
        let patch = base64::engine::general_purpose::STANDARD.encode(patch.to_string());
        json!({"allowed": true, "patchType": "JSONPatch", "patch": patch, "warnings": ["touched"]})
    })
    .await;
    let mutating = configuration(
        "MutatingWebhookConfiguration",
        &url,
        &bundle,
        json!({"rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}]}),
    );
    let (status, made) = api
        .post(&format!("{GROUP}/mutatingwebhookconfigurations"), mutating)
        .await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    assert_eq!(
        (
            &made["webhooks"][0]["failurePolicy"],
            &made["webhooks"][0]["rules"][0]["scope"]
        ),
        (&json!("Fail"), &json!("*"))
    );
    let (url, bundle) = webhook(|request| {
        let name = &request["name"];
        json!({"allowed": name != "bad" && request["operation"] != "DELETE", "status": {"message": format!("no {name}"), "code": 418}})
    })
    .await;
    let validating = configuration(
        "ValidatingWebhookConfiguration",
        &url,
        &bundle,
        json!({"matchConditions": [{"name": "some", "expression": "request.name != 'free'"}]}),
    );
    let (status, made) = api
        .post(
            &format!("{GROUP}/validatingwebhookconfigurations"),
            validating,
        )
        .await;
    assert_eq!(status, StatusCode::CREATED, "{made}");

    let (status, created) = api.post(PODS, pod("good")).await;
    assert_eq!(status, StatusCode::CREATED, "{created}");
    assert_eq!(created["metadata"]["labels"]["touched"], "admin");
    let (status, refused) = api.post(PODS, pod("bad")).await;
    assert_eq!(status.as_u16(), 418);
    assert_eq!(
        refused["message"],
        "admission webhook \"pods.example.com\" denied the request: no \"bad\""
    );
    let (status, _) = api
        .call(Method::DELETE, &format!("{PODS}/good"), Value::Null)
        .await;
    assert_eq!(status.as_u16(), 418);
    api.post(PODS, pod("free")).await;
    let (status, _) = api
        .call(Method::DELETE, &format!("{PODS}/free"), Value::Null)
        .await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn a_webhook_that_cannot_be_reached_fails_or_is_ignored() {
    let api = Api::start().await;
    api.namespace().await;
    let gone = configuration(
        "ValidatingWebhookConfiguration",
        "https://127.0.0.1:1/x",
        "",
        json!({}),
    );
    api.post(&format!("{GROUP}/validatingwebhookconfigurations"), gone)
        .await;
    let (status, refused) = api.post(PODS, pod("a")).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    let message = refused["message"].as_str().unwrap();
    assert!(message.starts_with("Internal error occurred: failed calling webhook \"pods.example.com\": failed to call webhook: Post \"https://127.0.0.1:1/x?timeout=10s\": "), "{message}");
    let at = format!("{GROUP}/validatingwebhookconfigurations/hooks");
    let (status, _) = api
        .patch(
            &at,
            "json-patch",
            json!([{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Ignore"}]),
        )
        .await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(api.post(PODS, pod("a")).await.0, StatusCode::CREATED);
}

fn rules(operations: &[&str]) -> Value {
    json!({"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": operations, "resources": ["pods"]}]})
}

#[tokio::test]
async fn validating_policies_deny_with_parameters_and_variables() {
    let api = Api::start().await;
    api.namespace().await;
    let policy = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": {"name": "images.example.com"},
        "spec": {"matchConstraints": rules(&["CREATE"]), "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
            "variables": [{"name": "images", "expression": "object.spec.containers.map(c, c.image)"}],
            "validations": [{"expression": "variables.images.all(i, i.startsWith(params.data.prefix))", "messageExpression": "'images come from ' + params.data.prefix"},
                {"expression": "object.metadata.name != 'forbidden'", "reason": "Forbidden"}]}});
    let (status, made) = api
        .post(
            &format!("{GROUP}/validatingadmissionpolicies"),
            policy.clone(),
        )
        .await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let binding = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": "bound"},
        "spec": {"policyName": "images.example.com", "validationActions": ["Deny"], "paramRef": {"name": "p", "namespace": "n", "parameterNotFoundAction": "Deny"}}});
    api.post(
        &format!("{GROUP}/validatingadmissionpolicybindings"),
        binding,
    )
    .await;
    let (status, refused) = api.post(PODS, pod("a")).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .contains("no params found for policy binding with `Deny` parameterNotFoundAction"),
        "{refused}"
    );
    api.post(
        "/api/v1/namespaces/n/configmaps",
        json!({"metadata": {"name": "p"}, "data": {"prefix": "registry/"}}),
    )
    .await;
    let (_, refused) = api.post(PODS, pod("a")).await;
    assert_eq!(
        refused["message"],
        "pods \"a\" is forbidden: ValidatingAdmissionPolicy 'images.example.com' with binding 'bound' denied request: images come from registry/"
    );
    let mut good = pod("a");
    good["spec"]["containers"][0]["image"] = "registry/x".into();
    assert_eq!(api.post(PODS, good.clone()).await.0, StatusCode::CREATED);
    good["metadata"]["name"] = "forbidden".into();
    let (status, refused) = api.post(PODS, good).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .ends_with("denied request: failed expression: object.metadata.name != 'forbidden'"),
        "{refused}"
    );
    let mut bad = policy;
    bad["spec"]["validations"][0]["expression"] = "object.x +".into();
    bad["metadata"]["name"] = "bad".into();
    let (status, refused) = api
        .post(&format!("{GROUP}/validatingadmissionpolicies"), bad)
        .await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(refused["message"].as_str().unwrap().contains("spec.validations[0].expression: Invalid value: \"object.x +\": compilation failed: ERROR: <input>:1:11: Syntax error"), "{refused}");
}

#[tokio::test]
async fn mutating_policies_apply_and_patch() {
    let api = Api::start().await;
    api.namespace().await;
    let policy = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingAdmissionPolicy", "metadata": {"name": "labels.example.com"},
        "spec": {"matchConstraints": rules(&["CREATE"]), "reinvocationPolicy": "Never", "mutations": [
            {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{metadata: Object.metadata{labels: {'a': 'b'}}}"}},
            {"patchType": "JSONPatch", "jsonPatch": {"expression": "[JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('x/y'), value: object.metadata.labels.a}]"}}]}});
    let (status, made) = api
        .post(&format!("{GROUP}/mutatingadmissionpolicies"), policy)
        .await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    api.post(&format!("{GROUP}/mutatingadmissionpolicybindings"), json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingAdmissionPolicyBinding",
        "metadata": {"name": "bound"}, "spec": {"policyName": "labels.example.com"}})).await;
    let (status, created) = api.post(PODS, pod("p")).await;
    assert_eq!(status, StatusCode::CREATED, "{created}");
    assert_eq!(
        created["metadata"]["labels"],
        json!({"app": "p", "a": "b", "x/y": "b"})
    );
}

#[tokio::test]
async fn pod_security_follows_the_labels_of_the_namespace() {
    let api = Api::start().await;
    api.namespace().await;
    let (status, refused) = api
        .patch(
            "/api/v1/namespaces/n",
            "merge-patch",
            json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "strict"}}}),
        )
        .await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{refused}");
    api.patch(
        "/api/v1/namespaces/n",
        "merge-patch",
        json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "baseline"}}}),
    )
    .await;
    let mut privileged = pod("a");
    privileged["spec"]["containers"][0]["securityContext"] = json!({"privileged": true});
    let (status, refused) = api.post(PODS, privileged).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert_eq!(
        refused["message"],
        "pods \"a\" is forbidden: violates PodSecurity \"baseline:latest\": privileged (container \"c\" must not set securityContext.privileged=true)"
    );
    assert_eq!(api.post(PODS, pod("b")).await.0, StatusCode::CREATED);
}

#[tokio::test]
async fn privileged_containers_only_where_the_server_allows_them() {
    let refusing = Api::configured(|config, _| config.allow_privileged = false).await;
    let allowing = Api::start().await;
    let template = |privileged: bool| {
        let context = json!({"privileged": privileged});
        json!({"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [
            {"name": "c", "image": "busybox:1"}, {"name": "d", "image": "busybox:1", "securityContext": context}]}})
    };
    let pod = |privileged| {
        let mut pod = template(privileged);
        pod["metadata"]["name"] = "a".into();
        pod
    };
    let deployment = |privileged| json!({"metadata": {"name": "a"}, "spec": {"selector": {"matchLabels": {"app": "a"}}, "template": template(privileged)}});
    let job = |privileged| {
        let mut template = template(privileged);
        template["spec"]["restartPolicy"] = "Never".into();
        json!({"metadata": {"name": "a"}, "spec": {"schedule": "* * * * *", "jobTemplate": {"spec": {"template": template}}}})
    };
    refusing.namespace().await;
    allowing.namespace().await;
    type Make<'a> = &'a dyn Fn(bool) -> Value;
    let kinds: [(&str, Make<'_>, &str); 3] = [
        ("/api/v1/namespaces/n/pods", &pod, ""),
        (
            "/apis/apps/v1/namespaces/n/deployments",
            &deployment,
            "spec.template.",
        ),
        (
            "/apis/batch/v1/namespaces/n/cronjobs",
            &job,
            "spec.jobTemplate.spec.template.",
        ),
    ];
    for (path, make, place) in kinds {
        let (status, refused) = refusing.post(path, make(true)).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{path}");
        let cause = &refused["details"]["causes"][0];
        let field = format!("{place}spec.containers[1].securityContext.privileged");
        assert_eq!(
            (&cause["field"], &cause["message"]),
            (
                &json!(field),
                &json!("Forbidden: disallowed by cluster policy")
            )
        );
        assert_eq!(
            refusing.post(path, make(false)).await.0,
            StatusCode::CREATED,
            "{path}"
        );
        assert_eq!(
            allowing.post(path, make(true)).await.0,
            StatusCode::CREATED,
            "{path}"
        );
    }
}
