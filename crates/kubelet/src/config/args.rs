//! Command line flags, named as upstream's, and the settings that come out of flags and `--config` together.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::Taint;

use super::kubelet_configuration::KubeletConfiguration;

/// Flags of `fluyt kubelet`. A flag that is given wins over the same field of `--config`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Args {
    /// A KubeletConfiguration (kubelet.config.k8s.io/v1beta1) file.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// How to reach the API server. Written by TLS bootstrap when it isn't there yet.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// How to reach the API server just to get a client certificate.
    #[arg(long)]
    pub bootstrap_kubeconfig: Option<PathBuf>,
    /// Where certificates and keys are kept.
    #[arg(long, default_value = "/var/lib/kubelet/pki")]
    pub cert_dir: PathBuf,
    #[arg(long, default_value = "/var/lib/kubelet")]
    pub root_dir: PathBuf,
    /// Where the pods' container logs are.
    #[arg(long, default_value = "/var/log/pods")]
    pub pod_logs_dir: PathBuf,
    /// The CRI socket.
    #[arg(long)]
    pub container_runtime_endpoint: Option<String>,
    /// The CRI socket for images, when it is another one.
    #[arg(long)]
    pub image_service_endpoint: Option<String>,
    /// The node's name; the host name by default.
    #[arg(long)]
    pub hostname_override: Option<String>,
    /// The node's addresses; that of the default route by default.
    #[arg(long, value_delimiter = ',')]
    pub node_ip: Vec<IpAddr>,
    /// Labels of the node when it registers, `key=value,…`.
    #[arg(long, value_delimiter = ',')]
    pub node_labels: Vec<String>,
    /// Taints of the node when it registers, `key=value:effect,…`.
    #[arg(long, value_delimiter = ',')]
    pub register_with_taints: Vec<String>,
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub register_node: Option<bool>,
    #[arg(long)]
    pub provider_id: Option<String>,
    /// `external` leaves the node's addresses and provider id to a cloud controller manager.
    #[arg(long)]
    pub cloud_provider: Option<String>,
    #[arg(long, value_delimiter = ',')]
    pub cluster_dns: Vec<String>,
    #[arg(long)]
    pub cluster_domain: Option<String>,
    #[arg(long)]
    pub pod_manifest_path: Option<PathBuf>,
    #[arg(long)]
    pub address: Option<IpAddr>,
    #[arg(long)]
    pub port: Option<u16>,
    #[arg(long)]
    pub healthz_bind_address: Option<IpAddr>,
    /// 0 turns the health server off.
    #[arg(long)]
    pub healthz_port: Option<u16>,
    #[arg(long)]
    pub tls_cert_file: Option<PathBuf>,
    #[arg(long)]
    pub tls_private_key_file: Option<PathBuf>,
    /// Clients with a certificate of this authority are who their certificate says.
    #[arg(long)]
    pub client_ca_file: Option<PathBuf>,
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub anonymous_auth: Option<bool>,
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub authentication_token_webhook: Option<bool>,
    /// `Webhook` or `AlwaysAllow`.
    #[arg(long)]
    pub authorization_mode: Option<String>,
    /// Ask for a serving certificate through the CSR API.
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub rotate_server_certificates: Option<bool>,
    #[arg(long)]
    pub max_pods: Option<u32>,
    /// Below which cgroup the pods' tree is made.
    #[arg(long)]
    pub cgroup_root: Option<String>,
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub cgroups_per_qos: Option<bool>,
    /// Amounts kept from pods for the system, `cpu=100m,memory=200Mi`.
    #[arg(long, value_delimiter = ',')]
    pub system_reserved: Vec<String>,
    /// Amounts kept from pods for Kubernetes' own processes.
    #[arg(long, value_delimiter = ',')]
    pub kube_reserved: Vec<String>,
    /// Thresholds of eviction, `memory.available<100Mi,nodefs.available<10%`.
    #[arg(long, value_delimiter = ',')]
    pub eviction_hard: Vec<String>,
    #[arg(long)]
    pub image_gc_high_threshold: Option<u8>,
    #[arg(long)]
    pub image_gc_low_threshold: Option<u8>,
    #[arg(long)]
    pub container_log_max_size: Option<String>,
    #[arg(long)]
    pub container_log_max_files: Option<u32>,
    /// Pull one image at a time.
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub serialize_image_pulls: Option<bool>,
    #[arg(long)]
    pub resolv_conf: Option<PathBuf>,
    /// Pods that name no seccomp profile get `RuntimeDefault`.
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub seccomp_default: Option<bool>,
    /// What `nodeInfo` tells as the version of kube-proxy and kubelet; ours by default.
    #[arg(long, hide = true)]
    pub emulated_version: Option<String>,
}

