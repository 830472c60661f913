//! `ValidatingAdmissionPolicyConfiguration` and its mutating counterpart.

use anyhow::bail;
use fluyt_api::validation::Errors;
use serde::Deserialize;

use crate::admission::static_manifests;
use crate::config_file::{Of, Scheme, Struct};

pub(in crate::admission) const VALIDATING: &str = "ValidatingAdmissionPolicyConfiguration";
pub(in crate::admission) const MUTATING: &str = "MutatingAdmissionPolicyConfiguration";

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Configuration {
    kind: String,
    static_manifests_dir: String,
}

const SCHEME: Scheme = Scheme {
    name: "k8s.io/apiserver/pkg/admission/plugin/policy/config/config.go:32",
    kinds: &[
        ("apiserver.config.k8s.io/v1", VALIDATING),
        ("apiserver.config.k8s.io/v1", MUTATING),
    ],
    content: Struct {
        name: "v1.AdmissionPolicyConfiguration",
        fields: &[("staticManifestsDir", Of::Text)],
    },
    strict: true,
};

/// Whether a configuration is of the kind that is wanted, and does not want more than there is.
///
/// # Errors
/// When it is not.
pub(in crate::admission) fn check(configuration: Option<&str>, kind: &str) -> anyhow::Result<()> {
    let Some(text) = configuration else {
        return Ok(());
    };
    let configuration: Configuration = SCHEME.decode(text)?;
    if configuration.kind != kind {
        bail!("unexpected type: *policyconfig.{}", configuration.kind);
    }
    let mut errors = Errors::default();
    static_manifests::check(&configuration.static_manifests_dir, &mut errors);
    match crate::validation::sentence(&errors) {
        None => Ok(()),
        Some(why) => bail!(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_of_the_plugins_kind() {
        let text = |kind: &str| format!("apiVersion: apiserver.config.k8s.io/v1\nkind: {kind}\n");
        check(None, MUTATING).unwrap();
        check(Some(&text(MUTATING)), MUTATING).unwrap();
        let refused = |text: String| check(Some(&text), MUTATING).unwrap_err().to_string();
        assert_eq!(
            refused(text(VALIDATING)),
            "unexpected type: *policyconfig.ValidatingAdmissionPolicyConfiguration"
        );
        assert_eq!(
            refused(text(MUTATING) + "staticManifestsDir: /d"),
            "staticManifestsDir: Forbidden: staticManifestsDir requires the ManifestBasedAdmissionControlConfig feature gate to be enabled"
        );
    }
}
