//! `PodSecurity`: the Pod Security Standards, as the labels of a namespace ask for them.

mod checks;

use async_trait::async_trait;
use fluyt_api::validation::Errors;
use fluyt_api::{Error, Reason, meta};
use serde_json::Value;

use super::{Attributes, Operation, Plugin, in_namespace, matching};
use crate::cache::Caches;

/// The plugin.
pub struct PodSecurity;

/// How much a pod may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Privileged,
    Baseline,
    Restricted,
}

/// A level in a version.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Standard {
    level: Level,
    /// The minor version; `None` for the latest.
    minor: Option<u32>,
}

const PREFIX: &str = "pod-security.kubernetes.io/";

/// The latest version of the standards.
const LATEST: u32 = 36;

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

/// More existing pods of a namespace are not looked at when its level rises.
const MAX_PODS: usize = 3000;

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Privileged => "privileged",
            Self::Baseline => "baseline",
            Self::Restricted => "restricted",
        }
    }
}

impl std::fmt::Display for Standard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.minor {
            Some(minor) => write!(f, "{}:v1.{minor}", self.level.name()),
            None => write!(f, "{}:latest", self.level.name()),
        }
    }
}

impl Standard {
    /// The standard of a mode (`enforce`, `audit`, `warn`) by a namespace's labels. What is malformed is reported and
    /// taken for the strictest in modes that only tell.
    fn of(namespace: &Value, mode: &str, errors: &mut Errors) -> Self {
        let label = |key: &str| namespace["metadata"]["labels"][key].as_str();
        let (level_key, version_key) =
            (format!("{PREFIX}{mode}"), format!("{PREFIX}{mode}-version"));
        let level = match label(&level_key) {
            None | Some("privileged") => Level::Privileged,
            Some("baseline") => Level::Baseline,
            Some("restricted") => Level::Restricted,
            Some(other) => {
                let field = format!("metadata.labels[{level_key}]");
                errors.invalid(
                    &field,
                    &other.into(),
                    "must be one of privileged, baseline, restricted",
                );
                if mode == "enforce" {
                    Level::Restricted
                } else {
                    Level::Privileged
                }
            }
        };
        let minor = match label(&version_key) {
            None | Some("latest") => None,
            Some(text) => match text.strip_prefix("v1.").and_then(|m| m.parse().ok()) {
                Some(minor) => Some(minor),
                None => {
                    let field = format!("metadata.labels[{version_key}]");
                    errors.invalid(&field, &text.into(), "must be \"latest\" or \"v1.x\"");
                    None
                }
            },
        };
        Self { level, minor }
    }

