//! What is in the store: upstream's layout and encoding, older forms, and encryption.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::common::Api;
use fluyt_api::protobuf;
use fluyt_apiserver::{Encryption, Features, MediaType, Storage};
use fluyt_etcd::embedded::Embedded;
use fluyt_etcd::{
    DynStore, Keys, Op, Put, Range, RangeResult, Store, Txn, TxnResult, Watch, WatchStream,
};
use http::{Method, StatusCode};
use serde_json::{Value, json};

async fn stored(api: &Api, key: &str) -> Vec<u8> {
    let range = Range::new(Keys::One(key.to_owned().into()));
    let found = api.store.range(range).await.unwrap();
    found.kvs[0].value.to_vec()
}

async fn put(store: &DynStore, key: &str, value: Vec<u8>) {
    let txn = Txn {
        compares: Vec::new(),
        success: vec![Op::Put(Put::new(key.to_owned(), value))],
        failure: Vec::new(),
    };
    store.txn(txn).await.unwrap();
}

fn store() -> (DynStore, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Embedded::open(directory.path()).unwrap());
    (store, directory)
}

fn config_map(name: &str) -> Value {
    json!({"metadata": {"name": name}, "data": {"k": "v"}})
}

#[tokio::test]
async fn built_in_kinds_are_protobuf_and_custom_ones_json() {
    let api = Api::start().await;
    api.namespace().await;
    let maps = "/api/v1/namespaces/n/configmaps";
    api.post(maps, config_map("a")).await;
    let value = stored(&api, "/registry/configmaps/n/a").await;
    let envelope = protobuf::open(&value).unwrap();
    assert_eq!((envelope.api_version, envelope.kind), ("v1", "ConfigMap"));
    let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}});
    api.post("/api/v1/namespaces/n/services", service).await;
    let value = stored(&api, "/registry/services/specs/n/s").await;
    assert_eq!(protobuf::open(&value).unwrap().kind, "Service");
    // The version is the store's alone.
    let got = api.get(&format!("{maps}/a")).await.1;
    assert!(got["metadata"]["resourceVersion"].is_string());
}

#[tokio::test]
async fn what_older_servers_wrote_is_served_and_rewritten_when_it_is_written() {
    let (store, _directory) = store();
    let old = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "a", "namespace": "n", "uid": "u", "creationTimestamp": "2026-01-02T03:04:05Z"}, "data": {"k": "v"}});
    let key = "/registry/configmaps/n/a";
    put(&store, key, old.to_string().into_bytes()).await;
    let api = Api::start_on(store, Storage::default(), Features::default()).await;
    let path = "/api/v1/namespaces/n/configmaps/a";
    let (status, got) = api.get(path).await;
    assert_eq!((status, &got["data"]["k"]), (StatusCode::OK, &json!("v")));
    // Nothing changes, but its form does.
    let (status, put) = api.call(Method::PUT, path, got.clone()).await;
    assert_eq!(status, StatusCode::OK, "{put}");
    assert!(stored(&api, key).await.starts_with(protobuf::MAGIC));
    assert_ne!(
        put["metadata"]["resourceVersion"],
        got["metadata"]["resourceVersion"]
    );
    // Now nothing is written any more.
    let again = api.call(Method::PUT, path, put.clone()).await.1;
    assert_eq!(again, put);
}

#[tokio::test]
async fn json_is_written_when_it_is_asked_for() {
    let (store, _directory) = store();
    let storage = Storage {
        media_type: MediaType::Json,
        ..Storage::default()
    };
    let api = Api::start_on(store, storage, Features::default()).await;
    api.namespace().await;
    api.post("/api/v1/namespaces/n/configmaps", config_map("a"))
        .await;
    let value = stored(&api, "/registry/configmaps/n/a").await;
    let value: Value = serde_json::from_slice(&value).unwrap();
    assert_eq!(value["data"]["k"], "v");
}

/// A configuration that encrypts secrets with the given providers.
fn configuration(providers: &str) -> String {
    format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources: [{{resources: [secrets], providers: {providers}}}]\n"
    )
}

async fn encrypted(store: &DynStore, providers: &str) -> Api {
    let loaded = Encryption::load(&configuration(providers), "/registry/").await;
    let storage = Storage {
        encryption: Arc::new(loaded.unwrap()),
        ..Storage::default()
    };
    Api::start_on(store.clone(), storage, Features::default()).await
}

const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
const SECRETS: &str = "/api/v1/namespaces/n/secrets";
const STORED: &str = "/registry/secrets/n/a";

fn secret() -> Value {
    json!({"metadata": {"name": "a"}, "stringData": {"password": "hidden-word"}})
}

/// Whether the secret is in the store for everybody to see.
async fn is_plain(api: &Api) -> bool {
    let value = stored(api, STORED).await;
    value.windows(11).any(|w| w == b"hidden-word")
}

