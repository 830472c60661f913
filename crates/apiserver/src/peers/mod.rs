//! Other API servers of the cluster, which may be of another version or serve other resources (KEP-4020). Each says in the
//! store where it is (`lease`); the others ask it what it serves (`discover`), pass on to it what they do not serve
//! (`proxy`), and show it in discovery (`document`).

mod counters;
mod discover;
mod document;
mod exclusions;
mod flags;
mod lease;
mod merge;
mod order;
mod proxy;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use rustls::ClientConfig;
use serde_json::Value;

use crate::Server;
use crate::config::Config;
use crate::features::Feature;
use crate::request::Target;
use crate::server::client_tls;

use counters::Counters;
use document::Document;
use exclusions::Exclusions;

pub use flags::PeerFlags;
pub use proxy::pass_on;

/// What a server is told of its peers.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Vouches for them. Without it nothing is passed on, and discovery shows what is served here.
    pub ca_pem: Option<String>,
    /// Host and port by which they reach this server, if not by the advertised address.
    pub advertise: Option<String>,
}

/// A resource in one of its versions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Gvr {
    group: String,
    version: String,
    resource: String,
}

/// What is known of the other servers.
pub struct Peers {
    /// This server's name among them.
    id: String,
    /// How they are reached; `None` where nothing is passed on.
    tls: Option<Arc<ClientConfig>>,
    known: RwLock<Known>,
    /// The last document of discovery that was merged.
    document: Mutex<Option<Document>>,
    counters: Counters,
}

#[derive(Default)]
struct Known {
    /// By their names.
    servers: BTreeMap<String, Serves>,
    excluded: Exclusions,
    /// Counts the changes of both.
    generation: u64,
}

/// What a server serves.
#[derive(Clone, Debug, Default, PartialEq)]
struct Serves {
    resources: HashSet<Gvr>,
    /// Its groups besides the core one, as entries of aggregated discovery.
    groups: Vec<Value>,
}

// === impl Gvr ===

impl Gvr {
    pub fn of(target: &Target) -> Self {
        Self {
            group: target.group.clone(),
            version: target.version.clone(),
            resource: target.plural.clone(),
        }
    }
}

// === impl Peers ===

impl Peers {
    /// # Errors
    /// When a certificate or key is malformed.
    pub fn new(config: &Config) -> anyhow::Result<Self> {
        let enabled = config
            .features
            .has(Feature::UnknownVersionInteroperabilityProxy);
        let ca_pem = config.peers.ca_pem.as_deref().filter(|_| enabled);
        let tls = ca_pem.map(|ca| client_tls(Some(ca), config.proxy_client.as_ref()));
        Ok(Self {
            id: config.server_id(),
            tls: tls.transpose()?,
            known: RwLock::default(),
            document: Mutex::default(),
            counters: Counters::default(),
        })
    }

    /// The names of those that serve a resource.
    pub fn serving(&self, gvr: &Gvr) -> Vec<String> {
        if self.tls.is_none() {
            return Vec::new();
        }
        let known = self.known.read();
        if known.excluded.contains(&gvr.group, &gvr.version) {
            return Vec::new();
        }
        let serving = known.servers.iter();
        let serving = serving.filter(|(_, serves)| serves.resources.contains(gvr));
        serving.map(|(id, _)| id.clone()).collect()
    }

    pub fn render_metrics(&self, out: &mut String) {
        self.counters.render(out);
    }

    /// Replaces what the servers serve.
    fn learn(&self, servers: BTreeMap<String, Serves>) {
        let mut known = self.known.write();
        if known.servers != servers {
            known.servers = servers;
            known.generation += 1;
        }
    }
}

/// Starts what has to be done all the time: nothing, where there cannot be other servers.
pub fn start(server: &Arc<Server>) {
    let config = &server.config;
    let enabled = config
        .features
        .has(Feature::UnknownVersionInteroperabilityProxy);
    if !enabled || !config.shares_store {
        return;
    }
    tokio::spawn(lease::run(server.clone()));
    if server.peers.tls.is_some() {
        tokio::spawn(exclusions::run(server.clone()));
        tokio::spawn(discover::run(server.clone()));
    }
}

/// `host:port`, with an address of IPv6 in brackets.
fn join_host_port(host: &str, port: impl std::fmt::Display) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}
