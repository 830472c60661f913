//! A server under load: a process of its own, so that its use of CPU and memory can be told.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use etcd_client::Client;

/// The kernel counts CPU time in these.
const TICKS_PER_SECOND: f64 = 100.0;

/// Both may grow as large as the loads need.
const QUOTA: &str = "17179869184";

pub struct Server {
    pub url: String,
    directory: tempfile::TempDir,
    child: Child,
    etcd: Option<std::path::PathBuf>,
}

/// MB of memory, and CPU since the process began.
#[derive(Clone, Copy, Default)]
pub struct Usage {
    pub cpu_seconds: f64,
    pub resident: f64,
    pub anonymous: f64,
}

fn free_url() -> anyhow::Result<String> {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    Ok(format!("http://127.0.0.1:{port}"))
}

pub fn version(etcd: &Path) -> anyhow::Result<String> {
    let output = Command::new(etcd).arg("--version").output()?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

impl Server {
    /// An etcd, or without one this program's store, served by this program.
    pub async fn start(etcd: Option<&Path>, disk: &Path) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir_in(disk)?;
        let (url, child) = spawn(etcd, directory.path())?;
        let server = Self {
            url,
            directory,
            child,
            etcd: etcd.map(Path::to_owned),
        };
        server.ready().await?;
        Ok(server)
    }

    async fn ready(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let mut client = self.client().await?;
            match client.get("ready", None).await {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error.into()),
                Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
    }

    /// Stops it as an operator would, and starts it again. Seconds until it answers.
    pub async fn restart(&mut self) -> anyhow::Result<f64> {
        let pid = self.child.id().to_string();
        ensure!(Command::new("kill").arg(pid).status()?.success());
        self.child.wait()?;
        let begin = Instant::now();
        (self.url, self.child) = spawn(self.etcd.as_deref(), self.directory.path())?;
        self.ready().await?;
        Ok(begin.elapsed().as_secs_f64())
    }

    pub fn name(&self) -> &'static str {
        if self.etcd.is_some() { "etcd" } else { "fluyt" }
    }

    pub async fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::connect([&self.url], None).await?)
    }

    pub fn usage(&self) -> anyhow::Result<Usage> {
        usage(&self.child.id().to_string())
    }

    /// MB on disk.
    pub fn disk(&self) -> anyhow::Result<f64> {
        let output = Command::new("du")
            .args(["-sk"])
            .arg(self.directory.path())
            .output()?;
        let text = String::from_utf8(output.stdout)?;
        let kilobytes: f64 = text
            .split_ascii_whitespace()
            .next()
            .context("du")?
            .parse()?;
        Ok(kilobytes * 1024.0 / 1e6)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(etcd: Option<&Path>, directory: &Path) -> anyhow::Result<(String, Child)> {
    let url = free_url()?;
    let mut command = match etcd {
        Some(etcd) => {
            let peer = free_url()?;
            let mut command = Command::new(etcd);
            command
                .env_clear()
                .args(["--listen-peer-urls", &peer])
                .args(["--initial-advertise-peer-urls", &peer])
                .args(["--initial-cluster", &format!("default={peer}")]);
            command
        }
        None => {
            let mut command = Command::new(std::env::current_exe()?);
            command.arg("etcd");
            command
        }
    };
    command
        .arg("--data-dir")
        .arg(directory.join("data"))
        .args([
            "--listen-client-urls",
            &url,
            "--advertise-client-urls",
            &url,
        ])
        .args(["--quota-backend-bytes", QUOTA])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Ok((url, command.spawn()?))
}

/// Of a process; `self` is this one.
pub fn usage(pid: &str) -> anyhow::Result<Usage> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit_once(')').context("/proc/<pid>/stat")?.1;
    let ticks: f64 = fields
        .split_ascii_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|t| t.parse::<f64>().ok())
        .sum();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let megabytes = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name));
        let kib = line.and_then(|l| l.split_ascii_whitespace().next()?.parse::<f64>().ok());
        kib.unwrap_or(0.0) * 1024.0 / 1e6
    };
    Ok(Usage {
        cpu_seconds: ticks / TICKS_PER_SECOND,
        resident: megabytes("VmRSS:"),
        anonymous: megabytes("RssAnon:"),
    })
}
