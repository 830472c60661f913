//! kube-apiserver alone: `fluyt kube-apiserver`, with upstream's flags.

mod absent;
mod admission;
mod audit;
mod authentication;
mod authorization;
mod etcd;
mod flow_control;
mod serving;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::parser::ValueSource;
use clap::{ArgAction, ArgMatches, Args as _, Command};
use ipnet::IpNet;
use tokio_util::sync::CancellationToken;

use crate::aggregator::Routing;
use crate::browsers::Browsers;
use crate::egress::Egress;
use crate::endpoint_reconciler::Endpoints;
use crate::health::EtcdChecks;
use crate::identity;
use crate::limits;
use crate::listen::{TlsSettings, Usual};
use crate::metrics::Exposition;
use crate::peers::PeerFlags;
use crate::served;
use crate::{
    Component, Config, Features, Limits, Server, ServiceNetwork, Signer, Signing, StartupFlags,
    TracingConfiguration, go_bool,
};

use absent::AbsentArgs;
use admission::AdmissionArgs;
use audit::AuditArgs;
use authentication::AuthenticationArgs;
use authorization::AuthorizationArgs;
use etcd::EtcdArgs;
use flow_control::FlowControlArgs;
use serving::ServingArgs;

/// The command line of kube-apiserver: its flags, and what they were given as.
#[derive(Debug)]
pub struct Args {
    flags: ServerFlags,
    /// Every flag's value as text.
    given: BTreeMap<String, String>,
    /// Flags that were given and will not be there for ever, and what is to be used instead.
    deprecated: Vec<(&'static str, &'static str)>,
}

/// Flags that upstream is to drop, and its advice.
const DEPRECATED: [(&str, &str); 6] = [
    (
        "admission-control",
        "Use --enable-admission-plugins or --disable-admission-plugins instead. Will be removed in a future version.",
    ),
    (
        "apiserver-count",
        "apiserver-count is deprecated and will be removed in a future version.",
    ),
    (
        "default-watch-cache-size",
        "watch caches are sized automatically and this flag will be removed in a future version",
    ),
    (
        "enable-logs-handler",
        "Log handler functionality is deprecated",
    ),
    (
        "kubelet-port",
        "kubelet-port is deprecated and will be removed.",
    ),
    (
        "kubelet-read-only-port",
        "kubelet-read-only-port is deprecated and will be removed.",
    ),
];

fn deprecated(matches: &ArgMatches) -> Vec<(&'static str, &'static str)> {
    let is_given = |flag: &str| {
        let source = matches.value_source(&flag.replace('-', "_"));
        source == Some(ValueSource::CommandLine)
    };
    let given = DEPRECATED.into_iter().filter(|(flag, _)| is_given(flag));
    given.collect()
}

impl clap::FromArgMatches for Args {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self {
            given: given(matches),
            deprecated: deprecated(matches),
            flags: ServerFlags::from_arg_matches(matches)?,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.given = given(matches);
        self.deprecated = deprecated(matches);
        self.flags.update_from_arg_matches(matches)
    }
}

impl clap::Args for Args {
    fn augment_args(command: Command) -> Command {
        ServerFlags::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        ServerFlags::augment_args_for_update(command)
    }
}

/// The values of flags, as upstream writes them: lists in brackets.
fn given(matches: &ArgMatches) -> BTreeMap<String, String> {
    let command = ServerFlags::augment_args(Command::new("kube-apiserver"));
    let flags = command.get_arguments().filter_map(|flag| {
        let name = flag.get_long()?.to_owned();
        let values = matches
            .get_raw(flag.get_id().as_str())
            .into_iter()
            .flatten();
        let values: Vec<_> = values.map(|value| value.to_string_lossy()).collect();
        let text = values.join(",");
        let is_list = matches!(flag.get_action(), ArgAction::Append);
        Some((name, if is_list { format!("[{text}]") } else { text }))
    });
    flags.collect()
}

const ADDRESS_TYPES: [&str; 5] = [
    "Hostname",
    "InternalDNS",
    "InternalIP",
    "ExternalDNS",
    "ExternalIP",
];

