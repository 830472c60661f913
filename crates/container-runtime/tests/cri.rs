//! The runtime as the kubelet uses it: real containers of busybox, over CRI. Needs root.
#![allow(clippy::unwrap_used, clippy::large_futures)] // Tests fail by panicking.

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

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_told_as_the_kubelet_expects() {
    let node = Node::start().await;
    let sandbox = node.run_sandbox("failures").await;
    let mut runtime = node.runtime().await;

    let mut config = shell("missing", "");
    config.command = vec!["/no/such/program".to_owned()];
    let missing = node.create(&sandbox, config).await;
    let error = runtime
        .start_container(cri::StartContainerRequest {
            container_id: missing.clone(),
        })
        .await
        .unwrap_err();
    assert!(
        error.message().contains("no such file or directory"),
        "{error}"
    );
    let status = node.wait_exit(&missing).await;
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (128, "StartError")
    );

    let mut config = shell("hungry", "dd if=/dev/zero of=/dev/null bs=200M count=1");
    if let Some(linux) = &mut config.linux {
        linux.resources = Some(cri::LinuxContainerResources {
            memory_limit_in_bytes: 32 << 20,
            ..Default::default()
        });
    }
    let hungry = node.create(&sandbox, config).await;
    node.start_container(&hungry).await;
    let status = node.wait_exit(&hungry).await;
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (137, "OOMKilled")
    );

    let mut config = shell("absent", "");
    if let Some(image) = &mut config.image {
        image.image = "docker.io/library/absent:1".to_owned();
    }
    let error = runtime
        .create_container(cri::CreateContainerRequest {
            pod_sandbox_id: sandbox.clone(),
            config: Some(config),
            sandbox_config: None,
        })
        .await
        .unwrap_err();
    assert_eq!(error.code(), tonic::Code::NotFound);
    let error = runtime
        .container_status(cri::ContainerStatusRequest {
            container_id: "nosuch".to_owned(),
            verbose: false,
        })
        .await
        .unwrap_err();
    assert_eq!(error.code(), tonic::Code::NotFound);
    node.remove_sandbox(&sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_security_context_is_enforced() {
    let node = Node::start().await;
    let mut sandbox_config = node.sandbox_config("secure");
    if let Some(linux) = &mut sandbox_config.linux {
        linux.sysctls.insert(
            "net.ipv4.ip_unprivileged_port_start".to_owned(),
            "80".to_owned(),
        );
    }
    let sandbox = node.run_sandbox_with(sandbox_config).await;
    let mut config = shell("secure", "sleep 1000");
    if let Some(security) = config
        .linux
        .as_mut()
        .and_then(|linux| linux.security_context.as_mut())
    {
        security.run_as_user = Some(cri::Int64Value { value: 1000 });
        security.run_as_group = Some(cri::Int64Value { value: 2000 });
        security.supplemental_groups = vec![3000];
        security.readonly_rootfs = true;
        security.no_new_privs = true;
        security.seccomp = Some(cri::SecurityProfile {
            profile_type: cri::security_profile::ProfileType::RuntimeDefault.into(),
            localhost_ref: String::new(),
        });
        security.capabilities = Some(cri::Capability {
            drop_capabilities: vec!["ALL".to_owned()],
            ..Default::default()
        });
    }
    let id = node.create(&sandbox, config).await;
    node.start_container(&id).await;
    let script = "id -u; id -g; id -G; grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status; \
        touch /file 2>&1; unshare -n true 2>&1; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; \
        echo 1 2>&1 > /proc/sys/net/ipv4/ip_forward; grep -c . /proc/1/status";
    let output = node.exec(&id, &["sh", "-c", script], 0).await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for expected in [
        "1000\n2000\n2000 3000\n",
        "CapEff:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "Read-only file system",
        "Operation not permitted",
        "\n80\n",
    ] {
        assert!(text.contains(expected), "{expected:?} is not in {text}");
    }
    // The container's own process has what an exec has.
    let output = node
        .exec(&id, &["grep", "Seccomp:", "/proc/1/status"], 0)
        .await
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "Seccomp:\t2\n");
    node.remove_sandbox(&sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_of_a_pod_may_share_a_pid_namespace() {
    let node = Node::start().await;
    let mut config = node.sandbox_config("shared");
    if let Some(options) = config
        .linux
        .as_mut()
        .and_then(|linux| linux.security_context.as_mut())
        .and_then(|security| security.namespace_options.as_mut())
    {
        options.pid = cri::NamespaceMode::Pod.into();
    }
    let sandbox = node.run_sandbox_with(config).await;
    let in_pod = |name: &str, script: &str| {
        let mut config = shell(name, script);
        if let Some(options) = config
            .linux
            .as_mut()
            .and_then(|linux| linux.security_context.as_mut())
            .and_then(|security| security.namespace_options.as_mut())
        {
            options.pid = cri::NamespaceMode::Pod.into();
        }
        config
    };
    let one = node
        .create(&sandbox, in_pod("one", "sleep 4321 & sleep 1234"))
        .await;
    node.start_container(&one).await;
    let two = node.create(&sandbox, in_pod("two", "sleep 1000")).await;
    node.start_container(&two).await;
    let output = node.exec(&two, &["ps", "-o", "args"], 0).await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        text.contains("sleep 1234") && text.contains("sleep 4321"),
        "{text}"
    );
    let mut runtime = node.runtime().await;
    runtime
        .stop_container(cri::StopContainerRequest {
            container_id: one,
            timeout: 0,
        })
        .await
        .unwrap();
    // The first's end takes all its processes along, and none of the second's.
    for _ in 0..100 {
        let output = node.exec(&two, &["ps", "-o", "args"], 0).await.unwrap();
        if !String::from_utf8_lossy(&output.stdout).contains("sleep 4321") {
            node.remove_sandbox(&sandbox).await;
            return;
        }
    }
    panic!("a process outlived its container");
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_reopened_for_rotation() {
    let node = Node::start().await;
    let sandbox = node.run_sandbox("rotate").await;
    let id = node
        .run(
            &sandbox,
            "rotate",
            "while true; do echo line; sleep 0.02; done",
        )
        .await;
    let log = node.root().join("logs/rotate/rotate.log");
    while node.container_log("rotate", "rotate").is_empty() {
        tokio::task::yield_now().await;
    }
    std::fs::rename(&log, log.with_extension("1")).unwrap();
    node.runtime()
        .await
        .reopen_container_log(cri::ReopenContainerLogRequest { container_id: id })
        .await
        .unwrap();
    for _ in 0..500 {
        if node
            .container_log("rotate", "rotate")
            .contains(" stdout F line")
        {
            node.remove_sandbox(&sandbox).await;
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("nothing was logged after the rotation");
}

/// Not a limit but a figure: prints what a pod costs. Run with `--nocapture`.
#[tokio::test(flavor = "multi_thread")]
async fn figures() {
    let node = Node::start().await;
    let mut times = Vec::new();
    let mut last = String::new();
    for round in 0..11 {
        let name = format!("pod{round}");
        let begin = std::time::Instant::now();
        let sandbox = node.run_sandbox(&name).await;
        let sandboxed = begin.elapsed();
        let id = node.create(&sandbox, shell(&name, "sleep 1000")).await;
        let created = begin.elapsed();
        node.start_container(&id).await;
        times.push((begin.elapsed(), sandboxed, created));
        last = sandbox;
    }
    times.sort();
    let (total, sandboxed, created) = times[times.len() / 2];
    println!("median: total {total:?}, sandbox {sandboxed:?}, created at {created:?}");
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        if std::fs::read(entry.path().join("cmdline"))
            .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&last))
        {
            let rollup = std::fs::read_to_string(entry.path().join("smaps_rollup")).unwrap();
            for line in rollup.lines().filter(|line| {
                ["Rss:", "Pss:", "Pss_Anon:", "Pss_File:"]
                    .iter()
                    .any(|key| line.starts_with(key))
            }) {
                println!("shim {line}");
            }
        }
    }
    assert!(total < std::time::Duration::from_secs(1), "{total:?}");
}
