//! Priority and fairness in the whole server.

use std::time::Duration;

use crate::common::Api;
use crate::common::service::eventually;
use fluyt_apiserver::User;
use fluyt_apiserver::flowcontrol::Settings;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};

const GROUP: &str = "/apis/flowcontrol.apiserver.k8s.io/v1";

async fn raw(api: &Api, user: &User, path: &str) -> Response<fluyt_apiserver::Body> {
    let mut request = Request::get(path)
        .body(Full::<bytes::Bytes>::default())
        .unwrap();
    request.extensions_mut().insert(user.clone());
    api.server.handle(request).await
}

async fn text(response: Response<fluyt_apiserver::Body>) -> String {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A level for one user. Who holds its seats is a list that is not read.
async fn narrow(api: &Api, user: &str, shares: u32, response: Value) {
    let level = json!({"metadata": {"name": "narrow"}, "spec": {"type": "Limited", "limited":
        {"nominalConcurrencyShares": shares, "lendablePercent": 0, "borrowingLimitPercent": 0, "limitResponse": response}}});
    let (status, body) = api
        .post(&format!("{GROUP}/prioritylevelconfigurations"), level)
        .await;
    assert_eq!(status, StatusCode::CREATED, "{body}");
    let schema = json!({"metadata": {"name": "narrow"}, "spec": {"matchingPrecedence": 50,
        "priorityLevelConfiguration": {"name": "narrow"}, "distinguisherMethod": {"type": "ByUser"},
        "rules": [{"subjects": [{"kind": "User", "user": {"name": user}}], "resourceRules": [
            {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": true, "namespaces": ["*"]}]}]}});
    let (status, body) = api.post(&format!("{GROUP}/flowschemas"), schema).await;
    assert_eq!(status, StatusCode::CREATED, "{body}");
    let active = eventually(async || dangling(api, "narrow").await == Some("False".into())).await;
    assert!(active);
    let rules = json!({"metadata": {"name": "lists"}, "rules": [{"verbs": ["list"], "apiGroups": [""], "resources": ["configmaps"]}]});
    api.post("/apis/rbac.authorization.k8s.io/v1/clusterroles", rules)
        .await;
    let binding = json!({"metadata": {"name": "lists"}, "subjects": [{"kind": "User", "name": user}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "lists"}});
    api.post(
        "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
        binding,
    )
    .await;
}

async fn dangling(api: &Api, schema: &str) -> Option<String> {
    let (_, object) = api.get(&format!("{GROUP}/flowschemas/{schema}")).await;
    let conditions = object["status"]["conditions"].as_array()?.clone();
    let condition = conditions.iter().find(|c| c["type"] == "Dangling")?;
    condition["status"].as_str().map(str::to_owned)
}

const LIST: &str = "/api/v1/configmaps";

#[tokio::test]
async fn a_level_without_queues_turns_away_what_it_has_no_seat_for() {
    let api = Api::start().await;
    narrow(&api, "alice", 0, json!({"type": "Reject"})).await;
    let alice = User::new("alice", &[]);
    // No seats by configuration: one request is served at a time, since it is alone.
    let held = raw(&api, &alice, LIST).await;
    assert_eq!(held.status(), StatusCode::OK);
    let (_, schema) = api.get(&format!("{GROUP}/flowschemas/narrow")).await;
    let (_, level) = api
        .get(&format!("{GROUP}/prioritylevelconfigurations/narrow"))
        .await;
    let refused = raw(&api, &alice, LIST).await;
    for response in [&held, &refused] {
        let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(
            header("x-kubernetes-pf-flowschema-uid"),
            schema["metadata"]["uid"].as_str().unwrap()
        );
        assert_eq!(
            header("x-kubernetes-pf-prioritylevel-uid"),
            level["metadata"]["uid"].as_str().unwrap()
        );
    }
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.headers()["retry-after"], "1");
    assert_eq!(
        text(refused).await,
        "Too many requests, please try again later.\n"
    );
    // Others are not concerned.
    assert_eq!(api.get(LIST).await.0, StatusCode::OK);
    let metrics = text(raw(&api, &api.user, "/metrics").await).await;
    for line in [
        "apiserver_flowcontrol_rejected_requests_total{flow_schema=\"narrow\",priority_level=\"narrow\",reason=\"concurrency-limit\"} 1",
        "apiserver_flowcontrol_current_executing_requests{flow_schema=\"narrow\",priority_level=\"narrow\"} 1",
        "apiserver_flowcontrol_nominal_limit_seats{priority_level=\"workload-low\"}",
    ] {
        assert!(metrics.contains(line), "{line}");
    }
    drop(held);
    assert_eq!(raw(&api, &alice, LIST).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_level_with_queues_lets_requests_wait() {
    // So few seats that one share is one seat.
    let settings = Settings {
        max_requests: 6,
        max_mutating: 4,
        ..Settings::default()
    };
    let api = Api::configured(|config, _| config.flow_control = settings).await;
    let queuing = json!({"queues": 4, "handSize": 1, "queueLengthLimit": 1});
    let response = json!({"type": "Queue", "queuing": queuing});
    narrow(&api, "alice", 1, response).await;
    let alice = User::new("alice", &[]);
    let held = raw(&api, &alice, LIST).await;
    let waiting = {
        let (server, alice) = (api.server.clone(), alice.clone());
        tokio::spawn(async move {
            let mut request = Request::get(LIST)
                .body(Full::<bytes::Bytes>::default())
                .unwrap();
            request.extensions_mut().insert(alice);
            server.handle(request).await.status()
        })
    };
    let dump = async |what: &str| {
        text(
            raw(
                &api,
                &api.user,
                &format!("/debug/api_priority_and_fairness/{what}"),
            )
            .await,
        )
        .await
    };
    let cells =
        |line: &str| -> Vec<String> { line.split(',').map(|c| c.trim().to_owned()).collect() };
    let queued = eventually(async || {
        let levels = dump("dump_priority_levels").await;
        let line = levels.lines().find(|l| l.starts_with("narrow,")).map(cells);
        line.is_some_and(|c| c[4] == "1" && c[5] == "1")
    })
    .await;
    assert!(queued, "one is served and one waits");
    let requests = dump("dump_requests?includeRequestDetails=1").await;
    let line = requests
        .lines()
        .find(|l| l.starts_with("narrow,") && cells(l)[3] == "0")
        .unwrap();
    assert_eq!(
        cells(line)[10..],
        ["alice", "list", LIST, "", "", "v1", "configmaps", ""]
    );
    assert!(dump("dump_queues").await.lines().count() > 100);
    // The queue has one place.
    assert_eq!(
        raw(&api, &alice, LIST).await.status(),
        StatusCode::TOO_MANY_REQUESTS
    );
    assert!(!waiting.is_finished());
    drop(held);
    assert_eq!(waiting.await.unwrap(), StatusCode::OK);
    // Who waits longer than a quarter of their time is turned away.
    let held = raw(&api, &alice, LIST).await;
    let began = std::time::Instant::now();
    let late = raw(&api, &alice, &format!("{LIST}?timeout=400ms")).await;
    assert_eq!(late.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(
        began.elapsed() >= Duration::from_millis(90) && began.elapsed() < Duration::from_secs(5)
    );
    drop(held);
}

#[tokio::test]
async fn the_objects_of_every_cluster_are_there_and_stay() {
    let api = Api::start().await;
    let (_, schemas) = api.get(&format!("{GROUP}/flowschemas")).await;
    assert_eq!(schemas["items"].as_array().unwrap().len(), 11);
    let (_, levels) = api
        .get(&format!("{GROUP}/prioritylevelconfigurations"))
        .await;
    assert_eq!(levels["items"].as_array().unwrap().len(), 8);
    let settled =
        eventually(async || dangling(&api, "catch-all").await == Some("False".into())).await;
    assert!(settled);
    // One that is deleted comes back; one whose spec was changed against the annotation as well.
    let path = format!("{GROUP}/flowschemas/service-accounts");
    api.call(Method::DELETE, &path, Value::Null).await;
    assert!(eventually(async || api.get(&path).await.0 == StatusCode::OK).await);
    let path = format!("{GROUP}/prioritylevelconfigurations/system");
    let patch = json!({"spec": {"limited": {"nominalConcurrencyShares": 1}}});
    api.patch(&path, "merge-patch", patch.clone()).await;
    let shares =
        async || api.get(&path).await.1["spec"]["limited"]["nominalConcurrencyShares"].clone();
    assert!(eventually(async || shares().await == 30).await);
    let mine = json!({"metadata": {"annotations": {"apf.kubernetes.io/autoupdate-spec": "false"}}, "spec": patch["spec"]});
    api.patch(&path, "merge-patch", mine).await;
    let touch = json!({"metadata": {"labels": {"a": "b"}}});
    api.patch(&format!("{GROUP}/flowschemas/probes"), "merge-patch", touch)
        .await;
    assert!(eventually(async || shares().await == 1).await);
    // What every server relies on cannot be changed at all.
    let patch = json!({"spec": {"matchingPrecedence": 5}});
    let (status, body) = api
        .patch(&format!("{GROUP}/flowschemas/exempt"), "merge-patch", patch)
        .await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(
        body["message"]
            .as_str()
            .unwrap()
            .contains("spec of 'exempt' must equal the fixed value"),
        "{body}"
    );
}

#[tokio::test]
async fn a_schema_says_whether_its_level_exists() {
    let api = Api::start().await;
    let schema = json!({"metadata": {"name": "s"}, "spec": {"matchingPrecedence": 50, "priorityLevelConfiguration": {"name": "later"},
        "rules": [{"subjects": [{"kind": "Group", "group": {"name": "*"}}], "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}]}]}});
    api.post(&format!("{GROUP}/flowschemas"), schema).await;
    assert!(eventually(async || dangling(&api, "s").await == Some("True".into())).await);
    let level = json!({"metadata": {"name": "later"}, "spec": {"type": "Limited", "limited": {"limitResponse": {"type": "Reject"}}}});
    api.post(&format!("{GROUP}/prioritylevelconfigurations"), level)
        .await;
    assert!(eventually(async || dangling(&api, "s").await == Some("False".into())).await);
    api.call(
        Method::DELETE,
        &format!("{GROUP}/prioritylevelconfigurations/later"),
        Value::Null,
    )
    .await;
    assert!(eventually(async || dangling(&api, "s").await == Some("True".into())).await);
}

#[tokio::test]
async fn without_fairness_numbers_limit() {
    let settings = Settings {
        enabled: false,
        max_requests: 1,
        max_mutating: 1,
    };
    let api = Api::configured(|config, _| config.flow_control = settings).await;
    // A request that waits in a watch is not counted, nor is one of an administrator held up.
    let watch = raw(&api, &api.user, "/api/v1/pods?watch=true").await;
    assert_eq!(watch.status(), StatusCode::OK);
    assert!(
        !watch
            .headers()
            .contains_key("x-kubernetes-pf-flowschema-uid")
    );
    assert_eq!(api.get("/api/v1/pods").await.0, StatusCode::OK);
    let (status, _) = api
        .get("/debug/api_priority_and_fairness/dump_queues")
        .await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}
