//! `--tracing-config-file`: an `apiserver.config.k8s.io` `TracingConfiguration`.

use std::path::Path;

use anyhow::{Context as _, anyhow, bail, ensure};
use fluyt_api::validation::{Errors, Url};
use serde_json::Value;

use super::sampler::{MILLION, Sampler};

/// Where a collector listens that nobody has named.
const ENDPOINT: &str = "localhost:4317";

/// The port of a host that is named without one.
const PORT: u16 = 443;

const KIND: &str = "TracingConfiguration";
const GROUP: &str = "apiserver.config.k8s.io";
const VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha1"];

/// Whom spans are sent to, and how many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TracingConfiguration {
    /// A collector that speaks OTLP over gRPC without TLS.
    pub endpoint: Option<String>,
    /// Of the traces that begin here.
    pub sampling_rate_per_million: Option<i32>,
}

/// How a collector is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    /// `host:port`.
    Network(String),
    Socket(String),
    /// A socket with a name instead of a path.
    Abstract(String),
}

impl TracingConfiguration {
    /// Reads and validates a file.
    ///
    /// # Errors
    /// What upstream objects to.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        ensure!(path.exists(), "tracing-config-file {shown} does not exist");
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("unable to read tracing configuration from \"{shown}\""))
            .context("failed to read tracing config")?;
        Self::parse(&text)
    }

    /// Decodes and validates the content of a file.
    ///
    /// # Errors
    /// What upstream objects to.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let config = Self::decode(text)
            .context("unable to decode tracing configuration data")
            .context("failed to read tracing config")?;
        let mut errors = Errors::default();
        config.validate(&mut errors);
        match crate::validation::sentence(&errors) {
            None => Ok(config),
            Some(all) => Err(anyhow!(all).context("failed to validate tracing configuration")),
        }
    }

    fn decode(text: &str) -> anyhow::Result<Self> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let document = match serde_saphyr::from_str(text).context("strict decoding error")? {
            Value::Object(document) => document,
            // Nothing but comments.
            Value::Null => return Ok(Self::default()),
            _ => bail!("couldn't get version/kind; json parse error: it is no object"),
        };
        let text = |field: &str| document.get(field).and_then(Value::as_str);
        let (version, kind) = (text("apiVersion"), text("kind"));
        let known = VERSIONS.map(|version| format!("{GROUP}/{version}"));
        // Without a word about it, it is what is looked for.
        let is_version = version.is_none_or(|v| known.iter().any(|k| k == v));
        if !is_version || kind.is_some_and(|kind| kind != KIND) {
            let (kind, version) = (kind.unwrap_or(KIND), version.unwrap_or_default());
            bail!(
                "no kind {kind:?} is registered for version {version:?} in scheme \"k8s.io/apiserver/pkg/server/options/tracing.go:49\""
            );
        }
        let mut config = Self::default();
        let mut unknown = Vec::new();
        for (field, value) in &document {
            match field.as_str() {
                "apiVersion" | "kind" => {}
                "endpoint" => config.endpoint = endpoint(value)?,
                "samplingRatePerMillion" => config.sampling_rate_per_million = rate(value)?,
                other => unknown.push(format!("unknown field {other:?}")),
            }
        }
        unknown.sort_unstable();
        ensure!(
            unknown.is_empty(),
            "strict decoding error: {}",
            unknown.join(", ")
        );
        Ok(config)
    }

    fn validate(&self, errors: &mut Errors) {
        if let Some(rate) = self.sampling_rate_per_million {
            let field = "samplingRatePerMillion";
            if rate < 0 {
                errors.invalid(field, &rate.into(), "sampling rate must be positive");
            }
            if i64::from(rate) > i64::from(MILLION) {
                let why = "sampling rate per million must be less than or equal to one million";
                errors.invalid(field, &rate.into(), why);
            }
        }
        let Some(endpoint) = &self.endpoint else {
            return;
        };
        let mut shown = endpoint.clone();
        if !endpoint.contains("//") {
            shown.insert_str(0, "dns://");
        }
        let why = match Url::parse(&shown) {
            Ok(url) if ["dns", "unix", "unix-abstract"].contains(&&*url.scheme) => return,
            Ok(url) => format!(
                "unsupported scheme: {}.  Options are none, dns, unix, or unix-abstract.  See https://github.com/grpc/grpc/blob/master/doc/naming.md",
                url.scheme
            ),
            Err(why) => why,
        };
        errors.invalid("endpoint", &shown.into(), &why);
    }

    pub(super) fn sampler(&self) -> Sampler {
        let rate = self.sampling_rate_per_million.unwrap_or_default();
        Sampler::per_million(u32::try_from(rate).unwrap_or_default())
    }

    pub(super) fn address(&self) -> Address {
        let endpoint = self.endpoint.as_deref().unwrap_or(ENDPOINT);
        let network = |target: &str| {
            let has_port = match target.rsplit_once(']') {
                Some((_, port)) => port.starts_with(':'),
                None => target.contains(':'),
            };
            match has_port {
                true => Address::Network(target.to_owned()),
                false => Address::Network(format!("{target}:{PORT}")),
            }
        };
        match endpoint.split_once("://") {
            // The name is the path; what is before it is the name server.
            Some(("dns", rest)) => match rest.split_once('/') {
                Some((_, name)) if !name.is_empty() => network(name),
                _ => network(rest.trim_end_matches('/')),
            },
            Some(("unix", path)) => Address::Socket(path.to_owned()),
            Some(("unix-abstract", name)) => Address::Abstract(name.to_owned()),
            _ => network(endpoint),
        }
    }
}

fn endpoint(value: &Value) -> anyhow::Result<Option<String>> {
    match value {
        Value::Null => Ok(None),
        Value::String(endpoint) => Ok(Some(endpoint.clone())),
        other => Err(wrong(other, "endpoint", "string")),
    }
}

