//! The configuration: an `apiserver.k8s.io` `EgressSelectorConfiguration`.

use std::path::Path;

use anyhow::{Context as _, bail};
use fluyt_api::validation::{Errors, Url};
use rustls_pki_types::ServerName;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Proxy;
use crate::remote::{Trust, tls};

const KIND: &str = "EgressSelectorConfiguration";
const VERSIONS: [&str; 2] = ["apiserver.k8s.io/v1beta1", "apiserver.k8s.io/v1alpha1"];

const PROTOCOLS: [&str; 3] = ["Direct", "GRPC", "HTTPConnect"];
const NAMES: [&str; 3] = ["cluster", "controlplane", "etcd"];

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Configuration {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(default)]
    egress_selections: Vec<Selection>,
}

/// How one network is reached.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Selection {
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub connection: Wanted,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Wanted {
    #[serde(default)]
    pub proxy_protocol: String,
    pub transport: Option<Transport>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Transport {
    pub tcp: Option<Tcp>,
    pub uds: Option<Uds>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Tcp {
    #[serde(default)]
    url: String,
    tls_config: Option<TlsFiles>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Uds {
    #[serde(default)]
    pub uds_name: String,
}

/// Paths of PEM files.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct TlsFiles {
    ca_bundle: String,
    client_key: String,
    client_cert: String,
    tls_server_name: String,
}

/// # Errors
/// When it is no such configuration.
pub(super) fn parse(text: &str) -> anyhow::Result<Vec<Selection>> {
    let document: Value = serde_saphyr::from_str(text).context("strict decoding error")?;
    let field = |name: &str| document[name].as_str().unwrap_or_default();
    let (version, kind) = (field("apiVersion"), field("kind"));
    if !VERSIONS.contains(&version) || kind != KIND {
        bail!("no kind {kind:?} is registered for version {version:?}");
    }
    let config: Configuration =
        serde_json::from_value(document).context("strict decoding error")?;
    Ok(config.egress_selections)
}

/// What upstream objects to, in one sentence.
pub(super) fn validate(selections: &[Selection]) -> Option<String> {
    let mut errors = Errors::default();
    for selection in selections {
        selection.connection.validate(&mut errors);
    }
    let mut seen: Vec<String> = Vec::new();
    for (i, selection) in selections.iter().enumerate() {
        let name = selection.name.to_lowercase();
        if seen.contains(&name) {
            errors.duplicate(format!("service.connection[{i}]"), &name.into());
            continue;
        }
        if !NAMES.contains(&name.as_str()) {
            errors.not_supported("service.connection", &name.as_str().into(), &NAMES);
        }
        seen.push(name);
    }
    crate::validation::sentence(&errors)
}

impl Wanted {
    fn validate(&self, errors: &mut Errors) {
        let transport = self.transport.as_ref();
        match (self.proxy_protocol.as_str(), transport) {
            ("Direct", None) => {}
            ("Direct", Some(_)) => errors.invalid(
                "service.connection.transport",
                &"direct".into(),
                "config must be absent for direct connect",
            ),
            ("HTTPConnect", Some(transport)) => transport.validate(errors),
            ("GRPC", Some(transport)) => match &transport.uds {
                Some(uds) => uds.validate(errors),
                None => errors.required("service.connection.uds", "UDS must be set with GRPC"),
            },
            (protocol @ ("HTTPConnect" | "GRPC"), None) => errors.required(
                "service.connection.transport",
                &format!("transport must be set for {protocol}"),
            ),
            (other, _) => {
                errors.not_supported("service.connection.protocol", &other.into(), &PROTOCOLS);
            }
        }
    }
}

impl Transport {
    fn validate(&self, errors: &mut Errors) {
        const TCP: &str = "service.connection.tcp";
        match (&self.tcp, &self.uds) {
            (Some(tcp), Some(_)) => {
                let shown = serde_json::to_value(tcp).unwrap_or_default();
                errors.invalid(TCP, &shown, "TCP and UDS cannot both be set");
            }
            (None, None) => errors.required(TCP, "One of TCP or UDS must be set"),
            (Some(tcp), None) => tcp.validate(errors),
            (None, Some(uds)) => uds.validate(errors),
        }
    }
}

impl Uds {
    fn validate(&self, errors: &mut Errors) {
        if self.uds_name.is_empty() {
            errors.invalid(
                "service.connection.udsName",
                &"nil".into(),
                "must be present for UDS connections",
            );
        }
    }
}

impl Tcp {
    fn validate(&self, errors: &mut Errors) {
        const TLS: &str = "service.connection.tlsConfig";
        let (url, tls) = (self.url.as_str(), self.tls_config.as_ref());
        match tls {
            Some(_) if url.starts_with("http://") => errors.invalid(
                TLS,
                &"nil".into(),
                "config must not be present when using HTTP",
            ),
            Some(files) if url.starts_with("https://") => files.validate(errors),
            None if url.starts_with("https://") => {
                errors.required(TLS, "TLSConfig must be present when using HTTPS");
            }
            None if url.starts_with("http://") => {}
            _ => errors.invalid(
                "service.connection.url",
                &url.into(),
                "supported connection protocols are http:// and https://",
            ),
        }
    }

    /// # Errors
    /// When the URL names no host, or a file cannot be read.
    pub fn proxy(&self) -> anyhow::Result<Proxy> {
        let url = Url::parse(&self.url).map_err(anyhow::Error::msg)?;
        let authority: ::http::uri::Authority = url
            .host
            .parse()
            .with_context(|| format!("invalid proxy server url {:?}", self.url))?;
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let (port, tls) = match &self.tls_config {
            None => (80, None),
            Some(files) => (443, Some((files.settings()?, files.name(&host)?))),
        };
        Ok(Proxy::Tcp {
            host,
            port: authority.port_u16().unwrap_or(port),
            tls,
        })
    }
}

impl TlsFiles {
    fn validate(&self, errors: &mut Errors) {
        let at = |field: &str| format!("service.connection.tlsConfig.{field}");
        let is_missing = |path: &str| !Path::new(path).exists();
        let ca = self.ca_bundle.as_str();
        if !ca.is_empty() && is_missing(ca) {
            let why = "TLS config ca bundle does not exist";
            errors.invalid(at("caBundle"), &ca.into(), why);
        }
        for (field, path, needed, missing) in [
            (
                "clientCert",
                &self.client_cert,
                "Using TLS requires clientCert",
                "TLS client cert does not exist",
            ),
            (
                "clientKey",
                &self.client_key,
                "Using TLS requires requires clientKey",
                "TLS client key does not exist",
            ),
        ] {
            if path.is_empty() {
                errors.invalid(at(field), &"nil".into(), needed);
            } else if is_missing(path) {
                errors.invalid(at(field), &path.as_str().into(), missing);
            }
        }
    }

    fn settings(&self) -> anyhow::Result<std::sync::Arc<rustls::ClientConfig>> {
        let read = |path: &str| std::fs::read_to_string(path).with_context(|| path.to_owned());
        let trust = match self.ca_bundle.as_str() {
            "" => Trust::System,
            path => Trust::Authorities(read(path)?),
        };
        let identity = (read(&self.client_cert)?, read(&self.client_key)?);
        tls(&trust, Some(&identity))
    }

    fn name(&self, host: &str) -> anyhow::Result<ServerName<'static>> {
        let name = match self.tls_server_name.as_str() {
            "" => host,
            name => name,
        };
        Ok(ServerName::try_from(name.to_owned())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selections(json: &Value) -> anyhow::Result<Vec<Selection>> {
        let document = serde_json::json!({
            "apiVersion": "apiserver.k8s.io/v1beta1", "kind": KIND, "egressSelections": json,
        });
        parse(&document.to_string())
    }

    fn refused(json: Value) -> String {
        validate(&selections(&json).unwrap()).unwrap()
    }

    #[test]
    fn fields_are_known() {
        use serde_json::json;
        assert!(selections(&json!([{"name": "cluster", "connectoin": {}}])).is_err());
        assert!(parse("apiVersion: v1\nkind: EgressSelectorConfiguration\n").is_err());
        assert!(parse("apiVersion: apiserver.k8s.io/v1beta1\nkind: X\n").is_err());
    }

    #[test]
    fn upstreams_words() {
        use serde_json::json;
        let one = |connection: Value| json!([{"name": "cluster", "connection": connection}]);
        for (given, expected) in [
            (
                one(json!({"proxyProtocol": "Direct", "transport": {}})),
                "service.connection.transport: Invalid value: \"direct\": config must be absent for direct connect",
            ),
            (
                one(json!({"proxyProtocol": "HTTPConnect"})),
                "service.connection.transport: Required value: transport must be set for HTTPConnect",
            ),
            (
                one(json!({"proxyProtocol": "HTTPConnect", "transport": {}})),
                "service.connection.tcp: Required value: One of TCP or UDS must be set",
            ),
            (
                one(
                    json!({"proxyProtocol": "HTTPConnect", "transport": {"tcp": {"url": "ftp://a"}}}),
                ),
                "service.connection.url: Invalid value: \"ftp://a\": supported connection protocols are http:// and https://",
            ),
            (
                one(
                    json!({"proxyProtocol": "HTTPConnect", "transport": {"tcp": {"url": "https://a"}}}),
                ),
                "service.connection.tlsConfig: Required value: TLSConfig must be present when using HTTPS",
            ),
            (
                one(json!({"proxyProtocol": "GRPC", "transport": {"tcp": {"url": "http://a"}}})),
                "service.connection.uds: Required value: UDS must be set with GRPC",
            ),
            (
                one(json!({"proxyProtocol": "GRPC", "transport": {"uds": {}}})),
                "service.connection.udsName: Invalid value: \"nil\": must be present for UDS connections",
            ),
            (
                one(json!({"proxyProtocol": "tcp"})),
                "service.connection.protocol: Unsupported value: \"tcp\": supported values: \"Direct\", \"GRPC\", \"HTTPConnect\"",
            ),
            (
                json!([{"name": "master", "connection": {"proxyProtocol": "Direct"}}]),
                "service.connection: Unsupported value: \"master\": supported values: \"cluster\", \"controlplane\", \"etcd\"",
            ),
            (
                json!([{"name": "etcd", "connection": {"proxyProtocol": "Direct"}}, {"name": "Etcd", "connection": {"proxyProtocol": "Direct"}}]),
                "service.connection[1]: Duplicate value: \"etcd\"",
            ),
        ] {
            assert_eq!(refused(given), expected);
        }
    }

    #[test]
    fn files_of_tls_are_there() {
        use serde_json::json;
        let tls = json!({"caBundle": "/none/ca", "clientCert": "/none/crt"});
        let tcp = json!({"url": "https://a:8131", "tlsConfig": tls});
        let connection = json!({"proxyProtocol": "HTTPConnect", "transport": {"tcp": tcp}});
        let why = refused(json!([{"name": "cluster", "connection": connection}]));
        let at = "service.connection.tlsConfig";
        assert_eq!(
            why,
            format!(
                "[{at}.caBundle: Invalid value: \"/none/ca\": TLS config ca bundle does not exist, {at}.clientCert: Invalid value: \"/none/crt\": TLS client cert does not exist, {at}.clientKey: Invalid value: \"nil\": Using TLS requires requires clientKey]"
            )
        );
    }
}
