//! `ResourceQuotaConfiguration`: what may be used only where a quota limits it.

use std::collections::BTreeSet;

use anyhow::bail;
use fluyt_api::quantity::Quantity;
use fluyt_api::validation::Errors;
use fluyt_api::{Error, Reason};
use serde::Deserialize;
use serde_json::Value;

use super::{Usage, scopes};
use crate::admission::Attributes;
use crate::config_file::{Of, Scheme, Struct};

/// The configuration.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Configuration {
    limited_resources: Vec<LimitedResource>,
}

/// A resource that is limited.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct LimitedResource {
    #[serde(rename = "apiGroup")]
    group: String,
    resource: String,
    /// Parts of the names of what quotas count.
    match_contains: Vec<String>,
    match_scopes: Vec<Value>,
}

const LIMITED: Struct = Struct {
    name: "v1.LimitedResource",
    fields: &[
        ("apiGroup", Of::Text),
        ("resource", Of::Text),
        ("matchContains", Of::Texts),
        ("matchScopes", Of::Objects(&SCOPE)),
    ],
};

const SCOPE: Struct = Struct {
    name: "v1.ScopedResourceSelectorRequirement",
    fields: &[
        ("scopeName", Of::Text),
        ("operator", Of::Text),
        ("values", Of::Texts),
    ],
};

const SCHEME: Scheme = Scheme {
    name: "k8s.io/apiserver/pkg/admission/plugin/resourcequota/config.go:31",
    kinds: &[
        ("apiserver.config.k8s.io/v1", "ResourceQuotaConfiguration"),
        ("resourcequota.admission.k8s.io/v1beta1", "Configuration"),
        ("resourcequota.admission.k8s.io/v1alpha1", "Configuration"),
    ],
    content: Struct {
        name: "v1.Configuration",
        fields: &[("limitedResources", Of::Objects(&LIMITED))],
    },
    strict: true,
};

impl Configuration {
    /// # Errors
    /// When it is malformed or makes no sense.
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        let configuration: Self = SCHEME.decode(text)?;
        let mut errors = Errors::default();
        for (i, limited) in configuration.limited_resources.iter().enumerate() {
            if limited.resource.is_empty() {
                errors.required(format!("limitedResources[{i}].resource"), "");
            }
        }
        match crate::validation::sentence(&errors) {
            None => Ok(configuration),
            Some(all) => bail!(all),
        }
    }

    /// Whether objects may be made where there is no quota.
    pub(super) fn demands_nothing(&self) -> bool {
        self.limited_resources.is_empty()
    }

    /// What quotas must be there for an object that counts for `usage`.
    pub(super) fn needs(
        &self,
        attributes: &Attributes<'_>,
        object: &Value,
        usage: &Usage,
    ) -> Needs {
        let resource = attributes.at.resource;
        let mut needs = Needs::default();
        for limited in &self.limited_resources {
            let is_met = |scope: &&Value| scopes::is_met(scope, resource.plural, object);
            let met = limited.match_scopes.iter().filter(is_met);
            if resource.group.is_empty() {
                needs.scopes.extend(met.cloned());
            }
            if (limited.group.as_str(), limited.resource.as_str())
                != (resource.group, resource.plural)
            {
                continue;
            }
            let matches = |name: &str| {
                limited
                    .match_contains
                    .iter()
                    .any(|part| name.contains(part))
            };
            let used = usage.iter().filter(|(_, amount)| **amount > Quantity::ZERO);
            let names = used.map(|(name, _)| name).filter(|name| matches(name));
            needs.names.extend(names.cloned());
        }
        needs
    }
}

/// What has to be limited by quotas that are not found yet.
#[derive(Debug, Default)]
pub(super) struct Needs {
    names: BTreeSet<String>,
    scopes: Vec<Value>,
}

impl Needs {
    /// A quota limits something of it.
    pub(super) fn find(&mut self, plural: &str, object: &Value, quota: &Value) {
        let requirements = scopes::of_quota(quota);
        let (met, missed): (Vec<_>, Vec<_>) = requirements
            .into_iter()
            .partition(|requirement| scopes::is_met(requirement, plural, object));
        let is_covered = |scope: &Value| met.iter().any(|m| m["scopeName"] == scope["scopeName"]);
        self.scopes.retain(|scope| !is_covered(scope));
        if missed.is_empty() {
            self.names
                .retain(|name| quota["status"]["hard"][name].is_null());
        }
    }

    /// Refuses what is left.
    pub(super) fn check(&self, attributes: &Attributes<'_>) -> Result<(), Error> {
        if !self.names.is_empty() {
            let names: Vec<&str> = self.names.iter().map(|name| &**name).collect();
            let why = format!("insufficient quota to consume: {}", names.join(","));
            return Err(attributes.forbidden(why));
        }
        if self.scopes.is_empty() {
            return Ok(());
        }
        let scopes: Vec<String> = self.scopes.iter().map(shown).collect();
        // Upstream gives this error no reason.
        let why = format!(
            "insufficient quota to match these scopes: [{}]",
            scopes.join(" ")
        );
        Err(Error::new(Reason::Unknown, why))
    }
}

/// A requirement as Go prints it: `{PriorityClass In [a b]}`.
fn shown(scope: &Value) -> String {
    let text = |field: &str| scope[field].as_str().unwrap_or_default();
    let values = scope["values"].as_array().into_iter().flatten();
    let values: Vec<&str> = values.filter_map(Value::as_str).collect();
    let (name, operator) = (text("scopeName"), text("operator"));
    format!("{{{name} {operator} [{}]}}", values.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_and_version_is_read() {
        let fields = "limitedResources: [{resource: pods, matchContains: [cpu], matchScopes: [{scopeName: PriorityClass, operator: In, values: [a]}]}]";
        for (version, kind) in SCHEME.kinds {
            let text = format!("apiVersion: {version}\nkind: {kind}\n{fields}");
            let read = Configuration::parse(&text).unwrap();
            let limited = &read.limited_resources[0];
            assert_eq!(limited.match_contains, ["cpu"]);
            assert_eq!(shown(&limited.match_scopes[0]), "{PriorityClass In [a]}");
        }
        let head = "apiVersion: apiserver.config.k8s.io/v1\nkind: ResourceQuotaConfiguration\n";
        let refused = |fields: &str| {
            let read = Configuration::parse(&format!("{head}{fields}"));
            read.unwrap_err().to_string()
        };
        assert_eq!(
            refused("limitedResources: [{apiGroup: apps}]"),
            "limitedResources[0].resource: Required value"
        );
        assert_eq!(
            refused("limitedResources: [{resource: pods, matchScopes: [{scope: x}]}]"),
            "strict decoding error: unknown field \"limitedResources[0].matchScopes[0].scope\""
        );
    }
}
