//! The whole command line: a server as `fluyt kube-apiserver` runs it.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use clap::Parser as _;
use fluyt_apiserver::Args;
use fluyt_pki::TokenKeys;
use http::Method;
use tokio::net::TcpSocket;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::common::service::eventually;
use crate::flags::Line;
use crate::flags::client::{Client, request};

/// A port that is ours: others that share it can listen there, and nobody else.
pub fn reserve() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseport(true).unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

/// Long enough for a server to refuse its flags.
const PATIENCE: Duration = Duration::from_secs(20);

pub struct Process {
    shutdown: CancellationToken,
    pub ended: JoinHandle<anyhow::Result<()>>,
}

impl Process {
    pub fn start(directory: &Path, data: &str, address: SocketAddr, flags: &[&str]) -> Self {
        let key = directory.join("sa.key");
        if !key.exists() {
            std::fs::write(&key, TokenKeys::create().unwrap().private_pem()).unwrap();
        }
        let key = format!("--service-account-signing-key-file={}", key.display());
        let flags = [&[key.as_str()], flags].concat();
        Self::start_bare(directory, data, address, &flags)
    }

    /// Without a key for tokens.
    pub fn start_bare(directory: &Path, data: &str, address: SocketAddr, flags: &[&str]) -> Self {
        let path = |name: &str| directory.join(name).display().to_string();
        let mut line = vec![
            "kube-apiserver".to_owned(),
            format!("--data-dir={}", path(data)),
            format!("--bind-address={}", address.ip()),
            format!("--secure-port={}", address.port()),
            format!("--cert-dir={}", path("certificates")),
            "--authorization-mode=RBAC".to_owned(),
        ];
        line.extend(flags.iter().map(|flag| (*flag).to_owned()));
        let args = Line::<Args>::parse_from(line).args;
        let shutdown = CancellationToken::new();
        Self {
            ended: tokio::spawn(fluyt_apiserver::run(args, shutdown.clone())),
            shutdown,
        }
    }

    pub async fn stop(self) -> anyhow::Result<()> {
        self.shutdown.cancel();
        self.ended.await.unwrap()
    }
}

#[tokio::test]
async fn a_server_without_a_certificate_makes_one_and_keeps_it() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let directory = tempfile::tempdir().unwrap();
    let files =
        ["apiserver.crt", "apiserver.key"].map(|f| directory.path().join("certificates").join(f));
    let mut made = None;
    // Each has a store of its own: who holds the first one may not be gone yet.
    for data in ["first", "second"] {
        let (_socket, address) = reserve();
        let sharing = ["--permit-port-sharing"];
        let process = Process::start(directory.path(), data, address, &sharing);
        let read = || std::fs::read_to_string(&files[0]).unwrap_or_default();
        let is_whole = |chain: &str| chain.matches("-----END").count() == 2;
        assert!(eventually(async || is_whole(&read())).await);
        let chain = read();
        // The last one is the authority.
        let authority = chain.rfind("-----BEGIN").unwrap();
        let client = Client::trusting(&chain[authority..]);
        let livez = async || {
            let request = request(Method::GET, "/livez", &[]);
            let answer = client.send(address, request).await;
            answer.is_ok_and(|(status, _, _)| status == 200)
        };
        assert!(eventually(livez).await);
        for name in ["kubernetes.default.svc", "kubernetes", "10.0.0.1"] {
            assert!(client.connect(address, name).await.is_ok(), "{name}");
        }
        process.stop().await.unwrap();
        assert_eq!(*made.get_or_insert(chain.clone()), chain);
    }
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(&files[1]).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    std::fs::remove_file(&files[1]).unwrap();
    let (_socket, address) = reserve();
    let sharing = ["--permit-port-sharing"];
    let process = Process::start(directory.path(), "data", address, &sharing);
    let error = process.ended.await.unwrap().unwrap_err().to_string();
    assert!(
        error.starts_with("error creating self-signed certificates: error reading ")
            && error.ends_with("certificate and key must be supplied as a pair"),
        "{error}"
    );
}

#[tokio::test]
async fn servers_share_a_port_where_both_want_to() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let directory = tempfile::tempdir().unwrap();
    let (_socket, address) = reserve();
    let sharing = ["--permit-port-sharing"];
    let first = Process::start(directory.path(), "first", address, &sharing);
    let key = directory.path().join("certificates/apiserver.key");
    assert!(eventually(async || key.exists()).await);
    let alone = Process::start(directory.path(), "second", address, &[]);
    let ended = tokio::time::timeout(PATIENCE, alone.ended).await;
    let error = format!("{:#}", ended.unwrap().unwrap().unwrap_err());
    assert!(
        error.starts_with(&format!("cannot listen on {address}: ")),
        "{error}"
    );
    let second = Process::start(directory.path(), "second", address, &sharing);
    let store = directory.path().join("second");
    assert!(eventually(async || store.exists()).await);
    // Whether they have got further than that is of no interest.
    for process in [first, second] {
        assert!(!process.ended.is_finished());
        let _ = process.stop().await;
    }
}

