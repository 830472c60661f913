//! The addresses and ports of services: which they get, and that nobody else gets them.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::common::Api;
use crate::common::service::eventually;
use fluyt_apiserver::{Config, ServiceNetwork};
use fluyt_etcd::embedded::Embedded;
use fluyt_etcd::{DynStore, KeyValue, Keys, Op, Put, Range, Txn};
use futures::future::join_all;
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};

const SERVICES: &str = "/api/v1/namespaces/n/services";
const ADDRESSES: &str = "/apis/networking.k8s.io/v1/ipaddresses";
const CIDRS: &str = "/apis/networking.k8s.io/v1/servicecidrs";
const PORTS: &str = "/registry/ranges/servicenodeports";

fn network(ranges: &[&str], node_ports: (u16, u16)) -> impl FnOnce(&mut Config) {
    let cluster_ips = ranges.iter().map(|range| range.parse().unwrap()).collect();
    move |config| {
        config.service_network = ServiceNetwork {
            cluster_ips,
            node_ports,
        };
    }
}

async fn start(ranges: &[&str], node_ports: (u16, u16)) -> Api {
    let change = network(ranges, node_ports);
    let api = Api::configured(|config, _| change(config)).await;
    api.namespace().await;
    api
}

fn store() -> (DynStore, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Embedded::open(directory.path()).unwrap());
    (store, directory)
}

async fn start_on(store: &DynStore, ranges: &[&str], node_ports: (u16, u16)) -> Api {
    let change = network(ranges, node_ports);
    let api = Api::configured_on(store.clone(), |config, _| change(config)).await;
    api.namespace().await;
    api
}

fn service(name: &str, spec: Value) -> Value {
    let mut service = json!({"metadata": {"name": name}, "spec": {"selector": {"a": "b"}, "ports": [{"port": 80}]}});
    for (field, value) in spec.as_object().into_iter().flatten() {
        service["spec"][field] = value.clone();
    }
    service
}

async fn create(api: &Api, name: &str, spec: Value) -> Value {
    let (status, created) = api.post(SERVICES, service(name, spec)).await;
    assert_eq!(status, StatusCode::CREATED, "{created}");
    created
}

async fn delete(api: &Api, name: &str) {
    let path = format!("{SERVICES}/{name}");
    let (status, gone) = api.call(Method::DELETE, &path, Value::Null).await;
    assert_eq!(status, StatusCode::OK, "{gone}");
}

async fn find(api: &Api, key: &str) -> Option<KeyValue> {
    let range = Range::new(Keys::One(key.to_owned().into()));
    api.store.range(range).await.unwrap().kvs.pop()
}

/// The revision of a key's last change; 0 when it is not there.
async fn revision(api: &Api, key: &str) -> i64 {
    find(api, key).await.map_or(0, |kv| kv.mod_revision)
}

/// The revision of a service and of the object of its first address.
async fn revisions(api: &Api, service: &Value) -> (i64, i64) {
    let (name, address) = (&service["metadata"]["name"], address(service));
    let service = format!("/registry/services/specs/n/{}", name.as_str().unwrap());
    let address = format!("/registry/ipaddresses/{address}");
    (revision(api, &service).await, revision(api, &address).await)
}

fn address(service: &Value) -> &str {
    service["spec"]["clusterIP"].as_str().unwrap_or_default()
}

fn node_port(service: &Value) -> i64 {
    service["spec"]["ports"][0]["nodePort"].as_i64().unwrap()
}

async fn addresses(api: &Api) -> BTreeSet<String> {
    let list = api.get(ADDRESSES).await.1;
    let items = list["items"].as_array().unwrap().iter();
    items
        .map(|item| item["metadata"]["name"].as_str().unwrap().to_owned())
        .collect()
}

async fn refusal(api: &Api, service: Value) -> (u16, String) {
    let (status, error) = api.post(SERVICES, service).await;
    (
        status.as_u16(),
        error["message"].as_str().unwrap_or_default().to_owned(),
    )
}

