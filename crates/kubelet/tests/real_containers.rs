//! The life of a pod in real containers: the kubelet and fluyt's container runtime in namespaces of their own, an API
//! server in memory.
//!
//! The test runs itself again inside the namespaces; the runtime's shims are this binary as well, which becomes one
//! before `main` when it is called `… shim <config>`.
#![allow(unsafe_code, clippy::unwrap_used)]

mod support;

use std::ffi::{CStr, OsString, c_char, c_int};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use fluyt_client::fake::FakeApi;
use fluyt_container_runtime::image::from_binary::BinaryLayer;
use fluyt_container_runtime::image::{BinaryImage, ImageStore, from_binary};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;
use support::{container, is_ready, phase, waiting_for};
use tokio_util::sync::CancellationToken;

const INSIDE: &str = "FLUYT_KUBELET_TEST";
const IMAGE: &str = "docker.io/library/busybox:test";

#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn(c_int, *const *const c_char, *const *const c_char) = before_main;

extern "C" fn before_main(count: c_int, args: *const *const c_char, _env: *const *const c_char) {
    let args: Vec<OsString> = (0..usize::try_from(count).unwrap_or(0))
        .map(|index| {
            // SAFETY: the loader passes `count` strings.
            let arg = unsafe { CStr::from_ptr(*args.add(index)) };
            OsString::from_vec(arg.to_bytes().to_vec())
        })
        .collect();
    if args.get(1).is_some_and(|arg| arg == "shim") {
        fluyt_container_runtime::shim_main(&args[2..]);
    }
}

#[test]
fn pods_in_real_containers() {
    if std::env::var_os(INSIDE).is_none() {
        let status = Command::new("unshare")
            .args(["--net", "--mount", "--propagation", "private"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "pods_in_real_containers", "--nocapture"])
            .env(INSIDE, "1")
            .status()
            .unwrap();
        assert!(status.success(), "see above");
        return;
    }
    let up = Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .status()
        .unwrap();
    assert!(up.success());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(Box::pin(inside()));
}

fn add_image(store: &ImageStore) {
    let applets = [
        "sh", "cat", "sleep", "echo", "id", "hostname", "httpd", "kill", "test",
    ];
    let links: Vec<String> = applets
        .iter()
        .map(|applet| format!("bin/{applet}"))
        .collect();
    let links: Vec<&str> = links.iter().map(String::as_str).collect();
    let layer = BinaryLayer {
        binary: Path::new("/usr/bin/busybox"),
        path: "bin/busybox",
        links: &links,
    };
    let image = BinaryImage {
        name: IMAGE.into(),
        cmd: vec!["sh".into()],
        ..BinaryImage::default()
    };
    from_binary(store, &layer, &[image]).unwrap();
}

struct Args<T>(T);

impl<T: clap::Args> Args<T> {
    fn parse(words: &[String]) -> T {
        #[derive(clap::Parser)]
        struct Line<T: clap::Args> {
            #[command(flatten)]
            args: T,
        }
        let line = std::iter::once("test").chain(words.iter().map(String::as_str));
        <Line<T> as clap::Parser>::parse_from(line).args
    }
}

