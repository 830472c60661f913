//! `fluyt etcd`: the embedded engine served alone, with etcd's flags.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use fluyt_transport::{Settings, sniff};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auto_compaction::{self, Mode, Retention};
use crate::embedded::{Embedded, snapshot};
use crate::grpc::{CLUSTER_VERSION, ETCD_VERSION, Member, Options, Service};

/// How long requests under way may take once the server is told to stop.
const DRAIN: Duration = Duration::from_secs(5);
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Flags of etcd.
#[derive(clap::Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Name of this member.
    #[arg(long, default_value = "default")]
    name: String,
    /// Directory of the store; `NAME.etcd` when not given.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// URLs to listen on, http or https.
    #[arg(long, value_delimiter = ',', default_value = "http://localhost:2379")]
    listen_client_urls: Vec<String>,
    /// URLs that clients are told to use; those listened on when not given.
    #[arg(long, value_delimiter = ',')]
    advertise_client_urls: Vec<String>,
    /// More URLs on which only /metrics and /health are served.
    #[arg(long, value_delimiter = ',')]
    listen_metrics_urls: Vec<String>,
    /// Certificate chain for https, in PEM.
    #[arg(long, requires = "key_file")]
    cert_file: Option<PathBuf>,
    /// Its private key, in PEM.
    #[arg(long, requires = "cert_file")]
    key_file: Option<PathBuf>,
    /// Authorities that client certificates are verified with, in PEM.
    #[arg(long)]
    trusted_ca_file: Option<PathBuf>,
    /// Refuse clients without a certificate of a trusted authority.
    #[arg(long, requires = "trusted_ca_file", num_args = 0..=1, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    client_cert_auth: bool,
    /// Operations allowed in one transaction.
    #[arg(long, default_value_t = 128)]
    max_txn_ops: usize,
    /// Size of the largest request.
    #[arg(long, default_value_t = 3 << 19)]
    max_request_bytes: usize,
    /// Bytes on disk at which writes are refused and the alarm NOSPACE is raised; 0 is 2 GiB, negative is no limit.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    quota_backend_bytes: i64,
    /// Whether the retention is a time (`periodic`) or a number of revisions (`revision`).
    #[arg(long, value_enum, default_value = "periodic")]
    auto_compaction_mode: Mode,
    /// How much history to keep: hours, a duration like `30m`, or a number of revisions. 0 keeps all.
    #[arg(long, default_value = "0")]
    auto_compaction_retention: String,
    /// How often idle watches are told the revision.
    #[arg(long, default_value = "10m", value_parser = auto_compaction::duration)]
    experimental_watch_progress_notify_interval: Duration,
}

/// Instead of serving.
#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Snapshot files, etcd's own and those of `etcdctl snapshot save` from this server
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
}

#[derive(clap::Subcommand, Debug)]
enum SnapshotCommand {
    /// Make a new data directory from a snapshot
    Restore {
        file: PathBuf,
        #[arg(long)]
        data_dir: PathBuf,
        /// Accept a file without a checksum, such as a copy of a member's database.
        #[arg(long)]
        skip_hash_check: bool,
    },
    /// Hash, revision, number of keys and size of a snapshot
    Status { file: PathBuf },
}

impl SnapshotCommand {
    fn run(&self) -> anyhow::Result<()> {
        match self {
            Self::Restore {
                file,
                data_dir,
                skip_hash_check,
            } => {
                let status = snapshot::restore(file, data_dir, *skip_hash_check)?;
                println!(
                    "restored {} keys at revision {} into {}",
                    status.total_keys,
                    status.revision,
                    data_dir.display()
                );
            }
            Self::Status { file } => {
                let status = snapshot::status(file)?;
                println!(
                    "{:x}, {}, {}, {}",
                    status.hash,
                    status.revision,
                    status.total_keys,
                    human(status.total_bytes)
                );
            }
        }
        Ok(())
    }
}

/// Bytes as `etcdctl` writes them: powers of 1000, two digits.
fn human(bytes: u64) -> String {
    let mut unit = 0;
    #[expect(clippy::cast_precision_loss)]
    let mut number = bytes as f64;
    while number >= 1000.0 && unit < UNITS.len() - 1 {
        number /= 1000.0;
        unit += 1;
    }
    let digits = usize::from(number < 10.0 && unit > 0);
    format!("{number:.digits$} {}", UNITS[unit])
}

const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];

/// Runs until shutdown.
///
/// # Errors
/// When a flag makes no sense, the store cannot be opened, or an address is taken.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    if let Some(Command::Snapshot(command)) = &args.command {
        return command.run();
    }
    let retention = Retention::parse(args.auto_compaction_mode, &args.auto_compaction_retention)?;
    let tls = tls(&args)?;
    let mut client = Vec::new();
    for url in &args.listen_client_urls {
        client.push(Listener::bind(url, tls.as_ref()).await?);
    }
    let mut metrics = Vec::new();
    for url in &args.listen_metrics_urls {
        metrics.push(Listener::bind(url, tls.as_ref()).await?);
    }
    let directory = args
        .data_dir
        .unwrap_or_else(|| PathBuf::from(format!("{}.etcd", args.name)));
    let store = Arc::new(Embedded::open_with_quota(
        &directory,
        args.quota_backend_bytes,
    )?);
    let advertise_client_urls = if args.advertise_client_urls.is_empty() {
        args.listen_client_urls
    } else {
        args.advertise_client_urls
    };
    let options = Options {
        name: args.name,
        advertise_client_urls,
        max_txn_ops: args.max_txn_ops,
        max_request_bytes: args.max_request_bytes,
        progress_interval: args.experimental_watch_progress_notify_interval,
    };
    let member = Member::new(store.clone(), options, shutdown.clone());
    let pages = pages(member.clone());
    let everything = Service::new(&member, pages.clone());
    let tasks = TaskTracker::new();
    if let Some(retention) = retention {
        tasks.spawn(auto_compaction::run(store, retention, shutdown.clone()));
    }
    for (listeners, service) in [(client, everything), (metrics, Service::pages(pages))] {
        for listener in listeners {
            tasks.spawn(listener.serve(service.clone(), tasks.clone(), shutdown.clone()));
        }
    }
    tracing::info!(directory = %directory.display(), "ready to serve client requests");
    shutdown.cancelled().await;
    tasks.close();
    if tokio::time::timeout(DRAIN, tasks.wait()).await.is_err() {
        tracing::warn!("requests under way are cut off");
    }
    Ok(())
}

