//! Where nodes come from: machines of a given size, attached to a cluster's network, that run `fluyt node`.

mod cgroup;
pub mod init;
pub mod sandbox;

use std::net::Ipv4Addr;
use std::path::PathBuf;

use async_trait::async_trait;
use fluyt_network::ClusterNetwork;
use serde::{Deserialize, Serialize};

use crate::process::Process;

/// A machine as a provider is to make it.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The cluster's id; with [`Machine::name`] unique on the host.
    pub cluster: String,
    /// The host name, and the node's name.
    pub name: String,
    /// All that the machine keeps is below here.
    pub directory: PathBuf,
    pub network: ClusterNetwork,
    pub address: Ipv4Addr,
    pub milli_cpu: u64,
    pub memory_bytes: u64,
    /// Files that the machine starts with, by absolute path.
    pub files: Vec<MachineFile>,
}

/// A file inside a machine, for root only.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MachineFile {
    pub path: PathBuf,
    pub contents: String,
}

/// Makes and runs machines. Every method may be repeated after a crash at any point of it.
#[async_trait]
pub trait NodeProvider: Send + Sync + 'static {
    /// Makes the machine's disk.
    async fn create(&self, machine: &Machine) -> anyhow::Result<()>;

    /// Boots the machine, which must not be running.
    async fn start(&self, machine: &Machine) -> anyhow::Result<Process>;

    /// Finds the machine if it is running, whoever started it.
    async fn adopt(&self, machine: &Machine) -> anyhow::Result<Option<Process>>;

    /// Shuts the machine down; its disk stays.
    async fn stop(&self, machine: &Machine, running: &Process) -> anyhow::Result<()>;

    /// Removes every trace of the machine; one that runs is killed.
    async fn delete(&self, machine: &Machine) -> anyhow::Result<()>;
}