/// What the kubelet works with: flags over `--config` over defaults.
#[derive(Clone, Debug)]
pub struct Settings {
    pub kubeconfig: PathBuf,
    pub bootstrap_kubeconfig: Option<PathBuf>,
    pub cert_dir: PathBuf,
    pub root_dir: PathBuf,
    pub pod_logs_dir: PathBuf,
    pub runtime_endpoint: String,
    pub image_endpoint: String,
    pub node_name: String,
    pub node_ips: Vec<IpAddr>,
    pub node_labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    pub register_node: bool,
    pub provider_id: Option<String>,
    pub external_cloud: bool,
    pub cluster_dns: Vec<String>,
    pub cluster_domain: String,
    pub static_pod_path: Option<PathBuf>,
    pub address: IpAddr,
    pub port: u16,
    pub healthz_address: IpAddr,
    pub healthz_port: u16,
    pub tls_files: Option<(PathBuf, PathBuf)>,
    pub client_ca_file: Option<PathBuf>,
    pub anonymous_auth: bool,
    pub token_webhook: bool,
    pub authorization_webhook: bool,
    pub server_tls_bootstrap: bool,
    pub max_pods: u32,
    pub cgroup_root: String,
    pub cgroups_per_qos: bool,
    pub reserved: BTreeMap<String, String>,
    pub kube_reserved: BTreeMap<String, String>,
    pub eviction_hard: BTreeMap<String, String>,
    pub image_gc_high: u8,
    pub image_gc_low: u8,
    pub image_minimum_gc_age: Duration,
    pub log_max_size: i64,
    pub log_max_files: u32,
    pub serialize_image_pulls: bool,
    pub resolv_conf: PathBuf,
    pub seccomp_default: bool,
    pub kubelet_version: String,
    pub node_status_update_frequency: Duration,
    pub node_status_report_frequency: Duration,
    pub lease_seconds: i32,
    /// The longest a crashing container waits for its next start.
    pub max_container_restart: Duration,
}

/// The Kubernetes version this kubelet implements.
pub const VERSION: &str = "v1.36.0";

