//! Images from a registry, and what is kept there that is none.

use std::time::Duration;

use anyhow::ensure;
use fluyt_e2e::{Background, World};

const SOON: Duration = Duration::from_secs(30);

/// On the node's own loopback, where plain HTTP is allowed, as with containerd and Docker.
const REGISTRY: &str = "127.0.0.1:5000";

/// Enters the network of the only node.
const ON_NODE: &str = "nsenter -n -t $(pgrep -of '^/fluyt node --config')";

/// Stores bytes as a blob of the repository `$1`; its digest and size as a descriptor's members.
const BLOB: &str = r#"
blob() {
    cat >$HOME/blob
    digest=sha256:$(sha256sum $HOME/blob | cut -d' ' -f1)
    upload=$(curl -fsS -X POST -D - -o /dev/null http://127.0.0.1:5000/v2/$1/blobs/uploads/ | tr -d '\r' | sed -n 's/^Location: //ip')
    curl -fsS -X PUT -H 'content-type: application/octet-stream' --data-binary @$HOME/blob "$upload&digest=$digest" >&2
    echo "\"digest\": \"$digest\", \"size\": $(stat -c %s $HOME/blob)"
}
manifest() { curl -fsS -X PUT -H 'content-type: application/vnd.oci.image.manifest.v1+json' -d @- http://127.0.0.1:5000/v2/$1/manifests/1; }
"#;

/// A chart, as `helm push` stores it.
const CHART: &str = r#"
config=$(echo '{"name": "chart"}' | blob chart)
layer=$(head -c 1000 /dev/urandom | blob chart)
manifest chart <<END
{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
 "config": {"mediaType": "application/vnd.cncf.helm.config.v1+json", $config},
 "layers": [{"mediaType": "application/vnd.cncf.helm.chart.content.v1.tar+gzip", $layer}]}
END
"#;

/// An image by its words, with noise for a layer.
const NOISE: &str = r#"
config=$(echo '{"architecture": "amd64", "os": "linux", "config": {"Cmd": ["sh"]}, "rootfs": {"type": "layers", "diff_ids": ["sha256:0000000000000000000000000000000000000000000000000000000000000000"]}}' | blob noise)
layer=$(head -c 1000 /dev/urandom | blob noise)
manifest noise <<END
{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
 "config": {"mediaType": "application/vnd.oci.image.config.v1+json", $config},
 "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", $layer}]}
END
"#;

#[test]
fn from_a_registry() -> anyhow::Result<()> {
    World::with_cluster(1, |world, _service| {
        let _registry = registry(world)?;
        world.make_busybox()?;
        world.ok(&format!("{ON_NODE} skopeo copy -q --dest-tls-verify=false docker-archive:$HOME/busybox.tar docker://{REGISTRY}/pages:1"))?;
        world.ok(&format!("kubectl run pages --image={REGISTRY}/pages:1 --image-pull-policy=Always && kubectl wait --for=condition=Ready pod/pages --timeout=30s"))?;
        let id = world
            .ok("kubectl get pod pages -o jsonpath='{.status.containerStatuses[0].imageID}'")?;
        ensure!(id.contains("@sha256:") || id.starts_with("sha256:"), "{id}");
        ensure!(
            world
                .ok("kubectl describe pod pages")?
                .contains("Successfully pulled image")
        );
        let before = images(world)?;

        for (name, make) in [("chart", CHART), ("noise", NOISE)] {
            let script = world.write("push.sh", &format!("set -e\n{BLOB}\n{make}"))?;
            world.ok(&format!("{ON_NODE} bash {}", script.display()))?;
            world.ok(&format!("kubectl run {name} --image={REGISTRY}/{name}:1"))?;
            let waiting = format!(
                "kubectl get pod {name} -o jsonpath='{{.status.containerStatuses[0].state.waiting}}'"
            );
            let waiting = world.until(SOON, &waiting, |waiting| {
                waiting.contains("ErrImagePull") || waiting.contains("ImagePullBackOff")
            })?;
            ensure!(
                waiting.contains(&format!("{REGISTRY}/{name}:1")),
                "{waiting}"
            );
            let event = format!(
                "kubectl get events --field-selector reason=Failed,involvedObject.name={name} -o jsonpath='{{.items[*].message}}'"
            );
            world.until(SOON, &event, |event| event.contains("Failed to pull image"))?;
        }
        ensure!(images(world)? == before, "what is no image was kept as one");
        Ok(())
    })
}

fn registry(world: &World) -> anyhow::Result<Background> {
    let root = world.home().join("registry").display().to_string();
    let config = world.write(
        "registry.yml",
        &format!("version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {root}\nhttp:\n  addr: {REGISTRY}\n"),
    )?;
    let registry = world.background(&format!(
        "exec {ON_NODE} docker-registry serve {}",
        config.display()
    ))?;
    world.until(
        SOON,
        &format!("{ON_NODE} curl -fsS http://{REGISTRY}/v2/"),
        |_| true,
    )?;
    Ok(registry)
}

fn images(world: &World) -> anyhow::Result<String> {
    world.ok("kubectl get nodes -o jsonpath='{.items[*].status.images[*].names}'")
}
