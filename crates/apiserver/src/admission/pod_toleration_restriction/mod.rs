//! Pods get the tolerations of their namespace, and may have no others than it is allowed.

mod tolerations;

use anyhow::bail;
use async_trait::async_trait;
use fluyt_api::decode::{kind_of, parse_json};
use fluyt_api::validation::{At, Errors};
use fluyt_api::{Error, Reason, meta, strategy};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Attributes, Operation, Plugin, matching};
use crate::cache::Caches;
use crate::config_file::{Of, Scheme, Struct, TOLERATION};

use tolerations::{are_allowed, merge};

/// Annotations of a namespace: what its pods get, and what they may have.
const DEFAULT: &str = "scheduler.alpha.kubernetes.io/defaultTolerations";
const ALLOWED: &str = "scheduler.alpha.kubernetes.io/tolerationsWhitelist";

/// The plugin, with what holds in namespaces that say nothing.
#[derive(Default, Deserialize)]
pub(super) struct PodTolerationRestriction {
    #[serde(default)]
    default: Vec<Value>,
    #[serde(default)]
    whitelist: Vec<Value>,
}

const SCHEME: Scheme = Scheme {
    name: "pkg/admission/podtolerationrestriction/config.go:32",
    kinds: &[(
        "podtolerationrestriction.admission.k8s.io/v1alpha1",
        "Configuration",
    )],
    content: Struct {
        name: "v1alpha1.Configuration",
        fields: &[
            ("default", Of::Objects(&TOLERATION)),
            ("whitelist", Of::Objects(&TOLERATION)),
        ],
    },
    strict: false,
};

/// The tolerations of an annotation.
fn parse(text: &str) -> Result<Vec<Value>, String> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    match parse_json(text.as_bytes())?.0 {
        Value::Null => Ok(Vec::new()),
        Value::Array(mut list) => {
            for item in &mut list {
                TOLERATION.check(item)?;
            }
            Ok(list)
        }
        other => Err(format!(
            "json: cannot unmarshal {} into Go value of type []v1.Toleration",
            kind_of(&other)
        )),
    }
}

/// An error without a reason, as upstream answers here.
fn unexpected(why: impl Into<String>) -> Error {
    Error::new(Reason::Unknown, why)
}

/// The tolerations that a pod's namespace has in an annotation.
fn of_namespace(
    caches: &Caches,
    attributes: &Attributes<'_>,
    annotation: &str,
) -> Result<Option<Vec<Value>>, Error> {
    let Some(namespace) = matching::namespace(caches, attributes, &Value::Null) else {
        let name = attributes.at.namespace;
        return Err(Error::not_found("", "namespaces", name));
    };
    let said = meta::annotation(&namespace, annotation).map(parse);
    said.transpose().map_err(unexpected)
}

fn tolerations_of(pod: &Value) -> &[Value] {
    pod["spec"]["tolerations"]
        .as_array()
        .map_or(&[], Vec::as_slice)
}

impl PodTolerationRestriction {
    /// # Errors
    /// When the configuration is malformed, or has tolerations that no pod could have.
    pub(super) fn new(configuration: Option<&str>) -> anyhow::Result<Self> {
        let Some(text) = configuration else {
            return Ok(Self::default());
        };
        let plugin: Self = SCHEME.decode(text)?;
        let mut errors = Errors::default();
        for (field, list) in [
            ("default", &plugin.default),
            ("whitelist", &plugin.whitelist),
        ] {
            let (list, name) = (json!(list), format!("podtolerationrestriction.{field}"));
            strategy::validate_tolerations(&At::named(&list, &name), &mut errors);
        }
        if !errors.is_empty() {
            let all = errors.0.iter();
            let all: Vec<String> = all.map(|c| format!("{}: {}", c.field, c.message)).collect();
            bail!("invalid config: [{}]", all.join(" "));
        }
        Ok(plugin)
    }