    /// What a pod has that this standard forbids, in one sentence.
    fn objection(&self, metadata: &Value, spec: &Value) -> Option<String> {
        let minor = self.minor.unwrap_or(LATEST).min(LATEST);
        let found = checks::violations(self.level, minor, metadata, spec);
        let parts: Vec<String> = found
            .into_iter()
            .map(|(reason, detail)| {
                if detail.is_empty() {
                    reason
                } else {
                    format!("{reason} ({detail})")
                }
            })
            .collect();
        (!parts.is_empty()).then(|| parts.join(", "))
    }
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

/// What the audit log learns: the standard that is enforced, and what one that is only audited objects to.
fn record(
    attributes: &Attributes<'_>,
    audited: &Standard,
    enforced: Option<&Standard>,
    pod: &Value,
) {
    let record = &attributes.cx.record;
    if let Some(enforced) = enforced {
        let key = "pod-security.kubernetes.io/enforce-policy";
        record.annotate(key, enforced.to_string());
    }
    if let Some(objection) = audited.objection(&pod["metadata"], &pod["spec"]) {
        record.annotate(
            "pod-security.kubernetes.io/audit-violations",
            format!("would violate PodSecurity \"{audited}\": {objection}"),
        );
    }
}

fn warn(attributes: &Attributes<'_>, standard: &Standard, metadata: &Value, spec: &Value) {
    if let Some(objection) = standard.objection(metadata, spec) {
        attributes.cx.warnings.add(format!(
            "would violate PodSecurity \"{standard}\": {objection}"
        ));
    }
}

fn validate_namespace(
    caches: &Caches,
    attributes: &Attributes<'_>,
    namespace: &Value,
) -> Result<(), Error> {
    let (mut new, mut old) = (Errors::default(), Errors::default());
    let enforce = Standard::of(namespace, "enforce", &mut new);
    let before = attributes.old.map(|o| Standard::of(o, "enforce", &mut old));
    for mode in ["audit", "warn"] {
        Standard::of(namespace, mode, &mut new);
        if let Some(o) = attributes.old {
            Standard::of(o, mode, &mut old);
        }
    }
    if !new.is_empty() && (attributes.old.is_none() || old.0.len() != new.0.len()) {
        return Err(Error::invalid(
            "",
            "Namespace",
            meta::name(namespace),
            new.0,
        ));
    }
    let Some(before) = before.filter(|b| *b != enforce) else {
        return Ok(());
    };
    let relaxed = before.minor == enforce.minor && enforce.level <= before.level;
    if enforce.level == Level::Privileged || relaxed {
        return Ok(());
    }
    let name = meta::name(namespace);
    let pods = in_namespace(caches, "pods", name);
    let mut warnings: Vec<(String, Vec<String>)> = Vec::new();
    for pod in pods.iter().take(MAX_PODS) {
        let minor = enforce.minor.unwrap_or(LATEST).min(LATEST);
        let reasons: Vec<String> =
            checks::violations(enforce.level, minor, &pod["metadata"], &pod["spec"])
                .into_iter()
                .map(|(reason, _)| reason)
                .collect();
        if reasons.is_empty() {
            continue;
        }
        let reason = reasons.join(", ");
        match warnings.iter_mut().find(|(r, _)| *r == reason) {
            Some((_, names)) => names.push(meta::name(pod).to_owned()),
            None => warnings.push((reason, vec![meta::name(pod).to_owned()])),
        }
    }
    if warnings.is_empty() {
        return Ok(());
    }
    attributes.cx.warnings.add(format!("existing pods in namespace {name:?} violate the new PodSecurity enforce level \"{enforce}\""));
    let mut lines: Vec<String> = warnings
        .into_iter()
        .map(|(reason, mut names)| {
            names.sort_unstable();
            match names.as_slice() {
                [one] => format!("{one}: {reason}"),
                [one, _] => format!("{one} (and 1 other pod): {reason}"),
                [one, rest @ ..] => format!("{one} (and {} other pods): {reason}", rest.len()),
                [] => reason,
            }
        })
        .collect();
    lines.sort_unstable();
    for line in lines {
        attributes.cx.warnings.add(line);
    }
    Ok(())
}

#[async_trait]
impl Plugin for PodSecurity {
    fn name(&self) -> &'static str {
        "PodSecurity"
    }

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
            return validate_namespace(caches, attributes, object);
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
        let Some(namespace) = matching::namespace(caches, attributes, object) else {
            return Ok(());
        };
        let mut errors = Errors::default();
        let enforce = Standard::of(&namespace, "enforce", &mut errors);
        let warned = Standard::of(&namespace, "warn", &mut errors);
        if attributes.cx.record.is_audited() {
            let pod = template.unwrap_or(object);
            let audited = Standard::of(&namespace, "audit", &mut errors);
            record(
                attributes,
                &audited,
                template.is_none().then_some(&enforce),
                pod,
            );
        }
        if let Some(template) = template {
            warn(
                attributes,
                &warned,
                &template["metadata"],
                &template["spec"],
            );
            return Ok(());
        }
        // An update that does not touch what the standards are about is let through.
        let unchanged = attributes.old.is_some_and(|old| {
            old["spec"] == object["spec"]
                && old["metadata"]["annotations"] == object["metadata"]["annotations"]
        });
        if unchanged {
            return Ok(());
        }
        if let Some(objection) = enforce.objection(&object["metadata"], &object["spec"]) {
            let error =
                attributes.forbidden(format!("violates PodSecurity \"{enforce}\": {objection}"));
            debug_assert_eq!(error.reason, Reason::Forbidden);
            return Err(error);
        }
        warn(attributes, &warned, &object["metadata"], &object["spec"]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn levels_object_in_upstreams_words() {
        let pod = json!({"hostNetwork": true, "containers": [{"name": "c", "ports": [{"hostPort": 80}]}], "volumes": [{"name": "v", "hostPath": {"path": "/"}}]});
        let standard = |level| Standard { level, minor: None };
        assert_eq!(
            standard(Level::Privileged).objection(&json!({}), &pod),
            None
        );
        assert_eq!(
            standard(Level::Baseline)
                .objection(&json!({}), &pod)
                .unwrap(),
            "host namespaces (hostNetwork=true), hostPath volumes (volume \"v\"), hostPort (container \"c\" uses hostPort 80)"
        );
        let plain = json!({"containers": [{"name": "c"}]});
        assert_eq!(
            standard(Level::Restricted)
                .objection(&json!({}), &plain)
                .unwrap(),
            "allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"]), runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true), seccompProfile (pod or container \"c\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
        );
        let good = json!({"securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "c", "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}]});
        assert_eq!(
            standard(Level::Restricted).objection(&json!({}), &good),
            None
        );
    }
}
