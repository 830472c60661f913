//! How many events are written: in all, in a namespace, by a user, and about an object.

mod bucket;

use std::time::Instant;

use anyhow::bail;
use async_trait::async_trait;
use fluyt_api::Error;
use fluyt_api::validation::Errors;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::Value;

use super::{Attributes, Operation, Plugin};
use crate::authz::aggregate;
use crate::cache::Caches;
use crate::config_file::{Of, Scheme, Struct};

use bucket::{Buckets, Rate};

/// Keys that a limit remembers which does not say how many.
const CACHE: usize = 4096;

const TYPES: [&str; 4] = ["Namespace", "Server", "SourceAndObject", "User"];

/// The plugin.
pub(super) struct EventRateLimit(Vec<Enforcer>);

struct Enforcer {
    kind: String,
    buckets: Mutex<Buckets>,
}

#[derive(Default, Deserialize)]
struct Configuration {
    #[serde(default)]
    limits: Option<Vec<Limit>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Limit {
    #[serde(rename = "type")]
    kind: String,
    qps: i32,
    burst: i32,
    cache_size: i32,
}

const LIMIT: Struct = Struct {
    name: "v1alpha1.Limit",
    fields: &[
        ("type", Of::Text),
        ("qps", Of::Int32),
        ("burst", Of::Int32),
        ("cacheSize", Of::Int32),
    ],
};

const SCHEME: Scheme = Scheme {
    name: "pkg/admission/eventratelimit/config.go:31",
    kinds: &[("eventratelimit.admission.k8s.io/v1alpha1", "Configuration")],
    content: Struct {
        name: "v1alpha1.Configuration",
        fields: &[("limits", Of::Objects(&LIMIT))],
    },
    strict: false,
};

impl Configuration {
    fn validate(&self, errors: &mut Errors) {
        match &self.limits {
            None => errors.invalid("limits", &Value::Null, "must not be empty"),
            Some(limits) if limits.is_empty() => {
                errors.invalid("limits", &Vec::<Value>::new().into(), "must not be empty");
            }
            Some(limits) => {
                for (i, limit) in limits.iter().enumerate() {
                    limit.validate(&format!("limits[{i}]"), errors);
                }
            }
        }
    }
}

impl Limit {
    fn validate(&self, at: &str, errors: &mut Errors) {
        let kind = self.kind.as_str();
        if !TYPES.contains(&kind) {
            errors.not_supported(format!("{at}.type"), &kind.into(), &TYPES);
        }
        for (field, value) in [("burst", self.burst), ("qps", self.qps)] {
            if value <= 0 {
                errors.invalid(format!("{at}.{field}"), &value.into(), "must be positive");
            }
        }
        if kind != "Server" && self.cache_size < 0 {
            let (field, value) = (format!("{at}.cacheSize"), self.cache_size.into());
            errors.invalid(field, &value, "must not be negative");
        }
    }
}

impl From<Limit> for Enforcer {
    fn from(limit: Limit) -> Self {
        let rate = Rate {
            per_second: limit.qps.into(),
            burst: limit.burst.into(),
        };
        let capacity = match usize::try_from(limit.cache_size) {
            Ok(0) | Err(_) => CACHE,
            Ok(size) => size,
        };
        Self {
            kind: limit.kind,
            buckets: Mutex::new(Buckets::new(rate, capacity)),
        }
    }
}

impl Enforcer {
    /// Whose allowance an event takes from.
    fn key(&self, attributes: &Attributes<'_>, event: &Value) -> String {
        match self.kind.as_str() {
            "Namespace" => attributes.at.namespace.to_owned(),
            "User" => attributes.cx.user.name.clone(),
            "SourceAndObject" => {
                let (source, object) = (&event["source"], &event["involvedObject"]);
                let of_source = ["component", "host"].map(|field| &source[field]);
                let of_object = ["kind", "namespace", "name", "uid", "apiVersion"];
                let of_object = of_object.map(|field| &object[field]);
                let parts = of_source.into_iter().chain(of_object);
                parts.filter_map(Value::as_str).collect()
            }
            _ => String::new(),
        }
    }

    fn accept(&self, attributes: &Attributes<'_>, event: &Value) -> Result<(), String> {
        let key = self.key(attributes, event);
        if self.buckets.lock().take(&key, Instant::now()) {
            return Ok(());
        }
        Err(format!("limit reached on type {} for key {key}", self.kind))
    }
}

impl EventRateLimit {
    /// # Errors
    /// When the configuration is malformed, or no limit.
    pub(super) fn new(configuration: Option<&str>) -> anyhow::Result<Self> {
        let configuration: Configuration = match configuration {
            Some(text) => SCHEME.decode(text)?,
            None => Configuration::default(),
        };
        let mut errors = Errors::default();
        configuration.validate(&mut errors);
        if let Some(all) = crate::validation::sentence(&errors) {
            bail!(all);
        }
        let limits = configuration.limits.into_iter().flatten();
        Ok(Self(limits.map(Enforcer::from).collect()))
    }
}

#[async_trait]
impl Plugin for EventRateLimit {
    async fn validate(
        &self,
        _caches: &Caches,
        attributes: &Attributes<'_>,
        event: &Value,
    ) -> Result<(), Error> {
        let requested = attributes.requested();
        let writes = matches!(attributes.operation, Operation::Create | Operation::Update);
        // Events of the other group are not limited, as they are not upstream.
        let is_event = requested.group.is_empty() && requested.kind == "Event";
        if !writes || !is_event || attributes.cx.dry_run {
            return Ok(());
        }
        let asked = self.0.iter().map(|limit| limit.accept(attributes, event));
        match aggregate(asked.filter_map(Result::err).collect()) {
            None => Ok(()),
            Some(all) => Err(Error::too_many_requests(
                format!("Too many requests: {all}"),
                0,
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_validated() {
        let head = "apiVersion: eventratelimit.admission.k8s.io/v1alpha1\nkind: Configuration\n";
        let refused = |fields: &str| {
            let made = EventRateLimit::new(Some(&format!("{head}{fields}")));
            made.err().map(|error| error.to_string())
        };
        assert_eq!(
            refused("limits: [{type: Server, qps: 1, burst: 1, cacheSize: -1}]"),
            None
        );
        assert_eq!(
            refused("limits: [{type: Ship, burst: -1, cacheSize: -2}]").unwrap(),
            "[limits[0].type: Unsupported value: \"Ship\": supported values: \"Namespace\", \"Server\", \"SourceAndObject\", \"User\", limits[0].burst: Invalid value: -1: must be positive, limits[0].qps: Invalid value: 0: must be positive, limits[0].cacheSize: Invalid value: -2: must not be negative]"
        );
        let none = EventRateLimit::new(None).err().unwrap().to_string();
        assert_eq!(none, "limits: Invalid value: null: must not be empty");
        assert_eq!(
            refused("limits: []").unwrap(),
            "limits: Invalid value: []: must not be empty"
        );
    }
}
