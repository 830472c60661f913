//! An image to test with: busybox, as an archive that `docker save` could have written.

use crate::World;

/// The image's name. Started without a command it serves pages on port 80.
pub const BUSYBOX: &str = "e2e.local/busybox:1";

const MAKE: &str = r#"
cd "$(mktemp -d)"
mkdir -p root/bin root/www root/tmp
cp /bin/busybox root/bin/
for name in $(/bin/busybox --list); do [ "$name" = busybox ] || ln -s busybox "root/bin/$name"; done
echo 'a page of busybox' >root/www/index.html
tar -C root --owner 0 --group 0 -cf layer.tar bin www tmp
layer=$(sha256sum layer.tar | cut -d' ' -f1)
cat >config.json <<END
{"architecture": "amd64", "os": "linux", "config": {"Env": ["PATH=/bin"], "Cmd": ["sh", "-c", "trap 'exit 0' TERM; httpd -f -p 80 -h /www & wait"]},
 "rootfs": {"type": "layers", "diff_ids": ["sha256:$layer"]}}
END
echo '[{"Config": "config.json", "RepoTags": ["e2e.local/busybox:1"], "Layers": ["layer.tar"]}]' >manifest.json
tar -cf "$HOME/busybox.tar" manifest.json config.json layer.tar
"#;

impl World {
    /// Makes the image's archive, `busybox.tar` in [`World::home`].
    ///
    /// # Errors
    /// Without busybox-static.
    pub fn make_busybox(&self) -> anyhow::Result<()> {
        self.ok(MAKE).map(drop)
    }

    /// Makes the image and brings it in.
    ///
    /// # Errors
    /// Without busybox-static, or what `fluyt image import` says.
    pub fn import_busybox(&self) -> anyhow::Result<()> {
        self.make_busybox()?;
        let said = self.ok("fluyt image import $HOME/busybox.tar")?;
        anyhow::ensure!(said.contains(BUSYBOX), "{said}");
        Ok(())
    }
}