/// Flags of kube-apiserver.
#[derive(clap::Args, Debug)]
struct ServerFlags {
    #[command(flatten)]
    etcd: EtcdArgs,
    #[command(flatten)]
    serving: ServingArgs,
    /// Range that services' addresses are from, or two of different families, comma separated.
    #[arg(long, value_delimiter = ',', default_value = "10.0.0.0/24")]
    service_cluster_ip_range: Vec<IpNet>,
    #[arg(long, default_value = "30000-32767")]
    service_node_port_range: String,
    #[command(flatten)]
    admission: AdmissionArgs,
    /// Authorities of clients' certificates.
    #[arg(long)]
    client_ca_file: Option<PathBuf>,
    /// Socket of a program that signs service-account tokens and knows the keys that verify them, or `@` and an abstract name.
    #[arg(long)]
    service_account_signing_endpoint: Option<String>,
    /// RSA, P-256 or P-384 key that signs service-account tokens, and verifies them unless other keys do.
    #[arg(long)]
    service_account_signing_key_file: Option<PathBuf>,
    #[command(flatten)]
    authentication: AuthenticationArgs,
    #[command(flatten)]
    authorization: AuthorizationArgs,
    #[command(flatten)]
    audit: AuditArgs,
    #[command(flatten)]
    flow_control: FlowControlArgs,
    /// Defaults to the issuer.
    #[arg(long, value_delimiter = ',')]
    api_audiences: Vec<String>,
    #[arg(long, requires = "kubelet_client_key")]
    kubelet_client_certificate: Option<PathBuf>,
    #[arg(long)]
    kubelet_client_key: Option<PathBuf>,
    #[arg(long)]
    kubelet_certificate_authority: Option<PathBuf>,
    #[arg(long, requires = "proxy_client_key_file")]
    proxy_client_cert_file: Option<PathBuf>,
    #[arg(long)]
    proxy_client_key_file: Option<PathBuf>,
    #[command(flatten)]
    limits: Limits,
    #[command(flatten)]
    etcd_checks: EtcdChecks,
    #[command(flatten)]
    metrics: Exposition,
    #[command(flatten)]
    startup: StartupFlags,
    #[command(flatten)]
    absent: AbsentArgs,
    #[command(flatten)]
    tls: TlsSettings,
    #[command(flatten)]
    browsers: Browsers,
    #[command(flatten)]
    routing: Routing,
    #[command(flatten)]
    endpoints: Endpoints,
    #[command(flatten)]
    peers: PeerFlags,
    /// Port of kubelets that do not say theirs; deprecated.
    #[arg(long, default_value_t = 10250)]
    kubelet_port: u16,
    /// How long it may take to reach a kubelet.
    #[arg(long, default_value = "5s", value_parser = limits::duration)]
    kubelet_timeout: Duration,
    /// Allow privileged containers.
    #[arg(long, value_parser = go_bool::parse, action = ArgAction::Set, num_args = 0..=1, default_value_t = false, default_missing_value = "true", require_equals = true)]
    allow_privileged: bool,
    /// How long events are kept.
    #[arg(long, default_value = "1h0m0s", value_parser = limits::duration)]
    event_ttl: Duration,
    /// Kinds of nodes' addresses by which kubelets are reached, the preferred ones first, comma separated.
    #[arg(long, value_delimiter = ',', value_parser = ADDRESS_TYPES, default_value = "Hostname,InternalDNS,InternalIP,ExternalDNS,ExternalIP")]
    kubelet_preferred_address_types: Vec<String>,
    #[command(flatten)]
    versions: served::Flags,
    /// File with a TracingConfiguration: where the spans of requests are sent, and of how many.
    #[arg(long)]
    tracing_config_file: Option<PathBuf>,
    /// File with an EgressSelectorConfiguration: the proxies that connections go through.
    #[arg(long)]
    egress_selector_config_file: Option<PathBuf>,
    /// Features to turn on and off: Name=bool, comma separated.
    #[arg(long)]
    feature_gates: Vec<String>,
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| path.display().to_string())
}

fn pair(
    certificate: Option<&PathBuf>,
    key: Option<&PathBuf>,
) -> anyhow::Result<Option<(String, String)>> {
    match (certificate, key) {
        (Some(certificate), Some(key)) => Ok(Some((read(certificate)?, read(key)?))),
        _ => Ok(None),
    }
}

