//! A newcomer's way through a cluster with two nodes, with the real kubectl.

use std::time::Duration;

use anyhow::ensure;
use fluyt_e2e::{BUSYBOX, World, timed};

const SOON: Duration = Duration::from_secs(30);

#[test]
fn guestbook_and_every_verb() -> anyhow::Result<()> {
    World::with_service(|world, _service| {
        timed("aks create with two nodes", || {
            world.create_cluster("demo", 2)
        })?;
        world.import_busybox()?;
        cluster_comes_up(world)?;
        guestbook(world)?;
        streams(world)?;
        workloads(world)?;
        resizes(world)?;
        looking(world)?;
        cluster_goes(world)
    })
}

fn cluster_comes_up(world: &World) -> anyhow::Result<()> {
    let nodes = world.ok("kubectl get nodes --no-headers -o wide")?;
    ensure!(
        nodes
            .lines()
            .filter(|l| l.contains(" Ready ") && l.contains(" 10.224.0."))
            .count()
            == 2,
        "{nodes}"
    );
    timed("all pods of kube-system are ready", || {
        world.ok("kubectl -n kube-system wait --for=condition=Ready pods --all --timeout=60s")
    })?;
    let restarts =
        "kubectl get pods -A -o jsonpath='{.items[*].status.containerStatuses[*].restartCount}'";
    let restarts = world.ok(restarts)?;
    ensure!(
        restarts.split(' ').all(|r| r == "0"),
        "restarts of kube-system's pods: {restarts}"
    );
    Ok(())
}

fn guestbook(world: &World) -> anyhow::Result<()> {
    world.ok("kubectl apply -f examples/guestbook")?;
    world.ok("kubectl -n guestbook rollout status statefulset/store --timeout=60s")?;
    world.ok("kubectl -n guestbook rollout status deployment/web --timeout=60s")?;
    let claim =
        world.ok("kubectl -n guestbook get pvc data-store-0 -o jsonpath='{.status.phase}'")?;
    ensure!(claim == "Bound", "{claim}");
    let address =
        "kubectl -n guestbook get service web -o jsonpath='{.status.loadBalancer.ingress[0].ip}'";
    let address = world.until(SOON, address, |a| a.starts_with("127.20."))?;
    world.until(
        SOON,
        &format!("curl -fsS -d 'entry=Ahoy there' http://{address}/"),
        |_| true,
    )?;
    let page = world.ok(&format!("curl -fsS http://{address}/"))?;
    ensure!(
        page.contains("Welcome aboard") && page.contains("<li>Ahoy there"),
        "{page}"
    );
    // What is in the store outlives its pod.
    world.ok("kubectl -n guestbook delete pod store-0 --now")?;
    world.ok("kubectl -n guestbook rollout status statefulset/store --timeout=60s")?;
    world.until(SOON, &format!("curl -fsS http://{address}/"), |page| {
        page.contains("<li>Ahoy there")
    })?;
    let again = world.ok("kubectl apply -f examples/guestbook")?;
    // Not so, with any server: what has stringData, and a StatefulSet's claim templates.
    let changed = again.lines().filter(|l| !l.ends_with(" unchanged"));
    ensure!(
        changed.eq([
            "secret/store configured",
            "statefulset.apps/store configured"
        ]),
        "{again}"
    );
    Ok(())
}

/// Everything that goes through the kubelet's streaming.
fn streams(world: &World) -> anyhow::Result<()> {
    let script = "echo begins; while :; do echo tick; sleep 1; done";
    world.ok(&format!(
        "kubectl run box --image={BUSYBOX} --restart=Never -- sh -c '{script}'"
    ))?;
    world.ok("kubectl wait --for=condition=Ready pod/box --timeout=30s")?;
    let log = world.background("kubectl logs -f box")?;
    log.says("begins\ntick\ntick\n", SOON)?;
    let attached = world.background("kubectl attach box")?;
    attached.says("tick\n", SOON)?;
    drop((log, attached));

    ensure!(world.ok("kubectl exec box -- echo hello")? == "hello");
    ensure!(world.ok("echo through | kubectl exec -i box -- cat")? == "through");
    world.fails(7, "exit code 7", "kubectl exec box -- sh -c 'exit 7'")?;
    let terminal = world.ok("script -qec \"kubectl exec -it box -- tty\" /dev/null </dev/null")?;
    ensure!(terminal.contains("/dev/pts/"), "{terminal}");
    let attached = world.ok(&format!(
        "echo round trip | kubectl run one-off -i -q --rm --image={BUSYBOX} --restart=Never -- cat"
    ))?;
    ensure!(attached.contains("round trip"), "{attached}");

    world
        .ok("head -c 1000000 /dev/urandom >$HOME/there && kubectl cp $HOME/there box:/tmp/there")?;
    world.ok("kubectl cp box:/tmp/there $HOME/back 2>/dev/null && cmp $HOME/there $HOME/back")?;

    let forward = world.background("kubectl -n guestbook port-forward service/web 18080:80")?;
    forward.says("Forwarding from 127.0.0.1:18080", SOON)?;
    let page = world.ok("curl -fsS http://127.0.0.1:18080/")?;
    ensure!(page.contains("Welcome aboard"), "{page}");
    world.ok("kubectl delete pod box --now")?;
    Ok(())
}

