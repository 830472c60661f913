//! The Kubernetes API as the Python client understands it.

use anyhow::ensure;
use fluyt_e2e::{BUSYBOX, World};

#[test]
fn kubernetes_client() -> anyhow::Result<()> {
    World::with_cluster(1, |world, _service| {
        world.import_busybox()?;
        let said = world.ok(&format!(
            ".cache/venv/bin/python crates/e2e/tests/kubernetes_client.py {BUSYBOX}"
        ))?;
        ensure!(said.ends_with("done"), "{said}");
        Ok(())
    })
}
