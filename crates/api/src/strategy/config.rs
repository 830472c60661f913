//! Kinds that carry data rather than a desired state: ConfigMap, Secret, ServiceAccount, ControllerRevision.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::{MetaCheck, Strategy, items_mut, text};
use crate::meta;
use crate::validation::{At, Errors, config_map_key};

/// Upstream's limit for the data of one Secret or ConfigMap, in bytes.
const MAX_DATA: usize = 1024 * 1024;

pub(super) struct ConfigMap;

impl Strategy for ConfigMap {
    fn prepare_create(&self, _object: &mut Value) {}

    fn prepare_update(&self, _object: &mut Value, _old: &Value) {}

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let root = At::root(object);
        let (data, binary) = (root.field("data"), root.field("binaryData"));
        let mut total = 0;
        for (key, value) in data.entries() {
            validate_key(&value, key, errors);
            if binary.get(key).is_string() {
                let detail = "duplicate of key present in binaryData";
                errors.invalid_text(value, key, detail);
            }
            total += value.str().len();
        }
        for (key, value) in binary.entries() {
            validate_key(&value, key, errors);
            total += decoded_length(value.str());
        }
        if total > MAX_DATA {
            errors.too_long("[]", MAX_DATA);
        }
    }

    fn validate_on_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        validate_immutable(object, old, &["data", "binaryData"], errors);
        self.validate(object, errors);
    }

    fn metadata_on_update(&self) -> &'static [MetaCheck] {
        &[MetaCheck::Update, MetaCheck::Whole]
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }
}

fn validate_key(at: &At<'_, '_>, key: &str, errors: &mut Errors) {
    for problem in config_map_key(key) {
        errors.invalid_text(at, key, &problem);
    }
}

/// How many bytes base64 stands for.
fn decoded_length(text: &str) -> usize {
    let padding = text.bytes().rev().take_while(|b| *b == b'=').count();
    (text.len() / 4 * 3).saturating_sub(padding)
}

fn validate_immutable(object: &Value, old: &Value, parts: &[&str], errors: &mut Errors) {
    if old["immutable"] != true {
        return;
    }
    const DETAIL: &str = "field is immutable when `immutable` is set";
    if object["immutable"] != true {
        errors.forbidden("immutable", DETAIL);
    }
    for part in parts.iter().filter(|part| object[**part] != old[**part]) {
        errors.forbidden(part, DETAIL);
    }
}

pub(super) struct Secret;

impl Secret {
    /// Files of the Docker client, which are JSON objects.
    fn validate_docker(data: &At<'_, '_>, key: &str, errors: &mut Errors) {
        let file = data.key(key);
        if !file.is_set() {
            errors.required(file, "");
            return;
        }
        let bytes = BASE64.decode(file.str()).unwrap_or_default();
        if let Some(problem) = not_an_object(&bytes) {
            errors.invalid_text(file, "<secret contents redacted>", &problem);
        }
    }
}

/// Why bytes are not a JSON object, in words of Go's.
fn not_an_object(bytes: &[u8]) -> Option<String> {
    let kind = match serde_json::from_slice(bytes) {
        Ok(Value::Object(_) | Value::Null) => return None,
        Ok(Value::Array(_)) => "array",
        Ok(Value::String(_)) => "string",
        Ok(Value::Number(_)) => "number",
        Ok(Value::Bool(_)) => "bool",
        Err(error) if error.is_eof() => return Some("unexpected end of JSON input".to_owned()),
        Err(_) => {
            let text = String::from_utf8_lossy(bytes);
            let first = text.trim_start().chars().next().unwrap_or_default();
            let detail = format!("invalid character '{first}' looking for beginning of value");
            return Some(detail);
        }
    };
    Some(format!(
        "json: cannot unmarshal {kind} into Go value of type map[string]interface {{}}"
    ))
}