async fn inside() {
    let dir = tempfile::Builder::new().prefix("flk").tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let cgroup = format!("flk-{}", std::process::id());
    add_image(&ImageStore::open(dir.path().join("images")).unwrap());
    let shutdown = CancellationToken::new();
    let words = |pairs: &[(&str, String)]| -> Vec<String> {
        pairs
            .iter()
            .map(|(flag, value)| format!("--{flag}={value}"))
            .collect()
    };
    let runtime = Args::parse(&words(&[
        ("root", path("node")),
        ("state", path("state")),
        ("image-store", path("images")),
        ("listen", path("cri.sock")),
    ]));
    let stop_runtime = shutdown.clone();
    tokio::spawn(Box::pin(async move {
        fluyt_container_runtime::run(runtime, stop_runtime)
            .await
            .unwrap()
    }));

    let api = FakeApi::new();
    let node: Node = serde_json::from_value(json!({
        "metadata": {"name": "node-0"}, "spec": {"podCIDR": "10.244.9.0/24"}}))
    .unwrap();
    api.insert(node);
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let serving = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_string()]).unwrap();
    std::fs::write(path("tls.crt"), serving.cert.pem()).unwrap();
    std::fs::write(path("tls.key"), serving.signing_key.serialize_pem()).unwrap();
    let client = ServerApi::new(port, serving.cert.der().clone());
    let settings: fluyt_kubelet::Args = Args::parse(&words(&[
        ("kubeconfig", path("kubeconfig")),
        ("cert-dir", path("pki")),
        ("root-dir", path("kubelet")),
        ("pod-logs-dir", path("logs")),
        (
            "container-runtime-endpoint",
            format!("unix://{}", path("cri.sock")),
        ),
        ("hostname-override", "node-0".into()),
        ("node-ip", "127.0.0.1".into()),
        ("port", port.to_string()),
        ("tls-cert-file", path("tls.crt")),
        ("tls-private-key-file", path("tls.key")),
        ("anonymous-auth", "true".into()),
        ("authorization-mode", "AlwaysAllow".into()),
        ("healthz-port", "0".into()),
        ("cgroup-root", cgroup.clone()),
        ("cluster-dns", "10.0.0.10".into()),
        ("eviction-hard", "memory.available<1Ki".into()),
    ]));
    let start = |token: &CancellationToken| {
        let settings = settings.settings().unwrap();
        tokio::spawn(Box::pin(fluyt_kubelet::start(
            settings,
            api.client(),
            token.clone(),
        )))
    };
    let mut stop = CancellationToken::new();
    let mut kubelet = start(&stop);
    api.until("the node is ready", |api| {
        let conditions = api
            .get::<Node>("", "node-0")
            .and_then(|node| node.status?.conditions);
        conditions
            .iter()
            .flatten()
            .any(|c| c.type_ == "Ready" && c.status == "True")
    })
    .await;

    let map: ConfigMap = serde_json::from_value(json!({
        "metadata": {"name": "settings", "namespace": "default"}, "data": {"greeting": "hello"}}))
    .unwrap();
    let map = api.insert(map);
    let secret: Secret = serde_json::from_value(json!({
        "metadata": {"name": "keys", "namespace": "default"}, "data": {"password": "aHVudGVyMg=="}}))
    .unwrap();
    api.insert(secret);
    let begun = Instant::now();
    let pod = run(
        &api,
        "web",
        json!({
            "terminationGracePeriodSeconds": 5,
            "hostAliases": [{"ip": "192.0.2.1", "hostnames": ["elsewhere"]}],
            "initContainers": [{"name": "setup", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
            "resources": {"limits": {"memory": "32Mi"}},
                "command": ["sh", "-c", "echo from-init > /work/file; echo said > /dev/termination-log"],
                "volumeMounts": [{"name": "work", "mountPath": "/work"}]}],
            "containers": [{"name": "app", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
                "command": ["sh", "-c"],
                "args": ["trap 'echo bye; exit 0' TERM; cat /work/file /etc/settings/greeting /run/keys/password /work-sub/x; echo; echo $(WHO) $(IP); hostname; cat /etc/hosts /etc/resolv.conf; id; httpd -p 8080 -h /etc/settings; while true; do sleep 0.05; done"],
                "securityContext": {"runAsUser": 1000, "runAsGroup": 1000, "allowPrivilegeEscalation": false,
                    "capabilities": {"drop": ["ALL"]}},
                "env": [{"name": "WHO", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                    {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
                "resources": {"requests": {"cpu": "100m"}, "limits": {"memory": "64Mi"}},
                "readinessProbe": {"httpGet": {"path": "/greeting", "port": 8080}, "periodSeconds": 1},
                "livenessProbe": {"exec": {"command": ["test", "-e", "/work/file"]}, "periodSeconds": 1, "failureThreshold": 1},
                "volumeMounts": [{"name": "work", "mountPath": "/work"},
                    {"name": "work", "mountPath": "/work-sub/x", "subPath": "file"},
                    {"name": "settings", "mountPath": "/etc/settings"}, {"name": "keys", "mountPath": "/run/keys"}]}],
            "securityContext": {"fsGroup": 2000},
            "volumes": [{"name": "work", "emptyDir": {}}, {"name": "settings", "configMap": {"name": "settings"}},
                {"name": "keys", "secret": {"secretName": "keys"}}]
        }),
    );
    let running = until(&api, "running", "web", |pod| phase(pod) == "Running").await;
    println!("bound to Running: {:?}", begun.elapsed());
    let ready = until(&api, "ready", "web", is_ready).await;
    let ip = ready.status.as_ref().unwrap().pod_ip.clone().unwrap();
    assert!(ip.starts_with("10.244.9."), "{ip}");
    let status = container(&running, "app").unwrap();
    assert!(
        status
            .container_id
            .as_ref()
            .unwrap()
            .starts_with("fluyt://"),
        "{status:?}"
    );
    let init = ready
        .status
        .as_ref()
        .unwrap()
        .init_container_statuses
        .as_ref()
        .unwrap()[0]
        .clone();
    let ended = init.state.unwrap().terminated.unwrap();
    assert_eq!(
        (ended.exit_code, ended.message.as_deref()),
        (0, Some("said\n"))
    );
    let log_file = dir.path().join("logs/default_web_uid-web/app/0.log");
    let log = std::fs::read_to_string(&log_file).unwrap();
    for expected in [
        "F from-init".to_string(),
        "hellohunter2from-init".into(),
        format!("F web {ip}"),
        format!("{ip}\tweb"),
        "192.0.2.1\telsewhere".into(),
        "nameserver 10.0.0.10".into(),
        "search default.svc.cluster.local svc.cluster.local cluster.local".into(),
        "uid=1000 gid=1000 groups=1000,2000".into(),
    ] {
        assert!(log.contains(&expected), "{expected:?} is not in\n{log}");
    }
    let limit = format!(
        "/sys/fs/cgroup/memory/{cgroup}/kubepods/burstable/poduid-web/memory.limit_in_bytes"
    );
    if Path::new("/sys/fs/cgroup/memory").exists() {
        assert_eq!(
            std::fs::read_to_string(limit).unwrap().trim(),
            (64 << 20).to_string()
        );
    }

    // The kubelet's API.
    let text = client
        .get("/containerLogs/default/web/app?tailLines=1&timestamps=true")
        .await;
    assert!(
        text.ends_with("uid=1000 gid=1000 groups=1000,2000\n") && text.starts_with("20"),
        "{text}"
    );
    let text = client.get("/containerLogs/default/web/setup").await;
    assert_eq!(text, "");
    let text = client.get("/containerLogs/default/web/none").await;
    assert_eq!(text, "container none is not valid for pod web");
    let metrics = client.get("/metrics/resource").await;
    let usage =
        "container_memory_working_set_bytes{container=\"app\",namespace=\"default\",pod=\"web\"}";
    for wanted in [
        usage,
        "node_cpu_usage_seconds_total ",
        "pod_cpu_usage_seconds_total{namespace=\"default\"",
    ] {
        assert!(metrics.contains(wanted), "{wanted:?} is not in\n{metrics}");
    }
    let summary: serde_json::Value =
        serde_json::from_str(&client.get("/stats/summary").await).unwrap();
    assert_eq!(summary["pods"][0]["containers"][0]["name"], "app");
    let output = client.exec("/exec/default/web/app?output=1&error=1&command=sh&command=-c&command=cat+/etc/settings/greeting;exit+3").await;
    assert!(
        output.contains("hello") && output.contains("exit code 3"),
        "{output}"
    );

    // A ConfigMap's update reaches the mounted file.
    let mut changed = map.clone();
    changed
        .data
        .as_mut()
        .unwrap()
        .insert("greeting".into(), "changed".into());
    api.update(&changed);
    let mounted = dir
        .path()
        .join("kubelet/pods/uid-web/volumes/kubernetes.io~configmap/settings/greeting");
    eventually("the update shows", || {
        std::fs::read_to_string(&mounted).unwrap() == "changed"
    })
    .await;

    // The kubelet restarts; the container doesn't.
    stop.cancel();
    kubelet.await.unwrap().unwrap();
    stop = CancellationToken::new();
    kubelet = start(&stop);
    // Failing its liveness probe it is started anew, by the new kubelet.
    let work = dir
        .path()
        .join("kubelet/pods/uid-web/volumes/kubernetes.io~empty-dir/work/file");
    std::fs::remove_file(&work).unwrap();
    std::fs::write(&work, "again").unwrap();
    std::fs::rename(&work, work.with_extension("gone")).unwrap();
    let dead = until(&api, "killed by its probe", "web", |pod| {
        container(pod, "app").is_some_and(|status| {
            status
                .last_state
                .as_ref()
                .is_some_and(|last| last.terminated.is_some())
        })
    })
    .await;
    let status = container(&dead, "app").unwrap();
    let id = |pod: &Pod| container(pod, "app").unwrap().container_id.clone();
    let last = status.last_state.clone().unwrap().terminated.unwrap();
    assert_eq!(
        last.container_id,
        id(&running),
        "it was still the first one"
    );
    assert!(
        std::fs::read_to_string(&log_file)
            .unwrap()
            .contains("F bye")
    );

    delete(&api, "web", 5);
    gone(&api, "web").await;
    assert!(!dir.path().join("kubelet/pods/uid-web").exists());
    drop(pod);

    // Crash loops and failing jobs, with their messages.
    run(
        &api,
        "crash",
        json!({"containers": [{"name": "c", "image": IMAGE, "imagePullPolicy": "Never",
        "command": ["sh", "-c", "echo oh no; exit 7"], "terminationMessagePolicy": "FallbackToLogsOnError"}]}),
    );
    run(
        &api,
        "oom",
        json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": IMAGE, "imagePullPolicy": "Never",
        "command": ["sh", "-c", "exec 3<>/dev/zero; x=a; while true; do x=$x$x$x$x; done"],
        "resources": {"limits": {"memory": "16Mi"}}}]}),
    );
    let crash = until(&api, "backing off", "crash", |pod| {
        waiting_for(pod, "c") == "CrashLoopBackOff"
    })
    .await;
    let last = container(&crash, "c")
        .unwrap()
        .last_state
        .clone()
        .unwrap()
        .terminated
        .unwrap();
    assert_eq!(
        (last.exit_code, last.message.as_deref()),
        (7, Some("oh no\n"))
    );
    let oom = until(&api, "failed", "oom", |pod| phase(pod) == "Failed").await;
    let ended = container(&oom, "c")
        .unwrap()
        .state
        .clone()
        .unwrap()
        .terminated
        .unwrap();
    assert_eq!(ended.reason.as_deref(), Some("OOMKilled"), "{ended:?}");
    // How quick it is, at the median.
    let mut times = Vec::new();
    for index in 0..10 {
        let name = format!("quick-{index}");
        let begun = Instant::now();
        run(
            &api,
            &name,
            json!({"terminationGracePeriodSeconds": 1, "containers": [{"name": "c", "image": IMAGE,
            "imagePullPolicy": "IfNotPresent", "command": ["sleep", "1000"]}]}),
        );
        until(&api, "running", &name, |pod| phase(pod) == "Running").await;
        times.push(begun.elapsed());
    }
    times.sort();
    println!(
        "bound to Running, median of {}: {:?}, worst {:?}",
        times.len(),
        times[times.len() / 2],
        times[times.len() - 1]
    );
    resizes(&api, dir.path(), &cgroup).await;
    for pod in api.list::<Pod>() {
        let name = pod.metadata.name.unwrap();
        delete(&api, &name, 1);
    }
    api.until("all pods are gone", |api| api.list::<Pod>().is_empty())
        .await;
    stop.cancel();
    kubelet.await.unwrap().unwrap();
    shutdown.cancel();
    for controller in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        support::remove_cgroup(&controller.path().join(&cgroup));
    }
}

