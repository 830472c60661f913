//! The life of pods, against an API server in memory and a container runtime behind a real CRI socket.

#![allow(clippy::unwrap_used)]

mod fake_cri;
mod support;

use std::time::Duration;

use fake_cri::FakeCri;
use fluyt_client::fake::FakeApi;
use fluyt_kubelet::Args;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;
use support::{container, is_ready, phase, waiting_for};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

struct Node0 {
    dir: tempfile::TempDir,
    api: FakeApi,
    cri: FakeCri,
    shutdown: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Node0 {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cri = FakeCri::serve(&dir.path().join("cri.sock"));
        let api = FakeApi::new();
        let shutdown = CancellationToken::new();
        let task = kubelet(&dir, &api, &shutdown, 0);
        let node = Node0 {
            dir,
            api,
            cri,
            shutdown,
            task,
        };
        node.api
            .until("the node is ready", |api| {
                let node = api.get::<Node>("", "node-0");
                let conditions = node
                    .and_then(|node| node.status?.conditions)
                    .unwrap_or_default();
                conditions
                    .iter()
                    .any(|c| c.type_ == "Ready" && c.status == "True")
            })
            .await;
        node
    }

    /// Another kubelet takes over; the runtime and its containers go on.
    async fn restart(&mut self) {
        self.shutdown.cancel();
        (&mut self.task).await.unwrap().unwrap();
        self.shutdown = CancellationToken::new();
        self.task = kubelet(&self.dir, &self.api, &self.shutdown, 0);
    }

    fn run(&self, name: &str, spec: serde_json::Value) -> Pod {
        let mut spec = spec;
        spec["nodeName"] = json!("node-0");
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")}, "spec": spec
        }))
        .unwrap();
        self.api.insert(pod)
    }

    async fn until(&self, what: &str, name: &str, condition: impl Fn(&Pod) -> bool) -> Pod {
        let pod = |api: &FakeApi| api.get::<Pod>("default", name);
        self.api
            .until(what, |api| pod(api).is_some_and(|pod| condition(&pod)))
            .await;
        pod(&self.api).unwrap()
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }
}

fn kubelet(
    dir: &tempfile::TempDir,
    api: &FakeApi,
    shutdown: &CancellationToken,
    port: u16,
) -> JoinHandle<anyhow::Result<()>> {
    let path = |name: &str| dir.path().join(name);
    let args = Args {
        kubeconfig: Some(path("kubeconfig")),
        cert_dir: path("pki"),
        root_dir: path("kubelet"),
        pod_logs_dir: path("logs"),
        container_runtime_endpoint: Some(format!("unix://{}", path("cri.sock").display())),
        hostname_override: Some("node-0".into()),
        node_ip: vec!["127.0.0.1".parse().unwrap()],
        address: Some("127.0.0.1".parse().unwrap()),
        port: Some(port),
        healthz_port: Some(0),
        cgroups_per_qos: Some(false),
        pod_manifest_path: Some(path("manifests")),
        eviction_hard: vec!["memory.available<1Ki".into()],
        ..Args::default()
    };
    let settings = args.settings().unwrap();
    tokio::spawn(Box::pin(fluyt_kubelet::start(
        settings,
        api.client(),
        shutdown.clone(),
    )))
}

fn delete(node: &Node0, pod: &Pod, grace: i64) {
    let mut pod = pod.clone();
    pod.metadata.deletion_timestamp = Some(Time(Timestamp::now()));
    pod.metadata.deletion_grace_period_seconds = Some(grace);
    node.api.update(&pod);
}

