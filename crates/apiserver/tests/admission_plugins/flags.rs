//! The flags of the command line.

use std::path::PathBuf;

use super::*;
use clap::Parser;
use fluyt_apiserver::Args;
use fluyt_pki::{Authority, Identity, TokenKeys, Usage};
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_util::sync::CancellationToken;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

fn free_port() -> u16 {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    free.local_addr().unwrap().port()
}

/// The files that a server cannot do without, and how a client with all rights reaches it.
struct Files {
    directory: TempDir,
    authority: Authority,
}

impl Files {
    fn new() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let files = Self {
            directory: tempfile::tempdir().unwrap(),
            authority: Authority::create("test").unwrap(),
        };
        let identity = Identity {
            common_name: "kube-apiserver".into(),
            addresses: vec!["127.0.0.1".parse().unwrap()],
            ..Identity::default()
        };
        let serving = files.authority.issue(&identity, Usage::Server, 1).unwrap();
        files.write("ca.crt", files.authority.certificate_pem());
        files.write("tls.crt", &serving.certificate_pem);
        files.write("tls.key", &serving.key_pem);
        files.write("sa.key", TokenKeys::create().unwrap().private_pem());
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    /// Runs a server with more flags until it is told to stop.
    async fn run(
        &self,
        port: u16,
        more: &[String],
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        let file = |flag: &str, name: &str| format!("--{flag}={}", self.path(name).display());
        let mut line = vec![
            "kube-apiserver".to_owned(),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={port}"),
            file("data-dir", "store"),
            file("client-ca-file", "ca.crt"),
            file("tls-cert-file", "tls.crt"),
            file("tls-private-key-file", "tls.key"),
            file("service-account-signing-key-file", "sa.key"),
        ];
        line.extend_from_slice(more);
        let args = Cli::try_parse_from(line).unwrap().args;
        Box::pin(fluyt_apiserver::run(args, shutdown)).await
    }

    /// Why a server does not start.
    async fn refused(&self, more: &[&str]) -> String {
        let more: Vec<String> = more.iter().map(|flag| (*flag).to_owned()).collect();
        let ran = self.run(free_port(), &more, CancellationToken::new()).await;
        format!("{:#}", ran.unwrap_err())
    }

    /// Posts an object over TLS as a member of `system:masters`, once the server listens.
    async fn post(&self, port: u16, path: &str, object: Value) -> (StatusCode, Value) {
        let identity = Identity {
            common_name: "admin".into(),
            organizations: vec!["system:masters".into()],
            ..Identity::default()
        };
        let client = self.authority.issue(&identity, Usage::Client, 1).unwrap();
        let certificates = |pem: &str| -> Vec<CertificateDer<'static>> {
            let all = CertificateDer::pem_slice_iter(pem.as_bytes());
            all.collect::<Result<_, _>>().unwrap()
        };
        let mut roots = rustls::RootCertStore::empty();
        for certificate in certificates(self.authority.certificate_pem()) {
            roots.add(certificate).unwrap();
        }
        let key = PrivateKeyDer::from_pem_slice(client.key_pem.as_bytes()).unwrap();
        let tls = rustls::ClientConfig::builder()
            .with_root_certificates(roots)
            .with_client_auth_cert(certificates(&client.certificate_pem), key)
            .unwrap();
        let stream = loop {
            match tokio::net::TcpStream::connect(("127.0.0.1", port)).await {
                Ok(stream) => break stream,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
        let stream = connector.connect(name, stream).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        let request = Request::post(path)
            .header("host", "127.0.0.1")
            .header("content-type", "application/json")
            .body(Full::new(bytes::Bytes::from(object.to_string())))
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap())
    }
}