/// What is served over plain HTTP beside gRPC.
fn pages(member: Member) -> axum::Router {
    axum::Router::new()
        .route("/health", get(health))
        .route("/version", get(version))
        .route("/metrics", get(metrics))
        .with_state(member)
}

fn json(body: String) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

async fn health(State(member): State<Member>) -> Response {
    match member.alarm() {
        None => json(r#"{"health":"true","reason":""}"#.into()),
        Some(alarm) => {
            let body = json(format!(r#"{{"health":"false","reason":"ALARM {alarm}"}}"#));
            (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
        }
    }
}

async fn version() -> Response {
    json(format!(
        r#"{{"etcdserver":"{ETCD_VERSION}","etcdcluster":"{CLUSTER_VERSION}"}}"#
    ))
}

async fn metrics(State(member): State<Member>) -> Response {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (kind, member.metrics_page()).into_response()
}

/// One URL listened on.
struct Listener {
    socket: TcpListener,
    tls: Option<TlsAcceptor>,
}

impl Listener {
    async fn bind(url: &str, tls: Option<&TlsAcceptor>) -> anyhow::Result<Self> {
        let (scheme, address) = url
            .split_once("://")
            .with_context(|| format!("`{url}` is not a URL like http://127.0.0.1:2379"))?;
        let tls = match (scheme, tls) {
            ("http", _) => None,
            ("https", Some(tls)) => Some(tls.clone()),
            ("https", None) => bail!("{url} needs --cert-file and --key-file"),
            _ => bail!("{url}: only http and https can be served"),
        };
        let socket = TcpListener::bind(address.trim_end_matches('/'))
            .await
            .with_context(|| format!("cannot listen on {url}"))?;
        Ok(Self { socket, tls })
    }

    async fn serve(self, service: Service, tasks: TaskTracker, shutdown: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                accepted = self.socket.accept() => accepted,
                () = shutdown.cancelled() => return,
            };
            match accepted {
                Ok((stream, _)) => {
                    let (service, tls, shutdown) =
                        (service.clone(), self.tls.clone(), shutdown.clone());
                    tasks.spawn(connection(stream, tls, service, shutdown));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    // Out of descriptors, most likely: trying again at once would spin.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    service: Service,
    shutdown: CancellationToken,
) {
    // Small messages go back and forth: waiting to fill packets would cost each of them a delay.
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else {
        return unknown(stream, service, shutdown).await;
    };
    match tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
        Ok(Ok(stream)) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => {
            http2(stream, service, shutdown).await;
        }
        Ok(Ok(stream)) => unknown(stream, service, shutdown).await,
        Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
        Err(_) => tracing::debug!("TLS handshake took too long"),
    }
}

/// Serves a client of whichever protocol.
async fn unknown(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    service: Service,
    shutdown: CancellationToken,
) {
    let sniffed = tokio::select! {
        sniffed = tokio::time::timeout(HANDSHAKE, sniff(stream)) => sniffed,
        () = shutdown.cancelled() => return,
    };
    match sniffed {
        Ok(Ok((true, stream))) => http2(stream, service, shutdown).await,
        Ok(Ok((false, stream))) => http1(stream, service, shutdown).await,
        Ok(Err(error)) => tracing::debug!(%error, "a connection broke"),
        Err(_) => tracing::debug!("a client said nothing"),
    }
}

async fn http2(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    service: Service,
    shutdown: CancellationToken,
) {
    let serve = |request| service.call(request);
    let stopped = shutdown.cancelled();
    if let Err(error) = fluyt_transport::serve(stream, Settings::default(), serve, stopped).await {
        tracing::debug!(%error, "a connection broke");
    }
}

async fn http1(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    service: Service,
    shutdown: CancellationToken,
) {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE);
    let service = TowerToHyperService::new(service.router());
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}

fn tls(args: &Args) -> anyhow::Result<Option<TlsAcceptor>> {
    let (Some(certificate), Some(key)) = (&args.cert_file, &args.key_file) else {
        ensure!(
            !args.client_cert_auth,
            "--client-cert-auth needs --cert-file and --key-file"
        );
        return Ok(None);
    };
    let name = |path: &Path| path.display().to_string();
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| name(certificate))?;
    let private = PrivateKeyDer::from_pem_file(key).with_context(|| name(key))?;
    let builder = ServerConfig::builder();
    // As in etcd, certificates are asked for only when they are demanded.
    let builder = match (&args.trusted_ca_file, args.client_cert_auth) {
        (Some(authorities), true) => {
            let mut roots = RootCertStore::empty();
            for authority in
                CertificateDer::pem_file_iter(authorities).with_context(|| name(authorities))?
            {
                roots.add(authority.with_context(|| name(authorities))?)?;
            }
            builder
                .with_client_cert_verifier(WebPkiClientVerifier::builder(Arc::new(roots)).build()?)
        }
        _ => builder.with_no_client_auth(),
    };
    let mut config = builder
        .with_single_cert(chain, private)
        .with_context(|| name(certificate))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}
