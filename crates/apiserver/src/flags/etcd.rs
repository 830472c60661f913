//! Flags about the store, and what is in it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::ArgAction;
use fluyt_api::resources;
use fluyt_etcd::embedded::Embedded;
use fluyt_etcd::external::{self, Connector, External};
use fluyt_etcd::{DynStore, Rebased};
use tokio_util::sync::CancellationToken;

use super::{pair, read};
use crate::cache::{Apart, REGISTRY, storage_resource};
use crate::dial::{ControlPlane, Dialer};
use crate::metrics::Members;
use crate::{Encryption, MediaType, Storage};
use crate::{go_bool, go_duration, limits};

#[derive(clap::Args, Debug)]
pub struct EtcdArgs {
    /// Directory of the embedded store, which is used unless --etcd-servers is given.
    #[arg(long, default_value = "/var/lib/fluyt/apiserver")]
    data_dir: PathBuf,
    /// Members of an etcd cluster to keep the state in (scheme://ip:port), comma separated.
    #[arg(long, value_delimiter = ',')]
    etcd_servers: Vec<String>,
    /// Resources that are kept in other etcd clusters: GROUP/RESOURCE#SERVER;SERVER, comma separated.
    #[arg(long, value_delimiter = ',', requires = "etcd_servers", value_parser = elsewhere)]
    etcd_servers_overrides: Vec<Elsewhere>,
    /// How often the sizes of the members' databases are asked for the metric apiserver_storage_db_total_size_in_bytes, which is
    /// hidden; 0 for never.
    #[arg(long, default_value = "30s", value_parser = go_duration::parse)]
    etcd_db_metric_poll_interval: Duration,
    /// Reads are answered from the watch cache: only true.
    #[arg(long, value_parser = with_watch_cache, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    watch_cache: Option<bool>,
    /// Of no effect, as upstream's: the watch cache is as large as it has to be. Deprecated.
    #[arg(long, value_parser = cache_size)]
    default_watch_cache_size: Option<i64>,
    /// Of no effect, as upstream's: the watch cache is as large as it has to be. RESOURCE[.GROUP]#SIZE, comma separated.
    #[arg(long, value_delimiter = ',', value_parser = sized_resource)]
    watch_cache_sizes: Vec<String>,
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
    #[arg(long, requires = "encryption_provider_config", value_parser = go_bool::parse, action = ArgAction::Set, num_args = 0..=1, default_value_t = false, default_missing_value = "true", require_equals = true)]
    encryption_provider_config_automatic_reload: bool,
    /// How objects are kept: etcd3, as etcd itself and the embedded store have them.
    #[arg(long, value_parser = backend)]
    storage_backend: Option<String>,
    /// Whether the garbage collector runs, as the same flag of kube-controller-manager says.
    #[arg(long, value_parser = go_bool::parse, action = ArgAction::Set, num_args = 0..=1, default_value_t = true, default_missing_value = "true", require_equals = true)]
    pub(super) enable_garbage_collector: bool,
    /// How long the store's history is kept at least; 0 leaves it to the store.
    #[arg(long, default_value = "5m0s", value_parser = limits::duration)]
    pub(super) etcd_compaction_interval: Duration,
    /// Seconds that events share a lease of the store; less for short-lived ones.
    #[arg(long, default_value_t = 60)]
    pub(super) lease_reuse_duration_seconds: i64,
}

/// Where a resource is kept instead.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Elsewhere {
    group: String,
    resource: String,
    servers: Vec<String>,
}

fn elsewhere(text: &str) -> Result<Elsewhere, &'static str> {
    let parsed = || {
        let (resource, servers) = text.split_once('#')?;
        let (group, resource) = resource.split_once('/')?;
        let servers: Vec<String> = servers.split(';').map(str::to_owned).collect();
        let is_sound = !resource.contains('/')
            && servers
                .iter()
                .all(|server| !server.is_empty() && !server.contains('#'));
        is_sound.then(|| Elsewhere {
            group: group.to_owned(),
            resource: resource.to_owned(),
            servers,
        })
    };
    parsed().ok_or(
        "--etcd-servers-overrides invalid, must be of format: group/resource#servers, where servers are URLs, semicolon separated",
    )
}

/// Reads are answered from nothing else.
const CACHED: &str = "the watch cache cannot be turned off: reads are answered from it";

fn with_watch_cache(text: &str) -> Result<bool, String> {
    match go_bool::parse(text)? {
        true => Ok(true),
        false => Err(CACHED.to_owned()),
    }
}

fn cache_size(text: &str) -> Result<i64, String> {
    match text.parse() {
        Ok(0) => Err(CACHED.to_owned()),
        Ok(size) => Ok(size),
        Err(_) => Err(format!(
            "strconv.ParseInt: parsing {text:?}: invalid syntax"
        )),
    }
}

