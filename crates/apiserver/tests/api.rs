//! The server through its in-process service: what clients see, without sockets.

use crate::common::{Api, pod};
use fluyt_apiserver::User;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};

#[tokio::test]
async fn objects_live_from_creation_to_deletion() {
    let api = Api::start().await;
    api.namespace().await;
    let (status, created) = api.post("/api/v1/namespaces/n/pods", pod("a")).await;
    assert_eq!(status, StatusCode::CREATED, "{created}");
    assert_eq!(
        created["status"],
        json!({"phase": "Pending", "qosClass": "BestEffort"})
    );
    assert_eq!(created["spec"]["serviceAccountName"], "default");
    assert_eq!(
        created["spec"]["containers"][0]["imagePullPolicy"],
        "IfNotPresent"
    );
    assert_eq!(created["spec"]["tolerations"].as_array().unwrap().len(), 2);
    assert!(created["spec"]["volumes"][0]["projected"].is_object());

    let (status, again) = api.post("/api/v1/namespaces/n/pods", pod("a")).await;
    assert_eq!(
        (status, &again["reason"]),
        (StatusCode::CONFLICT, &"AlreadyExists".into())
    );
    assert_eq!(again["message"], "pods \"a\" already exists");

    let (status, got) = api.get("/api/v1/namespaces/n/pods/a").await;
    assert_eq!((status, &got), (StatusCode::OK, &created));

    let (status, deleted) = api
        .call(Method::DELETE, "/api/v1/namespaces/n/pods/a", Value::Null)
        .await;
    assert_eq!(
        (status, &deleted["metadata"]["name"]),
        (StatusCode::OK, &"a".into())
    );
    let (status, gone) = api.get("/api/v1/namespaces/n/pods/a").await;
    assert_eq!(
        (status, &gone["message"]),
        (StatusCode::NOT_FOUND, &"pods \"a\" not found".into())
    );
}

