//! What a namespace asks of its pods: a level of the standards, in a version, for each mode.

use fluyt_api::validation::Errors;
use serde_json::Value;

use super::checks;

const PREFIX: &str = "pod-security.kubernetes.io/";

/// The latest version of the standards.
const LATEST: u32 = 36;

/// How much a pod may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    #[default]
    Privileged,
    Baseline,
    Restricted,
}

/// A level in a version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Standard {
    pub level: Level,
    /// The minor version; `None` for the latest.
    pub minor: Option<u32>,
}

/// A standard for each mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Policy {
    pub enforce: Standard,
    pub audit: Standard,
    pub warn: Standard,
}

/// What is wrong with the name of a level or of a version.
pub(super) const NO_LEVEL: &str = "must be one of privileged, baseline, restricted";
pub(super) const NO_VERSION: &str = "must be \"latest\" or \"v1.x\"";

// === impl Level ===

impl Level {
    pub(super) fn parse(name: &str) -> Option<Self> {
        [Self::Privileged, Self::Baseline, Self::Restricted]
            .into_iter()
            .find(|level| level.name() == name)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Privileged => "privileged",
            Self::Baseline => "baseline",
            Self::Restricted => "restricted",
        }
    }
}

/// The minor version of `v1.x`, or nothing for `latest`.
pub(super) fn parse_version(text: &str) -> Option<Option<u32>> {
    if text == "latest" {
        return Some(None);
    }
    let minor = text.strip_prefix("v1.")?;
    let is_number = minor.bytes().all(|b| b.is_ascii_digit());
    let is_plain = is_number && (minor == "0" || !minor.starts_with('0'));
    let minor = is_plain.then(|| minor.parse().ok()).flatten()?;
    Some(Some(minor))
}

// === impl Standard ===

impl std::fmt::Display for Standard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.minor {
            Some(minor) => write!(f, "{}:v1.{minor}", self.level.name()),
            None => write!(f, "{}:latest", self.level.name()),
        }
    }
}

impl Standard {
    /// What a pod has that this standard forbids: reasons, and what they are about.
    pub(super) fn violations(&self, metadata: &Value, spec: &Value) -> Vec<(String, String)> {
        let minor = self.minor.unwrap_or(LATEST).min(LATEST);
        checks::violations(self.level, minor, metadata, spec)
    }

    /// The same in one sentence.
    pub(super) fn objection(&self, metadata: &Value, spec: &Value) -> Option<String> {
        let found = self.violations(metadata, spec);
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

    fn is_like(&self, other: &Self) -> bool {
        self == other || (self.level, other.level) == (Level::Privileged, Level::Privileged)
    }
}

// === impl Policy ===

impl Policy {
    /// What a namespace's labels ask for, and else the defaults. What is malformed is reported and taken for the strictest
    /// when it is to be enforced, and for nothing in modes that only tell.
    pub(super) fn of(namespace: &Value, defaults: &Self, errors: &mut Errors) -> Self {
        let labels = Labels(namespace);
        let mut policy = *defaults;
        let enforced = labels.read("enforce", &mut policy.enforce, Level::Restricted, errors);
        labels.read("audit", &mut policy.audit, Level::Privileged, errors);
        labels.read("warn", &mut policy.warn, Level::Privileged, errors);
        // Who is about to be refused is not told that something milder is fine.
        let stricter = policy.enforce.level > policy.warn.level;
        if enforced && stricter && labels.level("warn").is_none() {
            policy.warn.level = policy.enforce.level;
            if labels.version("warn").is_none() {
                policy.warn.minor = policy.enforce.minor;
            }
        }
        policy
    }

    /// Whether pods may do everything and nobody is told.
    pub(super) fn is_privileged(&self) -> bool {
        self.is_like(&Self::default())
    }

    fn is_like(&self, other: &Self) -> bool {
        self.enforce.is_like(&other.enforce)
            && self.audit.is_like(&other.audit)
            && self.warn.is_like(&other.warn)
    }

    /// What the author of a namespace should know whose labels count for nothing.
    pub(super) fn warning_of_exemption(
        &self,
        namespace: &Value,
        defaults: &Self,
    ) -> Option<String> {
        if self.is_privileged() || self.is_like(defaults) {
            return None;
        }
        let labels = Labels(namespace);
        let modes = [
            ("enforce", self.enforce),
            ("audit", self.audit),
            ("warn", self.warn),
        ];
        let asked = modes.into_iter().filter(|(mode, standard)| {
            let is_labeled = labels.level(mode).or(labels.version(mode)).is_some();
            standard.level != Level::Privileged && is_labeled
        });
        let asked: Vec<String> = asked.map(|(mode, s)| format!("{mode}={s}")).collect();
        let name = fluyt_api::meta::name(namespace);
        Some(format!(
            "namespace {name:?} is exempt from Pod Security, and the policy ({}) will be ignored",
            asked.join(", ")
        ))
    }
}

/// The labels of a namespace.
struct Labels<'a>(&'a Value);

