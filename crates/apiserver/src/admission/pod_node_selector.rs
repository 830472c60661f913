//! Pods get the node selector of their namespace, and may not ask for labels that their namespace is not allowed.

use std::collections::BTreeMap;

use async_trait::async_trait;
use fluyt_api::validation::{Errors, label_value, qualified_name};
use fluyt_api::{Error, Reason, meta};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Attributes, Operation, Plugin, matching};
use crate::cache::Caches;

/// The annotation of a namespace that has its node selector.
const SELECTOR: &str = "scheduler.alpha.kubernetes.io/node-selector";

/// Whose selector namespaces have that have none.
const DEFAULT: &str = "clusterDefaultNodeSelector";

type Labels = BTreeMap<String, String>;

/// The plugin, with the default selector and what namespaces are allowed.
pub(super) struct PodNodeSelector(BTreeMap<String, String>);

#[derive(Default, Deserialize)]
struct Configuration {
    #[serde(default, rename = "podNodeSelectorPluginConfig")]
    selectors: BTreeMap<String, String>,
}

/// Parses `key=value,…`.
fn parse(selector: &str) -> Result<Labels, String> {
    let mut labels = Labels::new();
    if selector.is_empty() {
        return Ok(labels);
    }
    for label in selector.split(',') {
        let parts: Vec<&str> = label.split('=').collect();
        let &[key, value] = parts.as_slice() else {
            return Err(format!("invalid selector: [{}]", parts.join(" ")));
        };
        let (key, value) = (key.trim(), value.trim());
        let mut errors = Errors::default();
        let (of_key, of_value) = (qualified_name(key), label_value(value));
        // There is no place to name: upstream prints what it has instead of one.
        if !of_key.is_empty() {
            errors.invalid_text("<nil>", key, &of_key.join("; "));
        } else if !of_value.is_empty() {
            errors.invalid_text(format!("[{key}]"), value, &of_value.join("; "));
        }
        if let Some(why) = crate::validation::sentence(&errors) {
            return Err(why);
        }
        labels.insert(key.to_owned(), value.to_owned());
    }
    Ok(labels)
}

/// An error without a reason, as upstream answers what it did not expect.
fn unexpected(why: String) -> Error {
    Error::new(Reason::Unknown, why)
}

fn selector_of(pod: &Value) -> impl Iterator<Item = (&String, &str)> {
    let selector = pod["spec"]["nodeSelector"].as_object();
    let labels = selector.into_iter().flatten();
    labels.map(|(key, value)| (key, value.as_str().unwrap_or_default()))
}

impl PodNodeSelector {
    /// A configuration that cannot be read counts as none, as it does upstream.
    pub(super) fn new(configuration: Option<&str>) -> Self {
        let read = configuration.map(serde_saphyr::from_str::<Configuration>);
        let read = read.transpose().unwrap_or_else(|error| {
            let error = error.to_string();
            tracing::error!(error, "the configuration of PodNodeSelector is ignored");
            None
        });
        Self(read.unwrap_or_default().selectors)
    }

    fn configured(&self, namespace: &str) -> Result<Labels, Error> {
        let selector = self.0.get(namespace).map_or("", |s| s);
        parse(selector).map_err(unexpected)
    }

    /// The selector that all pods of a namespace have.
    fn of_namespace(&self, caches: &Caches, attributes: &Attributes<'_>) -> Result<Labels, Error> {
        let name = attributes.at.namespace;
        let Some(namespace) = matching::namespace(caches, attributes, &Value::Null) else {
            let why = format!("namespace {name} does not exist");
            return Err(Error::internal(why));
        };
        match meta::annotation(&namespace, SELECTOR) {
            Some(selector) => parse(selector).map_err(unexpected),
            None => self.configured(DEFAULT),
        }
    }

    /// Refuses what contradicts the namespace's selector, and labels that it is not allowed.
    fn check(
        &self,
        attributes: &Attributes<'_>,
        pod: &Value,
        wanted: &Labels,
    ) -> Result<(), Error> {
        if selector_of(pod).any(|(key, value)| wanted.get(key).is_some_and(|w| w != value)) {
            return Err(attributes.forbidden(
                "pod node label selector conflicts with its namespace node label selector",
            ));
        }
        let allowed = self.configured(attributes.at.namespace)?;
        let is_allowed = |key: &String, value: &str| allowed.get(key).is_some_and(|a| a == value);
        if allowed.is_empty() || selector_of(pod).all(|(key, value)| is_allowed(key, value)) {
            return Ok(());
        }
        Err(attributes
            .forbidden("pod node label selector labels conflict with its namespace whitelist"))
    }
}

#[async_trait]
impl Plugin for PodNodeSelector {
    async fn admit(
        &self,
        caches: &Caches,
        attributes: &Attributes<'_>,
        pod: &mut Value,
    ) -> Result<(), Error> {
        if !attributes.is("pods", Operation::Create) {
            return Ok(());
        }
        let wanted = self.of_namespace(caches, attributes)?;
        self.check(attributes, &with(pod, &wanted), &wanted)?;
        *pod = with(pod, &wanted);
        Ok(())
    }

    async fn validate(
        &self,
        caches: &Caches,
        attributes: &Attributes<'_>,
        pod: &Value,
    ) -> Result<(), Error> {
        if !attributes.is("pods", Operation::Create) {
            return Ok(());
        }
        let wanted = self.of_namespace(caches, attributes)?;
        self.check(attributes, pod, &wanted)
    }
}

/// The pod with the labels that its selector does not have.
fn with(pod: &Value, wanted: &Labels) -> Value {
    let mut pod = pod.clone();
    if wanted.is_empty() {
        return pod;
    }
    let selector = meta::child(&mut pod, "spec")
        .entry("nodeSelector")
        .or_insert_with(|| json!({}));
    if let Some(selector) = selector.as_object_mut() {
        for (key, value) in wanted {
            let value = || value.clone().into();
            selector.entry(key.clone()).or_insert_with(value);
        }
    }
    pod
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_labels() {
        let labels = |pairs: &[(&str, &str)]| {
            let owned = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
            Ok(pairs.iter().map(owned).collect())
        };
        assert_eq!(parse(""), labels(&[]));
        assert_eq!(parse("a=b, c = d"), labels(&[("a", "b"), ("c", "d")]));
        let refused = |selector: &str| parse(selector).unwrap_err();
        assert_eq!(refused("env"), "invalid selector: [env]");
        assert_eq!(refused("a=b=c"), "invalid selector: [a b c]");
        assert!(refused("a b=c").starts_with("<nil>: Invalid value: \"a b\": "));
        assert!(refused("a=b c").starts_with("[a]: Invalid value: \"b c\": "));
    }

    #[test]
    fn a_bad_configuration_is_none() {
        let text = "podNodeSelectorPluginConfig: {clusterDefaultNodeSelector: a=b, n: c=d}";
        let plugin = PodNodeSelector::new(Some(text));
        assert_eq!(plugin.configured(DEFAULT).unwrap()["a"], "b");
        assert_eq!(plugin.configured("n").unwrap()["c"], "d");
        for none in [
            None,
            Some("podNodeSelectorPluginConfig: [a]"),
            Some("other: 1"),
        ] {
            assert!(PodNodeSelector::new(none).0.is_empty(), "{none:?}");
        }
    }
}