#[tokio::test]
async fn bad_objects_are_refused_with_their_fields() {
    let api = Api::start().await;
    api.namespace().await;
    let path = "/api/v1/namespaces/n/pods?fieldValidation=Strict";
    let mut unknown = pod("a");
    unknown["spec"]["containers"][0]["imagee"] = "x".into();
    let (status, error) = api.post(path, unknown).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(
        error["message"],
        "Pod in version \"v1\" cannot be handled as a Pod: strict decoding error: unknown field \"spec.containers[0].imagee\""
    );
    let mut invalid = pod("A");
    invalid["spec"]["containers"] = json!([]);
    let (status, error) = api.post(path, invalid).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    let fields: Vec<&Value> = error["details"]["causes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| &c["field"])
        .collect();
    assert_eq!(fields, ["metadata.name", "spec.containers"]);
    let (status, error) = api.post("/api/v1/namespaces/missing/pods", pod("a")).await;
    assert_eq!(
        (status, &error["message"]),
        (
            StatusCode::NOT_FOUND,
            &"namespaces \"missing\" not found".into()
        )
    );
}

#[tokio::test]
async fn updates_are_optimistic_and_patches_retry() {
    let api = Api::start().await;
    api.namespace().await;
    let path = "/api/v1/namespaces/n/configmaps";
    let (_, first) = api
        .post(path, json!({"metadata": {"name": "c"}, "data": {"a": "1"}}))
        .await;
    let one = format!("{path}/c");
    let mut change = first.clone();
    change["data"]["a"] = "2".into();
    let (status, second) = api.call(Method::PUT, &one, change.clone()).await;
    assert_eq!(status, StatusCode::OK);
    assert_ne!(
        second["metadata"]["resourceVersion"],
        first["metadata"]["resourceVersion"]
    );
    let (status, error) = api.call(Method::PUT, &one, change).await;
    assert_eq!(
        (status, &error["reason"]),
        (StatusCode::CONFLICT, &"Conflict".into())
    );

    let patches =
        (0..10).map(|i| api.patch(&one, "merge-patch", json!({"data": {format!("k{i}"): "v"}})));
    for (status, _) in futures::future::join_all(patches).await {
        assert_eq!(status, StatusCode::OK);
    }
    let (_, last) = api.get(&one).await;
    assert_eq!(last["data"].as_object().unwrap().len(), 11);
    let (status, _) = api
        .patch(
            &one,
            "json-patch",
            json!([{"op": "remove", "path": "/data/a"}]),
        )
        .await;
    assert_eq!(status, StatusCode::OK);
    let (_, unchanged) = api.patch(&one, "merge-patch", json!({})).await;
    let (_, same) = api.patch(&one, "strategic-merge-patch", json!({})).await;
    assert_eq!(
        unchanged["metadata"]["resourceVersion"],
        same["metadata"]["resourceVersion"]
    );
}

#[tokio::test]
async fn lists_are_chunked_consistently_and_selected() {
    let api = Api::start().await;
    api.namespace().await;
    let path = "/api/v1/namespaces/n/configmaps";
    for i in 0..5 {
        let object =
            json!({"metadata": {"name": format!("c{i}"), "labels": {"odd": (i % 2).to_string()}}});
        api.post(path, object).await;
    }
    let (_, first) = api.get(&format!("{path}?limit=2")).await;
    assert_eq!(first["items"].as_array().unwrap().len(), 2);
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    // What is written in between does not show in later chunks.
    api.post(path, json!({"metadata": {"name": "c9"}})).await;
    let token = first["metadata"]["continue"].as_str().unwrap();
    let (_, rest) = api.get(&format!("{path}?continue={token}")).await;
    let names: Vec<&Value> = rest["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|i| &i["metadata"]["name"])
        .collect();
    assert_eq!(names, ["c2", "c3", "c4"]);
    assert_eq!(
        rest["metadata"]["resourceVersion"],
        first["metadata"]["resourceVersion"]
    );
    let (_, odd) = api.get(&format!("{path}?labelSelector=odd%3D1")).await;
    assert_eq!(odd["items"].as_array().unwrap().len(), 2);
    let (_, named) = api
        .get("/api/v1/configmaps?fieldSelector=metadata.name%3Dc9")
        .await;
    assert_eq!(named["items"].as_array().unwrap().len(), 1);
    let (status, _) = api.get(&format!("{path}?fieldSelector=data.x%3D1")).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn watches_deliver_changes_in_order() {
    let api = Api::start().await;
    api.namespace().await;
    let path = "/api/v1/namespaces/n/configmaps";
    let (_, list) = api.get(path).await;
    let from = list["metadata"]["resourceVersion"].as_str().unwrap();
    let mut request = Request::builder()
        .uri(format!("{path}?watch=true&resourceVersion={from}"))
        .body(Full::new(bytes::Bytes::new()))
        .unwrap();
    request.extensions_mut().insert(api.user.clone());
    let mut body = api.server.handle(request).await.into_body();
    api.post(path, json!({"metadata": {"name": "c"}})).await;
    api.patch(
        &format!("{path}/c"),
        "merge-patch",
        json!({"data": {"a": "1"}}),
    )
    .await;
    api.call(Method::DELETE, &format!("{path}/c"), Value::Null)
        .await;
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
        seen.extend(events(std::str::from_utf8(&frame).unwrap()));
    }
    let types: Vec<_> = seen.iter().map(|event| &event["type"]).collect();
    assert_eq!(types, ["ADDED", "MODIFIED", "DELETED"]);
}

/// The events of a watch, a line each.
fn events(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// All of a watch that ends by itself.
async fn watched(api: &Api, path: &str) -> Vec<Value> {
    let mut request = Request::get(path)
        .body(Full::new(bytes::Bytes::new()))
        .unwrap();
    request.extensions_mut().insert(api.user.clone());
    match api.send(request).await.2 {
        // More lines than one are no JSON.
        Value::String(lines) => events(&lines),
        event => vec![event],
    }
}

#[tokio::test]
async fn events_that_are_there_together_come_in_order_whatever_their_length() {
    let api = Api::start().await;
    api.namespace().await;
    let path = "/api/v1/namespaces/n/configmaps";
    let (_, list) = api.get(path).await;
    let from = list["metadata"]["resourceVersion"].as_str().unwrap();
    // More short ones than are sent together, and long ones between them.
    let lengths = [
        10, 10, 2000, 2000, 2000, 2000, 10, 9000, 10, 20_000, 4000, 10,
    ];
    for (n, length) in lengths.into_iter().enumerate() {
        let map = json!({"metadata": {"name": format!("c{n}")}, "data": {"a": "x".repeat(length)}});
        assert_eq!(api.post(path, map).await.0, StatusCode::CREATED);
    }
    let watch = format!("{path}?watch=1&timeoutSeconds=1&resourceVersion={from}");
    let seen: Vec<_> = watched(&api, &watch)
        .await
        .iter()
        .map(|event| {
            let object = &event["object"];
            let name = object["metadata"]["name"].as_str().unwrap().to_owned();
            (name, object["data"]["a"].as_str().unwrap().len())
        })
        .collect();
    let expected = lengths.iter().enumerate();
    let expected: Vec<_> = expected.map(|(n, l)| (format!("c{n}"), *l)).collect();
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn each_event_of_a_watch_is_a_message_of_a_websocket() {
    use base64::Engine as _;
    use futures::StreamExt as _;
    use tokio_tungstenite::tungstenite::Message;
    use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

    let api = Api::start().await;
    api.namespace().await;
    let path = "/api/v1/namespaces/n/configmaps";
    let (_, list) = api.get(path).await;
    let from = list["metadata"]["resourceVersion"].as_str().unwrap();
    for name in ["a", "b", "c"] {
        api.post(path, json!({"metadata": {"name": name}})).await;
    }
    let url = api.listen().await;
    let address = url.strip_prefix("http://").unwrap();
    for protocol in [None, Some("binary.k8s.io"), Some("base64.binary.k8s.io")] {
        let watch = format!("ws://{address}{path}?watch=1&timeoutSeconds=1&resourceVersion={from}");
        let mut request = watch.into_client_request().unwrap();
        if let Some(protocol) = protocol {
            let headers = request.headers_mut();
            headers.insert("sec-websocket-protocol", protocol.parse().unwrap());
        }
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let (mut socket, _) = tokio_tungstenite::client_async(request, stream)
            .await
            .unwrap();
        let mut seen = Vec::new();
        while let Some(Ok(message)) = socket.next().await {
            let event = match message {
                Message::Text(text) if protocol.is_some() => {
                    let standard = base64::engine::general_purpose::STANDARD;
                    standard.decode(text.as_bytes()).unwrap()
                }
                Message::Close(_) => continue,
                message => message.into_data().to_vec(),
            };
            let event: Value = serde_json::from_slice(&event).unwrap();
            seen.push(event["object"]["metadata"]["name"].clone());
        }
        assert_eq!(seen, ["a", "b", "c"], "{protocol:?}");
    }
}

#[tokio::test]
async fn a_watch_hears_how_far_it_has_got_before_its_time_is_over() {
    let api = Api::start().await;
    api.namespace().await;
    let path = "/api/v1/namespaces/n/configmaps";
    let (_, list) = api.get(path).await;
    let from = list["metadata"]["resourceVersion"].as_str().unwrap();
    // Something happens that the watch is not about.
    let secret = json!({"metadata": {"name": "s"}});
    let (_, secret) = api.post("/api/v1/namespaces/n/secrets", secret).await;
    let watch = format!("{path}?watch=1&timeoutSeconds=3&resourceVersion={from}");
    let with = format!("{watch}&allowWatchBookmarks=true");
    let (without, with) = tokio::join!(watched(&api, &watch), watched(&api, &with));
    assert!(without.is_empty(), "{without:?}");
    let [bookmark] = &with[..] else {
        panic!("{with:?}")
    };
    assert_eq!(bookmark["type"], "BOOKMARK");
    let version = |object: &Value| {
        let version = object["metadata"]["resourceVersion"].as_str().unwrap();
        version.parse::<i64>().unwrap()
    };
    assert!(version(&bookmark["object"]) >= version(&secret));
}

#[tokio::test]
async fn services_get_addresses_and_ports_of_their_own() {
    let api = Api::start().await;
    api.namespace().await;
    let service = |name: &str| json!({"metadata": {"name": name}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}});
    let creations = (0..20).map(|i| {
        let service = service(&format!("s{i}"));
        api.call(Method::POST, "/api/v1/namespaces/n/services", service)
    });
    let created = futures::future::join_all(creations).await;
    let mut addresses: Vec<String> = created
        .iter()
        .map(|(_, s)| s["spec"]["clusterIP"].to_string())
        .collect();
    let mut ports: Vec<i64> = created
        .iter()
        .map(|(_, s)| s["spec"]["ports"][0]["nodePort"].as_i64().unwrap())
        .collect();
    addresses.sort();
    addresses.dedup();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!((addresses.len(), ports.len()), (20, 20));
    let mut taken = service("x");
    taken["spec"]["clusterIP"] = "10.0.0.1".into();
    let (status, error) = api.post("/api/v1/namespaces/n/services", taken).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .contains("already allocated")
    );
}

#[tokio::test]
async fn users_do_what_roles_allow_and_nodes_read_what_their_pods_use() {
    let api = Api::start().await;
    api.namespace().await;
    let nobody = User::new("nobody", &[]);
    let get = |user: User, path: &'static str| {
        let api = &api;
        async move {
            api.call_as(&user, Method::GET, path, "", Value::Null)
                .await
                .0
        }
    };
    assert_eq!(
        get(nobody.clone(), "/api/v1/namespaces/n/pods").await,
        StatusCode::FORBIDDEN
    );
    assert_eq!(
        get(User::anonymous(), "/api/v1/nodes").await,
        StatusCode::FORBIDDEN
    );
    assert_eq!(get(User::anonymous(), "/healthz").await, StatusCode::OK);
    let binding = json!({"metadata": {"name": "b"}, "subjects": [{"kind": "User", "name": "nobody"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:aggregate-to-view"}});
    api.post(
        "/apis/rbac.authorization.k8s.io/v1/namespaces/n/rolebindings",
        binding,
    )
    .await;
    assert_eq!(
        get(nobody.clone(), "/api/v1/namespaces/n/pods").await,
        StatusCode::OK
    );
    assert_eq!(
        get(nobody, "/api/v1/namespaces/default/pods").await,
        StatusCode::FORBIDDEN
    );

    for name in ["used", "other"] {
        api.post(
            "/api/v1/namespaces/n/secrets",
            json!({"metadata": {"name": name}}),
        )
        .await;
    }
    let mut bound = pod("p");
    bound["spec"]["nodeName"] = "node1".into();
    bound["spec"]["volumes"] = json!([{"name": "v", "secret": {"secretName": "used"}}]);
    api.post("/api/v1/namespaces/n/pods", bound).await;
    let node = |name: &str| User::new(format!("system:node:{name}"), &["system:nodes"]);
    assert_eq!(
        get(node("node1"), "/api/v1/namespaces/n/secrets/used").await,
        StatusCode::OK
    );
    assert_eq!(
        get(node("node1"), "/api/v1/namespaces/n/secrets/other").await,
        StatusCode::FORBIDDEN
    );
    assert_eq!(
        get(node("node2"), "/api/v1/namespaces/n/secrets/used").await,
        StatusCode::FORBIDDEN
    );
}

#[tokio::test]
async fn tokens_are_bound_and_reviewed() {
    let api = Api::start().await;
    api.namespace().await;
    let request = json!({"spec": {"expirationSeconds": 600}});
    let path = "/api/v1/namespaces/n/serviceaccounts/default/token";
    let (status, answer) = api.post(path, request).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    let token = answer["status"]["token"].clone();
    let review = json!({"spec": {"token": token}});
    let (_, reviewed) = api
        .post(
            "/apis/authentication.k8s.io/v1/tokenreviews",
            review.clone(),
        )
        .await;
    assert_eq!(
        reviewed["status"]["user"]["username"],
        "system:serviceaccount:n:default"
    );
    // The token dies with its account.
    api.call(
        Method::DELETE,
        "/api/v1/namespaces/n/serviceaccounts/default",
        Value::Null,
    )
    .await;
    let (_, reviewed) = api
        .post("/apis/authentication.k8s.io/v1/tokenreviews", review)
        .await;
    assert!(reviewed["status"]["authenticated"].is_null());
}

#[tokio::test]
async fn quotas_are_charged_before_anything_is_stored() {
    let api = Api::start().await;
    api.namespace().await;
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"count/configmaps": "2"}}});
    api.post("/api/v1/namespaces/n/resourcequotas", quota).await;
    // As the controller says once it has counted.
    let counted =
        json!({"status": {"hard": {"count/configmaps": "2"}, "used": {"count/configmaps": "0"}}});
    let path = "/api/v1/namespaces/n/resourcequotas/q/status";
    let (status, answer) = api.patch(path, "merge-patch", counted).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    let creations = (0..6).map(|i| {
        let object = json!({"metadata": {"name": format!("c{i}")}});
        api.call(Method::POST, "/api/v1/namespaces/n/configmaps", object)
    });
    let created = futures::future::join_all(creations).await;
    let count = |status: StatusCode| created.iter().filter(|(s, _)| *s == status).count();
    assert_eq!(
        (count(StatusCode::CREATED), count(StatusCode::FORBIDDEN)),
        (2, 4)
    );
}

#[tokio::test]
async fn subresources_change_their_part_only() {
    let api = Api::start().await;
    api.namespace().await;
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "d"}},
        "template": {"metadata": {"labels": {"app": "d"}}, "spec": pod("x")["spec"]}}});
    let base = "/apis/apps/v1/namespaces/n/deployments";
    let (status, created) = api.post(base, deployment).await;
    assert_eq!(status, StatusCode::CREATED, "{created}");
    assert_eq!(
        created["spec"]["strategy"]["rollingUpdate"]["maxSurge"],
        "25%"
    );
    let (_, scaled) = api
        .patch(
            &format!("{base}/d/scale"),
            "merge-patch",
            json!({"spec": {"replicas": 5}}),
        )
        .await;
    assert_eq!(scaled["spec"]["replicas"], 5);
    let (_, object) = api.get(&format!("{base}/d")).await;
    assert_eq!(
        (
            &object["spec"]["replicas"],
            &object["metadata"]["generation"]
        ),
        (&5.into(), &2.into())
    );
    let status = json!({"status": {"replicas": 3}, "spec": {"replicas": 9}});
    let (_, updated) = api
        .patch(&format!("{base}/d/status"), "merge-patch", status)
        .await;
    assert_eq!(
        (&updated["status"]["replicas"], &updated["spec"]["replicas"]),
        (&3.into(), &5.into())
    );
    assert_eq!(updated["metadata"]["generation"], 2);

    api.post("/api/v1/namespaces/n/pods", pod("p")).await;
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "node1"}});
    let (status, _) = api
        .post("/api/v1/namespaces/n/pods/p/binding", binding.clone())
        .await;
    assert_eq!(status, StatusCode::CREATED);
    let (status, _) = api
        .post("/api/v1/namespaces/n/pods/p/binding", binding)
        .await;
    assert_eq!(status, StatusCode::CONFLICT);
    let (_, terminating) = api
        .call(Method::DELETE, "/api/v1/namespaces/n/pods/p", Value::Null)
        .await;
    assert_eq!(terminating["metadata"]["deletionGracePeriodSeconds"], 30);
}

