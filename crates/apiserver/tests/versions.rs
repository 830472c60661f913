//! Alpha and beta versions of built-in resources: turned on, written in one and read in all, and told apart by discovery.

use crate::common::Api;
use bytes::Bytes;
use fluyt_apiserver::{Feature, Features, MASTERS, Served, User};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// Everything that there is.
async fn everything() -> Api {
    let features = Features::default()
        .with(Feature::ClusterTrustBundle)
        .with(Feature::GenericWorkload)
        .with(Feature::PodCertificateRequest)
        .with(Feature::StorageVersionMigrator);
    let served = Served::configured("api/all=true", features).unwrap();
    let api = Api::configured(|config, _| {
        config.features = features;
        config.served = served;
    })
    .await;
    api.namespace().await;
    api
}

async fn send(
    api: &Api,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> (StatusCode, HeaderMap, Vec<u8>) {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut request = request.body(Full::new(Bytes::from(body))).unwrap();
    request.extensions_mut().insert(api.user.clone());
    let (parts, body) = api.server.handle(request).await.into_parts();
    let body = body.collect().await.unwrap().to_bytes().to_vec();
    (parts.status, parts.headers, body)
}

/// A resource, the versions that it is served in, and an object of it in each of them but for kind and name.
struct Case {
    group: &'static str,
    plural: &'static str,
    kind: &'static str,
    namespaced: bool,
    name: &'static str,
    versions: Vec<(&'static str, Value)>,
}

fn same(versions: &[&'static str], object: &Value) -> Vec<(&'static str, Value)> {
    versions.iter().map(|v| (*v, object.clone())).collect()
}

impl Case {
    fn collection(&self, version: &str) -> String {
        let namespace = if self.namespaced { "namespaces/n/" } else { "" };
        format!("/apis/{}/{version}/{namespace}{}", self.group, self.plural)
    }

    fn path(&self, version: &str) -> String {
        format!("{}/{}", self.collection(version), self.name)
    }

    fn object(&self, version: &str, content: &Value) -> Value {
        let mut object = content.clone();
        object["apiVersion"] = format!("{}/{version}", self.group).into();
        object["kind"] = self.kind.into();
        object["metadata"] = json!({"name": self.name, "labels": {"a": "b"}});
        object
    }
}

/// PEM to DER in base64.
fn request() -> String {
    let pem = include_str!("../../api/src/x509/request.pem");
    pem.lines().filter(|line| !line.starts_with('-')).collect()
}

fn cases() -> Vec<Case> {
    let policy = json!({"spec": {
        "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}]},
        "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": "[JSONPatch{op: \"test\", path: \"/kind\", value: \"Pod\"}]"}}],
        "reinvocationPolicy": "Never"}});
    let exact = json!({"deviceClassName": "c", "allocationMode": "ExactCount", "count": 2, "adminAccess": false});
    let mut flat = exact.clone();
    flat["name"] = "r".into();
    let claim = |request: Value| json!({"devices": {"requests": [request, {"name": "s", "firstAvailable": [{"name": "t", "deviceClassName": "c"}]}]}});
    let nested = json!({"name": "r", "exactly": exact});
    let slice = |device: Value| json!({"spec": {"driver": "d.example.com", "nodeName": "node", "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}, "devices": [device]}});
    let device = json!({"attributes": {"x": {"int": 1}}, "capacity": {"m": {"value": "1Gi"}}});
    let mut basic = json!({"basic": device});
    basic["name"] = "a".into();
    let mut plain = device;
    plain["name"] = "a".into();
    let in_claims = |wrap: &dyn Fn(Value) -> Value| {
        vec![
            ("v1", wrap(claim(nested.clone()))),
            ("v1beta2", wrap(claim(nested.clone()))),
            ("v1beta1", wrap(claim(flat.clone()))),
        ]
    };
    let bundle = json!({"spec": {"trustBundle": include_str!("../../api/src/x509/authority.pem")}});
    let template = json!({"name": "t", "schedulingPolicy": {"basic": {}}});
    let case = |group, plural, kind, namespaced, versions| Case {
        group,
        plural,
        kind,
        namespaced,
        name: "a",
        versions,
    };
    vec![
        case(
            "admissionregistration.k8s.io",
            "mutatingadmissionpolicies",
            "MutatingAdmissionPolicy",
            false,
            same(&["v1", "v1beta1", "v1alpha1"], &policy),
        ),
        case(
            "admissionregistration.k8s.io",
            "mutatingadmissionpolicybindings",
            "MutatingAdmissionPolicyBinding",
            false,
            same(
                &["v1", "v1beta1", "v1alpha1"],
                &json!({"spec": {"policyName": "other"}}),
            ),
        ),
        case(
            "certificates.k8s.io",
            "clustertrustbundles",
            "ClusterTrustBundle",
            false,
            same(&["v1beta1", "v1alpha1"], &bundle),
        ),
        case(
            "certificates.k8s.io",
            "podcertificaterequests",
            "PodCertificateRequest",
            true,
            same(
                &["v1beta1"],
                &json!({"spec": {
            "signerName": "example.com/s", "podName": "p", "podUID": "1", "serviceAccountName": "default", "serviceAccountUID": "2",
            "nodeName": "node", "nodeUID": "3", "stubPKCS10Request": request()}}),
            ),
        ),
        case(
            "coordination.k8s.io",
            "leasecandidates",
            "LeaseCandidate",
            true,
            same(
                &["v1beta1", "v1alpha2"],
                &json!({"spec": {
            "leaseName": "l", "binaryVersion": "1.36.0", "emulationVersion": "1.35.0", "strategy": "OldestEmulationVersion"}}),
            ),
        ),
        Case {
            name: "10.9.9.9",
            ..case(
                "networking.k8s.io",
                "ipaddresses",
                "IPAddress",
                false,
                same(
                    &["v1", "v1beta1"],
                    &json!({"spec": {"parentRef": {"resource": "services", "namespace": "n", "name": "s"}}}),
                ),
            )
        },
        case(
            "networking.k8s.io",
            "servicecidrs",
            "ServiceCIDR",
            false,
            same(
                &["v1", "v1beta1"],
                &json!({"spec": {"cidrs": ["10.9.0.0/16"]}}),
            ),
        ),
        case(
            "resource.k8s.io",
            "deviceclasses",
            "DeviceClass",
            false,
            same(
                &["v1", "v1beta2", "v1beta1"],
                &json!({"spec": {"selectors": [{"cel": {"expression": "true"}}], "extendedResourceName": "example.com/gpu"}}),
            ),
        ),
        case(
            "resource.k8s.io",
            "resourceclaims",
            "ResourceClaim",
            true,
            in_claims(&|spec| json!({"spec": spec})),
        ),
        case(
            "resource.k8s.io",
            "resourceclaimtemplates",
            "ResourceClaimTemplate",
            true,
            in_claims(&|spec| json!({"spec": {"spec": spec}})),
        ),
        case(
            "resource.k8s.io",
            "resourceslices",
            "ResourceSlice",
            false,
            vec![
                ("v1", slice(plain.clone())),
                ("v1beta2", slice(plain)),
                ("v1beta1", slice(basic)),
            ],
        ),
        case(
            "resource.k8s.io",
            "devicetaintrules",
            "DeviceTaintRule",
            false,
            same(
                &["v1beta2", "v1alpha3"],
                &json!({"spec": {"deviceSelector": {"driver": "d"}, "taint": {"key": "k", "effect": "NoSchedule", "timeAdded": "2026-01-02T03:04:05Z"}}}),
            ),
        ),
        case(
            "resource.k8s.io",
            "resourcepoolstatusrequests",
            "ResourcePoolStatusRequest",
            false,
            same(&["v1alpha3"], &json!({"spec": {"driver": "d"}})),
        ),
        case(
            "scheduling.k8s.io",
            "workloads",
            "Workload",
            true,
            same(
                &["v1alpha2"],
                &json!({"spec": {"controllerRef": {"apiGroup": "batch", "kind": "Job", "name": "j"}, "podGroupTemplates": [template]}}),
            ),
        ),
        case(
            "scheduling.k8s.io",
            "podgroups",
            "PodGroup",
            true,
            same(
                &["v1alpha2"],
                &json!({"spec": {"schedulingPolicy": {"basic": {}}}}),
            ),
        ),
        case(
            "storage.k8s.io",
            "volumeattributesclasses",
            "VolumeAttributesClass",
            false,
            same(
                &["v1", "v1beta1"],
                &json!({"driverName": "d.example.com", "parameters": {"a": "b"}}),
            ),
        ),
        case(
            "storagemigration.k8s.io",
            "storageversionmigrations",
            "StorageVersionMigration",
            false,
            same(
                &["v1beta1"],
                &json!({"spec": {"resource": {"group": "apps", "resource": "deployments"}}}),
            ),
        ),
        Case {
            name: "apps.deployments",
            ..case(
                "internal.apiserver.k8s.io",
                "storageversions",
                "StorageVersion",
                false,
                same(&["v1alpha1"], &json!({"spec": {}})),
            )
        },
    ]
}

/// Whether all that is in `part` is in `whole`.
fn contains(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => part
            .iter()
            .all(|(key, value)| whole.get(key).is_some_and(|w| contains(w, value))),
        (Value::Array(whole), Value::Array(part)) => {
            whole.len() == part.len() && whole.iter().zip(part).all(|(w, p)| contains(w, p))
        }
        (whole, part) => whole == part,
    }
}

#[tokio::test]
async fn what_is_written_in_one_version_is_read_in_all() {
    let api = everything().await;
    for case in cases() {
        for (written, content) in &case.versions {
            let object = case.object(written, content);
            let (status, made) = api.post(&case.collection(written), object.clone()).await;
            assert_eq!(
                status,
                StatusCode::CREATED,
                "{} {written}: {made}",
                case.kind
            );
            assert!(contains(&made, &object), "{object}\n{made}");
            let revision = &made["metadata"]["resourceVersion"];
            for (read, content) in &case.versions {
                let context = format!("{} written as {written}, read as {read}", case.kind);
                let path = case.path(read);
                let (status, seen) = api.get(&path).await;
                assert_eq!(status, StatusCode::OK, "{context}");
                assert!(
                    contains(&seen, &case.object(read, content)),
                    "{context}: {seen}"
                );
                let (_, list) = api.get(&case.collection(read)).await;
                assert_eq!(list["apiVersion"], seen["apiVersion"], "{context}");
                let listed = list["items"].as_array().unwrap();
                assert!(
                    listed.iter().any(|o| contains(&seen["spec"], &o["spec"])),
                    "{context}"
                );
                let watch = format!(
                    "{}?watch=true&fieldSelector=metadata.name={}",
                    case.collection(read),
                    case.name
                );
                let of_version = |o: &Value| contains(o, &seen);
                api.watch_until(&watch, of_version).await;
                // Nothing has changed when it is written again as it was read, in either form.
                let (status, again) = api.call(Method::PUT, &path, seen.clone()).await;
                assert_eq!(status, StatusCode::OK, "{context}: {again}");
                assert_eq!(
                    again["metadata"]["resourceVersion"], *revision,
                    "{context}: {again}\n{seen}"
                );
                let (status, _, message) = send(
                    &api,
                    Method::GET,
                    &path,
                    &[("accept", PROTOBUF)],
                    Vec::new(),
                )
                .await;
                assert_eq!(status, StatusCode::OK, "{context}");
                let headers = [("content-type", PROTOBUF), ("accept", "application/json")];
                let (status, _, again) = send(&api, Method::PUT, &path, &headers, message).await;
                let again: Value = serde_json::from_slice(&again).unwrap();
                assert_eq!(status, StatusCode::OK, "{context}: {again}");
                assert_eq!(
                    again["metadata"]["resourceVersion"], *revision,
                    "{context}: {again}\n{seen}"
                );
                assert_eq!(again["spec"], seen["spec"], "{context}");
            }
            let (status, gone) = api
                .call(Method::DELETE, &case.path(written), Value::Null)
                .await;
            assert_eq!(status, StatusCode::OK);
            // A group of pods is protected from the start, so that it is still there.
            let returned = ["resource.k8s.io", "storage.k8s.io"].contains(&case.group)
                || case.kind == "PodGroup";
            let kind = if returned { case.kind } else { "Status" };
            assert_eq!(gone["kind"], kind, "{gone}");
            // What would be done by a controller.
            let free = json!({"metadata": {"finalizers": null}});
            api.patch(&case.path(written), "merge-patch", free).await;
        }
    }
}

/// What is in the store under a key.
async fn stored(api: &Api, key: &str) -> Vec<u8> {
    use fluyt_etcd::{Keys, Range};
    let key = Bytes::from(key.to_owned());
    let found = api.store.range(Range::new(Keys::One(key))).await.unwrap();
    found.kvs[0].value.to_vec()
}

#[tokio::test]
async fn the_store_has_the_version_that_upstream_writes() {
    let api = everything().await;
    for case in cases() {
        let (version, content) = &case.versions[0];
        api.post(&case.collection(version), case.object(version, content))
            .await;
        let namespace = if case.namespaced { "n/" } else { "" };
        let key = format!("/registry/{}/{namespace}{}", case.plural, case.name);
        let value = stored(&api, &key).await;
        let envelope = fluyt_api::protobuf::open(&value).unwrap();
        let expected = match case.plural {
            "mutatingadmissionpolicies" | "mutatingadmissionpolicybindings" => "v1beta1",
            "devicetaintrules" => "v1alpha3",
            _ => version,
        };
        assert_eq!(envelope.api_version, format!("{}/{expected}", case.group));
        assert_eq!(envelope.kind, case.kind);
    }
}

#[tokio::test]
async fn managers_of_fields_meet_across_versions() {
    let api = everything().await;
    let apply = async |version: &str, manager: &str, content: Value| {
        let path =
            format!("/apis/resource.k8s.io/{version}/resourceslices/a?fieldManager={manager}");
        let mut object = json!({"apiVersion": format!("resource.k8s.io/{version}"), "kind": "ResourceSlice", "metadata": {"name": "a"}});
        object["spec"] = content;
        let format = "application/apply-patch+yaml";
        api.call_as(&api.user, Method::PATCH, &path, format, object)
            .await
    };
    let slice = |device: Value| json!({"driver": "d.example.com", "nodeName": "n", "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}, "devices": [device]});
    let (status, made) = apply(
        "v1beta1",
        "first",
        slice(json!({"name": "a", "basic": {"attributes": {"x": {"int": 1}}}})),
    )
    .await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let managed = &made["metadata"]["managedFields"][0];
    assert_eq!(managed["apiVersion"], "resource.k8s.io/v1beta1");
    // The same in another version is no conflict, and both own it.
    let (status, shared) = apply(
        "v1",
        "second",
        slice(json!({"name": "a", "attributes": {"x": {"int": 1}}})),
    )
    .await;
    assert_eq!(status, StatusCode::OK, "{shared}");
    let versions: Vec<&str> = shared["metadata"]["managedFields"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["apiVersion"].as_str().unwrap())
        .collect();
    // Whoever changes nothing has no time, and is before all others.
    assert_eq!(versions, ["resource.k8s.io/v1", "resource.k8s.io/v1beta1"]);
    let (status, refused) = apply(
        "v1",
        "second",
        slice(json!({"name": "a", "attributes": {"x": {"int": 2}}})),
    )
    .await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .contains("conflict with \"first\": .spec.devices"),
        "{refused}"
    );
    let (status, patched) = api
        .patch(
            "/apis/resource.k8s.io/v1beta1/resourceslices/a",
            "merge-patch",
            json!({"spec": {"pool": {"generation": 2}}}),
        )
        .await;
    assert_eq!(status, StatusCode::OK, "{patched}");
    assert_eq!(
        patched["spec"]["devices"][0]["basic"]["attributes"]["x"]["int"],
        1
    );
    let (_, seen) = api.get("/apis/resource.k8s.io/v1/resourceslices/a").await;
    assert_eq!(seen["spec"]["pool"]["generation"], 2);
}

#[tokio::test]
async fn old_versions_come_with_a_warning() {
    let api = everything().await;
    for (path, warning) in [
        (
            "/apis/resource.k8s.io/v1beta1/deviceclasses",
            Some(
                "resource.k8s.io/v1beta1 DeviceClass is deprecated in v1.35+, unavailable in v1.38+",
            ),
        ),
        (
            "/apis/storage.k8s.io/v1beta1/volumeattributesclasses",
            Some(
                "storage.k8s.io/v1beta1 VolumeAttributesClass is deprecated in v1.34+, unavailable in v1.37+; use storage.k8s.io/v1 VolumeAttributesClass",
            ),
        ),
        (
            "/apis/certificates.k8s.io/v1beta1/clustertrustbundles",
            None,
        ),
        ("/apis/resource.k8s.io/v1/deviceclasses", None),
    ] {
        let (status, headers, _) = send(&api, Method::GET, path, &[], Vec::new()).await;
        assert_eq!(status, StatusCode::OK);
        let found = headers
            .get("warning")
            .map(|w| w.to_str().unwrap().to_owned());
        assert_eq!(found, warning.map(|w| format!("299 - \"{w}\"")), "{path}");
    }
    let (_, _, metrics) = send(&api, Method::GET, "/metrics", &[], Vec::new()).await;
    let metrics = String::from_utf8(metrics).unwrap();
    let counted: Vec<&str> = metrics
        .lines()
        .filter(|l| l.starts_with("apiserver_requested_deprecated_apis{"))
        .collect();
    assert_eq!(
        counted,
        [
            "apiserver_requested_deprecated_apis{group=\"resource.k8s.io\",version=\"v1beta1\",resource=\"deviceclasses\",subresource=\"\",removed_release=\"1.38\"} 1",
            "apiserver_requested_deprecated_apis{group=\"storage.k8s.io\",version=\"v1beta1\",resource=\"volumeattributesclasses\",subresource=\"\",removed_release=\"1.37\"} 1",
        ]
    );
}

/// Groups with their versions, in order.
async fn groups(api: &Api) -> Vec<String> {
    let (_, list) = api.get("/apis").await;
    let all = list["groups"].as_array().unwrap();
    all.iter()
        .map(|group| {
            let versions: Vec<&str> = group["versions"]
                .as_array()
                .unwrap()
                .iter()
                .map(|v| v["version"].as_str().unwrap())
                .collect();
            assert_eq!(group["preferredVersion"]["version"], versions[0]);
            format!("{} {}", group["name"].as_str().unwrap(), versions.join(","))
        })
        .collect()
}

#[tokio::test]
async fn discovery_shows_what_is_on_in_upstreams_order() {
    let stable = [
        "apiregistration.k8s.io v1",
        "apps v1",
        "events.k8s.io v1",
        "authentication.k8s.io v1",
        "authorization.k8s.io v1",
        "autoscaling v2,v1",
        "batch v1",
        "certificates.k8s.io v1",
        "networking.k8s.io v1",
        "policy v1",
        "rbac.authorization.k8s.io v1",
        "storage.k8s.io v1",
        "admissionregistration.k8s.io v1",
        "apiextensions.k8s.io v1",
        "scheduling.k8s.io v1",
        "coordination.k8s.io v1",
        "node.k8s.io v1",
        "discovery.k8s.io v1",
        "resource.k8s.io v1",
        "flowcontrol.apiserver.k8s.io v1",
    ];
    assert_eq!(groups(&Api::start().await).await, stable);
    let all = everything().await;
    let mut expected: Vec<String> = stable.iter().map(|s| (*s).to_owned()).collect();
    for (group, versions) in [
        ("certificates.k8s.io", "v1,v1beta1,v1alpha1"),
        ("networking.k8s.io", "v1,v1beta1"),
        ("storage.k8s.io", "v1,v1beta1"),
        ("admissionregistration.k8s.io", "v1,v1beta1,v1alpha1"),
        ("scheduling.k8s.io", "v1,v1alpha2"),
        ("coordination.k8s.io", "v1,v1beta1,v1alpha2"),
        ("resource.k8s.io", "v1,v1beta2,v1beta1,v1alpha3"),
    ] {
        let place = expected
            .iter()
            .position(|g| g.starts_with(&format!("{group} ")))
            .unwrap();
        expected[place] = format!("{group} {versions}");
    }
    expected.extend([
        "internal.apiserver.k8s.io v1alpha1".to_owned(),
        "storagemigration.k8s.io v1beta1".to_owned(),
    ]);
    assert_eq!(groups(&all).await, expected);
    // The aggregated form has the same order.
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let (_, _, body) = send(
        &all,
        Method::GET,
        "/apis",
        &[("accept", accept)],
        Vec::new(),
    )
    .await;
    let aggregated: Value = serde_json::from_slice(&body).unwrap();
    let found: Vec<String> = aggregated["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|group| {
            let versions: Vec<&str> = group["versions"]
                .as_array()
                .unwrap()
                .iter()
                .map(|v| {
                    assert_eq!(v["freshness"], "Current");
                    v["version"].as_str().unwrap()
                })
                .collect();
            format!(
                "{} {}",
                group["metadata"]["name"].as_str().unwrap(),
                versions.join(",")
            )
        })
        .collect();
    assert_eq!(found, expected);
}

#[tokio::test]
async fn discovery_tells_the_stored_version_as_upstream_does() {
    let api = everything().await;
    for (path, plural, hash) in [
        ("/api/v1", "pods", "xPOwRZ+Yhw8="),
        ("/apis/apps/v1", "deployments", "8aSe+NMegvE="),
        (
            "/apis/admissionregistration.k8s.io/v1",
            "mutatingadmissionpolicies",
            "LYmCf+UMVdg=",
        ),
        (
            "/apis/resource.k8s.io/v1beta1",
            "resourceclaims",
            "wgAZaHcZxUg=",
        ),
        (
            "/apis/resource.k8s.io/v1beta2",
            "devicetaintrules",
            "DJ3UJ0fj8MI=",
        ),
        (
            "/apis/internal.apiserver.k8s.io/v1alpha1",
            "storageversions",
            "c8YZt5U0nPk=",
        ),
    ] {
        let (_, list) = api.get(path).await;
        let mut resources = list["resources"].as_array().unwrap().iter();
        let resource = resources.find(|r| r["name"] == plural).unwrap();
        assert_eq!(resource["storageVersionHash"], hash, "{path} {plural}");
    }
}

#[tokio::test]
async fn every_version_has_its_documents_and_service() {
    let api = everything().await;
    let (_, index) = api.get("/openapi/v3").await;
    for case in cases() {
        for (version, _) in &case.versions {
            let key = format!("apis/{}/{version}", case.group);
            assert!(index["paths"][&key].is_object(), "{key}");
            let (_, document) = api.get(&format!("/openapi/v3/{key}")).await;
            let schemas = document["components"]["schemas"].as_object().unwrap();
            let kind = json!({"group": case.group, "version": version, "kind": case.kind});
            let marked = |s: &Value| {
                s["x-kubernetes-group-version-kind"]
                    .as_array()
                    .is_some_and(|m| m.contains(&kind))
            };
            assert!(schemas.values().any(marked), "{kind}");
            let name = format!(
                "/apis/apiregistration.k8s.io/v1/apiservices/{version}.{}",
                case.group
            );
            api.watch_until(
                "/apis/apiregistration.k8s.io/v1/apiservices?watch=true",
                |o| name.ends_with(&format!("/{}", o["metadata"]["name"].as_str().unwrap())),
            )
            .await;
        }
    }
    let plain = Api::start().await;
    let (_, index) = plain.get("/openapi/v3").await;
    assert!(index["paths"]["apis/resource.k8s.io/v1"].is_object());
    assert!(index["paths"]["apis/resource.k8s.io/v1beta1"].is_null());
    let (status, _) = plain
        .get("/apis/resource.k8s.io/v1beta1/resourceclaims")
        .await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn who_answers_a_pods_request_may_sign() {
    let api = everything().await;
    let case = cases()
        .into_iter()
        .find(|c| c.plural == "podcertificaterequests")
        .unwrap();
    let (version, content) = &case.versions[0];
    let (status, _) = api
        .post(&case.collection(version), case.object(version, content))
        .await;
    assert_eq!(status, StatusCode::CREATED);
    let rule = |resources: &str, verbs: &[&str]| json!({"apiGroups": ["certificates.k8s.io"], "resources": [resources], "verbs": verbs});
    let role = async |rules: Value| {
        let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "signer"}, "rules": rules});
        let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
        if api.post(roles, role.clone()).await.0 == StatusCode::CONFLICT {
            api.call(Method::PUT, &format!("{roles}/signer"), role)
                .await;
        }
    };
    let statuses = rule("podcertificaterequests/status", &["get", "patch"]);
    role(json!([statuses])).await;
    let binding = json!({"metadata": {"name": "signer"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "signer"},
        "subjects": [{"kind": "User", "name": "signer"}]});
    api.post(
        "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
        binding,
    )
    .await;
    let user = User::new("signer", &["system:authenticated"]);
    let deny = async || {
        let denied = json!({"status": {"conditions": [{"type": "Denied", "status": "True", "reason": "R", "message": "m", "lastTransitionTime": "2026-01-02T03:04:05Z"}]}});
        let path = format!("{}/status", case.path(version));
        api.call_as(
            &user,
            Method::PATCH,
            &path,
            "application/merge-patch+json",
            denied,
        )
        .await
    };
    let (status, refused) = deny().await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{refused}");
    assert!(refused["message"].as_str().unwrap().ends_with(
        "spec.signerName: Forbidden: User \"signer\" is not permitted to \"sign\" for signer \"example.com/s\""
    ), "{refused}");
    role(json!([statuses, rule("signers", &["sign"])])).await;
    let (status, denied) = deny().await;
    assert_eq!(status, StatusCode::OK, "{denied}");
}

