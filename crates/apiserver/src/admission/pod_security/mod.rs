//! `PodSecurity`: the Pod Security Standards, as the labels of a namespace ask for them.

mod checks;
mod configuration;
mod namespace;
mod policy;

use async_trait::async_trait;
use fluyt_api::Error;
use fluyt_api::validation::Errors;
use serde_json::Value;

use super::{Attributes, Operation, Plugin, matching};
use crate::cache::Caches;

use configuration::Configuration;
use policy::{Level, Policy, Standard};

/// The plugin.
pub struct PodSecurity(Configuration);

/// Subresources of pods that do not change what a pod may do.
const IGNORED: [&str; 8] = [
    "exec",
    "attach",
    "binding",
    "eviction",
    "log",
    "portforward",
    "proxy",
    "status",
];

/// A pod, or what one is made of.
struct Pod<'a> {
    metadata: &'a Value,
    spec: &'a Value,
    /// It is a template, whose pods are judged when they are made.
    is_template: bool,
}

/// Where objects of a kind that makes pods have their template.
pub fn template_path(group: &str, kind: &str) -> Option<&'static [&'static str]> {
    Some(match (group, kind) {
        ("", "PodTemplate") => &["template"],
        ("", "ReplicationController")
        | ("apps", "ReplicaSet" | "Deployment" | "DaemonSet" | "StatefulSet")
        | ("batch", "Job") => &["spec", "template"],
        ("batch", "CronJob") => &["spec", "jobTemplate", "spec", "template"],
        _ => return None,
    })
}

fn template<'a>(group: &str, kind: &str, object: &'a Value) -> Option<&'a Value> {
    let mut path = template_path(group, kind)?.iter();
    path.try_fold(object, |at, name| at.get(*name))
}

/// Tells the audit log something.
fn annotate(attributes: &Attributes<'_>, key: &str, value: impl AsRef<str>) {
    let key = format!("pod-security.kubernetes.io/{key}");
    attributes.cx.record.annotate(&key, value);
}

/// Whether an update of a pod brings an image that it did not have. Nothing else that may change is in the standards.
fn is_significant(pod: &Value, old: &Value) -> bool {
    let containers = |pod: &Value, list: &str| -> Vec<Value> {
        let all = pod["spec"][list].as_array().into_iter().flatten();
        all.map(|c| serde_json::json!([c["name"], c["image"]]))
            .collect()
    };
    let images = |pod: &Value, list: &str| -> Vec<Value> {
        let all = containers(pod, list).into_iter();
        all.map(|mut container| container[1].take()).collect()
    };
    let debugged = containers(old, "ephemeralContainers");
    let debugs = containers(pod, "ephemeralContainers");
    ["containers", "initContainers"]
        .iter()
        .any(|list| images(pod, list) != images(old, list))
        || debugs.iter().any(|c| !debugged.contains(c))
}

impl PodSecurity {
    /// # Errors
    /// When the configuration is malformed or makes no sense.
    pub(super) fn new(configuration: Option<&str>) -> anyhow::Result<Self> {
        Configuration::parse(configuration.unwrap_or_default()).map(Self)
    }

    fn exempts_namespace(&self, namespace: &str) -> bool {
        let exempt = &self.0.exemptions.namespaces;
        exempt.iter().any(|n| n == namespace)
    }

    fn exempts_class(&self, spec: &Value) -> bool {
        let exempt = &self.0.exemptions.runtime_classes;
        let class = spec["runtimeClassName"].as_str();
        class.is_some_and(|class| exempt.iter().any(|c| c == class))
    }