impl Args {
    /// Reads `--config` and puts everything together.
    pub fn settings(&self) -> anyhow::Result<Settings> {
        let file = match &self.config {
            Some(path) => KubeletConfiguration::read(path)?,
            None => KubeletConfiguration::default(),
        };
        let node_name = match &self.hostname_override {
            Some(name) => name.trim().to_lowercase(),
            None => nix::unistd::gethostname()
                .context("reading the host name")?
                .to_string_lossy()
                .trim()
                .to_lowercase(),
        };
        let runtime_endpoint = self
            .container_runtime_endpoint
            .clone()
            .or(file.container_runtime_endpoint.clone())
            .unwrap_or_else(|| "unix:///run/fluyt/cri.sock".into());
        let authorization = self
            .authorization_mode
            .clone()
            .or(file.authorization.as_ref().and_then(|a| a.mode.clone()))
            .unwrap_or_else(|| "Webhook".into());
        let authorization_webhook = match authorization.as_str() {
            "Webhook" => true,
            "AlwaysAllow" => false,
            other => bail!("--authorization-mode: {other:?} is neither Webhook nor AlwaysAllow"),
        };
        let authentication = file.authentication.clone().unwrap_or_default();
        let tls_cert = self.tls_cert_file.clone().or(file.tls_cert_file.clone());
        let tls_key = self
            .tls_private_key_file
            .clone()
            .or(file.tls_private_key_file.clone());
        let log_max_size = self
            .container_log_max_size
            .clone()
            .or(file.container_log_max_size.clone())
            .unwrap_or_else(|| "10Mi".into());
        let eviction_hard = if self.eviction_hard.is_empty() {
            file.eviction_hard.clone().unwrap_or_else(default_eviction)
        } else {
            pairs(&self.eviction_hard, '<').context("--eviction-hard")?
        };
        let mut taints = file.register_with_taints.clone().unwrap_or_default();
        for text in &self.register_with_taints {
            taints.push(parse_taint(text)?);
        }
        if self.cloud_provider.as_deref() == Some("external") {
            taints.push(Taint {
                key: "node.cloudprovider.kubernetes.io/uninitialized".into(),
                value: Some("true".into()),
                effect: "NoSchedule".into(),
                time_added: None,
            });
        }
        let pick = |flags: &[String], field: &Option<BTreeMap<String, String>>, name: &str| {
            if flags.is_empty() {
                Ok(field.clone().unwrap_or_default())
            } else {
                pairs(flags, '=').context(name.to_string())
            }
        };
        let seconds = |text: &Option<String>, default: u64| match text {
            Some(text) => parse_duration(text).with_context(|| format!("duration {text:?}")),
            None => Ok(Duration::from_secs(default)),
        };
        Ok(Settings {
            kubeconfig: self
                .kubeconfig
                .clone()
                .context("--kubeconfig says where the API server is")?,
            bootstrap_kubeconfig: self.bootstrap_kubeconfig.clone(),
            cert_dir: self.cert_dir.clone(),
            root_dir: self.root_dir.clone(),
            pod_logs_dir: file
                .pod_logs_dir
                .clone()
                .unwrap_or(self.pod_logs_dir.clone()),
            image_endpoint: self
                .image_service_endpoint
                .clone()
                .or(file.image_service_endpoint.clone())
                .unwrap_or_else(|| runtime_endpoint.clone()),
            runtime_endpoint,
            node_name,
            node_ips: self.node_ip.clone(),
            node_labels: pairs(&self.node_labels, '=').context("--node-labels")?,
            taints,
            register_node: self.register_node.or(file.register_node).unwrap_or(true),
            provider_id: self.provider_id.clone().or(file.provider_id.clone()),
            external_cloud: self.cloud_provider.as_deref() == Some("external"),
            cluster_dns: if self.cluster_dns.is_empty() {
                file.cluster_dns.clone().unwrap_or_default()
            } else {
                self.cluster_dns.clone()
            },
            cluster_domain: self
                .cluster_domain
                .clone()
                .or(file.cluster_domain.clone())
                .unwrap_or_else(|| "cluster.local".into()),
            static_pod_path: self
                .pod_manifest_path
                .clone()
                .or(file.static_pod_path.clone()),
            address: self.address.or(file.address).unwrap_or([0, 0, 0, 0].into()),
            port: self.port.or(file.port).unwrap_or(10250),
            healthz_address: self
                .healthz_bind_address
                .or(file.healthz_bind_address)
                .unwrap_or([127, 0, 0, 1].into()),
            healthz_port: self.healthz_port.or(file.healthz_port).unwrap_or(10248),
            tls_files: tls_cert.zip(tls_key),
            client_ca_file: self
                .client_ca_file
                .clone()
                .or(authentication.x509.and_then(|x509| x509.client_ca_file)),
            anonymous_auth: self
                .anonymous_auth
                .or(authentication.anonymous.and_then(|a| a.enabled))
                .unwrap_or(false),
            token_webhook: self
                .authentication_token_webhook
                .or(authentication.webhook.and_then(|w| w.enabled))
                .unwrap_or(true),
            authorization_webhook,
            server_tls_bootstrap: self
                .rotate_server_certificates
                .or(file.server_tls_bootstrap)
                .unwrap_or(false),
            max_pods: self.max_pods.or(file.max_pods).unwrap_or(110),
            cgroup_root: self
                .cgroup_root
                .clone()
                .or(file.cgroup_root.clone())
                .unwrap_or_else(|| "/".into()),
            cgroups_per_qos: self
                .cgroups_per_qos
                .or(file.cgroups_per_qos)
                .unwrap_or(true),
            reserved: pick(
                &self.system_reserved,
                &file.system_reserved,
                "--system-reserved",
            )?,
            kube_reserved: pick(&self.kube_reserved, &file.kube_reserved, "--kube-reserved")?,
            eviction_hard,
            image_gc_high: self
                .image_gc_high_threshold
                .or(file.image_gc_high_threshold_percent)
                .unwrap_or(85),
            image_gc_low: self
                .image_gc_low_threshold
                .or(file.image_gc_low_threshold_percent)
                .unwrap_or(80),
            image_minimum_gc_age: seconds(&file.image_minimum_gc_age, 120)?,
            log_max_size: fluyt_volumes::quantity::value(
                &k8s_openapi::apimachinery::pkg::api::resource::Quantity(log_max_size.clone()),
            )
            .with_context(|| format!("containerLogMaxSize {log_max_size:?} is no quantity"))?,
            log_max_files: self
                .container_log_max_files
                .or(file.container_log_max_files)
                .unwrap_or(5)
                .max(2),
            serialize_image_pulls: self
                .serialize_image_pulls
                .or(file.serialize_image_pulls)
                .unwrap_or(true),
            resolv_conf: self
                .resolv_conf
                .clone()
                .or(file.resolv_conf.clone())
                .unwrap_or_else(|| "/etc/resolv.conf".into()),
            seccomp_default: self
                .seccomp_default
                .or(file.seccomp_default)
                .unwrap_or(false),
            kubelet_version: self
                .emulated_version
                .clone()
                .unwrap_or_else(|| VERSION.into()),
            node_status_update_frequency: seconds(&file.node_status_update_frequency, 10)?,
            node_status_report_frequency: seconds(&file.node_status_report_frequency, 300)?,
            lease_seconds: file.node_lease_duration_seconds.unwrap_or(40),
            max_container_restart: match &file.crash_loop_back_off {
                Some(backoff) => seconds(&backoff.max_container_restart_period, 300)?,
                None => Duration::from_secs(300),
            },
        })
    }
}

