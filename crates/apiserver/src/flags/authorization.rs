//! Flags about what users may do.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::read;
use crate::authz::{AuthorizationConfiguration, Mode, Policies, Settings, WebhookSettings};
use crate::go_duration;

#[derive(clap::Args, Debug)]
pub struct AuthorizationArgs {
    /// Authorizers in order: AlwaysAllow, AlwaysDeny, ABAC, Webhook, RBAC, Node. AlwaysAllow by default.
    #[arg(long, value_delimiter = ',', conflicts_with = "authorization_config")]
    authorization_mode: Vec<String>,
    /// Policies for ABAC, one JSON object a line.
    #[arg(long)]
    authorization_policy_file: Option<PathBuf>,
    /// Kubeconfig of the service that --authorization-mode=Webhook asks.
    #[arg(long, conflicts_with = "authorization_config")]
    authorization_webhook_config_file: Option<PathBuf>,
    /// API version of the SubjectAccessReview to send: v1 or v1beta1.
    #[arg(long, default_value = "v1beta1", value_parser = ["v1", "v1beta1"])]
    authorization_webhook_version: String,
    #[arg(long, default_value = "5m", value_parser = go_duration::parse)]
    authorization_webhook_cache_authorized_ttl: Duration,
    #[arg(long, default_value = "30s", value_parser = go_duration::parse)]
    authorization_webhook_cache_unauthorized_ttl: Duration,
    /// File with an AuthorizationConfiguration; read again when it changes.
    #[arg(long)]
    authorization_config: Option<PathBuf>,
}

impl AuthorizationArgs {
    /// # Errors
    /// When a file cannot be read, or what the flags say makes no sense.
    pub(super) fn settings(&self) -> anyhow::Result<Settings> {
        let policies = self
            .authorization_policy_file
            .as_deref()
            .map(|path| {
                let policies = Policies::parse(&read(path)?);
                policies
                    .map(Arc::new)
                    .context("--authorization-policy-file")
            })
            .transpose()?;
        let modes = match &self.authorization_config {
            Some(path) => AuthorizationConfiguration::parse(&read(path)?, policies.as_ref())
                .with_context(|| path.display().to_string())?,
            None => self.modes(policies.as_ref())?,
        };
        Ok(Settings {
            modes,
            config_file: self.authorization_config.clone(),
            policies,
        })
    }

    fn modes(&self, policies: Option<&Arc<Policies>>) -> anyhow::Result<Vec<Mode>> {
        let names = &self.authorization_mode;
        if names.is_empty() {
            return Ok(vec![Mode::AlwaysAllow]);
        }
        if (1..names.len()).any(|i| names[..i].contains(&names[i])) {
            bail!("authorization-mode {names:?} has mode specified more than once");
        }
        let has = |name: &str| names.iter().any(|n| n == name);
        if policies.is_some() && !has("ABAC") {
            bail!("cannot specify --authorization-policy-file without mode ABAC");
        }
        let webhook = self.authorization_webhook_config_file.as_ref();
        if webhook.is_some() && !has("Webhook") {
            bail!("cannot specify --authorization-webhook-config-file without mode Webhook");
        }
        names.iter().map(|name| self.mode(name, policies)).collect()
    }

    fn mode(&self, name: &str, policies: Option<&Arc<Policies>>) -> anyhow::Result<Mode> {
        Ok(match name {
            "AlwaysAllow" => Mode::AlwaysAllow,
            "AlwaysDeny" => Mode::AlwaysDeny,
            "Node" => Mode::Node,
            "RBAC" => Mode::Rbac,
            "ABAC" => Mode::Abac(
                policies
                    .context("authorization-mode ABAC's authorization policy file not passed")?
                    .clone(),
            ),
            "Webhook" => Mode::Webhook(WebhookSettings {
                name: "default".into(),
                kubeconfig: self
                    .authorization_webhook_config_file
                    .clone()
                    .context("authorization-mode Webhook's authorization config file not passed")?,
                version: if self.authorization_webhook_version == "v1" {
                    "v1"
                } else {
                    "v1beta1"
                },
                timeout: Duration::from_secs(30),
                authorized_ttl: self.authorization_webhook_cache_authorized_ttl,
                unauthorized_ttl: self.authorization_webhook_cache_unauthorized_ttl,
                deny_on_failure: false,
                match_conditions: Vec::new(),
            }),
            other => bail!("authorization-mode {other:?} is not a valid mode"),
        })
    }
}
