//! Flags about the store, and what is in it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::ArgAction;
use fluyt_etcd::embedded::Embedded;
use fluyt_etcd::external::{self, External};
use fluyt_etcd::{DynStore, Rebased};
use tokio_util::sync::CancellationToken;

use super::{pair, read};
use crate::cache::REGISTRY;
use crate::limits;
use crate::{Encryption, MediaType, Storage};

#[derive(clap::Args, Debug)]
pub struct EtcdArgs {
    /// Directory of the embedded store, which is used unless --etcd-servers is given.
    #[arg(long, default_value = "/var/lib/fluyt/apiserver")]
    data_dir: PathBuf,
    /// Members of an etcd cluster to keep the state in (scheme://ip:port), comma separated.
    #[arg(long, value_delimiter = ',')]
    etcd_servers: Vec<String>,
    /// Authorities that the etcd servers' certificates are verified with.
    #[arg(long, requires = "etcd_servers")]
    etcd_cafile: Option<PathBuf>,
    /// Client certificate for etcd.
    #[arg(long, requires = "etcd_keyfile")]
    etcd_certfile: Option<PathBuf>,
    /// Its private key.
    #[arg(long, requires = "etcd_certfile")]
    etcd_keyfile: Option<PathBuf>,
    /// Prefix of all keys in etcd.
    #[arg(long, default_value = "/registry")]
    etcd_prefix: String,
    /// What built-in kinds are stored as.
    #[arg(long, default_value = "application/vnd.kubernetes.protobuf")]
    storage_media_type: MediaType,
    /// File that says what is encrypted in the store, and with what.
    #[arg(long)]
    encryption_provider_config: Option<PathBuf>,
    /// Take over changes of that file while the server runs.
    #[arg(long, requires = "encryption_provider_config", num_args = 0..=1, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    encryption_provider_config_automatic_reload: bool,
    /// How objects are kept: etcd3, as etcd itself and the embedded store have them.
    #[arg(long, value_parser = backend)]
    storage_backend: Option<String>,
    /// Whether the garbage collector runs, as the same flag of kube-controller-manager says.
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub(super) enable_garbage_collector: bool,
    /// How long the store's history is kept at least; 0 leaves it to the store.
    #[arg(long, default_value = "5m0s", value_parser = limits::duration)]
    pub(super) etcd_compaction_interval: Duration,
    /// Seconds that events share a lease of the store; less for short-lived ones.
    #[arg(long, default_value_t = 60)]
    pub(super) lease_reuse_duration_seconds: i64,
}

fn backend(name: &str) -> Result<String, &'static str> {
    if matches!(name, "" | "etcd3") {
        Ok(name.to_owned())
    } else {
        Err(
            "--storage-backend invalid, allowed values: etcd3. If not specified, it will default to 'etcd3'",
        )
    }
}

impl EtcdArgs {
    /// Whether other servers may use the same store.
    pub(super) fn shares_store(&self) -> bool {
        !self.etcd_servers.is_empty()
    }

    /// What keys start with in the store.
    fn prefix(&self) -> String {
        if self.etcd_servers.is_empty() {
            return REGISTRY.to_owned();
        }
        format!("/{}/", self.etcd_prefix.trim_matches('/'))
    }

    /// The form of objects in the store.
    ///
    /// # Errors
    /// When the configuration of encryption makes no sense.
    pub(super) async fn storage(&self, shutdown: &CancellationToken) -> anyhow::Result<Storage> {
        let encryption = match &self.encryption_provider_config {
            None => Arc::default(),
            Some(path) => {
                let reload = self.encryption_provider_config_automatic_reload;
                Encryption::load_file(path, &self.prefix(), reload, shutdown.clone())
                    .await
                    .context("--encryption-provider-config")?
            }
        };
        Ok(Storage {
            media_type: self.storage_media_type,
            encryption,
        })
    }

    /// The store that the flags name.
    ///
    /// # Errors
    /// When it cannot be opened, or a file cannot be read.
    pub(super) async fn store(&self) -> anyhow::Result<DynStore> {
        if self.etcd_servers.is_empty() {
            return Ok(Arc::new(Embedded::open(&self.data_dir)?));
        }
        let mut config = external::Config::new(self.etcd_servers.clone());
        config.ca_pem = self.etcd_cafile.as_deref().map(read).transpose()?;
        config.client_pem = pair(self.etcd_certfile.as_ref(), self.etcd_keyfile.as_ref())?;
        let store: DynStore = Arc::new(External::connect(config).await.context("--etcd-servers")?);
        let prefix = self.prefix();
        Ok(if prefix == REGISTRY {
            store
        } else {
            Arc::new(Rebased::new(store, REGISTRY, prefix))
        })
    }
}
