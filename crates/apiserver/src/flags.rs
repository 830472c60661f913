//! kube-apiserver alone: `fluyt kube-apiserver`, with upstream's flags.

mod audit;
mod authentication;
mod authorization;
mod flow_control;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use fluyt_etcd::embedded::Embedded;
use fluyt_etcd::external::{self, External};
use fluyt_etcd::{DynStore, Rebased};
use ipnet::IpNet;
use tokio_util::sync::CancellationToken;

use crate::cache::REGISTRY;
use crate::dial::Direct;
use crate::served;
use crate::{Config, Encryption, Features, Limits, MediaType, Server, ServiceNetwork, Storage};

use audit::AuditArgs;
use authentication::AuthenticationArgs;
use authorization::AuthorizationArgs;
use flow_control::FlowControlArgs;

/// Flags of kube-apiserver.
#[derive(clap::Args, Debug)]
pub struct Args {
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
    #[arg(long, default_value = "0.0.0.0")]
    bind_address: IpAddr,
    #[arg(long, default_value_t = 6443)]
    secure_port: u16,
    /// Address that pods reach through the kubernetes service.
    #[arg(long)]
    advertise_address: Option<IpAddr>,
    /// Range that services' addresses are from, or two of different families, comma separated.
    #[arg(long, value_delimiter = ',', default_value = "10.0.0.0/24")]
    service_cluster_ip_range: Vec<IpNet>,
    #[arg(long, default_value = "30000-32767")]
    service_node_port_range: String,
    /// Admission plugins to turn on besides the default ones, comma separated.
    #[arg(long, value_delimiter = ',', value_parser = plugin)]
    enable_admission_plugins: Vec<String>,
    /// Default admission plugins to turn off, comma separated.
    #[arg(long, value_delimiter = ',', value_parser = plugin)]
    disable_admission_plugins: Vec<String>,
    #[arg(long)]
    client_ca_file: PathBuf,
    #[arg(long)]
    tls_cert_file: PathBuf,
    #[arg(long)]
    tls_private_key_file: PathBuf,
    /// RSA, P-256 or P-384 key that signs service-account tokens, and verifies them unless other keys do.
    #[arg(long)]
    service_account_signing_key_file: PathBuf,
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
    versions: served::Flags,
    /// Name=bool, separated by commas.
    #[arg(long, default_value = "")]
    feature_gates: String,
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

/// What keys start with in the store.
fn prefix(args: &Args) -> String {
    if args.etcd_servers.is_empty() {
        return REGISTRY.to_owned();
    }
    format!("/{}/", args.etcd_prefix.trim_matches('/'))
}

/// The form of objects in the store.
async fn storage(args: &Args, shutdown: &CancellationToken) -> anyhow::Result<Storage> {
    let encryption = match &args.encryption_provider_config {
        None => Arc::default(),
        Some(path) => {
            let reload = args.encryption_provider_config_automatic_reload;
            Encryption::load_file(path, &prefix(args), reload, shutdown.clone())
                .await
                .context("--encryption-provider-config")?
        }
    };
    Ok(Storage {
        media_type: args.storage_media_type,
        encryption,
    })
}

/// The store that the flags name.
async fn store(args: &Args) -> anyhow::Result<DynStore> {
    if args.etcd_servers.is_empty() {
        return Ok(Arc::new(Embedded::open(&args.data_dir)?));
    }
    let mut config = external::Config::new(args.etcd_servers.clone());
    config.ca_pem = args.etcd_cafile.as_deref().map(read).transpose()?;
    config.client_pem = pair(args.etcd_certfile.as_ref(), args.etcd_keyfile.as_ref())?;
    let store: DynStore = Arc::new(External::connect(config).await.context("--etcd-servers")?);
    let prefix = prefix(args);
    Ok(if prefix == REGISTRY {
        store
    } else {
        Arc::new(Rebased::new(store, REGISTRY, prefix))
    })
}

/// The name of an admission plugin that there is.
fn plugin(name: &str) -> Result<String, String> {
    if crate::admission::PLUGINS.contains(&name) {
        Ok(name.to_owned())
    } else {
        Err(format!("admission plugin {name:?} is unknown"))
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
    let listener = tokio::net::TcpListener::bind((args.bind_address, args.secure_port))
        .await
        .with_context(|| {
            format!(
                "cannot listen on {}:{}",
                args.bind_address, args.secure_port
            )
        })?;
    let advertise = args.advertise_address.unwrap_or_else(|| {
        if args.bind_address.is_unspecified() {
            IpAddr::V4(Ipv4Addr::LOCALHOST)
        } else {
            args.bind_address
        }
    });
    let store = store(&args).await?;
    let storage = storage(&args, &shutdown).await?;
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
    let mut disable_admission_plugins = args.disable_admission_plugins.clone();
    disable_admission_plugins.retain(|p| !args.enable_admission_plugins.contains(p));
    let config = Config {
        disable_admission_plugins,
        store,
        storage,
        shares_store: !args.etcd_servers.is_empty(),
        dialer: Arc::new(Direct),
        advertise: SocketAddr::new(advertise, args.secure_port),
        service_network: ServiceNetwork {
            cluster_ips: cluster_ips(&args.service_cluster_ip_range)?,
            node_ports,
        },
        client_ca_pem: read(&args.client_ca_file)?,
        tls_certificate_pem: read(&args.tls_cert_file)?,
        tls_key_pem: read(&args.tls_private_key_file)?,
        service_account_key_pem: read(&args.service_account_signing_key_file)?,
        service_account_issuer: args.authentication.issuer(),
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
        proxy_client: pair(
            args.proxy_client_cert_file.as_ref(),
            args.proxy_client_key_file.as_ref(),
        )?,
        requestheader_ca_pem: args
            .authentication
            .requestheader_client_ca_file
            .as_deref()
            .map(read)
            .transpose()?,
        authentication,
        authorization,
        audit: args.audit.settings()?,
        flow_control: args.flow_control.settings()?,
        features: Features::parse(&args.feature_gates)?,
        limits: args.limits,
        served: args.versions.served()?,
        shutdown,
    };
    let server = Server::start(config).await?;
    server.listen(listener).await
}

#[cfg(test)]
mod tests {
    use super::*;

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
