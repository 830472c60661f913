//! A server under test: `fluyt etcd` in this process, or a real etcd as a child.

#![allow(dead_code, reason = "each test file uses a part")]

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;

use clap::Parser as _;
use etcd_client::Client;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

#[derive(clap::Parser)]
struct Cli {
    #[command(flatten)]
    args: fluyt_etcd::Args,
}

pub mod process;
pub mod proxy;
pub mod random;

/// Runs `fluyt etcd` with these arguments in this process, to its end.
pub async fn fluyt_etcd(arguments: &[&str]) -> anyhow::Result<()> {
    let line = ["etcd"].iter().chain(arguments);
    let args = Cli::try_parse_from(line).unwrap().args;
    fluyt_etcd::run(args, CancellationToken::new()).await
}

pub struct Server {
    pub url: String,
    pub directory: Arc<TempDir>,
    shutdown: CancellationToken,
    task: Option<tokio::task::JoinHandle<anyhow::Result<()>>>,
    child: Option<Child>,
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

impl Server {
    pub async fn fluyt(flags: &[&str]) -> Self {
        Self::fluyt_at(&format!("http://127.0.0.1:{}", free_port()), flags).await
    }

    pub async fn fluyt_at(url: &str, flags: &[&str]) -> Self {
        Self::fluyt_in(Arc::new(tempfile::tempdir().unwrap()), url, flags).await
    }

    /// In a directory that may have been used before.
    pub async fn fluyt_in(directory: Arc<TempDir>, url: &str, flags: &[&str]) -> Self {
        let path = directory.path().to_str().unwrap();
        let mut line = vec!["etcd", "--data-dir", path, "--listen-client-urls", url];
        line.extend(flags);
        let shutdown = CancellationToken::new();
        let args = Cli::try_parse_from(line).unwrap().args;
        let task = tokio::spawn(fluyt_etcd::run(args, shutdown.clone()));
        let server = Self {
            url: url.to_owned(),
            directory,
            shutdown,
            task: Some(task),
            child: None,
        };
        server.ready().await;
        server
    }

    /// A real etcd: Debian's, or the one that `FLUYT_TEST_ETCD` names.
    pub async fn etcd() -> Self {
        Self::etcd_with("http", &[]).await
    }

    pub async fn etcd_with(scheme: &str, flags: &[&str]) -> Self {
        let peer = format!("http://127.0.0.1:{}", free_port());
        Self::etcd_in(Arc::new(tempfile::tempdir().unwrap()), &peer, scheme, flags).await
    }

    /// With the data in `data` under a directory.
    pub async fn etcd_in(
        directory: Arc<TempDir>,
        peer: &str,
        scheme: &str,
        flags: &[&str],
    ) -> Self {
        let url = format!("{scheme}://127.0.0.1:{}", free_port());
        let program = std::env::var("FLUYT_TEST_ETCD").unwrap_or_else(|_| "/usr/bin/etcd".into());
        let child = Command::new(program)
            .env_clear()
            .args(flags)
            .arg("--data-dir")
            .arg(directory.path().join("data"))
            .args([
                "--listen-client-urls",
                &url,
                "--advertise-client-urls",
                &url,
            ])
            .args(["--listen-peer-urls", peer])
            .args(["--initial-advertise-peer-urls", peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self {
            url,
            directory,
            shutdown: CancellationToken::new(),
            task: None,
            child: Some(child),
        };
        server.ready().await;
        server
    }

    /// Sends a signal to a child process.
    pub fn signal(&self, name: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        let sent = Command::new("kill").args([name, &pid]).status().unwrap();
        assert!(sent.success());
    }

    pub fn address(&self) -> &str {
        self.url.split_once("://").unwrap().1
    }

    async fn ready(&self) {
        while tokio::net::TcpStream::connect(self.address())
            .await
            .is_err()
        {
            if let Some(task) = &self.task {
                assert!(!task.is_finished(), "the server ended");
            }
            tokio::task::yield_now().await;
        }
        // etcd accepts connections a moment before it serves them.
        let plain = self.child.is_some() && self.url.starts_with("http://");
        while plain && !self.get("/health").await.contains("true") {
            tokio::task::yield_now().await;
        }
    }

    pub async fn client(&self) -> Client {
        Client::connect([&self.url], None).await.unwrap()
    }

    pub fn etcdctl_command(&self) -> Command {
        let mut command = Command::new("/usr/bin/etcdctl");
        command
            .env_clear()
            .env("ETCDCTL_API", "3")
            .env("PATH", "/usr/bin:/bin")
            // Without a scheme: given one, etcdctl 3.4 puts the whole URL into `:authority` of some calls, which our
            // HTTP/2 library refuses as malformed.
            .args(["--endpoints", self.address()]);
        command
    }

    pub async fn etcdctl(&self, arguments: &[&str]) -> Output {
        let mut command = self.etcdctl_command();
        command.args(arguments);
        tokio::task::spawn_blocking(move || command.output().unwrap())
            .await
            .unwrap()
    }

    /// What etcdctl printed; it must have succeeded.
    pub async fn ctl(&self, arguments: &[&str]) -> String {
        let output = self.etcdctl(arguments).await;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "etcdctl {arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What etcdctl complained of; it must have failed.
    pub async fn ctl_error(&self, arguments: &[&str]) -> String {
        let output = self.etcdctl(arguments).await;
        assert!(!output.status.success(), "etcdctl {arguments:?} succeeded");
        String::from_utf8(output.stderr).unwrap()
    }

    pub async fn get(&self, path: &str) -> String {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::TcpStream::connect(self.address())
            .await
            .unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let mut answer = String::new();
        // A server that is only starting may end the connection.
        if stream.write_all(request.as_bytes()).await.is_ok() {
            let _ = stream.read_to_string(&mut answer).await;
        }
        answer
    }

    /// Stops a server of this process.
    pub async fn stop(&mut self) {
        self.shutdown.cancel();
        self.task.take().unwrap().await.unwrap().unwrap();
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown.cancel();
        if let Some(child) = &mut self.child {
            child.kill().unwrap();
            // A stopped process dies as well.
            child.wait().unwrap();
        }
    }
}
