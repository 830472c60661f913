//! A hundred thousand pods, as a cluster of a thousand nodes has them.

use std::time::Instant;

use serde_json::{Value, json};

use super::client::{Clients, Request};
use super::cost;
use super::server::Server;
use crate::row;

const PODS: usize = 100_000;
const NODES: usize = 1000;

/// Lists of one node's pods, and of everything.
const OF_A_NODE: usize = 200;
const OF_ALL: usize = 5;
/// Lists of the first objects.
const OF_FIRST: usize = 100;

/// Objects in one part of a list that is asked for in parts.
const CHUNK: usize = 500;

const COLLECTION: &str = "/api/v1/namespaces/default/pods";

fn node(n: usize) -> String {
    format!("node-{:03}", n % NODES)
}

/// A pod as a ReplicaSet makes it, already bound.
fn pod(n: usize) -> Value {
    let set = format!("web-{:04}", n / 100);
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("{set}-{n:06}"),
            "labels": {"app": "web", "pod-template-hash": "5d8f6b9c7d", "release": set},
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": set, "controller": true,
                "uid": "4d2a2ab1-7a3f-4f57-9a53-3a0d0d1c7a11", "blockOwnerDeletion": true,
            }],
        },
        "spec": {
            "nodeName": node(n), "automountServiceAccountToken": false,
            "containers": [{
                "name": "web", "image": "registry.example.com/team/web:1.27.0",
                "ports": [{"containerPort": 8080, "name": "http"}],
                "env": [{"name": "LEVEL", "value": "info"}, {"name": "ZONE", "value": "1"}],
                "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}},
                "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}},
            }],
        },
    })
}

/// What a kubelet says of it once it runs.
fn status(n: usize) -> Value {
    let now = "2026-01-01T00:00:00Z";
    let condition = |ty: &str| json!({"type": ty, "status": "True", "lastTransitionTime": now});
    let conditions = [
        "PodReadyToStartContainers",
        "Initialized",
        "Ready",
        "ContainersReady",
        "PodScheduled",
    ]
    .map(condition);
    let address = format!("10.{}.{}.{}", n >> 16, (n >> 8) & 255, n & 255);
    json!({"status": {
        "phase": "Running", "qosClass": "Burstable", "startTime": now,
        "hostIP": "10.240.0.4", "podIP": address, "podIPs": [{"ip": address}],
        "conditions": conditions,
        "containerStatuses": [{
            "name": "web", "ready": true, "started": true, "restartCount": 0,
            "image": "registry.example.com/team/web:1.27.0",
            "imageID": format!("registry.example.com/team/web@sha256:{:064x}", 27),
            "containerID": format!("containerd://{n:064x}"),
            "state": {"running": {"startedAt": now}},
        }],
    }})
}

fn path(pod: &Value) -> String {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    format!("{COLLECTION}/{name}")
}

/// Runs everything and prints a line each.
///
/// # Errors
/// When the server does not start or refuses a request.
pub async fn measure() -> anyhow::Result<()> {
    println!("{PODS} pods");
    let mut server = Server::start(None).await?;
    let clients = Clients::connect(&server.access).await?;
    let account = json!({"metadata": {"name": "default"}});
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    let account = Request::post(accounts, account.to_string().into_bytes());
    clients.run(vec![account]).await?;
    let empty = server.usage()?.resident;
    let creates = (0..PODS).map(|n| Request::post(COLLECTION, pod(n).to_string().into_bytes()));
    cost(&server, &clients, "create", creates.collect()).await?;
    let reports = (0..PODS).map(|n| {
        let patch = status(n).to_string().into_bytes();
        Request::patch(format!("{}/status", path(&pod(n))), patch)
    });
    cost(&server, &clients, "patch of the status", reports.collect()).await?;
    let full = server.usage()?.resident;
    #[expect(clippy::cast_precision_loss)]
    let each = (full - empty) * 1e3 / PODS as f64;
    row("RSS", format!("{full:.1} MB, {each:.2} KB a pod"));
    row("on disk", format!("{:.1} MB", server.disk()?));
    reads(&server, &clients).await?;
    drop(clients);
    let begin = Instant::now();
    server.restart().await?;
    let seconds = begin.elapsed().as_secs_f64();
    let usage = server.usage()?;
    row(
        "ready after a kill",
        format!(
            "{seconds:.2} s, {:.2} s of CPU, RSS {:.1} MB",
            usage.cpu_seconds, usage.resident
        ),
    );
    Ok(())
}

async fn reads(server: &Server, clients: &Clients) -> anyhow::Result<()> {
    let gets = (0..PODS).step_by(10).map(|n| Request::get(path(&pod(n))));
    cost(server, clients, "get", gets.collect()).await?;
    let of_a_node = (0..OF_A_NODE).map(|n| {
        let selector = format!("fieldSelector=spec.nodeName={}", node(n));
        Request::get(format!("/api/v1/pods?resourceVersion=0&{selector}"))
    });
    cost(server, clients, "list of a node's 100", of_a_node.collect()).await?;
    let parts = (0..OF_FIRST).map(|_| Request::get(format!("{COLLECTION}?limit={CHUNK}")));
    cost(server, clients, "list of the first 500", parts.collect()).await?;
    let all = (0..OF_ALL).map(|_| Request::get(COLLECTION.to_owned()));
    cost(server, clients, "list of all", all.collect()).await?;
    row(
        "RSS after that",
        format!("{:.1} MB", server.usage()?.resident),
    );
    Ok(())
}
