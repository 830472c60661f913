//! What dies comes back, and nothing else notices.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use fluyt_e2e::{BUSYBOX, State, World, eventually, is_release, timed};

const SOON: Duration = Duration::from_secs(30);

/// Every container of the cluster with how often it was restarted.
const CONTAINERS: &str = "kubectl get pods -A -o \
    jsonpath='{range .items[*].status.containerStatuses[*]}{.containerID} {.restartCount}{\"\\n\"}{end}' | sort";

/// Long enough to be alone in the process table.
const NAP: &str = "sleep 8674309";

/// A node's grace period, until its silence counts as death, with room for a slow machine.
const DEATH: Duration = Duration::from_secs(90);

/// A pod that gives a dead node two seconds.
const MOVER: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: mover}
spec:
  selector: {matchLabels: {app: mover}}
  template:
    metadata: {labels: {app: mover}}
    spec:
      tolerations:
      - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 2}
      - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 2}
      containers: [{name: mover, image: "e2e.local/busybox:1"}]
"#;

fn sleeper(world: &World) -> anyhow::Result<()> {
    world.import_busybox()?;
    world.ok(&format!("kubectl run sleeper --image={BUSYBOX} -- {NAP}"))?;
    world.ok("kubectl wait --for=condition=Ready pod/sleeper --timeout=30s")?;
    world.ok("kubectl -n kube-system wait --for=condition=Ready pods --all --timeout=60s")?;
    Ok(())
}

fn pid_of_nap(world: &World) -> anyhow::Result<String> {
    world.ok(&format!("pgrep -fx '{NAP}'"))
}

#[test]
fn a_killed_container_is_back_within_two_seconds() -> anyhow::Result<()> {
    World::with_cluster(1, |world, _service| {
        sleeper(world)?;
        let status = "kubectl get pod sleeper -o jsonpath='{.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].state.running.startedAt}'";
        world.ok(&format!("kill -9 {}", pid_of_nap(world)?))?;
        let ((), took) = timed("the container is back", || {
            world
                .until(SOON, status, |s| s.starts_with("1 2"))
                .map(drop)
        })?;
        ensure!(took < Duration::from_secs(2), "it took {took:?}");
        pid_of_nap(world)?;
        let last = world.ok("kubectl get pod sleeper -o jsonpath='{.status.containerStatuses[0].lastState.terminated.exitCode}'")?;
        ensure!(last == "137", "the exit code was {last}");
        Ok(())
    })
}

/// Writes ConfigMaps one after the other, and into a journal those that were acknowledged.
const WRITER: &str = r#"
exec 2>/dev/null
i=0
while :; do
    i=$((i + 1))
    body='{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "journal-'$WRITER-$i'"}, "data": {"n": "'$i'"}}'
    code=$(curl -sk -m 5 --cert $HOME/admin.crt --key $HOME/admin.key -H 'content-type: application/json' \
        -o /dev/null -w '%{http_code}' -d "$body" $SERVER/api/v1/namespaces/default/configmaps) || true
    [ "$code" != 201 ] || echo "journal-$WRITER-$i" >>$HOME/journal-$WRITER
done
"#;

#[test]
fn a_killed_master_loses_nothing() -> anyhow::Result<()> {
    let limit = Duration::from_secs(if is_release() { 1 } else { 4 });
    World::run(State::Disk, |world| {
        let _service = world.serve()?;
        world.create_cluster("demo", 1)?;
        sleeper(world)?;
        let server = world.admin_files()?;
        let before = world.ok(CONTAINERS)?;
        let identity = format!("{}/master-process.json", world.cluster_directory()?);
        let journalled = |at_least: usize| {
            world.until(SOON, "cat $HOME/journal-* | wc -l", |n| {
                n.parse().is_ok_and(|n: usize| n >= at_least)
            })
        };

        let writers: Vec<_> = (1..=3)
            .map(|n| world.background(&format!("export WRITER={n} SERVER={server}\n{WRITER}")))
            .collect::<Result<_, _>>()?;
        for round in 1..=3 {
            let written: usize = journalled(round * 20)?.parse()?;
            let old = world.recorded_pid(&identity)?;
            world.ok(&format!("kill -9 {old}"))?;
            let ((), took) = timed("the master is back", || {
                let ready = format!(
                    "curl -sk -m 1 --cert $HOME/admin.crt --key $HOME/admin.key {server}/readyz"
                );
                world.until(SOON, &ready, |answer| answer == "ok").map(drop)
            })?;
            ensure!(took < limit, "it took {took:?}");
            ensure!(
                world.recorded_pid(&identity)? != old,
                "the old master's number is still recorded"
            );
            journalled(written + 20)?;
        }
        drop(writers);

        let lost = "kubectl get configmaps -o name | sed 's|configmap/||' | sort >$HOME/stored\n\
                    cat $HOME/journal-* | sort | comm -23 - $HOME/stored";
        let lost = world.ok(lost)?;
        ensure!(lost.is_empty(), "acknowledged and lost:\n{lost}");
        let after = world.ok(CONTAINERS)?;
        ensure!(
            before == after,
            "containers before:\n{before}\nand after:\n{after}"
        );
        // And it works, as does what the controllers and the node do through it.
        world.ok(&format!("kubectl create deployment late --image={BUSYBOX} && kubectl rollout status deployment/late --timeout=60s"))?;
        Ok(())
    })
}