impl ServerFlags {
    /// How tokens are signed.
    ///
    /// # Errors
    /// When that is said in no way or in two, or the signer does not do it.
    async fn signing(&self, shutdown: &CancellationToken) -> anyhow::Result<Signing> {
        let endpoint = self.service_account_signing_endpoint.as_deref();
        let key = self.service_account_signing_key_file.as_deref();
        match (endpoint.filter(|endpoint| !endpoint.is_empty()), key) {
            (None, None) => {
                bail!(
                    "--service-account-signing-key-file and --service-account-issuer are required flags"
                )
            }
            (None, Some(path)) => Ok(Signing::Key(read(path)?)),
            (Some(endpoint), key) => {
                ensure!(
                    key.is_none() && !self.authentication.has_keys(),
                    "can't set `--service-account-signing-key-file` and/or `--service-account-key-file` with `--service-account-signing-endpoint` (They are mutually exclusive)"
                );
                if let Some(name) = endpoint.strip_prefix('@') {
                    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
                    let is_name = name
                        .split('.')
                        .all(|part| !part.is_empty() && part.chars().all(is_part));
                    ensure!(
                        is_name,
                        "invalid value {endpoint:?} passed for `--service-account-signing-endpoint`, when prefixed with @ must be a valid abstract socket name"
                    );
                }
                let signer = Signer::connect(endpoint.to_owned(), shutdown.clone());
                Ok(Signing::External(signer.await?))
            }
        }
    }
}

/// The ranges of services' addresses.
fn cluster_ips(ranges: &[IpNet]) -> anyhow::Result<Vec<IpNet>> {
    const FLAG: &str = "--service-cluster-ip-range";
    match ranges {
        [] => bail!("{FLAG} must contain at least one valid cidr"),
        [_] => {}
        [first, second] => {
            if first.addr().is_ipv4() == second.addr().is_ipv4() {
                bail!("{FLAG}[0] and {FLAG}[1] must be of different IP family");
            }
        }
        _ => bail!("{FLAG} must not contain more than two entries"),
    }
    Ok(ranges.iter().map(IpNet::trunc).collect())
}

