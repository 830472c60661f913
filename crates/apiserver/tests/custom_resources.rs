//! Custom resources: defined, served, validated, converted and gone, without a restart.

#![allow(clippy::unwrap_used)]

mod common;

use common::Api;
use http::{Method, StatusCode};
use serde_json::{Value, json};

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const WIDGETS: &str = "/apis/example.com/v1/namespaces/n/widgets";

fn definition() -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "widgets.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "kind": "Widget", "shortNames": ["wd"], "categories": ["all"]},
            "versions": [
                {"name": "v1", "served": true, "storage": true,
                    "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}},
                    "additionalPrinterColumns": [{"name": "Color", "type": "string", "jsonPath": ".spec.color"}],
                    "selectableFields": [{"jsonPath": ".spec.color"}],
                    "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                        "spec": {"type": "object", "required": ["color"], "properties": {
                            "color": {"type": "string", "enum": ["red", "blue"]},
                            "replicas": {"type": "integer", "default": 1, "minimum": 0},
                            "ports": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "integer"}}}},
                        "status": {"type": "object", "properties": {"replicas": {"type": "integer"}}}}}}},
                {"name": "v1beta1", "served": true, "storage": false, "deprecated": true,
                    "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]}})
}

/// Waits until a definition has a condition; the cache's watch tells.
async fn established(api: &Api, name: &str) {
    let path = format!("{CRDS}?watch=true&fieldSelector=metadata.name={name}&timeoutSeconds=20");
    api.watch_until(&path, |object| {
        object["status"]["conditions"].as_array().is_some_and(|c| {
            c.iter()
                .any(|c| c["type"] == "Established" && c["status"] == "True")
        })
    })
    .await;
}

async fn defined() -> Api {
    let api = Api::start().await;
    api.namespace().await;
    let (status, crd) = api.post(CRDS, definition()).await;
    assert_eq!(status, StatusCode::CREATED, "{crd}");
    established(&api, "widgets.example.com").await;
    api
}

fn widget(spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "a"}, "spec": spec})
}

#[tokio::test]
async fn instances_live_by_their_schema() {
    let api = defined().await;
    let (status, created) = api
        .post(
            WIDGETS,
            widget(json!({"color": "red", "unknown": 1, "status": {}})),
        )
        .await;
    assert_eq!(status, StatusCode::CREATED, "{created}");
    assert_eq!(created["spec"], json!({"color": "red", "replicas": 1}));
    assert_eq!(created["metadata"]["generation"], 1);

    let (status, refused) = api
        .post(WIDGETS, widget(json!({"color": "green", "ports": [1, 1]})))
        .await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(
        refused["message"],
        "Widget.example.com \"a\" is invalid: [spec.color: Unsupported value: \"green\": supported values: \"red\", \"blue\", spec.ports[1]: Duplicate value: 1]"
    );
    let strict = format!("{WIDGETS}?fieldValidation=Strict");
    let (status, refused) = api
        .post(&strict, widget(json!({"color": "red", "extra": 1})))
        .await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(
        refused["message"],
        "Widget in version \"v1\" cannot be handled as a Widget: strict decoding error: unknown field \"spec.extra\""
    );
    let at = format!("{WIDGETS}/a");
    let (_, patched) = api
        .patch(
            &at,
            "merge-patch",
            json!({"spec": {"color": "blue"}, "status": {"replicas": 9}}),
        )
        .await;
    assert_eq!(
        (&patched["metadata"]["generation"], &patched["status"]),
        (&json!(2), &Value::Null),
        "{patched}"
    );
    let (_, patched) = api
        .patch(
            &format!("{at}/status"),
            "merge-patch",
            json!({"spec": {"color": "red"}, "status": {"replicas": 1}}),
        )
        .await;
    assert_eq!(
        (
            &patched["spec"]["color"],
            &patched["metadata"]["generation"]
        ),
        (&json!("blue"), &json!(2))
    );
    let (_, scale) = api
        .patch(
            &format!("{at}/scale"),
            "merge-patch",
            json!({"spec": {"replicas": 5}}),
        )
        .await;
    assert_eq!(
        (&scale["spec"], &scale["status"]),
        (&json!({"replicas": 5}), &json!({"replicas": 1})),
        "{scale}"
    );
    let (status, _) = api
        .patch(&at, "merge-patch", json!({"spec": {"replicas": -1}}))
        .await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    let (_, list) = api
        .get(&format!("{WIDGETS}?fieldSelector=spec.color%3Dblue"))
        .await;
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    let (_, list) = api
        .get(&format!("{WIDGETS}?fieldSelector=spec.color%3Dred"))
        .await;
    assert_eq!(list["items"], json!([]));
    let (_, other) = api
        .get("/apis/example.com/v1beta1/namespaces/n/widgets/a")
        .await;
    assert_eq!(
        (&other["apiVersion"], &other["spec"]["color"]),
        (&json!("example.com/v1beta1"), &json!("blue"))
    );
    let (_, list) = api.get("/apis/example.com/v1beta1/widgets").await;
    assert_eq!(list["items"][0]["apiVersion"], "example.com/v1beta1");
}