#[test]
fn a_killed_agent_leaves_containers_alone() -> anyhow::Result<()> {
    World::with_cluster(1, |world, _service| {
        sleeper(world)?;
        let (before, nap) = (world.ok(CONTAINERS)?, pid_of_nap(world)?);
        let agent = "pgrep -of '^/fluyt node --config'";
        let old = world.ok(agent)?;
        world.ok(&format!("kill -9 {old}"))?;
        timed("the agent is back", || {
            world.until(SOON, agent, |pid| !pid.is_empty() && pid != old)
        })?;
        timed("and streams", || {
            world.until(SOON, "kubectl exec sleeper -- echo here", |said| {
                said == "here"
            })
        })?;
        world.ok(&format!("kubectl run late --image={BUSYBOX} && kubectl wait --for=condition=Ready pod/late --timeout=30s"))?;
        world.ok("kubectl delete pod late --now")?;
        let after = world.ok(CONTAINERS)?;
        ensure!(
            before == after,
            "containers before:\n{before}\nand after:\n{after}"
        );
        ensure!(
            pid_of_nap(world)? == nap,
            "the container's process is another one"
        );
        // Its end is still noticed.
        world.ok(&format!("kill -9 {nap}"))?;
        world.until(
            SOON,
            "kubectl get pod sleeper -o jsonpath='{.status.containerStatuses[0].restartCount}'",
            |n| n == "1",
        )?;
        Ok(())
    })
}

#[test]
fn a_killed_service_adopts_its_clusters() -> anyhow::Result<()> {
    World::with_cluster(1, |world, service| {
        sleeper(world)?;
        let before = world.ok(CONTAINERS)?;
        let identity = format!("{}/master-process.json", world.cluster_directory()?);
        let master = world.recorded_pid(&identity)?;
        world.ok(&format!(
            "kill -9 {}",
            world.recorded_pid("/run/fluyt/serve.json")?
        ))?;
        let mut service = service;
        service.ended(SOON)?;
        world.ok(&format!("kubectl run orphan --image={BUSYBOX} && kubectl wait --for=condition=Ready pod/orphan --timeout=30s"))?;
        world.ok("kubectl delete pod orphan --now")?;

        let _service = world.serve()?;
        let state = world.ok("fluyt aks show -g rg -n demo -o tsv --query provisioningState || fluyt aks show -g rg -n demo -o json")?;
        ensure!(state.contains("Succeeded"), "{state}");
        ensure!(
            world.recorded_pid(&identity)? == master,
            "another master was started"
        );
        let after = world.ok(CONTAINERS)?;
        ensure!(
            before == after,
            "containers before:\n{before}\nand after:\n{after}"
        );
        // It supervises what it found.
        world.ok(&format!("kill -9 {master}"))?;
        world.until(SOON, "kubectl get --raw /readyz", |answer| answer == "ok")?;
        world.ok("fluyt aks scale -g rg -n demo --node-count 2")?;
        let nodes = world.ok("kubectl get nodes --no-headers")?;
        ensure!(
            nodes.lines().filter(|l| l.contains(" Ready ")).count() == 2,
            "{nodes}"
        );
        world.ok("fluyt aks delete -g rg -n demo --yes")?;
        Ok(())
    })
}