#[tokio::test]
async fn flags_that_make_no_sense_are_refused() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let directory = tempfile::tempdir().unwrap();
    let (_socket, address) = reserve();
    for (flags, expected) in [
        (
            &["--service-account-max-token-expiration=1m"][..],
            "the service-account-max-token-expiration must be between 1 hour and 2^32 seconds",
        ),
        (
            &["--service-account-jwks-uri=http://a"],
            "service-account-jwks-uri requires https scheme, parsed as: http://a",
        ),
        (
            &["--service-account-issuer=a", "--service-account-issuer=a"],
            "service-account-issuer \"a\" is already specified",
        ),
        (
            &["--service-account-issuer=:a"],
            "service-account-issuer \":a\" contained a ':' but was not a valid URL: parse \":a\": missing protocol scheme",
        ),
        (
            &["--kubernetes-service-node-port=20"],
            "kubernetes service node port range 30000-32767 doesn't contain 20",
        ),
        (
            &["--apiserver-count=0"],
            "--apiserver-count should be a positive number, but value '0' provided",
        ),
        (
            &["--tls-curve-preferences=29,29"],
            "duplicate curve preference 29",
        ),
        (
            &[
                "--admission-control=NamespaceLifecycle",
                "--enable-admission-plugins=AlwaysDeny",
            ],
            "admission-control and enable-admission-plugins/disable-admission-plugins flags are mutually exclusive",
        ),
        (
            &[
                "--feature-gates=UnknownVersionInteroperabilityProxy=false",
                "--peer-advertise-port=6444",
            ],
            "--peer-advertise-port requires UnknownVersionInteroperabilityProxy feature to be turned on",
        ),
        (
            // Which the emulated version did not have yet.
            &["--emulated-version=1.35", "--peer-ca-file=/f"],
            "--peer-ca-file requires UnknownVersionInteroperabilityProxy feature to be turned on",
        ),
        (
            &["--peer-ca-file=/f"],
            "error building peer proxy handler, proxy-cert-file not specified",
        ),
        (
            &["--coordinated-leadership-renew-deadline=15s"],
            "--coordinated-leadership-lease-duration must be greater than --coordinated-leadership-renew-deadline",
        ),
        (
            &["--service-account-signing-endpoint=/s"],
            "can't set `--service-account-signing-key-file` and/or `--service-account-key-file` with `--service-account-signing-endpoint` (They are mutually exclusive)",
        ),
        (
            &[
                "--etcd-servers=http://127.0.0.1:1",
                "--etcd-servers-overrides=/services#http://127.0.0.1:2",
            ],
            "--etcd-servers-overrides: /services cannot be kept apart: it is changed in one transaction with others, or says what they are",
        ),
    ] {
        let flags = [&["--permit-port-sharing"], flags].concat();
        let process = Process::start(directory.path(), "data", address, &flags);
        let ended = tokio::time::timeout(PATIENCE, process.ended).await;
        let error = ended.expect(expected).unwrap().unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
    for (flag, expected) in [
        (
            "--secure-port=0",
            "--secure-port 0 must be between 1 and 65535, inclusive. It cannot be turned off with 0",
        ),
        (
            "--storage-backend=etcd2",
            "--storage-backend invalid, allowed values: etcd3.",
        ),
        ("--profiling", "there are no profiles to serve"),
        (
            "--contention-profiling=true",
            "there are no profiles to serve",
        ),
        ("--debug-socket-path=/s", "there are no profiles to serve"),
        ("--enable-logs-handler", "there are no log files to serve"),
        (
            "--watch-cache=false",
            "the watch cache cannot be turned off: reads are answered from it",
        ),
        (
            "--watch-cache-sizes=pods#0",
            "the watch cache cannot be turned off: reads are answered from it",
        ),
        (
            "--watch-cache-sizes=pods#-1",
            "watch cache size cannot be negative: pods#-1",
        ),
        (
            "--watch-cache-sizes=pods",
            "invalid value of watch cache size: pods",
        ),
        (
            "--default-watch-cache-size=0",
            "the watch cache cannot be turned off: reads are answered from it",
        ),
        (
            "--etcd-servers-overrides=events#http://a",
            "--etcd-servers-overrides invalid, must be of format: group/resource#servers, where servers are URLs, semicolon separated",
        ),
        (
            "--show-hidden-metrics-for-version=1.34",
            "metrics.showHiddenMetricsForVersion: Invalid value: \"1.34\": must be omitted or have the value '1.35'; only the previous minor version is allowed",
        ),
        (
            "--tls-sni-cert-key=a",
            "expected comma separated certificate and key file paths",
        ),
    ] {
        let line = [
            "kube-apiserver",
            "--service-account-signing-key-file=/f",
            flag,
        ];
        let Err(error) = Line::<Args>::try_parse_from(line) else {
            panic!("{flag}");
        };
        assert!(error.to_string().contains(expected), "{error}");
    }
    let line = [
        "kube-apiserver",
        "--service-account-signing-key-file=/f",
        "--profiling=false",
        "--storage-backend=etcd3",
        "--permit-address-sharing",
        "--watch-cache",
        "--watch-cache-sizes=pods#100,deployments.apps#1",
        "--default-watch-cache-size=100",
        "--contention-profiling=false",
        "--debug-socket-path=",
        "--enable-logs-handler=false",
        "--kubelet-read-only-port=10255",
        "--peer-ca-file=",
        "--peer-advertise-ip=192.0.2.1",
        "--show-hidden-metrics-for-version=1.35",
        "--audit-log-compress=true",
        "--allow-privileged=True",
    ];
    assert!(Line::<Args>::try_parse_from(line).is_ok());
}
