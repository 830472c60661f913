//! Pulling from a real registry (Debian's docker-registry) on loopback, and importing archives.
#![allow(clippy::unwrap_used, clippy::large_futures)] // Tests fail by panicking.

use std::io::Write;
use std::process::{Child, Command, Stdio};

use fluyt_container_runtime::image::{ImageStore, PullOptions, import, pull};
use oci_client::Reference;
use oci_client::client::{Client, ClientConfig, ClientProtocol, Config, ImageLayer};
use oci_client::secrets::RegistryAuth;

struct Registry {
    process: Child,
    address: String,
    _directory: tempfile::TempDir,
}

impl Registry {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        // A port that was free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let address = format!("127.0.0.1:{port}");
        let config = directory.path().join("config.yml");
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
                directory.path().join("data").display()
            ),
        )
        .unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        while tokio::net::TcpStream::connect(&address).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        Self {
            process,
            address,
            _directory: directory,
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn layer(name: &str, content: &str) -> (Vec<u8>, Vec<u8>) {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, content.as_bytes())
        .unwrap();
    let plain = tar.into_inner().unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    (plain, gzip.finish().unwrap())
}

fn config(layers: &[&[u8]]) -> Vec<u8> {
    let diff_ids: Vec<String> = layers
        .iter()
        .map(|layer| fluyt_container_runtime::image::digest_of(layer))
        .collect();
    serde_json::to_vec(&serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "config": { "Cmd": ["sh"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    }))
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pulled_and_removed() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let registry = Registry::start().await;
    let name = format!("{}/team/app:1", registry.address);
    let (one, one_gz) = layer("one", "first");
    let (two, two_gz) = layer("two", "second");
    let client = Client::new(ClientConfig {
        protocol: ClientProtocol::Http,
        ..ClientConfig::default()
    });
    let media_type = oci_client::manifest::IMAGE_LAYER_GZIP_MEDIA_TYPE.to_owned();
    client
        .push(
            &name.parse::<Reference>().unwrap(),
            &[
                ImageLayer::new(one_gz, media_type.clone(), None),
                ImageLayer::new(two_gz, media_type, None),
            ],
            Config::oci_v1(config(&[&one, &two]), None),
            &RegistryAuth::Anonymous,
            None,
        )
        .await
        .unwrap();

    let directory = tempfile::tempdir().unwrap();
    let store = ImageStore::open(directory.path()).unwrap();
    let options = PullOptions::default();
    // Two processes may pull the same at once.
    let (a, b) = tokio::join!(pull(&store, &name, &options), pull(&store, &name, &options));
    let image = a.unwrap();
    assert_eq!(image.id, b.unwrap().id);
    let lower = store.lower_directories(&image);
    assert_eq!(
        std::fs::read_to_string(lower[0].join("two")).unwrap(),
        "second"
    );
    assert_eq!(
        std::fs::read_to_string(lower[1].join("one")).unwrap(),
        "first"
    );
    let by_digest = image.repo_digests.iter().next().unwrap().clone();
    assert_eq!(
        pull(&store, &by_digest, &options).await.unwrap().id,
        image.id
    );
    assert!(store.usage().unwrap().bytes > 0);

    let absent = format!("{}/team/app:2", registry.address);
    let error = pull(&store, &absent, &options)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains(&absent), "{error}");
    store.remove(&image.id).unwrap();
    assert!(!lower[0].exists());
}

#[test]
fn archives_are_imported() {
    let (plain, _) = layer("file", "content");
    let config = config(&[&plain]);
    let mut archive = tar::Builder::new(Vec::new());
    let manifest = serde_json::to_vec(&serde_json::json!([
        { "Config": "config.json", "RepoTags": ["imported:1"], "Layers": ["layer.tar"] }
    ]))
    .unwrap();
    for (name, bytes) in [
        ("manifest.json", &manifest),
        ("config.json", &config),
        ("layer.tar", &plain),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, &bytes[..]).unwrap();
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("image.tar.gz");
    let mut gzip = flate2::write::GzEncoder::new(
        std::fs::File::create(&file).unwrap(),
        flate2::Compression::fast(),
    );
    gzip.write_all(&archive.into_inner().unwrap()).unwrap();
    gzip.finish().unwrap();

    let store = ImageStore::open(directory.path().join("store")).unwrap();
    let images = import(&store, &file).unwrap();
    let lower = store.lower_directories(&images[0]);
    assert_eq!(
        std::fs::read_to_string(lower[0].join("file")).unwrap(),
        "content"
    );
    assert!(store.find("imported:1").unwrap().is_some());

    let garbage = directory.path().join("garbage");
    std::fs::write(&garbage, "this is no archive").unwrap();
    assert!(import(&store, &garbage).is_err());
}
