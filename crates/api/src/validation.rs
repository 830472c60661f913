//! Validation building blocks: names, labels, object metadata, and the list of field errors that becomes a 422.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

use crate::error::Cause;
use crate::meta;

/// Collected field errors.
#[derive(Debug, Default)]
pub struct Errors(pub Vec<Cause>);

impl Errors {
    fn push(&mut self, reason: &'static str, field: &str, message: String) {
        self.0.push(Cause {
            reason,
            message,
            field: field.to_owned(),
        });
    }

    pub fn required(&mut self, field: &str, detail: &str) {
        let message = if detail.is_empty() {
            "Required value".to_owned()
        } else {
            format!("Required value: {detail}")
        };
        self.push("FieldValueRequired", field, message);
    }

    pub fn invalid(&mut self, field: &str, value: &Value, detail: &str) {
        self.push(
            "FieldValueInvalid",
            field,
            format!("Invalid value: {}: {detail}", render(value)),
        );
    }

    /// A value of the wrong type.
    pub fn type_invalid(&mut self, field: &str, value: &Value, detail: &str) {
        self.push(
            "FieldValueTypeInvalid",
            field,
            format!("Invalid value: {}: {detail}", render(value)),
        );
    }

    pub fn too_many(&mut self, field: &str, actual: i64, max: i64) {
        let items = if max == 1 { "item" } else { "items" };
        self.push(
            "FieldValueTooMany",
            field,
            format!("Too many: {actual}: must have at most {max} {items}"),
        );
    }

    pub fn not_supported(&mut self, field: &str, value: &Value, supported: &[&str]) {
        let list: Vec<String> = supported.iter().map(|s| format!("\"{s}\"")).collect();
        let message = format!(
            "Unsupported value: {}: supported values: {}",
            render(value),
            list.join(", ")
        );
        self.push("FieldValueNotSupported", field, message);
    }

    pub fn duplicate(&mut self, field: &str, value: &Value) {
        self.push(
            "FieldValueDuplicate",
            field,
            format!("Duplicate value: {}", render(value)),
        );
    }

    pub fn forbidden(&mut self, field: &str, detail: &str) {
        self.push("FieldValueForbidden", field, format!("Forbidden: {detail}"));
    }

    pub fn not_found(&mut self, field: &str, value: &Value) {
        self.push(
            "FieldValueNotFound",
            field,
            format!("Not found: {}", render(value)),
        );
    }

    pub fn too_long(&mut self, field: &str, max: usize) {
        self.push(
            "FieldValueTooLong",
            field,
            format!(
                "Too long: may not be more than {max} {}",
                if max == 1 { "byte" } else { "bytes" }
            ),
        );
    }

    /// `value` must be one of `supported`; absent values pass.
    pub fn one_of(&mut self, field: &str, value: &Value, supported: &[&str]) {
        if value.as_str().is_some_and(|v| !supported.contains(&v)) {
            self.not_supported(field, value, supported);
        }
    }

    /// A number must not be negative; absent values pass.
    pub fn non_negative(&mut self, field: &str, value: &Value) {
        if value.as_i64().is_some_and(|n| n < 0) {
            self.invalid(field, value, "must be greater than or equal to 0");
        }
    }

