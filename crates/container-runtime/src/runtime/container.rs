//! A container: its record on disk and news of its changes.

use std::path::PathBuf;
use std::sync::Arc;

use k8s_cri::v1 as cri;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::sandbox::Sandbox;
use super::{Error, Result, write_atomically};
use crate::shim::protocol::Exit;
use crate::spec::User;

#[derive(Debug)]
pub struct Container {
    pub id: String,
    pub sandbox: Arc<Sandbox>,
    pub directory: PathBuf,
    record: Mutex<ContainerRecord>,
    changes: watch::Sender<Phase>,
    /// Held by what stops or removes it, so that two don't at once.
    pub turn: tokio::sync::Mutex<()>,
    /// The last reading of its CPU time, to tell the rate.
    pub cpu_sample: Mutex<Option<CpuSample>>,
}

/// What is kept of a container on disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerRecord {
    pub config: cri::ContainerConfig,
    /// Digest of the image's config.
    pub image_id: String,
    /// The image as it can be pulled again.
    pub image_ref: String,
    pub stop_signal: String,
    pub user: User,
    pub cgroup: PathBuf,
    pub log_path: Option<PathBuf>,
    pub created_at: i64,
    pub started_at: i64,
    pub finished_at: i64,
    pub exit_code: i32,
    pub reason: String,
    pub message: String,
    pub phase: Phase,
    pub pid: i32,
    pub resources: Option<cri::LinuxContainerResources>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    Created,
    Running,
    Exited,
}

#[derive(Clone, Copy, Debug)]
pub struct CpuSample {
    pub at: i64,
    pub nanoseconds: u64,
    /// Nanoseconds of CPU per second, since the sample before.
    pub rate: Option<u64>,
}

// === impl Container ===

impl Container {
    pub fn new(
        id: String,
        sandbox: Arc<Sandbox>,
        directory: PathBuf,
        record: ContainerRecord,
    ) -> Self {
        let (changes, _) = watch::channel(record.phase);
        Self {
            id,
            sandbox,
            directory,
            record: Mutex::new(record),
            changes,
            turn: tokio::sync::Mutex::new(()),
            cpu_sample: Mutex::new(None),
        }
    }

    /// Reads a container that a former process made.
    pub fn load(sandbox: Arc<Sandbox>, directory: PathBuf) -> Result<Self> {
        let path = directory.join("container.json");
        let text = std::fs::read(&path)
            .map_err(|error| Error::Internal(format!("reading {}: {error}", path.display())))?;
        let record = serde_json::from_slice(&text)
            .map_err(|error| Error::Internal(format!("parsing {}: {error}", path.display())))?;
        let id = directory
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default()
            .to_owned();
        Ok(Self::new(id, sandbox, directory, record))
    }

    pub fn record(&self) -> ContainerRecord {
        self.record.lock().clone()
    }

    pub fn phase(&self) -> Phase {
        self.record.lock().phase
    }

    /// Changes the record, on disk first.
    pub fn update(&self, change: impl FnOnce(&mut ContainerRecord)) -> Result<()> {
        let mut record = self.record.lock();
        let mut changed = record.clone();
        change(&mut changed);
        let json = serde_json::to_vec(&changed)
            .map_err(|error| Error::internal("encoding a container", error))?;
        write_atomically(&self.directory.join("container.json"), &json)?;
        let phase = changed.phase;
        *record = changed;
        drop(record);
        self.changes.send_replace(phase);
        Ok(())
    }

    /// Waits until it has exited.
    pub async fn exited(&self) {
        // The sender is ours, so there always is one.
        let _ = self
            .changes
            .subscribe()
            .wait_for(|phase| *phase == Phase::Exited)
            .await;
    }

    /// Takes note of its end. Returns whether that was news.
    pub fn set_exited(&self, exit: &Exit) -> Result<bool> {
        let mut news = false;
        self.update(|record| {
            news = record.phase != Phase::Exited;
            if news {
                record.phase = Phase::Exited;
                record.pid = 0;
                record.exit_code = exit.code;
                record.finished_at = exit.finished_at;
                (record.reason, record.message) = describe(exit);
            }
        })?;
        Ok(news)
    }

    pub fn bundle(&self) -> PathBuf {
        self.directory.join("bundle")
    }

    pub fn upper(&self) -> PathBuf {
        self.directory.join("upper")
    }

    pub fn metadata(&self) -> cri::ContainerMetadata {
        self.record
            .lock()
            .config
            .metadata
            .clone()
            .unwrap_or_default()
    }
}

// === impl ContainerRecord ===

impl ContainerRecord {
    pub fn security(&self) -> cri::LinuxContainerSecurityContext {
        self.config
            .linux
            .as_ref()
            .and_then(|linux| linux.security_context.clone())
            .unwrap_or_default()
    }
}

fn describe(exit: &Exit) -> (String, String) {
    if let Some(error) = &exit.start_error {
        ("StartError".to_owned(), error.clone())
    } else if exit.out_of_memory {
        ("OOMKilled".to_owned(), String::new())
    } else if exit.code == 0 {
        ("Completed".to_owned(), String::new())
    } else {
        ("Error".to_owned(), String::new())
    }
}