impl Strategy for Secret {
    fn default(&self, object: &mut Value) {
        // `stringData` is write-only: it lands in `data`.
        let Some(Value::Object(strings)) =
            object.as_object_mut().and_then(|m| m.remove("stringData"))
        else {
            return;
        };
        let data = meta::child(object, "data");
        for (key, value) in strings {
            let encoded = BASE64.encode(value.as_str().unwrap_or_default());
            data.insert(key, encoded.into());
        }
    }

    fn prepare_create(&self, _object: &mut Value) {}

    fn prepare_update(&self, _object: &mut Value, _old: &Value) {}

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let root = At::root(object);
        let data = root.field("data");
        let mut total = 0;
        for (key, value) in data.entries() {
            validate_key(&value, key, errors);
            total += decoded_length(value.str());
        }
        if total > MAX_DATA {
            errors.too_long(data, MAX_DATA);
        }
        let missing = |key: &str| !data.get(key).is_string();
        match root.text("type") {
            "kubernetes.io/service-account-token" => {
                let name = "kubernetes.io/service-account.name";
                if meta::annotation(object, name).is_none_or(str::is_empty) {
                    errors.required(format_args!("metadata.annotations[{name}]"), "");
                }
            }
            "kubernetes.io/dockercfg" => Self::validate_docker(&data, ".dockercfg", errors),
            "kubernetes.io/dockerconfigjson" => {
                Self::validate_docker(&data, ".dockerconfigjson", errors);
            }
            "kubernetes.io/basic-auth" if missing("username") && missing("password") => {
                errors.required(data.key("username"), "");
                errors.required(data.key("password"), "");
            }
            "kubernetes.io/ssh-auth" if data.text("ssh-privatekey").is_empty() => {
                errors.required(data.key("ssh-privatekey"), "");
            }
            "kubernetes.io/tls" => {
                for key in ["tls.crt", "tls.key"]
                    .into_iter()
                    .filter(|key| missing(key))
                {
                    errors.required(data.key(key), "");
                }
            }
            _ => {}
        }
    }

    fn validate_on_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        errors.immutable("type", &object["type"], &old["type"]);
        validate_immutable(object, old, &["data"], errors);
        self.validate(object, errors);
    }

    fn metadata_on_update(&self) -> &'static [MetaCheck] {
        &[MetaCheck::Update, MetaCheck::Whole]
    }

    fn warnings(&self, object: &Value, _old: Option<&Value>) -> Vec<String> {
        if object["type"] != "kubernetes.io/tls" {
            return Vec::new();
        }
        let part = |key: &str| {
            let decoded = BASE64.decode(object["data"][key].as_str().unwrap_or_default());
            String::from_utf8_lossy(&decoded.unwrap_or_default()).into_owned()
        };
        let warning =
            unusable_certificate(&part("tls.crt")).or_else(|| unusable_key(&part("tls.key")));
        warning.into_iter().collect()
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }

    fn selectable_fields(&self) -> &'static [&'static str] {
        &["type"]
    }

    fn field<'a>(&self, object: &'a Value, field: &str) -> Option<Cow<'a, str>> {
        (field == "type").then(|| text(object, "/type"))
    }
}

/// The types of the blocks of a PEM file.
fn pem_blocks(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        line.trim_end()
            .strip_prefix("-----BEGIN ")?
            .strip_suffix("-----")
    })
}

/// Why there is no certificate in a file, in words of Go's.
fn unusable_certificate(text: &str) -> Option<String> {
    let found: Vec<&str> = pem_blocks(text).collect();
    match found.as_slice() {
        found if found.contains(&"CERTIFICATE") => None,
        [] => Some("tls: failed to find any PEM data in certificate input".to_owned()),
        [one] if one.ends_with("PRIVATE KEY") => Some(
            "tls: failed to find certificate PEM data in certificate input, but did find a private key; PEM inputs may have been switched"
                .to_owned(),
        ),
        found => Some(format!(
            "tls: failed to find \"CERTIFICATE\" PEM block in certificate input after skipping PEM blocks of the following types: [{}]",
            found.join(" ")
        )),
    }
}