    /// A field that must keep its value in updates.
    pub fn immutable(&mut self, field: &str, new: &Value, old: &Value) {
        if new != old {
            self.invalid(field, new, "field is immutable");
        }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Whether a value is what an absent one would be.
#[must_use]
pub fn is_empty_value(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

fn render(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        other => other.to_string(),
    }
}

static LABEL: LazyLock<Regex> = LazyLock::new(|| pattern("^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"));
static SUBDOMAIN: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"));
static QUALIFIED: LazyLock<Regex> =
    LazyLock::new(|| pattern("^([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]$"));
static LABEL_1035: LazyLock<Regex> = LazyLock::new(|| pattern("^[a-z]([-a-z0-9]*[a-z0-9])?$"));
static ENV_NAME: LazyLock<Regex> = LazyLock::new(|| pattern("^[-._a-zA-Z][-._a-zA-Z0-9]*$"));
static CONFIG_KEY: LazyLock<Regex> = LazyLock::new(|| pattern("^[-._a-zA-Z0-9]+$"));

fn pattern(text: &str) -> Regex {
    match Regex::new(text) {
        Ok(regex) => regex,
        Err(error) => unreachable!("a constant pattern: {error}"),
    }
}

const LABEL_MESSAGE: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN_MESSAGE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const QUALIFIED_MESSAGE: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE_MESSAGE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const LABEL_1035_MESSAGE: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const ENV_MESSAGE: &str = "a valid environment variable name must consist of alphabetic characters, digits, '_', '-', or '.', and must not start with a digit (e.g. 'my.env-name',  or 'MY_ENV.NAME',  or 'MyEnvName1', regex used for validation is '[-._a-zA-Z][-._a-zA-Z0-9]*')";
const CONFIG_KEY_MESSAGE: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";

/// The problems of a value under one naming rule; empty when it is fine.
pub type Problems = Vec<String>;

fn check(value: &str, regex: &Regex, max: usize, message: &str) -> Problems {
    let mut problems = Vec::new();
    if value.len() > max {
        problems.push(format!("must be no more than {max} bytes"));
    }
    if !regex.is_match(value) {
        problems.push(message.to_owned());
    }
    problems
}

/// RFC 1123 label.
#[must_use]
pub fn dns_label(value: &str) -> Problems {
    check(value, &LABEL, 63, LABEL_MESSAGE)
}

/// RFC 1123 subdomain.
#[must_use]
pub fn dns_subdomain(value: &str) -> Problems {
    check(value, &SUBDOMAIN, 253, SUBDOMAIN_MESSAGE)
}

/// RFC 1035 label (service names).
#[must_use]
pub fn dns_1035_label(value: &str) -> Problems {
    check(value, &LABEL_1035, 63, LABEL_1035_MESSAGE)
}

#[must_use]
pub fn env_var_name(value: &str) -> Problems {
    check(value, &ENV_NAME, usize::MAX, ENV_MESSAGE)
}

#[must_use]
pub fn config_map_key(value: &str) -> Problems {
    let mut problems = check(value, &CONFIG_KEY, 253, CONFIG_KEY_MESSAGE);
    if value == "." || value == ".." || value.starts_with("..") {
        problems.push(format!("must not be '{value}'"));
    }
    problems
}

/// Names that become a path segment only (RBAC objects).
#[must_use]
pub fn path_segment(value: &str) -> Problems {
    let mut problems = Vec::new();
    if value == "." || value == ".." {
        problems.push(format!("may not be '{value}'"));
    }
    for forbidden in ["/", "%"] {
        if value.contains(forbidden) {
            problems.push(format!("may not contain '{forbidden}'"));
        }
    }
    problems
}

/// `domain/path`, as keys of extra user attributes are.
pub fn domain_prefixed_path(errors: &mut Errors, field: &str, value: &str) {
    if value.is_empty() {
        return errors.required(field, "");
    }
    let Some((host, path)) = value
        .split_once('/')
        .filter(|(host, path)| !host.is_empty() && !path.is_empty())
    else {
        return errors.invalid(
            field,
            &value.into(),
            "must be a domain-prefixed path (such as \"acme.io/foo\")",
        );
    };
    for problem in dns_subdomain(host) {
        errors.invalid(field, &host.into(), &problem);
    }
    let fits = |c: char| c.is_ascii_alphanumeric() || "/-._~%!$&'()*+,;=:".contains(c);
    if !path.chars().all(fits) {
        errors.invalid(
            field,
            &path.into(),
            "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')",
        );
    }
}

/// `[prefix/]name`, as label keys, taints, finalizers and resource names are.
#[must_use]
pub fn qualified_name(value: &str) -> Problems {
    let (prefix, name) = match value.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, value),
    };
    let mut problems = Vec::new();
    if let Some(prefix) = prefix {
        if prefix.is_empty() {
            problems.push("prefix part must be non-empty".to_owned());
        } else {
            problems.extend(
                dns_subdomain(prefix)
                    .into_iter()
                    .map(|p| format!("prefix part {p}")),
            );
        }
    }
    if name.is_empty() {
        problems.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        problems.push("name part must be no more than 63 bytes".to_owned());
    }
    if !QUALIFIED.is_match(name) {
        problems.push(QUALIFIED_MESSAGE.to_owned());
    }
    problems
}

