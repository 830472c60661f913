//! A pod sandbox: its record on disk and its shim.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use k8s_cri::v1 as cri;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{Error, Result, write_atomically};
use crate::shim::client::ShimClient;
use crate::spec::SandboxFiles;

#[derive(Debug)]
pub struct Sandbox {
    pub id: String,
    pub directory: PathBuf,
    record: Mutex<SandboxRecord>,
    shim: Mutex<Option<ShimClient>>,
    /// Held by what stops or removes it, so that two don't at once.
    pub turn: tokio::sync::Mutex<()>,
}

/// What is kept of a sandbox on disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SandboxRecord {
    pub config: cri::PodSandboxConfig,
    pub runtime_handler: String,
    pub created_at: i64,
    pub ready: bool,
    pub address: Option<Ipv4Addr>,
    pub shim_pid: i32,
    /// The init that holds the pod's shared pid namespace.
    pub pid_namespace: Option<i32>,
}

// === impl Sandbox ===

impl Sandbox {
    pub fn new(id: String, directory: PathBuf, record: SandboxRecord) -> Self {
        Self {
            id,
            directory,
            record: Mutex::new(record),
            shim: Mutex::new(None),
            turn: tokio::sync::Mutex::new(()),
        }
    }

    /// Reads a sandbox that a former process made.
    pub fn load(directory: PathBuf) -> Result<Self> {
        let path = directory.join("sandbox.json");
        let text = std::fs::read(&path)
            .map_err(|error| Error::Internal(format!("reading {}: {error}", path.display())))?;
        let record = serde_json::from_slice(&text)
            .map_err(|error| Error::Internal(format!("parsing {}: {error}", path.display())))?;
        let id = directory
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default()
            .to_owned();
        Ok(Self::new(id, directory, record))
    }

    pub fn record(&self) -> SandboxRecord {
        self.record.lock().clone()
    }

    /// Changes the record, on disk first.
    pub fn update(&self, change: impl FnOnce(&mut SandboxRecord)) -> Result<()> {
        let mut record = self.record.lock();
        let mut changed = record.clone();
        change(&mut changed);
        let json = serde_json::to_vec(&changed)
            .map_err(|error| Error::internal("encoding a sandbox", error))?;
        write_atomically(&self.directory.join("sandbox.json"), &json)?;
        *record = changed;
        Ok(())
    }

    pub fn shim(&self) -> Result<ShimClient> {
        self.shim
            .lock()
            .clone()
            .ok_or_else(|| Error::FailedPrecondition(format!("sandbox {} is not running", self.id)))
    }

    pub fn set_shim(&self, shim: Option<ShimClient>) {
        *self.shim.lock() = shim;
    }

    pub fn is_ready(&self) -> bool {
        self.record.lock().ready
    }

    pub fn files(&self) -> SandboxFiles {
        SandboxFiles {
            shm: self.directory.join("shm"),
            resolv_conf: self.directory.join("resolv.conf"),
            hostname: self.directory.join("hostname"),
        }
    }

    /// Where the shim keeps its containers' exits.
    pub fn exits(&self) -> PathBuf {
        self.directory.join("exits")
    }

    pub fn shim_config(&self) -> PathBuf {
        self.directory.join("shim.json")
    }

    /// The shim's socket; short, as a socket's address has 107 bytes at most.
    pub fn socket(&self, state: &Path) -> PathBuf {
        state.join("s").join(self.id.get(..20).unwrap_or(&self.id))
    }

    pub fn metadata(&self) -> cri::PodSandboxMetadata {
        self.record
            .lock()
            .config
            .metadata
            .clone()
            .unwrap_or_default()
    }
}

// === impl SandboxRecord ===

impl SandboxRecord {
    pub fn namespace_options(&self) -> cri::NamespaceOption {
        namespace_options(&self.config)
    }

    pub fn is_host_network(&self) -> bool {
        self.namespace_options().network() == cri::NamespaceMode::Node
    }

    pub fn cgroup_parent(&self) -> PathBuf {
        let parent = self
            .config
            .linux
            .as_ref()
            .map(|linux| linux.cgroup_parent.as_str())
            .unwrap_or_default();
        if parent.is_empty() {
            PathBuf::from("/fluyt")
        } else {
            Path::new("/").join(parent)
        }
    }
}

pub fn namespace_options(config: &cri::PodSandboxConfig) -> cri::NamespaceOption {
    config
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref())
        .and_then(|security| security.namespace_options.clone())
        .unwrap_or_default()
}
