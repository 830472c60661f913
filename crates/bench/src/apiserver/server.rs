//! A server with certificates of its own.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use fluyt_pki::{Authority, Identity, TokenKeys, Usage as For};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::client::Connection;
use crate::store::{self, Usage, usage};

pub struct Server {
    child: Child,
    pub access: Access,
    directory: tempfile::TempDir,
    peer: Option<Peer>,
}

/// Another API server to measure, and its store.
struct Peer {
    program: OsString,
    etcd: store::Server,
}

/// Upstream's kube-apiserver, if there is one.
pub fn upstream() -> Option<OsString> {
    std::env::var_os("APISERVER")
}

/// How an administrator connects.
#[derive(Clone)]
pub struct Access {
    pub port: u16,
    pub tls: Arc<ClientConfig>,
}

impl Server {
    /// Starts this program's server, or another one with an etcd of its own, and waits until it is ready.
    pub async fn start(program: Option<OsString>) -> anyhow::Result<Self> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        // On the disk that this was built on: the temporary directory may be memory.
        let disk = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/bench");
        std::fs::create_dir_all(&disk)?;
        let peer = match program {
            Some(program) => {
                let etcd = store::Server::start(Some(&store::etcd()), &disk).await?;
                Some(Peer { program, etcd })
            }
            None => None,
        };
        let directory = tempfile::tempdir_in(disk)?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?
            .local_addr()?
            .port();
        let tls = Arc::new(write_keys(directory.path())?);
        let child = spawn(directory.path(), port, peer.as_ref())?;
        let server = Self {
            child,
            access: Access { port, tls },
            directory,
            peer,
        };
        server.ready().await?;
        Ok(server)
    }

    async fn ready(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let answered = async {
                let connection = Connection::open(&self.access).await?;
                connection.get("/readyz").await
            };
            match answered.await {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
    }

    /// Kills it and starts it again on what it has stored.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.child = spawn(self.directory.path(), self.access.port, self.peer.as_ref())?;
        self.ready().await
    }

    /// Bytes on disk, in MB.
    pub fn disk(&self) -> anyhow::Result<f64> {
        let output = Command::new("du")
            .args(["-sk", "--"])
            .arg(self.directory.path())
            .output()?;
        let text = String::from_utf8(output.stdout)?;
        let kilobytes: f64 = text.split('\t').next().context("du")?.parse()?;
        Ok(kilobytes / 1024.0)
    }

    /// Of the server and its store.
    pub fn usage(&self) -> anyhow::Result<Usage> {
        let mut used = usage(&self.child.id().to_string())?;
        if let Some(peer) = &self.peer {
            let store = peer.etcd.usage()?;
            used.cpu_seconds += store.cpu_seconds;
            used.resident += store.resident;
            used.anonymous += store.anonymous;
        }
        Ok(used)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes what the server needs; what its client needs is returned.
fn write_keys(directory: &Path) -> anyhow::Result<ClientConfig> {
    let authority = Authority::create("bench")?;
    let serving = Identity {
        common_name: "kube-apiserver".into(),
        dns_names: vec!["localhost".into()],
        ..Identity::default()
    };
    let serving = authority.issue(&serving, For::Server, 1)?;
    let admin = Identity {
        common_name: "admin".into(),
        organizations: vec!["system:masters".into()],
        ..Identity::default()
    };
    let admin = authority.issue(&admin, For::Client, 1)?;
    let tokens = TokenKeys::create()?;
    for (name, text) in [
        ("ca.crt", authority.certificate_pem()),
        ("server.crt", &serving.certificate_pem),
        ("server.key", &serving.key_pem),
        ("sa.key", tokens.private_pem()),
    ] {
        std::fs::write(directory.join(name), text)?;
    }
    let mut roots = RootCertStore::empty();
    let certificates = |pem: &str| {
        CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .context("certificates")
    };
    for certificate in certificates(authority.certificate_pem())? {
        roots.add(certificate)?;
    }
    let key = PrivateKeyDer::from_pem_slice(admin.key_pem.as_bytes())?;
    let mut tls = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_client_auth_cert(certificates(&admin.certificate_pem)?, key)?;
    tls.alpn_protocols = vec![b"h2".to_vec()];
    Ok(tls)
}

fn spawn(directory: &Path, port: u16, peer: Option<&Peer>) -> anyhow::Result<Child> {
    let file = |name: &str| directory.join(name);
    let mut command = match peer {
        Some(peer) => {
            let mut other = Command::new(&peer.program);
            other.args(["--etcd-servers", &peer.etcd.url]);
            other
        }
        None => {
            let mut own = Command::new(std::env::current_exe()?);
            own.arg("kube-apiserver");
            own.arg("--data-dir").arg(file("data"));
            own
        }
    };
    command
        .arg("--client-ca-file")
        .arg(file("ca.crt"))
        .arg("--tls-cert-file")
        .arg(file("server.crt"))
        .arg("--tls-private-key-file")
        .arg(file("server.key"))
        .arg("--service-account-signing-key-file")
        .arg(file("sa.key"))
        .args(["--bind-address", "127.0.0.1"])
        .args(["--secure-port", &port.to_string()])
        .args(["--service-account-issuer", "https://kubernetes.default.svc"])
        .args(["--service-cluster-ip-range", "10.0.0.0/24"]);
    if peer.is_some() {
        // Upstream asks for what has a default here. Nobody has a token, so that any key verifies them.
        command
            .arg("--service-account-key-file")
            .arg(file("server.crt"))
            .args(["--authorization-mode", "RBAC"])
            .args(["--advertise-address", "127.0.0.1"])
            .args(["--disable-admission-plugins", "ServiceAccount"]);
    }
    let log = std::fs::File::create(file("log"))?;
    Ok(command.stdout(Stdio::null()).stderr(log).spawn()?)
}