/// What a node declares to resize in place: init containers while they run, and what the pod states for all of it.
async fn resizes(api: &FakeApi, dir: &Path, cgroup: &str) {
    let node = api.get::<Node>("", "node-0").unwrap();
    let declared = node.status.unwrap().declared_features.unwrap();
    let expected = [
        "ExtendWebSocketsToKubelet",
        "InPlacePodLevelResourcesVerticalScaling",
        "InPlacePodVerticalScalingInitContainers",
        "RestartAllContainersOnContainerExits",
    ];
    assert_eq!(declared, expected);
    let memory =
        |amount: &str| json!({"limits": {"memory": amount}, "requests": {"memory": "16Mi"}});
    let spec = |whole: &str, init: &str| {
        json!({
            "nodeName": "node-0", "terminationGracePeriodSeconds": 1,
            "resources": memory(whole),
            "initContainers": [{"name": "setup", "image": IMAGE, "imagePullPolicy": "Never", "resources": memory(init),
                "command": ["sh", "-c", "while [ ! -e /work/go ]; do sleep 0.05; done"],
                "volumeMounts": [{"name": "work", "mountPath": "/work"}]}],
            "containers": [{"name": "app", "image": IMAGE, "imagePullPolicy": "Never", "command": ["sleep", "1000"]}],
            "volumes": [{"name": "work", "emptyDir": {}}],
        })
    };
    let resize = |whole: &str, init: &str| {
        let mut pod = api.get::<Pod>("default", "grow").unwrap();
        pod.spec = serde_json::from_value(spec(whole, init)).unwrap();
        api.update(&pod);
    };
    let limit = |resources: Option<&k8s_openapi::api::core::v1::ResourceRequirements>| {
        let limits = resources.and_then(|resources| resources.limits.as_ref());
        limits.and_then(|limits| Some(limits.get("memory")?.0.clone()))
    };
    let whole = |pod: &Pod| limit(pod.status.as_ref().and_then(|s| s.resources.as_ref()));
    let init = |pod: &Pod| {
        let statuses = pod
            .status
            .as_ref()
            .and_then(|s| s.init_container_statuses.as_ref());
        limit(
            statuses
                .and_then(|s| s.first())
                .and_then(|s| s.resources.as_ref()),
        )
    };
    run(api, "grow", spec("128Mi", "32Mi"));
    let before = until(api, "the init container runs", "grow", |pod| {
        init(pod).as_deref() == Some("32Mi")
    })
    .await;
    resize("192Mi", "64Mi");
    let after = until(api, "the init container has more", "grow", |pod| {
        init(pod).as_deref() == Some("64Mi") && whole(pod).as_deref() == Some("192Mi")
    })
    .await;
    let id = |pod: &Pod| {
        let statuses = pod.status.as_ref().unwrap().init_container_statuses.clone();
        statuses.unwrap()[0].container_id.clone()
    };
    assert_eq!(id(&before), id(&after), "it was not started anew");
    let work = dir.join("kubelet/pods/uid-grow/volumes/kubernetes.io~empty-dir/work/go");
    std::fs::write(work, "").unwrap();
    until(api, "running", "grow", is_ready).await;
    resize("96Mi", "64Mi");
    until(api, "the pod has less", "grow", |pod| {
        whole(pod).as_deref() == Some("96Mi")
    })
    .await;
    let file = format!(
        "/sys/fs/cgroup/memory/{cgroup}/kubepods/burstable/poduid-grow/memory.limit_in_bytes"
    );
    let is_limited = |bytes: u64| {
        let has = std::fs::read_to_string(&file).ok();
        has.is_none_or(|has| has.trim() == bytes.to_string())
    };
    assert!(is_limited(96 << 20));
    // Nothing is taken away that is in use.
    resize("4Ki", "64Mi");
    let refused = until(api, "that is too little", "grow", |pod| {
        let conditions = pod.status.as_ref().and_then(|s| s.conditions.clone());
        let mut conditions = conditions.into_iter().flatten();
        conditions.any(|c| c.type_ == "PodResizeInProgress" && c.reason.as_deref() == Some("Error"))
    })
    .await;
    assert!(is_limited(96 << 20));
    assert_eq!(whole(&refused).as_deref(), Some("96Mi"));
    let conditions = refused.status.unwrap().conditions.unwrap();
    let why = conditions.iter().find(|c| c.type_ == "PodResizeInProgress");
    let why = why.and_then(|c| c.message.clone()).unwrap();
    let expected = "cannot decrease memory limits: attempting to set pod memory limit (4096) below current usage (";
    assert!(why.starts_with(expected), "{why}");
    resize("96Mi", "64Mi");
    until(api, "the resize is over", "grow", |pod| {
        let conditions = pod.status.as_ref().and_then(|s| s.conditions.clone());
        let mut conditions = conditions.into_iter().flatten();
        !conditions.any(|c| c.type_.starts_with("PodResize") && c.status == "True")
    })
    .await;
}

