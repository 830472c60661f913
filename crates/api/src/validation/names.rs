//! How names of all sorts are formed. Each rule returns the problems of a value, in upstream's words.

use std::sync::LazyLock;

use regex::Regex;

static LABEL: LazyLock<Regex> = LazyLock::new(|| pattern("^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"));
static SUBDOMAIN: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"));
static SUBDOMAIN_UNDERSCORE: LazyLock<Regex> = LazyLock::new(|| {
    pattern(r"^_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*$")
});
static QUALIFIED: LazyLock<Regex> =
    LazyLock::new(|| pattern("^([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]$"));
static LABEL_1035: LazyLock<Regex> = LazyLock::new(|| pattern("^[a-z]([-a-z0-9]*[a-z0-9])?$"));
static WILDCARD: LazyLock<Regex> = LazyLock::new(|| {
    pattern(r"^\*\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
});
static CONFIG_KEY: LazyLock<Regex> = LazyLock::new(|| pattern("^[-._a-zA-Z0-9]+$"));
static HTTP_HEADER: LazyLock<Regex> = LazyLock::new(|| pattern("^[-A-Za-z0-9]+$"));
static HTTP_PATH: LazyLock<Regex> = LazyLock::new(|| pattern(r"^[A-Za-z0-9/\-._~%!$&'()*+,;=:]+$"));
static C_IDENTIFIER: LazyLock<Regex> = LazyLock::new(|| pattern("^[A-Za-z_][A-Za-z0-9_]*$"));

/// A pattern of the program's own.
pub(crate) fn pattern(text: &str) -> Regex {
    match Regex::new(text) {
        Ok(regex) => regex,
        Err(error) => unreachable!("a constant pattern: {error}"),
    }
}

const LABEL_MESSAGE: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN_MESSAGE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const SUBDOMAIN_UNDERSCORE_MESSAGE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*')";
const QUALIFIED_MESSAGE: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE_MESSAGE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const LABEL_1035_MESSAGE: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const WILDCARD_MESSAGE: &str = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex used for validation is '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const ENV_MESSAGE: &str = "a valid environment variable name must consist only of printable ASCII characters other than '='";
const CONFIG_KEY_MESSAGE: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
const HTTP_HEADER_MESSAGE: &str = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')";
const C_IDENTIFIER_MESSAGE: &str = "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for validation is '[A-Za-z_][A-Za-z0-9_]*')";

/// The problems of a value under one naming rule; empty when it is fine.
pub type Problems = Vec<String>;

fn check(value: &str, regex: &Regex, max: usize, unit: &str, message: &str) -> Problems {
    let mut problems = Vec::new();
    if value.len() > max {
        problems.push(format!("must be no more than {max} {unit}"));
    }
    if !regex.is_match(value) {
        problems.push(message.to_owned());
    }
    problems
}

/// RFC 1123 label.
#[must_use]
pub fn dns_label(value: &str) -> Problems {
    let message = if value.contains('.') && SUBDOMAIN.is_match(value) {
        "must not contain dots"
    } else {
        LABEL_MESSAGE
    };
    check(value, &LABEL, 63, "characters", message)
}

/// RFC 1123 subdomain.
#[must_use]
pub fn dns_subdomain(value: &str) -> Problems {
    check(value, &SUBDOMAIN, 253, "characters", SUBDOMAIN_MESSAGE)
}

/// RFC 1123 subdomain that may have underscores, as search domains do.
#[must_use]
pub fn dns_subdomain_with_underscore(value: &str) -> Problems {
    let message = SUBDOMAIN_UNDERSCORE_MESSAGE;
    check(value, &SUBDOMAIN_UNDERSCORE, 253, "characters", message)
}

/// `*.` and an RFC 1123 subdomain.
#[must_use]
pub fn wildcard_dns_subdomain(value: &str) -> Problems {
    check(value, &WILDCARD, 253, "characters", WILDCARD_MESSAGE)
}

/// RFC 1035 label (service names).
#[must_use]
pub fn dns_1035_label(value: &str) -> Problems {
    check(value, &LABEL_1035, 63, "characters", LABEL_1035_MESSAGE)
}

/// The name of an environment variable: anything printable but `=`.
#[must_use]
pub fn env_var_name(value: &str) -> Problems {
    let mut problems = Vec::new();
    if value.is_empty() {
        problems.push("environment variable name must be non-empty".to_owned());
    }
    if value.chars().any(|c| !matches!(c, ' '..='~') || c == '=') {
        problems.push(ENV_MESSAGE.to_owned());
    }
    problems
}

#[must_use]
pub fn config_map_key(value: &str) -> Problems {
    let mut problems = check(value, &CONFIG_KEY, 253, "characters", CONFIG_KEY_MESSAGE);
    match value {
        "." | ".." => problems.push(format!("must not be '{value}'")),
        _ if value.starts_with("..") => problems.push("must not start with '..'".to_owned()),
        _ => {}
    }
    problems
}

#[must_use]
pub fn http_header_name(value: &str) -> Problems {
    check(value, &HTTP_HEADER, usize::MAX, "", HTTP_HEADER_MESSAGE)
}

#[must_use]
pub fn c_identifier(value: &str) -> Problems {
    check(value, &C_IDENTIFIER, usize::MAX, "", C_IDENTIFIER_MESSAGE)
}

/// Names that become a path segment only (RBAC objects).
#[must_use]
pub fn path_segment(value: &str) -> Problems {
    if value == "." || value == ".." {
        return vec![format!("may not be '{value}'")];
    }
    ["/", "%"]
        .into_iter()
        .filter(|forbidden| value.contains(forbidden))
        .map(|forbidden| format!("may not contain '{forbidden}'"))
        .collect()
}

/// `[prefix/]name`, as label keys, taints, finalizers and resource names are.
#[must_use]
pub fn qualified_name(value: &str) -> Problems {
    let (prefix, name) = match value.split_once('/') {
        Some((_, name)) if name.contains('/') => {
            return vec![format!(
                "a valid label key {QUALIFIED_MESSAGE} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, value),
    };
    let mut problems = Vec::new();
    match prefix {
        Some("") => problems.push("prefix part must be non-empty".to_owned()),
        Some(prefix) => problems.extend(
            check(prefix, &SUBDOMAIN, 253, "bytes", SUBDOMAIN_MESSAGE)
                .into_iter()
                .map(|p| format!("prefix part {p}")),
        ),
        None => {}
    }
    if name.is_empty() {
        problems.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        problems.push("name part must be no more than 63 bytes".to_owned());
    }
    if !QUALIFIED.is_match(name) {
        problems.push(format!("name part {QUALIFIED_MESSAGE}"));
    }
    problems
}

#[must_use]
pub fn label_value(value: &str) -> Problems {
    if value.is_empty() {
        Vec::new()
    } else {
        check(value, &QUALIFIED, 63, "bytes", LABEL_VALUE_MESSAGE)
    }
}

/// A domain and a path, `acme.io/foo`: what is wrong and with which part of it.
#[must_use]
pub fn domain_prefixed_path(value: &str) -> Vec<(&str, String)> {
    let Some((host, path)) = value
        .split_once('/')
        .filter(|(h, p)| !h.is_empty() && !p.is_empty())
    else {
        let form = "must be a domain-prefixed path (such as \"acme.io/foo\")";
        return vec![(value, form.to_owned())];
    };
    let mut problems: Vec<(&str, String)> =
        dns_subdomain(host).into_iter().map(|p| (host, p)).collect();
    if !HTTP_PATH.is_match(path) {
        problems.push((
            path,
            r"Invalid path (regex used for validation is '[A-Za-z0-9/\-._~%!$&'()*+,;=:]+')"
                .to_owned(),
        ));
    }
    problems
}

/// A rule applied to the base of a generated name, to which something will be added.
#[must_use]
pub fn as_prefix(rule: fn(&str) -> Problems, base: &str) -> Problems {
    match base.strip_suffix('-').filter(|rest| !rest.is_empty()) {
        // The dash and what is before it are taken for a letter.
        Some(rest) => {
            let cut = rest.char_indices().next_back().map_or(0, |(i, _)| i);
            rule(&format!("{}a", &rest[..cut]))
        }
        None => rule(base),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn naming_rules() {
        assert!(
            dns_label("web-1").is_empty()
                && !dns_label("Web").is_empty()
                && !dns_label(&"a".repeat(64)).is_empty()
        );
        assert_eq!(dns_label("a.b"), ["must not contain dots"]);
        assert!(dns_subdomain("a.b-c").is_empty() && !dns_subdomain("a..b").is_empty());
        assert!(dns_1035_label("a1").is_empty() && !dns_1035_label("1a").is_empty());
        assert!(qualified_name("k8s.io/App_1").is_empty() && !qualified_name("/x").is_empty());
        assert_eq!(qualified_name("a/b/c").len(), 1);
        assert!(label_value("").is_empty() && !label_value("-").is_empty());
        assert!(!path_segment("a/b").is_empty() && path_segment("system:node").is_empty());
        assert!(
            as_prefix(dns_label, "web-").is_empty() && !as_prefix(dns_label, "Web-").is_empty()
        );
        assert!(env_var_name("A B").is_empty() && !env_var_name("A=B").is_empty());
    }
}
