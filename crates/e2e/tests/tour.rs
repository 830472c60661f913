//! A newcomer's way through a cluster with two nodes, with the real kubectl.

use std::time::Duration;

use anyhow::ensure;
use fluyt_e2e::{World, timed};

const SOON: Duration = Duration::from_secs(30);

#[test]
fn guestbook() -> anyhow::Result<()> {
    World::with_service(|world, _service| {
        timed("aks create with two nodes", || world.create_cluster("demo", 2))?;
        let nodes = world.ok("kubectl get nodes --no-headers")?;
        ensure!(nodes.lines().filter(|l| l.contains(" Ready ")).count() == 2, "{nodes}");
        timed("all pods of kube-system are ready", || {
            world.ok("kubectl -n kube-system wait --for=condition=Ready pods --all --timeout=60s")
        })?;
        world.ok("kubectl apply -f examples/guestbook")?;
        world.ok("kubectl -n guestbook rollout status statefulset/store --timeout=100s")?;
        world.ok("kubectl -n guestbook rollout status deployment/web --timeout=100s")?;
        let address = "kubectl -n guestbook get service web -o jsonpath='{.status.loadBalancer.ingress[0].ip}'";
        let address = world.until(SOON, address, |a| a.starts_with("127.20."))?;
        world.until(SOON, &format!("curl -fsS -d 'entry=Ahoy there' http://{address}/"), |_| true)?;
        let page = world.ok(&format!("curl -fsS http://{address}/"))?;
        ensure!(page.contains("Welcome aboard") && page.contains("Ahoy there"), "{page}");
        Ok(())
    })
}