/// A client of the kubelet's API.
struct ServerApi {
    port: u16,
    tls: tokio_rustls::TlsConnector,
}

impl ServerApi {
    fn new(port: u16, authority: rustls_pki_types::CertificateDer<'static>) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority).unwrap();
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        ServerApi {
            port,
            tls: tokio_rustls::TlsConnector::from(std::sync::Arc::new(config)),
        }
    }

    async fn connect(&self) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", self.port))
            .await
            .unwrap();
        self.tls
            .connect("127.0.0.1".try_into().unwrap(), stream)
            .await
            .unwrap()
    }

    async fn get(&self, path: &str) -> String {
        let stream = hyper_util::rt::TokioIo::new(self.connect().await);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let request = hyper::Request::get(path)
            .header("host", "kubelet")
            .body(http_body_util::Empty::<bytes::Bytes>::new())
            .unwrap();
        let answer = sender.send_request(request).await.unwrap();
        let body = http_body_util::BodyExt::collect(answer.into_body())
            .await
            .unwrap();
        String::from_utf8(body.to_bytes().to_vec()).unwrap()
    }

    /// Runs a command over a WebSocket; everything that came back as one text.
    async fn exec(&self, path: &str) -> String {
        use tokio_tungstenite::tungstenite::client::IntoClientRequest;
        let mut request = format!("wss://127.0.0.1:{}{path}", self.port)
            .into_client_request()
            .unwrap();
        let protocol = http::HeaderValue::from_static("v5.channel.k8s.io");
        request
            .headers_mut()
            .insert("sec-websocket-protocol", protocol);
        let (socket, _) = tokio_tungstenite::client_async(request, self.connect().await)
            .await
            .unwrap();
        let messages: Vec<_> = futures::StreamExt::collect(socket).await;
        let data = messages
            .into_iter()
            .flatten()
            .map(tokio_tungstenite::tungstenite::Message::into_data);
        String::from_utf8_lossy(&data.collect::<Vec<_>>().concat()).into_owned()
    }
}