#[must_use]
pub fn label_value(value: &str) -> Problems {
    if value.is_empty() {
        Vec::new()
    } else {
        check(value, &QUALIFIED, 63, LABEL_VALUE_MESSAGE)
    }
}

/// Validates a map of labels (or a selector's `matchLabels`).
pub fn labels(errors: &mut Errors, field: &str, labels: &Value) {
    for (key, value) in labels.as_object().into_iter().flatten() {
        for problem in qualified_name(key) {
            errors.invalid(field, &key.as_str().into(), &problem);
        }
        for problem in label_value(value.as_str().unwrap_or_default()) {
            errors.invalid(field, value, &problem);
        }
    }
}

/// A `metav1.LabelSelector`.
pub fn label_selector(errors: &mut Errors, field: &str, selector: &Value) {
    labels(
        errors,
        &format!("{field}.matchLabels"),
        &selector["matchLabels"],
    );
    for (i, expression) in selector["matchExpressions"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        let at = format!("{field}.matchExpressions[{i}]");
        let values = expression["values"].as_array().map_or(0, Vec::len);
        match expression["operator"].as_str().unwrap_or_default() {
            "In" | "NotIn" if values == 0 => {
                errors.required(
                    &format!("{at}.values"),
                    "must be specified when `operator` is 'In' or 'NotIn'",
                );
            }
            "Exists" | "DoesNotExist" if values > 0 => {
                errors.forbidden(
                    &format!("{at}.values"),
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                );
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => errors.invalid(
                &format!("{at}.operator"),
                &expression["operator"],
                "not a valid selector operator",
            ),
        }
        for problem in qualified_name(expression["key"].as_str().unwrap_or_default()) {
            errors.invalid(&format!("{at}.key"), &expression["key"], &problem);
        }
    }
}

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
    let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = if scheme.is_empty() {
        ""
    } else {
        rest.split('/').next().unwrap_or_default()
    };
    let (user, host) = match authority.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, authority),
    };
    if scheme != "https" {
        let detail = format!("'https' is the only allowed URL scheme{FORM}");
        errors.invalid(field, &scheme.into(), &detail);
    }
    if host.is_empty() {
        errors.invalid(field, &"".into(), &format!("host must be specified{FORM}"));
    }
    if let Some(user) = user {
        errors.invalid(
            field,
            &user.into(),
            "user information is not permitted in the URL",
        );
    }
    if !fragment.is_empty() {
        errors.invalid(
            field,
            &fragment.into(),
            "fragments are not permitted in the URL",
        );
    }
    if !query.is_empty() {
        errors.invalid(
            field,
            &query.into(),
            "query parameters are not permitted in the URL",
        );
    }
}

