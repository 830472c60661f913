//! `WebhookAdmissionConfiguration`: a kubeconfig with what is presented to webhooks.

use std::path::Path;
use std::sync::Arc;

use anyhow::bail;
use fluyt_api::validation::Errors;
use serde::Deserialize;

use crate::admission::static_manifests;
use crate::config_file::{Of, Scheme, Struct};
use crate::features::Features;
use crate::remote::Users;

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Configuration {
    kube_config_file: String,
    static_manifests_dir: String,
}

const SCHEME: Scheme = Scheme {
    name: "k8s.io/apiserver/pkg/admission/plugin/webhook/config/kubeconfig.go:34",
    kinds: &[(
        "apiserver.config.k8s.io/v1",
        "WebhookAdmissionConfiguration",
    )],
    content: Struct {
        name: "v1.WebhookAdmission",
        fields: &[
            ("kubeConfigFile", Of::Text),
            ("staticManifestsDir", Of::Text),
        ],
    },
    strict: true,
};

/// What a plugin of webhooks is configured with.
#[derive(Default)]
pub(super) struct Configured {
    /// The users of the kubeconfig that is named; nobody without one.
    pub users: Arc<Users>,
    /// The directory of manifests; empty without one.
    pub directory: String,
}

/// Reads a configuration.
///
/// # Errors
/// When it or the kubeconfig is malformed.
pub(super) fn read(configuration: Option<&str>, features: Features) -> anyhow::Result<Configured> {
    let Some(text) = configuration else {
        return Ok(Configured::default());
    };
    let configuration: Configuration = SCHEME.decode(text)?;
    let (file, mut errors) = (&configuration.kube_config_file, Errors::default());
    if !file.is_empty() && !file.starts_with('/') {
        errors.invalid_text("kubeConfigFile", file, "must be an absolute file path");
    }
    let directory = configuration.static_manifests_dir;
    static_manifests::check(&directory, features, &mut errors);
    if let Some(first) = errors.0.first() {
        bail!("{}: {}", first.field, first.message);
    }
    let users = match file.is_empty() {
        true => Arc::default(),
        false => Arc::new(Users::load(Path::new(file))?),
    };
    Ok(Configured { users, directory })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kubeconfig_has_an_absolute_path() {
        let head = "apiVersion: apiserver.config.k8s.io/v1\nkind: WebhookAdmissionConfiguration\n";
        let refused = |fields: &str| {
            let read = read(Some(&format!("{head}{fields}")), Features::default());
            read.err().map(|error| format!("{error:#}"))
        };
        assert_eq!(refused(""), None);
        assert_eq!(
            refused("kubeConfigFile: config").unwrap(),
            "kubeConfigFile: Invalid value: \"config\": must be an absolute file path"
        );
        assert_eq!(
            refused("staticManifestsDir: /d").unwrap(),
            "staticManifestsDir: Forbidden: staticManifestsDir requires the ManifestBasedAdmissionControlConfig feature gate to be enabled"
        );
        assert_eq!(
            refused("kubeconfig: /a").unwrap(),
            "strict decoding error: unknown field \"kubeconfig\""
        );
        assert!(
            refused("kubeConfigFile: /absent")
                .unwrap()
                .starts_with("/absent")
        );
    }
}
