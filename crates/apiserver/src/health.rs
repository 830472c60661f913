//! `/healthz`, `/livez` and `/readyz`.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::time::Duration;

use ::http::{Response, StatusCode};

use crate::Server;
use crate::go_duration;
use crate::http::{Body, text};
use crate::request::Query;
use crate::startup::Step;

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

/// One thing that is asked.
struct Check {
    name: Cow<'static, str>,
    /// Excluded, it excludes all of them.
    group: Option<&'static str>,
    passes: bool,
}

impl Check {
    fn new(name: impl Into<Cow<'static, str>>, passes: bool) -> Self {
        Self {
            name: name.into(),
            group: None,
            passes,
        }
    }
}

/// What is asked at an endpoint, in upstream's order.
async fn checks(server: &Server, endpoint: &str) -> Vec<Check> {
    let is_readyz = endpoint == "readyz";
    let timeouts = &server.config.etcd_checks;
    let mut checks = vec![Check::new("ping", true)];
    checks.extend(stores(server, "etcd", timeouts.etcd_healthcheck_timeout).await);
    if is_readyz {
        checks.extend(stores(server, "etcd-readiness", timeouts.etcd_readycheck_timeout).await);
    }
    let startup = &server.startup;
    let is_graced = endpoint == "livez" && startup.is_graced();
    checks.extend(Step::ALL.map(|step| {
        let passes = is_graced || startup.has_finished(step);
        Check::new(step.check(), passes)
    }));
    if is_readyz {
        checks.push(Check::new("informer-sync", server.caches.are_filled()));
        checks.push(Check::new("shutdown", !server.is_shutting_down()));
    }
    let encryption = &server.config.storage.encryption;
    if endpoint != "livez" && encryption.has_health() {
        checks.push(Check::new(
            "kms-providers",
            encryption.check().await.is_ok(),
        ));
    }
    checks
}

/// Asks all stores at once; those besides the main one are numbered.
async fn stores(server: &Server, check: &'static str, timeout: Duration) -> Vec<Check> {
    let asked = server
        .caches
        .feeds()
        .enumerate()
        .map(|(place, feed)| async move {
            let answer = tokio::time::timeout(timeout, feed.is_healthy()).await;
            let name = match place.checked_sub(1) {
                None => check.into(),
                Some(number) => {
                    let readiness = check.trim_start_matches("etcd");
                    Cow::Owned(format!("etcd-override{readiness}-{number}"))
                }
            };
            Check {
                name,
                group: Some(check),
                passes: answer == Ok(true),
            }
        });
    futures::future::join_all(asked).await
}

/// Answers a health path; `None` for a check that does not exist.
pub(crate) async fn answer(server: &Server, path: &str, query: &Query) -> Option<Response<Body>> {
    let endpoint = endpoint_of(path);
    let checks = checks(server, endpoint).await;
    if let Some(single) = path
        .trim_start_matches('/')
        .split_once('/')
        .map(|(_, check)| check)
        .filter(|c| !c.is_empty())
    {
        let check = checks.iter().find(|check| check.name == single)?;
        return Some(if check.passes {
            text(StatusCode::OK, "ok")
        } else {
            text(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal server error: not ready",
            )
        });
    }
    let is_excluded = |name: &str| query.all("exclude").any(|excluded| excluded == name);
    let mut report = String::new();
    let mut healthy = true;
    for check in &checks {
        let name = &check.name;
        let line = if is_excluded(name) {
            format!("[+]{name} excluded: ok\n")
        } else if let Some(group) = check.group.filter(|group| is_excluded(group)) {
            format!("[+]{name} excluded with {group}: ok\n")
        } else if check.passes {
            format!("[+]{name} ok\n")
        } else {
            healthy = false;
            format!("[-]{name} failed: reason withheld\n")
        };
        report.push_str(&line);
    }
    let is_known = |name: &str| {
        checks
            .iter()
            .any(|check| check.name == name || check.group == Some(name))
    };
    let unknown = query.all("exclude").filter(|name| !is_known(name));
    let unknown: BTreeSet<String> = unknown.map(|name| format!("{name:?}")).collect();
    if !unknown.is_empty() {
        let unknown: Vec<String> = unknown.into_iter().collect();
        report.push_str(&format!(
            "warn: some health checks cannot be excluded: no matches for {}\n",
            unknown.join(",")
        ));
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