fn rate(value: &Value) -> anyhow::Result<Option<i32>> {
    if value.is_null() {
        return Ok(None);
    }
    let number = value.as_i64().and_then(|n| i32::try_from(n).ok());
    number
        .map(Some)
        .ok_or_else(|| wrong(value, "samplingRatePerMillion", "int32"))
}

/// A value of another type than its field.
fn wrong(value: &Value, field: &str, wanted: &str) -> anyhow::Error {
    let is = match value {
        Value::Number(number) => format!("number {number}"),
        Value::String(_) => "string".to_owned(),
        Value::Bool(_) => "bool".to_owned(),
        Value::Array(_) => "array".to_owned(),
        _ => "object".to_owned(),
    };
    anyhow!("json: cannot unmarshal {is} into Go struct field {KIND}.{field} of type {wanted}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(fields: &str) -> Result<TracingConfiguration, String> {
        let head = "apiVersion: apiserver.config.k8s.io/v1\nkind: TracingConfiguration\n";
        let parsed = TracingConfiguration::parse(&format!("{head}{fields}"));
        parsed.map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn every_version_is_read() {
        for version in VERSIONS {
            let text = format!(
                "apiVersion: {GROUP}/{version}\nkind: TracingConfiguration\nendpoint: localhost:4317\nsamplingRatePerMillion: 12345"
            );
            let expected = TracingConfiguration {
                endpoint: Some("localhost:4317".into()),
                sampling_rate_per_million: Some(12345),
            };
            assert_eq!(TracingConfiguration::parse(&text).unwrap(), expected);
        }
        let json = r#"{"kind": "TracingConfiguration", "endpoint": null}"#;
        for nothing in ["", "  \n", "# no\n", "kind: TracingConfiguration", json] {
            let config = TracingConfiguration::parse(nothing).unwrap();
            assert_eq!(config, TracingConfiguration::default(), "{nothing}");
        }
    }

    #[test]
    fn decoding_is_strict() {
        let cause = |fields: &str| {
            let error = parse(fields).unwrap_err();
            let prefix =
                "failed to read tracing config: unable to decode tracing configuration data: ";
            error.strip_prefix(prefix).unwrap().to_owned()
        };
        assert_eq!(
            cause("foo: bar\nbaz: 1"),
            "strict decoding error: unknown field \"baz\", unknown field \"foo\""
        );
        let twice = cause("endpoint: a:1\nendpoint: b:1");
        assert!(twice.starts_with("strict decoding error: "), "{twice}");
        assert_eq!(
            cause("samplingRatePerMillion: '1'"),
            "json: cannot unmarshal string into Go struct field TracingConfiguration.samplingRatePerMillion of type int32"
        );
        assert_eq!(
            cause("samplingRatePerMillion: 3000000000"),
            "json: cannot unmarshal number 3000000000 into Go struct field TracingConfiguration.samplingRatePerMillion of type int32"
        );
        let other = "apiVersion: apps/v1\nkind: DaemonSet";
        let error = format!("{:#}", TracingConfiguration::parse(other).unwrap_err());
        let expected = "no kind \"DaemonSet\" is registered for version \"apps/v1\" in scheme";
        assert!(error.contains(expected), "{error}");
        let v2 = "apiVersion: apiserver.config.k8s.io/v2\nkind: TracingConfiguration";
        assert!(TracingConfiguration::parse(v2).is_err());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let head = "failed to validate tracing configuration: ";
        for (fields, message) in [
            (
                "samplingRatePerMillion: -1",
                "samplingRatePerMillion: Invalid value: -1: sampling rate must be positive",
            ),
            (
                "samplingRatePerMillion: 1000001",
                "samplingRatePerMillion: Invalid value: 1000001: sampling rate per million must be less than or equal to one million",
            ),
            (
                "endpoint: http://localhost:4317",
                "endpoint: Invalid value: \"http://localhost:4317\": unsupported scheme: http.  Options are none, dns, unix, or unix-abstract.  See https://github.com/grpc/grpc/blob/master/doc/naming.md",
            ),
            (
                "endpoint: localhost:port",
                "endpoint: Invalid value: \"dns://localhost:port\": parse \"dns://localhost:port\": invalid port \":port\" after host",
            ),
        ] {
            assert_eq!(parse(fields).unwrap_err(), format!("{head}{message}"));
        }
        assert!(parse("endpoint: 'dn%2s://localhost:4317'").is_err());
        for fine in ["0", "1000000"] {
            assert!(parse(&format!("samplingRatePerMillion: {fine}")).is_ok());
        }
        let absent = TracingConfiguration::load(Path::new("/absent")).unwrap_err();
        let expected = "tracing-config-file /absent does not exist";
        assert_eq!(format!("{absent:#}"), expected);
    }

    #[test]
    fn collectors_have_addresses() {
        let network = |address: &str| Address::Network(address.to_owned());
        for (endpoint, address) in [
            ("localhost:4318", network("localhost:4318")),
            ("collector", network("collector:443")),
            ("[::1]:4317", network("[::1]:4317")),
            ("dns:///collector:4317", network("collector:4317")),
            ("dns://8.8.8.8/collector:4317", network("collector:4317")),
            ("dns://collector:4317", network("collector:4317")),
            (
                "unix:///run/otlp.sock",
                Address::Socket("/run/otlp.sock".into()),
            ),
            ("unix-abstract://otlp", Address::Abstract("otlp".into())),
        ] {
            let config = parse(&format!("endpoint: '{endpoint}'")).unwrap();
            assert_eq!(config.address(), address, "{endpoint}");
        }
        assert_eq!(parse("").unwrap().address(), network("localhost:4317"));
    }
}