#[tokio::test]
async fn definitions_are_discovered_changed_and_cleaned_up() {
    let api = defined().await;
    let (_, list) = api.get("/apis/example.com/v1").await;
    assert_eq!(list["resources"][0]["shortNames"], json!(["wd"]));
    api.post(WIDGETS, widget(json!({"color": "red"}))).await;
    // A stricter schema holds at once; a new default shows in what was stored before.
    let at = format!("{CRDS}/widgets.example.com");
    let path = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/size";
    let (status, changed) = api
        .patch(
            &at,
            "json-patch",
            json!([{"op": "add", "path": path, "value": {"type": "string", "default": "big"}}]),
        )
        .await;
    assert_eq!(status, StatusCode::OK, "{changed}");
    let (_, stored) = api.get(&format!("{WIDGETS}/a")).await;
    assert_eq!(stored["spec"]["size"], "big");
    let (status, _) = api.call(Method::DELETE, &at, Value::Null).await;
    assert_eq!(status, StatusCode::OK);
    api.watch_until(
        &format!(
            "{CRDS}?watch=true&resourceVersion={}&timeoutSeconds=20",
            changed["metadata"]["resourceVersion"].as_str().unwrap()
        ),
        |_| false,
    )
    .await;
    assert_eq!(api.get(&at).await.0, StatusCode::NOT_FOUND);
    assert_eq!(api.get(WIDGETS).await.0, StatusCode::NOT_FOUND);
    assert_eq!(
        api.get("/apis/example.com/v1").await.0,
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn rules_hold_over_values_and_changes() {
    let api = Api::start().await;
    api.namespace().await;
    let mut crd = definition();
    let spec = &mut crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    spec["properties"]["color"] = json!({"type": "string", "maxLength": 20, "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "color is immutable"}]});
    spec["x-kubernetes-validations"] = json!([
        {"rule": "self.replicas <= 5", "messageExpression": "'too ' + 'many'", "fieldPath": ".replicas"},
        {"rule": "!has(self.ports) || self.ports.all(p, p > 0)", "reason": "FieldValueForbidden", "message": "ports are positive"}]);
    let mut bad = crd.clone();
    bad["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["x-kubernetes-validations"]
        [0]["rule"] = "self.nothing > 1".into();
    let (status, refused) = api.post(CRDS, bad).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    let message = refused["message"].as_str().unwrap();
    assert!(
        message.contains("compilation failed: ERROR: <input>:1:5: undefined field 'nothing'"),
        "{message}"
    );
    api.post(CRDS, crd).await;
    established(&api, "widgets.example.com").await;
    let (status, refused) = api
        .post(
            WIDGETS,
            widget(json!({"color": "red", "replicas": 9, "ports": [-1]})),
        )
        .await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(
        refused["message"],
        "Widget.example.com \"a\" is invalid: [spec.replicas: Invalid value: too many, spec: Forbidden: ports are positive]"
    );
    let (status, _) = api.post(WIDGETS, widget(json!({"color": "red"}))).await;
    assert_eq!(status, StatusCode::CREATED);
    let (status, refused) = api
        .patch(
            &format!("{WIDGETS}/a"),
            "merge-patch",
            json!({"spec": {"color": "blue"}}),
        )
        .await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(
        refused["message"],
        "Widget.example.com \"a\" is invalid: spec.color: Invalid value: \"blue\": color is immutable"
    );
}

#[tokio::test]
async fn bad_definitions_and_names_in_use_are_refused() {
    let api = defined().await;
    let mut bad = definition();
    bad["metadata"]["name"] = "gadgets.example.com".into();
    bad["spec"]["names"]["plural"] = "gadgets".into();
    let (_, conflicting) = api.post(CRDS, bad.clone()).await;
    assert_eq!(
        conflicting["status"]["acceptedNames"]["plural"], "",
        "{conflicting}"
    );
    let path = format!(
        "{CRDS}?watch=true&fieldSelector=metadata.name%3Dgadgets.example.com&timeoutSeconds=20"
    );
    api.watch_until(&path, |crd| {
        crd["status"]["conditions"].as_array().is_some_and(|c| {
            c.iter().any(|c| {
                c["type"] == "NamesAccepted"
                    && c["status"] == "False"
                    && c["reason"] == "ListKindConflict"
            })
        })
    })
    .await;
    bad["metadata"]["name"] = "x".into();
    bad["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["color"] =
        json!({});
    let (status, refused) = api.post(CRDS, bad).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    let message = refused["message"].as_str().unwrap();
    assert!(message.contains("spec.versions[0].schema.openAPIV3Schema.properties[spec].properties[color].type: Required value: must not be empty for specified object fields"), "{message}");
}
