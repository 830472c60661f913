//! RunPodSandbox.

use std::path::Path;
use std::sync::Arc;

use fluyt_network::{PortMapping, Protocol};
use k8s_cri::v1 as cri;
use nix::mount::{MsFlags, mount};

use super::sandbox::{Sandbox, SandboxRecord, namespace_options};
use super::{Error, Result, Runtime, new_id, now};
use crate::shim;
use crate::shim::client::ShimClient;
use crate::shim::protocol::ShimConfig;

impl Runtime {
    /// Makes a sandbox with its namespaces and network, and returns its id. On failure nothing of it is left.
    pub async fn run_pod_sandbox(
        self: &Arc<Self>,
        config: cri::PodSandboxConfig,
        runtime_handler: String,
    ) -> Result<String> {
        if !runtime_handler.is_empty() {
            return Err(Error::InvalidArgument(format!(
                "no runtime for {runtime_handler:?} is configured"
            )));
        }
        let metadata = config
            .metadata
            .clone()
            .ok_or_else(|| Error::InvalidArgument("sandbox config has no metadata".to_owned()))?;
        if let Some(other) = self
            .sandboxes()
            .into_iter()
            .find(|sandbox| sandbox.metadata() == metadata)
        {
            return Err(Error::AlreadyExists(format!(
                "failed to reserve sandbox name: {}_{}_{}_{} is reserved for {}",
                metadata.name, metadata.namespace, metadata.uid, metadata.attempt, other.id
            )));
        }
        let id = new_id();
        let directory = self.options.root.join("sandboxes").join(&id);
        let record = SandboxRecord {
            config,
            runtime_handler,
            created_at: now(),
            ready: false,
            address: None,
            shim_pid: 0,
            pid_namespace: None,
        };
        let sandbox = Arc::new(Sandbox::new(id.clone(), directory, record));
        self.sandboxes
            .lock()
            .insert(id.clone(), Arc::clone(&sandbox));
        match self.bring_up(&sandbox).await {
            Ok(()) => Ok(id),
            Err(error) => {
                if let Err(cleanup) = self.remove_pod_sandbox(&id).await {
                    tracing::warn!(sandbox = id, error = %cleanup, "removing a failed sandbox");
                }
                Err(error)
            }
        }
    }