#[tokio::test]
async fn the_bitmap_of_node_ports_is_encrypted_with_everything() {
    let (store, _directory) = store();
    let everything = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources: [{{resources: ['*.*'], providers: [{{aesgcm: {{keys: [{{name: a, secret: {KEY}}}]}}}}]}}]\n"
    );
    let mut ports = Vec::new();
    for name in ["a", "b"] {
        let loaded = Encryption::load(&everything, "/registry/").await.unwrap();
        let storage = Storage {
            encryption: Arc::new(loaded),
            ..Storage::default()
        };
        let api = Api::start_on(store.clone(), storage, Features::default()).await;
        api.namespace().await;
        let value = stored(&api, "/registry/ranges/servicenodeports").await;
        assert!(value.starts_with(b"k8s:enc:aesgcm:v1:a:"));
        let service = json!({"metadata": {"name": name}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}});
        let (status, made) = api.post("/api/v1/namespaces/n/services", service).await;
        assert_eq!(status, StatusCode::CREATED, "{made}");
        ports.push(made["spec"]["ports"][0]["nodePort"].clone());
    }
    assert_ne!(ports[0], ports[1]);
}

#[tokio::test]
async fn secrets_are_encrypted_and_keys_rotate() {
    let (store, _directory) = store();
    let plain = Api::start_on(store.clone(), Storage::default(), Features::default()).await;
    plain.namespace().await;
    plain.post(SECRETS, secret()).await;
    assert!(is_plain(&plain).await);
    drop(plain);

    // Plain data still reads, and is encrypted by the next write.
    let one = format!("{{secretbox: {{keys: [{{name: one, secret: {KEY}}}]}}}}");
    let api = encrypted(&store, &format!("[{one}, {{identity: {{}}}}]")).await;
    let path = format!("{SECRETS}/a");
    let got = api.get(&path).await.1;
    assert_eq!(got["data"]["password"], "aGlkZGVuLXdvcmQ=");
    api.call(Method::PUT, &path, got).await;
    assert!(!is_plain(&api).await);
    assert!(
        stored(&api, STORED)
            .await
            .starts_with(b"k8s:enc:secretbox:v1:one:")
    );
    drop(api);

    let two = format!("{{aescbc: {{keys: [{{name: two, secret: {KEY}}}]}}}}");
    let api = encrypted(&store, &format!("[{two}, {one}]")).await;
    let got = api.get(&path).await.1;
    api.call(Method::PUT, &path, got).await;
    let value = stored(&api, STORED).await;
    assert!(value.starts_with(b"k8s:enc:aescbc:v1:two:"));
    // A graceful deletion, a watch and a list of the past read the same.
    let list = api.get(SECRETS).await.1;
    assert_eq!(list["items"][0]["data"]["password"], "aGlkZGVuLXdvcmQ=");
    let version = list["metadata"]["resourceVersion"].as_str().unwrap();
    api.call(Method::DELETE, &path, Value::Null).await;
    let past = format!("{SECRETS}?resourceVersion={version}&resourceVersionMatch=Exact");
    let past = api.get(&past).await.1;
    assert_eq!(past["items"][0]["data"]["password"], "aGlkZGVuLXdvcmQ=");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_configuration_is_reloaded() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("encryption.yaml");
    std::fs::write(&path, configuration("[{identity: {}}]")).unwrap();
    let shutdown = tokio_util::sync::CancellationToken::new();
    let loaded = Encryption::load_file(&path, "/registry/", true, shutdown).await;
    let (store, _directory) = store();
    let storage = Storage {
        encryption: loaded.unwrap(),
        ..Storage::default()
    };
    let api = Api::start_on(store, storage, Features::default()).await;
    api.namespace().await;
    api.post(SECRETS, secret()).await;
    assert!(is_plain(&api).await);
    // A mistake changes nothing; the next one counts.
    std::fs::write(&path, "kind: Nonsense").unwrap();
    let replacement = directory.path().join("next");
    let next = configuration(&format!(
        "[{{aesgcm: {{keys: [{{name: a, secret: {KEY}}}]}}}}, {{identity: {{}}}}]"
    ));
    std::fs::write(&replacement, next).unwrap();
    std::fs::rename(&replacement, &path).unwrap();
    let path = format!("{SECRETS}/a");
    let rewritten = async {
        while is_plain(&api).await {
            let got = api.get(&path).await.1;
            api.call(Method::PUT, &path, got).await;
            tokio::task::yield_now().await;
        }
    };
    let limit = std::time::Duration::from_secs(20);
    tokio::time::timeout(limit, rewritten).await.unwrap();
    assert!(
        stored(&api, STORED)
            .await
            .starts_with(b"k8s:enc:aesgcm:v1:a:")
    );
}