fn workloads(world: &World) -> anyhow::Result<()> {
    world.ok(&format!(
        "kubectl create deployment pages --image={BUSYBOX} --replicas=2"
    ))?;
    world.ok("kubectl rollout status deployment/pages --timeout=30s")?;
    world.ok("kubectl expose deployment pages --port=80")?;
    let ask = format!(
        "kubectl run ask -i -q --rm --image={BUSYBOX} --restart=Never -- wget -qO- http://pages.default.svc.cluster.local/"
    );
    ensure!(
        world.ok(&ask)?.contains("a page of busybox"),
        "the Service does not answer"
    );

    world.ok("kubectl scale deployment pages --replicas=4")?;
    world.ok("kubectl rollout status deployment/pages --timeout=30s")?;
    let ready = world.ok("kubectl get deployment pages -o jsonpath='{.status.readyReplicas}'")?;
    ensure!(ready == "4", "{ready} of 4 replicas are ready");
    world.ok("kubectl scale deployment pages --replicas=1")?;
    world.ok("kubectl set env deployment/pages COLOUR=green && kubectl rollout status deployment/pages --timeout=60s")?;
    world.ok("kubectl rollout restart deployment/pages && kubectl rollout status deployment/pages --timeout=60s")?;
    world.ok("kubectl rollout undo deployment/pages --to-revision=1 && kubectl rollout status deployment/pages --timeout=60s")?;
    let environment = world
        .ok("kubectl get deployment pages -o jsonpath='{.spec.template.spec.containers[0].env}'")?;
    ensure!(environment.is_empty(), "the undo left {environment}");

    world.ok(&format!("kubectl create job once --image={BUSYBOX} -- true && kubectl wait --for=condition=Complete job/once --timeout=30s"))?;
    world.ok("kubectl delete deployment/pages service/pages job/once")?;
    world.until(SOON, "kubectl get pods -o name", str::is_empty)?;
    Ok(())
}

/// A pod in place, in all ways that its node declares.
fn resizes(world: &World) -> anyhow::Result<()> {
    let declared =
        world.ok("kubectl get nodes -o jsonpath='{.items[*].status.declaredFeatures}'")?;
    let feature = "\"InPlacePodLevelResourcesVerticalScaling\"";
    ensure!(declared.matches(feature).count() == 2, "{declared}");
    let overrides = format!(
        r#"{{"spec": {{"resources": {{"requests": {{"cpu": "20m"}}}}, "containers": [{{"name": "grow", "image": "{BUSYBOX}",
            "command": ["sleep", "1000"], "resources": {{"requests": {{"cpu": "10m"}}}}}}]}}}}"#
    );
    world.ok(&format!(
        "kubectl run grow --image={BUSYBOX} --restart=Never --overrides='{overrides}'"
    ))?;
    world.ok("kubectl wait --for=condition=Ready pod/grow --timeout=30s")?;
    let more = r#"{"resources": {"requests": {"cpu": "15m"}}, "name": "grow"}"#;
    for (change, told, expected) in [
        (
            format!(r#"{{"containers": [{more}]}}"#),
            "{.status.containerStatuses[0].resources.requests.cpu}",
            "15m",
        ),
        (
            r#"{"resources": {"requests": {"cpu": "50m"}}}"#.to_owned(),
            "{.status.resources.requests.cpu}",
            "50m",
        ),
    ] {
        let patch = "kubectl patch pod grow --subresource=resize -p";
        world.ok(&format!(r#"{patch} '{{"spec": {change}}}'"#))?;
        let ask = format!("kubectl get pod grow -o jsonpath='{told}'");
        world.until(SOON, &ask, |has| has == expected)?;
    }
    world.ok("kubectl delete pod grow --now")?;
    Ok(())
}

fn looking(world: &World) -> anyhow::Result<()> {
    for (what, wanted) in [
        ("node", "node.kubernetes.io/instance-type=Standard_D2s_v3"),
        (
            "-n guestbook pod store-0",
            "Successfully assigned guestbook/store-0",
        ),
        ("-n guestbook deployment web", "ScalingReplicaSet"),
        ("-n guestbook service web", "LoadBalancer Ingress:"),
    ] {
        let text = world.ok(&format!("kubectl describe {what}"))?;
        ensure!(
            text.contains(wanted),
            "no \"{wanted}\" in the description of {what}:\n{text}"
        );
    }
    world.ok("kubectl api-resources && kubectl version && kubectl cluster-info && kubectl auth can-i create pods")?;
    // The first figures come when a pod has been sampled twice.
    let nodes = world.until(SOON, "kubectl top nodes --no-headers", |top| {
        top.lines().count() == 2 && !top.contains("<unknown>")
    })?;
    ensure!(nodes.contains("Mi"), "{nodes}");
    let pods = world.until(
        SOON,
        "kubectl top pods -n guestbook --containers --no-headers",
        |top| top.contains("store-0"),
    )?;
    ensure!(pods.lines().all(|l| l.contains("Mi")), "{pods}");
    ensure!(
        world
            .ok("kubectl explain pod.spec.containers.image")?
            .contains("FIELD: image")
    );
    Ok(())
}

/// Deleted, the cluster leaves nothing.
fn cluster_goes(world: &World) -> anyhow::Result<()> {
    world.ok("kubectl delete namespace guestbook --timeout=60s")?;
    let directory = world.cluster_directory()?;
    world.ok("fluyt aks delete -g rg -n demo --yes")?;
    let id = directory.rsplit('/').next().unwrap_or_default();
    let traces = world.ok(&format!(
        "ls -d {directory} /run/netns/fluyt-* /sys/fs/cgroup/*/fluyt/{id} 2>/dev/null || true"
    ))?;
    ensure!(traces.is_empty(), "{traces}");
    let processes = world.ok("pgrep -fa '^(/fluyt|/proc/self/exe) ' || true")?;
    ensure!(processes.is_empty(), "{processes}");
    Ok(())
}