#[test]
fn a_killed_node_comes_back() -> anyhow::Result<()> {
    World::with_cluster(1, |world, _service| {
        sleeper(world)?;
        let process = format!(
            "{}/process.json",
            world.ok("ls -d /var/lib/fluyt/clusters/*/nodes/*")?
        );
        let old = world.recorded_pid(&process)?;
        world.ok(&format!("kill -9 {old}"))?;
        eventually("another machine", SOON, || {
            Ok((world.recorded_pid(&process)? != old).then_some(()))
        })?;
        timed("the pod runs again", || {
            world.until(SOON, "kubectl exec sleeper -- echo here", |said| {
                said == "here"
            })
        })?;
        world.ok("kubectl -n kube-system wait --for=condition=Ready pods --all --timeout=60s")?;
        Ok(())
    })
}

#[test]
fn a_dead_nodes_pods_run_elsewhere() -> anyhow::Result<()> {
    World::with_cluster(2, |world, mut service| {
        world.import_busybox()?;
        world.write("mover.yaml", MOVER)?;
        world.ok("kubectl apply -f $HOME/mover.yaml && kubectl rollout status deployment/mover --timeout=30s")?;
        let placed = "kubectl get pods -l app=mover --field-selector status.phase=Running -o jsonpath='{range .items[*]}{.metadata.uid} {.spec.nodeName}{\"\\n\"}{end}'";
        let old = world.ok(placed)?;
        let (uid, node) = old.split_once(' ').context("the pod is on no node")?;
        let process = format!("{}/nodes/{node}/process.json", world.cluster_directory()?);

        // Without the service, nobody starts the machine again.
        world.ok(&format!(
            "kill -9 {}",
            world.recorded_pid("/run/fluyt/serve.json")?
        ))?;
        service.ended(SOON)?;
        world.ok(&format!("kill -9 {}", world.recorded_pid(&process)?))?;
        let ready = format!(
            "kubectl get node {node} -o jsonpath='{{.status.conditions[?(@.type==\"Ready\")].status}}'"
        );
        timed("the node is known to be dead", || {
            world.until(DEATH, &ready, |status| status == "Unknown")
        })?;
        let ((), took) = timed("its pod runs elsewhere", || {
            world
                .until(SOON, placed, |now| {
                    now.lines()
                        .any(|l| !l.starts_with(uid) && !l.ends_with(node))
                })
                .map(drop)
        })?;
        ensure!(
            took >= Duration::from_secs(1),
            "the toleration of 2 s was not waited for"
        );

        let _service = world.serve()?;
        world.until(SOON, &ready, |status| status == "True")?;
        // What was to be deleted there is deleted now that there is someone to do it.
        world.until(
            SOON,
            "kubectl get pods -l app=mover -o jsonpath='{.items[*].metadata.uid}'",
            |uids| !uids.contains(uid) && uids.split(' ').count() == 1,
        )?;
        world.until(
            SOON,
            &format!("kubectl get node {node} -o jsonpath='{{.spec.taints}}'"),
            str::is_empty,
        )?;
        Ok(())
    })
}

#[test]
fn a_full_disk_refuses_writes_and_loses_nothing() -> anyhow::Result<()> {
    World::run(State::Limited("1500m"), |world| {
        let _service = world.serve()?;
        world.create_cluster("demo", 1)?;
        world.ok("kubectl create configmap before --from-literal=a=b")?;
        // To the last byte.
        world.sh("cat /dev/zero >/var/lib/fluyt/filling")?;
        let mut stored = vec!["before".to_owned()];
        let refused = eventually("a write is refused", SOON, || {
            let name = format!("during-{}", stored.len());
            let outcome = world.sh(&format!("kubectl create configmap {name} --from-literal=a=$(head -c 65536 /dev/zero | tr '\\0' x)"))?;
            if outcome.code == 0 {
                stored.push(name);
                return Ok(None);
            }
            Ok(Some(outcome.stderr))
        })?;
        ensure!(
            refused.contains("Internal error occurred") && refused.contains("space"),
            "{refused}"
        );
        ensure!(world.ok("kubectl get configmap before -o jsonpath='{.data.a}'")? == "b");
        let create = world.sh("fluyt aks create -g rg -n second --node-count 1")?;
        ensure!(
            create.code == 1 && create.stderr.contains("space"),
            "{}{}",
            create.stdout,
            create.stderr
        );

        world.ok("rm /var/lib/fluyt/filling")?;
        world.until(
            SOON,
            "kubectl create configmap after --from-literal=a=b",
            |_| true,
        )?;
        let names = world.ok("kubectl get configmaps -o jsonpath='{.items[*].metadata.name}'")?;
        for name in &stored {
            ensure!(
                names.split(' ').any(|n| n == name),
                "{name} was acknowledged and is lost"
            );
        }
        // As with AKS, what could not be made is there as Failed, unless not even that could be written.
        let shown = world.sh("fluyt aks show -g rg -n second -o json")?;
        if shown.code == 0 {
            ensure!(shown.stdout.contains("\"Failed\""), "{}", shown.stdout);
            world.ok("fluyt aks delete -g rg -n second --yes")?;
        }
        let directories = world.ok("ls /var/lib/fluyt/clusters | wc -l")?;
        ensure!(
            directories == "1",
            "the refused cluster left a directory behind"
        );
        world.create_cluster("second", 1)?;
        Ok(())
    })
}