/// Runs until shutdown.
///
/// # Errors
/// When a file cannot be read, the store cannot be opened, or the port is taken.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    let Args {
        flags: args,
        given,
        deprecated,
    } = args;
    for (flag, advice) in deprecated {
        tracing::warn!("Flag --{flag} has been deprecated, {advice}");
    }
    let Some((low, high)) = args.service_node_port_range.split_once('-') else {
        bail!(
            "--service-node-port-range: `{}` is not FIRST-LAST",
            args.service_node_port_range
        );
    };
    let node_ports = (
        low.parse().context("--service-node-port-range")?,
        high.parse().context("--service-node-port-range")?,
    );
    args.absent.check()?;
    args.tls.check()?;
    args.endpoints.check(node_ports)?;
    let gates = args.feature_gates.join(",");
    let features = Features::parse(&gates, args.versions.versions()?).context("--feature-gates")?;
    let proxy_client = pair(
        args.proxy_client_cert_file.as_ref(),
        args.proxy_client_key_file.as_ref(),
    )?;
    let peers = args.peers.settings(features, proxy_client.as_ref())?;
    let listener = args.serving.bind()?;
    let service_network = ServiceNetwork {
        cluster_ips: cluster_ips(&args.service_cluster_ip_range)?,
        node_ports,
    };
    let certificate = args.serving.certificate(service_network.first_address())?;
    let egress = args.egress_selector_config_file.as_deref();
    let egress = egress.map(Egress::load).transpose()?.unwrap_or_default();
    let signing = args.signing(&shutdown).await?;
    let lifetimes = args.authentication.token_lifetimes.clone();
    let lifetimes = match &signing {
        Signing::Key(_) => lifetimes,
        Signing::External(signer) => lifetimes.bounded_by(signer.max_expiration())?,
    };
    let store = args.etcd.store(egress.etcd.as_ref()).await?;
    let apart = args.etcd.apart(egress.etcd.as_ref()).await?;
    let storage = args.etcd.storage(&shutdown).await?;
    let audiences = if args.api_audiences.is_empty() {
        vec![args.authentication.issuer()]
    } else {
        args.api_audiences
    };
    let mut authentication = args.authentication.settings()?;
    let authorization = args.authorization.settings()?;
    if authorization.allows_everything() {
        AuthenticationArgs::without_anonymous(&mut authentication);
    }
    let admission = args.admission.settings()?;
    let tracing = args.tracing_config_file.as_deref();
    let tracing = tracing.map(TracingConfiguration::load);
    let flow_control = args.flow_control.settings()?;
    if flow_control.enabled {
        args.versions.check_flow_control()?;
    }
    let config = Config {
        admission,
        store,
        apart,
        storage,
        shares_store: args.etcd.shares_store(),
        host: identity::host(),
        peers,
        dialer: egress.cluster,
        components: Component::usual(),
        control_plane: egress.control_plane,
        advertise: args.serving.advertised(),
        external_hostname: args.serving.external_hostname,
        service_network,
        client_ca_pem: args
            .client_ca_file
            .as_deref()
            .map(read)
            .transpose()?
            .unwrap_or_default(),
        certificate: Usual::Files(certificate),
        service_account_signing: signing,
        service_account_issuer: args.authentication.issuer(),
        token_lifetimes: lifetimes,
        api_audiences: audiences,
        kubelet_client: pair(
            args.kubelet_client_certificate.as_ref(),
            args.kubelet_client_key.as_ref(),
        )?,
        kubelet_ca_pem: args
            .kubelet_certificate_authority
            .as_deref()
            .map(read)
            .transpose()?,
        proxy_client,
        requestheader_ca_pem: args
            .authentication
            .requestheader_client_ca_file
            .as_deref()
            .map(read)
            .transpose()?,
        authentication,
        authorization,
        audit: args.audit.settings()?,
        flow_control,
        features,
        flags: given,
        limits: args.limits,
        startup: args.startup,
        etcd_checks: args.etcd_checks,
        etcd_members: args
            .etcd
            .members(args.metrics.shows_hidden(), egress.etcd.as_ref())
            .await?,
        metrics: args.metrics,
        tls: args.tls,
        browsers: args.browsers,
        routing: args.routing,
        endpoints: args.endpoints,
        kubelet_port: args.kubelet_port,
        kubelet_timeout: args.kubelet_timeout,
        lease_reuse: args.etcd.lease_reuse_duration_seconds,
        allow_privileged: args.allow_privileged,
        enable_garbage_collector: args.etcd.enable_garbage_collector,
        event_ttl: args.event_ttl,
        kubelet_address_types: args.kubelet_preferred_address_types,
        compaction_interval: args.etcd.etcd_compaction_interval,
        served: args.versions.served(features)?,
        tracing: tracing.transpose()?,
        shutdown,
    };
    Box::pin(Server::run(config, listener)).await
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn every_flag_is_shown_with_its_value() {
        let needed = ["client-ca-file", "service-account-signing-key-file"];
        let given = needed.map(|flag| format!("--{flag}=/f"));
        let name = "kube-apiserver".to_owned();
        let others = ["--runtime-config=api/beta=true,apps/v1=false".to_owned()];
        let line = std::iter::once(name).chain(given).chain(others);
        let Args { flags, given, .. } = Cli::try_parse_from(line).unwrap().args;
        assert_eq!(flags.client_ca_file.as_deref(), Some(Path::new("/f")));
        for (flag, value) in [
            ("client-ca-file", "/f"),
            ("runtime-config", "[api/beta=true,apps/v1=false]"),
            ("secure-port", "6443"),
            ("emulation-forward-compatible", "false"),
            ("emulated-version", "[]"),
            ("advertise-address", ""),
        ] {
            assert_eq!(given[flag], value, "{flag}");
        }
    }

    #[test]
    fn services_have_one_range_of_a_family() {
        let parse = |ranges: &[&str]| {
            let ranges: Vec<IpNet> = ranges.iter().map(|r| r.parse().unwrap()).collect();
            cluster_ips(&ranges).map_err(|error| error.to_string())
        };
        assert_eq!(
            parse(&["10.0.0.9/24"]),
            Ok(vec!["10.0.0.0/24".parse().unwrap()])
        );
        assert!(parse(&["fd00::/112", "10.0.0.0/24"]).is_ok());
        assert_eq!(
            parse(&["10.0.0.0/24", "10.1.0.0/24"]).unwrap_err(),
            "--service-cluster-ip-range[0] and --service-cluster-ip-range[1] must be of different IP family"
        );
        let three = ["10.0.0.0/24", "fd00::/112", "10.1.0.0/24"];
        assert_eq!(
            parse(&three).unwrap_err(),
            "--service-cluster-ip-range must not contain more than two entries"
        );
    }
}