    async fn bring_up(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<()> {
        let record = sandbox.record();
        prepare_files(sandbox, &record)?;
        // From here on a restart finds the sandbox, and removes it as it isn't ready.
        sandbox.update(|_| {})?;
        self.start_shim(sandbox, &record).await?;
        let address = if record.is_host_network() {
            None
        } else {
            let namespace = format!("/proc/{}/ns/net", sandbox.record().shim_pid);
            let ports = port_mappings(&record.config)?;
            let address = self
                .network
                .add(&sandbox.id, Path::new(&namespace), &ports)
                .await?;
            Some(address)
        };
        sandbox.update(|record| {
            record.address = address;
            record.ready = true;
        })
    }

    async fn start_shim(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        record: &SandboxRecord,
    ) -> Result<()> {
        let options = record.namespace_options();
        let host_network = record.is_host_network();
        let linux = record.config.linux.clone().unwrap_or_default();
        let config = ShimConfig {
            id: sandbox.id.clone(),
            socket: sandbox.socket(&self.options.state),
            exits: sandbox.exits(),
            hostname: record.config.hostname.clone(),
            new_net: !host_network,
            new_ipc: options.ipc() != cri::NamespaceMode::Node,
            new_uts: !host_network,
            new_pid: options.pid() == cri::NamespaceMode::Pod,
            sysctls: linux.sysctls.into_iter().collect(),
        };
        let path = sandbox.shim_config();
        shim::client::write_config(&config, &path)
            .map_err(|error| Error::internal("writing the shim's configuration", error))?;
        let (pid, ready) = shim::client::spawn(
            &self.options.shim_command,
            &path,
            &sandbox.directory.join("shim.log"),
        )
        .await
        .map_err(|error| Error::internal("failed to start the sandbox's shim", error))?;
        sandbox.update(|record| {
            record.shim_pid = pid;
            record.pid_namespace = ready.pid_namespace;
        })?;
        self.connect_shim(sandbox)
            .map_err(|error| Error::internal("connecting to the shim", error))
    }

    /// Connects to a sandbox's shim and listens to its events.
    pub(super) fn connect_shim(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> std::io::Result<()> {
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        let client = ShimClient::connect(&sandbox.socket(&self.options.state), sender)?;
        sandbox.set_shim(Some(client));
        tokio::spawn(Arc::clone(self).follow_shim(Arc::clone(sandbox), receiver));
        Ok(())
    }
}

fn prepare_files(sandbox: &Sandbox, record: &SandboxRecord) -> Result<()> {
    let files = sandbox.files();
    let prepare = || -> std::io::Result<()> {
        for directory in [sandbox.exits(), sandbox.directory.join("containers")] {
            std::fs::create_dir_all(directory)?;
        }
        if !record.config.log_directory.is_empty() {
            std::fs::create_dir_all(&record.config.log_directory)?;
        }
        std::fs::write(&files.resolv_conf, resolv_conf(&record.config))?;
        std::fs::write(&files.hostname, hostname(&record.config))?;
        if record.namespace_options().ipc() != cri::NamespaceMode::Node {
            std::fs::create_dir_all(&files.shm)?;
            mount(
                Some("shm"),
                &files.shm,
                Some("tmpfs"),
                MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
                Some("mode=1777,size=65536k"),
            )?;
        }
        Ok(())
    };
    prepare().map_err(|error| Error::internal("preparing the sandbox's files", error))
}

/// The pod's `resolv.conf`: as CRI says, or the node's.
fn resolv_conf(config: &cri::PodSandboxConfig) -> String {
    let Some(dns) = &config.dns_config else {
        return std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    };
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}

fn hostname(config: &cri::PodSandboxConfig) -> String {
    let name = if config.hostname.is_empty()
        || namespace_options(config).network() == cri::NamespaceMode::Node
    {
        nix::unistd::gethostname()
            .ok()
            .and_then(|name| name.into_string().ok())
            .unwrap_or_default()
    } else {
        config.hostname.clone()
    };
    format!("{name}\n")
}

fn port_mappings(config: &cri::PodSandboxConfig) -> Result<Vec<PortMapping>> {
    config
        .port_mappings
        .iter()
        .filter(|mapping| mapping.host_port > 0)
        .map(|mapping| {
            let port = |value: i32| {
                u16::try_from(value)
                    .map_err(|_| Error::InvalidArgument(format!("{value} is not a port")))
            };
            Ok(PortMapping {
                protocol: match mapping.protocol() {
                    cri::Protocol::Tcp => Protocol::Tcp,
                    cri::Protocol::Udp => Protocol::Udp,
                    cri::Protocol::Sctp => Protocol::Sctp,
                },
                container_port: port(mapping.container_port)?,
                host_port: port(mapping.host_port)?,
                host_ip: mapping
                    .host_ip
                    .parse()
                    .ok()
                    .filter(|ip: &std::net::Ipv4Addr| !ip.is_unspecified()),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pod_s_dns_is_written_as_resolv_conf() {
        let config = cri::PodSandboxConfig {
            dns_config: Some(cri::DnsConfig {
                servers: vec!["10.0.0.10".to_owned()],
                searches: vec![
                    "default.svc.cluster.local".to_owned(),
                    "svc.cluster.local".to_owned(),
                ],
                options: vec!["ndots:5".to_owned()],
            }),
            ..cri::PodSandboxConfig::default()
        };
        assert_eq!(
            resolv_conf(&config),
            "search default.svc.cluster.local svc.cluster.local\nnameserver 10.0.0.10\noptions ndots:5\n"
        );
    }
}