#[tokio::test]
async fn pages_about_the_server_are_for_those_who_monitor() {
    let api = Api::configured(|config, _| {
        config.flags = [("secure-port".to_owned(), "6443".to_owned())].into();
    })
    .await;
    let get = async |path: &str, accept: &str, user: &User| {
        let mut request = Request::get(path)
            .header("accept", accept)
            .body(Full::new(Bytes::new()))
            .unwrap();
        request.extensions_mut().insert(user.clone());
        api.send(request).await
    };
    let admin = User::new("admin", &[MASTERS]);
    let (status, headers, text) = get("/flagz", "*/*", &admin).await;
    assert_eq!(
        (status, &headers["content-type"]),
        (
            StatusCode::OK,
            &"text/plain; charset=utf-8".parse().unwrap()
        )
    );
    let text = text.as_str().unwrap().to_owned();
    assert!(
        text.starts_with(
            "\napiserver flagz\nWarning: This endpoint is not meant to be machine parseable"
        ),
        "{text}"
    );
    assert!(text.ends_with("secure-port=6443\n"), "{text}");
    for (version, warns) in [("v1beta1", false), ("v1alpha1", true)] {
        let accept = format!("application/json;as=Flagz;v={version};g=config.k8s.io");
        let (status, headers, object) = get("/flagz", &accept, &admin).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(
            object,
            json!({"kind": "Flagz", "apiVersion": format!("config.k8s.io/{version}"), "metadata": {"name": "apiserver"}, "flags": {"secure-port": "6443"}})
        );
        assert_eq!(headers.contains_key("warning"), warns);
    }
    let (status, _, refused) = get("/flagz", "application/json", &admin).await;
    assert_eq!(status, StatusCode::NOT_ACCEPTABLE, "{refused}");
    let accept = "application/json;as=Statusz;v=v1beta1;g=config.k8s.io";
    let (_, _, status) = get("/statusz", accept, &admin).await;
    assert_eq!(status["binaryVersion"], "1.36.0");
    assert!(
        status["paths"]
            .as_array()
            .unwrap()
            .contains(&"/flagz".into()),
        "{status}"
    );
    let monitor = User::new("m", &["system:monitoring", "system:authenticated"]);
    assert_eq!(get("/flagz", "*/*", &monitor).await.0, StatusCode::OK);
    let nobody = User::new("n", &["system:authenticated"]);
    assert_eq!(get("/flagz", "*/*", &nobody).await.0, StatusCode::FORBIDDEN);
    let off =
        Features::parse("ComponentFlagz=false", fluyt_apiserver::Versions::default()).unwrap();
    let api = Api::start_with(off).await;
    assert_eq!(api.get("/flagz").await.0, StatusCode::NOT_FOUND);
    assert_eq!(api.get("/statusz").await.0, StatusCode::OK);
}