#[test]
fn clusters_and_nodes_are_kept_apart() -> anyhow::Result<()> {
    World::with_cluster(2, |world, _service| {
        world.import_busybox()?;
        let server = world.admin_files()?;
        for (credentials, codes) in [
            ("", "401 403"),
            ("-H 'authorization: Bearer nonsense'", "401"),
        ] {
            let code = world.ok(&format!(
                "curl -sk -o /dev/null -w '%{{http_code}}' {credentials} {server}/api/v1/secrets"
            ))?;
            ensure!(
                codes.contains(&code),
                "`{credentials}` was answered with {code}"
            );
        }

        // Each node may read the secret of its own pod only.
        let nodes = world.ok("kubectl get nodes -o jsonpath='{.items[*].metadata.name}'")?;
        let nodes: Vec<&str> = nodes.split(' ').collect();
        ensure!(nodes.len() == 2, "{nodes:?}");
        for (n, node) in nodes.iter().enumerate() {
            world.ok(&format!(
                "kubectl create secret generic of-{n} --from-literal=a=b"
            ))?;
            let overrides = format!(
                r#"{{"spec": {{"nodeName": "{node}", "containers": [{{"name": "pod-{n}", "image": "{BUSYBOX}",
                    "envFrom": [{{"secretRef": {{"name": "of-{n}"}}}}]}}]}}}}"#
            );
            world.ok(&format!(
                "kubectl run pod-{n} --image={BUSYBOX} --overrides='{overrides}'"
            ))?;
        }
        world.ok("kubectl wait --for=condition=Ready pod/pod-0 pod/pod-1 --timeout=30s")?;
        let directory = world.cluster_directory()?;
        for (n, node) in nodes.iter().enumerate() {
            let certificate = format!(
                "{directory}/nodes/{node}/root/var/lib/kubelet/pki/kubelet-client-current.pem"
            );
            let ask = |path: &str| {
                world.ok(&format!("curl -sk -o /dev/null -w '%{{http_code}}' --cert {certificate} {server}/api/v1{path}"))
            };
            let answers = [
                ask(&format!("/namespaces/default/secrets/of-{n}"))?,
                ask(&format!("/namespaces/default/secrets/of-{}", 1 - n))?,
                ask("/namespaces/default/secrets")?,
                ask("/secrets")?,
            ];
            ensure!(
                answers == ["200", "403", "403", "403"],
                "node {n}: {answers:?}"
            );
        }

        // A second cluster with the same addresses: other pods behind them, other keys.
        world.create_cluster("other", 1)?;
        let page = |context: &str| -> anyhow::Result<String> {
            let kubectl = format!("kubectl --context {context}");
            let serve = format!(
                "sh -c 'echo page of {context} >/www/index.html; exec httpd -f -p 80 -h /www'"
            );
            world.ok(&format!("{kubectl} run page --image={BUSYBOX} -- {serve} && {kubectl} expose pod page --port 80 --cluster-ip 10.0.77.77"))?;
            world.ok(&format!(
                "{kubectl} wait --for=condition=Ready pod/page --timeout=30s"
            ))?;
            Ok(kubectl)
        };
        let clusters = [("demo", page("demo")?), ("other", page("other")?)];
        for (name, kubectl) in &clusters {
            let said = world.until(
                SOON,
                &format!("{kubectl} exec page -- wget -qO- http://10.0.77.77/"),
                |_| true,
            )?;
            ensure!(
                said == format!("page of {name}"),
                "{name} was answered: {said}"
            );
        }
        let other = world.ok("kubectl config view -o jsonpath='{.clusters[?(@.name==\"other\")].cluster.server}'").context("the other server")?;
        let code = world.ok(&format!("curl -sk -o /dev/null -w '%{{http_code}}' --cert $HOME/admin.crt --key $HOME/admin.key {other}/api/v1/secrets"))?;
        ensure!(
            "401 403".contains(&code),
            "the other cluster's master answers demo's administrator with {code}"
        );
        Ok(())
    })
}
