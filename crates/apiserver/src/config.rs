//! How a server is set up.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fluyt_etcd::DynStore;
use tokio_util::sync::CancellationToken;

use crate::aggregator::Routing;
use crate::browsers::Browsers;
use crate::cache::Apart;
use crate::component_status::Component;
use crate::dial::{ControlPlane, Dialer, Direct};
use crate::endpoint_reconciler::Endpoints;
use crate::features::Features;
use crate::handlers::TokenLifetimes;
use crate::health::EtcdChecks;
use crate::limits::Limits;
use crate::listen::{TlsSettings, Usual};
use crate::metrics::{self, Exposition};
use crate::registry::ServiceNetwork;
use crate::served::Served;
use crate::spans::TracingConfiguration;
use crate::startup::StartupFlags;
use crate::storage::Storage;
use crate::tokens::Signing;
use crate::{admission, audit, authn, authz, compactor, flowcontrol, identity, peers};

/// How a server is set up. PEM texts, not paths: a master holds its keys in its own data.
pub struct Config {
    pub store: DynStore,
    /// Stores that some resources are kept in instead.
    pub apart: Vec<Apart>,
    /// What objects are in the store.
    pub storage: Storage,
    /// Other servers use the same store.
    pub shares_store: bool,
    /// The machine's name, which tells the servers of a cluster apart.
    pub host: String,
    /// What is known of the others, and what they are told.
    pub peers: peers::Settings,
    /// What is served of the built-in versions.
    pub served: Served,
    /// How kubelets, pods and services are reached.
    pub dialer: Arc<dyn Dialer>,
    /// What `componentstatuses` shows besides the store.
    pub components: Vec<Component>,
    /// How the services that the configuration names are reached.
    pub control_plane: ControlPlane,
    /// The address that pods reach through the `kubernetes` service.
    pub advertise: SocketAddr,
    /// Host, or host and port, by which discovery documents name the server, when it is not that address.
    pub external_hostname: Option<String>,
    pub service_network: ServiceNetwork,
    /// Verifies client certificates.
    pub client_ca_pem: String,
    /// The serving certificate.
    pub certificate: Usual,
    pub service_account_signing: Signing,
    pub service_account_issuer: String,
    pub api_audiences: Vec<String>,
    /// The certificate with which the server calls kubelets, and the authority of theirs.
    pub kubelet_client: Option<(String, String)>,
    pub kubelet_ca_pem: Option<String>,
    /// The certificate with which the server calls aggregated servers, and its authority.
    pub proxy_client: Option<(String, String)>,
    pub requestheader_ca_pem: Option<String>,
    pub authentication: authn::Settings,
    pub token_lifetimes: TokenLifetimes,
    pub authorization: authz::Settings,
    pub audit: audit::Settings,
    pub flow_control: flowcontrol::Settings,
    pub features: Features,
    pub limits: Limits,
    pub startup: StartupFlags,
    pub etcd_checks: EtcdChecks,
    /// What of the metrics is shown.
    pub metrics: Exposition,
    /// Whose sizes are asked for.
    pub etcd_members: metrics::Members,
    /// The command line's flags with their values, for `/flagz`.
    pub flags: BTreeMap<String, String>,
    /// Whom the spans of requests are sent to.
    pub tracing: Option<TracingConfiguration>,
    /// Which admission plugins run, and what they are configured with.
    pub admission: admission::Settings,
    /// Whether pods may be privileged.
    pub allow_privileged: bool,
    /// Whether somebody collects what deleted objects own.
    pub enable_garbage_collector: bool,
    /// How long events are kept.
    pub event_ttl: Duration,
    /// Kinds of nodes' addresses by which kubelets are reached, the preferred ones first.
    pub kubelet_address_types: Vec<String>,
    /// How long the store's history is kept at least.
    pub compaction_interval: Duration,
    pub tls: TlsSettings,
    pub browsers: Browsers,
    pub routing: Routing,
    pub endpoints: Endpoints,
    /// The port of kubelets that do not say theirs.
    pub kubelet_port: u16,
    /// How long it may take to reach a kubelet.
    pub kubelet_timeout: Duration,
    /// How long events share a lease of the store, in seconds.
    pub lease_reuse: i64,
    pub shutdown: CancellationToken,
}

