//! `ValidatingAdmissionPolicyConfiguration` and its mutating counterpart.

use anyhow::bail;
use fluyt_api::validation::Errors;
use serde::Deserialize;

use crate::admission::static_manifests;
use crate::config_file::{Of, Scheme, Struct};
use crate::features::Features;

pub(super) const VALIDATING: &str = "ValidatingAdmissionPolicyConfiguration";
pub(super) const MUTATING: &str = "MutatingAdmissionPolicyConfiguration";

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

/// The directory of manifests that a configuration of the plugin's kind names; empty without one.
///
/// # Errors
/// When it is of another kind, or makes no sense.
pub(super) fn directory(
    configuration: Option<&str>,
    kind: &str,
    features: Features,
) -> anyhow::Result<String> {
    let Some(text) = configuration else {
        return Ok(String::new());
    };
    let configuration: Configuration = SCHEME.decode(text)?;
    if configuration.kind != kind {
        bail!("unexpected type: *policyconfig.{}", configuration.kind);
    }
    let mut errors = Errors::default();
    static_manifests::check(&configuration.static_manifests_dir, features, &mut errors);
    match crate::validation::sentence(&errors) {
        None => Ok(configuration.static_manifests_dir),
        Some(why) => bail!(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_of_the_plugins_kind() {
        let text = |kind: &str| format!("apiVersion: apiserver.config.k8s.io/v1\nkind: {kind}\n");
        let read = |text: Option<&str>| directory(text, MUTATING, Features::default());
        assert_eq!(read(None).unwrap(), "");
        assert_eq!(read(Some(&text(MUTATING))).unwrap(), "");
        let refused = |text: String| read(Some(&text)).unwrap_err().to_string();
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
