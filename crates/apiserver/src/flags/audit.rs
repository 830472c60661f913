//! Flags about the audit log.

use clap::ArgAction;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::read;
use crate::audit::{
    Batching, Delivery, Format, LogSettings, Mode, Policy, Settings, Truncation, WebhookSettings,
};
use crate::{go_bool, go_duration};

/// Events a queue holds before what comes next is lost.
const BUFFER: usize = 10_000;

#[derive(clap::Args, Debug)]
pub struct AuditArgs {
    /// File that says which requests are audited, and how much of them. None are without it.
    #[arg(long)]
    audit_policy_file: Option<PathBuf>,
    /// File that events are written to; "-" for standard output.
    #[arg(long)]
    audit_log_path: Option<PathBuf>,
    /// json or legacy.
    #[arg(long, default_value = "json", value_parser = ["json", "legacy"])]
    audit_log_format: String,
    /// API version of the events in the log.
    #[arg(long, default_value = "audit.k8s.io/v1", value_parser = ["audit.k8s.io/v1"])]
    audit_log_version: String,
    /// Days that old log files are kept.
    #[arg(long, default_value_t = 0)]
    audit_log_maxage: u64,
    /// Old log files that are kept.
    #[arg(long, default_value_t = 0)]
    audit_log_maxbackup: usize,
    /// Megabytes after which another file is begun.
    #[arg(long, default_value_t = 0)]
    audit_log_maxsize: u64,
    /// Compresses old log files.
    #[arg(long, value_parser = go_bool::parse, action = ArgAction::Set, num_args = 0..=1, default_value_t = false, default_missing_value = "true", require_equals = true)]
    audit_log_compress: bool,
    /// batch, blocking or blocking-strict.
    #[arg(long, default_value = "blocking", value_parser = MODES)]
    audit_log_mode: String,
    #[arg(long, default_value_t = BUFFER)]
    audit_log_batch_buffer_size: usize,
    #[arg(long, default_value_t = 1)]
    audit_log_batch_max_size: usize,
    #[arg(long, default_value = "0s", value_parser = go_duration::parse)]
    audit_log_batch_max_wait: Duration,
    #[arg(long, value_parser = go_bool::parse, action = ArgAction::Set, num_args = 0..=1, default_value_t = false, default_missing_value = "true", require_equals = true)]
    audit_log_batch_throttle_enable: bool,
    #[arg(long, default_value_t = 0.0)]
    audit_log_batch_throttle_qps: f64,
    #[arg(long, default_value_t = 0)]
    audit_log_batch_throttle_burst: u32,
    #[arg(long, value_parser = go_bool::parse, action = ArgAction::Set, num_args = 0..=1, default_value_t = false, default_missing_value = "true", require_equals = true)]
    audit_log_truncate_enabled: bool,
    #[arg(long, default_value_t = MAX_BATCH)]
    audit_log_truncate_max_batch_size: usize,
    #[arg(long, default_value_t = MAX_EVENT)]
    audit_log_truncate_max_event_size: usize,
    /// Kubeconfig of a service that events are sent to.
    #[arg(long)]
    audit_webhook_config_file: Option<PathBuf>,
    /// API version of the events that are sent.
    #[arg(long, default_value = "audit.k8s.io/v1", value_parser = ["audit.k8s.io/v1"])]
    audit_webhook_version: String,
    /// How long to wait before a failed call is repeated.
    #[arg(long, default_value = "10s", value_parser = go_duration::parse)]
    audit_webhook_initial_backoff: Duration,
    /// batch, blocking or blocking-strict.
    #[arg(long, default_value = "batch", value_parser = MODES)]
    audit_webhook_mode: String,
    #[arg(long, default_value_t = BUFFER)]
    audit_webhook_batch_buffer_size: usize,
    #[arg(long, default_value_t = 400)]
    audit_webhook_batch_max_size: usize,
    #[arg(long, default_value = "30s", value_parser = go_duration::parse)]
    audit_webhook_batch_max_wait: Duration,
    #[arg(long, value_parser = go_bool::parse, action = ArgAction::Set, num_args = 0..=1, default_value_t = true, default_missing_value = "true", require_equals = true)]
    audit_webhook_batch_throttle_enable: bool,
    #[arg(long, default_value_t = 10.0)]
    audit_webhook_batch_throttle_qps: f64,
    #[arg(long, default_value_t = 15)]
    audit_webhook_batch_throttle_burst: u32,
    #[arg(long, value_parser = go_bool::parse, action = ArgAction::Set, num_args = 0..=1, default_value_t = false, default_missing_value = "true", require_equals = true)]
    audit_webhook_truncate_enabled: bool,
    #[arg(long, default_value_t = MAX_BATCH)]
    audit_webhook_truncate_max_batch_size: usize,
    #[arg(long, default_value_t = MAX_EVENT)]
    audit_webhook_truncate_max_event_size: usize,
}

