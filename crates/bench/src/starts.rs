//! How long it takes until things run.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context as _, bail};
use fluyt_e2e::World;

use crate::{NODES, median, row};

/// How often each is measured.
const CLUSTERS: usize = 5;
const PODS: usize = 20;

/// `aks create` until its nodes are Ready and the pods of kube-system are. Leaves the last cluster.
pub fn clusters(world: &World) -> anyhow::Result<()> {
    let (mut created, mut running) = (Vec::new(), Vec::new());
    for n in 1..=CLUSTERS {
        let begin = Instant::now();
        world.create_cluster("bench", NODES)?;
        created.push(begin.elapsed().as_secs_f64());
        let ready = "kubectl -n kube-system get pods --no-headers";
        world.until(std::time::Duration::from_secs(60), ready, |pods| {
            pods.lines().count() >= 3 && pods.lines().all(|pod| pod.contains("Running"))
        })?;
        running.push(begin.elapsed().as_secs_f64());
        if n < CLUSTERS {
            world.ok("fluyt aks delete -g rg -n bench --yes && rm -r $HOME/.kube")?;
        }
    }
    row(
        "aks create, nodes Ready",
        format!("{:.2} s (median of {CLUSTERS})", median(created)),
    );
    row(
        "aks create, and all kube-system pods Running",
        format!("{:.2} s", median(running)),
    );
    Ok(())
}

/// A pod of a present image, from before its request until a watch shows it Running.
pub fn pods(world: &World) -> anyhow::Result<()> {
    let server = world.admin_files()?;
    let pods = format!("{server}/api/v1/namespaces/default/pods");
    world.until(
        std::time::Duration::from_secs(30),
        "kubectl get serviceaccount default -o name",
        |_| true,
    )?;
    let mut took = Vec::new();
    for n in 0..PODS {
        let name = format!("pod-{n}");
        let mut watch = curl(world);
        watch.args([
            "-N",
            &format!("{pods}?watch=1&fieldSelector=metadata.name={name}&resourceVersion=0"),
        ]);
        let mut watch = watch.stdout(Stdio::piped()).spawn()?;
        let lines = BufReader::new(watch.stdout.take().context("no standard output")?).lines();
        let body = format!(
            r#"{{"apiVersion": "v1", "kind": "Pod", "metadata": {{"name": "{name}"}}, "spec": {{"containers": [
                {{"name": "a", "image": "mcr.fluyt.local/sample-web:v0.1.0", "env": [{{"name": "STORE_TOKEN", "value": "a"}}]}}]}}}}"#
        );
        let begin = Instant::now();
        let mut create = curl(world);
        create.args([
            "-H",
            "content-type: application/json",
            "-o",
            "/dev/null",
            "-d",
            &body,
            &pods,
        ]);
        if !create.status()?.success() {
            bail!("the pod was not created");
        }
        let is_running =
            |line: std::io::Result<String>| line.is_ok_and(|l| l.contains(r#""phase":"Running""#));
        if !lines.into_iter().any(is_running) {
            bail!("the watch ended before {name} ran");
        }
        took.push(begin.elapsed().as_secs_f64() * 1e3);
        watch.kill()?;
        watch.wait()?;
    }
    let worst = took.iter().copied().fold(0.0, f64::max);
    row(
        "a pod of a present image, Running",
        format!(
            "{:.0} ms (median of {PODS}; worst {worst:.0} ms)",
            median(took)
        ),
    );
    world.ok("kubectl delete pods --all --now --timeout=60s")?;
    Ok(())
}

fn curl(world: &World) -> std::process::Command {
    let mut curl = world.command("curl");
    let file = |name: &str| world.home().join(name);
    curl.arg("-sk")
        .arg("--cert")
        .arg(file("admin.crt"))
        .arg("--key")
        .arg(file("admin.key"));
    curl
}
