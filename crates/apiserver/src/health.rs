//! `/healthz`, `/livez` and `/readyz`.

use std::time::Duration;

use ::http::{Response, StatusCode};

use crate::Server;
use crate::go_duration;
use crate::http::{Body, text};
use crate::request::Query;

/// Flags about what is asked of the store besides requests.
#[derive(clap::Args, Clone, Debug)]
pub struct EtcdChecks {
    /// How long the store may take to answer before the server counts as unhealthy.
    #[arg(long, default_value = "2s", value_parser = go_duration::parse)]
    pub etcd_healthcheck_timeout: Duration,
    /// How long it may take before the server counts as not ready.
    #[arg(long, default_value = "2s", value_parser = go_duration::parse)]
    pub etcd_readycheck_timeout: Duration,
    /// How old the numbers of objects in the metrics may be, which are always those of now; 0 leaves them out.
    #[arg(long, default_value = "1m0s", value_parser = go_duration::parse)]
    pub etcd_count_metric_poll_period: Duration,
}

impl Default for EtcdChecks {
    fn default() -> Self {
        Self {
            etcd_healthcheck_timeout: Duration::from_secs(2),
            etcd_readycheck_timeout: Duration::from_secs(2),
            etcd_count_metric_poll_period: Duration::from_secs(60),
        }
    }
}

/// Whether a path is about health.
pub(crate) fn is_health(path: &str) -> bool {
    matches!(endpoint_of(path), "livez" | "healthz" | "readyz")
}

fn endpoint_of(path: &str) -> &str {
    let mut parts = path.trim_start_matches('/').split('/');
    parts.next().unwrap_or_default()
}

/// Answers a health path; `None` for a check that does not exist.
pub(crate) async fn answer(server: &Server, path: &str, query: &Query) -> Option<Response<Body>> {
    let timeouts = &server.config.etcd_checks;
    let store = |timeout| async move {
        let answer = tokio::time::timeout(timeout, server.caches.consistent()).await;
        matches!(answer, Ok(Ok(_)))
    };
    let etcd = store(timeouts.etcd_healthcheck_timeout).await;
    let etcd_ready = endpoint_of(path) == "readyz" && store(timeouts.etcd_readycheck_timeout).await;
    let encryption = &server.config.storage.encryption;
    let (has_kms, kms) = (encryption.has_health(), encryption.check().await);
    let endpoint = endpoint_of(path);
    let mut checks = match endpoint {
        "livez" | "healthz" => vec!["ping", "etcd"],
        "readyz" => vec![
            "ping",
            "etcd",
            "etcd-readiness",
            "poststarthook/rbac/bootstrap-roles",
            "informer-sync",
            "shutdown",
        ],
        _ => return None,
    };
    if has_kms {
        checks.push("kms-providers");
    }
    let passes = |check: &str| match check {
        "ping" => true,
        "etcd" => etcd,
        "etcd-readiness" => etcd_ready,
        "kms-providers" => kms.is_ok(),
        "shutdown" => !server.is_shutting_down(),
        _ => server.is_ready(),
    };
    let excluded = |check: &str| query.all("exclude").any(|e| e == check);
    if let Some(single) = path
        .trim_start_matches('/')
        .split_once('/')
        .map(|(_, check)| check)
        .filter(|c| !c.is_empty())
    {
        if !checks.contains(&single) {
            return None;
        }
        return Some(if passes(single) {
            text(StatusCode::OK, "ok")
        } else {
            text(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal server error: not ready",
            )
        });
    }
    let mut report = String::new();
    let mut healthy = true;
    for check in checks.iter().filter(|c| !excluded(c)) {
        let passed = passes(check);
        healthy &= passed;
        let (mark, word) = if passed {
            ('+', "ok")
        } else {
            ('-', "failed: reason withheld")
        };
        report.push_str(&format!("[{mark}]{check} {word}\n"));
    }
    if healthy && !query.flag("verbose") {
        return Some(text(StatusCode::OK, "ok"));
    }
    let verdict = if healthy { "passed" } else { "failed" };
    report.push_str(&format!("{endpoint} check {verdict}\n"));
    let status = if healthy {
        StatusCode::OK
    } else {
        StatusCode::INTERNAL_SERVER_ERROR
    };
    Some(text(status, report))
}
