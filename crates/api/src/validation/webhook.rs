//! How webhooks are reached, as admission configurations and custom resource definitions say it.

use serde_json::Value;

use super::Errors;
use super::names::{dns_1035_label, dns_subdomain};
use super::url::Url;

/// The client configuration of a webhook: a URL or a service.
pub fn webhook_client(errors: &mut Errors, field: &str, client: &Value) {
    let (url, service) = (&client["url"], &client["service"]);
    match (url.as_str(), service.is_object()) {
        (Some(_), true) | (None, false) => {
            errors.required(field, "exactly one of url or service is required");
        }
        (Some(text), false) => webhook_url(errors, &format!("{field}.url"), text),
        (None, true) => webhook_service(errors, &format!("{field}.service"), service),
    }
}

fn webhook_url(errors: &mut Errors, field: &str, text: &str) {
    const FORM: &str = "; desired format: https://host[/path]";
    let url = match Url::parse(text) {
        Ok(url) => url,
        Err(why) => {
            return errors.required(field, &format!("url must be a valid URL: {why}{FORM}"));
        }
    };
    if url.scheme != "https" {
        let detail = format!("'https' is the only allowed URL scheme{FORM}");
        errors.invalid_text(field, &url.scheme, &detail);
    }
    if url.host.is_empty() {
        errors.invalid_text(field, "", &format!("host must be specified{FORM}"));
    }
    if let Some(user) = url.user {
        errors.invalid_text(field, &user, "user information is not permitted in the URL");
    }
    if !url.fragment.is_empty() {
        let detail = "fragments are not permitted in the URL";
        errors.invalid_text(field, &url.fragment, detail);
    }
    if !url.query.is_empty() {
        let detail = "query parameters are not permitted in the URL";
        errors.invalid_text(field, &url.query, detail);
    }
}

fn webhook_service(errors: &mut Errors, field: &str, service: &Value) {
    // Upstream takes one for the other here.
    for (absent, told) in [("namespace", "name"), ("name", "namespace")] {
        if service[absent].as_str().unwrap_or_default().is_empty() {
            errors.required(format!("{field}.{told}"), "");
        }
    }
    let port = service["port"].as_i64().unwrap_or(443);
    if !(1..=65535).contains(&port) {
        let detail = "port is not valid: must be between 1 and 65535, inclusive";
        errors.invalid(format!("{field}.port"), &port.into(), detail);
    }
    let path = service["path"].as_str().unwrap_or_default();
    if path.is_empty() || path == "/" {
        return;
    }
    let (at, value) = (format!("{field}.path"), Value::from(path));
    if path == "//" {
        errors.invalid(&at, &value, "segment[0] may not be empty");
        return;
    }
    if !path.starts_with('/') {
        errors.invalid(&at, &value, "must start with a '/'");
    }
    // Whatever is there instead of the slash counts as one.
    let mut segments = path.chars();
    segments.next();
    let segments = segments.as_str();
    let segments = segments.strip_suffix('/').unwrap_or(segments);
    for (i, segment) in segments.split('/').enumerate() {
        if segment.is_empty() {
            errors.invalid(&at, &value, &format!("segment[{i}] may not be empty"));
            continue;
        }
        for problem in dns_subdomain(segment) {
            errors.invalid(&at, &value, &format!("segment[{i}]: {problem}"));
        }
    }
}

/// The review versions that a webhook understands.
pub fn review_versions(
    errors: &mut Errors,
    field: &str,
    versions: &[&Value],
    known: &[&str],
    require_known: bool,
) {
    if versions.is_empty() {
        errors.required(field, "");
        return;
    }
    for (i, version) in versions.iter().enumerate() {
        if versions[..i].contains(version) {
            errors.invalid(format!("{field}[{i}]"), version, "duplicate version");
            continue;
        }
        for problem in dns_1035_label(version.as_str().unwrap_or_default()) {
            errors.invalid(format!("{field}[{i}]"), version, &problem);
        }
    }
    let understood = versions
        .iter()
        .any(|v| known.contains(&v.as_str().unwrap_or_default()));
    if require_known && !understood {
        let list: Value = versions.iter().map(|v| (*v).clone()).collect();
        let detail = format!("must include at least one of {}", known.join(", "));
        errors.invalid(field, &list, &detail);
    }
}