/// A plugin that hides keys by turning their bits over.
mod plugin {
    use std::collections::HashMap;

    use prost::Message;
    use tonic::Status;

    use crate::common::grpc::{Calls, answer};

    #[derive(Clone, PartialEq, Message)]
    pub struct Nothing {}

    #[derive(Clone, PartialEq, Message)]
    pub struct Answer {
        #[prost(string, tag = "1")]
        pub version: String,
        #[prost(string, tag = "2")]
        pub healthz: String,
        #[prost(string, tag = "3")]
        pub key_id: String,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct Bytes {
        #[prost(bytes = "vec", tag = "1")]
        pub bytes: Vec<u8>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub struct Encrypted {
        #[prost(bytes = "vec", tag = "1")]
        pub ciphertext: Vec<u8>,
        #[prost(string, tag = "2")]
        pub key_id: String,
        #[prost(map = "string, bytes", tag = "3")]
        pub annotations: HashMap<String, Vec<u8>>,
    }

    /// Whether it is well.
    #[derive(Clone)]
    pub struct Plugin(pub std::sync::Arc<super::AtomicBool>);

    impl Calls for Plugin {
        const NAME: &'static str = "v2.KeyManagementService";

        fn call(&self, method: &str, message: &[u8]) -> Result<Vec<u8>, Status> {
            let turned = |bytes: Vec<u8>| bytes.into_iter().map(|byte| !byte).collect();
            match method {
                "Status" => answer(message, |Nothing {}| {
                    let well = self.0.load(super::Ordering::Relaxed);
                    Ok(Answer {
                        version: "v2".into(),
                        healthz: if well { "ok" } else { "ill" }.into(),
                        key_id: "key-1".into(),
                    })
                }),
                "Encrypt" => answer(message, |Bytes { bytes }| {
                    Ok(Encrypted {
                        ciphertext: turned(bytes),
                        key_id: "key-1".into(),
                        annotations: [("a.example.com".to_owned(), vec![1])].into(),
                    })
                }),
                _ => answer(message, |Bytes { bytes }| {
                    Ok(Bytes {
                        bytes: turned(bytes),
                    })
                }),
            }
        }
    }
}

fn serve_plugin(socket: &Path, well: Arc<AtomicBool>) {
    crate::common::grpc::serve_on_socket(plugin::Plugin(well), socket);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_keeps_the_key() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("kms.sock");
    let well = Arc::new(AtomicBool::new(true));
    serve_plugin(&socket, well.clone());
    let provider = format!(
        "[{{kms: {{apiVersion: v2, name: p, endpoint: 'unix://{}', timeout: 2s}}}}]",
        socket.display()
    );
    let (store, _directory) = store();
    let api = encrypted(&store, &provider).await;
    api.namespace().await;
    let (status, made) = api.post(SECRETS, secret()).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    assert!(stored(&api, STORED).await.starts_with(b"k8s:enc:kms:v2:p:"));
    assert!(!is_plain(&api).await);
    let (status, health) = api.get("/healthz/kms-providers").await;
    assert_eq!(status, StatusCode::OK, "{health}");
    drop(api);

    // Another server has the plugin decrypt the key that the first one made.
    let api = encrypted(&store, &provider).await;
    let got = api.get(&format!("{SECRETS}/a")).await.1;
    assert_eq!(got["data"]["password"], "aGlkZGVuLXdvcmQ=");
    drop(api);

    // A plugin that is ill when the server starts lets nothing be written.
    well.store(false, Ordering::Relaxed);
    let missing = provider.replace("kms.sock", "nobody.sock");
    let (other, _directory) = self::store();
    let api = encrypted(&other, &missing).await;
    api.namespace().await;
    let (status, failed) = api.post(SECRETS, secret()).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR, "{failed}");
    let (status, _) = api.get("/healthz/kms-providers").await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
}

/// A store so large that loading it takes a while.
struct Large(DynStore);

/// Longer than a read waits for the caches.
const LOADING: std::time::Duration = std::time::Duration::from_secs(4);

#[async_trait::async_trait]
impl Store for Large {
    async fn range(&self, range: Range) -> Result<RangeResult, fluyt_etcd::Error> {
        if range.keys == Keys::prefix("/registry/") {
            tokio::time::sleep(LOADING).await;
        }
        self.0.range(range).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResult, fluyt_etcd::Error> {
        self.0.txn(txn).await
    }

    async fn watch(&self, watch: Watch) -> Result<WatchStream, fluyt_etcd::Error> {
        self.0.watch(watch).await
    }

    async fn compact(&self, revision: i64) -> Result<(), fluyt_etcd::Error> {
        self.0.compact(revision).await
    }

    async fn lease_grant(&self, id: i64, ttl: i64) -> Result<(i64, i64), fluyt_etcd::Error> {
        self.0.lease_grant(id, ttl).await
    }

    async fn lease_revoke(&self, id: i64) -> Result<(), fluyt_etcd::Error> {
        self.0.lease_revoke(id).await
    }

    async fn lease_keep_alive(&self, id: i64) -> Result<i64, fluyt_etcd::Error> {
        self.0.lease_keep_alive(id).await
    }

    async fn revision(&self) -> Result<i64, fluyt_etcd::Error> {
        self.0.revision().await
    }

    async fn size(&self) -> Result<i64, fluyt_etcd::Error> {
        self.0.size().await
    }
}

#[tokio::test]
async fn a_server_starts_however_long_its_store_takes_to_load() {
    let (store, _directory) = store();
    let large: DynStore = Arc::new(Large(store));
    let begin = std::time::Instant::now();
    let api = Api::start_on(large, Storage::default(), Features::default()).await;
    // Else this has tested nothing.
    assert!(begin.elapsed() >= LOADING);
    assert_eq!(
        api.get("/api/v1/namespaces/default").await.0,
        StatusCode::OK
    );
}

/// Every part of a list after the first, as names, with what each part says is left.
async fn rest(api: &Api, path: &str, first: &Value) -> Vec<(Vec<String>, Value)> {
    let mut parts = Vec::new();
    let mut token = first["metadata"]["continue"].as_str().unwrap().to_owned();
    while !token.is_empty() {
        let (status, part) = api.get(&format!("{path}&continue={token}")).await;
        assert_eq!(status, StatusCode::OK, "{part}");
        let metadata = &part["metadata"];
        assert_eq!(
            metadata["resourceVersion"],
            first["metadata"]["resourceVersion"]
        );
        let items = part["items"].as_array().unwrap().iter();
        let names = items.map(|item| {
            // As of the list's revision.
            assert_eq!(item["data"]["k"], "v");
            item["metadata"]["name"].as_str().unwrap().to_owned()
        });
        parts.push((names.collect(), metadata["remainingItemCount"].clone()));
        token = metadata["continue"].as_str().unwrap_or_default().to_owned();
    }
    parts
}

#[tokio::test]
async fn a_list_goes_on_as_it_began_though_the_cache_has_forgotten() {
    let (store, _directory) = store();
    let start =
        async || Api::start_on(store.clone(), Storage::default(), Features::default()).await;
    let api = start().await;
    api.namespace().await;
    let maps = "/api/v1/namespaces/n/configmaps";
    for n in 10..35 {
        let mut map = config_map(&format!("m{n}"));
        map["metadata"]["labels"] = json!({"even": (n % 2 == 0).to_string()});
        api.post(maps, map).await;
    }
    let (all, even) = (
        format!("{maps}?limit=10"),
        format!("{maps}?limit=5&labelSelector=even=true"),
    );
    let everywhere = "/api/v1/configmaps?limit=20&fieldSelector=metadata.namespace=n";
    let (_, of_all) = api.get(&all).await;
    let (_, of_even) = api.get(&even).await;
    let (_, of_everywhere) = api.get(everywhere).await;
    assert_eq!(of_all["metadata"]["remainingItemCount"], 15);
    assert!(of_even["metadata"]["remainingItemCount"].is_null());
    api.call(Method::DELETE, &format!("{maps}/m22"), Value::Null)
        .await;
    api.post(maps, config_map("m22a")).await;
    api.patch(
        &format!("{maps}/m30"),
        "merge-patch",
        json!({"data": {"k": "changed"}}),
    )
    .await;
    let names = |range: std::ops::Range<usize>, step| -> Vec<String> {
        range.step_by(step).map(|n| format!("m{n}")).collect()
    };
    // The same server undoes what has happened since; another one, which has not seen it, reads the store's history.
    for server in [api, start().await] {
        let parts = rest(&server, &all, &of_all).await;
        assert_eq!(
            parts,
            [
                (names(20..30, 1), json!(5)),
                (names(30..35, 1), Value::Null)
            ]
        );
        let parts = rest(&server, &even, &of_even).await;
        assert_eq!(
            parts,
            [
                (names(20..30, 2), Value::Null),
                (names(30..35, 2), Value::Null)
            ]
        );
        let parts = rest(&server, everywhere, &of_everywhere).await;
        assert_eq!(parts, [(names(30..35, 1), Value::Null)]);
        let revision = of_all["metadata"]["resourceVersion"].as_str().unwrap();
        let exact = format!("{maps}?resourceVersion={revision}&resourceVersionMatch=Exact");
        let (_, list) = server.get(&exact).await;
        assert_eq!(list["items"].as_array().unwrap().len(), 25);
    }
}
