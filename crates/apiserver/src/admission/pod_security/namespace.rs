//! Namespaces: their labels make sense, and whoever raises a level is told which pods would not pass any more.

use fluyt_api::validation::Errors;
use fluyt_api::{Error, meta};
use serde_json::Value;

use super::{Level, PodSecurity, Policy, Standard};
use crate::admission::{Attributes, in_namespace};
use crate::cache::Caches;

/// More existing pods of a namespace are not looked at when its level rises.
const MAX_PODS: usize = 3000;

impl PodSecurity {
    pub(super) fn validate_namespace(
        &self,
        caches: &Caches,
        attributes: &Attributes<'_>,
        namespace: &Value,
    ) -> Result<(), Error> {
        let (mut new, mut old) = (Errors::default(), Errors::default());
        let defaults = &self.0.defaults;
        let policy = Policy::of(namespace, defaults, &mut new);
        let before = attributes.old.map(|o| Policy::of(o, defaults, &mut old));
        let name = meta::name(namespace);
        if !new.is_empty() && (before.is_none() || old.0 != new.0) {
            return Err(Error::invalid("", "Namespace", name, new.0));
        }
        if before.is_some_and(|before| !rises(&policy.enforce, &before.enforce)) {
            return Ok(());
        }
        if self.exempts_namespace(name) {
            if let Some(warning) = policy.warning_of_exemption(namespace, defaults) {
                attributes.cx.warnings.add(warning);
            }
        } else if before.is_some() {
            for warning in self.warnings(caches, name, &policy.enforce) {
                attributes.cx.warnings.add(warning);
            }
        }
        Ok(())
    }

    /// What is wrong with the pods of a namespace.
    fn warnings(&self, caches: &Caches, namespace: &str, enforce: &Standard) -> Vec<String> {
        let mut pods = in_namespace(caches, "pods", namespace);
        pods.retain(|pod| !self.exempts_class(&pod["spec"]));
        let mut by_reason: Vec<(String, Vec<String>)> = Vec::new();
        for pod in pods.iter().take(MAX_PODS) {
            let violations = enforce.violations(&pod["metadata"], &pod["spec"]);
            let reasons: Vec<String> = violations.into_iter().map(|(reason, _)| reason).collect();
            if reasons.is_empty() {
                continue;
            }
            let (reason, name) = (reasons.join(", "), meta::name(pod).to_owned());
            match by_reason.iter_mut().find(|(r, _)| *r == reason) {
                Some((_, names)) => names.push(name),
                None => by_reason.push((reason, vec![name])),
            }
        }
        let mut warnings = Vec::new();
        if pods.len() > MAX_PODS {
            warnings.push(format!(
                "new PodSecurity enforce level only checked against the first {MAX_PODS} of {} existing pods",
                pods.len()
            ));
        }
        if !by_reason.is_empty() {
            warnings.push(format!("existing pods in namespace {namespace:?} violate the new PodSecurity enforce level \"{enforce}\""));
        }
        let mut lines: Vec<String> = by_reason.into_iter().map(line).collect();
        lines.sort_unstable();
        warnings.extend(lines);
        warnings
    }
}

/// Whether pods may do less than before.
fn rises(new: &Standard, old: &Standard) -> bool {
    let relaxed = new.minor == old.minor && new.level <= old.level;
    new.level != Level::Privileged && !relaxed
}

/// A reason, with the first pod that gives it and how many others do.
fn line((reason, mut names): (String, Vec<String>)) -> String {
    names.sort_unstable();
    match names.as_slice() {
        [one] => format!("{one}: {reason}"),
        [one, _] => format!("{one} (and 1 other pod): {reason}"),
        [one, rest @ ..] => format!("{one} (and {} other pods): {reason}", rest.len()),
        [] => reason,
    }
}
