//! The kubelet on upstream's container runtime: containerd 1.6 or later, over CRI alone. Skipped where it isn't installed.
//!
//! The test runs itself again in a mount and network namespace of its own.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::process::{Child, Command, Stdio};

use fluyt_client::fake::FakeApi;
use fluyt_kubelet::Args;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;
use support::{container, is_ready, phase, waiting_for};
use tokio_util::sync::CancellationToken;

const INSIDE: &str = "FLUYT_KUBELET_TEST";
const IMAGE: &str = "docker.io/library/busybox:test";

#[test]
fn pods_in_containerd() {
    if std::env::var_os(INSIDE).is_some() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(Box::pin(inside()));
        return;
    }
    if Command::new("containerd")
        .arg("--version")
        .output()
        .is_err()
    {
        println!("no containerd here: skipped");
        return;
    }
    let status = Command::new("unshare")
        .args(["--net", "--mount", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "pods_in_containerd", "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success(), "see above");
}

/// containerd, ended with the test.
struct Containerd(Child);

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(program: &str, args: &[&str]) {
    let status = Command::new(program).args(args).status().unwrap();
    assert!(status.success(), "{program} {args:?}");
}

/// A docker archive of busybox that sleeps, which also does as the sandbox's image.
fn write_image(dir: &Path) {
    let root = dir.join("rootfs");
    std::fs::create_dir_all(root.join("bin")).unwrap();
    std::fs::copy("/usr/bin/busybox", root.join("bin/busybox")).unwrap();
    for applet in ["sh", "sleep", "echo", "test"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    let text = |path: &Path| path.to_str().unwrap().to_string();
    run(
        "tar",
        &[
            "-C",
            &text(&root),
            "-cf",
            &text(&dir.join("layer.tar")),
            ".",
        ],
    );
    let sum = Command::new("sha256sum")
        .arg(dir.join("layer.tar"))
        .output()
        .unwrap();
    let digest = String::from_utf8(sum.stdout).unwrap()[..64].to_string();
    let config = json!({"architecture": "amd64", "os": "linux",
        "config": {"Cmd": ["/bin/sleep", "1000000"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]}});
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let manifest = json!([{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]);
    std::fs::write(dir.join("manifest.json"), manifest.to_string()).unwrap();
    let members = ["config.json", "manifest.json", "layer.tar"];
    run(
        "tar",
        &[
            &["-C", &text(dir), "-cf", &text(&dir.join("image.tar"))],
            &members[..],
        ]
        .concat(),
    );
}

async fn inside() {
    let dir = tempfile::Builder::new().prefix("flc").tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let socket = path("containerd.sock");
    std::fs::write(
        path("config.toml"),
        format!(
            "version = 2\nroot = {root:?}\nstate = {state:?}\n[grpc]\naddress = {socket:?}\n[ttrpc]\naddress = {ttrpc:?}\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = {IMAGE:?}\nrestrict_oom_score_adj = true\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"native\"\n",
            root = path("root"),
            state = path("state"),
            ttrpc = path("ttrpc.sock"),
        ),
    )
    .unwrap();
    let log = std::fs::File::create(path("containerd.log")).unwrap();
    let containerd = Command::new("containerd")
        .arg("--config")
        .arg(path("config.toml"))
        .stdout(Stdio::null())
        .stderr(log)
        .spawn();
    let containerd = Containerd(containerd.unwrap());
    write_image(dir.path());
    let socket = socket.to_str().unwrap();
    let archive = path("image.tar");
    let import = [
        "--address",
        socket,
        "--namespace",
        "k8s.io",
        "images",
        "import",
        "--snapshotter",
        "native",
        archive.to_str().unwrap(),
    ];
    let imported = (0..100).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(100));
        Command::new("ctr")
            .args(import)
            .output()
            .unwrap()
            .status
            .success()
    });
    assert!(
        imported,
        "{}",
        std::fs::read_to_string(path("containerd.log")).unwrap()
    );

    let api = FakeApi::new();
    let cgroup = format!("flc-{}", std::process::id());
    let args = Args {
        kubeconfig: Some(path("kubeconfig")),
        cert_dir: path("pki"),
        root_dir: path("kubelet"),
        pod_logs_dir: path("logs"),
        container_runtime_endpoint: Some(format!("unix://{socket}")),
        hostname_override: Some("node-0".into()),
        node_ip: vec!["127.0.0.1".parse().unwrap()],
        port: Some(0),
        healthz_port: Some(0),
        cgroup_root: Some(cgroup.clone()),
        eviction_hard: vec!["memory.available<1Ki".into()],
        ..Args::default()
    };
    let shutdown = CancellationToken::new();
    let kubelet = tokio::spawn(Box::pin(fluyt_kubelet::start(
        args.settings().unwrap(),
        api.client(),
        shutdown.clone(),
    )));
    // Without CNI plugins only the node's own network is there.
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "uid-web"},
        "spec": {"nodeName": "node-0", "hostNetwork": true, "terminationGracePeriodSeconds": 0,
            "initContainers": [{"name": "setup", "image": IMAGE, "imagePullPolicy": "Never",
                "command": ["sh", "-c", "echo there > /work/file"], "volumeMounts": [{"name": "work", "mountPath": "/work"}]}],
            "containers": [
                {"name": "app", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
                    "command": ["sh", "-c", "echo $(NAME); exec sleep 1000"],
                    "env": [{"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                    "readinessProbe": {"exec": {"command": ["test", "-e", "/work/file"]}, "periodSeconds": 1},
                    "volumeMounts": [{"name": "work", "mountPath": "/work"}]},
                {"name": "crash", "image": IMAGE, "imagePullPolicy": "Never", "command": ["sh", "-c", "echo no > /dev/termination-log; exit 4"],
                    "restartPolicy": "Always"}],
            "volumes": [{"name": "work", "emptyDir": {}}]}
    }))
    .unwrap();
    api.insert(pod);
    let get = |api: &FakeApi| api.get::<Pod>("default", "web");
    let check = |pod: &Pod| {
        phase(pod) == "Running"
            && container(pod, "app").is_some_and(|status| status.ready)
            && waiting_for(pod, "crash") == "CrashLoopBackOff"
    };
    let wait = api.until("running and crashing", |api| {
        get(api).is_some_and(|pod| check(&pod))
    });
    if tokio::time::timeout(std::time::Duration::from_secs(19), wait)
        .await
        .is_err()
    {
        let pod = serde_json::to_string_pretty(&get(&api)).unwrap();
        panic!(
            "{pod}\n{}",
            std::fs::read_to_string(path("containerd.log")).unwrap()
        );
    }
    let mut pod = get(&api).unwrap();
    assert!(!is_ready(&pod), "one of its containers crashes");
    let app = container(&pod, "app").unwrap();
    assert!(
        app.container_id
            .as_ref()
            .unwrap()
            .starts_with("containerd://")
    );
    let last = container(&pod, "crash")
        .unwrap()
        .last_state
        .clone()
        .unwrap()
        .terminated
        .unwrap();
    assert_eq!((last.exit_code, last.message.as_deref()), (4, Some("no\n")));
    let log = std::fs::read_to_string(path("logs/default_web_uid-web/app/0.log")).unwrap();
    assert!(log.ends_with("stdout F web\n"), "{log}");
    pod.metadata.deletion_timestamp = Some(Time(Timestamp::now()));
    pod.metadata.deletion_grace_period_seconds = Some(1);
    api.update(&pod);
    api.until("the pod is gone", |api| get(api).is_none()).await;
    let left = Command::new("find")
        .arg(path("kubelet/pods"))
        .output()
        .unwrap();
    let left = String::from_utf8(left.stdout).unwrap();
    assert_eq!(
        left.lines().count(),
        1,
        "{left}\n{}",
        std::fs::read_to_string(path("containerd.log")).unwrap()
    );
    shutdown.cancel();
    kubelet.await.unwrap().unwrap();
    drop(containerd);
    for controller in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        support::remove_cgroup(&controller.path().join(&cgroup));
    }
}