async fn gone(node: &Node0, name: &str) {
    node.api
        .until("the pod is gone", |api| {
            api.get::<Pod>("default", name).is_none()
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_init_containers_to_the_end() {
    let node = Node0::start().await;
    node.run(
        "web",
        json!({
            "terminationGracePeriodSeconds": 7,
            "initContainers": [
                {"name": "setup", "image": "exit-0:1"},
                {"name": "side", "image": "proxy:1", "restartPolicy": "Always"}
            ],
            "containers": [{"name": "app", "image": "app:1",
                "readinessProbe": {"exec": {"command": ["check"]}, "periodSeconds": 1},
                "lifecycle": {"preStop": {"exec": {"command": ["bye"]}}}}]
        }),
    );
    let pod = node.until("ready", "web", is_ready).await;
    assert_eq!(phase(&pod), "Running");
    let status = pod.status.as_ref().unwrap();
    assert_eq!(status.pod_ip.as_deref(), Some("127.0.0.2"));
    assert_eq!(status.host_ip.as_deref(), Some("127.0.0.1"));
    let app = container(&pod, "app").unwrap();
    assert!(app.ready && app.restart_count == 0 && app.started == Some(true));
    assert!(
        app.container_id
            .as_ref()
            .unwrap()
            .starts_with("fake://container-")
    );
    let starts: Vec<String> = node
        .cri
        .calls()
        .into_iter()
        .filter(|call| !call.starts_with("exec"))
        .collect();
    assert_eq!(
        starts,
        [
            "run",
            "create setup",
            "start setup",
            "create side",
            "start side",
            "create app",
            "start app"
        ]
    );

    delete(&node, &pod, 7);
    gone(&node, "web").await;
    let calls = node.cri.calls();
    let position = |call: &str| calls.iter().position(|c| c.starts_with(call)).unwrap();
    assert!(position("exec bye") < position("stop app 7"));
    assert!(position("stop app 7") < position("stop side"));
    assert!(position("stop side") < position("stop-sandbox"));
    assert!(node.cri.is_empty());
    assert!(!node.dir.path().join("kubelet/pods/uid-web").exists());
    assert!(!node.dir.path().join("logs/default_web_uid-web").exists());
    // Events are written behind.
    node.api
        .until("the usual events", |api| {
            let reasons: Vec<_> = api
                .list::<Event>()
                .into_iter()
                .filter_map(|event| event.reason)
                .collect();
            ["Pulling", "Pulled", "Created", "Started", "Killing"]
                .iter()
                .all(|wanted| reasons.iter().any(|reason| reason == wanted))
        })
        .await;
    assert!(node.api.get::<Lease>("kube-node-lease", "node-0").is_some());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_kubelet_adopts_what_runs() {
    let mut node = Node0::start().await;
    node.run(
        "web",
        json!({"containers": [{"name": "app", "image": "app:1",
        "readinessProbe": {"exec": {"command": ["check"]}, "periodSeconds": 60}}]}),
    );
    let before = node.until("ready", "web", is_ready).await;
    node.restart().await;
    // It looks after the pod again: a container that ends is started anew.
    node.cri.exit("app", 1);
    let after = node
        .until("restarted", "web", |pod| {
            is_ready(pod) && container(pod, "app").is_some_and(|status| status.restart_count == 1)
        })
        .await;
    let id = |pod: &Pod| container(pod, "app").unwrap().container_id.clone();
    assert_ne!(id(&before), id(&after));
    let last = container(&after, "app")
        .unwrap()
        .last_state
        .clone()
        .unwrap()
        .terminated
        .unwrap();
    assert_eq!((last.exit_code, last.container_id), (1, id(&before)));
    let start_time = |pod: &Pod| pod.status.as_ref().unwrap().start_time.clone();
    assert_eq!(start_time(&before), start_time(&after));
    let created = node
        .cri
        .calls()
        .iter()
        .filter(|call| *call == "create app")
        .count();
    assert_eq!(
        created, 2,
        "one at first, one after it ended, none for the restart"
    );

    // What was deleted while no kubelet ran goes once one runs again.
    node.shutdown.cancel();
    (&mut node.task).await.unwrap().unwrap();
    node.api.remove(&after);
    node.shutdown = CancellationToken::new();
    node.task = kubelet(&node.dir, &node.api, &node.shutdown, 0);
    let cri = node.cri.clone();
    tokio::time::timeout(Duration::from_secs(10), async {
        while !cri.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the orphan is ended and removed");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_containers_end_may_start_all_of_them_anew() {
    let node = Node0::start().await;
    let declared = node.api.get::<Node>("", "node-0").unwrap();
    let declared = declared.status.unwrap().declared_features.unwrap();
    let restart_all = "RestartAllContainersOnContainerExits".to_string();
    assert!(declared.is_sorted() && declared.contains(&restart_all));
    let rules =
        json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [7]}}]);
    node.run(
        "web",
        json!({
            "restartPolicy": "Never",
            "initContainers": [{"name": "setup", "image": "exit-0:1"}],
            "containers": [
                {"name": "app", "image": "app:1", "restartPolicy": "Never", "restartPolicyRules": rules},
                {"name": "helper", "image": "app:1"}
            ]
        }),
    );
    let before = node.until("ready", "web", is_ready).await;
    let begun = node.cri.calls().len();
    node.cri.exit("app", 7);
    let after = node
        .until("all are started anew", "web", |pod| {
            let count = |name: &str| container(pod, name).is_some_and(|c| c.restart_count == 1);
            is_ready(pod) && count("app") && count("helper")
        })
        .await;
    assert_eq!(
        node.cri.calls()[begun..],
        [
            "stop helper 0",
            "create setup",
            "start setup",
            "create app",
            "start app",
            "create helper",
            "start helper"
        ]
    );
    let address = |pod: &Pod| pod.status.as_ref().unwrap().pod_ip.clone();
    assert_eq!(address(&before), address(&after), "the sandbox is the same");
    let last = container(&after, "helper").unwrap().last_state.clone();
    let last = last.unwrap().terminated.unwrap();
    assert_eq!(last.reason.as_deref(), Some("RestartingAllContainers"));
    node.cri.exit("app", 8);
    node.cri.exit("helper", 0);
    node.until("failed", "web", |pod| phase(pod) == "Failed")
        .await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_wrong_is_told() {
    let node = Node0::start().await;
    node.run(
        "crash",
        json!({"containers": [{"name": "c", "image": "exit-3:1"}]}),
    );
    node.run(
        "lost",
        json!({"containers": [{"name": "c", "image": "missing:1"}]}),
    );
    node.run(
        "bad",
        json!({"containers": [{"name": "c", "image": "No Image"}]}),
    );
    node.run(
        "never",
        json!({"containers": [{"name": "c", "image": "absent:1", "imagePullPolicy": "Never"}]}),
    );
    node.run(
        "keyless",
        json!({"containers": [{"name": "c", "image": "app:1",
        "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "none", "key": "k"}}}]}]}),
    );
    node.run(
        "huge",
        json!({"containers": [{"name": "c", "image": "app:1",
        "resources": {"requests": {"cpu": "9000"}}}]}),
    );
    node.run(
        "job",
        json!({"restartPolicy": "Never", "containers": [
        {"name": "good", "image": "exit-0:1"}, {"name": "evil", "image": "exit-2:1"}]}),
    );

    let pod = node
        .until("backing off", "crash", |pod| {
            waiting_for(pod, "c") == "CrashLoopBackOff"
        })
        .await;
    let status = container(&pod, "c").unwrap();
    let last = status
        .last_state
        .as_ref()
        .unwrap()
        .terminated
        .as_ref()
        .unwrap();
    assert_eq!(
        (status.restart_count, last.exit_code, phase(&pod)),
        (1, 3, "Running")
    );
    for (name, reason) in [
        ("lost", "ImagePullBackOff"),
        ("bad", "InvalidImageName"),
        ("never", "ErrImageNeverPull"),
        ("keyless", "CreateContainerConfigError"),
    ] {
        let pod = node
            .until(reason, name, |pod| waiting_for(pod, "c") == reason)
            .await;
        assert_eq!(phase(&pod), "Pending");
    }
    let pod = node
        .until("rejected", "huge", |pod| phase(pod) == "Failed")
        .await;
    assert_eq!(pod.status.unwrap().reason.as_deref(), Some("OutOfcpu"));
    let pod = node
        .until("failed", "job", |pod| phase(pod) == "Failed")
        .await;
    let code = |name: &str| {
        container(&pod, name)
            .unwrap()
            .state
            .as_ref()
            .unwrap()
            .terminated
            .as_ref()
            .unwrap()
            .exit_code
    };
    assert_eq!((code("good"), code("evil")), (0, 2));
    for name in ["crash", "lost", "bad", "never", "keyless", "huge", "job"] {
        let pod = node.api.get::<Pod>("default", name).unwrap();
        delete(&node, &pod, 1);
        gone(&node, name).await;
    }
    assert!(node.cri.is_empty());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn static_pods_have_mirrors() {
    let node = Node0::start().await;
    let manifest = node.dir.path().join("manifests/proxy.yaml");
    std::fs::write(
        &manifest,
        "kind: Pod\nmetadata: {name: proxy, namespace: default}\nspec: {containers: [{name: c, image: 'app:1'}]}\n",
    )
    .unwrap();
    let mirror = node
        .until("the mirror is ready", "proxy-node-0", is_ready)
        .await;
    assert!(
        mirror
            .metadata
            .annotations
            .unwrap()
            .contains_key("kubernetes.io/config.mirror")
    );
    assert_eq!(node.cri.running(), 1);
    std::fs::remove_file(&manifest).unwrap();
    gone(&node, "proxy-node-0").await;
    let cri = node.cri.clone();
    assert!(cri.is_empty());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_turned_away() {
    let mut node = Node0::start().await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    node.shutdown.cancel();
    (&mut node.task).await.unwrap().unwrap();
    node.shutdown = CancellationToken::new();
    node.task = kubelet(&node.dir, &node.api, &node.shutdown, port);
    // Wait for the port by asking until somebody answers.
    let ask = |token: Option<&str>| {
        let mut command = tokio::process::Command::new("curl");
        command.args([
            "-sk",
            "--retry",
            "50",
            "--retry-connrefused",
            "--retry-delay",
            "0",
        ]);
        command.args(["--retry-max-time", "10", "-w", " %{http_code}"]);
        if let Some(token) = token {
            command.args(["-H", &format!("Authorization: Bearer {token}")]);
        }
        command.arg(format!("https://127.0.0.1:{port}/pods"));
        async move { String::from_utf8(command.output().await.unwrap().stdout).unwrap() }
    };
    assert_eq!(ask(None).await, "Unauthorized 401");
    assert_eq!(ask(Some("made-up")).await, "Unauthorized 401");
    node.stop().await;
}
