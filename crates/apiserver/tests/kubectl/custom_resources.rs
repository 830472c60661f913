//! Custom resources as kubectl and a controller written with kube-rs see them.

use fluyt_apiserver::{MASTERS, User};
use futures::{StreamExt as _, TryStreamExt as _};
use kube::api::{
    ApiResource, DynamicObject, Patch, PatchParams, PostParams, WatchEvent, WatchParams,
};
use serde_json::json;

use crate::common::Api;
use crate::kubectl::Kubectl;

const DEFINITION: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: widgets, kind: Widget, shortNames: [wd], categories: [all]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}, scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas}}
    additionalPrinterColumns:
    - {name: Color, type: string, jsonPath: .spec.color}
    - {name: Ready, type: integer, jsonPath: .status.replicas}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            x-kubernetes-validations:
            - {rule: "self.replicas <= 9", message: too many replicas}
            properties:
              color: {type: string, description: The colour of the widget., default: red}
              replicas: {type: integer, default: 1}
          status: {type: object, properties: {replicas: {type: integer}}}
"#;

const WIDGET: &str =
    "{apiVersion: example.com/v1, kind: Widget, metadata: {name: a}, spec: {replicas: 2}}";

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_works_on_custom_resources() {
    let api = Api::start().await;
    api.namespace().await;
    let kubectl = Kubectl::of(api.listen().await);
    kubectl.ok("apply -f -", DEFINITION).await;
    kubectl
        .ok(
            "wait --for=condition=Established crd/widgets.example.com",
            "",
        )
        .await;
    assert_eq!(
        kubectl.ok("apply -f -", WIDGET).await,
        "widget.example.com/a created\n"
    );
    assert_eq!(
        kubectl.ok("apply -f -", WIDGET).await,
        "widget.example.com/a unchanged\n"
    );
    let table = kubectl.ok("get wd", "").await;
    let words: Vec<Vec<&str>> = table
        .lines()
        .map(|l| l.split_whitespace().collect())
        .collect();
    assert_eq!(words, [vec!["NAME", "COLOR", "READY"], vec!["a", "red"]]);
    assert!(
        kubectl
            .ok("get all", "")
            .await
            .contains("widget.example.com/a")
    );
    assert!(
        kubectl
            .ok("explain widget.spec.color", "")
            .await
            .contains("The colour of the widget.")
    );
    kubectl.ok("scale widget/a --replicas=5", "").await;
    assert_eq!(
        kubectl
            .ok("get widget a -o jsonpath={.spec.replicas}", "")
            .await,
        "5"
    );
    let (_, refused) = kubectl
        .run(
            r#"patch widget a --type=merge -p {"spec":{"replicas":10}}"#,
            "",
        )
        .await;
    assert_eq!(
        refused,
        "The Widget \"a\" is invalid: spec: Invalid value: too many replicas\n"
    );
    let (_, refused) = kubectl
        .run("apply -f -", &WIDGET.replace("replicas: 2", "replica: 2"))
        .await;
    assert!(
        refused.contains("unknown field \"spec.replica\""),
        "{refused}"
    );
    kubectl
        .ok("delete crd widgets.example.com --timeout=20s", "")
        .await;
    assert!(!kubectl.run("get widgets", "").await.0);
}

/// A controller in kube-rs: it watches widgets and reports their replicas as their status.
#[tokio::test(flavor = "multi_thread")]
async fn a_kube_rs_controller_reconciles_custom_resources() {
    let api = Api::start().await;
    api.namespace().await;
    let client = kube::Client::new(
        api.server
            .service(User::new("controller", &[MASTERS]), "controller"),
        "n",
    );
    let definitions: kube::Api<DynamicObject> = kube::Api::all_with(
        client.clone(),
        &ApiResource {
            group: "apiextensions.k8s.io".into(),
            version: "v1".into(),
            api_version: "apiextensions.k8s.io/v1".into(),
            kind: "CustomResourceDefinition".into(),
            plural: "customresourcedefinitions".into(),
        },
    );
    let definition: DynamicObject = serde_json::from_value(json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "widgets.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "widgets", "kind": "Widget"}, "versions": [
            {"name": "v1", "served": true, "storage": true, "subresources": {"status": {}}, "schema": {"openAPIV3Schema": {"type": "object",
                "properties": {"spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                    "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}}]}}))
    .unwrap();
    definitions
        .create(&PostParams::default(), &definition)
        .await
        .unwrap();
    api.watch_until(
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions?watch=true&timeoutSeconds=20",
        |crd| {
            let conditions = crd["status"]["conditions"].as_array();
            conditions.is_some_and(|c| {
                c.iter()
                    .any(|c| c["type"] == "Established" && c["status"] == "True")
            })
        },
    )
    .await;
    let resource = ApiResource {
        group: "example.com".into(),
        version: "v1".into(),
        api_version: "example.com/v1".into(),
        kind: "Widget".into(),
        plural: "widgets".into(),
    };
    let widgets: kube::Api<DynamicObject> = kube::Api::namespaced_with(client, "n", &resource);
    let controller = widgets.clone();
    tokio::spawn(async move {
        let mut events = controller
            .watch(&WatchParams::default(), "0")
            .await
            .unwrap()
            .boxed();
        while let Some(event) = events.try_next().await.unwrap() {
            let (WatchEvent::Added(widget) | WatchEvent::Modified(widget)) = event else {
                continue;
            };
            let replicas = &widget.data["spec"]["replicas"];
            if widget.data["status"]["replicas"] != *replicas {
                let patch = Patch::Merge(json!({"status": {"replicas": replicas}}));
                let name = widget.metadata.name.unwrap();
                controller
                    .patch_status(&name, &PatchParams::default(), &patch)
                    .await
                    .unwrap();
            }
        }
    });
    let widget = DynamicObject::new("a", &resource).data(json!({"spec": {"replicas": 3}}));
    widgets
        .create(&PostParams::default(), &widget)
        .await
        .unwrap();
    let watched = "/apis/example.com/v1/namespaces/n/widgets?watch=true&timeoutSeconds=20";
    api.watch_until(watched, |widget| widget["status"]["replicas"] == 3)
        .await;
    let patch = Patch::Merge(json!({"spec": {"replicas": 4}}));
    widgets
        .patch("a", &PatchParams::default(), &patch)
        .await
        .unwrap();
    api.watch_until(watched, |widget| widget["status"]["replicas"] == 4)
        .await;
    let last = widgets.get("a").await.unwrap();
    assert_eq!(last.metadata.generation, Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_knows_the_schema() {
    let api = Api::start().await;
    api.namespace().await;
    let kubectl = Kubectl::of(api.listen().await);
    let text = kubectl.ok("explain pods.spec.containers.ports", "").await;
    assert!(
        text.contains("containerPort") && text.contains("FIELDS"),
        "{text}"
    );
    let old = "explain deployments.spec --output plaintext-openapiv2";
    let text = kubectl.ok(old, "").await;
    assert!(text.contains("minReadySeconds"), "{text}");
    let good = "{apiVersion: v1, kind: ConfigMap, metadata: {name: a}, data: {k: v}}";
    let text = kubectl.run("diff -f -", good).await.1;
    assert!(text.contains("+  k: v"), "{text}");
    kubectl.ok("apply -f -", good).await;
    let (success, text) = kubectl.run("diff -f -", good).await;
    assert!(success, "{text}");
    let bad = "{apiVersion: v1, kind: ConfigMap, metadata: {name: b}, dota: {k: v}}";
    let (success, text) = kubectl.run("apply -f -", bad).await;
    assert!(
        !success && text.contains("unknown field \"dota\""),
        "{text}"
    );
}