/// The PEM texts that no server can do without.
pub struct Credentials {
    /// Verifies client certificates.
    pub client_ca_pem: String,
    pub tls_certificate_pem: String,
    pub tls_key_pem: String,
    pub service_account_key_pem: String,
}

impl Config {
    /// A server on loopback; everything that is not said is upstream's default.
    #[must_use]
    pub fn new(store: DynStore, credentials: Credentials, shutdown: CancellationToken) -> Self {
        let issuer = "https://kubernetes.default.svc";
        Self {
            store,
            apart: Vec::new(),
            storage: Storage::default(),
            shares_store: false,
            host: identity::host(),
            peers: peers::Settings::default(),
            served: Served::default(),
            dialer: Arc::new(Direct),
            components: Component::usual(),
            control_plane: ControlPlane::default(),
            advertise: SocketAddr::from(([127, 0, 0, 1], 6443)),
            external_hostname: None,
            service_network: ServiceNetwork::default(),
            client_ca_pem: credentials.client_ca_pem,
            certificate: Usual::Pem {
                certificate: credentials.tls_certificate_pem,
                key: credentials.tls_key_pem,
            },
            service_account_signing: Signing::Key(credentials.service_account_key_pem),
            service_account_issuer: issuer.into(),
            api_audiences: vec![issuer.into()],
            kubelet_client: None,
            kubelet_ca_pem: None,
            proxy_client: None,
            requestheader_ca_pem: None,
            authentication: authn::Settings::default(),
            token_lifetimes: TokenLifetimes::default(),
            authorization: authz::Settings::default(),
            audit: audit::Settings::default(),
            flow_control: flowcontrol::Settings::default(),
            features: Features::default(),
            limits: Limits::default(),
            startup: StartupFlags::default(),
            etcd_checks: EtcdChecks::default(),
            metrics: Exposition::default(),
            etcd_members: metrics::Members::default(),
            flags: BTreeMap::new(),
            tracing: None,
            admission: admission::Settings::default(),
            allow_privileged: true,
            enable_garbage_collector: true,
            event_ttl: Duration::from_secs(3600),
            kubelet_address_types: ["InternalIP", "ExternalIP"].map(str::to_owned).into(),
            compaction_interval: compactor::INTERVAL,
            tls: TlsSettings::default(),
            browsers: Browsers::default(),
            routing: Routing::default(),
            endpoints: Endpoints::default(),
            kubelet_port: 10250,
            kubelet_timeout: Duration::from_secs(5),
            lease_reuse: 60,
            shutdown,
        }
    }

    /// The server's name among those of the cluster.
    #[must_use]
    pub fn server_id(&self) -> String {
        identity::name(&self.host)
    }

    /// Host and port by which other servers of the cluster reach it.
    #[must_use]
    pub fn peer_address(&self) -> String {
        let given = self.peers.advertise.clone();
        given.unwrap_or_else(|| self.advertise.to_string())
    }

    /// Host and port, for discovery.
    #[must_use]
    pub fn external_address(&self) -> String {
        let port = self.advertise.port();
        match self.external_hostname.as_deref() {
            None | Some("") => self.advertise.to_string(),
            Some(host) if has_port(host) => host.to_owned(),
            Some(host) if host.contains(':') => format!("[{host}]:{port}"),
            Some(host) => format!("{host}:{port}"),
        }
    }
}

/// Whether a host says its port as well.
fn has_port(host: &str) -> bool {
    host.rsplit_once(':')
        .is_some_and(|(host, _)| !host.contains(':') || host.ends_with(']'))
}