#[tokio::test]
async fn policies_see_and_change_the_version_that_they_ask_for() {
    let api = everything().await;
    let group = "/apis/admissionregistration.k8s.io/v1";
    let expression = "[JSONPatch{op: \"add\", path: \"/spec/devices/0/basic/attributes/added\", value: {\"int\": 7}}]";
    let policy = json!({"metadata": {"name": "p"}, "spec": {
        "matchConstraints": {"resourceRules": [{"apiGroups": ["resource.k8s.io"], "apiVersions": ["v1beta1"], "operations": ["CREATE"], "resources": ["resourceslices"]}]},
        "matchConditions": [{"name": "seen", "expression": "request.kind.version == 'v1beta1' && has(object.spec.devices[0].basic)"}],
        "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": expression}}],
        "failurePolicy": "Fail", "reinvocationPolicy": "Never"}});
    let (status, made) = api
        .post(&format!("{group}/mutatingadmissionpolicies"), policy)
        .await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let binding = json!({"metadata": {"name": "p"}, "spec": {"policyName": "p"}});
    let (status, made) = api
        .post(&format!("{group}/mutatingadmissionpolicybindings"), binding)
        .await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let case = cases()
        .into_iter()
        .find(|c| c.plural == "resourceslices")
        .unwrap();
    for (version, content) in &case.versions {
        let object = case.object(version, content);
        let (status, made) = api.post(&case.collection(version), object).await;
        assert_eq!(status, StatusCode::CREATED, "{made}");
        let device = &made["spec"]["devices"][0];
        let device = if *version == "v1beta1" {
            &device["basic"]
        } else {
            device
        };
        assert_eq!(device["attributes"]["added"]["int"], 7, "{made}");
        assert_eq!(device["attributes"]["x"]["int"], 1, "{made}");
        api.call(Method::DELETE, &case.path(version), Value::Null)
            .await;
    }
}
