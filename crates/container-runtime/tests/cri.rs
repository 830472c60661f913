//! The runtime as the kubelet uses it: real containers of busybox, over CRI. Needs root.

mod common;

use common::{Node, shell};
use k8s_cri::v1 as cri;

#[test]
#[ignore = "not a test: the runtime's process of the others"]
fn runtime_process() {
    common::serve_if_asked();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_lives_and_dies() {
    let node = Node::start().await;
    let sandbox = node.run_sandbox("life").await;
    let mut runtime = node.runtime().await;
    let status = runtime
        .pod_sandbox_status(cri::PodSandboxStatusRequest {
            pod_sandbox_id: sandbox.clone(),
            verbose: false,
        })
        .await
        .unwrap()
        .into_inner()
        .status
        .unwrap();
    assert_eq!(status.state(), cri::PodSandboxState::SandboxReady);
    assert_eq!(status.network.unwrap().ip, "10.244.9.2");

    let once = node
        .run(&sandbox, "once", "echo out; echo err >&2; hostname; exit 3")
        .await;
    let exited = node.wait_exit(&once).await;
    assert_eq!((exited.exit_code, exited.reason.as_str()), (3, "Error"));
    let log = node.container_log("life", "once");
    assert!(
        log.contains(" stdout F out\n") && log.contains(" stderr F err\n"),
        "{log}"
    );
    assert!(log.contains(" stdout F life\n"), "{log}");

    let server = node
        .run(
            &sandbox,
            "server",
            "echo hi > /dev/shm/file; exec httpd -f -p 8080 -h /etc",
        )
        .await;
    let output = node
        .exec(
            &server,
            &[
                "sh",
                "-c",
                "cat /etc/resolv.conf /dev/shm/file; id -u; echo $$; exit 7",
            ],
            0,
        )
        .await
        .unwrap();
    assert_eq!(output.exit_code, 7);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("nameserver 10.0.0.10") && text.contains("hi\n0\n"),
        "{text}"
    );
    // The pod is reached from the node by its address.
    let address = "10.244.9.2:8080".parse().unwrap();
    fluyt_network::netns::connect_tcp_in(&node.network(), address)
        .await
        .unwrap();
    let error = node.exec(&server, &["sleep", "100"], 1).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::DeadlineExceeded);

    let stats = runtime
        .pod_sandbox_stats(cri::PodSandboxStatsRequest {
            pod_sandbox_id: sandbox.clone(),
        })
        .await
        .unwrap()
        .into_inner()
        .stats
        .unwrap()
        .linux
        .unwrap();
    assert!(stats.memory.unwrap().working_set_bytes.unwrap().value > 0);
    assert!(
        stats
            .network
            .unwrap()
            .default_interface
            .unwrap()
            .rx_bytes
            .unwrap()
            .value
            > 0
    );

    runtime
        .stop_container(cri::StopContainerRequest {
            container_id: server.clone(),
            timeout: 0,
        })
        .await
        .unwrap();
    assert_eq!(node.status(&server).await.exit_code, 137);
    node.remove_sandbox(&sandbox).await;
    let left = runtime
        .list_containers(cri::ListContainersRequest { filter: None })
        .await
        .unwrap()
        .into_inner();
    assert!(left.containers.is_empty());
    let files = node.root().join("node/sandboxes");
    assert!(std::fs::read_dir(files).unwrap().next().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_outlive_the_runtime_and_no_exit_is_missed() {
    let mut node = Node::start().await;
    let sandbox = node.run_sandbox("survivor").await;
    let long = node
        .run(
            &sandbox,
            "long",
            "while true; do echo tick; sleep 0.1; done",
        )
        .await;
    let shared = node.root().join("shared");
    std::fs::create_dir(&shared).unwrap();
    let mut config = shell(
        "short",
        "until [ -e /shared/go ]; do sleep 0.02; done; exit 5",
    );
    config.mounts.push(cri::Mount {
        container_path: "/shared".to_owned(),
        host_path: shared.display().to_string(),
        ..Default::default()
    });
    let short = node.create(&sandbox, config).await;
    node.start_container(&short).await;
    let before = node.status(&long).await;
    let uptime = node
        .exec(&long, &["cut", "-d ", "-f22", "/proc/1/stat"], 0)
        .await
        .unwrap()
        .stdout;
    node.kill_runtime();
    // It ends while nobody listens.
    let logged = node.container_log("survivor", "long").len();
    std::fs::write(shared.join("go"), "").unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert!(
        node.container_log("survivor", "long").len() > logged,
        "output stopped"
    );
    node.start_runtime().await;
    let after = node.status(&long).await;
    assert_eq!(after.state(), cri::ContainerState::ContainerRunning);
    assert_eq!(after.started_at, before.started_at);
    let same = node
        .exec(&long, &["cut", "-d ", "-f22", "/proc/1/stat"], 0)
        .await
        .unwrap()
        .stdout;
    assert_eq!(uptime, same);
    let exited = node.wait_exit(&short).await;
    assert_eq!(exited.exit_code, 5);
    node.remove_sandbox(&sandbox).await;
}
