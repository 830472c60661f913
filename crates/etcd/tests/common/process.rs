//! `fluyt etcd` as a process of its own, which can be killed: the test binary runs itself again.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use clap::Parser as _;
use etcd_client::{Client, ConnectOptions};
use tokio_util::sync::CancellationToken;

use super::{Cli, free_port};

const ARGUMENTS: &str = "FLUYT_TEST_ETCD_ARGUMENTS";

/// To be called by a test with the name `server_process` that is ignored otherwise.
pub async fn serve() {
    let Ok(line) = std::env::var(ARGUMENTS) else {
        return;
    };
    let args = Cli::try_parse_from(line.split('\n')).unwrap().args;
    fluyt_etcd::run(args, CancellationToken::new())
        .await
        .unwrap();
}

pub struct Process {
    pub url: String,
    child: Child,
}

impl Process {
    pub fn start(directory: &Path, flags: &[&str]) -> Self {
        let url = format!("http://127.0.0.1:{}", free_port());
        let mut line = vec!["etcd", "--data-dir", directory.to_str().unwrap()];
        line.extend(["--listen-client-urls", &url]);
        line.extend(flags);
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "server_process", "--ignored", "--nocapture"])
            .env(ARGUMENTS, line.join("\n"))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { url, child }
    }

    /// A client, once the server serves.
    pub async fn client(&mut self) -> Client {
        let options = ConnectOptions::new().with_connect_timeout(Duration::from_secs(1));
        let mut client = Client::connect([&self.url], Some(options)).await.unwrap();
        while client.status().await.is_err() {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "the server ended: {ended:?}");
            tokio::task::yield_now().await;
        }
        client
    }

    /// kill -9.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// A directory on the disk that the build is on, which is no memory file system.
pub fn on_disk() -> tempfile::TempDir {
    tempfile::tempdir_in(PathBuf::from(env!("CARGO_TARGET_TMPDIR"))).unwrap()
}

/// Rounds or operations of a test's long form.
pub fn setting(name: &str, short: usize) -> usize {
    std::env::var(name).map_or(short, |n| n.parse().unwrap())
}