fn run(api: &FakeApi, name: &str, spec: serde_json::Value) -> Pod {
    let mut spec = spec;
    spec["nodeName"] = json!("node-0");
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")}, "spec": spec}))
    .unwrap();
    api.insert(pod)
}

async fn until(api: &FakeApi, what: &str, name: &str, condition: impl Fn(&Pod) -> bool) -> Pod {
    let get = |api: &FakeApi| api.get::<Pod>("default", name);
    let wait = api.until(what, |api| get(api).is_some_and(|pod| condition(&pod)));
    if tokio::time::timeout(Duration::from_secs(18), wait)
        .await
        .is_err()
    {
        let events = api.list::<k8s_openapi::api::core::v1::Event>();
        for event in events {
            println!(
                "{:?} {:?} {:?}",
                event.involved_object.name, event.reason, event.message
            );
        }
        panic!(
            "{what}: {}",
            serde_json::to_string_pretty(&get(api)).unwrap()
        );
    }
    get(api).unwrap()
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..500 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}");
}

fn delete(api: &FakeApi, name: &str, grace: i64) {
    let mut pod = api.get::<Pod>("default", name).unwrap();
    pod.metadata.deletion_timestamp = Some(Time(Timestamp::now()));
    pod.metadata.deletion_grace_period_seconds = Some(grace);
    api.update(&pod);
}

async fn gone(api: &FakeApi, name: &str) {
    api.until("the pod is gone", |api| {
        api.get::<Pod>("default", name).is_none()
    })
    .await;
}
