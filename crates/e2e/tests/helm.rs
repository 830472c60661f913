//! helm 4: a release through its life.

use anyhow::ensure;
use fluyt_e2e::World;

#[test]
fn release() -> anyhow::Result<()> {
    World::with_cluster(1, |world, _service| {
        world.import_busybox()?;
        let wait = "--wait --timeout 60s";
        world.ok("cd $HOME && helm create chart")?;
        let values = "--set image.repository=e2e.local/busybox --set image.tag=1";
        world.ok(&format!("helm install app $HOME/chart {values} {wait}"))?;
        let app = "kubectl get deployment app-chart -o jsonpath='{.status.readyReplicas}'";
        ensure!(world.ok(app)? == "1");
        world.ok(&format!(
            "helm upgrade app $HOME/chart {values} --set replicaCount=3 {wait}"
        ))?;
        ensure!(world.ok(app)? == "3");
        world.ok(&format!("helm rollback app 1 {wait}"))?;
        ensure!(world.ok(app)? == "1");
        let history = world.json("helm history app -o json")?;
        ensure!(
            history.as_array().is_some_and(|h| h.len() == 3),
            "{history}"
        );
        world.ok(&format!("helm uninstall app {wait}"))?;
        ensure!(
            world
                .ok("kubectl get deployments,services -l app.kubernetes.io/instance=app -o name")?
                .is_empty()
        );
        ensure!(
            world
                .json("helm list -o json")?
                .as_array()
                .is_some_and(Vec::is_empty)
        );
        Ok(())
    })
}