#[tokio::test]
async fn what_a_service_has_is_written_with_it() {
    let api = start(&["10.0.0.0/16"], (30_000, 32_767)).await;
    let created = create(&api, "a", json!({"type": "NodePort"})).await;
    let (of_service, of_address) = revisions(&api, &created).await;
    assert!(of_service > 0 && of_service == of_address);
    assert_eq!(revision(&api, PORTS).await, of_service);
    let object = api
        .get(&format!("{ADDRESSES}/{}", address(&created)))
        .await
        .1;
    assert_eq!(
        object["metadata"]["labels"],
        json!({"ipaddress.kubernetes.io/ip-family": "IPv4", "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"})
    );
    let parent = json!({"resource": "services", "namespace": "n", "name": "a"});
    assert_eq!(object["spec"]["parentRef"], parent);
    assert_eq!(
        object["metadata"]["resourceVersion"],
        created["metadata"]["resourceVersion"]
    );

    delete(&api, "a").await;
    assert_eq!(revisions(&api, &created).await, (0, 0));
    let deleted = revision(&api, PORTS).await;
    assert!(deleted > of_service);
    let address = format!("/registry/ipaddresses/{}", address(&created));
    for key in ["/registry/services/specs/n/a", &address] {
        for (revision, is_there) in [(deleted - 1, true), (deleted, false)] {
            let range = Range {
                revision,
                ..Range::new(Keys::One(key.to_owned().into()))
            };
            let found = api.store.range(range).await.unwrap();
            assert_eq!(
                found.kvs.len(),
                usize::from(is_there),
                "{key} at {revision}"
            );
        }
    }
}

#[tokio::test]
async fn a_dry_run_takes_nothing() {
    let api = start(&["10.0.0.0/16"], (30_000, 32_767)).await;
    let before = (revision(&api, PORTS).await, addresses(&api).await);
    let path = format!("{SERVICES}?dryRun=All");
    let balancer = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"});
    let (status, made) = api.post(&path, service("a", balancer)).await;
    assert_eq!(status, StatusCode::CREATED);
    assert!(!address(&made).is_empty() && node_port(&made) > 0);
    assert_eq!((revision(&api, PORTS).await, addresses(&api).await), before);
    let kept = create(&api, "b", json!({"type": "NodePort"})).await;
    let path = format!("{SERVICES}/b?dryRun=All");
    api.call(Method::DELETE, &path, Value::Null).await;
    let (of_service, of_address) = revisions(&api, &kept).await;
    assert!(of_service > 0 && of_service == of_address);
    assert_eq!(revision(&api, PORTS).await, of_service);
}

#[tokio::test]
async fn an_address_comes_and_goes_with_the_type() {
    let api = start(&["10.0.0.0/16"], (30_000, 32_767)).await;
    let created = create(&api, "a", json!({"type": "NodePort"})).await;
    let path = format!("{SERVICES}/a");
    let external = json!({"spec": {"type": "ExternalName", "externalName": "a.example"}});
    let (status, external) = api.patch(&path, "merge-patch", external).await;
    assert_eq!(status, StatusCode::OK, "{external}");
    assert!(address(&external).is_empty());
    let (of_service, of_address) = revisions(&api, &created).await;
    assert!(of_service > 0 && of_address == 0);
    assert_eq!(revision(&api, PORTS).await, of_service);

    let back = json!({"spec": {"type": "ClusterIP", "externalName": null}});
    let (status, back) = api.patch(&path, "merge-patch", back).await;
    assert_eq!(status, StatusCode::OK, "{back}");
    let (of_service, of_address) = revisions(&api, &back).await;
    assert!(of_service > 0 && of_service == of_address);

    // A finalizer holds the service, and with it the address.
    let held = json!({"metadata": {"finalizers": ["example.com/hold"]}});
    api.patch(&path, "merge-patch", held).await;
    delete(&api, "a").await;
    assert!(revisions(&api, &back).await.1 > 0);
    let freed = json!({"metadata": {"finalizers": null}});
    api.patch(&path, "merge-patch", freed).await;
    assert_eq!(revisions(&api, &back).await, (0, 0));
}