fn default_eviction() -> BTreeMap<String, String> {
    [
        ("memory.available", "100Mi"),
        ("nodefs.available", "10%"),
        ("imagefs.available", "15%"),
        ("nodefs.inodesFree", "5%"),
    ]
    .map(|(signal, amount)| (signal.to_string(), amount.to_string()))
    .into()
}

fn pairs(items: &[String], separator: char) -> anyhow::Result<BTreeMap<String, String>> {
    items
        .iter()
        .filter(|item| !item.is_empty())
        .map(|item| {
            let (key, value) = item
                .split_once(separator)
                .with_context(|| format!("{item:?} is not of the form key{separator}value"))?;
            Ok((key.trim().to_string(), value.trim().to_string()))
        })
        .collect()
}

/// `key=value:effect` or `key:effect`.
fn parse_taint(text: &str) -> anyhow::Result<Taint> {
    let (left, effect) = text
        .rsplit_once(':')
        .with_context(|| format!("--register-with-taints: {text:?} has no effect"))?;
    if !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) {
        bail!("--register-with-taints: invalid taint effect {effect:?}");
    }
    let (key, value) = left.split_once('=').unwrap_or((left, ""));
    Ok(Taint {
        key: key.into(),
        value: (!value.is_empty()).then(|| value.into()),
        effect: effect.into(),
        time_added: None,
    })
}

/// Go's duration text: `1h30m`, `10s`, `1.5s`, `500ms`.
pub fn parse_duration(text: &str) -> anyhow::Result<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    if rest == "0" {
        return Ok(total);
    }
    while !rest.is_empty() {
        let number = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .context("a number needs a unit")?;
        let (digits, tail) = rest.split_at(number);
        let unit = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => bail!("unknown unit {unit:?}"),
        };
        total += Duration::try_from_secs_f64(digits.parse::<f64>()? * seconds)?;
        rest = tail;
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        std::fs::write(
            &path,
            "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
             maxPods: 30\nclusterDNS: [10.0.0.10]\nnodeStatusUpdateFrequency: 1m30s\n\
             authentication: {x509: {clientCAFile: /ca.crt}}\n",
        )
        .unwrap();
        let args = Args {
            config: Some(path.clone()),
            kubeconfig: Some("/k".into()),
            max_pods: Some(50),
            node_labels: vec!["a=b".into()],
            register_with_taints: vec!["k=v:NoSchedule".into()],
            ..Args::default()
        };
        let settings = args.settings().unwrap();
        assert_eq!(settings.max_pods, 50);
        assert_eq!(settings.cluster_dns, ["10.0.0.10"]);
        assert_eq!(settings.client_ca_file.as_deref(), Some("/ca.crt".as_ref()));
        assert_eq!(
            settings.node_status_update_frequency,
            Duration::from_secs(90)
        );
        assert_eq!(settings.node_labels["a"], "b");
        assert_eq!(settings.taints[0].value.as_deref(), Some("v"));

        std::fs::write(&path, "kind: KubeletConfiguration\nmaxPodz: 3\n").unwrap();
        let error = format!("{:#}", args.settings().unwrap_err());
        assert!(error.contains("maxPodz"), "{error}");
    }

    #[test]
    fn bad_flags() {
        assert!(parse_taint("nothing").is_err());
        assert!(parse_taint("k=v:Sometimes").is_err());
        assert!(pairs(&["x".into()], '=').is_err());
        for (text, millis) in [
            ("1h", Some(3_600_000)),
            ("1.5s", Some(1500)),
            ("10", None),
            ("3d", None),
        ] {
            let parsed = parse_duration(text).ok().map(|d| d.as_millis());
            assert_eq!(parsed, millis, "{text}");
        }
    }
}
