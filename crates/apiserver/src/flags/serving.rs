//! Flags about where the server listens, and with which certificate.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use fluyt_pki::{Authority, Identity, Usage};
use tokio::net::TcpListener;

use crate::listen::{Pair, Sharing};

/// Names under which pods know the server.
const NAMES: [&str; 3] = ["kubernetes.default.svc", "kubernetes.default", "kubernetes"];

/// How long a certificate that the server makes for itself is good.
const DAYS: i64 = 365;

#[derive(clap::Args, Debug)]
pub struct ServingArgs {
    #[arg(long, default_value = "0.0.0.0")]
    bind_address: IpAddr,
    #[arg(long, default_value_t = 6443, value_parser = port)]
    secure_port: u16,
    #[command(flatten)]
    sharing: Sharing,
    /// Address that pods reach through the kubernetes service.
    #[arg(long)]
    advertise_address: Option<IpAddr>,
    /// Host, or host and port, by which discovery documents name the server; the advertised address when not given.
    #[arg(long)]
    pub(super) external_hostname: Option<String>,
    /// The serving certificate and those that lead to its authority, PEM. Without it, a certificate is made.
    #[arg(long, requires = "tls_private_key_file")]
    tls_cert_file: Option<PathBuf>,
    #[arg(long, requires = "tls_cert_file")]
    tls_private_key_file: Option<PathBuf>,
    /// Directory of the certificate that the server makes when it is given none: apiserver.crt and apiserver.key.
    #[arg(long, default_value = "/var/run/kubernetes")]
    cert_dir: PathBuf,
}

fn port(text: &str) -> Result<u16, String> {
    text.parse().ok().filter(|port| *port > 0).ok_or_else(|| {
        format!(
            "--secure-port {text} must be between 1 and 65535, inclusive. It cannot be turned off with 0"
        )
    })
}

impl ServingArgs {
    pub(super) fn bind(&self) -> anyhow::Result<TcpListener> {
        let address = SocketAddr::new(self.bind_address, self.secure_port);
        let bound = self.sharing.bind(address);
        bound.with_context(|| format!("cannot listen on {address}"))
    }

    pub(super) fn advertised(&self) -> SocketAddr {
        let address = self.advertise_address.unwrap_or_else(|| {
            if self.bind_address.is_unspecified() {
                IpAddr::V4(Ipv4Addr::LOCALHOST)
            } else {
                self.bind_address
            }
        });
        SocketAddr::new(address, self.secure_port)
    }

    /// The files of the serving certificate, which are made if there are to be some of the server's own. `service` is the
    /// address of the `kubernetes` service.
    ///
    /// # Errors
    /// When half of a pair is missing, or the directory cannot be written.
    pub(super) fn certificate(&self, service: Option<IpAddr>) -> anyhow::Result<Pair> {
        if let (Some(certificate), Some(key)) = (&self.tls_cert_file, &self.tls_private_key_file) {
            return Ok(Pair {
                certificate: certificate.clone(),
                key: key.clone(),
            });
        }
        let pair = Pair {
            certificate: self.cert_dir.join("apiserver.crt"),
            key: self.cert_dir.join("apiserver.key"),
        };
        let readable = |path: &Path| File::open(path).is_ok();
        let missing = match (readable(&pair.certificate), readable(&pair.key)) {
            (true, true) => return Ok(pair),
            (false, false) => None,
            (false, true) => Some(&pair.certificate),
            (true, false) => Some(&pair.key),
        };
        if let Some(path) = missing {
            bail!(
                "error creating self-signed certificates: error reading {}, certificate and key must be supplied as a pair",
                path.display()
            );
        }
        self.make(&pair, service)
            .context("error creating self-signed certificates")?;
        let (certificate, key) = (pair.certificate.display(), pair.key.display());
        tracing::info!("Generated self-signed cert ({certificate}, {key})");
        Ok(pair)
    }

    /// Makes an authority that nobody will have, and one certificate of it.
    fn make(&self, pair: &Pair, service: Option<IpAddr>) -> anyhow::Result<()> {
        let host = self.advertised().ip();
        let now = jiff::Timestamp::now().as_second();
        let authority = Authority::create(&format!("{host}-ca@{now}"))?;
        let mut identity = Identity {
            common_name: format!("{host}@{now}"),
            dns_names: NAMES.map(str::to_owned).into(),
            addresses: std::iter::once(host).chain(service).collect(),
            ..Identity::default()
        };
        if self.bind_address.is_unspecified() {
            identity.dns_names.push("localhost".into());
        } else {
            identity.addresses.push(self.bind_address);
        }
        let issued = authority.issue(&identity, Usage::Server, DAYS)?;
        let chain = issued.certificate_pem + authority.certificate_pem();
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&self.cert_dir)
            .with_context(|| self.cert_dir.display().to_string())?;
        let mut key = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&pair.key)
            .with_context(|| pair.key.display().to_string())?;
        key.write_all(issued.key_pem.as_bytes())?;
        fs::write(&pair.certificate, chain).with_context(|| pair.certificate.display().to_string())
    }
}