#[tokio::test]
async fn upstreams_answers_to_what_cannot_be_had() {
    let api = start(&["10.0.0.0/16"], (30_000, 30_001)).await;
    let named = |address: &str| service("x", json!({"clusterIP": address}));
    let (code, message) = refusal(&api, named("10.0.0.1")).await;
    assert_eq!(code, 422);
    assert_eq!(
        message,
        "Service \"x\" is invalid: spec.clusterIPs: Invalid value: [\"10.0.0.1\"]: failed to allocate IP 10.0.0.1: provided IP is already allocated"
    );
    for elsewhere in ["11.0.0.1", "10.0.0.0", "10.0.255.255"] {
        let (code, message) = refusal(&api, named(elsewhere)).await;
        assert_eq!(code, 422);
        assert!(
            message.ends_with("the provided network does not match the current range"),
            "{message}"
        );
    }
    // Whose address it is does not matter.
    let other = json!({"metadata": {"name": "10.0.0.50"}, "spec": {"parentRef": {"group": "example.com", "resource": "gateways", "name": "g"}}});
    assert_eq!(api.post(ADDRESSES, other).await.0, StatusCode::CREATED);
    let (_, message) = refusal(&api, named("10.0.0.50")).await;
    assert!(message.ends_with("provided IP is already allocated"));

    let taken = create(&api, "a", json!({"type": "NodePort"})).await;
    let port = |port: i64| {
        service(
            "x",
            json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]}),
        )
    };
    let (code, message) = refusal(&api, port(node_port(&taken))).await;
    assert_eq!(code, 422);
    assert!(message.ends_with("provided port is already allocated"));
    let (_, message) = refusal(&api, port(80)).await;
    assert!(message.ends_with(
        "provided port is not in the valid range. The range of valid ports is 30000-30001"
    ));
    create(&api, "b", json!({"type": "NodePort"})).await;
    let (code, message) = refusal(&api, service("x", json!({"type": "NodePort"}))).await;
    assert_eq!(code, 500);
    assert_eq!(
        message,
        "Internal error occurred: failed to allocate a nodePort: range is full"
    );
    // What was refused holds nothing.
    assert_eq!(addresses(&api).await.len(), 4);
    delete(&api, "a").await;
    create(&api, "c", json!({"type": "NodePort"})).await;
}

