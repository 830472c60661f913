//! A cluster's master as a process of its own, kept running.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use super::keeper::Kept;
use super::record::Cluster;
use crate::files;
use crate::master::{Config, LISTENING};
use crate::process::{Process, ProcessId};

/// How long a master may take to end in order.
const GRACE: Duration = Duration::from_secs(15);

/// A master.
pub struct MasterProcess {
    pub config: Config,
}

/// What the master of a cluster is told.
#[must_use]
pub fn config(data: &Path, cluster: &Cluster) -> Config {
    Config {
        cluster: cluster.name.clone(),
        directory: cluster.directory(data),
        network_namespace: cluster.cluster_network().path(),
        gateway: cluster.network.gateway().addr(),
        port: cluster.port,
        fqdn: cluster.fqdn.clone(),
        pod_cidr: cluster.network.pods,
        service_cidr: cluster.network.services,
        dns_service_ip: cluster.network.dns_service_ip,
        load_balancer_pool: cluster.network.load_balancer_pool(),
        bootstrap_token: cluster.bootstrap_token.clone(),
    }
}

impl MasterProcess {
    fn identity(&self) -> PathBuf {
        self.config.directory.join("master-process.json")
    }
}

#[async_trait]
impl Kept for MasterProcess {
    fn name(&self) -> String {
        format!("master of {}", self.config.cluster)
    }

    async fn adopt(&self) -> anyhow::Result<Option<Process>> {
        let Ok(text) = std::fs::read(self.identity()) else {
            return Ok(None);
        };
        let Ok(id) = serde_json::from_slice::<ProcessId>(&text) else {
            return Ok(None);
        };
        Ok(id.open()?)
    }

    /// Returns as soon as connections are taken: they are answered once the master is ready.
    async fn start(&self) -> anyhow::Result<Process> {
        self.config.save()?;
        let log = Config::logs(&self.config.directory).join("master.err");
        std::fs::create_dir_all(Config::logs(&self.config.directory))?;
        let log = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("opening {}", log.display()))?;
        let mut child = Command::new("/proc/self/exe")
            .args(["master", "--config"])
            .arg(Config::file(&self.config.directory))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .current_dir("/")
            .spawn()
            .context("starting the master")?;
        let pid = child.id().context("the master ended at once")?;
        let process = ProcessId::of(pid.cast_signed())?
            .open()?
            .context("the master ended at once")?;
        files::write_private(&self.identity(), &serde_json::to_vec(process.id())?)?;
        let out = child
            .stdout
            .take()
            .context("the master has no standard output")?;
        let mut lines = BufReader::new(out).lines();
        match lines.next_line().await? {
            Some(word) if word == LISTENING => Ok(process),
            _ => {
                process.ended().await;
                anyhow::bail!("the master did not start: {}", self.last_words())
            }
        }
    }

    async fn stop(&self, running: &Process) -> anyhow::Result<()> {
        running.stop(GRACE).await;
        Ok(())
    }
}

impl MasterProcess {
    /// The last line that it wrote before it ended.
    fn last_words(&self) -> String {
        let text = files::read(&Config::logs(&self.config.directory).join("master.err"))
            .unwrap_or_default();
        text.lines().last().unwrap_or("see its logs").to_owned()
    }
}