#[tokio::test]
async fn what_makes_no_sense_keeps_the_server_from_starting() {
    let files = Files::new();
    assert_eq!(
        files
            .refused(&["--enable-admission-plugins=AlwaysAdmit,Captain"])
            .await,
        "enable-admission-plugins plugin \"Captain\" is unknown"
    );
    let both = [
        "--enable-admission-plugins=Priority",
        "--disable-admission-plugins=Priority",
    ];
    assert_eq!(
        files.refused(&both).await,
        "[Priority] in enable-admission-plugins and disable-admission-plugins overlapped"
    );
    assert_eq!(
        files
            .refused(&["--enable-admission-plugins=EventRateLimit"])
            .await,
        "failed to apply admission: couldn't init admission plugin \"EventRateLimit\": limits: Invalid value: null: must not be empty"
    );
    let flag = |path: PathBuf| format!("--admission-control-config-file={}", path.display());
    files.write("wrong.yaml", "apiVersion: v1\nkind: Pod");
    let wrong = flag(files.path("wrong.yaml"));
    assert_eq!(
        files.refused(&[&wrong]).await,
        "failed to apply admission: failed to read plugin config: no kind \"Pod\" is registered for version \"v1\" in scheme \"k8s.io/apiserver/pkg/server/options/admission.go:51\""
    );
    // The configuration of a plugin that does not run is not looked for.
    let unread = json!([{"name": "EventRateLimit", "path": "absent"}, {"name": "PodSecurity", "path": "absent"}]);
    let file = flag(configuration(files.directory.path(), &unread));
    let absent = files.refused(&[&file]).await;
    let expected = format!(
        "failed to apply admission: Couldn't open admission plugin configuration {}: ",
        files.path("absent").display()
    );
    assert!(absent.starts_with(&expected), "{absent}");
}

#[tokio::test]
async fn manifests_that_make_no_sense_keep_it_from_starting() {
    let files = Files::new();
    let place = files.path("manifests");
    std::fs::create_dir(&place).unwrap();
    std::fs::write(place.join("a.yaml"), "apiVersion: v1\nkind: Pod").unwrap();
    let place = place.display();
    let plugins = json!([{"name": "ValidatingAdmissionWebhook", "configuration": {
        "apiVersion": "apiserver.config.k8s.io/v1", "kind": "WebhookAdmissionConfiguration",
        "staticManifestsDir": place.to_string()}}]);
    let file = configuration(files.directory.path(), &plugins);
    let flag = format!("--admission-control-config-file={}", file.display());
    assert_eq!(
        files.refused(&[&flag]).await,
        "failed to apply admission: couldn't init admission plugin \"ValidatingAdmissionWebhook\": staticManifestsDir: Forbidden: staticManifestsDir requires the ManifestBasedAdmissionControlConfig feature gate to be enabled"
    );
    let on = "--feature-gates=ManifestBasedAdmissionControlConfig=true";
    assert_eq!(
        files.refused(&[&flag, on]).await,
        format!(
            "failed to apply admission: failed to initialize admission plugin \"ValidatingAdmissionWebhook\": failed to load static webhook manifests from \"{place}\": error loading {place}/a.yaml: no kind \"Pod\" is registered for version \"v1\" in scheme \"k8s.io/kubernetes/pkg/admission/plugin/webhook/manifest/loader/loader.go:41\""
        )
    );
}

#[tokio::test]
async fn plugins_are_configured_by_the_file() {
    let files = Files::new();
    let defaults = json!({"enforce": "baseline"});
    let security = json!({"apiVersion": "pod-security.admission.config.k8s.io/v1", "kind": "PodSecurityConfiguration", "defaults": defaults});
    files.write("security.json", &security.to_string());
    let plugins = json!([{"name": "PodSecurity", "path": "security.json"}]);
    let file = configuration(files.directory.path(), &plugins);
    let port = free_port();
    let more = [
        format!("--admission-control-config-file={}", file.display()),
        "--enable-admission-plugins=NamespaceAutoProvision".to_owned(),
        "--disable-admission-plugins=ServiceAccount".to_owned(),
    ];
    let shutdown = CancellationToken::new();
    let using = async {
        let pods = "/api/v1/namespaces/new/pods";
        let hostile = pod_with("hostile", json!({"hostNetwork": true}));
        assert_refused(
            files.post(port, pods, hostile).await,
            403,
            "pods \"hostile\" is forbidden: violates PodSecurity \"baseline:latest\": host namespaces (hostNetwork=true)",
        );
        made(files.post(port, pods, crate::common::pod("p")).await);
        shutdown.cancel();
    };
    let running = files.run(port, &more, shutdown.clone());
    tokio::pin!(running);
    tokio::select! {
        ran = &mut running => panic!("{ran:?}"),
        () = using => {}
    }
    running.await.unwrap();
}