#[tokio::test]
async fn ranges_are_added_when_one_is_full_and_nothing_comes_of_those_that_go() {
    let api = start(&["10.9.0.0/29"], (30_000, 32_767)).await;
    for i in 0..5 {
        create(&api, &format!("s{i}"), json!({})).await;
    }
    let (code, message) = refusal(&api, service("x", json!({}))).await;
    assert_eq!(code, 500);
    assert_eq!(
        message,
        "Internal error occurred: failed to allocate a serviceIP for Service \"x\": range is full"
    );
    let second = json!({"metadata": {"name": "second", "finalizers": ["example.com/hold"]}, "spec": {"cidrs": ["10.8.0.0/29", "fd00::/120"]}});
    assert_eq!(api.post(CIDRS, second).await.0, StatusCode::CREATED);
    let created = create(&api, "x", json!({})).await;
    assert!(address(&created).starts_with("10.8.0."), "{created}");
    let another = match address(&created) {
        "10.8.0.6" => "10.8.0.5",
        _ => "10.8.0.6",
    };
    create(&api, "y", json!({"clusterIP": another})).await;

    let path = format!("{CIDRS}/second");
    api.call(Method::DELETE, &path, Value::Null).await;
    assert_eq!(refusal(&api, service("z", json!({}))).await.0, 500);
    // A place that becomes free is used again.
    delete(&api, "s0").await;
    assert!(address(&create(&api, "z", json!({})).await).starts_with("10.9.0."));

    let third = json!({"metadata": {"name": "third"}, "spec": {"cidrs": ["10.7.0.0/29"]}});
    api.post(CIDRS, third).await;
    // As the controller says what it has to say.
    let unready = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "third"},
        "status": {"conditions": [{"type": "Ready", "status": "False", "reason": "", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    let path = format!("{CIDRS}/third/status?fieldManager=service-cidr-controller&force=true");
    let format = "application/apply-patch+yaml";
    let applied = api.call_as(&api.user, Method::PATCH, &path, format, unready);
    let (status, applied) = applied.await;
    assert_eq!(status, StatusCode::OK, "{applied}");
    assert_eq!(refusal(&api, service("u", json!({}))).await.0, 500);
}

#[tokio::test]
async fn services_of_two_families() {
    let api = start(&["fd00:1::/112", "10.0.0.0/24"], (30_000, 32_767)).await;
    let single = create(&api, "a", json!({})).await;
    assert!(address(&single).starts_with("fd00:1::"));
    assert_eq!(single["spec"]["ipFamilies"], json!(["IPv6"]));
    let both = create(
        &api,
        "b",
        json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"]}),
    )
    .await;
    let ips = both["spec"]["clusterIPs"].as_array().unwrap();
    assert!(ips[0].as_str().unwrap().starts_with("10.0.0.") && ips.len() == 2);
    let has = |ip: &Value, all: &BTreeSet<String>| all.contains(ip.as_str().unwrap());
    let all = addresses(&api).await;
    assert!(has(&ips[0], &all) && has(&ips[1], &all));

    let path = format!("{SERVICES}/b");
    let one = json!({"spec": {"ipFamilyPolicy": "SingleStack"}});
    let (status, one) = api.patch(&path, "merge-patch", one).await;
    assert_eq!(status, StatusCode::OK, "{one}");
    assert_eq!(one["spec"]["clusterIPs"], json!([ips[0]]));
    let all = addresses(&api).await;
    assert!(has(&ips[0], &all) && !has(&ips[1], &all));

    let prefer = json!({"spec": {"ipFamilyPolicy": "PreferDualStack"}});
    let again = api.patch(&path, "merge-patch", prefer).await.1;
    let again = again["spec"]["clusterIPs"].as_array().unwrap();
    assert!(again.len() == 2 && again[0] == ips[0]);
    assert!(has(&again[1], &addresses(&api).await));
    let kubernetes = api
        .get("/api/v1/namespaces/default/services/kubernetes")
        .await
        .1;
    assert_eq!(address(&kubernetes), "fd00:1::1");
    let default = api.get(&format!("{CIDRS}/kubernetes")).await.1;
    assert_eq!(
        default["spec"]["cidrs"],
        json!(["fd00:1::/112", "10.0.0.0/24"])
    );
}

#[tokio::test]
async fn ports_of_one_service_are_shared_by_protocols() {
    let api = start(&["10.0.0.0/24"], (30_000, 30_009)).await;
    let dns = json!([{"name": "tcp", "port": 53}, {"name": "udp", "port": 53, "protocol": "UDP"}]);
    let created = create(&api, "dns", json!({"type": "NodePort", "ports": dns})).await;
    assert_eq!(
        created["spec"]["ports"][0]["nodePort"],
        created["spec"]["ports"][1]["nodePort"]
    );
    let balancer = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "allocateLoadBalancerNodePorts": false});
    let balancer = create(&api, "lb", balancer).await;
    assert!(balancer["spec"]["ports"][0]["nodePort"].is_null());
    let health = balancer["spec"]["healthCheckNodePort"].as_i64().unwrap();
    let taken = service(
        "x",
        json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": health}]}),
    );
    assert_eq!(refusal(&api, taken.clone()).await.0, 422);
    let path = format!("{SERVICES}/lb");
    let cluster = json!({"spec": {"externalTrafficPolicy": "Cluster"}});
    api.patch(&path, "merge-patch", cluster).await;
    assert_eq!(api.post(SERVICES, taken).await.0, StatusCode::CREATED);
    // Eight are left.
    for i in 0..8 {
        create(&api, &format!("s{i}"), json!({"type": "NodePort"})).await;
    }
    assert_eq!(
        refusal(&api, service("y", json!({"type": "NodePort"})))
            .await
            .0,
        500
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_in_the_rush() {
    let api = start(&["10.0.0.0/24"], (30_000, 30_239)).await;
    let before = addresses(&api).await;
    let rush = (0..200).map(|i| {
        let api = &api;
        async move {
            let name = format!("s{i}");
            create(api, &name, json!({"type": "NodePort"})).await;
            delete(api, &name).await;
        }
    });
    join_all(rush).await;
    assert_eq!(addresses(&api).await, before);
    let all = (0..240).map(|i| {
        let api = &api;
        async move { node_port(&create(api, &format!("t{i}"), json!({"type": "NodePort"})).await) }
    });
    let ports: BTreeSet<i64> = join_all(all).await.into_iter().collect();
    assert_eq!(ports.len(), 240);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_give_nothing_twice() {
    let (store, _directory) = store();
    let (ranges, ports) = (["10.0.0.0/25"], (30_000, 30_124));
    let one = start_on(&store, &ranges, ports).await;
    let two = start_on(&store, &ranges, ports).await;
    // All there is but for the address of the kubernetes service.
    let rush = (0..125).map(|i| {
        let api = if i % 2 == 0 { &one } else { &two };
        async move { create(api, &format!("s{i}"), json!({"type": "NodePort"})).await }
    });
    let created = join_all(rush).await;
    let given: BTreeSet<&str> = created.iter().map(address).collect();
    let ports: BTreeSet<i64> = created.iter().map(node_port).collect();
    assert_eq!((given.len(), ports.len()), (125, 125));
    for api in [&one, &two] {
        assert_eq!(refusal(api, service("x", json!({}))).await.0, 500);
        assert_eq!(addresses(api).await.len(), 126);
    }
    // What one gives back the other one gives away.
    delete(&one, "s0").await;
    let next = create(&two, "x", json!({"type": "NodePort"})).await;
    assert_eq!(address(&next), address(&created[0]));
    assert_eq!(node_port(&next), node_port(&created[0]));
}

/// What a server that did not know of allocations would have left of a store.
async fn without_allocations(store: &DynStore) -> (DynStore, tempfile::TempDir) {
    let (older, directory) = self::store();
    let all = store.range(Range::new(Keys::prefix("/registry/"))).await;
    let is_allocation = |kv: &KeyValue| {
        kv.key.starts_with(b"/registry/ipaddresses/") || kv.key.starts_with(b"/registry/ranges/")
    };
    for kv in all.unwrap().kvs.into_iter().filter(|kv| !is_allocation(kv)) {
        let txn = Txn {
            success: vec![Op::Put(Put::new(kv.key, kv.value))],
            ..Txn::default()
        };
        older.txn(txn).await.unwrap();
    }
    (older, directory)
}

#[tokio::test]
async fn a_store_without_allocations_gets_them_at_the_start() {
    let (store, _directory) = store();
    let (ranges, ports) = (["10.0.0.0/29"], (30_000, 30_003));
    let first = start_on(&store, &ranges, ports).await;
    let mut kept = Vec::new();
    for i in 0..3 {
        kept.push(create(&first, &format!("s{i}"), json!({"type": "NodePort"})).await);
    }
    let (older, _older_directory) = without_allocations(&store).await;
    let second = start_on(&older, &ranges, ports).await;
    let all = addresses(&second).await;
    assert!(kept.iter().all(|s| all.contains(address(s))));
    let last = create(&second, "last", json!({"type": "NodePort"})).await;
    assert!(
        kept.iter()
            .all(|s| node_port(s) != node_port(&last) && address(s) != address(&last))
    );
    let (code, message) = refusal(&second, service("x", json!({"type": "NodePort"}))).await;
    assert!(
        code == 500 && message.ends_with("range is full"),
        "{message}"
    );
    let events = second.get("/api/v1/namespaces/n/events").await.1;
    let events = events["items"].as_array().unwrap().iter();
    let repaired = events.filter(|event| event["reason"] == "ClusterIPNotAllocated");
    assert_eq!(repaired.count(), 3);
}

#[tokio::test]
async fn what_users_delete_of_a_service_comes_back() {
    let api = start(&["10.0.0.0/24"], (30_000, 32_767)).await;
    let created = create(&api, "a", json!({})).await;
    let path = format!("{ADDRESSES}/{}", address(&created));
    api.call(Method::DELETE, &path, Value::Null).await;
    assert!(eventually(async || api.get(&path).await.0 == StatusCode::OK).await);
    api.call(Method::DELETE, &format!("{CIDRS}/kubernetes"), Value::Null)
        .await;
    let path = format!("{CIDRS}/kubernetes");
    let is_ready = async || api.get(&path).await.1["status"]["conditions"][0]["status"] == "True";
    assert!(eventually(is_ready).await);
}

/// The values of the allocators' metrics, without those of time.
async fn allocator_metrics(api: &Api) -> Vec<String> {
    let mut request = Request::get("/metrics")
        .body(Full::new(bytes::Bytes::new()))
        .unwrap();
    request.extensions_mut().insert(api.user.clone());
    let (_, _, metrics) = api.send(request).await;
    let lines = metrics.as_str().unwrap().lines();
    let prefix = "kube_apiserver_";
    let values = lines.filter_map(|line| line.strip_prefix(prefix));
    let values = values.filter(|line| !line.contains("seconds_bucket") && !line.contains("_sum"));
    values.map(Into::into).collect()
}

#[tokio::test]
async fn what_is_given_out_is_counted() {
    let api = start(&["10.7.0.0/29"], (30_000, 30_003)).await;
    let service = |name: &str, spec: Value| {
        let mut service = json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}});
        for (field, value) in spec.as_object().unwrap() {
            service["spec"][field] = value.clone();
        }
        service
    };
    for (name, spec, code) in [
        ("b", json!({"clusterIP": "10.7.0.6"}), 201),
        ("a", json!({"type": "NodePort"}), 201),
        ("c", json!({"clusterIP": "10.7.0.6"}), 422),
        (
            "d",
            json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 40_000}]}),
            422,
        ),
        ("e", json!({}), 201),
        ("f", json!({}), 201),
        ("g", json!({}), 201),
        ("h", json!({}), 500),
    ] {
        let (status, answer) = api.post(SERVICES, service(name, spec)).await;
        assert_eq!(status.as_u16(), code, "{name} {answer}");
    }
    // What is only tried is not counted.
    let tried = format!("{SERVICES}?dryRun=All");
    let (status, _) = api
        .post(&tried, service("t", json!({"type": "NodePort"})))
        .await;
    assert_eq!(status, StatusCode::CREATED);
    api.call(Method::DELETE, &format!("{SERVICES}/b"), Value::Null)
        .await;
    // `d` had an address before it was refused a port.
    assert_eq!(
        allocator_metrics(&api).await,
        [
            r#"clusterip_allocator_allocated_ips{cidr="10.7.0.0/29"} 5"#,
            r#"clusterip_allocator_available_ips{cidr="10.7.0.0/29"} 1"#,
            r#"clusterip_allocator_allocation_total{cidr="10.7.0.0/29",scope="dynamic"} 5"#,
            r#"clusterip_allocator_allocation_total{cidr="10.7.0.0/29",scope="static"} 2"#,
            r#"clusterip_allocator_allocation_errors_total{cidr="10.7.0.0/29",scope="dynamic"} 1"#,
            r#"clusterip_allocator_allocation_errors_total{cidr="10.7.0.0/29",scope="static"} 1"#,
            r#"clusterip_allocator_allocation_duration_seconds_count{cidr="10.7.0.0/29"} 6"#,
            "nodeport_allocator_allocated_ports 1",
            "nodeport_allocator_available_ports 3",
            r#"nodeport_allocator_allocation_total{scope="dynamic"} 1"#,
            r#"nodeport_allocator_allocation_errors_total{scope="static"} 1"#,
        ]
    );
}