const MODES: [&str; 3] = ["batch", "blocking", "blocking-strict"];
const MAX_BATCH: usize = 10 * 1024 * 1024;
const MAX_EVENT: usize = 100 * 1024;

impl AuditArgs {
    /// # Errors
    /// When a file cannot be read, or what the flags say makes no sense.
    pub(super) fn settings(&self) -> anyhow::Result<Settings> {
        let policy = self.audit_policy_file.as_deref().map(|path| {
            let policy = Policy::parse(&read(path)?);
            policy.with_context(|| format!("loading audit policy file {}", path.display()))
        });
        let log = self.audit_log_path.as_ref().map(|path| {
            let settings = LogSettings {
                path: path.clone(),
                format: match self.audit_log_format.as_str() {
                    "legacy" => Format::Legacy,
                    _ => Format::Json,
                },
                max_age: self.audit_log_maxage,
                max_backups: self.audit_log_maxbackup,
                max_size: self.audit_log_maxsize,
                compress: self.audit_log_compress,
            };
            anyhow::Ok((settings, self.log_delivery()?))
        });
        let webhook = self.audit_webhook_config_file.as_ref().map(|path| {
            let settings = WebhookSettings {
                kubeconfig: path.clone(),
                initial_backoff: self.audit_webhook_initial_backoff,
            };
            anyhow::Ok((settings, self.webhook_delivery()?))
        });
        Ok(Settings {
            policy: policy.transpose()?,
            log: log.transpose()?,
            webhook: webhook.transpose()?,
        })
    }

    fn log_delivery(&self) -> anyhow::Result<Delivery> {
        delivery(
            "log",
            &self.audit_log_mode,
            Batching {
                buffer: self.audit_log_batch_buffer_size,
                max_size: self.audit_log_batch_max_size,
                max_wait: self.audit_log_batch_max_wait,
                throttle: self.audit_log_batch_throttle_enable.then_some((
                    self.audit_log_batch_throttle_qps,
                    self.audit_log_batch_throttle_burst,
                )),
                concurrent: false,
            },
            self.audit_log_truncate_enabled.then_some(Truncation {
                max_event: self.audit_log_truncate_max_event_size,
                max_batch: self.audit_log_truncate_max_batch_size,
            }),
        )
    }

    fn webhook_delivery(&self) -> anyhow::Result<Delivery> {
        delivery(
            "webhook",
            &self.audit_webhook_mode,
            Batching {
                buffer: self.audit_webhook_batch_buffer_size,
                max_size: self.audit_webhook_batch_max_size,
                max_wait: self.audit_webhook_batch_max_wait,
                throttle: self.audit_webhook_batch_throttle_enable.then_some((
                    self.audit_webhook_batch_throttle_qps,
                    self.audit_webhook_batch_throttle_burst,
                )),
                concurrent: true,
            },
            self.audit_webhook_truncate_enabled.then_some(Truncation {
                max_event: self.audit_webhook_truncate_max_event_size,
                max_batch: self.audit_webhook_truncate_max_batch_size,
            }),
        )
    }
}

fn delivery(
    backend: &str,
    mode: &str,
    batching: Batching,
    truncation: Option<Truncation>,
) -> anyhow::Result<Delivery> {
    let mode = match mode {
        "batch" => Mode::Batch,
        "blocking-strict" => Mode::BlockingStrict,
        _ => Mode::Blocking,
    };
    if mode == Mode::Batch {
        if batching.buffer == 0 {
            bail!("invalid audit batch {backend} buffer size 0, must be a positive number");
        }
        if batching.max_size == 0 {
            bail!("invalid audit batch {backend} max batch size 0, must be a positive number");
        }
        if let Some((rate, burst)) = batching.throttle {
            if rate <= 0.0 {
                bail!(
                    "invalid audit batch {backend} throttle QPS {rate}, must be a positive number"
                );
            }
            if burst == 0 {
                bail!("invalid audit batch {backend} throttle burst 0, must be a positive number");
            }
        }
    }
    if let Some(truncation) = truncation
        && (truncation.max_event == 0 || truncation.max_batch < truncation.max_event)
    {
        bail!(
            "invalid audit truncate {backend} sizes: a batch must hold an event, and an event something"
        );
    }
    Ok(Delivery {
        mode,
        batching,
        truncation,
    })
}
