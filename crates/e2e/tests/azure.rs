//! The service speaks ARM as Microsoft's clients understand it.

use anyhow::ensure;
use fluyt_e2e::World;

#[test]
fn azure_mgmt_containerservice() -> anyhow::Result<()> {
    World::with_service(|world, _service| {
        world.ok("fluyt group create -n rg")?;
        let said = world.ok(".cache/venv/bin/python crates/e2e/tests/azure_sdk.py")?;
        ensure!(said.ends_with("done"), "{said}");
        let nodes = world.ok("cat $HOME/sdk.nodes")?;
        ensure!(
            nodes.lines().filter(|l| l.contains(" Ready ")).count() == 2,
            "{nodes}"
        );
        ensure!(
            world.ok("ls /var/lib/fluyt/clusters")?.is_empty(),
            "the cluster's directory is left"
        );
        Ok(())
    })
}