    /// Why nothing is asked of a request.
    fn exemption(&self, attributes: &Attributes<'_>) -> Option<&'static str> {
        let user = &attributes.cx.user.name;
        if self.exempts_namespace(attributes.at.namespace) {
            Some("namespace")
        } else if self.0.exemptions.usernames.contains(user) {
            Some("user")
        } else {
            None
        }
    }

    /// Judges a pod by the policy of its namespace; a template is only talked about.
    fn judge(
        &self,
        attributes: &Attributes<'_>,
        policy: &Policy,
        pod: &Pod<'_>,
    ) -> Result<(), Error> {
        if self.exempts_class(pod.spec) {
            annotate(attributes, "exempt", "runtimeClass");
            return Ok(());
        }
        let objection = |standard: &Standard| standard.objection(pod.metadata, pod.spec);
        if attributes.cx.record.is_audited() {
            if !pod.is_template {
                annotate(attributes, "enforce-policy", policy.enforce.to_string());
            }
            if let Some(objection) = objection(&policy.audit) {
                let audit = &policy.audit;
                let violations = format!("would violate PodSecurity \"{audit}\": {objection}");
                annotate(attributes, "audit-violations", violations);
            }
        }
        if !pod.is_template
            && let Some(objection) = objection(&policy.enforce)
        {
            let enforce = &policy.enforce;
            let why = format!("violates PodSecurity \"{enforce}\": {objection}");
            return Err(attributes.forbidden(why));
        }
        if let Some(objection) = objection(&policy.warn) {
            attributes.cx.warnings.add(format!(
                "would violate PodSecurity \"{}\": {objection}",
                policy.warn
            ));
        }
        Ok(())
    }
}

#[async_trait]
impl Plugin for PodSecurity {
    async fn validate(
        &self,
        caches: &Caches,
        attributes: &Attributes<'_>,
        object: &Value,
    ) -> Result<(), Error> {
        if !matches!(attributes.operation, Operation::Create | Operation::Update) {
            return Ok(());
        }
        let at = attributes.at;
        let (group, kind) = (at.resource.group, at.resource.kind);
        if group.is_empty() && kind == "Namespace" && at.subresource.is_empty() {
            return self.validate_namespace(caches, attributes, object);
        }
        let is_pod = group.is_empty() && kind == "Pod" && !IGNORED.contains(&at.subresource);
        let template = if at.subresource.is_empty() {
            template(group, kind, object)
        } else {
            None
        };
        if !is_pod && template.is_none() {
            return Ok(());
        }
        if let Some(why) = self.exemption(attributes) {
            annotate(attributes, "exempt", why);
            return Ok(());
        }
        let Some(namespace) = matching::namespace(caches, attributes, object) else {
            return Ok(());
        };
        let mut errors = Errors::default();
        let policy = Policy::of(&namespace, &self.0.defaults, &mut errors);
        if errors.is_empty() && policy.is_privileged() {
            if is_pod {
                annotate(
                    attributes,
                    "enforce-policy",
                    Standard::default().to_string(),
                );
            }
            return Ok(());
        }
        let insignificant = |old: &Value| is_pod && !is_significant(object, old);
        if attributes.old.is_some_and(insignificant) {
            return Ok(());
        }
        if let Some(why) = crate::validation::sentence(&errors) {
            annotate(
                attributes,
                "error",
                format!("Failed to parse policy: {why}"),
            );
        }
        let pod = template.unwrap_or(object);
        let pod = Pod {
            metadata: &pod["metadata"],
            spec: &pod["spec"],
            is_template: template.is_some(),
        };
        self.judge(attributes, &policy, &pod)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn new_images_are_significant() {
        let pod = |images: &[&str], debug: &[(&str, &str)]| {
            let containers: Vec<Value> = images.iter().map(|i| json!({"image": i})).collect();
            let debug = debug.iter().map(|(n, i)| json!({"name": n, "image": i}));
            json!({"spec": {"containers": containers, "ephemeralContainers": debug.collect::<Vec<_>>()}})
        };
        let old = pod(&["a", "b"], &[("d", "x")]);
        let mut tolerant = old.clone();
        tolerant["spec"]["tolerations"] = json!([{"operator": "Exists"}]);
        assert!(!is_significant(&tolerant, &old));
        assert!(is_significant(&pod(&["b", "a"], &[("d", "x")]), &old));
        assert!(is_significant(&pod(&["a"], &[("d", "x")]), &old));
        assert!(is_significant(
            &pod(&["a", "b"], &[("d", "x"), ("e", "x")]),
            &old
        ));
        assert!(is_significant(&pod(&["a", "b"], &[("d", "y")]), &old));
    }
}