    /// Refuses tolerations that are not allowed to the namespace, or else to the cluster.
    fn check(
        &self,
        caches: &Caches,
        attributes: &Attributes<'_>,
        pod: &Value,
    ) -> Result<(), Error> {
        let tolerations = tolerations_of(pod);
        if tolerations.is_empty() {
            return Ok(());
        }
        let (allowed, whose) = match of_namespace(caches, attributes, ALLOWED)? {
            Some(allowed) => (allowed, "namespace"),
            None => (self.whitelist.clone(), "cluster"),
        };
        if are_allowed(tolerations, &allowed) {
            return Ok(());
        }
        Err(unexpected(format!(
            "pod tolerations (possibly merged with namespace default tolerations) conflict with its {whose} whitelist"
        )))
    }
}

#[async_trait]
impl Plugin for PodTolerationRestriction {
    async fn admit(
        &self,
        caches: &Caches,
        attributes: &Attributes<'_>,
        pod: &mut Value,
    ) -> Result<(), Error> {
        if !attributes.writes("pods") {
            return Ok(());
        }
        let mut more = Vec::new();
        if attributes.operation == Operation::Create {
            let of_namespace = of_namespace(caches, attributes, DEFAULT)?;
            more = of_namespace.unwrap_or_else(|| self.default.clone());
        }
        if strategy::qos_class(pod) != "BestEffort" {
            // It has memory of its own, which a node under pressure does not take away.
            more.push(json!({
                "key": "node.kubernetes.io/memory-pressure", "operator": "Exists", "effect": "NoSchedule",
            }));
        }
        if !more.is_empty() {
            let merged = merge(tolerations_of(pod), &more);
            meta::child(pod, "spec").insert("tolerations".into(), merged.into());
        }
        self.check(caches, attributes, pod)
    }

    async fn validate(
        &self,
        caches: &Caches,
        attributes: &Attributes<'_>,
        pod: &Value,
    ) -> Result<(), Error> {
        if !attributes.writes("pods") {
            return Ok(());
        }
        self.check(caches, attributes, pod)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_are_lists_of_tolerations() {
        assert_eq!(parse(""), Ok(Vec::new()));
        assert_eq!(parse("null"), Ok(Vec::new()));
        let list = r#"[{"key": "k", "operator": "Exists", "colour": "red"}]"#;
        assert_eq!(
            parse(list),
            Ok(vec![json!({"key": "k", "operator": "Exists"})])
        );
        assert_eq!(
            parse("{}"),
            Err("json: cannot unmarshal object into Go value of type []v1.Toleration".into())
        );
        assert_eq!(parse("["), Err("unexpected end of JSON input".into()));
        assert_eq!(
            parse(r#"[{"key": 1}]"#),
            Err(
                "json: cannot unmarshal number into Go struct field Toleration.key of type string"
                    .into()
            )
        );
    }

    #[test]
    fn the_configuration_is_validated() {
        let head =
            "apiVersion: podtolerationrestriction.admission.k8s.io/v1alpha1\nkind: Configuration\n";
        let new = |fields: &str| PodTolerationRestriction::new(Some(&format!("{head}{fields}")));
        // Upstream's decoder of it is not strict.
        let plugin = new("default: [{key: a, operator: Exists}]\ncolour: red").unwrap();
        assert_eq!(plugin.default, [json!({"key": "a", "operator": "Exists"})]);
        let refused = new("default: [{value: v}]\nwhitelist: [{key: a, operator: Maybe}]");
        let refused = refused.err().unwrap().to_string();
        assert_eq!(
            refused,
            "invalid config: [podtolerationrestriction.default[0].operator: Invalid value: \"\": operator must be Exists when `key` is empty, which means \"match all values and all keys\" podtolerationrestriction.whitelist[0].operator: Unsupported value: \"Maybe\": supported values: \"Equal\", \"Exists\"]"
        );
    }
}