fn sized_resource(text: &str) -> Result<String, String> {
    let (_, size) = text
        .split_once('#')
        .filter(|(_, size)| !size.contains('#'))
        .ok_or_else(|| format!("invalid value of watch cache size: {text}"))?;
    match size.parse::<i64>() {
        Ok(0) => Err(CACHED.to_owned()),
        Ok(1..) => Ok(text.to_owned()),
        Ok(_) => Err(format!("watch cache size cannot be negative: {text}")),
        Err(_) => Err(format!("invalid size of watch cache size: {text}")),
    }
}

/// Changed together with the node ports in use, or decide what else is an object.
const TOGETHER: [(&str, &str); 3] = [
    ("", "services"),
    ("networking.k8s.io", "ipaddresses"),
    ("apiextensions.k8s.io", "customresourcedefinitions"),
];

/// The way to the members of a cluster.
fn connector(dialer: Arc<dyn Dialer>) -> Connector {
    let network = ControlPlane(dialer);
    Connector::new(move |host, port| {
        let network = network.clone();
        Box::pin(async move {
            let connection = network.connect(&host, port).await?;
            let connection: Box<dyn external::Stream> = Box::new(connection);
            Ok(connection)
        })
    })
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
    pub(super) async fn store(&self, dialer: Option<&Arc<dyn Dialer>>) -> anyhow::Result<DynStore> {
        if self.etcd_servers.is_empty() {
            return Ok(Arc::new(Embedded::open(&self.data_dir)?));
        }
        let connecting = self.connect(&self.etcd_servers, dialer);
        connecting.await.context("--etcd-servers")
    }

    /// The members whose sizes are asked for, which is only `shown` when that is wanted.
    ///
    /// # Errors
    /// As for [`Self::store`].
    pub(super) async fn members(
        &self,
        shown: bool,
        dialer: Option<&Arc<dyn Dialer>>,
    ) -> anyhow::Result<Members> {
        let interval = self.etcd_db_metric_poll_interval;
        let mut members = Members {
            interval,
            stores: Vec::new(),
        };
        if !shown || interval.is_zero() {
            return Ok(members);
        }
        let overrides = self.etcd_servers_overrides.iter();
        let others = overrides.flat_map(|one| &one.servers);
        let all: BTreeSet<&String> = self.etcd_servers.iter().chain(others).collect();
        for address in all {
            let store = self.connect(std::slice::from_ref(address), dialer).await?;
            members.stores.push((address.clone(), store));
        }
        Ok(members)
    }

    /// The keys of the cluster that some members make up.
    async fn connect(
        &self,
        servers: &[String],
        dialer: Option<&Arc<dyn Dialer>>,
    ) -> anyhow::Result<DynStore> {
        let mut config = external::Config::new(servers.to_vec());
        config.ca_pem = self.etcd_cafile.as_deref().map(read).transpose()?;
        config.client_pem = pair(self.etcd_certfile.as_ref(), self.etcd_keyfile.as_ref())?;
        config.connector = dialer.map(|dialer| connector(dialer.clone()));
        let store: DynStore = Arc::new(External::connect(config).await?);
        let prefix = self.prefix();
        Ok(if prefix == REGISTRY {
            store
        } else {
            Arc::new(Rebased::new(store, REGISTRY, prefix))
        })
    }

    /// The stores that some resources are kept in: one for each set of servers, whichever order they are named in.
    ///
    /// # Errors
    /// When a resource cannot be kept apart, or as for [`Self::store`].
    pub(super) async fn apart(
        &self,
        dialer: Option<&Arc<dyn Dialer>>,
    ) -> anyhow::Result<Vec<Apart>> {
        let mut sets: Vec<(Vec<String>, Apart)> = Vec::new();
        for one in &self.etcd_servers_overrides {
            let (group, plural) = (one.group.as_str(), one.resource.as_str());
            if TOGETHER.contains(&(group, plural)) {
                bail!(
                    "--etcd-servers-overrides: {group}/{plural} cannot be kept apart: it is changed in one transaction with others, or says what they are"
                );
            }
            let all = resources::builtin().iter();
            let found = all.filter(|r| (r.group, r.plural) == (group, plural) && !r.is_virtual());
            let mut found = found.map(storage_resource);
            let mut servers = one.servers.clone();
            servers.sort();
            let place = match sets.iter().position(|(known, _)| *known == servers) {
                Some(place) => place,
                None => {
                    let connecting = self.connect(&one.servers, dialer);
                    let store = connecting.await.context("--etcd-servers-overrides")?;
                    let resources = Vec::new();
                    sets.push((servers, Apart { store, resources }));
                    sets.len() - 1
                }
            };
            match found.next() {
                Some(resource) => sets[place].1.resources.push(resource),
                None => tracing::warn!("--etcd-servers-overrides: no resource is {group}/{plural}"),
            }
        }
        Ok(sets.into_iter().map(|(_, apart)| apart).collect())
    }
}