/// Why there is no private key in a file, in words of Go's.
fn unusable_key(text: &str) -> Option<String> {
    let found: Vec<&str> = pem_blocks(text).collect();
    match found.as_slice() {
        found if found.iter().any(|block| block.ends_with("PRIVATE KEY")) => None,
        [] => Some("tls: failed to find any PEM data in key input".to_owned()),
        ["CERTIFICATE"] => Some(
            "tls: found a certificate rather than a key in the PEM for the private key".to_owned(),
        ),
        found => Some(format!(
            "tls: failed to find PEM block with type ending in \"PRIVATE KEY\" in key input after skipping PEM blocks of the following types: [{}]",
            found.join(" ")
        )),
    }
}

pub(super) struct ServiceAccount;

impl ServiceAccount {
    /// Of references to secrets only names count.
    fn narrow(object: &mut Value) {
        for secret in items_mut(object, &["secrets"]) {
            let name = secret["name"].take();
            *secret = if name.is_null() {
                json!({})
            } else {
                json!({"name": name})
            };
        }
    }
}

impl Strategy for ServiceAccount {
    fn prepare_create(&self, object: &mut Value) {
        Self::narrow(object);
    }

    fn prepare_update(&self, object: &mut Value, _old: &Value) {
        Self::narrow(object);
    }

    fn metadata_on_update(&self) -> &'static [MetaCheck] {
        &[MetaCheck::Update, MetaCheck::Whole]
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let name = "kubernetes.io/enforce-mountable-secrets";
        let has = |object: &Value| meta::annotation(object, name).is_some();
        if !has(object) || old.is_some_and(has) {
            return Vec::new();
        }
        vec![format!(
            "metadata.annotations[{name}]: deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets"
        )]
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }
}

pub(super) struct ControllerRevision;

impl Strategy for ControllerRevision {
    fn prepare_create(&self, _object: &mut Value) {}

    fn prepare_update(&self, _object: &mut Value, _old: &Value) {}

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let root = At::root(object);
        errors.non_negative(&root.field("revision"));
        match object["data"] {
            Value::Object(_) => {}
            Value::Null => errors.required("data", "data is mandatory"),
            _ => errors.required("data", "data must be a valid JSON object"),
        }
    }

    fn validate_on_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        errors.non_negative(&At::root(object).field("revision"));
        errors.immutable("data", &object["data"], &old["data"]);
    }

    fn metadata_on_update(&self) -> &'static [MetaCheck] {
        &[MetaCheck::Update, MetaCheck::Whole]
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_stands_for_fewer_bytes() {
        for bytes in ["", "a", "ab", "abc", "abcd"] {
            assert_eq!(decoded_length(&BASE64.encode(bytes)), bytes.len());
        }
    }

    #[test]
    fn what_is_no_json_object_is_told_in_words_of_go() {
        assert_eq!(not_an_object(b"{}"), None);
        assert_eq!(not_an_object(b"").unwrap(), "unexpected end of JSON input");
        assert!(
            not_an_object(b"x")
                .unwrap()
                .starts_with("invalid character 'x' looking")
        );
        assert!(
            not_an_object(b"[]")
                .unwrap()
                .contains("cannot unmarshal array")
        );
    }

    #[test]
    fn switched_files_are_noticed() {
        let key = "-----BEGIN RSA PRIVATE KEY-----\n-----END RSA PRIVATE KEY-----\n";
        let certificate = "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n";
        assert!(
            unusable_certificate(key)
                .unwrap()
                .ends_with("may have been switched")
        );
        assert!(
            unusable_key(certificate)
                .unwrap()
                .starts_with("tls: found a certificate")
        );
        assert_eq!(unusable_certificate(certificate), None);
    }
}
