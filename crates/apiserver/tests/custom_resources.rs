//! Custom resources: defined, served, validated, converted and gone, without a restart.

use crate::common::Api;
use crate::common::service::Service;
use base64::Engine as _;
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
    // Its group is registered like any other, and again if somebody thinks better of it.
    let services = "/apis/apiregistration.k8s.io/v1/apiservices";
    let registration = format!("{services}/v1.example.com");
    let watch = format!("{services}?watch=true&fieldSelector=metadata.name=v1.example.com");
    let mut registered = json!({});
    for _ in 0..2 {
        let before = registered["metadata"]["uid"].clone();
        api.watch_until(&watch, |s| s["metadata"]["uid"] != before)
            .await;
        registered = api.get(&registration).await.1;
        assert_eq!(registered["spec"]["groupPriorityMinimum"], 1000);
        assert_eq!(registered["status"]["conditions"][0]["reason"], "Local");
        api.call(Method::DELETE, &registration, Value::Null).await;
    }
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
    let since = changed["metadata"]["resourceVersion"].as_str().unwrap();
    api.watch_until(&format!("{watch}&resourceVersion={since}"), |_| false)
        .await;
    assert_eq!(api.get(&registration).await.0, StatusCode::NOT_FOUND);
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

/// Converts between `hostPort` of v1 and `host` and `port` of v2.
fn convert_hosts(_: &str, review: &Value) -> (u16, Value) {
    let request = &review["request"];
    let wanted = request["desiredAPIVersion"].clone();
    let objects = request["objects"].as_array().unwrap().iter();
    let converted: Vec<Value> = objects
        .map(|object| {
            let mut object = object.clone();
            object["apiVersion"] = wanted.clone();
            let fields = object.as_object_mut().unwrap();
            if let Some(both) = fields.remove("hostPort") {
                let (host, port) = both.as_str().unwrap().split_once(':').unwrap();
                fields.insert("host".into(), host.into());
                fields.insert("port".into(), port.into());
            } else if let (Some(host), Some(port)) = (fields.remove("host"), fields.remove("port"))
            {
                let both = format!("{}:{}", host.as_str().unwrap(), port.as_str().unwrap());
                fields.insert("hostPort".into(), both.into());
            }
            object
        })
        .collect();
    let response = json!({"uid": request["uid"], "convertedObjects": converted, "result": {"status": "Success"}});
    (
        200,
        json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview", "response": response}),
    )
}

#[tokio::test]
async fn fields_select_in_the_version_that_has_them() {
    let api = Api::start().await;
    api.namespace().await;
    let webhook = Service::start(convert_hosts).await;
    let ca = base64::engine::general_purpose::STANDARD.encode(&webhook.ca_pem);
    let version = |name: &str, stored: bool, fields: &[&str]| {
        let properties: Value = fields
            .iter()
            .map(|f| ((*f).to_owned(), json!({"type": "string"})))
            .collect();
        let selectable: Vec<Value> = fields
            .iter()
            .map(|f| json!({"jsonPath": format!(".{f}")}))
            .collect();
        json!({
            "name": name, "served": true, "storage": stored, "selectableFields": selectable,
            "schema": {"openAPIV3Schema": {"type": "object", "properties": properties}},
        })
    };
    let crd = json!({
        "metadata": {"name": "servers.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced", "names": {"plural": "servers", "kind": "Server"},
            "versions": [version("v1", true, &["hostPort"]), version("v2", false, &["host", "port"])],
            "conversion": {"strategy": "Webhook", "webhook": {
                "conversionReviewVersions": ["v1"],
                "clientConfig": {"url": format!("https://{}/convert", webhook.address), "caBundle": ca},
            }},
        },
    });
    let (status, made) = api.post(CRDS, crd).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    established(&api, "servers.example.com").await;
    let path = |version: &str| format!("/apis/example.com/{version}/namespaces/n/servers");
    let one = json!({"apiVersion": "example.com/v2", "kind": "Server", "metadata": {"name": "one"}, "host": "a", "port": "80"});
    let (status, one) = api.post(&path("v2"), one).await;
    assert_eq!(status, StatusCode::CREATED, "{one}");
    let two = json!({"apiVersion": "example.com/v1", "kind": "Server", "metadata": {"name": "two"}, "hostPort": "a:81"});
    api.post(&path("v1"), two).await;

    let names = async |version: &str, selector: &str| {
        let (status, list) = api
            .get(&format!("{}?fieldSelector={selector}", path(version)))
            .await;
        let items = list["items"].as_array().into_iter().flatten();
        let names: Vec<String> = items
            .map(|i| i["metadata"]["name"].as_str().unwrap().to_owned())
            .collect();
        (status.as_u16(), names.join(" "))
    };
    assert_eq!(names("v1", "hostPort=a:80").await, (200, "one".into()));
    assert_eq!(names("v2", "host=a").await, (200, "one two".into()));
    assert_eq!(
        names("v2", "host=a,port!=80&limit=1").await,
        (200, "two".into())
    );
    assert_eq!(names("v2", "hostPort=a:80").await.0, 400);
    assert_eq!(names("v1", "host=a").await.0, 400);

    // It leaves what a watcher sees, and comes back to it.
    for port in ["82", "80", "83"] {
        let change = json!({"port": port});
        let (status, _) = api
            .patch(&format!("{}/one", path("v2")), "merge-patch", change)
            .await;
        assert_eq!(status, StatusCode::OK);
    }
    let since = one["metadata"]["resourceVersion"].as_str().unwrap();
    let watch = format!(
        "{}?watch=1&timeoutSeconds=1&fieldSelector=host=a,port=80&resourceVersion={since}",
        path("v2")
    );
    let mut request = http::Request::get(watch)
        .body(http_body_util::Full::new(bytes::Bytes::new()))
        .unwrap();
    request.extensions_mut().insert(api.user.clone());
    let (_, _, events) = api.send(request).await;
    let events: Vec<(String, String)> = events
        .as_str()
        .unwrap()
        .lines()
        .map(|line| {
            let event: Value = serde_json::from_str(line).unwrap();
            let text = |v: &Value| v.as_str().unwrap().to_owned();
            (text(&event["type"]), text(&event["object"]["port"]))
        })
        .collect();
    let expected = [("DELETED", "80"), ("ADDED", "80"), ("DELETED", "80")];
    assert_eq!(events, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
    let (status, _) = api
        .call(
            Method::DELETE,
            &format!("{}?fieldSelector=port=81", path("v2")),
            Value::Null,
        )
        .await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(names("v2", "host=a").await, (200, "one".into()));
}
