//! `/healthz`, `/livez` and `/readyz`.

use ::http::{Response, StatusCode};

use crate::Server;
use crate::http::{Body, text};
use crate::request::Query;

/// Whether a path is about health.
pub(crate) fn is_health(path: &str) -> bool {
    matches!(
        path.trim_start_matches('/').split('/').next(),
        Some("livez" | "healthz" | "readyz")
    )
}

/// Answers a health path; `None` for a check that does not exist.
pub(crate) async fn answer(server: &Server, path: &str, query: &Query) -> Option<Response<Body>> {
    let ready = server.is_ready().await;
    let encryption = &server.config.storage.encryption;
    let (has_kms, kms) = (encryption.has_health(), encryption.check().await);
    let endpoint = path.trim_start_matches('/').split('/').next()?;
    let mut checks = match endpoint {
        "livez" | "healthz" => vec!["ping", "etcd"],
        "readyz" => vec![
            "ping",
            "etcd",
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
        "kms-providers" => kms.is_ok(),
        "shutdown" => !server.is_shutting_down(),
        _ => ready,
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