impl<'a> Labels<'a> {
    fn get(&self, key: &str) -> Option<&'a str> {
        self.0["metadata"]["labels"][format!("{PREFIX}{key}")].as_str()
    }

    fn level(&self, mode: &str) -> Option<&'a str> {
        self.get(mode)
    }

    fn version(&self, mode: &str) -> Option<&'a str> {
        self.get(&format!("{mode}-version"))
    }

    /// Reads the standard of a mode. Whether there is a level that is one.
    fn read(
        &self,
        mode: &str,
        standard: &mut Standard,
        otherwise: Level,
        errors: &mut Errors,
    ) -> bool {
        let level = self.level(mode).map(|text| (text, Level::parse(text)));
        if let Some((text, parsed)) = level {
            standard.level = parsed.unwrap_or(otherwise);
            if parsed.is_none() {
                let field = format!("metadata.labels[{PREFIX}{mode}]");
                errors.invalid(field, &text.into(), NO_LEVEL);
            }
        }
        if let Some(text) = self.version(mode) {
            let parsed = parse_version(text);
            standard.minor = parsed.flatten();
            if parsed.is_none() {
                let field = format!("metadata.labels[{PREFIX}{mode}-version]");
                errors.invalid(field, &text.into(), NO_VERSION);
            }
        }
        matches!(level, Some((_, Some(_))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn namespace(labels: &[(&str, &str)]) -> Value {
        let labels = labels
            .iter()
            .map(|(k, v)| (format!("{PREFIX}{k}"), (*v).into()));
        let labels: serde_json::Map<String, Value> = labels.collect();
        json!({"metadata": {"name": "n", "labels": labels}})
    }

    fn standard(level: Level, minor: Option<u32>) -> Standard {
        Standard { level, minor }
    }

    #[test]
    fn objections_are_in_upstreams_words() {
        let pod = json!({"hostNetwork": true, "containers": [{"name": "c", "ports": [{"hostPort": 80}]}], "volumes": [{"name": "v", "hostPath": {"path": "/"}}]});
        let objection = |level, pod: &Value| standard(level, None).objection(&json!({}), pod);
        assert_eq!(objection(Level::Privileged, &pod), None);
        assert_eq!(
            objection(Level::Baseline, &pod).unwrap(),
            "host namespaces (hostNetwork=true), hostPath volumes (volume \"v\"), hostPort (container \"c\" uses hostPort 80)"
        );
        let plain = json!({"containers": [{"name": "c"}]});
        assert_eq!(
            objection(Level::Restricted, &plain).unwrap(),
            "allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"]), runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true), seccompProfile (pod or container \"c\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
        );
        let good = json!({"securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "c", "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}]});
        assert_eq!(objection(Level::Restricted, &good), None);
    }

    #[test]
    fn labels_count_more_than_defaults() {
        let defaults = Policy {
            enforce: standard(Level::Baseline, Some(20)),
            audit: standard(Level::Restricted, None),
            warn: standard(Level::Baseline, None),
        };
        let policy = |labels: &[(&str, &str)]| {
            let mut errors = Errors::default();
            let policy = Policy::of(&namespace(labels), &defaults, &mut errors);
            (policy, errors.len())
        };
        assert_eq!(policy(&[]), (defaults, 0));
        let (strict, _) = policy(&[("enforce", "restricted"), ("enforce-version", "v1.30")]);
        assert_eq!(strict.enforce, standard(Level::Restricted, Some(30)));
        // Those who would be refused are warned, too.
        assert_eq!(strict.warn, strict.enforce);
        assert_eq!(strict.audit, defaults.audit);
        let (milder, _) = policy(&[("enforce", "privileged")]);
        assert_eq!(milder.warn, defaults.warn);
        let (silent, _) = policy(&[("enforce", "restricted"), ("warn", "privileged")]);
        assert_eq!(silent.warn, standard(Level::Privileged, None));
        let (wrong, errors) =
            policy(&[("enforce", "?"), ("warn", "?"), ("audit-version", "v1.01")]);
        assert_eq!(errors, 3);
        assert_eq!(wrong.enforce.level, Level::Restricted);
        assert_eq!(wrong.warn.level, Level::Privileged);
    }

    #[test]
    fn versions_are_latest_or_minors() {
        assert_eq!(parse_version("latest"), Some(None));
        assert_eq!(parse_version("v1.0"), Some(Some(0)));
        assert_eq!(parse_version("v1.25"), Some(Some(25)));
        for wrong in ["", "v1", "v1.", "v1.+1", "v1.025", "v2.1", "1.25"] {
            assert_eq!(parse_version(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn labels_of_exempt_namespaces_are_warned_of() {
        let warning = |labels: &[(&str, &str)]| {
            let (namespace, defaults) = (namespace(labels), Policy::default());
            let policy = Policy::of(&namespace, &defaults, &mut Errors::default());
            policy.warning_of_exemption(&namespace, &defaults)
        };
        assert_eq!(warning(&[]), None);
        assert_eq!(warning(&[("enforce", "privileged")]), None);
        assert_eq!(
            warning(&[
                ("enforce", "baseline"),
                ("audit", "restricted"),
                ("audit-version", "v1.30")
            ])
            .unwrap(),
            "namespace \"n\" is exempt from Pod Security, and the policy (enforce=baseline:latest, audit=restricted:v1.30) will be ignored"
        );
    }
}