fn webhook_service(errors: &mut Errors, field: &str, service: &Value) {
    for name in ["name", "namespace"] {
        if service[name].as_str().unwrap_or_default().is_empty() {
            errors.required(&format!("{field}.{name}"), "");
        }
    }
    let port = service["port"].as_i64().unwrap_or(443);
    if !(1..=65535).contains(&port) {
        let detail = "port is not valid: must be between 1 and 65535, inclusive";
        errors.invalid(&format!("{field}.port"), &port.into(), detail);
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
    let Some(segments) = path.strip_prefix('/') else {
        errors.invalid(&at, &value, "must start with a '/'");
        return;
    };
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
            errors.invalid(&format!("{field}[{i}]"), version, "duplicate version");
            continue;
        }
        for problem in dns_1035_label(version.as_str().unwrap_or_default()) {
            errors.invalid(&format!("{field}[{i}]"), version, &problem);
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

/// A regular expression's error in one line.
#[must_use]
pub fn regex_error(error: &regex::Error) -> String {
    let text = error.to_string();
    let last = text.lines().last().unwrap_or_default();
    format!(
        "error parsing regexp: {}",
        last.trim_start_matches("error: ")
    )
}

const MAX_ANNOTATIONS: usize = 256 * 1024;

/// `metadata` of a new or updated object; `name_rule` is the kind's.
pub fn object_meta(
    errors: &mut Errors,
    object: &Value,
    namespaced: bool,
    name_rule: fn(&str) -> Problems,
) {
    let generate_name = meta::str(object, "generateName");
    if !generate_name.is_empty() {
        for problem in name_rule(generate_name.trim_end_matches('-')) {
            errors.invalid(
                "metadata.generateName",
                &object["metadata"]["generateName"],
                &problem,
            );
        }
    }
    let name = meta::name(object);
    if name.is_empty() {
        errors.required("metadata.name", "name or generateName is required");
    } else {
        for problem in name_rule(name) {
            errors.invalid("metadata.name", &name.into(), &problem);
        }
    }
    let namespace = meta::namespace(object);
    if namespaced {
        for problem in dns_label(namespace) {
            errors.invalid("metadata.namespace", &namespace.into(), &problem);
        }
    } else if !namespace.is_empty() {
        errors.forbidden("metadata.namespace", "not allowed on this type");
    }
    labels(errors, "metadata.labels", &object["metadata"]["labels"]);
    let mut total = 0;
    for (key, value) in object["metadata"]["annotations"]
        .as_object()
        .into_iter()
        .flatten()
    {
        for problem in qualified_name(&key.to_lowercase()) {
            errors.invalid("metadata.annotations", &key.as_str().into(), &problem);
        }
        total += key.len() + value.as_str().map_or(0, str::len);
    }
    if total > MAX_ANNOTATIONS {
        errors.too_long("metadata.annotations", MAX_ANNOTATIONS);
    }
    for (i, reference) in object["metadata"]["ownerReferences"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if reference[field].as_str().unwrap_or_default().is_empty() {
                errors.invalid(
                    &format!("metadata.ownerReferences[{i}].{field}"),
                    &reference[field],
                    &format!("{field} must not be empty"),
                );
            }
        }
    }
    for finalizer in meta::finalizers(object) {
        for problem in qualified_name(finalizer) {
            errors.invalid("metadata.finalizers", &finalizer.into(), &problem);
        }
    }
}

/// Finalizers of built-in kinds are upstream's own or have a domain.
pub fn standard_finalizers(errors: &mut Errors, object: &Value) {
    for finalizer in meta::finalizers(object) {
        if !finalizer.contains('/')
            && !["orphan", "foregroundDeletion", "kubernetes"].contains(&finalizer)
        {
            errors.invalid(
                "metadata.finalizers",
                &finalizer.into(),
                "name is neither a standard finalizer name nor is it fully qualified",
            );
        }
    }
}

/// What an update may not change in `metadata`.
pub fn object_meta_update(errors: &mut Errors, object: &Value, old: &Value) {
    for field in ["name", "namespace", "uid", "creationTimestamp"] {
        errors.immutable(
            &format!("metadata.{field}"),
            &object["metadata"][field],
            &old["metadata"][field],
        );
    }
    if meta::is_terminating(old) {
        let before = meta::finalizers(old);
        let added: Vec<&str> = meta::finalizers(object)
            .into_iter()
            .filter(|f| !before.contains(f))
            .collect();
        if !added.is_empty() {
            errors.forbidden(
                "metadata.finalizers",
                &format!("no new finalizers can be added if the object is being deleted, found new finalizers {added:?}"),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn naming_rules() {
        assert!(
            dns_label("web-1").is_empty()
                && !dns_label("Web").is_empty()
                && !dns_label(&"a".repeat(64)).is_empty()
        );
        assert!(dns_subdomain("a.b-c").is_empty() && !dns_subdomain("a..b").is_empty());
        assert!(dns_1035_label("a1").is_empty() && !dns_1035_label("1a").is_empty());
        assert!(qualified_name("k8s.io/App_1").is_empty() && !qualified_name("/x").is_empty());
        assert!(label_value("").is_empty() && !label_value("-").is_empty());
        assert!(!path_segment("a/b").is_empty() && path_segment("system:node").is_empty());
    }

    #[test]
    fn metadata_is_validated() {
        let mut errors = Errors::default();
        let object =
            json!({"metadata": {"name": "Bad", "labels": {"a b": "c"}, "finalizers": ["mine"]}});
        object_meta(&mut errors, &object, true, dns_subdomain);
        standard_finalizers(&mut errors, &object);
        let fields: Vec<&str> = errors.0.iter().map(|c| c.field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "metadata.name",
                "metadata.namespace",
                "metadata.labels",
                "metadata.finalizers"
            ]
        );
    }
}