#[tokio::test]
async fn tables_and_discovery_serve_kubectl() {
    let api = Api::start().await;
    api.namespace().await;
    api.post("/api/v1/namespaces/n/pods", pod("a")).await;
    let mut request = Request::builder()
        .uri("/api/v1/namespaces/n/pods")
        .header(
            "accept",
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
        )
        .body(Full::new(bytes::Bytes::new()))
        .unwrap();
    request.extensions_mut().insert(api.user.clone());
    let body = api
        .server
        .handle(request)
        .await
        .into_body()
        .collect()
        .await
        .unwrap()
        .to_bytes();
    let table: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        table["rows"][0]["cells"].as_array().unwrap()[..3],
        [json!("a"), json!("0/1"), json!("Pending")]
    );
    let (_, groups) = api.get("/apis").await;
    assert!(
        groups["groups"]
            .as_array()
            .unwrap()
            .iter()
            .any(|g| g["name"] == "apps")
    );
    let (_, openapi) = api.get("/openapi/v3/apis/apps/v1").await;
    assert!(openapi["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"].is_object());
    let (status, _) = api.get("/apis/nothing/v1/here").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

/// A server that answers every request with some status and body, once for each connection.
async fn answering(status: &'static str, body: &'static str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/healthz", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await.unwrap();
            let answer = format!(
                "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    url
}

#[tokio::test]
async fn component_statuses_are_asked_for() {
    let gone = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let components = [
        ("controller-manager", answering("200 OK", "ok").await),
        ("scheduler", format!("http://{gone}/healthz")),
        ("sick", answering("500 Oh", "why").await),
    ];
    let api = Api::configured(|config, _| {
        let component = |(name, url): (&str, String)| fluyt_apiserver::Component {
            name: name.to_owned(),
            whereabouts: fluyt_apiserver::Whereabouts::Url(url),
        };
        config.components = components.map(component).into();
    })
    .await;
    let path = "/api/v1/componentstatuses";
    let (status, list) = api.get(path).await;
    let refused =
        format!("Get \"http://{gone}/healthz\": dial tcp {gone}: connect: connection refused");
    let item = |name: &str, status: &str, message: &str| {
        json!({"kind": "ComponentStatus", "apiVersion": "v1", "metadata": {"name": name},
            "conditions": [{"type": "Healthy", "status": status, "message": message}]})
    };
    let expected = json!({"kind": "ComponentStatusList", "apiVersion": "v1", "metadata": {}, "items": [
        item("controller-manager", "True", "ok"), item("scheduler", "False", &refused),
        item("sick", "False", "HTTP probe failed with statuscode: 500"), item("etcd-0", "True", "ok"),
    ]});
    assert_eq!((status, list), (StatusCode::OK, expected));
    let (_, one) = api.get(&format!("{path}/etcd-0")).await;
    assert_eq!(one, item("etcd-0", "True", "ok"));
    let selected = format!("{path}?fieldSelector=metadata.name%3Dscheduler");
    let (_, some) = api.get(&selected).await;
    assert_eq!(some["items"], json!([item("scheduler", "False", &refused)]));
    let (_, none) = api.get(&format!("{path}?labelSelector=a%3Db")).await;
    assert_eq!(none["items"], json!([]));
    for (path, code, message) in [
        (
            format!("{path}/nope"),
            StatusCode::NOT_FOUND,
            "componentstatus \"nope\" not found",
        ),
        (
            format!("{path}?watch=1"),
            StatusCode::METHOD_NOT_ALLOWED,
            "watch is not supported on resources of kind \"componentstatuses\"",
        ),
        (
            path.replace("/v1/", "/v1/watch/"),
            StatusCode::NOT_FOUND,
            "the server could not find the requested resource",
        ),
    ] {
        let (status, answer) = api.get(&path).await;
        assert_eq!((status, answer["message"].as_str()), (code, Some(message)));
    }
    let (status, _) = api
        .call(Method::DELETE, &format!("{path}/etcd-0"), Value::Null)
        .await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
    let mut request = Request::get(path)
        .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
        .body(Full::new(bytes::Bytes::new()))
        .unwrap();
    request.extensions_mut().insert(api.user.clone());
    let (_, headers, table) = api.send(request).await;
    assert_eq!(
        headers["warning"],
        "299 - \"v1 ComponentStatus is deprecated in v1.19+\""
    );
    let columns = table["columnDefinitions"].as_array().unwrap().iter();
    let columns: Vec<&str> = columns.map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(columns, ["Name", "Status", "Message", "Error"]);
    let cells = |i: usize| &table["rows"][i]["cells"];
    assert_eq!(
        cells(0),
        &json!(["controller-manager", "Healthy", "ok", ""])
    );
    assert_eq!(cells(1), &json!(["scheduler", "Unhealthy", refused, ""]));
    assert_eq!(table["metadata"], json!({}));
}
